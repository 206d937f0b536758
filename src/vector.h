/* Vectors of one width and one element type, for whoever includes this next.
 *
 * Included once for each (instruction set, element type); there is no include guard on purpose. It expects
 *   ISA         the suffix of the instruction set: baseline, avx2, avx512
 *   ISA_LEVEL   0, 1 or 2 for the same
 *   VEC_BYTES   width of a vector register
 *   HALF        if defined: an instruction set with vectors of half the width that rounds alike
 *   IS_FLOAT    1 for float, 0 for double
 * GNU vector extensions carry one text through all of them; only the fused multiply-add and the masked tails
 * are spelled out, so that every instantiation rounds alike (the compiler contracts nothing by itself).
 */

#if IS_FLOAT
#define real float
#define int_of_real int32_t
#define FN(name) JOIN(name, f32, ISA)
#else
#define real double
#define int_of_real int64_t
#define FN(name) JOIN(name, f64, ISA)
#endif

#ifdef HALF
#if IS_FLOAT
#define HALF_FN(name) JOIN(name, f32, HALF)
#else
#define HALF_FN(name) JOIN(name, f64, HALF)
#endif
#endif

#define vec FN(vec)
#define loose_vec FN(loose_vec)
#define ivec FN(ivec)
#define LANES ((int64_t)(VEC_BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real loose_vec __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
typedef int_of_real ivec __attribute__((vector_size(VEC_BYTES)));

INLINE vec FN(load)(const real *p) { return *(const loose_vec *)p; }
INLINE void FN(store)(real *p, vec v) { *(loose_vec *)p = v; }

/* A vector that several instructions use and that is to be loaded once, not by each of them. */
INLINE vec FN(held)(vec v)
{
#if ISA_LEVEL == 2
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}

/* x - 0 and not 0 + x, which would turn -0 into 0. */
INLINE vec FN(splat)(real x) { return x - (vec){0}; }

INLINE vec FN(select)(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

INLINE vec FN(fma)(vec a, vec b, vec c)
{
#if ISA_LEVEL == 2 && IS_FLOAT
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ISA_LEVEL == 2
    return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif ISA_LEVEL == 1 && IS_FLOAT
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif ISA_LEVEL == 1
    return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__) && IS_FLOAT
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* The lanes of two vectors in turn: the first half of them, and the second. */
#if VEC_BYTES == 64 && IS_FLOAT
INLINE vec FN(zip_low)(vec a, vec b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE vec FN(zip_high)(vec a, vec b) { return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
#elif (VEC_BYTES == 32 && IS_FLOAT) || VEC_BYTES == 64
INLINE vec FN(zip_low)(vec a, vec b) { return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vec FN(zip_high)(vec a, vec b) { return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#elif IS_FLOAT || VEC_BYTES == 32
INLINE vec FN(zip_low)(vec a, vec b) { return SHUFFLE(a, b, 0, 4, 1, 5); }
INLINE vec FN(zip_high)(vec a, vec b) { return SHUFFLE(a, b, 2, 6, 3, 7); }
#else
INLINE vec FN(zip_low)(vec a, vec b) { return SHUFFLE(a, b, 0, 2); }
INLINE vec FN(zip_high)(vec a, vec b) { return SHUFFLE(a, b, 1, 3); }
#endif

#if VEC_BYTES == 64 && IS_FLOAT
/* Four elements from each lane of 128 bits, of a the numbers 0 to 3, of b 16 to 19; and whole such lanes. */
#define SHUFFLE_IN_LANES(a, b, i, j, k, m)                                                                             \
    SHUFFLE(a, b, i, j, k, m, 4 + i, 4 + j, 4 + k, 4 + m, 8 + i, 8 + j, 8 + k, 8 + m, 12 + i, 12 + j, 12 + k, 12 + m)
#define EVEN_LANES(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_LANES(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#endif

/* Every second lane of two vectors, from lane 0 on and from lane 1 on. */
#if VEC_BYTES == 64 && IS_FLOAT
#define EACH_SECOND(a, b, i)                                                                                           \
    SHUFFLE(a, b, i, 2 + i, 4 + i, 6 + i, 8 + i, 10 + i, 12 + i, 14 + i, 16 + i, 18 + i, 20 + i, 22 + i, 24 + i, 26 + i, 28 + i, 30 + i)
#elif (VEC_BYTES == 32 && IS_FLOAT) || VEC_BYTES == 64
#define EACH_SECOND(a, b, i) SHUFFLE(a, b, i, 2 + i, 4 + i, 6 + i, 8 + i, 10 + i, 12 + i, 14 + i)
#elif IS_FLOAT || VEC_BYTES == 32
#define EACH_SECOND(a, b, i) SHUFFLE(a, b, i, 2 + i, 4 + i, 6 + i)
#else
#define EACH_SECOND(a, b, i) SHUFFLE(a, b, i, 2 + i)
#endif
INLINE vec FN(evens)(vec a, vec b) { return EACH_SECOND(a, b, 0); }
INLINE vec FN(odds)(vec a, vec b) { return EACH_SECOND(a, b, 1); }
#undef EACH_SECOND

/* All lanes but the first of a, and behind them the first of b. */
#if VEC_BYTES == 64 && IS_FLOAT
INLINE vec FN(moved_on)(vec a, vec b) { return SHUFFLE(a, b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16); }
#elif (VEC_BYTES == 32 && IS_FLOAT) || VEC_BYTES == 64
INLINE vec FN(moved_on)(vec a, vec b) { return SHUFFLE(a, b, 1, 2, 3, 4, 5, 6, 7, 8); }
#elif IS_FLOAT || VEC_BYTES == 32
INLINE vec FN(moved_on)(vec a, vec b) { return SHUFFLE(a, b, 1, 2, 3, 4); }
#else
INLINE vec FN(moved_on)(vec a, vec b) { return SHUFFLE(a, b, 1, 2); }
#endif

/* Every third lane of three vectors, from lane k on. As vectors have no multiple of three lanes, those wanted are of different
 * numbers: they are put together first, which takes no tables of lanes, and then in order. */
#define OF_TWO(j, k, n) ((j) % 3 == k ? (j) : n + (j))
#define OF_THREE(j, k, n) ((2 * n + (j)) % 3 == k ? n + (j) : (j))
#define IN_ORDER(j, k, n) ((3 * (j) + k) % n)
#define EACH_2(F, k, n, j) F((j), k, n), F((j + 1), k, n)
#define EACH_4(F, k, n, j) EACH_2(F, k, n, j), EACH_2(F, k, n, j + 2)
#define EACH_8(F, k, n, j) EACH_4(F, k, n, j), EACH_4(F, k, n, j + 4)
#define EACH_16(F, k, n, j) EACH_8(F, k, n, j), EACH_8(F, k, n, j + 8)
#define EACH_THIRD(N, k)                                                                                               \
    vec mixed = SHUFFLE(SHUFFLE(a, b, EACH_##N(OF_TWO, k, N, 0)), c, EACH_##N(OF_THREE, k, N, 0));                     \
    return SHUFFLE(mixed, mixed, EACH_##N(IN_ORDER, k, N, 0))
#if VEC_BYTES == 64 && IS_FLOAT
#define THIRDS(k) EACH_THIRD(16, k)
#elif (VEC_BYTES == 32 && IS_FLOAT) || VEC_BYTES == 64
#define THIRDS(k) EACH_THIRD(8, k)
#elif IS_FLOAT || VEC_BYTES == 32
#define THIRDS(k) EACH_THIRD(4, k)
#else
#define THIRDS(k) EACH_THIRD(2, k)
#endif
INLINE vec FN(thirds)(vec a, vec b, vec c) { THIRDS(0); }
INLINE vec FN(second_thirds)(vec a, vec b, vec c) { THIRDS(1); }
INLINE vec FN(last_thirds)(vec a, vec b, vec c) { THIRDS(2); }
#undef OF_TWO
#undef OF_THREE
#undef IN_ORDER
#undef EACH_2
#undef EACH_4
#undef EACH_8
#undef EACH_16
#undef EACH_THIRD
#undef THIRDS

/* The first n (1 <= n <= LANES) elements, zeros behind them; nothing behind them is touched. */
INLINE vec FN(load_part)(const real *p, int64_t n)
{
#if ISA_LEVEL == 2 && IS_FLOAT
    return (vec)_mm512_maskz_loadu_ps((__mmask16)(0xffffu >> (16 - n)), p);
#elif ISA_LEVEL == 2
    return (vec)_mm512_maskz_loadu_pd((__mmask8)(0xffu >> (8 - n)), p);
#elif ISA_LEVEL == 1 && IS_FLOAT
    return (vec)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
#elif ISA_LEVEL == 1
    return (vec)_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
#else
    real part[VEC_BYTES / sizeof(real)] = {0};
    for (int64_t i = 0; i < n; i++)
        part[i] = p[i];
    return FN(load)(part);
#endif
}

INLINE void FN(store_part)(real *p, vec v, int64_t n)
{
#if ISA_LEVEL == 2 && IS_FLOAT
    _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu >> (16 - n)), (__m512)v);
#elif ISA_LEVEL == 2
    _mm512_mask_storeu_pd(p, (__mmask8)(0xffu >> (8 - n)), (__m512d)v);
#else
    for (int64_t i = 0; i < n; i++)
        p[i] = v[i];
#endif
}

/* A mask of lanes, and the elements there; what is not in the mask is zero and not touched. */
#if ISA_LEVEL == 2 && IS_FLOAT
typedef __mmask16 FN(lane_mask);
INLINE FN(lane_mask) FN(mask_of)(int64_t bits) { return (__mmask16)bits; }
INLINE vec FN(load_masked)(const real *p, FN(lane_mask) mask) { return (vec)_mm512_maskz_loadu_ps(mask, p); }
INLINE void FN(store_masked)(real *p, FN(lane_mask) mask, vec v) { _mm512_mask_storeu_ps(p, mask, (__m512)v); }
#elif ISA_LEVEL == 2
typedef __mmask8 FN(lane_mask);
INLINE FN(lane_mask) FN(mask_of)(int64_t bits) { return (__mmask8)bits; }
INLINE vec FN(load_masked)(const real *p, FN(lane_mask) mask) { return (vec)_mm512_maskz_loadu_pd(mask, p); }
INLINE void FN(store_masked)(real *p, FN(lane_mask) mask, vec v) { _mm512_mask_storeu_pd(p, mask, (__m512d)v); }
#else
typedef ivec FN(lane_mask);
INLINE FN(lane_mask) FN(mask_of)(int64_t bits)
{
    ivec lane;
    UNROLL(8)
    for (int i = 0; i < (int)(VEC_BYTES / sizeof(real)); i++)
        lane[i] = (int_of_real)1 << i;
    return (((int_of_real)bits - (ivec){0}) & lane) != 0;
}
INLINE vec FN(load_masked)(const real *p, FN(lane_mask) mask)
{
#if ISA_LEVEL == 1 && IS_FLOAT
    return (vec)_mm256_maskload_ps(p, (__m256i)mask);
#elif ISA_LEVEL == 1
    return (vec)_mm256_maskload_pd(p, (__m256i)mask);
#else
    vec part = {0};
    UNROLL(8)
    for (int i = 0; i < (int)(VEC_BYTES / sizeof(real)); i++)
        if (mask[i])
            part[i] = p[i];
    return part;
#endif
}
#endif

/* Those of the lanes from..end that a vector has. */
INLINE FN(lane_mask) FN(lanes_between)(int64_t from, int64_t end)
{
    from = from < 0 ? 0 : from;
    end = end > LANES ? LANES : end;
    return FN(mask_of)(from < end ? (1LL << end) - (1LL << from) : 0);
}

/* A mask that many loads use, to be kept where they want it: compilers bring it there anew for each of them. */
INLINE FN(lane_mask) FN(held_mask)(FN(lane_mask) mask)
{
#if ISA_LEVEL == 2
    __asm__("" : "+Yk"(mask));
#endif
    return mask;
}

/* Exactly n elements, of arrays that do not overlap. The last vector overlaps the one before it. */
INLINE void FN(copy)(real *restrict y, const real *restrict x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        FN(store)(y + i, FN(load)(x + i));
    if (i == n)
        return;
    if (i > 0) {
        FN(store)(y + n - LANES, FN(load)(x + n - LANES));
        return;
    }
#if ISA_LEVEL == 2
    FN(store_part)(y, FN(load_part)(x, n), n);
#else
    for (; i < n; i++)
        y[i] = x[i];
#endif
}

/* As copy, in whole vectors: reads and writes up to LANES - 1 elements more than n. */
INLINE void FN(copy_over)(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        FN(store)(y + i, FN(load)(x + i));
}

/* The elements of a and b in turn, n of each. */
INLINE void FN(copy_zipped)(real *restrict y, const real *restrict a, const real *restrict b, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        FN(store)(y + 2 * i, FN(zip_low)(FN(load)(a + i), FN(load)(b + i)));
        FN(store)(y + 2 * i + LANES, FN(zip_high)(FN(load)(a + i), FN(load)(b + i)));
    }
    for (; i < n; i++) {
        y[2 * i] = a[i];
        y[2 * i + 1] = b[i];
    }
}

INLINE void FN(add_to)(real *restrict y, const real *restrict x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        FN(store)(y + i, FN(load)(y + i) + FN(load)(x + i));
    if (i < n)
        FN(store_part)(y + i, FN(load_part)(y + i, n - i) + FN(load_part)(x + i, n - i), n - i);
}

INLINE void FN(clear)(real *y, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        FN(store)(y + i, (vec){0});
    for (; i < n; i++)
        y[i] = 0;
}

/* The columns of a square of vectors in place of its rows. */
INLINE void FN(turn)(vec *row)
{
    vec next[VEC_BYTES / sizeof(real)];
#if VEC_BYTES == 64 && IS_FLOAT
    /* Within lanes of 128 bits first, which takes no tables of lanes: 60 % faster than zips in the first-level cache. */
    UNROLL(4)
    for (int i = 0; i < 16; i += 4) {
        vec ab0 = SHUFFLE_IN_LANES(row[i], row[i + 1], 0, 16, 1, 17), ab1 = SHUFFLE_IN_LANES(row[i], row[i + 1], 2, 18, 3, 19);
        vec cd0 = SHUFFLE_IN_LANES(row[i + 2], row[i + 3], 0, 16, 1, 17), cd1 = SHUFFLE_IN_LANES(row[i + 2], row[i + 3], 2, 18, 3, 19);
        next[i] = SHUFFLE_IN_LANES(ab0, cd0, 0, 1, 16, 17);
        next[i + 1] = SHUFFLE_IN_LANES(ab0, cd0, 2, 3, 18, 19);
        next[i + 2] = SHUFFLE_IN_LANES(ab1, cd1, 0, 1, 16, 17);
        next[i + 3] = SHUFFLE_IN_LANES(ab1, cd1, 2, 3, 18, 19);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        vec low = EVEN_LANES(next[i], next[i + 4]), high = ODD_LANES(next[i], next[i + 4]);
        vec low_2 = EVEN_LANES(next[i + 8], next[i + 12]), high_2 = ODD_LANES(next[i + 8], next[i + 12]);
        row[i] = EVEN_LANES(low, low_2);
        row[i + 4] = EVEN_LANES(high, high_2);
        row[i + 8] = ODD_LANES(low, low_2);
        row[i + 12] = ODD_LANES(high, high_2);
    }
#elif VEC_BYTES == 32 && IS_FLOAT
    /* The same: 24 shuffles, and not the 48 that zips of whole vectors are made of. */
    UNROLL(2)
    for (int i = 0; i < 8; i += 4) {
        vec ab0 = SHUFFLE(row[i], row[i + 1], 0, 8, 1, 9, 4, 12, 5, 13), ab1 = SHUFFLE(row[i], row[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
        vec cd0 = SHUFFLE(row[i + 2], row[i + 3], 0, 8, 1, 9, 4, 12, 5, 13);
        vec cd1 = SHUFFLE(row[i + 2], row[i + 3], 2, 10, 3, 11, 6, 14, 7, 15);
        next[i] = SHUFFLE(ab0, cd0, 0, 1, 8, 9, 4, 5, 12, 13);
        next[i + 1] = SHUFFLE(ab0, cd0, 2, 3, 10, 11, 6, 7, 14, 15);
        next[i + 2] = SHUFFLE(ab1, cd1, 0, 1, 8, 9, 4, 5, 12, 13);
        next[i + 3] = SHUFFLE(ab1, cd1, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        row[i] = SHUFFLE(next[i], next[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        row[i + 4] = SHUFFLE(next[i], next[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    UNROLL(4)
    for (int64_t left = LANES; left > 1; left /= 2) {
        UNROLL(8)
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = FN(zip_low)(row[i], row[i + LANES / 2]);
            next[2 * i + 1] = FN(zip_high)(row[i], row[i + LANES / 2]);
        }
        UNROLL(16)
        for (int i = 0; i < LANES; i++)
            row[i] = next[i];
    }
#endif
}

/* y[to[j]][i], or y[j * y_stride][i], is x[i][j] for i < LANES, j < columns <= LANES. */
INLINE void FN(turn_block)(real *y, const int64_t *to, int64_t y_stride, const real *x, int64_t x_stride, int64_t columns)
{
    vec row[VEC_BYTES / sizeof(real)];
    UNROLL(16)
    for (int i = 0; i < LANES; i++)
        row[i] = columns == LANES ? FN(load)(x + i * x_stride) : FN(load_part)(x + i * x_stride, columns);
    FN(turn)(row);
    if (columns == LANES) {
        UNROLL(16)
        for (int j = 0; j < LANES; j++)
            FN(store)(y + (to ? to[j] : j * y_stride), row[j]);
    } else {
        UNROLL(16)
        for (int j = 0; j < LANES - 1; j++)
            if (j < columns)
                FN(store)(y + (to ? to[j] : j * y_stride), row[j]);
    }
}

typedef real FN(quad) __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* y[j][i] = x[i][j] for i < rows, j < columns, where rows do not fill a vector. */
INLINE void FN(turn_few)(real *y, const int64_t *to, int64_t y_stride, const real *x, int64_t x_stride, int64_t rows, int64_t columns)
{
    typedef FN(quad) quad;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const real *xi = x + i * x_stride;
        real *yi = y + i;
        int64_t j = 0;
        for (; j + 4 <= columns; j += 4) {
            quad a = *(const quad *)(xi + j), b = *(const quad *)(xi + x_stride + j);
            quad c = *(const quad *)(xi + 2 * x_stride + j), d = *(const quad *)(xi + 3 * x_stride + j);
            TRANSPOSE_QUADS(quad, a, b, c, d);
            *(quad *)(yi + (to ? to[j] : j * y_stride)) = a;
            *(quad *)(yi + (to ? to[j + 1] : (j + 1) * y_stride)) = b;
            *(quad *)(yi + (to ? to[j + 2] : (j + 2) * y_stride)) = c;
            *(quad *)(yi + (to ? to[j + 3] : (j + 3) * y_stride)) = d;
        }
        for (; j < columns; j++)
            for (int64_t r = 0; r < 4; r++)
                yi[(to ? to[j] : j * y_stride) + r] = xi[r * x_stride + j];
    }
    for (; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            y[(to ? to[j] : j * y_stride) + i] = x[i * x_stride + j];
}

/* y[to[j]][i], or y[j * y_stride][i], is x[i][j] for i < rows, j < columns. By squares of whole vectors, as a cache line
 * that is written in parts may leave its cache between them: pixels of 1024 channels took five times as long by 4 x 4. The
 * last squares overlap those before them. */
INLINE void FN(turn_all)(real *y, const int64_t *to, int64_t y_stride, const real *x, int64_t x_stride, int64_t rows, int64_t columns)
{
    if (rows < LANES) {
        FN(turn_few)(y, to, y_stride, x, x_stride, rows, columns);
        return;
    }
    for (int64_t begin = 0; begin < rows; begin += LANES) {
        int64_t i = begin + LANES > rows ? rows - LANES : begin;
        const real *xi = x + i * x_stride;
        if (columns < LANES)
            FN(turn_block)(y + i, to, y_stride, xi, x_stride, columns);
        else
            for (int64_t next = 0; next < columns; next += LANES) {
                int64_t j = next + LANES > columns ? columns - LANES : next;
                FN(turn_block)(y + i + (to ? 0 : j * y_stride), to ? to + j : 0, y_stride, xi + j, x_stride, LANES);
            }
    }
}

static NOINLINE void FN(transpose)(real *restrict y, int64_t y_stride, const real *restrict x, int64_t x_stride, int64_t rows,
                                   int64_t columns)
{
    FN(turn_all)(y, 0, y_stride, x, x_stride, rows, columns);
}

static NOINLINE void FN(transpose_to)(real *restrict y, const int64_t *to, const real *restrict x, int64_t x_stride, int64_t rows,
                                      int64_t columns)
{
    FN(turn_all)(y, to, 0, x, x_stride, rows, columns);
}

#if VEC_BYTES == 64 && IS_FLOAT
#undef SHUFFLE_IN_LANES
#undef EVEN_LANES
#undef ODD_LANES
#endif

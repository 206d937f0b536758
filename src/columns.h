/* The register tile of one input channel: output rows x vectors, summed over columns of taps.
 *
 * A column is a run of taps that lie one row of the tile apart, so a vector of the image is loaded once for all the
 * rows of the tile that read it: 8 rows of a 3x3 kernel take 10 loads for 24 products. Strides, dilations and phases
 * only change which taps make a column (lowering/columns.py). Each K block is summed from zero, and the order
 * does not depend on where a tile lies.
 *
 * What is not needed before the end comes in a struct: with all of it in registers, compilers park addresses in
 * vector registers. Vectors are held, as compilers else load them anew for each product (3x3 112x112: 206 and not 155 us).
 */

#define MAX_VECTORS 8
#define MAX_COLUMNS 3

/* Sums of the K blocks before this one (or null) are added, then bias and RELU or RELU6, if that is the activation. */
typedef struct {
    real *y;
    int64_t y_row, part; /* part: elements of the only vector, if not all */
    const real *total;
    real bias;
    int activation;
} FN(way_out);

/* acc[r][v] += w[j * w_step] * x[(stride * r + j) * x_row + v * LANES], for the taps j of a column. `stride` 2: of every second
 * pixel; as many `columns` as taps beside each other share what is loaded. whole: no lane or line is left out.
 *
 * Vectors that lie across two cache lines take twice as long to load, so a third column gets its vector from the first one's
 * and a single pixel (96 x 56x56, 3x3, stride 2: 42 and not 49 us). */
INLINE void FN(add_column)(const int rows, const int vectors, const int stride, const int taps, const int columns, const int whole,
                           const plane_column_words *column, const real *x, int64_t x_row, const real *w, int64_t w_step,
                           const int phase, vec acc[COLUMN_ROWS][MAX_VECTORS])
{
    const int masked = !whole && vectors == 1;
    const FN(lane_mask) mask = FN(held_mask)(FN(mask_of)(column->mask)), next = FN(held_mask)(FN(mask_of)(column->next_mask));
    const FN(lane_mask) last = FN(held_mask)(FN(mask_of)(column->last_mask));
    const int64_t lines = column->lines;
    const real *xi = x + column->x, *wk = w + column->w;
    vec weight[MAX_COLUMNS][COLUMN_ROWS];
    UNROLL(8)
    for (int j = 0; j < taps; j++, wk += w_step) {
        UNROLL(4)
        for (int k = 0; k < columns; k++)
            weight[k][j] = FN(held)(FN(splat)(wk[k]));
    }
    UNROLL(32)
    for (int i = 0; i < stride * (rows - 1) + taps; i++, xi += x_row) {
        if ((!whole && !(lines >> i & 1)) || (stride == 2 && taps == 1 && i % 2))
            continue;
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            vec value[MAX_COLUMNS];
            value[0] = masked ? FN(load_masked)(xi, mask) : FN(load)(xi + v * LANES);
            if (stride == 2) {
                vec both = masked ? FN(load_masked)(xi + LANES, next) : FN(load)(xi + LANES);
                if (columns > 1)
                    value[1] = FN(held)(FN(odds)(value[0], both));
                value[0] = FN(evens)(value[0], both);
                if (columns > 2)
                    value[2] = FN(held)(FN(moved_on)(value[0], FN(load_masked)(xi + 2 * LANES, last)));
            }
            value[0] = FN(held)(value[0]);
            UNROLL(4)
            for (int k = 0; k < columns; k++) {
                UNROLL(8)
                for (int j = 0; j < taps; j++)
                    if (i >= j && (i - j) % stride == 0 && (i - j) / stride < rows)
                        acc[(i - j) / stride][phase + v] = FN(fma)(weight[k][j], value[k], acc[(i - j) / stride][phase + v]);
            }
        }
    }
}

INLINE const int64_t *FN(add_columns)(const int rows, const int vectors, const int stride, const int taps, const int columns,
                                      const int64_t *group, const real *x, int64_t x_row, const real *w, int64_t w_step,
                                      const int phase, vec acc[COLUMN_ROWS][MAX_VECTORS])
{
    const int64_t all_lines = ((int64_t)1 << (stride * (rows - 1) + taps)) - 1, all_lanes = ((int64_t)1 << LANES) - 1;
    const plane_column_words *column = (const plane_column_words *)(group + 2), *end = column + group[1];
    for (; column < end; column++) {
        int whole = column->lines == all_lines && (vectors > 1 || (column->mask == all_lanes && (stride == 1 || column->next_mask == all_lanes)));
        /* With AVX-512 masks cost nothing: unmasked columns of their own gained nothing but where they have a single tap. */
        if ((ISA_LEVEL < 2 || taps == 1) && whole)
            FN(add_column)(rows, vectors, stride, taps, columns, 1, column, x, x_row, w, w_step, phase, acc);
        else
            FN(add_column)(rows, vectors, stride, taps, columns, 0, column, x, x_row, w, w_step, phase, acc);
    }
    return (const int64_t *)end;
}

/* Sum one K block and return where the next one begins. If `phases` is 2, a vector of each phase of the output's rows: they
 * are zipped on their way out (64 x 56x56 to 112x112, 2x2: 114 us, and 160 by way of rows that lie apart in scratch). */
INLINE const int64_t *FN(columns_body)(const int rows, const int vectors, const int stride, const int phases, const int64_t *group,
                                       const real *x, int64_t x_row, const real *w, int64_t w_step, const FN(way_out) *out)
{
    vec acc[COLUMN_ROWS][MAX_VECTORS];
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = (vec){0};
    }
    for (;;) {
#define CASE(TAPS, COLUMNS, PHASE)                                                                                     \
    case TAPS + (COLUMNS + PHASE - 1) * MAX_COLUMN_TAPS:                                                               \
        group = FN(add_columns)(rows, phases == 2 ? 1 : vectors, stride, TAPS, COLUMNS, group, x, x_row, w, w_step, PHASE, acc); \
        continue;
#define CASES(COLUMNS, PHASE)                                                                                          \
    CASE(1, COLUMNS, PHASE) CASE(2, COLUMNS, PHASE) CASE(3, COLUMNS, PHASE) CASE(4, COLUMNS, PHASE) CASE(5, COLUMNS, PHASE)
        if (stride == 2)
            switch (group[0]) { CASES(1, 0) CASES(2, 0) CASES(3, 0) }
        else if (phases == 2)
            switch (group[0]) { CASES(1, 0) CASES(1, 1) }
        else
            switch (group[0]) { CASES(1, 0) }
#undef CASES
#undef CASE
        break;
    }
    vec bias = FN(splat)(out->bias);
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            if (out->total && phases == 1)
                acc[r][v] = FN(load)(out->total + (r * vectors + v) * LANES) + acc[r][v];
        }
        if (out->total && phases == 2) {
            vec one = FN(load)(out->total + r * 2 * LANES), two = FN(load)(out->total + r * 2 * LANES + LANES);
            acc[r][0] = FN(evens)(one, two) + acc[r][0];
            acc[r][1] = FN(odds)(one, two) + acc[r][1];
        }
        UNROLL(8)
        for (int v = 0; v < vectors; v++)
            acc[r][v] += bias;
    }
    if (out->activation) {
        vec zero = {0}, most = FN(splat)(out->activation == RELU6 ? (real)6 : (real)INFINITY);
        UNROLL(8)
        for (int r = 0; r < rows; r++) {
            UNROLL(8)
            for (int v = 0; v < vectors; v++) {
                vec t = FN(select)(acc[r][v] < zero, zero, acc[r][v]);
                acc[r][v] = FN(select)(t > most, most, t);
            }
        }
    }
    real *y = out->y;
    int64_t y_row = out->y_row, part = out->part;
    UNROLL(8)
    for (int r = 0; r < rows; r++, y += y_row) {
        if (phases == 2) {
            vec one = acc[r][0];
            acc[r][0] = FN(zip_low)(one, acc[r][1]);
            acc[r][1] = FN(zip_high)(one, acc[r][1]);
        }
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            if ((vectors == 1 || phases == 2) && part && part < (v + 1) * LANES) {
                if (part > v * LANES)
                    FN(store_part)(y + v * LANES, acc[r][v], part - v * LANES);
            } else {
                FN(store)(y + v * LANES, acc[r][v]);
            }
        }
    }
    return group + 1;
}

#define SHAPE(R, V, NAME, STRIDE, PHASES)                                                                              \
    static NOINLINE const int64_t *FN(NAME##_##R##x##V)(const int64_t *group, const real *x, int64_t x_row,            \
                                                        const real *w, int64_t w_step, const FN(way_out) *out)         \
    {                                                                                                                  \
        return FN(columns_body)(R, V, STRIDE, PHASES, group, x, x_row, w, w_step, out);                                \
    }
#define C_(R, V) SHAPE(R, V, columns, 1, 1)
C_(1, 1) C_(1, 2) C_(1, 4) C_(1, 8) C_(2, 1) C_(2, 2) C_(2, 4) C_(3, 1) C_(3, 2)
C_(4, 1) C_(4, 2) C_(5, 1) C_(6, 1) C_(7, 1) C_(8, 1)
#undef C_
#if ISA_LEVEL == 2
SHAPE(1, 1, second_columns, 2, 1) SHAPE(2, 1, second_columns, 2, 1) SHAPE(4, 1, second_columns, 2, 1) SHAPE(7, 1, second_columns, 2, 1)
#endif
SHAPE(1, 2, paired_columns, 1, 2) SHAPE(2, 2, paired_columns, 1, 2) SHAPE(4, 2, paired_columns, 1, 2)
#undef SHAPE

typedef const int64_t *(*FN(columns_fn))(const int64_t *, const real *, int64_t, const real *, int64_t, const FN(way_out) *);

#define C_(R, V) FN(columns_##R##x##V)
#if ISA_LEVEL == 2 /* Others take so long to part the pixels that copies take less (96 x 56x56, 5x5: 162 and not 96 us). */
#define S_(R) , [5] = FN(second_columns_##R##x1)
#else
#define S_(R)
#endif
#define P_(R) , [6] = FN(paired_columns_##R##x2)
#ifdef HALF /* Tiles of half a vector round alike, but their arguments have types of their own. */
#define H_(R) , [4] = (FN(columns_fn))HALF_FN(columns_##R##x1)
#else
#define H_(R)
#endif
/* By rows, and by the word `size`. */
static const FN(columns_fn) FN(columns)[COLUMN_ROWS + 1][7] = {
    {0},
    {C_(1, 1), C_(1, 2), C_(1, 4), C_(1, 8) H_(1) S_(1) P_(1)},
    {C_(2, 1), C_(2, 2), C_(2, 4) H_(2) S_(2) P_(2)},
    {C_(3, 1), C_(3, 2) H_(3)},
    {C_(4, 1), C_(4, 2) H_(4) S_(4) P_(4)},
    {C_(5, 1) H_(5)},
    {C_(6, 1) H_(6)},
    {C_(7, 1) H_(7) S_(7)},
    {C_(8, 1) H_(8)},
};
#undef C_
#undef S_
#undef P_
#undef H_

/* What is fetched ahead: so many elements of x and y with each vector of channels. */
typedef struct {
    const real *x, *y;
    int64_t x_share, y_share;
} FN(vector_shares);

INLINE void FN(fetch_share)(FN(vector_shares) *ahead)
{
    int64_t line = CACHE_LINE / (int64_t)sizeof(real);
    for (int64_t i = 0; i < ahead->x_share; i += line)
        __builtin_prefetch(ahead->x + i, 0, 2);
    for (int64_t i = 0; i < ahead->y_share; i += line)
        __builtin_prefetch(ahead->y + i, 0, 2);
    ahead->x += ahead->x_share;
    ahead->y += ahead->y_share;
}

/* The same with channels last: the rows of a tile are pixels of one row, and a vector is of channels. Kernel rows are
 * pairs of (address of an image row, its weights), their number in front; all of them have the same columns: taps,
 * weights, and where in an image row the rows + taps - 1 pixels lie, in bytes. Results go to y[r * y_row + channel],
 * for `many` vectors of channels, the second of which is `step` behind the first. */
typedef struct {
    real *y;
    int64_t y_row;
    const real *bias; /* may be null */
    int64_t part;     /* channels of the only vector, if not all */
    int64_t many, step;
    const real *total;
    int activation;
    FN(vector_shares) ahead;
} FN(pixels_out);

INLINE const int64_t *FN(add_pixels)(const int rows, const int taps, const int part, const int64_t *column, const char *x,
                                     const real *w, int64_t w_step, int64_t left, vec acc[COLUMN_ROWS])
{
    const real *wk = w + column[1];
    const int64_t *pixel = column + 2;
    vec weight[COLUMN_ROWS];
    UNROLL(8)
    for (int j = 0; j < taps; j++, wk += w_step)
        weight[j] = FN(held)(FN(load)(wk));
    UNROLL(16)
    for (int i = 0; i < rows + taps - 1; i++) {
        const real *at = (const real *)(x + pixel[i]);
        vec value = FN(held)(part ? FN(load_part)(at, left) : FN(load)(at));
        UNROLL(8)
        for (int j = 0; j < taps; j++)
            if (i - j >= 0 && i - j < rows)
                acc[i - j] = FN(fma)(weight[j], value, acc[i - j]);
    }
    return pixel + rows + taps - 1;
}

INLINE const int64_t *FN(pixels_body)(const int rows, const int part, const int64_t *kernel_rows, const int64_t *columns,
                                      int64_t channel, const real *w, int64_t w_step, const FN(pixels_out) *out)
{
    const int64_t *column = columns, *row_end = kernel_rows + 1 + 2 * kernel_rows[0];
    FN(vector_shares) ahead = out->ahead;
    for (int64_t many = out->many, step = out->step; many > 0; many--, channel += step, step = LANES) {
        vec acc[COLUMN_ROWS], bias = {0};
        FN(fetch_share)(&ahead);
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            acc[r] = (vec){0};
        for (const int64_t *row = kernel_rows + 1; row < row_end; row += 2) {
            const char *x = (const char *)(row[0] + channel * (int64_t)sizeof(real));
            const real *w_row = w + row[1] + channel;
            column = columns;
            for (;;) {
#define CASE(TAPS)                                                                                                     \
    case TAPS:                                                                                                         \
        column = FN(add_pixels)(rows, TAPS, part, column, x, w_row, w_step, part ? out->part : 0, acc);                \
        continue;
                switch (column[0]) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) }
#undef CASE
                break;
            }
        }
        if (out->total) {
            UNROLL(8)
            for (int r = 0; r < rows; r++)
                acc[r] = FN(load)(out->total + r * LANES + channel) + acc[r];
        }
        if (out->bias)
            bias = part ? FN(load_part)(out->bias + channel, out->part) : FN(load)(out->bias + channel);
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            acc[r] += bias;
        if (out->activation) {
            vec zero = {0}, most = FN(splat)(out->activation == RELU6 ? (real)6 : (real)INFINITY);
            UNROLL(8)
            for (int r = 0; r < rows; r++) {
                vec t = FN(select)(acc[r] < zero, zero, acc[r]);
                acc[r] = FN(select)(t > most, most, t);
            }
        }
        real *y = out->y + channel;
        UNROLL(8)
        for (int r = 0; r < rows; r++, y += out->y_row) {
            if (part)
                FN(store_part)(y, acc[r], out->part);
            else
                FN(store)(y, acc[r]);
        }
    }
    return column + 1;
}

#define SHAPE(R, NAME, PART)                                                                                           \
    static NOINLINE const int64_t *FN(NAME##_##R)(const int64_t *kernel_rows, const int64_t *columns, int64_t channel, \
                                                  const real *w, int64_t w_step, const FN(pixels_out) *out)            \
    {                                                                                                                  \
        return FN(pixels_body)(R, PART, kernel_rows, columns, channel, w, w_step, out);                                \
    }
#define SHAPES(NAME, PART)                                                                                             \
    SHAPE(1, NAME, PART) SHAPE(2, NAME, PART) SHAPE(3, NAME, PART) SHAPE(4, NAME, PART)                                \
    SHAPE(5, NAME, PART) SHAPE(6, NAME, PART) SHAPE(7, NAME, PART) SHAPE(8, NAME, PART)                                \
    static const FN(pixels_fn) FN(NAME)[] = {0, FN(NAME##_1), FN(NAME##_2), FN(NAME##_3), FN(NAME##_4), FN(NAME##_5), \
                                             FN(NAME##_6), FN(NAME##_7), FN(NAME##_8)};
typedef const int64_t *(*FN(pixels_fn))(const int64_t *, const int64_t *, int64_t, const real *, int64_t, const FN(pixels_out) *);
SHAPES(pixels, 0)
SHAPES(part_pixels, 1)
#undef SHAPES
#undef SHAPE
#undef MAX_VECTORS
#undef MAX_COLUMNS

/* Weight gradients of one input channel a group: see DEPTHWISE_GRAD_WORDS. Each product of a pixel and a gradient goes to a
 * sum of its own, so what counts is how often a value is loaded. Sums stay in registers, and vectors until the very end.
 *
 * Channels first, pixels lie in the vectors. A line of the image meets one row of the gradient for each kernel row; these
 * rows are kept in registers and move on by one with each line: for 3x3, nine products take three loads of the image,
 * hardly ever aligned, and one of the gradient. Arrays are read in place: lanes beyond a row's end, and in the padding, are
 * masked in both, so that nothing there meets a number that is not finite.
 *
 * Channels last, they lie in the vectors. The gradient is cut into parts that the same taps reach: nothing is padded.
 */

#if MANY_REGISTERS
#define GRAD_ROWS 7
#else
#define GRAD_ROWS 3
#endif
#define GRAD_COLUMNS 3
#define LEAST_LINES 8
#define SQUARE 16

/* One of the loads of a tile; whole: no lane is masked. */
INLINE vec FN(load_lanes)(const int whole, const real *p, const FN(lane_mask) *mask)
{
    return whole ? FN(load)(p) : FN(load_masked)(p, *mask);
}

/* A line of the image, from as many columns of the kernel. With a stride of 2, two columns share two loads. */
INLINE void FN(load_line)(const int columns, const int stride, const int whole, const real *at, int64_t x_column,
                          const FN(lane_mask) *masks, vec *x)
{
    UNROLL(3)
    for (int j = 0; j < columns; j += stride) {
        if (stride == 1) {
            x[j] = FN(held)(FN(load_lanes)(whole, at + j * x_column, masks + j));
        } else {
            vec a = FN(load_lanes)(whole, at + j, masks + j), b = FN(load_lanes)(whole, at + j + LANES, masks + j + 1);
            x[j] = FN(evens)(a, b);
            if (j + 1 < columns)
                x[j + 1] = FN(odds)(a, b);
        }
    }
}

/* Lines begin..end of one vector of outputs. */
INLINE void FN(grad_lines)(const int rows, const int columns, const int stride, const int whole, const plane_part_words *p,
                           const real *x, const real *gy, const FN(lane_mask) *masks, int64_t begin, int64_t end,
                           vec sum[GRAD_ROWS][GRAD_COLUMNS])
{
    int64_t x_row = p->x_row, x_column = p->x_column, gy_row = p->gy_row, n_h = p->n_h, line = begin;
    int64_t all = rows - 1 < begin ? begin : rows - 1, last = end < n_h ? end : n_h;
    while (line < end) {
        vec value[GRAD_COLUMNS + 1], gradient[GRAD_ROWS];
        if (line >= all && line < last) {
            UNROLL(8)
            for (int k = 1; k < rows; k++)
                gradient[k] = FN(load_lanes)(whole, gy + (line - k) * gy_row, masks);
            const real *at = x + line * x_row, *row = gy + line * gy_row;
            for (; line < last; line++, at += x_row, row += gy_row) {
                gradient[0] = FN(held)(FN(load_lanes)(whole, row, masks));
                FN(load_line)(columns, stride, whole, at, x_column, masks + 1, value);
                UNROLL(3)
                for (int j = 0; j < columns; j++) {
                    UNROLL(8)
                    for (int k = 0; k < rows; k++)
                        sum[k][j] = FN(fma)(gradient[k], value[j], sum[k][j]);
                }
                UNROLL(8)
                for (int k = rows - 1; k > 0; k--)
                    gradient[k] = gradient[k - 1];
            }
            continue;
        }
        FN(load_line)(columns, stride, whole, x + line * x_row, x_column, masks + 1, value);
        UNROLL(8)
        for (int k = 0; k < rows; k++)
            if (line >= k && line - k < n_h) {
                gradient[k] = FN(load_lanes)(whole, gy + (line - k) * gy_row, masks);
                UNROLL(3)
                for (int j = 0; j < columns; j++)
                    sum[k][j] = FN(fma)(gradient[k], value[j], sum[k][j]);
            }
        line++;
    }
}

/* Add what lines begin..end and vectors v..v_end of a plane sum to. */
INLINE void FN(plane_part_body)(const int rows, const int columns, const int stride, const plane_part_words *p, const real *x,
                                const real *gy, int64_t begin, int64_t end, int64_t v, int64_t v_end, real *sums)
{
    const int loads = stride == 1 ? columns : 2 * ((columns + 1) / 2);
    const int64_t *bits = (const int64_t *)p->masks + v * (1 + loads);
    vec sum[GRAD_ROWS][GRAD_COLUMNS];
    UNROLL(8)
    for (int k = 0; k < rows; k++) {
        UNROLL(3)
        for (int j = 0; j < columns; j++)
            sum[k][j] = (vec){0};
    }
    for (; v < v_end; v++, bits += 1 + loads) {
        const real *x_v = x + v * stride * LANES, *gy_v = gy + v * LANES;
        FN(lane_mask) masks[GRAD_COLUMNS + 2];
        int whole = 1;
        UNROLL(5)
        for (int i = 0; i < 1 + loads; i++) {
            masks[i] = FN(mask_of)(bits[i]);
            whole &= bits[i] == ((int64_t)1 << LANES) - 1;
        }
#if ISA_LEVEL == 2
        whole = 0; /* masks cost nothing there */
#endif
        if (whole)
            FN(grad_lines)(rows, columns, stride, 1, p, x_v, gy_v, masks, begin, end, sum);
        else
            FN(grad_lines)(rows, columns, stride, 0, p, x_v, gy_v, masks, begin, end, sum);
    }
    UNROLL(8)
    for (int k = 0; k < rows; k++) {
        UNROLL(3)
        for (int j = 0; j < columns; j++) {
            real *to = sums + (p->tap + k * p->tap_row + j * p->tap_column) * LANES;
            FN(store)(to, FN(load)(to) + sum[k][j]);
        }
    }
}

#define PLANE_PART(R, C, S)                                                                                            \
    static NOINLINE void FN(plane_part_##R##x##C##_s##S)(const plane_part_words *p, const real *x, const real *gy,     \
                                                         int64_t begin, int64_t end, int64_t v, int64_t v_end, real *sums) \
    {                                                                                                                  \
        FN(plane_part_body)(R, C, S, p, x, gy, begin, end, v, v_end, sums);                                            \
    }
#define PLANE_PARTS(R, S) PLANE_PART(R, 1, S) PLANE_PART(R, 2, S) PLANE_PART(R, 3, S)
#define PLANE_ROW(R, S) {FN(plane_part_##R##x1_s##S), FN(plane_part_##R##x2_s##S), FN(plane_part_##R##x3_s##S)}
typedef void (*FN(plane_part_fn))(const plane_part_words *, const real *, const real *, int64_t, int64_t, int64_t, int64_t, real *);

PLANE_PARTS(1, 1) PLANE_PARTS(2, 1) PLANE_PARTS(3, 1) PLANE_PARTS(1, 2) PLANE_PARTS(2, 2) PLANE_PARTS(3, 2)
#if MANY_REGISTERS
PLANE_PARTS(4, 1) PLANE_PARTS(5, 1) PLANE_PARTS(6, 1) PLANE_PARTS(7, 1)
#endif

/* By stride, rows, columns. */
static const FN(plane_part_fn) FN(plane_parts)[2][GRAD_ROWS][GRAD_COLUMNS] = {
    {
        PLANE_ROW(1, 1), PLANE_ROW(2, 1), PLANE_ROW(3, 1),
#if MANY_REGISTERS
        PLANE_ROW(4, 1), PLANE_ROW(5, 1), PLANE_ROW(6, 1), PLANE_ROW(7, 1),
#endif
    },
    {PLANE_ROW(1, 2), PLANE_ROW(2, 2), PLANE_ROW(3, 2)},
};
#undef PLANE_PART
#undef PLANE_PARTS
#undef PLANE_ROW

/* All of a plane for one part: bands of lines that stay in L1, in pieces whose sums from zero have at most so many terms. */
static void FN(sum_plane_part)(const plane_part_words *p, const real *x, const real *gy, real *sums)
{
    FN(plane_part_fn) tile = FN(plane_parts)[p->stride - 1][p->rows - 1][p->columns - 1];
    int64_t lines = p->end - p->begin, height = MAX_K_BLOCK / p->vectors;
    if (height < LEAST_LINES)
        height = lines < LEAST_LINES ? lines : LEAST_LINES;
    int64_t width = MAX_K_BLOCK / height;
    for (int64_t line = p->begin; line < p->end; line += height)
        for (int64_t v = 0; v < p->vectors; v += width)
            tile(p, x, gy, line, p->end - line < height ? p->end : line + height, v, p->vectors - v < width ? p->vectors : v + width, sums);
}

/* y[i] = the sum of the lanes of vector i, always in the same order. */
static void FN(sum_lanes)(const real *sums, int64_t count, real *y)
{
    typedef FN(quad) quad;
    for (; count > 0; count -= 4, sums += 4 * LANES, y += 4) {
        int64_t some = count < 4 ? count : 4;
        quad total[4] = {{0}};
        for (int64_t i = 0; i < some; i++) {
            if (LANES < 4) {
                for (int64_t lane = 0; lane < LANES; lane++)
                    total[i][lane] = sums[i * LANES + lane];
            } else {
                total[i] = *(const quad *)(sums + i * LANES);
                for (int64_t lane = 4; lane < LANES; lane += 4)
                    total[i] += *(const quad *)(sums + i * LANES + lane);
            }
        }
        TRANSPOSE_QUADS(quad, total[0], total[1], total[2], total[3]);
        quad found = (total[0] + total[1]) + (total[2] + total[3]);
        for (int64_t i = 0; i < some; i++)
            y[i] = found[i];
    }
}

/* Where the sums of a task are kept; those of one chunk alone never leave the thread's scratch. */
INLINE real *FN(kept_sums)(const depthwise_grad_words *a, int64_t task, int64_t size, int64_t thread)
{
    int alone = a->first_image == 0 && a->images == a->batch;
    real *sums = alone ? (real *)(a->work + thread * a->work_stride) : (real *)a->sums + task * size;
    if (a->first_image == 0)
        FN(clear)(sums, size);
    return sums;
}

static void FN(depthwise_plane_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_grad_words *a = (const depthwise_grad_words *)words;
    int64_t weights = a->outputs * a->kernel_taps;
    for (int64_t channel = begin; channel < end; channel++) {
        real *sums = FN(kept_sums)(a, channel, weights * LANES, thread);
        for (int64_t image = 0; image < a->images; image++)
            for (int64_t o = 0; o < a->outputs; o++) {
                const real *x = (const real *)a->x + image * a->x_image + channel * a->x_channel;
                const real *gy = (const real *)a->gy + image * a->gy_image + (channel * a->outputs + o) * a->gy_channel;
                const plane_part_words *p = (const plane_part_words *)a->parts;
                for (const plane_part_words *past = p + a->part_count; p < past; p++)
                    for (int64_t d = 0; d < p->n_d; d++)
                        FN(sum_plane_part)(p, x + p->x + d * p->x_d, gy + p->gy + d * p->gy_d, sums + o * a->kernel_taps * LANES);
            }
        if (a->first_image + a->images == a->batch)
            FN(sum_lanes)(sums, weights, (real *)a->gw + channel * weights);
    }
}

/* Add what n_h x n_w outputs of one vector of channels sum to. */
INLINE void FN(pixel_part_body)(const int rows, const int columns, const pixel_part_words *p, const real *x, const real *gy, int64_t n_h,
                                int64_t n_w, real *sums)
{
    int64_t x_w = p->x_w, x_row = p->x_row, x_column = p->x_column, gy_w = p->gy_w;
    vec sum[GRAD_ROWS][GRAD_COLUMNS];
    UNROLL(8)
    for (int k = 0; k < rows; k++) {
        UNROLL(3)
        for (int j = 0; j < columns; j++)
            sum[k][j] = (vec){0};
    }
    for (int64_t h = 0; h < n_h; h++) {
        const real *at = x + h * p->x_h, *from = gy + h * p->gy_h;
        for (int64_t w = 0; w < n_w; w++, at += x_w, from += gy_w) {
            vec gradient = FN(held)(FN(load)(from));
            const real *row = at;
            UNROLL(8)
            for (int k = 0; k < rows; k++, row += x_row) {
                UNROLL(3)
                for (int j = 0; j < columns; j++)
                    sum[k][j] = FN(fma)(gradient, FN(load)(row + j * x_column), sum[k][j]);
            }
        }
    }
    UNROLL(8)
    for (int k = 0; k < rows; k++) {
        UNROLL(3)
        for (int j = 0; j < columns; j++) {
            real *to = sums + (p->tap + k * p->tap_row + j * p->tap_column) * LANES;
            FN(store)(to, FN(load)(to) + sum[k][j]);
        }
    }
}

#define PIXEL_PART(R, C)                                                                                               \
    static NOINLINE void FN(pixel_part_##R##x##C)(const pixel_part_words *p, const real *x, const real *gy, int64_t n_h, \
                                                  int64_t n_w, real *sums)                                             \
    {                                                                                                                  \
        FN(pixel_part_body)(R, C, p, x, gy, n_h, n_w, sums);                                                           \
    }
#define PIXEL_PARTS(R) PIXEL_PART(R, 1) PIXEL_PART(R, 2) PIXEL_PART(R, 3)
#define PIXEL_ROW(R) {FN(pixel_part_##R##x1), FN(pixel_part_##R##x2), FN(pixel_part_##R##x3)}
typedef void (*FN(pixel_part_fn))(const pixel_part_words *, const real *, const real *, int64_t, int64_t, real *);

PIXEL_PARTS(1) PIXEL_PARTS(2) PIXEL_PARTS(3)
#if MANY_REGISTERS
PIXEL_PARTS(4) PIXEL_PARTS(5) PIXEL_PARTS(6) PIXEL_PARTS(7)
#endif

static const FN(pixel_part_fn) FN(pixel_parts)[GRAD_ROWS][GRAD_COLUMNS] = {
    PIXEL_ROW(1), PIXEL_ROW(2), PIXEL_ROW(3),
#if MANY_REGISTERS
    PIXEL_ROW(4), PIXEL_ROW(5), PIXEL_ROW(6), PIXEL_ROW(7),
#endif
};
#undef PIXEL_PART
#undef PIXEL_PARTS
#undef PIXEL_ROW

/* One part of an image for some vectors of channels, in squares of outputs for all tiles of taps in turn: what they read
 * stays in L1, though pixels lie apart as far as there are channels, and sums from zero have few terms. The last vector of
 * all overlaps the one before. */
static void FN(sum_pixel_part)(const depthwise_grad_words *a, const pixel_part_words *p, const real *x, const real *gy, int64_t first,
                               int64_t vectors, real *sums)
{
    int64_t width = p->n_w < SQUARE ? p->n_w : SQUARE, height = MAX_K_BLOCK / width;
    for (int64_t h = 0; h < p->n_h; h += height)
        for (int64_t w = 0; w < p->n_w; w += width)
            for (int64_t v = 0; v < vectors; v++) {
                int64_t channel = (first + v) * LANES < a->channels - LANES ? (first + v) * LANES : a->channels - LANES;
                int64_t n_h = p->n_h - h < height ? p->n_h - h : height, n_w = p->n_w - w < width ? p->n_w - w : width;
                const real *gradient = gy + h * p->gy_h + w * p->gy_w + channel;
                for (const pixel_part_words *q = p; q < p + p->together; q++)
                    FN(pixel_parts)[q->rows - 1][q->columns - 1](q, x + q->x + h * q->x_h + w * q->x_w + channel, gradient, n_h, n_w,
                                                                 sums + v * a->kernel_taps * LANES);
            }
}

static void FN(depthwise_pixel_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_grad_words *a = (const depthwise_grad_words *)words;
    int64_t taps = a->kernel_taps, all = (a->channels + LANES - 1) / LANES;
    for (int64_t task = begin; task < end; task++) {
        int64_t first = task * a->outputs, vectors = all - first < a->outputs ? all - first : a->outputs;
        real *sums = FN(kept_sums)(a, task, a->outputs * taps * LANES, thread);
        for (int64_t image = 0; image < a->images; image++) {
            const real *x = (const real *)a->x + image * a->x_image, *gy = (const real *)a->gy + image * a->gy_image;
            const pixel_part_words *p = (const pixel_part_words *)a->parts;
            for (const pixel_part_words *past = p + a->part_count; p < past; p += p->together)
                for (int64_t d = 0; d < p->n_d; d++)
                    FN(sum_pixel_part)(a, p, x + d * p->x_d, gy + p->gy + d * p->gy_d, first, vectors, sums);
        }
        if (a->first_image + a->images < a->batch)
            continue;
        for (int64_t v = 0; v < vectors; v++) {
            int64_t channel = (first + v) * LANES, left = a->channels - channel, some = left < LANES ? left : LANES;
            FN(transpose)((real *)a->gw + channel * taps, taps, sums + v * taps * LANES + LANES - some, LANES, taps, some);
        }
    }
}

#undef GRAD_ROWS
#undef GRAD_COLUMNS
#undef LEAST_LINES
#undef SQUARE

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

/* Sums of the K blocks before this one (or null) are added, then bias and RELU or RELU6, if that is the activation. */
typedef struct {
    real *y;
    int64_t y_row, part; /* part: elements of the only vector, if not all */
    const real *total;
    real bias;
    int activation;
} FN(way_out);

/* acc[r][v] += w[j * w_step] * x[(r + j) * x_row + v * LANES], for the taps j of each column. */
INLINE const int64_t *FN(add_columns)(const int rows, const int vectors, const int taps, const int64_t *column, const real *x,
                                      int64_t x_row, const real *w, int64_t w_step, vec acc[COLUMN_ROWS][MAX_VECTORS])
{
    const int64_t *end = column + column[1];
    for (column += 2; column < end; column += 2) {
        const real *xi = x + column[0], *wk = w + column[1];
        vec weight[COLUMN_ROWS];
        UNROLL(8)
        for (int j = 0; j < taps; j++, wk += w_step)
            weight[j] = FN(held)(FN(splat)(*wk));
        UNROLL(16)
        for (int i = 0; i < rows + taps - 1; i++, xi += x_row) {
            UNROLL(8)
            for (int v = 0; v < vectors; v++) {
                vec value = FN(held)(FN(load)(xi + v * LANES));
                UNROLL(8)
                for (int j = 0; j < taps; j++)
                    if (i - j >= 0 && i - j < rows)
                        acc[i - j][v] = FN(fma)(weight[j], value, acc[i - j][v]);
            }
        }
    }
    return column;
}

/* Sum one K block and return where the next one begins. */
INLINE const int64_t *FN(columns_body)(const int rows, const int vectors, const int64_t *group, const real *x, int64_t x_row,
                                       const real *w, int64_t w_step, const FN(way_out) *out)
{
    vec acc[COLUMN_ROWS][MAX_VECTORS];
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = (vec){0};
    }
    for (;;) {
#define CASE(TAPS)                                                                                                     \
    case TAPS:                                                                                                         \
        group = FN(add_columns)(rows, vectors, TAPS, group, x, x_row, w, w_step, acc);                                 \
        continue;
        switch (group[0]) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) }
#undef CASE
        break;
    }
    vec bias = FN(splat)(out->bias);
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            if (out->total)
                acc[r][v] = FN(load)(out->total + (r * vectors + v) * LANES) + acc[r][v];
            acc[r][v] += bias;
        }
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
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            if (vectors == 1 && part)
                FN(store_part)(y, acc[r][v], part);
            else
                FN(store)(y + v * LANES, acc[r][v]);
        }
    }
    return group + 1;
}

#define SHAPE(R, V)                                                                                                    \
    static NOINLINE const int64_t *FN(columns_##R##x##V)(const int64_t *group, const real *x, int64_t x_row,           \
                                                         const real *w, int64_t w_step, const FN(way_out) *out)        \
    {                                                                                                                  \
        return FN(columns_body)(R, V, group, x, x_row, w, w_step, out);                                                \
    }
SHAPE(1, 1) SHAPE(1, 2) SHAPE(1, 4) SHAPE(1, 8) SHAPE(2, 1) SHAPE(2, 2) SHAPE(2, 4) SHAPE(3, 1) SHAPE(3, 2)
SHAPE(4, 1) SHAPE(4, 2) SHAPE(5, 1) SHAPE(6, 1) SHAPE(7, 1) SHAPE(8, 1)
#undef SHAPE

typedef const int64_t *(*FN(columns_fn))(const int64_t *, const real *, int64_t, const real *, int64_t, const FN(way_out) *);

#define C_(R, V) FN(columns_##R##x##V)
#ifdef HALF /* Tiles of half a vector round alike, but their arguments have types of their own. */
#define H_(R) , [4] = (FN(columns_fn))HALF_FN(columns_##R##x1)
#else
#define H_(R)
#endif
/* By rows, and by the logarithm of vectors; 4 is half a vector. */
static const FN(columns_fn) FN(columns)[COLUMN_ROWS + 1][5] = {
    {0},
    {C_(1, 1), C_(1, 2), C_(1, 4), C_(1, 8) H_(1)},
    {C_(2, 1), C_(2, 2), C_(2, 4) H_(2)},
    {C_(3, 1), C_(3, 2) H_(3)},
    {C_(4, 1), C_(4, 2) H_(4)},
    {C_(5, 1) H_(5)},
    {C_(6, 1) H_(6)},
    {C_(7, 1) H_(7)},
    {C_(8, 1) H_(8)},
};
#undef C_
#undef H_

/* The same with channels last: the rows of a tile are pixels of one row, and a vector is of channels. Kernel rows are
 * pairs of (address of an image row, its weights), their number in front; all of them have the same columns: taps,
 * weights, and where in an image row the rows + taps - 1 pixels lie, in bytes. Results go to y[r * y_row + channel],
 * for `many` vectors of channels. */
typedef struct {
    real *y;
    int64_t y_row;
    const real *bias; /* may be null */
    int64_t part;     /* channels of the only vector, if not all */
    int64_t many;
    const real *total;
    int activation;
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
    for (int64_t last = channel + out->many * LANES; channel < last; channel += LANES) {
        vec acc[COLUMN_ROWS], bias = {0};
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

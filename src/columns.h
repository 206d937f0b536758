/* The register tile of one input channel: output rows x vectors, summed over columns of taps.
 *
 * A column is a run of taps that lie one row of the tile apart, so a vector of the image is loaded once for all the
 * rows of the tile that read it: 8 rows of a 3x3 kernel take 10 loads for 24 products. Strides, dilations and phases
 * only change which taps make a column (lowering/depthwise.py). Each K block is summed from zero, and the order
 * does not depend on where a tile lies.
 */

#define MAX_ROWS 8
#define MAX_VECTORS 8

/* acc[r][v] += w[j * w_step] * x[(r + j) * x_row + v * LANES], for the taps j of each column. */
INLINE void FN(add_columns)(const int rows, const int vectors, const int taps, int64_t columns, const int64_t *x_offsets,
                            const int64_t *w_offsets, const real *x, int64_t x_row, const real *w, int64_t w_step,
                            vec acc[MAX_ROWS][MAX_VECTORS])
{
    for (int64_t k = 0; k < columns; k++) {
        const real *xi = x + x_offsets[k], *wk = w + w_offsets[k];
        vec weight[MAX_ROWS];
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
}

INLINE void FN(columns_body)(const int rows, const int vectors, const plane_sum_words *a, const real *x, const real *w,
                             real bias, int64_t activation, real *y, int64_t y_row, int64_t part)
{
    vec acc[MAX_ROWS][MAX_VECTORS], total[MAX_ROWS * MAX_VECTORS];
    const int64_t *x_offsets = (const int64_t *)a->x_offsets, *w_offsets = (const int64_t *)a->w_offsets;
    const group_words *group = (const group_words *)a->groups;
    int64_t x_row = a->x_row, w_step = a->w_step;
    int blocks = 0;
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = (vec){0};
    }
    for (int64_t g = 0; g < a->group_count; g++, group++) {
        int64_t columns = group->columns;
#define CASE(TAPS)                                                                                                     \
    case TAPS:                                                                                                         \
        FN(add_columns)(rows, vectors, TAPS, columns, x_offsets, w_offsets, x, x_row, w, w_step, acc);                 \
        break;
        switch (group->taps) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) }
#undef CASE
        x_offsets += columns;
        w_offsets += columns;
        if (!group->ends_block)
            continue;
        UNROLL(8)
        for (int r = 0; r < rows; r++) {
            UNROLL(8)
            for (int v = 0; v < vectors; v++) {
                vec *t = total + r * vectors + v;
                *t = blocks ? *t + acc[r][v] : acc[r][v];
                acc[r][v] = (vec){0};
            }
        }
        blocks = 1;
    }
    UNROLL(8)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            if (blocks)
                acc[r][v] = total[r * vectors + v] + acc[r][v];
            acc[r][v] += bias;
        }
    }
    if (activation) {
        vec zero = {0}, most = FN(splat)(activation == RELU6 ? (real)6 : (real)INFINITY);
        UNROLL(8)
        for (int r = 0; r < rows; r++) {
            UNROLL(8)
            for (int v = 0; v < vectors; v++) {
                vec t = FN(select)(acc[r][v] < zero, zero, acc[r][v]);
                acc[r][v] = FN(select)(t > most, most, t);
            }
        }
    }
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
}

#define SHAPE(R, V)                                                                                                    \
    static NOINLINE void FN(columns_##R##x##V)(const plane_sum_words *a, const real *x, const real *w, real bias,      \
                                               int64_t activation, real *y, int64_t y_row, int64_t part)               \
    {                                                                                                                  \
        FN(columns_body)(R, V, a, x, w, bias, activation, y, y_row, part);                                             \
    }
SHAPE(1, 1) SHAPE(1, 2) SHAPE(1, 4) SHAPE(1, 8) SHAPE(2, 1) SHAPE(2, 2) SHAPE(2, 4) SHAPE(3, 1) SHAPE(3, 2)
SHAPE(4, 1) SHAPE(4, 2) SHAPE(5, 1) SHAPE(6, 1) SHAPE(7, 1) SHAPE(8, 1)
#undef SHAPE

typedef void (*FN(columns_fn))(const plane_sum_words *, const real *, const real *, real, int64_t, real *, int64_t, int64_t);

#define C_(R, V) FN(columns_##R##x##V)
/* By rows, and by the logarithm of vectors. */
static const FN(columns_fn) FN(columns)[MAX_ROWS + 1][4] = {
    {0},
    {C_(1, 1), C_(1, 2), C_(1, 4), C_(1, 8)},
    {C_(2, 1), C_(2, 2), C_(2, 4)},
    {C_(3, 1), C_(3, 2)},
    {C_(4, 1), C_(4, 2)},
    {C_(5, 1)},
    {C_(6, 1)},
    {C_(7, 1)},
    {C_(8, 1)},
};
#undef C_
#undef MAX_ROWS
#undef MAX_VECTORS

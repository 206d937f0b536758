/* THE register tile, the one matrix kernel behind every dense product:
 *
 *     c[r][j] (+)= sum_k rows[r][a_offsets[k]] * b[b_offsets[k] + j],   j < vectors * LANES
 *
 * Rows are broadcast, columns are vectors, and both are found through tables, so that strides, dilations,
 * phases, packed and unpacked weights, stitched panels and images read in place are all the same code.
 * Each call sums from zero and then stores or adds: the error grows with the K block and not with K, and the
 * result does not depend on where a tile lies. Shapes smaller than the full tile are instantiations of
 * their own and do the same arithmetic for each element.
 */

#define MAX_TILE_ROWS 8
#define MAX_TILE_VECTORS 4

INLINE void FN(tile_body)(const int row_count, const int vector_count, int64_t count, const real *const *rows,
                          const int64_t *restrict a_offsets, const real *restrict b, const int64_t *restrict b_offsets,
                          real *restrict c, int64_t c_row, int64_t add)
{
    vec sum[MAX_TILE_ROWS][MAX_TILE_VECTORS];
    const real *row[MAX_TILE_ROWS];
    UNROLL(8)
    for (int r = 0; r < row_count; r++) {
        row[r] = rows[r];
        UNROLL(4)
        for (int v = 0; v < vector_count; v++)
            sum[r][v] = (vec){0};
    }
    for (int64_t k = 0; k < count; k++) {
        const real *bk = b + b_offsets[k];
        int64_t ak = a_offsets[k];
        vec column[MAX_TILE_VECTORS];
        UNROLL(4)
        for (int v = 0; v < vector_count; v++)
            column[v] = FN(load)(bk + v * LANES);
        UNROLL(8)
        for (int r = 0; r < row_count; r++) {
            vec a = FN(splat)(row[r][ak]);
            UNROLL(4)
            for (int v = 0; v < vector_count; v++)
                sum[r][v] = FN(fma)(a, column[v], sum[r][v]);
        }
    }
    if (add) {
        UNROLL(8)
        for (int r = 0; r < row_count; r++) {
            UNROLL(4)
            for (int v = 0; v < vector_count; v++)
                FN(store)(c + r * c_row + v * LANES, FN(load)(c + r * c_row + v * LANES) + sum[r][v]);
        }
    } else {
        UNROLL(8)
        for (int r = 0; r < row_count; r++) {
            UNROLL(4)
            for (int v = 0; v < vector_count; v++)
                FN(store)(c + r * c_row + v * LANES, sum[r][v]);
        }
    }
}

#define TILE(R, V)                                                                                                     \
    static NOINLINE void FN(tile_##R##x##V)(int64_t count, const real *const *rows, const int64_t *a_offsets,          \
                                            const real *b, const int64_t *b_offsets, real *c, int64_t c_row,           \
                                            int64_t add)                                                               \
    {                                                                                                                  \
        FN(tile_body)(R, V, count, rows, a_offsets, b, b_offsets, c, c_row, add);                                      \
    }

/* 24 accumulators fit 32 registers, 12 fit 16: 8x3 or 6x4 with many registers, 4x3 or 6x2 with few. */
TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(3, 1) TILE(3, 2) TILE(3, 3)
TILE(4, 1) TILE(4, 2) TILE(4, 3) TILE(5, 1) TILE(5, 2) TILE(6, 1) TILE(6, 2)
#if MANY_REGISTERS
TILE(5, 3) TILE(6, 3) TILE(7, 1) TILE(7, 2) TILE(7, 3) TILE(8, 1) TILE(8, 2) TILE(8, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
#define TILE_OR_0(R, V) FN(tile_##R##x##V)
#else
#define TILE_OR_0(R, V) 0
#endif

typedef void (*FN(tile_fn))(int64_t, const real *const *, const int64_t *, const real *, const int64_t *, real *, int64_t, int64_t);

#define T_(R, V) FN(tile_##R##x##V)
static const FN(tile_fn) FN(tiles)[MAX_TILE_ROWS + 1][MAX_TILE_VECTORS + 1] = {
    {0},
    {0, T_(1, 1), T_(1, 2), T_(1, 3), TILE_OR_0(1, 4)},
    {0, T_(2, 1), T_(2, 2), T_(2, 3), TILE_OR_0(2, 4)},
    {0, T_(3, 1), T_(3, 2), T_(3, 3), TILE_OR_0(3, 4)},
    {0, T_(4, 1), T_(4, 2), T_(4, 3), TILE_OR_0(4, 4)},
    {0, T_(5, 1), T_(5, 2), TILE_OR_0(5, 3), TILE_OR_0(5, 4)},
    {0, T_(6, 1), T_(6, 2), TILE_OR_0(6, 3), TILE_OR_0(6, 4)},
    {0, TILE_OR_0(7, 1), TILE_OR_0(7, 2), TILE_OR_0(7, 3), 0},
    {0, TILE_OR_0(8, 1), TILE_OR_0(8, 2), TILE_OR_0(8, 3), 0},
};
#undef T_
#undef TILE_OR_0
#undef TILE
#undef MAX_TILE_ROWS
#undef MAX_TILE_VECTORS

/* Weight packing: see PACK_WORDS. A task is a piece of the offsets of one block of output channels.
 *
 * Sources are visited in the order they lie in, wherever they go: a kernel that wants taps and channels the other way
 * round, or the taps of each phase apart, is still a blocked transpose whose rows merely land elsewhere.
 */

/* LANES rows of as many elements, y[places[i] + r] = x[r * x_row + i]. Whole cache lines come and go at once: rows of a
 * power of two lie in few sets of the cache, which forgets a line that is left for a moment. */
INLINE void FN(pack_square)(real *y, const real *x, int64_t x_row, const int64_t *places)
{
    enum { COUNT = (int)(VEC_BYTES / sizeof(real)) };
    vec rows[COUNT], turned[COUNT];
    UNROLL(16)
    for (int i = 0; i < COUNT; i++)
        rows[i] = FN(load)(x + i * x_row);
    UNROLL(4)
    for (int half = 1; half < COUNT; half *= 2) {
        UNROLL(8)
        for (int i = 0; i < COUNT / 2; i++) {
            turned[2 * i] = FN(zip_low)(rows[i], rows[i + COUNT / 2]);
            turned[2 * i + 1] = FN(zip_high)(rows[i], rows[i + COUNT / 2]);
        }
        UNROLL(16)
        for (int i = 0; i < COUNT; i++)
            rows[i] = turned[i];
    }
    UNROLL(16)
    for (int i = 0; i < COUNT; i++)
        FN(store)(y + places[i], rows[i]);
}

/* y[places[i] + r] = x[r * x_row + offsets[i]] for i < count, r < rows. */
static void FN(pack_piece)(real *y, const real *x, int64_t x_row, int64_t rows, const int64_t *offsets, const int64_t *places,
                           int64_t count)
{
    typedef FN(quad) quad;
    for (int64_t i = 0; i < count;) {
        /* How far the source runs on without a gap. */
        int64_t first = offsets[i], run = 1;
        while (i + run < count && offsets[i + run] == first + run)
            run++;
        const int64_t *to = places + i;
        int64_t quads = run & ~(int64_t)3, squares = run / LANES * LANES, r = 0;
        for (; r + LANES <= rows; r += LANES)
            for (int64_t k = 0; k < squares; k += LANES)
                FN(pack_square)(y + r, x + r * x_row + first + k, x_row, to + k);
        int64_t squared = r;
        /* A cache line of the result at a time: whole panels of L1 size, 16 bytes a row, took twice as long. */
        for (int64_t line = 0; line + 4 <= rows; line += CACHE_LINE / sizeof(real)) {
            int64_t end = rows - line < CACHE_LINE / (int64_t)sizeof(real) ? rows & ~(int64_t)3 : line + CACHE_LINE / (int64_t)sizeof(real);
            for (int64_t k = end <= squared ? squares : 0; k < quads; k += 4)
                for (r = line; r < end; r += 4) {
                    const real *xr = x + r * x_row + first + k;
                    quad a = *(const quad *)xr, b = *(const quad *)(xr + x_row);
                    quad c = *(const quad *)(xr + 2 * x_row), d = *(const quad *)(xr + 3 * x_row);
                    TRANSPOSE_QUADS(quad, a, b, c, d);
                    *(quad *)(y + to[k] + r) = a;
                    *(quad *)(y + to[k + 1] + r) = b;
                    *(quad *)(y + to[k + 2] + r) = c;
                    *(quad *)(y + to[k + 3] + r) = d;
                }
        }
        r = rows & ~(int64_t)3;
        for (; r < rows; r++)
            for (int64_t k = 0; k < quads; k++)
                y[to[k] + r] = x[r * x_row + first + k];
        for (int64_t k = quads; k < run; k++)
            for (r = 0; r < rows; r++)
                y[to[k] + r] = x[r * x_row + first + k];
        i += run;
    }
}

/* The same for a block of `width` rows of which only the first `rows` exist: the others are zero. */
static void FN(pack_block)(real *y, int64_t width, const real *x, int64_t x_row, int64_t rows, const int64_t *offsets,
                           const int64_t *places, int64_t count)
{
    if (rows < width)
        for (int64_t i = 0; i < count; i++)
            FN(clear)(y + places[i] + rows, width - rows);
    FN(pack_piece)(y, x, x_row, rows, offsets, places, count);
}

static void FN(pack)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const pack_words *a = (const pack_words *)words;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t group = task / (a->pieces * a->blocks), rest = task % (a->pieces * a->blocks);
        int64_t piece = a->by_blocks ? rest / a->blocks : rest % a->pieces;
        int64_t block = a->by_blocks ? rest % a->blocks : rest / a->pieces;
        int64_t width = a->width, row = block * width, rows = a->rows - row < width ? a->rows - row : width;
        int64_t from = a->count * piece / a->pieces, count = a->count * (piece + 1) / a->pieces - from;
        FN(pack_block)((real *)a->y + group * a->y_group + block * a->y_block, width,
                       (const real *)a->x + group * a->x_group + row * a->x_row, a->x_row, rows, (const int64_t *)a->offsets + from,
                       (const int64_t *)a->places + from, count);
    }
}


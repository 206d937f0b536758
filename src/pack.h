/* Weight packing: see PACK_WORDS. A task is a piece of the offsets of one block of output channels.
 *
 * Sources are visited in the order they lie in, wherever they go: a kernel that wants taps and channels the other way
 * round, or the taps of each phase apart, is still a blocked transpose whose rows merely land elsewhere.
 */

/* y[places[i] + r] = x[r * x_row + offsets[i]] for i < count, r < rows, and 0 where an offset is negative. */
static void FN(pack_piece)(real *y, const real *x, int64_t x_row, int64_t rows, const int64_t *offsets, const int64_t *places,
                           int64_t count)
{
    for (int64_t i = 0; i < count;) {
        /* How far the source runs on without a gap. */
        int64_t first = offsets[i], run = 1;
        if (first < 0) {
            FN(clear)(y + places[i++], rows);
            continue;
        }
        while (i + run < count && offsets[i + run] == first + run)
            run++;
        FN(transpose_to)(y, places + i, x + first, x_row, rows, run);
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


/* Weight packing: see PACK_WORDS. A task is a piece of k of one block of output channels, in every sum: the sums of a
 * transposed convolution take their taps from the same cache lines.
 *
 * Sources are visited in the order they lie in (`x_offsets` of a sum holds the k of each), so that a kernel that wants
 * taps and channels the other way round is still a blocked transpose whose rows merely land elsewhere.
 */

/* y[order[i] * width + r] = x[r * x_row + offsets[order[i]]] for i < count, r < rows. */
static void FN(pack_piece)(real *y, int64_t width, const real *x, int64_t x_row, int64_t rows, const int64_t *offsets,
                           const int64_t *order, int64_t count)
{
    typedef FN(quad) quad;
    for (int64_t i = 0; i < count;) {
        /* How far the source runs on without a gap. */
        int64_t first = offsets[order[i]], run = 1;
        while (i + run < count && offsets[order[i + run]] == first + run)
            run++;
        int64_t quads = run & ~(int64_t)3, r = 0;
        for (; r + 4 <= rows; r += 4) {
            const real *xr = x + r * x_row + first;
            for (int64_t k = 0; k < quads; k += 4) {
                quad a = *(const quad *)(xr + k), b = *(const quad *)(xr + x_row + k);
                quad c = *(const quad *)(xr + 2 * x_row + k), d = *(const quad *)(xr + 3 * x_row + k);
                TRANSPOSE_QUADS(quad, a, b, c, d);
                *(quad *)(y + order[i + k] * width + r) = a;
                *(quad *)(y + order[i + k + 1] * width + r) = b;
                *(quad *)(y + order[i + k + 2] * width + r) = c;
                *(quad *)(y + order[i + k + 3] * width + r) = d;
            }
        }
        for (; r < rows; r++)
            for (int64_t k = 0; k < quads; k++)
                y[order[i + k] * width + r] = x[r * x_row + first + k];
        for (int64_t k = quads; k < run; k++)
            for (r = 0; r < rows; r++)
                y[order[i + k] * width + r] = x[r * x_row + first + k];
        i += run;
    }
}

static void FN(pack)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const pack_words *a = (const pack_words *)words;
    const sum_words *sums = (const sum_words *)a->sums;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t group = task / (a->pieces * a->blocks), rest = task % (a->pieces * a->blocks);
        int64_t piece = a->by_blocks ? rest / a->blocks : rest % a->pieces;
        int64_t block = a->by_blocks ? rest % a->blocks : rest / a->pieces;
        int64_t width = a->width, row = block * width, rows = a->rows - row < width ? a->rows - row : width;
        const real *x = (const real *)a->x + group * a->x_group + row * a->x_row;
        for (int64_t s = 0; s < a->sum_count; s++) {
            const sum_words *sum = sums + s;
            int64_t from = sum->taps * piece / a->pieces, count = sum->taps * (piece + 1) / a->pieces - from;
            const int64_t *order = (const int64_t *)sum->x_offsets + from;
            real *y = (real *)a->y + sum->w + group * sum->w_group + block * sum->w_block;
            if (rows < width)
                for (int64_t i = 0; i < count; i++)
                    FN(clear)(y + order[i] * width + rows, width - rows);
            FN(pack_piece)(y, width, x + sum->x, a->x_row, rows, (const int64_t *)sum->w_offsets, order, count);
        }
    }
}

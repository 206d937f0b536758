/* The dense product by seven products of quarters in place of eight: see strassen.h. Pixels have two halves, as have
 * output channels, which are in the vectors, and each block of a tap's channels. Weights and their sums are there; those
 * of pixels are made by each task. (With pixels in the vectors, planes needed not be turned, but sums were made of
 * stitched panels, and halves of small planes fill no whole tiles: 1.0 to 1.4 times the time of eight products from
 * 28x28 to 7x7 pixels, where this takes .91 to .97.)
 */

#define SEVEN 7

/* The first k of a piece of a tap's channels, which has whole vectors on either side of its middle. */
INLINE int64_t FN(seven_begin)(const dense_words *a, int64_t part)
{
    int64_t parts = (a->depth + a->k_block - 1) / a->k_block;
    return part / parts * a->depth + a->depth / (2 * LANES) * (part % parts) / parts * 2 * LANES;
}

/* Where the channels k ... k + count of each pixel lie side by side: in the image, or turned there from its planes. An odd
 * number of pixels is completed. */
INLINE void FN(seven_pixels)(const sum_words *sum, const real *x, int64_t k, int64_t count, const FN(run) *runs, int64_t found,
                             int64_t pixels, real *columns, int64_t row, const real **pixel)
{
    const int64_t *x_offsets = (const int64_t *)sum->x_offsets;
    int64_t step = x_offsets[1] - x_offsets[0];
    x += x_offsets[k];
    for (int64_t s = 0; s < found; s++) {
        real *turned = columns + runs[s].at * row;
        if (step > 1)
            FN(transpose)(turned, row, x + runs[s].x, step, count, runs[s].count);
        for (int64_t i = 0; i < runs[s].count; i++)
            pixel[runs[s].at + i] = step > 1 ? turned + i * row : x + runs[s].x + i * sum->x_w;
    }
    pixel[pixels] = pixel[pixels - 1];
}

static void FN(dense_seven)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const dense_words *a = (const dense_words *)words;
    const real *bias = (const real *)a->b;
    int64_t width = a->w_width, nv = width / LANES, area = a->pixel_block / 2 * width;
    int64_t pairs = (a->channels + width - 1) / width / 2;
    /* Rows of pixels do not lie a power of two apart. */
    int64_t row = a->k_block + LANES, mixed_row = 2 * a->k_block + LANES;
    real *sums = (real *)(a->work + thread * a->work_stride), *turned = sums + a->chunk * SEVEN * area;
    real *mixed = turned + width * (a->pixel_block + LANES), *columns = mixed + a->pixel_block / 2 * mixed_row;
    int64_t ones[MAX_K_BLOCK], steps[MAX_K_BLOCK];
    FN(run) runs[MAX_PIXEL_BLOCK];
    const real *pixel[MAX_PIXEL_BLOCK], *left[SEVEN][MAX_PIXEL_BLOCK / 2];
    for (int64_t i = 0; i < a->k_block; i++) {
        ones[i] = i;
        steps[i] = i * width;
    }
    for (int64_t task = begin; task < end; task++) {
        FN(dense_task) t = FN(dense_decode)(a, task);
        if (t.pixels <= 0) /* fewer images than share a task */
            continue;
        const sum_words *sum = t.sum;
        const real *x = (const real *)a->x + t.image * a->x_image + sum->x;
        int64_t parts = sum->taps / a->depth * ((a->depth + a->k_block - 1) / a->k_block);
        int64_t first = t.chunk * a->chunk, last = pairs - first < a->chunk ? pairs : first + a->chunk;
        int64_t half = (t.pixels + 1) / 2, found = FN(pixel_runs)(a, sum, t.pixel, t.pixels, runs), finite = 1;
        for (int64_t part = 0; part < parts; part++) {
            int64_t k = FN(seven_begin)(a, part), depth = (FN(seven_begin)(a, part + 1) - k) / 2, size = depth * width;
            int64_t place = ((const int64_t *)sum->w_offsets)[k];
            FN(seven_pixels)(sum, x, k, 2 * depth, runs, found, t.pixels, columns, row, pixel);
            for (int64_t p = 0; p < half; p++) {
                real *s = mixed + p * mixed_row;
                const real *upper = pixel[p], *lower = pixel[half + p];
                FN(strassen_rows)(upper, lower, depth, s, depth);
                left[0][p] = upper;
                left[1][p] = upper + depth;
                left[2][p] = s + 3 * depth;
                left[3][p] = lower + depth;
                left[4][p] = s;
                left[5][p] = s + depth;
                left[6][p] = s + 2 * depth;
            }
            for (int64_t pair = first; pair < last; pair++) {
                const real *b11 = (const real *)a->w + pair * sum->w_block + place, *b22 = b11 + pairs * sum->w_block + size;
                const real *other = (const real *)a->seven + 2 * (pair * sum->w_block + place);
                real *c = sums + (pair - first) * SEVEN * area, *across = c + 2 * area;
                const struct {
                    const real *right;
                    real *sums;
                } products[SEVEN] = {
                    {b11, c},
                    {b11 + size, c + 4 * area},
                    {b22, across},
                    {other + 3 * size, c + half * width},
                    {other, c + 5 * area},
                    {other + size, c + 6 * area},
                    {other + 2 * size, across + half * width},
                };
                for (int i = 0; i < SEVEN; i++)
                    for (int64_t p = 0; p < half; p += LANE_ROWS)
                        FN(tiles)[half - p < LANE_ROWS ? half - p : LANE_ROWS][nv](depth, left[i] + p, ones, products[i].right, steps,
                                                                                 products[i].sums + p * width, width, part > 0);
            }
        }
        for (int64_t pair = 0; pair < last - first; pair++) {
            real *c = sums + pair * SEVEN * area, *across = c + 2 * area;
            finite &= FN(strassen_join)(c, c + 4 * area, across, c + half * width, c + 5 * area, c + 6 * area, across + half * width,
                                        half * width);
        }
        /* The blocks of each pair in turn, with their sums. */
        for (int64_t part = 0; part < parts && !finite; part++) {
            int64_t k = FN(seven_begin)(a, part), count = FN(seven_begin)(a, part + 1) - k;
            const real *w = (const real *)a->w + ((const int64_t *)sum->w_offsets)[k];
            FN(seven_pixels)(sum, x, k, count, runs, found, t.pixels, columns, row, pixel);
            for (int64_t i = 0; i < 2 * (last - first); i++)
                for (int64_t p = 0; p < t.pixels; p += LANE_ROWS)
                    FN(tiles)[t.pixels - p < LANE_ROWS ? t.pixels - p : LANE_ROWS][nv](
                        count, pixel + p, ones, w + (first + i / 2 + i % 2 * pairs) * sum->w_block, steps,
                        sums + (i / 2 * SEVEN + i % 2 * 2) * area + p * width, width, k > 0);
        }
        for (int64_t i = 0; i < 2 * (last - first); i++) {
            int64_t o = (first + i / 2 + i % 2 * pairs) * width, channels = a->channels - o < width ? a->channels - o : width;
            FN(leave_lanes)(sums + (i / 2 * SEVEN + i % 2 * 2) * area, width, t.pixels, channels, runs, found, bias ? bias + o : 0,
                            a->activation, turned, a->pixel_block + LANES,
                            (real *)a->y + t.image * a->y_image + o * a->y_channel + sum->y, a->y_channel, sum->y_w);
        }
    }
}

#undef SEVEN

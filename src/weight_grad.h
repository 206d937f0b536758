/* The weight gradient as a product over pixels: see WEIGHT_GRAD_WORDS.
 *
 * A row of the tile is an input channel at a tap, broadcast pixel by pixel; its vectors are output channels of the
 * output's gradient, channels last. Pixels are found through tables made for each K block and tap, so a tap simply leaves
 * out the pixels where it meets padding: nothing is padded, and no work is done there. What a task has summed is, but
 * for a transpose, what the weights are: channels and then taps of each output channel.
 *
 * The panel of a K block of pixels stays in L1 while taps and channels pass over it. Each K block is summed from zero and
 * then added, in the order of the pixels, whatever task or thread does it. Some K blocks are added up before they are
 * added to the total: the error grows with the additions of either.
 */

/* The pixels among at..at+count of the chunk that a tap meets: where they lie in the image and in the panels. */
static int64_t FN(met_pixels)(const weight_grad_words *a, const grad_tap_words *tap, int64_t at, int64_t count, int64_t *x_offsets,
                              int64_t *gy_offsets)
{
    int64_t pixels = a->n_d * a->n_h * a->n_w, image = at / pixels, pixel = at % pixels;
    int64_t w = pixel % a->n_w, h = pixel / a->n_w % a->n_h, d = pixel / a->n_w / a->n_h, found = 0;
    while (count > 0) {
        int64_t run = a->n_w - w < count ? a->n_w - w : count;
        if (d >= tap->begin_d && d < tap->end_d && h >= tap->begin_h && h < tap->end_h) {
            int64_t begin = w > tap->begin_w ? w : tap->begin_w, end = w + run < tap->end_w ? w + run : tap->end_w;
            int64_t x = image * a->x_image + d * a->x_d + h * a->x_h, gy = image * a->gy_image + (pixel - w) * a->width;
            for (int64_t i = begin; i < end; i++, found++) {
                x_offsets[found] = x + i * a->x_w;
                gy_offsets[found] = gy + i * a->width;
            }
        }
        count -= run;
        pixel += run;
        w = 0;
        if (++h == a->n_h) {
            h = 0;
            if (++d == a->n_d) {
                d = pixel = 0;
                image++;
            }
        }
    }
    return found;
}

/* Rows of the tile for so many vectors: whichever of the two shapes is higher. */
INLINE int64_t FN(grad_rows)(int64_t vectors)
{
    return vectors > TILE_VECTORS || (vectors <= LANE_VECTORS && LANE_ROWS > TILE_ROWS) ? LANE_ROWS : TILE_ROWS;
}

/* Sums of a task, rows of (unit, tap), become the weights of output channels. */
static void FN(store_weights)(const weight_grad_words *a, const real *c, int64_t first, int64_t rows, int64_t channels, real *gw)
{
    const int64_t *at = (const int64_t *)a->places + first;
    if (at[rows - 1] - at[0] == rows - 1) {
        FN(transpose)(gw + at[0], a->w_row, c, a->width, rows, channels);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < channels; o++)
            gw[o * a->w_row + at[r]] = c[r * a->width + o];
}

/* A task is a part of the units of one block of output channels, over all images of the chunk. */
static void FN(weight_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const weight_grad_words *a = (const weight_grad_words *)words;
    const grad_tap_words *taps = (const grad_tap_words *)a->taps;
    int64_t x_offsets[MAX_K_BLOCK], gy_offsets[MAX_K_BLOCK];
    int64_t pixels = a->images * a->n_d * a->n_h * a->n_w, last = a->first_image + a->images == a->batch;
    for (int64_t task = begin; task < end; task++) {
        int64_t part = task % a->unit_parts, block = task / a->unit_parts % a->blocks, group = task / a->unit_parts / a->blocks;
        int64_t first = part * a->unit_part, units = a->units - first < a->unit_part ? a->units - first : a->unit_part;
        int64_t channel = block * a->width, channels = a->channels - channel < a->width ? a->channels - channel : a->width;
        int64_t nv = (channels + LANES - 1) / LANES;
        int64_t most = FN(grad_rows)(nv), tiles = (units + most - 1) / most;
        const real *x = (const real *)a->x + group * a->x_group;
        const real *gy = (const real *)a->gy + (group * a->blocks + block) * a->gy_block;
        real *c = (real *)(a->work + thread * a->work_stride), *total = c;
        int64_t size = units * a->tap_count * a->width, begun = a->first_image > 0;
        /* A total of one chunk alone never leaves the thread's scratch, and may be all that there is. */
        if (begun || !last)
            total = (real *)a->sums + ((group * a->blocks + block) * a->units + first) * a->tap_count * a->width;
        else if (pixels > a->together * a->k_block)
            total = c + size;
        for (int64_t k = 0; k < pixels; k += a->k_block) {
            int64_t add = k / a->k_block % a->together;
            for (int64_t t = 0; t < a->tap_count; t++) {
                const int64_t *offsets = (const int64_t *)taps[t].x_offsets + first;
                int64_t count = FN(met_pixels)(a, taps + t, k, pixels - k < a->k_block ? pixels - k : a->k_block, x_offsets, gy_offsets);
                if (add && count == 0)
                    continue;
                for (int64_t i = 0; i < tiles; i++) {
                    int64_t from = units * i / tiles, rows = units * (i + 1) / tiles - from;
                    const real *row[TILE_ROWS > LANE_ROWS ? TILE_ROWS : LANE_ROWS];
                    for (int64_t r = 0; r < rows; r++)
                        row[r] = x + offsets[from + r];
                    FN(tiles)[rows][nv](count, row, x_offsets, gy, gy_offsets, c + (from * a->tap_count + t) * a->width,
                                        a->tap_count * a->width, add);
                }
            }
            if (total == c || (add < a->together - 1 && k + a->k_block < pixels))
                continue;
            if (begun)
                FN(add_to)(total, c, size);
            else
                FN(copy)(total, c, size);
            begun = 1;
        }
        if (!last)
            continue;
        real *gw = (real *)a->gw + (group * a->channels + channel) * a->w_row;
        if (a->tap_count)
            FN(store_weights)(a, total, first * a->tap_count, units * a->tap_count, channels, gw);
        if (part == 0)
            for (int64_t i = 0; i < a->unmet; i++)
                for (int64_t o = 0; o < channels; o++)
                    gw[o * a->w_row + ((const int64_t *)a->unmet_places)[i]] = 0;
    }
}

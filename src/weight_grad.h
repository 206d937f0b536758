/* The weight gradient as a product over pixels: see WEIGHT_GRAD_WORDS.
 *
 * A row of the tile is one (input channel, tap), broadcast pixel by pixel from the image in line space, and its vectors
 * are output channels of the output's gradient, channels last. So stride, dilation and padding are in the row's start
 * and in the pixels' positions, few input channels fill tiles as well as many, and what a task has summed is the
 * weight's own order, transposed. The panel of a K block of pixels stays in L1 while the rows pass over it.
 *
 * Each K block is summed from zero and then added, in the order of the pixels, whatever task or thread does it.
 */

/* Where pixels at..at+count of the chunk's images lie: in the image and in the panels of the gradient. */
INLINE void FN(pixel_positions)(const weight_grad_words *a, int64_t at, int64_t count, int64_t *x_offsets, int64_t *gy_offsets)
{
    int64_t pixels = a->n_d * a->n_h * a->n_w, image = at / pixels, pixel = at % pixels;
    int64_t w = pixel % a->n_w, h = pixel / a->n_w % a->n_h, d = pixel / a->n_w / a->n_h;
    for (int64_t k = 0; k < count;) {
        int64_t run = a->n_w - w < count - k ? a->n_w - w : count - k;
        int64_t x = image * a->x_image + d * a->x_d + h * a->x_h + w * a->x_w;
        int64_t gy = image * a->gy_image + pixel * a->width;
        for (int64_t i = 0; i < run; i++) {
            x_offsets[k + i] = x + i * a->x_w;
            gy_offsets[k + i] = gy + i * a->width;
        }
        k += run;
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
}

/* What a task has summed, rows of (channel, tap), goes to the weights' rows of output channels. */
static void FN(store_weights)(const weight_grad_words *a, const real *c, int64_t first, int64_t rows, int64_t channels, real *gw)
{
    const int64_t *at = (const int64_t *)a->row_places + first;
    if (at[rows - 1] - at[0] == rows - 1) {
        FN(transpose)(gw + at[0], a->w_row, c, a->width, rows, channels);
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < channels; o++)
            gw[o * a->w_row + at[r]] = c[r * a->width + o];
}

/* A task is a part of the rows of one block of output channels, over all images of the chunk. */
static void FN(weight_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const weight_grad_words *a = (const weight_grad_words *)words;
    int64_t x_offsets[MAX_K_BLOCK], gy_offsets[MAX_K_BLOCK];
    int64_t pixels = a->images * a->n_d * a->n_h * a->n_w, last = a->first_image + a->images == a->batch;
    for (int64_t task = begin; task < end; task++) {
        int64_t part = task % a->row_parts, block = task / a->row_parts % a->blocks, group = task / a->row_parts / a->blocks;
        int64_t first = part * a->row_part, rows = a->rows - first < a->row_part ? a->rows - first : a->row_part;
        int64_t channel = block * a->width, channels = a->channels - channel < a->width ? a->channels - channel : a->width;
        int64_t nv = (channels + LANES - 1) / LANES;
        int64_t most = nv > TILE_VECTORS || (nv <= LANE_VECTORS && LANE_ROWS > TILE_ROWS) ? LANE_ROWS : TILE_ROWS;
        const real *x = (const real *)a->x + group * a->x_group;
        const real *gy = (const real *)a->gy + (group * a->blocks + block) * a->gy_block;
        /* Sums of one chunk alone never leave the thread's scratch. */
        real *c = a->first_image == 0 && last ? (real *)(a->work + thread * a->work_stride)
                                              : (real *)a->sums + ((group * a->blocks + block) * a->rows + first) * a->width;
        for (int64_t k = 0; k < pixels; k += a->k_block) {
            int64_t count = pixels - k < a->k_block ? pixels - k : a->k_block;
            FN(pixel_positions)(a, k, count, x_offsets, gy_offsets);
            for (int64_t r = 0; r < rows; r += most) {
                int64_t some = rows - r < most ? rows - r : most;
                const real *row[TILE_ROWS > LANE_ROWS ? TILE_ROWS : LANE_ROWS];
                for (int64_t i = 0; i < some; i++)
                    row[i] = x + ((const int64_t *)a->row_offsets)[first + r + i];
                FN(tiles)[some][nv](count, row, x_offsets, gy, gy_offsets, c + r * a->width, a->width, k > 0 || a->first_image > 0);
            }
        }
        if (!last)
            continue;
        real *gw = (real *)a->gw + (group * a->channels + channel) * a->w_row;
        if (rows)
            FN(store_weights)(a, c, first, rows, channels, gw);
        if (part == 0)
            for (int64_t i = 0; i < a->unmet; i++)
                for (int64_t o = 0; o < channels; o++)
                    gw[o * a->w_row + ((const int64_t *)a->unmet_places)[i]] = 0;
    }
}

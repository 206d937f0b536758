/* Deformable convolution of few pixels with weights as they came: packing these took a fifth of a call on 7x7 pixels.
 *
 * Pixels are in the vectors, samples turned to panel[channel, tap][pixel], and output channels are rows that the register tile
 * reads where they are, k by k. What is beyond the last whole vector, if it is a pixel or two (49 = 3 * 16 + 1), would fill
 * a vector of its own with next to nothing: it is summed along k in place, while the tile's weights are in L1.
 */

typedef struct {
    int64_t width, pixels, rest; /* elements of a row of the panel, pixels in it, and those left */
    int64_t row;                 /* elements of a row of sums */
    real *panel;                 /* [channel, tap][width] */
    real *left;                  /* [rest][channel, tap] */
    real *parts;                 /* [output channel][rest][LANES], of the pixels left */
} FN(few_work);

INLINE FN(few_work) FN(few_scratch)(const deform_words *a, FN(deform_work) s, int64_t pixels)
{
    FN(few_work) f = {.width = a->vectors * LANES, .panel = s.panel};
    f.pixels = pixels < f.width ? pixels : f.width;
    f.rest = pixels - f.pixels;
    f.row = f.width + LANES;
    f.left = s.panel + a->panel;
    f.parts = f.left + MOST_PIXELS_LEFT * (a->panel / f.width + LANES);
    return f;
}

/* The samples of one block of channels as panel and rows of the pixels left. */
static void FN(few_turn)(FN(few_work) f, FN(deform_work) s, int64_t channels, int64_t taps)
{
    int64_t depth = channels * taps;
    for (int64_t t = 0; t < taps; t++)
        FN(transpose)(f.panel + t * f.width, taps * f.width, s.columns + t * channels, depth, f.pixels, channels);
    for (int64_t i = 0; i < f.rest; i++)
        FN(transpose)(f.left + i * depth, taps, s.columns + (f.pixels + i) * depth, channels, taps, channels);
}

/* parts (+)= products of a pixel left with some k of some output channels, lane by lane. */
INLINE void FN(few_left_rows)(const int rows, const real *w, int64_t w_row, const real *left, int64_t count, real *parts, int64_t parts_row,
                              int64_t add)
{
    vec sum[TILE_ROWS];
    UNROLL(8)
    for (int r = 0; r < rows; r++)
        sum[r] = add ? FN(load)(parts + r * parts_row) : (vec){0};
    for (int64_t j = 0; j < count; j += LANES) {
        vec pixel = FN(load_some)(left + j, count - j);
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            sum[r] = FN(fma)(FN(load_some)(w + r * w_row + j, count - j), pixel, sum[r]);
    }
    UNROLL(8)
    for (int r = 0; r < rows; r++)
        FN(store)(parts + r * parts_row, sum[r]);
}

static void FN(few_left)(FN(few_work) f, const real *w, int64_t w_row, int64_t rows, int64_t first, int64_t k, int64_t count, int64_t depth,
                         int64_t add)
{
    for (int64_t i = 0; i < f.rest; i++) {
        const real *left = f.left + i * depth + k;
        real *parts = f.parts + (first * f.rest + i) * LANES;
        if (rows == TILE_ROWS)
            FN(few_left_rows)(TILE_ROWS, w + k, w_row, left, count, parts, f.rest * LANES, add);
        else
            for (int64_t r = 0; r < rows; r++)
                FN(few_left_rows)(1, w + r * w_row + k, w_row, left, count, parts + r * f.rest * LANES, 0, add);
    }
}

/* Sums of some output channels, one block of input channels more. */
static void FN(few_multiply)(const deform_words *a, FN(few_work) f, FN(deform_work) s, const block_words *block, int64_t taps, int64_t begin,
                             int64_t end, int64_t add)
{
    int64_t ones[MAX_K_BLOCK], steps[MAX_K_BLOCK], depth = taps * block->channels;
    int64_t parts = (depth + a->k_block - 1) / a->k_block, panels = (a->vectors + TILE_VECTORS - 1) / TILE_VECTORS;
    for (int64_t k = 0; k < a->k_block; k++) {
        ones[k] = k;
        steps[k] = k * f.width;
    }
    for (int64_t part = 0; part < parts; part++) {
        int64_t k = depth * part / parts, count = depth * (part + 1) / parts - k;
        for (int64_t o = begin; o < end; o++) {
            int64_t rows = FN(outputs_of)(a, o), first = o * a->w_width;
            const real *w = (const real *)a->given + block->given + first * a->w_row, *row[TILE_ROWS];
            for (int64_t r = 0; r < rows; r++)
                row[r] = w + r * a->w_row + k;
            for (int64_t p = 0; p < panels; p++) {
                int64_t from = a->vectors * p / panels, nv = a->vectors * (p + 1) / panels - from;
                FN(tiles)[rows][nv](count, row, ones, f.panel + k * f.width + from * LANES, steps, s.sums + first * f.row + from * LANES, f.row,
                                    add || k > 0);
            }
            FN(few_left)(f, w, a->w_row, rows, first, k, count, depth, add || k > 0);
        }
    }
}

static void FN(few_finish)(const deform_words *a, FN(few_work) f, FN(deform_work) s, int64_t group, int64_t begin, int64_t end, real *y)
{
    FN(run) run = {.x = 0, .at = 0, .count = f.pixels + f.rest, .y = 0};
    for (int64_t o = begin; o < end; o++) {
        int64_t rows = FN(outputs_of)(a, o), first = o * a->w_width, channel = group * a->channels + first;
        real *c = s.sums + first * f.row;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; i < f.rest; i++) {
                const real *part = f.parts + ((first + r) * f.rest + i) * LANES;
                real sum = 0;
                for (int64_t lane = 0; lane < LANES; lane++)
                    sum += part[lane];
                c[r * f.row + f.pixels + i] = sum;
            }
            if (a->b || a->activation)
                FN(finish_row)(c + r * f.row, f.pixels + f.rest, a->b ? ((const real *)a->b)[channel + r] : 0, a->activation);
        }
        FN(store_rows)(c, f.row, rows, &run, 1, y + channel * a->y_channel, a->y_channel, a->y_w);
    }
}

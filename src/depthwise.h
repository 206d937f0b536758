/* One input channel a group. There is no matrix product to block, so what counts is how often a value is moved. */

INLINE void FN(strip_body)(const int vector_count, int64_t count, const real *x, const int64_t *restrict x_offsets, const real *w,
                           const int64_t *restrict w_offsets, real *c, int64_t add)
{
    vec sum[STRIP];
    UNROLL(8)
    for (int v = 0; v < vector_count; v++)
        sum[v] = (vec){0};
    for (int64_t k = 0; k < count; k++) {
        vec weight = FN(splat)(w[w_offsets[k]]);
        const real *xk = x + x_offsets[k];
        UNROLL(8)
        for (int v = 0; v < vector_count; v++)
            sum[v] = FN(fma)(weight, FN(load)(xk + v * LANES), sum[v]);
    }
    UNROLL(8)
    for (int v = 0; v < vector_count; v++)
        FN(store)(c + v * LANES, add ? FN(load)(c + v * LANES) + sum[v] : sum[v]);
}

static NOINLINE void FN(strip)(int64_t vectors, int64_t count, const real *x, const int64_t *x_offsets, const real *w,
                               const int64_t *w_offsets, real *c, int64_t add)
{
#define CASE(V)                                                                                                        \
    case V:                                                                                                            \
        FN(strip_body)(V, count, x, x_offsets, w, w_offsets, c, add);                                                  \
        break;
    switch (vectors) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* The band of one channel in line space: in place if the array reaches far enough behind it, else a haloed copy. */
INLINE const real *FN(band_lines)(const depthwise_planes_words *a, const real *x, int64_t first_row, real *scratch)
{
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h;
    int64_t lines = a->h_lines - first_row < a->band_lines ? a->h_lines - first_row : a->band_lines;
    if (a->direct) {
        const real *end = x + (a->lines_d - 1) * a->line_d + (first_row + lines) * a->line_h + STRIP * LANES;
        if ((const real *)a->x_end - end >= 0)
            return x + first_row * a->line_h;
    }
    for (int64_t d = 0; d < a->lines_d; d++)
        for (int64_t p = 0; p < a->h_phases; p++)
            for (int64_t h = 0; h < lines; h++) {
                int64_t from_d = map_d[d], from_h = map_h[p * a->h_lines + first_row + h];
                FN(fill_row)(scratch + d * a->line_d + (p * a->band_lines + h) * a->line_h, a->line_phase,
                             from_d < 0 || from_h < 0 ? 0 : x + from_d * a->x_d + from_h * a->x_h, a->x_w, a->w_phases, a->w_lines,
                             (const int64_t *)a->map_w, (const int64_t *)a->runs);
            }
    return scratch;
}

static void FN(depthwise_planes)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_planes_words *a = (const depthwise_planes_words *)words;
    const sum_words *sums = (const sum_words *)a->sums;
    real c[STRIP * (VEC_BYTES / sizeof(real))];
    FN(run) run;
    for (int64_t task = begin; task < end; task++) {
        int64_t first_row = task % a->bands * a->band, rest = task / a->bands;
        int64_t channel = rest % a->channels, image = rest / a->channels;
        const real *lines = FN(band_lines)(a, (const real *)a->x + image * a->x_image + channel * a->x_channel, first_row,
                                           (real *)(a->work + thread * a->work_stride));
        for (int64_t s = 0; s < a->sum_count; s++) {
            const sum_words *sum = sums + s;
            int64_t rows = sum->n_h - first_row < a->band ? sum->n_h - first_row : a->band;
            if (rows <= 0)
                continue;
            /* All rows of the band are one strip of line space: what lies between two rows is computed and
             * dropped, so that narrow images fill the vectors too. */
            int64_t length = (rows - 1) * sum->x_h + sum->n_w;
            for (int64_t m = 0; m < a->multiplier; m++)
                for (int64_t d = 0; d < sum->n_d; d++) {
                    int64_t o = channel * a->multiplier + m;
                    const real *w = (const real *)a->w + o * a->kernel_taps;
                    const real *x = lines + sum->x + d * sum->x_d;
                    real bias = a->b ? ((const real *)a->b)[o] : 0;
                    real *y = (real *)a->y + image * a->y_image + o * a->y_channel + sum->y + d * sum->y_d + first_row * sum->y_h;
                    int64_t h = 0, left = 0; /* the row at `at`, and how much of it has been written */
                    for (int64_t at = 0; at < length; at += STRIP * LANES) {
                        int64_t count = length - at < STRIP * LANES ? length - at : STRIP * LANES, k = 0;
                        do {
                            int64_t taps = sum->taps - k < a->k_block ? sum->taps - k : a->k_block;
                            FN(strip)((count + LANES - 1) / LANES, taps, x + at, (const int64_t *)sum->x_offsets + k, w,
                                      (const int64_t *)sum->w_offsets + k, c, k > 0);
                            k += taps;
                        } while (k < sum->taps);
                        if (a->b || a->activation)
                            FN(finish_row)(c, count, bias, a->activation);
                        while (h < rows) {
                            run.at = h * sum->x_h + left - at;
                            if (run.at >= count)
                                break;
                            run.count = sum->n_w - left < count - run.at ? sum->n_w - left : count - run.at;
                            run.y = h * sum->y_h + left * sum->y_w;
                            FN(store_rows)(c, 0, 1, &run, 1, y, 0, sum->y_w);
                            left += run.count;
                            if (left < sum->n_w)
                                break;
                            left = 0;
                            h++;
                        }
                    }
                }
        }
    }
}

INLINE void FN(pixels_body)(const int pixel_count, const int vector_count, int64_t part, int64_t count, const real *const *taps,
                            int64_t channel, const real *w, const int64_t *restrict w_offsets, real *c, int64_t add)
{
    vec sum[PIXELS][PIXEL_VECTORS];
    UNROLL(4)
    for (int r = 0; r < pixel_count; r++) {
        UNROLL(4)
        for (int v = 0; v < vector_count; v++)
            sum[r][v] = (vec){0};
    }
    for (int64_t k = 0; k < count; k++) {
        const real *wk = w + w_offsets[k];
        vec weight[PIXEL_VECTORS];
        UNROLL(4)
        for (int v = 0; v < vector_count; v++)
            weight[v] = FN(load)(wk + v * LANES);
        UNROLL(4)
        for (int r = 0; r < pixel_count; r++) {
            const real *x = taps[k * PIXELS + r] + channel;
            UNROLL(4)
            for (int v = 0; v < vector_count; v++)
                sum[r][v] = FN(fma)(weight[v], part ? FN(load_part)(x, part) : FN(load)(x + v * LANES), sum[r][v]);
        }
    }
    UNROLL(4)
    for (int r = 0; r < pixel_count; r++) {
        UNROLL(4)
        for (int v = 0; v < vector_count; v++) {
            real *to = c + (r * PIXEL_VECTORS + v) * LANES;
            FN(store)(to, add ? FN(load)(to) + sum[r][v] : sum[r][v]);
        }
    }
}

static NOINLINE void FN(pixels)(int64_t pixel_count, int64_t vectors, int64_t part, int64_t count, const real *const *taps,
                                int64_t channel, const real *w, const int64_t *w_offsets, real *c, int64_t add)
{
    /* Fewer pixels than PIXELS run as PIXELS: the addresses of the rest repeat. */
    (void)pixel_count;
    if (part)
        FN(pixels_body)(PIXELS, 1, part, count, taps, channel, w, w_offsets, c, add);
    else if (vectors == 4 && MANY_REGISTERS)
        FN(pixels_body)(PIXELS, 4, 0, count, taps, channel, w, w_offsets, c, add);
    else if (vectors >= 2)
        FN(pixels_body)(PIXELS, 2, 0, count, taps, channel, w, w_offsets, c, add);
    else
        FN(pixels_body)(PIXELS, 1, 0, count, taps, channel, w, w_offsets, c, add);
}

static void FN(depthwise_pixels)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_pixels_words *a = (const depthwise_pixels_words *)words;
    const pixel_sum_words *sums = (const pixel_sum_words *)a->sums;
    const real *w = (const real *)a->w, *bias = (const real *)a->b;
    real *zeros = (real *)(a->work + thread * a->work_stride);
    const real **taps = (const real **)(zeros + a->w_stride);
    real c[PIXELS * PIXEL_VECTORS * (VEC_BYTES / sizeof(real))];
    FN(clear)(zeros, a->w_stride);
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / a->tasks, rest = task % a->tasks, s = a->sum_count - 1;
        while (sums[s].task_begin > rest)
            s--;
        const pixel_sum_words *sum = sums + s;
        rest -= sum->task_begin;
        int64_t h = rest % sum->n_h, d = rest / sum->n_h, count = sum->taps_d * sum->taps_h * sum->taps_w;
        const int64_t *map_d = (const int64_t *)sum->map_d, *map_h = (const int64_t *)sum->map_h, *map_w = (const int64_t *)sum->map_w;
        const real *x = (const real *)a->x + image * a->x_image;
        real *y = (real *)a->y + image * a->y_image + sum->y + d * sum->y_d + h * sum->y_h;
        for (int64_t p = 0; p < sum->n_w; p += PIXELS) {
            int64_t pixels = sum->n_w - p < PIXELS ? sum->n_w - p : PIXELS;
            const real **tap = taps;
            for (int64_t i = 0; i < sum->taps_d; i++)
                for (int64_t j = 0; j < sum->taps_h; j++) {
                    int64_t at_d = map_d[i * sum->n_d + d], at_h = map_h[j * sum->n_h + h];
                    for (int64_t k = 0; k < sum->taps_w; k++)
                        for (int64_t r = 0; r < PIXELS; r++) {
                            int64_t at_w = map_w[k * sum->n_w + p + (r < pixels ? r : pixels - 1)];
                            *tap++ = at_d < 0 || at_h < 0 || at_w < 0 ? zeros : x + at_d + at_h + at_w;
                        }
                }
            for (int64_t channel = 0; channel < a->channels;) {
                int64_t left = a->channels - channel, vectors = left / LANES, part = 0, k = 0;
                if (vectors >= PIXEL_VECTORS && MANY_REGISTERS)
                    vectors = PIXEL_VECTORS;
                else if (vectors >= 2)
                    vectors = 2;
                else if (vectors == 0)
                    part = left;
                do {
                    int64_t some = count - k < a->k_block ? count - k : a->k_block;
                    FN(pixels)(pixels, vectors, part, some, taps + k * PIXELS, channel, w + channel, (const int64_t *)sum->w_offsets + k, c, k > 0);
                    k += some;
                } while (k < count);
                int64_t done = part ? part : vectors * LANES;
                for (int64_t r = 0; r < pixels; r++) {
                    real *cr = c + r * PIXEL_VECTORS * LANES;
                    if (bias || a->activation)
                        FN(finish_lanes)(cr, done, bias ? bias + channel : 0, a->activation);
                    FN(copy)(y + (p + r) * sum->y_w + channel, cr, done);
                }
                channel += done;
            }
        }
    }
}

/* One input channel a group. There is no matrix product to block, so what counts is how often a value is moved. */

/* One band of one channel in line space. Scratch is zero before the first band, and most of its zeros stay. */
static void FN(fill_band)(const depthwise_planes_words *a, const real *x, int64_t first_row, real *scratch)
{
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h, *runs_h = (const int64_t *)a->runs_h;
    int64_t lines = a->h_lines - first_row < a->band_lines ? a->h_lines - first_row : a->band_lines;
    for (int64_t d = 0; d < a->lines_d; d++)
        for (int64_t p = 0; p < a->h_phases; p++) {
            real *to = scratch + d * a->line_d + p * a->band_lines * a->line_h;
            if (a->borders) {
                for (int64_t h = 0; h < lines; h++) {
                    int64_t from_h = map_h[p * a->h_lines + first_row + h];
                    FN(fill_row)(to + h * a->line_h, a->line_phase, map_d[d] < 0 || from_h < 0 ? 0 : x + map_d[d] * a->x_d + from_h * a->x_h,
                                 a->x_w, a->w_phases, a->w_lines, (const int64_t *)a->map_w, (const int64_t *)a->runs);
                }
                continue;
            }
            if (map_d[d] < 0)
                continue;
            /* All rows that are no padding are one run; where the others were written by another band they are cleared. */
            const int64_t *run_h = runs_h + 4 * p, *run = (const int64_t *)a->runs;
            int64_t begin = run_h[0] - first_row, end = run_h[1] - first_row;
            begin = begin < 0 ? 0 : begin < lines ? begin : lines;
            end = end < begin ? begin : end < lines ? end : lines;
            const real *from = x + map_d[d] * a->x_d + (run_h[2] + (first_row + begin - run_h[0]) * run_h[3]) * a->x_h;
            for (int64_t q = 0; q < a->w_phases; q++, to += a->line_phase, run += 4) {
                if (a->bands > 1 && begin > 0)
                    FN(clear)(to, begin * a->line_h);
                if (a->bands > 1 && end < lines)
                    FN(clear)(to + end * a->line_h, (lines - end) * a->line_h);
                if (run[1] > run[0])
                    FN(copy_rows)(to + begin * a->line_h + run[0], a->line_h, from + run[2] * a->x_w, run_h[3] * a->x_h, run[3] * a->x_w,
                                  end - begin, run[1] - run[0]);
            }
        }
}

/* The band of a task: read in place if nothing is padded and the array reaches far enough behind it. */
INLINE const real *FN(band_in_place)(const depthwise_planes_words *a, const real *x, int64_t first_row)
{
    int64_t lines = a->h_lines - first_row < a->band_lines ? a->h_lines - first_row : a->band_lines;
    const real *end = x + (a->lines_d - 1) * a->line_d + (first_row + lines) * a->line_h + LANES;
    return a->direct && (const real *)a->x_end - end >= 0 ? x + first_row * a->line_h : 0;
}

/* A row of tiles of so many rows. The last tile overlaps the one before, where the rows are long enough. */
static void FN(row_of_tiles)(const plane_sum_words *sum, int64_t rows, const real *x, const real *w, real bias,
                             int64_t activation, real *y, int64_t y_row)
{
    static const int64_t most[] = {0, 3, 2, 1, 1, 0, 0, 0, 0};
    real c[8 * (VEC_BYTES / sizeof(real))];
    int64_t n = sum->n_w, simple = activation <= RELU6, direct = simple && sum->y_w == 1;
    for (int64_t at = 0; at < n;) {
        int64_t left = n - at, size = most[rows], width = LANES, part = 0;
        FN(columns_fn) tile = 0;
        if (left >= LANES) {
            while (LANES << size > left)
                size--;
            width = LANES << size;
            tile = FN(columns)[rows][size];
        } else {
            tile = FN(columns)[rows][0];
#ifdef HALF
            if (left <= LANES / 2) {
                width = LANES / 2;
                tile = HALF_FN(columns)[rows][0];
            }
#endif
            if (n >= width)
                at = n - width;
            else
                part = left;
        }
        if (direct && (!part || (ISA_LEVEL == 2 && width == LANES))) {
            tile(sum, x + at, w, bias, activation, y + at, y_row, part);
        } else {
            int64_t count = part ? part : width;
            tile(sum, x + at, w, bias, simple ? activation : LINEAR, c, width, 0);
            if (!simple)
                FN(finish_row)(c, rows * width, 0, activation);
            for (int64_t r = 0; r < rows; r++) {
                real *cr = c + r * width, *yr = y + r * y_row + at * sum->y_w;
                if (sum->y_w == 1)
                    FN(copy)(yr, cr, count);
                else
                    for (int64_t i = 0; i < count; i++)
                        yr[i * sum->y_w] = cr[i];
            }
        }
        at += width;
    }
}

/* All rows of one plane of a band. Rows of a tile lie row_step apart, so that they share what they load. */
static void FN(sum_plane)(const plane_sum_words *sum, int64_t rows, const real *x, int64_t x_h, const real *w, real bias,
                          int64_t activation, real *y)
{
    int64_t step = sum->row_step;
    for (int64_t first = 0; first < step && first < rows; first++) {
        int64_t left = (rows - first + step - 1) / step, h = first;
        for (int64_t tiles = (left + 7) / 8; tiles > 0; tiles--) {
            int64_t some = (left + tiles - 1) / tiles;
            FN(row_of_tiles)(sum, some, x + h * x_h, w, bias, activation, y + h * sum->y_h, step * sum->y_h);
            left -= some;
            h += some * step;
        }
    }
}

static void FN(depthwise_planes)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_planes_words *a = (const depthwise_planes_words *)words;
    const plane_sum_words *sums = (const plane_sum_words *)a->sums;
    real *scratch = (real *)(a->work + thread * a->work_stride);
    const real *lines = 0, *next = 0;
    FN(clear)(scratch, 2 * a->band_size);
    for (int64_t task = begin - 1; task < end; task++, lines = next) {
        /* The band after this one is copied first: its stores have time to land while this one is summed. */
        if (task + 1 < end) {
            int64_t first_row = (task + 1) % a->bands * a->band, plane = (task + 1) / a->bands;
            const real *x = (const real *)a->x + plane / a->channels * a->x_image + plane % a->channels * a->x_channel;
            next = FN(band_in_place)(a, x, first_row);
            if (!next) {
                real *to = scratch + ((task + 1) & 1) * a->band_size;
                FN(fill_band)(a, x, first_row, to);
                next = to;
            }
        }
        if (task < begin)
            continue;
        int64_t first_row = task % a->bands * a->band, rest = task / a->bands;
        int64_t channel = rest % a->channels, image = rest / a->channels;
        for (int64_t s = 0; s < a->sum_count; s++) {
            const plane_sum_words *sum = sums + s;
            int64_t rows = sum->n_h - first_row < a->band ? sum->n_h - first_row : a->band;
            for (int64_t m = 0; m < a->multiplier; m++) {
                int64_t o = channel * a->multiplier + m;
                const real *w = (const real *)a->w + o * a->kernel_taps;
                real bias = a->b ? ((const real *)a->b)[o] : 0;
                real *y = (real *)a->y + image * a->y_image + o * a->y_channel + sum->y + first_row * sum->y_h;
                for (int64_t d = 0; d < sum->n_d; d++)
                    FN(sum_plane)(sum, rows, lines + d * a->line_d, a->line_h, w, bias, a->activation, y + d * sum->y_d);
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

/* One input channel a group. There is no matrix product to block, so what counts is how often a value is moved.
 *
 * Planes are read in place, with masks for the lanes in the padding: copied into scratch with a halo first, 96 x 56x56 takes
 * 100 and not 79 us with a 3x3 kernel, and 57 and not 42 us with stride 2. Copies remain for padding that is not zero, for
 * strides that have no tiles, and for single rows. Tried and lost for these, on 576 x 14x14 with a 3x3 kernel (45 us): copies
 * of a few rows between the tiles of the band before, instead of all at once (48 to 72 us); tiles and copies worked out in
 * loops, instead of listed in tables (58 us); rows copied one by one through the maps (103 us).
 */

/* The rows of one band of one channel, each element through its maps: for padding that is not zero. */
static NOINLINE void FN(map_band)(const depthwise_planes_words *a, const real *x, int64_t first_row, real *scratch)
{
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h;
    int64_t lines = a->h_lines - first_row < a->band_lines ? a->h_lines - first_row : a->band_lines;
    for (int64_t d = 0; d < a->lines_d; d++)
        for (int64_t p = 0; p < a->h_phases; p++)
            for (int64_t h = 0; h < lines; h++) {
                int64_t from_d = map_d[d], from_h = map_h[p * a->h_lines + first_row + h];
                FN(fill_row)(scratch + d * a->line_d + (h * a->h_phases + p) * a->line_h, a->line_phase,
                             from_d < 0 || from_h < 0 ? 0 : x + from_d * a->x_d + from_h * a->x_h, a->x_w, a->w_phases, a->w_lines,
                             (const int64_t *)a->map_w, (const int64_t *)a->runs);
            }
}

/* One band of one channel: in place, or in line space in scratch, whose zeros are there already. */
INLINE const real *FN(band_lines)(const depthwise_planes_words *a, const real *x, int64_t band, real *scratch)
{
    if (a->in_place)
        return x + band * a->x_band;
    if (!a->copies)
        FN(map_band)(a, x, band * a->band, scratch);
    else
        for (const copy_words *c = ((const copy_words *const *)a->copies)[band]; c->rows; c++)
            FN(copy_rows)(c, scratch, x);
    return scratch;
}

/* One tile by way of a buffer: several K blocks, strided output, activations that are not simple. */
static NOINLINE void FN(buffered_tile)(const plane_sum_words *sum, const plane_tile_words *tile, int64_t rows, const real *x,
                                       const real *w, real *y, int64_t activation, FN(way_out) out)
{
    static const int64_t widths[] = {LANES, 2 * LANES, 4 * LANES, 8 * LANES, LANES / 2, LANES, 2 * LANES};
    real c[COLUMN_ROWS * (VEC_BYTES / sizeof(real))];
    FN(columns_fn) columns = FN(columns)[rows][tile->size];
    int64_t width = widths[tile->size];
    const int64_t *group = (const int64_t *)tile->groups;
    FN(way_out) aside = {c, width, 0, 0, 0, LINEAR};
    for (int64_t block = tile->blocks; block > 1; block--) {
        group = columns(group, x, sum->x_row, w, sum->w_step, &aside);
        aside.total = out.total = c;
    }
    out.y = c;
    out.y_row = width;
    out.part = 0;
    columns(group, x, sum->x_row, w, sum->w_step, &out);
    if (activation > RELU6)
        FN(finish_row)(c, rows * width, 0, activation);
    for (int64_t r = 0; r < rows; r++)
        FN(copy_spread)(y + r * sum->y_row, sum->y_w, c + r * width, tile->part ? tile->part : width);
}

/* All tiles of a plane of a band. What the next row of them will read and write of a large image is asked for while these are
 * summed: it comes by too many rows for the processor to foresee (96 x 224x224: 1.75 and not 4.7 ms). */
INLINE void FN(sum_plane)(const plane_sum_words *sum, const plane_row_words *row, const real *x, const real *w, real bias,
                          int64_t activation, real *y)
{
    int64_t x_row = sum->x_row, w_step = sum->w_step;
    int simple = activation <= RELU6, direct = simple && sum->y_w == 1;
    FN(way_out) out = {0, sum->y_row, 0, 0, bias, simple ? (int)activation : LINEAR};
    for (; row->rows; row++) {
        const real *x_r = x + row->x;
        real *y_r = y + row->y;
        for (const plane_tile_words *tile = (const plane_tile_words *)row->tiles; tile->groups; tile++) {
            if (sum->ahead) {
                for (int64_t r = 0; r < row->rows * sum->ahead_lines; r++)
                    __builtin_prefetch(x_r + tile->x + sum->ahead + r * sum->ahead_line, 0, 2);
                for (int64_t r = row->rows; r < 2 * row->rows; r++)
                    __builtin_prefetch(y_r + tile->y + r * sum->y_row, 0, 2);
            }
            if (direct && tile->blocks == 1 && (!tile->part || (ISA_LEVEL == 2 && tile->size != 4))) {
                out.y = y_r + tile->y;
                out.part = tile->part;
                FN(columns)[row->rows][tile->size]((const int64_t *)tile->groups, x_r + tile->x, x_row, w, w_step, &out);
            } else {
                FN(buffered_tile)(sum, tile, row->rows, x_r + tile->x, w, y_r + tile->y, activation, out);
            }
        }
    }
}

/* y[i * count + k] = x[k * x_row + i] for i * count + k < n. Each row of x goes on for a vector. */
static void FN(merge)(real *restrict y, const real *restrict x, int64_t x_row, int64_t count, int64_t n)
{
    int64_t whole = n / count;
    FN(transpose)(y, count, x, x_row, count, whole);
    for (int64_t k = 0; k < n - whole * count; k++)
        y[whole * count + k] = x[k * x_row + whole];
}

/* Where a task lies; counted and not divided out, because small planes take no longer than a few divisions. */
typedef struct {
    int64_t band, channel, image;
} FN(place);

INLINE void FN(step_place)(const depthwise_planes_words *a, FN(place) *p)
{
    if (a->by_bands) {
        if (++p->channel == a->channels) {
            p->channel = 0;
            if (++p->band == a->bands) {
                p->band = 0;
                p->image++;
            }
        }
    } else if (++p->band == a->bands) {
        p->band = 0;
        if (++p->channel == a->channels) {
            p->channel = 0;
            p->image++;
        }
    }
}

/* The sums of one band that share output rows, for one output channel. */
static void FN(sum_band)(const depthwise_planes_words *a, const plane_sum_words *sums, const real *lines, int64_t image, int64_t o,
                         int64_t band, real *scratch)
{
    const real *w = (const real *)a->w + o * a->kernel_taps;
    real bias = a->b ? ((const real *)a->b)[o] : 0, *apart = scratch + a->spare;
    real *y = (real *)a->y + image * a->y_image + o * a->y_channel + sums->y + band * a->band * sums->y_h;
    for (int64_t d = 0; d < sums->n_d; d++, y += sums->y_d) {
        for (int64_t s = 0; s < a->w_sums; s++) {
            const plane_sum_words *sum = sums + s;
            FN(sum_plane)(sum, ((const plane_row_words *const *)sum->rows)[band], lines + d * sum->x_d, w, bias, a->activation,
                          a->w_sums == 1 ? y : apart + s * a->spare_sum);
        }
        if (a->w_sums == 1)
            continue;
        int64_t rows = sums->n_h - band * a->band < a->band ? sums->n_h - band * a->band : a->band;
        for (int64_t h = 0; h < rows; h++)
            FN(merge)(y + h * sums->y_h, apart + h * a->spare_sum / a->band, a->spare_sum, a->w_sums, a->out_w);
    }
}

static void FN(depthwise_planes)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_planes_words *a = (const depthwise_planes_words *)words;
    const plane_sum_words *sums = (const plane_sum_words *)a->sums;
    real *scratch = (real *)(a->work + thread * a->work_stride), *spare = scratch + a->band_size;
    FN(place) p = {begin % a->bands, begin / a->bands % a->channels, begin / a->bands / a->channels}, next;
    if (a->by_bands)
        p = (FN(place)){begin / a->channels % a->bands, begin % a->channels, begin / a->bands / a->channels};
    next = p;
    FN(clear)(scratch, 2 * a->band_size);
    const real *lines = 0, *next_lines = 0;
    /* The next band is copied before this one is summed: its stores have time to land. */
    for (int64_t task = begin - 1; task < end; task++) {
        if (task + 1 < end) {
            next_lines = FN(band_lines)(a, (const real *)a->x + next.image * a->x_image + next.channel * a->x_channel, next.band, spare);
            FN(step_place)(a, &next);
            real *swap = spare;
            spare = scratch;
            scratch = swap;
        }
        if (task >= begin) {
            for (int64_t s = 0; s < a->sum_count; s += a->w_sums)
                for (int64_t m = 0; m < a->multiplier; m++)
                    FN(sum_band)(a, sums + s, lines, p.image, p.channel * a->multiplier + m, p.band, (real *)(a->work + thread * a->work_stride));
            FN(step_place)(a, &p);
        }
        lines = next_lines;
    }
}

/* The kernel rows that output row (d, h) meets, with how many they are in front. */
static void FN(kernel_rows)(const pixel_sum_words *sum, const real *x, int64_t d, int64_t h, int64_t *rows)
{
    const int64_t *map_d = (const int64_t *)sum->map_d, *map_h = (const int64_t *)sum->map_h, *w = (const int64_t *)sum->w_rows;
    int64_t count = 0;
    for (int64_t i = 0; i < sum->taps_d; i++)
        for (int64_t j = 0; j < sum->taps_h; j++, w++) {
            int64_t at_d = map_d[i * sum->n_d + d], at_h = map_h[j * sum->n_h + h];
            if (at_d < 0 || at_h < 0)
                continue;
            rows[1 + 2 * count] = (int64_t)(x + at_d + at_h);
            rows[2 + 2 * count] = *w;
            count++;
        }
    rows[0] = count;
}

/* All columns of a tile as if of one kernel row, with addresses for places, so that padding can be a pixel of zeros; a 0
 * behind each K block, and the number of blocks in front. */
static void FN(addressed_columns)(const int64_t *kernel_rows, const int64_t *columns, int64_t pixels, int64_t k_block,
                                  const real *zeros, int64_t *to)
{
    int64_t *blocks = to++, in_block = 0;
    *blocks = 1;
    for (int64_t r = 0; r < kernel_rows[0]; r++) {
        int64_t x = kernel_rows[1 + 2 * r], w = kernel_rows[2 + 2 * r];
        for (const int64_t *column = columns; column[0];) {
            int64_t taps = column[0], places = pixels + taps - 1;
            if (in_block + taps > k_block) {
                *to++ = 0;
                ++*blocks;
                in_block = 0;
            }
            in_block += taps;
            to[0] = taps;
            to[1] = w + column[1];
            to += 2;
            column += 2;
            for (int64_t k = 0; k < places; k++)
                to[k] = column[k] < 0 ? (int64_t)zeros : x + column[k];
            to += places;
            column += places;
        }
    }
    *to = 0;
}

/* A tile of pixels for some channels. The last vector of all overlaps the one before, or is the only one; the second one of
 * all, at `shift` if that is not 0, overlaps the first. */
static void FN(pixel_tile)(const depthwise_pixels_words *a, const pixel_sum_words *sum, int64_t pixels, const int64_t *kernel_rows,
                           const int64_t *columns, int64_t blocks, int64_t channel, int64_t end, int64_t shift, real *y,
                           FN(vector_shares) ahead)
{
    real c[COLUMN_ROWS * (VEC_BYTES / sizeof(real))];
    const real *w = (const real *)a->w, *bias = (const real *)a->b;
    int simple = a->activation <= RELU6;
    while (channel < end) {
        int64_t step = channel == 0 && shift ? shift : LANES, left = end - channel, width = LANES, part = 0, many = 1;
        FN(pixels_fn) tile = FN(pixels)[pixels];
        if (left >= LANES) {
            if (blocks == 1 && simple)
                many = (left - step) / LANES + 1;
        } else {
#ifdef HALF
            if (left <= LANES / 2 && a->channels >= LANES / 2) {
                width = LANES / 2;
                tile = (FN(pixels_fn))HALF_FN(pixels)[pixels];
            }
#endif
            if (a->channels >= width)
                channel = a->channels - width;
            else {
                part = left;
                tile = FN(part_pixels)[pixels];
            }
        }
        FN(pixels_out) out = {c - channel, width, 0, part, many, step, 0, LINEAR};
        const int64_t *column = columns;
        for (int64_t block = blocks; block > 1; block--) {
            column = tile(kernel_rows, column, channel, w, sum->w_step, &out);
            out.total = c - channel;
        }
        out.bias = bias;
        out.activation = simple ? (int)a->activation : LINEAR;
        if (simple) {
            out.y = y;
            out.y_row = sum->y_row;
        }
        out.ahead = ahead;
        ahead.x += many * ahead.x_share;
        ahead.y += many * ahead.y_share;
        tile(kernel_rows, column, channel, w, sum->w_step, &out);
        if (!simple) {
            FN(finish_row)(c, pixels * width, 0, a->activation);
            for (int64_t r = 0; r < pixels; r++)
                FN(copy)(y + r * sum->y_row + channel, c + r * width, part ? part : width);
        }
        channel += step + (many - 1) * LANES;
    }
}

/* What the next row is the first to read of a large image, and its place in the output: the share of one tile of this row, for
 * so many channels. Asked for in one go it waits for itself, as few lines can be on their way (96 x 150x150, AVX2: 2.6 and not
 * 4.0 ms). */
INLINE FN(vector_shares) FN(pixels_ahead)(const depthwise_pixels_words *a, const pixel_sum_words *sum, const int64_t *rows, int64_t tile,
                                          int64_t channels, const real *y)
{
    int64_t begin = a->ahead * tile / sum->tile_count, end = a->ahead * (tile + 1) / sum->tile_count;
    int64_t vectors = (channels + LANES - 1) / LANES, pixels = ((const pixel_tile_words *)sum->tiles)[tile].pixels;
    return (FN(vector_shares)){(const real *)rows[2 * rows[0] - 1] + a->x_row + begin, y + sum->y_h,
                               (end - begin + vectors - 1) / vectors, (pixels * sum->y_row + vectors - 1) / vectors};
}

/* The tiles of a strip of columns in all rows of a band, for some channels. From row to row: what the rows of a kernel read
 * in common stays in L1, and each row of the image comes from below once. */
INLINE void FN(pixel_strip)(const depthwise_pixels_words *a, const pixel_sum_words *sum, int64_t first_row, int64_t row_count,
                            int64_t tile, int64_t tile_end, const int64_t *rows, const int64_t *lists, int64_t channel, int64_t end, int64_t shift,
                            real *y)
{
    static const int64_t one_row[] = {1, 0, 0};
    const pixel_tile_words *tiles = (const pixel_tile_words *)sum->tiles;
    for (int64_t r = 0; r < row_count; r++, rows += a->row_words, lists += a->list_words) {
        real *y_r = y + (first_row + r) / sum->n_h * sum->y_d + (first_row + r) % sum->n_h * sum->y_h;
        for (int64_t t = tile; t < tile_end; t++) {
            const int64_t *list = lists + tiles[t].list;
            FN(vector_shares) ahead = {0};
            if (a->ahead && channel == 0 && rows[0])
                ahead = FN(pixels_ahead)(a, sum, rows, t, end, y_r + tiles[t].y);
            if (tiles[t].list < 0)
                FN(pixel_tile)(a, sum, tiles[t].pixels, rows, (const int64_t *)tiles[t].columns, 1, channel, end, shift,
                               y_r + tiles[t].y, ahead);
            else
                FN(pixel_tile)(a, sum, tiles[t].pixels, one_row, list + 1, list[0], channel, end, shift, y_r + tiles[t].y, ahead);
        }
    }
}

static void FN(depthwise_pixels)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const depthwise_pixels_words *a = (const depthwise_pixels_words *)words;
    real *zeros = (real *)(a->work + thread * a->work_stride);
    int64_t *rows = (int64_t *)(zeros + a->w_stride), *lists = rows + a->band * a->row_words;
    FN(clear)(zeros, a->w_stride);
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / a->tasks / a->blocks, block = task / a->tasks % a->blocks, rest = task % a->tasks;
        const pixel_sum_words *sum = (const pixel_sum_words *)a->sums + a->sum_count - 1;
        while (sum->task_begin > rest)
            sum--;
        int64_t first_row = (rest - sum->task_begin) * a->band, row_count = sum->n_d * sum->n_h - first_row;
        row_count = row_count < a->band ? row_count : a->band;
        const pixel_tile_words *tiles = (const pixel_tile_words *)sum->tiles;
        for (int64_t r = 0; r < row_count; r++) {
            int64_t *rows_r = rows + r * a->row_words;
            FN(kernel_rows)(sum, (const real *)a->x + image * a->x_image, (first_row + r) / sum->n_h, (first_row + r) % sum->n_h, rows_r);
            for (int64_t t = 0; t < sum->tile_count; t++)
                if (tiles[t].list >= 0)
                    FN(addressed_columns)(rows_r, (const int64_t *)tiles[t].columns, tiles[t].pixels, a->k_block, zeros,
                                          lists + r * a->list_words + tiles[t].list);
        }
        /* Vectors on their own cache lines, behind a first one that overlaps the second: pixels 4 kB apart share a set of
         * L1, and a line that two vectors need would come from L2 for each (1024 x 32x32: 1.2 and not 1.9 ms). */
        int64_t shift = a->on_lines ? -a->x / (int64_t)sizeof(real) & (LANES - 1) : 0, vectors = a->channels / LANES;
        int64_t channel = block ? vectors * block / a->blocks * LANES + shift : 0;
        int64_t last = block + 1 < a->blocks ? vectors * (block + 1) / a->blocks * LANES + shift : a->channels;
        while (channel < last) {
            int64_t next = channel + a->piece + (channel == 0 ? shift : 0);
            next = next < last ? next : last;
            for (int64_t t = 0; t < sum->tile_count; t += sum->strip)
                FN(pixel_strip)(a, sum, first_row, row_count, t, t + sum->strip < sum->tile_count ? t + sum->strip : sum->tile_count, rows,
                                lists, channel, next, shift, (real *)a->y + image * a->y_image + sum->y);
            channel = next;
        }
    }
}

/* The engine's sums for one channel of an image. */
INLINE void FN(settle_anew)(const settle_words *a, const int64_t *words, int64_t image, int64_t channel, int64_t thread)
{
    int64_t first = (image * a->channels + channel) * a->engine_tasks;
    ((engine_fn)a->engine)(words + a->engine_words, first, first + a->engine_tasks, thread);
}

/* A task is a channel, or with channels last a vector of them: bias and activation if all sums are finite, else all anew. */
static void FN(settle)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const settle_words *a = (const settle_words *)words;
    const real *bias = (const real *)a->b;
    int64_t lanes = a->y_pixel == 1 ? 1 : LANES;
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / a->tasks, channel = task % a->tasks * lanes;
        int64_t channels = a->channels - channel < lanes ? a->channels - channel : lanes;
        int64_t count = a->y_pixel == 1 ? a->pixels : channels, steps = a->y_pixel == 1 ? 1 : a->pixels;
        real *y = (real *)a->y + image * a->y_image + channel * a->y_channel;
        vec spoiled = {0}, shift = {0};
        for (int64_t p = 0; p < steps; p++)
            for (int64_t i = 0; i < count; i += LANES)
                spoiled = FN(fma)(FN(load_some)(y + p * a->y_pixel + i, count - i), (vec){0}, spoiled);
        if (bias)
            shift = a->y_pixel == 1 ? FN(splat)(bias[channel]) : FN(load_some)(bias + channel, channels);
        int finite = 1;
        for (int i = 0; i < LANES; i++)
            finite &= spoiled[i] == 0;
        for (int64_t p = 0; p < steps && (finite || lanes > 1) && (bias || a->activation); p++)
            for (int64_t i = 0; i < count; i += LANES) {
                real *at = y + p * a->y_pixel + i;
                vec v = FN(activate_vec)(FN(load_some)(at, count - i) + shift, a->activation);
                if (count - i >= LANES)
                    FN(store)(at, v);
                else
                    FN(store_part)(at, v, count - i);
            }
        for (int64_t i = 0; i < channels && !finite; i++)
            if (lanes == 1 || spoiled[i] != 0)
                FN(settle_anew)(a, words, image, channel + i, thread);
    }
}

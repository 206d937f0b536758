/* The dense product around the register tile: K blocks, panels, and which pixels and channels a task has.
 *
 * dense_rows puts pixels into the vectors, which read the image in line space as it is (`direct`), rubbish between the
 * rows included, which is dropped on the way out. Where that would be too much rubbish, it stitches a panel [k][pixels]
 * of one tile's width for each K block, about 24 KB that stay in L1 while every block of output channels passes over it.
 * (A first tile that stores the panel it reads directly, for the others to read, was no faster than reading directly.)
 * Both phases of a row that a transposed convolution of stride 2 writes are summed by one task, and leave zipped.
 * dense_lanes puts output channels into the vectors and broadcasts pixels from the image through the table. Weights that
 * are used once a call, as where there are few pixels, it packs panel by panel: on 512 channels of 7x7 pixels, packing
 * all of them first took half as long as the product.
 * Groups of 4 or 8 channels belong into dense_rows, in either layout: half of the lanes idle, or tiles of half a vector
 * and 8 pixels, took 1.3 times as long (256 channels of 28x28 in 32 groups; 1.2 times with stride 2), as did whole vectors of
 * 8 with AVX2, where a tile of one vector waits for its rows: 50 to 70 GFLOP/s with 6 to 12 pixels, also with four channels
 * of a pixel loaded at once and spread by shuffles, and 92 with tiles of two or three vectors. A task there makes the haloed
 * image of its group itself, or of all in the same vectors, which then stays in L2 (src/join.h).
 */

/* Decode a task: which images, sum, group, pixels, output channels. */
typedef struct {
    const sum_words *sum;
    int64_t image, images, group, pixel, chunk, pixels;
} FN(dense_task);

INLINE int64_t FN(line_pixels)(const sum_words *sum)
{
    return (sum->n_d - 1) * sum->x_d + (sum->n_h - 1) * sum->x_h + sum->n_w;
}

INLINE FN(dense_task) FN(dense_decode)(const dense_words *a, int64_t task)
{
    FN(dense_task) t;
    t.image = task / a->tasks * a->images_per_task;
    t.images = a->images - t.image < a->images_per_task ? a->images - t.image : a->images_per_task;
    int64_t rest = task % a->tasks, s = a->sum_count - 1;
    const sum_words *sums = (const sum_words *)a->sums;
    if (a->in_turn) {
        t.chunk = rest % a->chunks;
        rest /= a->chunks;
        t.sum = sums + rest % a->sum_count * a->together;
        rest /= a->sum_count;
    } else {
        while (sums[s * a->together].task_begin > rest)
            s--;
        t.sum = sums + s * a->together;
        rest -= t.sum->task_begin;
        t.chunk = rest % a->chunks;
        rest /= a->chunks;
    }
    int64_t each = a->direct ? FN(line_pixels)(t.sum) : t.sum->n_d * t.sum->n_h * t.sum->n_w;
    int64_t blocks = (each * a->images_per_task + a->pixel_block - 1) / a->pixel_block;
    if (a->by_groups) {
        t.pixel = rest % blocks * a->pixel_block;
        t.group = rest / blocks;
    } else {
        t.group = rest % a->groups;
        t.pixel = rest / a->groups * a->pixel_block;
    }
    t.pixels = each * t.images - t.pixel;
    if (t.pixels > a->pixel_block)
        t.pixels = a->pixel_block;
    return t;
}

/* Runs of pixels that lie side by side in the image and in the output: count pixels from `pixel` on. */
INLINE int64_t FN(pixel_runs)(const dense_words *a, const sum_words *sum, int64_t pixel, int64_t count, FN(run) *runs)
{
    int64_t w = pixel % sum->n_w, rest = pixel / sum->n_w;
    int64_t h = rest % sum->n_h;
    rest /= sum->n_h;
    int64_t d = rest % sum->n_d, image = rest / sum->n_d, found = 0;
    for (int64_t at = 0; at < count; found++) {
        int64_t length = sum->n_w - w < count - at ? sum->n_w - w : count - at;
        runs[found].x = image * a->x_image + d * sum->x_d + h * sum->x_h + w * sum->x_w;
        runs[found].y = image * a->y_image + d * sum->y_d + h * sum->y_h + w * sum->y_w;
        runs[found].at = at;
        runs[found].count = length;
        at += length;
        w = 0;
        if (++h == sum->n_h) {
            h = 0;
            if (++d == sum->n_d) {
                d = 0;
                image++;
            }
        }
    }
    return found;
}

/* The pixels among count positions of line space from `position` on; the rubbish between rows is left out. */
INLINE int64_t FN(line_runs)(const sum_words *sum, int64_t position, int64_t count, FN(run) *runs)
{
    int64_t d = position / sum->x_d, rest = position % sum->x_d;
    int64_t h = rest / sum->x_h, w = rest % sum->x_h, found = 0;
    if (h >= sum->n_h) { /* between two planes */
        d++;
        h = w = 0;
    }
    for (; d < sum->n_d; d++, h = w = 0)
        for (; h < sum->n_h; h++, w = 0) {
            int64_t at = d * sum->x_d + h * sum->x_h + w - position;
            if (at >= count)
                return found;
            if (w >= sum->n_w)
                continue;
            runs[found].at = at;
            runs[found].count = sum->n_w - w < count - at ? sum->n_w - w : count - at;
            runs[found].y = d * sum->y_d + h * sum->y_h + w * sum->y_w;
            found++;
        }
    return found;
}

/* The runs of a task's pixels, however they are counted. */
INLINE int64_t FN(task_runs)(const dense_words *a, const FN(dense_task) *t, FN(run) *runs)
{
    return a->direct ? FN(line_runs)(t->sum, t->pixel, t->pixels, runs) : FN(pixel_runs)(a, t->sum, t->pixel, t->pixels, runs);
}

/* panel[k][0..width) from the image. Whole vectors are copied from left to right, so that a run covers what the one
 * before wrote too much; where that would read past the end of the array, elements are copied singly. */
static void FN(stitch)(real *panel, int64_t width, const real *x, const real *x_end, const int64_t *offsets, int64_t count,
                       const FN(run) *runs, int64_t run_count)
{
    int64_t reach = runs[run_count - 1].x + runs[run_count - 1].count + LANES;
    for (int64_t k = 0; k < count; k++) {
        const real *xk = x + offsets[k];
        if (x_end - xk >= reach)
            for (int64_t s = 0; s < run_count; s++)
                FN(copy_over)(panel + runs[s].at, xk + runs[s].x, runs[s].count);
        else
            for (int64_t s = 0; s < run_count; s++)
                FN(copy)(panel + runs[s].at, xk + runs[s].x, runs[s].count);
        panel += width;
    }
}

#define MAX_WIDTH (TILE_VECTORS * LANES)

/* The sums of some channels of a group leave, by runs of pixels; `next`, if not null, has the pixels between them. */
INLINE void FN(leave_rows)(const dense_words *a, const FN(dense_task) *t, int64_t channel, int64_t rows, real *c, real *next,
                           int64_t c_row, int64_t width, const FN(run) *runs, int64_t run_count, real *y)
{
    const real *bias = (const real *)a->b;
    if (bias || a->activation)
        for (int64_t r = 0; r < rows; r++) {
            real b = bias ? bias[t->group * a->channels + channel + r] : 0;
            FN(finish_row)(c + r * c_row, width, b, a->activation);
            if (next)
                FN(finish_row)(next + r * c_row, width, b, a->activation);
        }
    if (next) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t s = 0; s < run_count; s++)
                FN(copy_zipped)(y + (channel + r) * a->y_channel + runs[s].y, c + r * c_row + runs[s].at,
                                next + r * c_row + runs[s].at, runs[s].count);
        return;
    }
    FN(store_rows)(c, c_row, rows, runs, run_count, y + channel * a->y_channel, a->y_channel, t->sum->y_w);
}

static void FN(dense_rows)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const dense_words *a = (const dense_words *)words;
    real *panel = (real *)(a->work + thread * a->work_stride);
    int64_t steps[MAX_K_BLOCK];
    FN(run) runs[MAX_PIXEL_BLOCK], sources[1];
    for (int64_t task = begin; task < end; task++) {
        FN(dense_task) t = FN(dense_decode)(a, task);
        if (t.pixels <= 0) /* fewer images than share a task */
            continue;
        const sum_words *sum = t.sum;
        const real *x = (const real *)a->x + t.image * a->x_image + t.group * a->x_group + sum->x;
        const real *w = (const real *)a->w + sum->w + t.group * sum->w_group;
        real *y = (real *)a->y + t.image * a->y_image + t.group * a->y_group + sum->y;
        /* Packed weights have a block of channels for each row of tiles: their steps to the next channel and block. */
        int64_t w_r = a->w_width > 1 ? 1 : sum->w_block, w_o = a->w_width > 1 ? sum->w_block / TILE_ROWS : sum->w_block;
        int64_t first = t.chunk * a->chunk;
        int64_t last = a->channels - first < a->chunk ? a->channels : first + a->chunk;
        /* Behind the panel: sums, of the whole task if there are several K blocks, else of a tile. Those of one row of tiles
         * are held as well if they leave as rows, whose way is then found once (3 % of 72 products); turning them takes longer
         * than they do, and is better done between tiles. */
        real *partial = panel + a->k_block * MAX_WIDTH + LANES;
        int64_t taps = sum->taps;
        if (a->together == 2 && taps < sum[1].taps)
            taps = sum[1].taps;
        int64_t k_blocks = taps > a->k_block ? (taps + a->k_block - 1) / a->k_block : 1;
        int64_t held = a->together == 2 || (k_blocks == 1 && last - first <= TILE_ROWS && a->y_channel != 1);
        int64_t whole = held || k_blocks > 1, c_row = a->pixel_block + LANES, c_phase = (last - first) * c_row;
        /* Panels of equal width rather than full ones and a narrow last. */
        int64_t vectors = (t.pixels + LANES - 1) / LANES, panels = (vectors + TILE_VECTORS - 1) / TILE_VECTORS;
        if (a->ahead && held) {
            int64_t found = FN(task_runs)(a, &t, runs);
            FN(expect_rows)(last - first, runs, found, y + first * a->y_channel, a->y_channel, sum->y_w);
        }
        for (int64_t kb = 0; kb < k_blocks; kb++) {
            int64_t k = kb * a->k_block;
            for (int64_t n = 0; n < panels * a->together; n++) {
                int64_t p = n / a->together, phase = n % a->together;
                const int64_t *x_offsets = (const int64_t *)sum[phase].x_offsets, *w_offsets = (const int64_t *)sum[phase].w_offsets;
                int64_t count = sum[phase].taps - k < a->k_block ? sum[phase].taps - k : a->k_block;
                if (count <= 0 && kb > 0) /* the other phase has more taps */
                    continue;
                int64_t from = vectors * p / panels, nv = vectors * (p + 1) / panels - from, width = nv * LANES;
                int64_t pixel = t.pixel + from * LANES, found = 0, in_place = 0;
                int64_t pixels = t.pixels - from * LANES < width ? t.pixels - from * LANES : width;
                const real *columns = panel;
                const int64_t *column_offsets = steps;
                if (a->direct) {
                    if (!held) /* else found at the end (3 to 40 x 120x120, 3x3, stride 2: 2.3 and not 2.7 ms) */
                        found = FN(line_runs)(sum, pixel, pixels, runs);
                    in_place = (const real *)a->x_end - (x + sum[phase].x_most + pixel) >= width;
                    columns = x + pixel;
                    column_offsets = x_offsets + k;
                    sources[0] = (FN(run)){.x = pixel, .at = 0, .count = pixels, .y = 0};
                } else {
                    found = FN(pixel_runs)(a, sum, pixel, pixels, runs);
                }
                if (!in_place) {
                    /* Both phases of 2x2 taps read the same. */
                    if (phase == 0 || sum[1].x_offsets != sum->x_offsets)
                        FN(stitch)(panel, width, x, (const real *)a->x_end, x_offsets + k, count, a->direct ? sources : runs,
                                   a->direct ? 1 : found);
                    for (int64_t i = 0; i < count; i++)
                        steps[i] = i * width;
                    columns = panel;
                    column_offsets = steps;
                }
                for (int64_t o = first; o < last; o += TILE_ROWS) {
                    int64_t rows = last - o < TILE_ROWS ? last - o : TILE_ROWS;
                    const real *row[TILE_ROWS];
                    for (int64_t r = 0; r < rows; r++)
                        row[r] = w + o * w_o + r * w_r;
                    real *c = partial;
                    if (whole)
                        c += phase * c_phase + (o - first) * c_row + from * LANES;
                    else
                        c_row = width;
                    if (a->ahead && !held && kb == k_blocks - 1)
                        FN(expect_rows)(rows, runs, found, y + o * a->y_channel, a->y_channel, sum->y_w);
                    FN(tiles)[rows][nv](count, row, w_offsets + k, columns, column_offsets, c, c_row, kb > 0);
                    if (!held && kb == k_blocks - 1)
                        FN(leave_rows)(a, &t, o, rows, c, 0, c_row, width, runs, found, y);
                }
            }
        }
        if (held) {
            int64_t found = FN(task_runs)(a, &t, runs);
            FN(leave_rows)(a, &t, first, last - first, partial, a->together == 2 ? partial + c_phase : 0, c_row, vectors * LANES, runs, found, y);
        }
    }
}

#undef MAX_WIDTH
#define MAX_WIDTH (LANE_VECTORS * LANES)

/* Rows that will be packed next, into L2. */
INLINE void FN(prefetch_rows)(const real *x, int64_t x_row, int64_t begin, int64_t end, int64_t count)
{
    for (int64_t r = begin; r < end; r++)
        for (int64_t i = 0; i < count; i += CACHE_LINE / (int64_t)sizeof(real))
            __builtin_prefetch(x + r * x_row + i, 0, 2);
}

/* Long panels of weights the processor fetches in time by itself, and is in the way of those who help it; panels for narrow
 * vectors are short. */
#define SHORT_PANELS (VEC_BYTES < CACHE_LINE)

/* A part of what is multiplied next, into L2. */
INLINE void FN(prefetch_part)(const real *next, int64_t elements, int64_t begin, int64_t end, int64_t parts)
{
    int64_t line = CACHE_LINE / (int64_t)sizeof(real), lines = elements / line;
    for (int64_t l = lines * begin / parts; l < lines * end / parts; l++)
        __builtin_prefetch(next + l * line, 0, 2);
}

static void FN(dense_lanes)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const dense_words *a = (const dense_words *)words;
    const real *bias = (const real *)a->b;
    real *c = (real *)(a->work + thread * a->work_stride), *turned = c + a->pixel_block * MAX_WIDTH;
    real *panel = turned + MAX_WIDTH * (a->pixel_block + LANES);
    int64_t steps[MAX_K_BLOCK];
    FN(run) runs[MAX_PIXEL_BLOCK];
    const real *pixel[MAX_PIXEL_BLOCK];
    for (int64_t i = 0; i < a->k_block; i++)
        steps[i] = i * a->w_width;
    for (int64_t task = begin; task < end; task++) {
        FN(dense_task) t = FN(dense_decode)(a, task);
        if (t.pixels <= 0) /* fewer images than share a task */
            continue;
        const sum_words *sum = t.sum;
        const real *x = (const real *)a->x + t.image * a->x_image + t.group * a->x_group + sum->x;
        const real *w = (const real *)a->w + sum->w + t.group * sum->w_group + t.chunk * sum->w_block;
        const int64_t *x_offsets = (const int64_t *)sum->x_offsets, *w_offsets = (const int64_t *)sum->w_offsets;
        int64_t first = t.chunk * a->w_width;
        int64_t channels = a->channels - first < a->w_width ? a->channels - first : a->w_width;
        int64_t nv = (channels + LANES - 1) / LANES, width = nv * LANES;
        real *y = (real *)a->y + t.image * a->y_image + t.group * a->y_group + first * a->y_channel + sum->y;
        /* Fetching what is in L2 already costs 5 %, and saves 10 % where weights come from beyond. */
        int64_t fetched = a->w_row && a->groups * a->channels * sum->taps > BEYOND_CACHE;
        /* As for Winograd's panels (a tenth, of 512 channels of 7x7 pixels). */
        int64_t far = SHORT_PANELS && !a->w_row && a->groups * a->channels * sum->taps > BEYOND_CACHE;
        int64_t found = FN(pixel_runs)(a, sum, t.pixel, t.pixels, runs);
        for (int64_t s = 0; s < found; s++)
            for (int64_t i = 0; i < runs[s].count; i++)
                pixel[runs[s].at + i] = x + runs[s].x + i * sum->x_w;
        int64_t k_blocks = sum->taps > a->k_block ? (sum->taps + a->k_block - 1) / a->k_block : 1;
        for (int64_t kb = 0; kb < k_blocks; kb++) {
            int64_t k = kb * a->k_block, count = sum->taps - k < a->k_block ? sum->taps - k : a->k_block;
            const real *columns = w;
            const int64_t *column_offsets = w_offsets + k;
            if (a->w_row) {
                FN(pack_block)(panel, a->w_width, w, a->w_row, channels, w_offsets + k, (const int64_t *)sum->w_places + k, count);
                columns = panel;
                column_offsets = steps;
            }
            int64_t next = k + count, ahead = fetched && next < sum->taps ? (sum->taps - next < count ? sum->taps - next : count) : 0;
            const real *following = far && next < sum->taps ? w + w_offsets[next] : 0;
            for (int64_t p = 0; p < t.pixels; p += LANE_ROWS) {
                int64_t rows = t.pixels - p < LANE_ROWS ? t.pixels - p : LANE_ROWS;
                if (following)
                    FN(prefetch_part)(following, (sum->taps - next < count ? sum->taps - next : count) * a->w_width, p, p + rows, t.pixels);
                if (ahead)
                    FN(prefetch_rows)(w + w_offsets[next], a->w_row, channels * p / t.pixels, channels * (p + rows) / t.pixels, ahead);
                FN(tiles)[rows][nv](count, pixel + p, x_offsets + k, columns, column_offsets, c + p * width, width, kb > 0);
            }
        }
        FN(leave_lanes)(c, width, t.pixels, channels, runs, found, bias ? bias + t.group * a->channels + first : 0, a->activation,
                        turned, a->pixel_block + LANES, y, a->y_channel, sum->y_w);
    }
}

#undef MAX_WIDTH

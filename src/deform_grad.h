/* Gradients of a deformable convolution: see DEFORM_GRAD_WORDS.
 *
 * A task is a band of output pixels of one image and one block of input channels. It goes through the band tile by tile:
 *
 *     pulls[pixel][tap, channel] = output's gradient x weights         the register tile
 *     one pass over points and channels: columns = samples, dots = pulls . corners, image += pulls * shares
 *     gradients of offsets and mask, linear in the dots
 *     sums[output channel][tap, channel] += output's gradient x columns   the register tile
 *
 * The image's gradient and the weights' are summed in the thread's own scratch, and added to those of the bands before in
 * the order of the bands; those of offsets and mask are added tile by tile in the order of the channel blocks. Tasks take
 * turns for that (turns.h). So there are bands for many threads where channels are few, and the sums take no memory but the
 * threads'. Taps are taken some at a time: columns, too, do not grow with the kernel.
 */

typedef struct {
    FN(deform_work) at; /* the points of a tile */
    real *fractions;    /* [taps][3][tile] */
    real *weights;      /* [output channel][tap, channel], rows as those of the columns */
    real *sums;         /* the same, of the weights' gradient */
    real *pulls;        /* [pixel][tap, channel], the gradient of the columns */
    real *dots;         /* [tap][corner][tile], at least four corners */
    real *image;        /* gradient of the bordered image of the block */
    real *turned;
    int64_t *down, *along; /* k * row, k * step, for the tile */
} FN(deform_grad_work);

#define DOTS_OF(ndim) ((ndim) == 3 ? 8 : 4)

INLINE FN(deform_grad_work) FN(deform_grad_scratch)(const deform_grad_words *a, const deform_words *f, int64_t thread)
{
    FN(deform_grad_work) s;
    int64_t taps = f->kernel_d * f->kernel_h * f->kernel_w, corners = (int64_t)1 << f->ndim, tile = f->tile;
    real *at = (real *)(a->work + thread * a->work_stride);
    int64_t int64s = (int64_t)(sizeof(int64_t) / sizeof(real));
    s.at.base = (int64_t *)at, at += taps * tile * int64s;
    s.at.grid = at, at += 3 * tile;
    s.at.fraction = at;
    s.at.weight = at, at += taps * corners * tile;
    s.at.mask = at, at += taps * tile;
    s.fractions = at, at += taps * 3 * tile;
    s.dots = at, at += tile * a->tap_block * DOTS_OF(f->ndim);
    s.turned = at, at += a->turned;
    s.pulls = at, at += tile * a->row + LANES;
    s.at.columns = at, at += tile * a->row + LANES;
    s.at.sums = s.at.turned = s.at.panel = s.at.mixed = s.at.products = 0;
    s.weights = at, at += a->channels * a->row + LANES;
    s.sums = at, at += a->channels * a->row + LANES;
    s.image = at;
    return s;
}

/* c[r][j] (+)= sum_k x[r * x_row + k * x_k] * b[k][j], j < columns. */
static void FN(multiply_columns)(const deform_grad_words *a, int64_t rows, int64_t columns, int64_t count, const real *x, int64_t x_row,
                                 int64_t x_k, const real *b, int64_t b_row, real *c, int64_t c_row, int64_t add)
{
    int64_t x_offsets[MAX_K_BLOCK], b_offsets[MAX_K_BLOCK];
    int64_t vectors = (columns + LANES - 1) / LANES, panels = (vectors + TILE_VECTORS - 1) / TILE_VECTORS;
    int64_t parts = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t k = 0; k < a->k_block && k < count; k++) {
        x_offsets[k] = k * x_k;
        b_offsets[k] = k * b_row;
    }
    for (int64_t k = 0; k < count; k += a->k_block, add = 1) {
        int64_t some = count - k < a->k_block ? count - k : a->k_block;
        for (int64_t p = 0; p < panels; p++) {
            int64_t from = vectors * p / panels, nv = vectors * (p + 1) / panels - from;
            for (int64_t i = 0; i < parts; i++) {
                int64_t first = rows * i / parts, height = rows * (i + 1) / parts - first;
                const real *row[TILE_ROWS];
                for (int64_t r = 0; r < height; r++)
                    row[r] = x + (first + r) * x_row + k * x_k;
                FN(tiles)[height][nv](some, row, x_offsets, b + k * b_row + from * LANES, b_offsets,
                                      c + first * c_row + from * LANES, c_row, add);
            }
        }
    }
}

/* The sum of the quads of a vector. */
INLINE FN(quad) FN(fold)(vec v)
{
#if VEC_BYTES == 64 && IS_FLOAT
    typedef real half __attribute__((vector_size(32)));
    half h = SHUFFLE(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return SHUFFLE(h, h, 0, 1, 2, 3) + SHUFFLE(h, h, 4, 5, 6, 7);
#elif VEC_BYTES == 64 || (VEC_BYTES == 32 && IS_FLOAT)
    return SHUFFLE(v, v, 0, 1, 2, 3) + SHUFFLE(v, v, 4, 5, 6, 7);
#elif VEC_BYTES == 32 || IS_FLOAT
    return SHUFFLE(v, v, 0, 1, 2, 3);
#else
    return SHUFFLE(v, (vec){0}, 0, 1, 2, 3);
#endif
}

#define piece vec
#define PIECE_FMA(a, b, c) FN(fma)(a, b, c)
#define QUAD_OF(v) FN(fold)(v)
#define PULL pull_vectors
#include "deform_pull.h"
#define NARROW_FMA(a, b, c) ((a) * (b) + (c))
#if VEC_BYTES == 64 && IS_FLOAT
typedef real FN(oct) __attribute__((vector_size(8 * sizeof(real))));
#define piece FN(oct)
#define PIECE_FMA NARROW_FMA
#define QUAD_OF(v) (SHUFFLE(v, v, 0, 1, 2, 3) + SHUFFLE(v, v, 4, 5, 6, 7))
#define PULL pull_octs
#include "deform_pull.h"
#endif
#define piece FN(quad)
#define PIECE_FMA NARROW_FMA
#define QUAD_OF(v) (v)
#define PULL pull_quads
#include "deform_pull.h"
#undef NARROW_FMA

INLINE void FN(pull_rank)(const deform_grad_words *a, const deform_words *f, const int ndim, const int sampled, FN(deform_grad_work) s,
                          const real *x, int64_t channels, const real *pulls, int64_t pull_row, int64_t pull_tap, int64_t tap,
                          int64_t taps, int64_t pixels)
{
    if (f->width % LANES == 0)
        FN(pull_vectors)(a, f, ndim, sampled, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
#if VEC_BYTES == 64 && IS_FLOAT
    else if (f->width % 8 == 0)
        FN(pull_octs)(a, f, ndim, sampled, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
#endif
    else
        FN(pull_quads)(a, f, ndim, sampled, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
}

static void FN(deform_pull)(const deform_grad_words *a, const deform_words *f, FN(deform_grad_work) s, const real *x, int64_t channels,
                            const real *pulls, int64_t pull_row, int64_t pull_tap, int64_t tap, int64_t taps, int64_t pixels)
{
    int64_t sampled = a->goffset || a->gmask || a->gw;
    if (f->ndim == 2 && sampled)
        FN(pull_rank)(a, f, 2, 1, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
    else if (f->ndim == 2)
        FN(pull_rank)(a, f, 2, 0, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
    else if (f->ndim == 1 && sampled)
        FN(pull_rank)(a, f, 1, 1, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
    else if (f->ndim == 1)
        FN(pull_rank)(a, f, 1, 0, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
    else if (sampled)
        FN(pull_rank)(a, f, 3, 1, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
    else
        FN(pull_rank)(a, f, 3, 0, s, x, channels, pulls, pull_row, pull_tap, tap, taps, pixels);
}

/* Gradients of the offsets and the mask of one tap from its dots: those of corners, weighted by slopes or shares. NaN
 * shares make NaN gradients, along every axis. */
INLINE void FN(point_grads)(const deform_words *f, const int ndim, FN(deform_grad_work) s, int64_t tap, const real *dots, int64_t pixels,
                            int64_t plane, real *offset, real *mask, int64_t add)
{
    const int corners = 1 << ndim;
    int64_t tile = f->tile;
    const real *share = s.at.weight + tap * corners * tile, *fraction = s.fractions + tap * 3 * tile, *masks = s.at.mask + tap * tile;
    if (mask)
        for (int64_t p = 0; p < pixels; p++) {
            real sum = 0;
            UNROLL(8)
            for (int corner = 0; corner < corners; corner++)
                sum += share[corner * tile + p] * dots[corner * tile + p];
            mask[p] = add ? mask[p] + sum : sum;
        }
    if (!offset)
        return;
    UNROLL(3)
    for (int axis = 3 - ndim; axis < 3; axis++, offset += plane)
        for (int64_t p = 0; p < pixels; p++) {
            real sum = 0;
            UNROLL(8)
            for (int corner = 0; corner < corners; corner++) {
                real slope = dots[corner * tile + p];
                UNROLL(3)
                for (int other = 3 - ndim; other < 3; other++)
                    if (other != axis)
                        slope *= corner >> (2 - other) & 1 ? fraction[other * tile + p] : 1 - fraction[other * tile + p];
                sum = corner >> (2 - axis) & 1 ? sum + slope : sum - slope;
            }
            sum = sum * masks[p] + (share[p] - share[p]);
            offset[p] = add ? offset[p] + sum : sum;
        }
}

/* Clear what points of some taps touch of the image's gradient, beside lines low..high along its slowest axis, which are
 * clear already. */
static void FN(clear_touched)(const deform_words *f, FN(deform_grad_work) s, int64_t tap, int64_t taps, int64_t pixels, int64_t *low,
                              int64_t *high)
{
    int64_t slow = f->ndim == 3 ? f->line_d : f->ndim == 2 ? f->line_h : 1, least = f->outside, most = -1;
    for (int64_t t = tap; t < tap + taps; t++)
        for (int64_t p = 0; p < pixels; p++) {
            int64_t base = s.at.base[t * f->tile + p];
            least = base < least ? base : least;
            most = base < f->outside && base > most ? base : most;
        }
    if (most < 0)
        return;
    int64_t first = least / slow, last = most / slow + 2, line = slow * f->width;
    if (*low == *high)
        *low = *high = first;
    if (first < *low)
        FN(clear)(s.image + first * line, (*low - first) * line);
    if (last > *high)
        FN(clear)(s.image + *high * line, (last - *high) * line);
    *low = first < *low ? first : *low;
    *high = last > *high ? last : *high;
}

/* Add to (or write) the gradient of the input what the thread has summed of lines low..high. */
static void FN(leave_image)(const deform_grad_words *a, const deform_words *f, FN(deform_grad_work) s, int64_t channels, int64_t low,
                            int64_t high, real *gx, int64_t add)
{
    int64_t begin[3] = {0, 0, 0}, end[3] = {f->size_d, f->size_h, f->size_w}, slow = 3 - f->ndim;
    begin[slow] = low > 1 ? low - 1 : 0;
    end[slow] = high - 1 < end[slow] ? high - 1 : end[slow];
    for (int64_t d = begin[0]; d < end[0]; d++)
        for (int64_t h = begin[1]; h < end[1]; h++)
            for (int64_t w = begin[2]; w < end[2]; w += a->turned_pixels) {
                int64_t pixels = end[2] - w < a->turned_pixels ? end[2] - w : a->turned_pixels;
                int64_t line = (f->ndim > 2 ? (d + 1) * f->line_d : 0) + (f->ndim > 1 ? (h + 1) * f->line_h : 0) + w + 1;
                const real *from = s.image + line * f->width;
                real *to = gx + d * a->gx_d + h * a->gx_h + w * a->gx_w;
                int64_t rows = pixels, row = a->gx_w, count = channels, step = f->width;
                if (a->gx_channel != 1) {
                    step = a->turned_pixels + LANES;
                    FN(transpose)(s.turned, step, from, f->width, pixels, channels);
                    from = s.turned, rows = channels, row = a->gx_channel, count = pixels;
                }
                for (int64_t r = 0; r < rows; r++, from += step, to += row) {
                    if (add)
                        FN(add_to)(to, from, count);
                    else
                        FN(copy)(to, from, count);
                }
            }
}

/* Weights of a block of channels at some taps, as rows of (tap, channel), or of (channel, tap) as they are. */
static void FN(enter_weights)(const deform_grad_words *a, const real *w, int64_t channels, int64_t kernel_taps, int64_t taps, real *weights)
{
    for (int64_t o = 0; o < a->channels; o++)
        if (a->as_given)
            FN(copy)(weights + o * a->row, w + o * a->w_row, channels * taps);
        else
            FN(transpose)(weights + o * a->row, channels, w + o * a->w_row, kernel_taps, channels, taps);
}

/* Rows of [a][b] become rows of [b][a]. */
static void FN(turn_rows)(const deform_grad_words *a, FN(deform_grad_work) s, real *rows, int64_t count, int64_t first, int64_t second)
{
    for (int64_t p = 0; p < count; p++, rows += a->row) {
        FN(transpose)(s.turned, first, rows, second, first, second);
        FN(copy)(rows, s.turned, first * second);
    }
}

/* The sums of a task go to those of the tasks before (`kept`) or, with them, to the gradient of the weights. */
static void FN(leave_weights)(const deform_grad_words *a, real *sums, int64_t channels, int64_t kernel_taps, int64_t taps, real *kept,
                              int64_t first, int64_t last, real *gw)
{
    if (!last) {
        if (first)
            FN(copy)(kept, sums, a->channels * a->row);
        else
            FN(add_to)(kept, sums, a->channels * a->row);
        return;
    }
    if (!first)
        FN(add_to)(sums, kept, a->channels * a->row);
    for (int64_t o = 0; o < a->channels; o++)
        if (a->as_given)
            FN(copy)(gw + o * a->w_row, sums + o * a->row, channels * taps);
        else
            FN(transpose)(gw + o * a->w_row, kernel_taps, sums + o * a->row, channels, taps, channels);
}

static void FN(deform_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const deform_grad_words *a = (const deform_grad_words *)words;
    const deform_words *f = (const deform_words *)a->geometry;
    const grad_block_words *blocks = (const grad_block_words *)a->blocks;
    FN(deform_grad_work) s = FN(deform_grad_scratch)(a, f, thread);
    int64_t taps = f->kernel_d * f->kernel_h * f->kernel_w, plane = f->out_d * f->out_h * f->out_w, tile = f->tile;
    int64_t slow = f->ndim == 3 ? f->line_d : f->ndim == 2 ? f->line_h : 1, slow_size = f->ndim == 3 ? f->size_d : f->ndim == 2 ? f->size_h : f->size_w;
    int64_t band_steps = (a->band + tile - 1) / tile + 1, pulled = a->gx || a->goffset || a->gmask;
    for (int64_t task = begin; task < end; task++) {
        const grad_block_words *block = blocks + task % a->block_count;
        int64_t band = task / a->block_count % a->bands, image = task / a->block_count / a->bands;
        int64_t band_begin = band * a->band, band_end = plane - band_begin < a->band ? plane : band_begin + a->band;
        int64_t channels = block->channels, columns, low = 0, high = band > 0 ? 0 : slow_size + 2;
        int64_t first = a->first_image + image == 0 && band == 0, last = a->first_image + image + 1 == a->batch && band + 1 == a->bands;
        int64_t *progress = (int64_t *)a->progress + task * PROGRESS_STEP, *before = progress - a->block_count * PROGRESS_STEP;
        int64_t follows = task >= a->block_count, add_points = block->shared;
        const real *x = a->x ? (const real *)a->x + image * a->x_image + block->x : 0;
        const real *gy = (const real *)a->gy + image * a->gy_image + block->group * a->channels;
        const real *w = (const real *)a->w + block->w;
        int64_t points = image * a->mask_image + block->offset_group * taps * plane;
        const real *offset = (const real *)a->offset + points * f->ndim, *mask = a->mask ? (const real *)a->mask + points : 0;
        real *goffset = a->goffset ? (real *)a->goffset + points * f->ndim : 0, *gmask = a->gmask ? (real *)a->gmask + points : 0;
        if (a->gx && low < high)
            FN(clear)(s.image, high * slow * f->width);
        for (int64_t t = 0, step = 0; t < taps; t += a->tap_block) {
            int64_t some = taps - t < a->tap_block ? taps - t : a->tap_block;
            columns = some * channels;
            /* Whole vectors as given are read, and a band that is all there is written, in place. */
            int64_t in_place = a->as_given && columns % LANES == 0, out_in_place = a->gw && in_place && first && last && band_end - band_begin <= tile;
            const real *weights = in_place ? w + t : s.weights;
            real *sums = out_in_place ? (real *)a->gw + block->w + t : s.sums;
            if (pulled && !in_place)
                FN(enter_weights)(a, w + t, channels, taps, some, s.weights);
            for (int64_t at = band_begin; at < band_end; at += tile) {
                int64_t pixels = band_end - at < tile ? band_end - at : tile;
                FN(deform_grid)(f, at, pixels, s.at.grid);
                for (int64_t i = t; i < t + some; i++) {
                    s.at.fraction = s.fractions + i * 3 * tile;
                    FN(deform_points)(f, s.at, offset + i * f->ndim * plane + at, plane, mask ? mask + i * plane + at : 0, i, pixels, 1);
                }
                if (pulled) {
                    FN(multiply_columns)(a, pixels, columns, a->channels, gy + at * a->gy_row, a->gy_row, 1, weights, in_place ? a->w_row : a->row, s.pulls, a->row, 0);
                    if (a->as_given)
                        FN(turn_rows)(a, s, s.pulls, pixels, channels, some);
                    if (a->gx && band > 0)
                        FN(clear_touched)(f, s, t, some, pixels, &low, &high);
                    FN(deform_pull)(a, f, s, x, channels, s.pulls, a->row, channels, t, some, pixels);
                } else {
                    FN(deform_sample)(f, s.at, x, channels, t, some, 0, pixels, a->row);
                }
                step = t / a->tap_block * band_steps + (at - band_begin) / tile + 1;
                if (goffset || gmask) {
                    if (add_points)
                        await_progress(progress - PROGRESS_STEP, step);
                    for (int64_t i = 0; i < some; i++) {
                        const real *dots = s.dots + i * DOTS_OF(f->ndim) * tile;
                        real *to = goffset ? goffset + (t + i) * f->ndim * plane + at : 0, *to_mask = gmask ? gmask + (t + i) * plane + at : 0;
                        if (f->ndim == 2)
                            FN(point_grads)(f, 2, s, t + i, dots, pixels, plane, to, to_mask, add_points);
                        else if (f->ndim == 1)
                            FN(point_grads)(f, 1, s, t + i, dots, pixels, plane, to, to_mask, add_points);
                        else
                            FN(point_grads)(f, 3, s, t + i, dots, pixels, plane, to, to_mask, add_points);
                    }
                    tell_progress(progress, step);
                }
                if (a->gw && a->as_given)
                    FN(turn_rows)(a, s, s.at.columns, pixels, some, channels);
                if (a->gw)
                    FN(multiply_columns)(a, a->channels, columns, pixels, gy + at * a->gy_row, 1, a->gy_row, s.at.columns, a->row, sums, out_in_place ? a->w_row : a->row, at > band_begin);
            }
            step = (t / a->tap_block + 1) * band_steps;
            if (a->gw && !out_in_place) {
                if (follows)
                    await_progress(before, step);
                FN(leave_weights)(a, s.sums, channels, taps, some,
                                  (real *)a->kept + (t / a->tap_block * a->block_count + task % a->block_count) * a->channels * a->row, first,
                                  last, (real *)a->gw + block->w + t);
            }
            tell_progress(progress, step);
        }
        int64_t done = (taps + a->tap_block - 1) / a->tap_block * band_steps + 1;
        if (a->gx) {
            if (follows)
                await_progress(before, done);
            FN(leave_image)(a, f, s, channels, low, high, (real *)a->gx + image * a->gx_image + block->channel * a->gx_channel, band > 0);
        }
        tell_progress(progress, done);
    }
}


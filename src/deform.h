/* Deformable convolution: points from learned offsets, bilinear samples, then the dense tile.
 *
 * For a tile of output pixels and each block of input channels, the samples of a few taps are written to
 * columns[pixel][tap][channel], which stay in L2 (mostly L1) until the tile has multiplied them into the sums of all
 * output channels. The image has a border of zeros, so the corners of a point lie at fixed distances from one
 * base and need no clamps; a point outside is sent to a pixel whose corners are all zero.
 */

#if IS_FLOAT
#define FLOOR floorf
#else
#define FLOOR floor
#endif

typedef struct {
    real *grid;     /* [3][tile] position of each output pixel before taps and offsets */
    real *fraction; /* [3][tile], for gradients */
    int64_t *base;  /* [taps][tile] first corner, in pixels */
    real *weight;   /* [taps][corners][tile] */
    real *mask;     /* [taps][tile] */
    real *turned, *sums;
    real *panel;    /* weights of a block of input and one of output channels, where they are packed as they are used */
    real *mixed;    /* [pairs of pixels][4][half of the columns] s1 ... s4 of strassen.h */
    real *products; /* [3][pairs of blocks of output channels][pairs of pixels][w_width] p2, p5, p6 */
    real *columns;
} FN(deform_work);

INLINE FN(deform_work) FN(deform_scratch)(const deform_words *a, int64_t thread)
{
    FN(deform_work) s;
    int64_t taps = a->kernel_d * a->kernel_h * a->kernel_w, corners = (int64_t)1 << a->ndim;
    real *at = (real *)(a->work + thread * a->work_stride);
    s.base = (int64_t *)at;
    at += taps * a->tile * (int64_t)(sizeof(int64_t) / sizeof(real));
    s.grid = at, at += 3 * a->tile;
    s.fraction = at, at += 3 * a->tile;
    s.weight = at, at += taps * corners * a->tile;
    s.mask = at, at += taps * a->tile;
    /* A vector across two cache lines is two: samples took half as long again. */
    at = (real *)(((intptr_t)at + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    s.turned = at, at += a->w_width * (a->tile + LANES);
    s.sums = at, at += a->w_blocks * a->w_width * (a->vectors ? (a->vectors + 1) * LANES : a->tile);
    s.panel = at, at += a->panel;
    if (a->vectors)
        at += MOST_PIXELS_LEFT * (a->panel / (a->vectors * LANES) + LANES + a->w_blocks * a->w_width * LANES);
    s.mixed = at, at += a->seven ? a->tile * a->seven_row * 2 : 0;
    s.products = at, at += a->seven ? 3 * (a->w_blocks / 2) * (a->tile / 2) * a->w_width : 0;
    s.columns = at;
    return s;
}

/* Position of the kernel's origin for each output pixel of the tile; exact below 2^24 pixels an axis. */
static void FN(deform_grid)(const deform_words *a, int64_t first, int64_t pixels, real *grid)
{
    int64_t w = first % a->out_w, h = first / a->out_w % a->out_h, d = first / a->out_w / a->out_h;
    for (int64_t p = 0; p < pixels; p++) {
        grid[p] = (real)(d * a->stride_d - a->pad_d);
        grid[a->tile + p] = (real)(h * a->stride_h - a->pad_h);
        grid[2 * a->tile + p] = (real)(w * a->stride_w - a->pad_w);
        if (++w == a->out_w) {
            w = 0;
            if (++h == a->out_h) {
                h = 0;
                d++;
            }
        }
    }
}

INLINE void FN(store_some)(real *p, vec v, int64_t n)
{
    if (n >= LANES)
        FN(store)(p, v);
    else
        FN(store_part)(p, v, n);
}

INLINE vec FN(floor_vec)(vec v)
{
#if ISA_LEVEL == 2 && IS_FLOAT
    return (vec)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif ISA_LEVEL == 2
    return (vec)_mm512_roundscale_pd((__m512d)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif ISA_LEVEL == 1 && IS_FLOAT
    return (vec)_mm256_floor_ps((__m256)v);
#elif ISA_LEVEL == 1
    return (vec)_mm256_floor_pd((__m256d)v);
#else
    for (int i = 0; i < (int)(VEC_BYTES / sizeof(real)); i++)
        v[i] = FLOOR(v[i]);
    return v;
#endif
}

/* Whole numbers by way of 32 bits, to which every instruction set converts whole vectors. */
typedef int64_t FN(places) __attribute__((vector_size(VEC_BYTES / sizeof(real) * 8)));
typedef int32_t FN(short_places) __attribute__((vector_size(VEC_BYTES / sizeof(real) * 4)));

/* One tap of one offset group: the base and the corner weights of each pixel. A point is outside unless every
 * coordinate lies in (-1, size), or [-1, size) if `closed`: there samples are zero, but their slopes are not. These are
 * ordered compares, before anything is converted to an integer. The fraction is the
 * offset less a whole number: taken from the position, it would lack the bits that the position rounds away. */
INLINE void FN(points_of)(const deform_words *a, const int ndim, FN(deform_work) s, const real *offset, int64_t plane,
                          const real *mask, int64_t tap, int64_t pixels, int64_t closed)
{
    typedef FN(places) places;
    int64_t tile = a->tile, first = 3 - ndim, size[3] = {a->size_d, a->size_h, a->size_w}, line[3] = {a->line_d, a->line_h, 1};
    int64_t shift[3] = {tap / (a->kernel_w * a->kernel_h) * a->dil_d, tap / a->kernel_w % a->kernel_h * a->dil_h,
                        tap % a->kernel_w * a->dil_w};
    int64_t *base = s.base + tap * tile;
    real *weight = s.weight + tap * ((int64_t)1 << ndim) * tile, *masks = s.mask + tap * tile;
    vec zero = {0}, one = FN(splat)(1), edge = FN(splat)(-1);
    ivec on_edge = (ivec){0} - (int_of_real)closed;
    for (int64_t p = 0; p < pixels; p += LANES) {
        int64_t n = pixels - p;
        vec share = one, fraction[3];
        places place = {0};
        UNROLL(3)
        for (int64_t axis = first; axis < 3; axis++) {
            vec moved = FN(load_some)(offset + (axis - first) * plane + p, n), origin = FN(load_some)(s.grid + axis * tile + p, n);
            origin += FN(splat)((real)shift[axis]);
            vec at = origin + moved;
            ivec in = ((ivec)(at > edge) | ((ivec)(at == edge) & on_edge)) & (ivec)(at < FN(splat)((real)size[axis]));
            share = FN(select)(in | (ivec)(share != share), share, zero);
            share = FN(select)((ivec)(at == at), share, FN(splat)((real)NAN));
            vec low = FN(floor_vec)(FN(select)(in, at, zero)), rest = moved - (low - origin);
            place += __builtin_convertvector(__builtin_convertvector(low + one, FN(short_places)), places) * line[axis];
            fraction[axis] = FN(select)(in & (ivec)(rest > zero), rest, zero);
            if (closed)
                FN(store_some)(s.fraction + axis * tile + p, fraction[axis], n);
        }
        places inside = __builtin_convertvector((ivec)(share > zero), places);
        place = (place & inside) | (a->outside & ~inside);
        for (int64_t i = 0; i < LANES && i < n; i++)
            base[p + i] = place[i];
        UNROLL(8)
        for (int corner = 0; corner < 1 << ndim; corner++) {
            vec product = share;
            UNROLL(3)
            for (int64_t axis = first; axis < 3; axis++)
                product *= corner >> (2 - axis) & 1 ? fraction[axis] : one - fraction[axis];
            FN(store_some)(weight + corner * tile + p, product, n);
        }
        FN(store_some)(masks + p, mask ? FN(load_some)(mask + p, n) : one, n);
    }
}

static void FN(deform_points)(const deform_words *a, FN(deform_work) s, const real *offset, int64_t plane, const real *mask,
                              int64_t tap, int64_t pixels, int64_t closed)
{
    if (a->ndim == 2)
        FN(points_of)(a, 2, s, offset, plane, mask, tap, pixels, closed);
    else if (a->ndim == 1)
        FN(points_of)(a, 1, s, offset, plane, mask, tap, pixels, closed);
    else
        FN(points_of)(a, 3, s, offset, plane, mask, tap, pixels, closed);
}

/* columns[pixel][tap][channel] for one block of channels and some taps. Whole vectors are written from left to
 * right, each over what the one before wrote too much. */
INLINE void FN(deform_sample_rank)(const deform_words *a, const int ndim, FN(deform_work) s, const real *x, int64_t channels,
                                   int64_t tap, int64_t taps, int64_t begin, int64_t end, int64_t row)
{
    const int corners = 1 << ndim;
    int64_t tile = a->tile, delta[8];
    for (int corner = 0; corner < corners; corner++)
        delta[corner] = ((corner >> 2 & 1) * a->line_d + (corner >> 1 & 1) * a->line_h + (corner & 1)) * a->width;
    for (int64_t p = begin; p < end; p++)
        for (int64_t t = 0; t < taps; t++) {
            const real *from = x + s.base[(tap + t) * tile + p] * a->width;
            const real *weight = s.weight + (tap + t) * corners * tile + p;
            real *to = s.columns + p * row + t * channels;
            vec w[8], mask = FN(splat)(s.mask[(tap + t) * tile + p]);
            UNROLL(8)
            for (int corner = 0; corner < corners; corner++)
                w[corner] = FN(splat)(weight[corner * tile]);
            for (int64_t c = 0; c < channels; c += LANES) {
                vec value = w[0] * FN(load)(from + c);
                UNROLL(8)
                for (int corner = 1; corner < corners; corner++)
                    value = FN(fma)(w[corner], FN(load)(from + delta[corner] + c), value);
                FN(store)(to + c, value * mask);
            }
        }
}

/* The second `width` lanes where the first were. */
INLINE vec FN(next_pixel)(vec v, const int width)
{
#if VEC_BYTES == 64 && IS_FLOAT
    return width == 8 ? SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)
                      : SHUFFLE(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
#elif VEC_BYTES == 64 || (VEC_BYTES == 32 && IS_FLOAT)
    (void)width;
    return SHUFFLE(v, v, 4, 5, 6, 7, 4, 5, 6, 7);
#else
    (void)width;
    return v; /* no pixel fills half of a vector */
#endif
}

/* The same where a pixel fills half of a vector, or a quarter: two neighbours along W come in one, and are added in the
 * end. Corner by corner, twice as many vectors are loaded, more of them across two cache lines. */
INLINE void FN(deform_sample_narrow)(const deform_words *a, const int ndim, const int width, FN(deform_work) s, const real *x,
                                     int64_t channels, int64_t tap, int64_t taps, int64_t begin, int64_t end, int64_t row)
{
    typedef real half __attribute__((vector_size(VEC_BYTES / 2), aligned(sizeof(real)), may_alias));
    const int corners = 1 << ndim;
    int64_t tile = a->tile, delta[4];
    ivec right;
    for (int i = 0; i < (int)LANES; i++)
        right[i] = i < width ? 0 : -1;
    for (int i = 0; i < corners / 2; i++)
        delta[i] = ((i >> 1 & 1) * a->line_d + (i & 1) * a->line_h) * width;
    for (int64_t p = begin; p < end; p++)
        for (int64_t t = 0; t < taps; t++) {
            int64_t at = (tap + t) * tile + p;
            const real *from = x + s.base[at] * width, *weight = s.weight + (tap + t) * corners * tile + p;
            real *to = s.columns + p * row + t * channels;
            vec sum = {0};
            UNROLL(4)
            for (int i = 0; i < corners / 2; i++) {
                vec share = FN(select)(right, FN(splat)(weight[(2 * i + 1) * tile]), FN(splat)(weight[2 * i * tile]));
                vec pixels = FN(load)(from + delta[i]);
                sum = i ? FN(fma)(share, pixels, sum) : share * pixels;
            }
            sum = (sum + FN(next_pixel)(sum, width)) * s.mask[at];
            if (width == 4)
                *(FN(quad) *)to = *(FN(quad) *)&sum;
            else
                *(half *)to = *(half *)&sum;
        }
}

static void FN(deform_sample)(const deform_words *a, FN(deform_work) s, const real *x, int64_t channels, int64_t tap, int64_t taps,
                              int64_t begin, int64_t end, int64_t row)
{
    if (a->ndim == 2 && a->width == 8 && LANES == 16)
        FN(deform_sample_narrow)(a, 2, 8, s, x, channels, tap, taps, begin, end, row);
    else if (a->ndim == 2 && a->width == 4 && LANES >= 8)
        FN(deform_sample_narrow)(a, 2, 4, s, x, channels, tap, taps, begin, end, row);
    else if (a->ndim == 2)
        FN(deform_sample_rank)(a, 2, s, x, channels, tap, taps, begin, end, row);
    else if (a->ndim == 1)
        FN(deform_sample_rank)(a, 1, s, x, channels, tap, taps, begin, end, row);
    else
        FN(deform_sample_rank)(a, 3, s, x, channels, tap, taps, begin, end, row);
}

/* Output channels of block o. */
INLINE int64_t FN(outputs_of)(const deform_words *a, int64_t o)
{
    int64_t left = a->channels - o * a->w_width;
    return left < a->w_width ? left : a->w_width;
}

/* A part of what is multiplied next comes to L2 while a tile is multiplied: with AVX2, 512 channels took 1.2 times as long
 * without. */
INLINE void FN(prefetch_panel)(const deform_words *a, const real *next, int64_t elements, int64_t begin, int64_t end, int64_t parts)
{
    if (SHORT_PANELS && a->w_blocks * a->w_block >= BEYOND_CACHE / 4)
        FN(prefetch_part)(next, elements, begin, end, parts);
}

/* Multiply the samples of some taps into the sums of some blocks of output channels. `following` is the next block of input
 * channels, or the same one again. */
static void FN(deform_multiply)(const deform_words *a, FN(deform_work) s, const block_words *block, const block_words *following,
                                int64_t tap, int64_t taps, int64_t pixels, int64_t row, int64_t begin, int64_t end, int64_t add)
{
    int64_t ones[MAX_K_BLOCK], steps[MAX_K_BLOCK], columns = taps * block->channels;
    int64_t parts = (columns + a->k_block - 1) / a->k_block * pixels, panel_rows = a->w_width * a->w_row;
    for (int64_t k = 0; k < a->k_block; k++) {
        ones[k] = k;
        steps[k] = k * a->w_width;
    }
    for (int64_t o = begin; o < end; o++) {
        int64_t channels = FN(outputs_of)(a, o), nv = (channels + LANES - 1) / LANES;
        const real *w = s.panel, *next = 0; /* of the weights as they came, what is packed next */
        int64_t next_rows = 0, next_columns = columns;
        if (a->panel) {
            const real *given = (const real *)a->given + block->given + o * panel_rows;
            FN(pack_block)(s.panel, a->w_width, given, a->w_row, channels, (const int64_t *)block->offsets,
                           (const int64_t *)block->places, columns);
            if (o + 1 < end) {
                next = given + panel_rows, next_rows = FN(outputs_of)(a, o + 1);
            } else if (following != block) {
                next = (const real *)a->given + following->given + begin * panel_rows, next_rows = FN(outputs_of)(a, begin);
                next_columns = taps * following->channels;
            }
        } else {
            w = (const real *)a->w + o * a->w_block + block->w + tap * block->channels * a->w_width;
        }
        for (int64_t k = 0; k < columns; k += a->k_block) {
            int64_t count = columns - k < a->k_block ? columns - k : a->k_block;
            const real *after = k + count < columns ? w + (k + count) * a->w_width : w + a->w_block;
            for (int64_t p = 0; p < pixels; p += LANE_ROWS) {
                int64_t rows = pixels - p < LANE_ROWS ? pixels - p : LANE_ROWS, part = k / a->k_block * pixels + p;
                const real *pixel[LANE_ROWS];
                for (int64_t r = 0; r < rows; r++)
                    pixel[r] = s.columns + (p + r) * row + k;
                if (a->panel)
                    FN(prefetch_rows)(next, a->w_row, next_rows * part / parts, next_rows * (part + rows) / parts, next_columns);
                else
                    FN(prefetch_panel)(a, after, count * a->w_width, p, p + rows, pixels);
                FN(tiles)[rows][nv](count, pixel, ones, w + k * a->w_width, steps, s.sums + (o * a->tile + p) * a->w_width,
                                    a->w_width, add || k > 0);
            }
        }
    }
}

/* Samples as above, and the sums of their quarters: pixels of the first half and of the second, while they are in L1. */
static void FN(deform_sample_pairs)(const deform_words *a, FN(deform_work) s, const real *x, int64_t channels, int64_t tap, int64_t taps,
                                    int64_t pixels, int64_t row)
{
    int64_t half = (pixels + 1) / 2, depth = taps * channels / 2;
    if (pixels < 2 * half)
        FN(clear)(s.columns + pixels * row, 2 * depth);
    for (int64_t p = 0; p < half; p += PAIRED_PIXELS) {
        int64_t end = p + PAIRED_PIXELS < half ? p + PAIRED_PIXELS : half;
        FN(deform_sample)(a, s, x, channels, tap, taps, p, end, row);
        FN(deform_sample)(a, s, x, channels, tap, taps, half + p, half + end < pixels ? half + end : pixels, row);
        for (int64_t i = p; i < end; i++)
            FN(strassen_rows)(s.columns + i * row, s.columns + (half + i) * row, depth, s.mixed + i * 4 * a->seven_row, a->seven_row);
    }
}

/* The seven products of the samples of some taps, summed over blocks of input channels: p1, p3, p4 and p7 in the quarters of
 * the sums that they become part of. */
static void FN(deform_multiply_pairs)(const deform_words *a, FN(deform_work) s, const block_words *block, int64_t tap, int64_t taps,
                                      int64_t pixels, int64_t row, int64_t begin, int64_t end, int64_t add)
{
    int64_t ones[MAX_K_BLOCK], steps[MAX_K_BLOCK];
    int64_t half = (pixels + 1) / 2, depth = taps * block->channels / 2, pairs = a->w_blocks / 2, size = depth * a->w_width;
    int64_t parts = (depth + a->k_block - 1) / a->k_block, mixed = 4 * a->seven_row, area = a->tile / 2 * a->w_width;
    for (int64_t k = 0; k < a->k_block; k++) {
        ones[k] = k;
        steps[k] = k * a->w_width;
    }
    for (int64_t o = begin; o < end; o++) {
        int64_t at = o * a->w_block + block->w + tap * block->channels * a->w_width;
        const real *b11 = (const real *)a->w + at, *b22 = b11 + pairs * a->w_block + size, *t = (const real *)a->seven + 2 * at;
        real *upper = s.sums + o * a->tile * a->w_width, *lower = upper + half * a->w_width, *other = s.products + o * area;
        int64_t across = pairs * a->tile * a->w_width;
        const struct {
            const real *left;
            int64_t left_row;
            const real *right;
            real *sums;
        } products[7] = {
            {s.columns, row, b11, upper},
            {s.columns + depth, row, b11 + size, other},
            {s.mixed + 3 * a->seven_row, mixed, b22, upper + across},
            {s.columns + half * row + depth, row, t + 3 * size, lower},
            {s.mixed, mixed, t, other + pairs * area},
            {s.mixed + a->seven_row, mixed, t + size, other + 2 * pairs * area},
            {s.mixed + 2 * a->seven_row, mixed, t + 2 * size, lower + across},
        };
        for (int i = 0; i < 7; i++)
            for (int64_t part = 0; part < parts; part++) {
                int64_t k = depth * part / parts, count = depth * (part + 1) / parts - k;
                const real *after = part + 1 < parts ? products[i].right + (k + count) * a->w_width
                                    : i < 6          ? products[i + 1].right
                                                     : b11 + a->w_block;
                for (int64_t p = 0; p < half; p += LANE_ROWS) {
                    int64_t rows = half - p < LANE_ROWS ? half - p : LANE_ROWS;
                    FN(prefetch_panel)(a, after, count * a->w_width, p, p + rows, half);
                    const real *pixel[LANE_ROWS];
                    for (int64_t r = 0; r < rows; r++)
                        pixel[r] = products[i].left + (p + r) * products[i].left_row + k;
                    FN(tiles)[rows][a->w_width / LANES](count, pixel, ones, products[i].right + k * a->w_width, steps,
                                                       products[i].sums + p * a->w_width, a->w_width, add || k > 0);
                }
            }
    }
}

/* Put the products together. Returns whether all sums are finite. */
static int FN(deform_join_pairs)(const deform_words *a, FN(deform_work) s, int64_t pixels, int64_t begin, int64_t end)
{
    int64_t half = (pixels + 1) / 2 * a->w_width, pairs = a->w_blocks / 2, across = pairs * a->tile * a->w_width;
    int64_t area = a->tile / 2 * a->w_width, finite = 1;
    for (int64_t o = begin; o < end; o++) {
        real *upper = s.sums + o * a->tile * a->w_width, *other = s.products + o * area;
        finite &= FN(strassen_join)(upper, other, upper + across, upper + half, other + pairs * area, other + 2 * pairs * area,
                                    upper + half + across, half);
    }
    return (int)finite;
}

static void FN(deform_finish)(const deform_words *a, FN(deform_work) s, int64_t group, int64_t pixels, int64_t begin, int64_t end, real *y)
{
    FN(run) run = {.x = 0, .at = 0, .count = pixels, .y = 0};
    for (int64_t block = begin; block < end; block++) {
        int64_t first = group * a->channels + block * a->w_width;
        FN(leave_lanes)(s.sums + block * a->tile * a->w_width, a->w_width, pixels, FN(outputs_of)(a, block), &run, 1,
                        a->b ? (const real *)a->b + first : 0, a->activation, s.turned, a->tile + LANES, y + first * a->y_channel,
                        a->y_channel, a->y_w);
    }
}

#include "deform_few.h"

/* Where a task is: a tile of output pixels, and some blocks of output channels, or pairs of them. */
typedef struct {
    int64_t image, first, pixels, begin, end;
} FN(deform_task);

/* Sums over some blocks of input channels, by seven products or one. `offset_group` is the one whose points are there. */
static void FN(deform_sums)(const deform_words *a, FN(deform_work) s, const FN(deform_task) *task, int64_t from, int64_t to, int64_t seven,
                            int64_t *offset_group)
{
    const block_words *blocks = (const block_words *)a->blocks;
    int64_t taps = a->kernel_d * a->kernel_h * a->kernel_w, plane = a->out_d * a->out_h * a->out_w, pixels = task->pixels, add = 0;
    for (int64_t b = from; b < to; b++) {
        const block_words *block = blocks + b;
        if (block->offset_group != *offset_group) {
            *offset_group = block->offset_group;
            const real *mask = (const real *)a->mask, *offset = (const real *)a->offset + task->image * a->offset_image +
                                                                *offset_group * taps * a->ndim * plane + task->first;
            if (mask)
                mask += task->image * a->mask_image + *offset_group * taps * plane + task->first;
            for (int64_t t = 0; t < taps; t++)
                FN(deform_points)(a, s, offset + t * a->ndim * plane, plane, mask ? mask + t * plane : 0, t, pixels, 0);
        }
        const real *x = (const real *)a->x + task->image * a->x_image + block->x;
        for (int64_t t = 0; t < taps; t += a->tap_block, add = 1) {
            int64_t some = taps - t < a->tap_block ? taps - t : a->tap_block, row = a->tap_block * block->channels;
            if (seven) {
                FN(deform_sample_pairs)(a, s, x, block->channels, t, some, pixels, 2 * a->seven_row);
                FN(deform_multiply_pairs)(a, s, block, t, some, pixels, 2 * a->seven_row, task->begin, task->end, add);
                continue;
            }
            FN(deform_sample)(a, s, x, block->channels, t, some, 0, pixels, row);
            if (a->vectors) {
                FN(few_turn)(FN(few_scratch)(a, s, pixels), s, block->channels, taps);
                FN(few_multiply)(a, FN(few_scratch)(a, s, pixels), s, block, taps, task->begin, task->end, add);
                continue;
            }
            const block_words *following = block + (b + 1 < a->block_count);
            FN(deform_multiply)(a, s, block, following, t, some, pixels, row, task->begin, task->end, add);
            if (a->seven) /* the other blocks of the pairs */
                FN(deform_multiply)(a, s, block, following, t, some, pixels, row, a->w_blocks / 2 + task->begin, a->w_blocks / 2 + task->end, add);
        }
    }
}

static void FN(deform)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const deform_words *a = (const deform_words *)words;
    const block_words *blocks = (const block_words *)a->blocks;
    FN(deform_work) s = FN(deform_scratch)(a, thread);
    int64_t plane = a->out_d * a->out_h * a->out_w, shared = a->seven ? a->w_blocks / 2 : a->w_blocks;
    for (int64_t number = begin; number < end; number++) {
        int64_t rest = number / a->splits, split = number % a->splits, offset_group = -1;
        FN(deform_task) task = {.image = rest / a->tiles, .first = rest % a->tiles * a->tile,
                                .begin = split * shared / a->splits, .end = (split + 1) * shared / a->splits};
        task.pixels = plane - task.first < a->tile ? plane - task.first : a->tile;
        real *y = (real *)a->y + task.image * a->y_image + task.first * a->y_w;
        FN(deform_grid)(a, task.first, task.pixels, s.grid);
        if (a->vectors) /* lanes of no pixel would be multiplied as they are found, at worst slowly */
            FN(clear)(s.panel, a->panel);
        for (int64_t from = 0, to = 0; to < a->block_count; from = to) {
            while (!blocks[to++].last)
                ;
            FN(deform_sums)(a, s, &task, from, to, a->seven, &offset_group);
            if (a->seven && !FN(deform_join_pairs)(a, s, task.pixels, task.begin, task.end))
                FN(deform_sums)(a, s, &task, from, to, 0, &offset_group);
            if (a->vectors) {
                FN(few_finish)(a, FN(few_scratch)(a, s, task.pixels), s, blocks[from].group, task.begin, task.end, y);
                continue;
            }
            FN(deform_finish)(a, s, blocks[from].group, task.pixels, task.begin, task.end, y);
            if (a->seven)
                FN(deform_finish)(a, s, blocks[from].group, task.pixels, shared + task.begin, shared + task.end, y);
        }
    }
}

#undef FLOOR

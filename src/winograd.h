/* Winograd's minimal filtering: m outputs of a stride-1 sum over r taps from a = m + r - 1 products instead of m r, along
 * one axis (rank 1) or along two at once (rank 2: m x m outputs from a^2 products), with the taps of a third axis among
 * the channels (A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016), and so the pieces of a
 * kernel that has more than r taps, or a stride: see fastconv/lowering/winograd.py.
 *
 * winograd_weights turns the packed weights [k][o] into a^rank matrices [channel][o].
 * winograd (winograd_inputs before it, where tasks share them) does a block of tiles: their inputs become a^rank matrices
 * [source][channel], each is multiplied by its weights with the register tile, and the sums of each output become its
 * pixels. A source is what a tile of outputs reads at one tap of the third axis, where neighbours share most of theirs,
 * for one piece of the kernel. A piece with fewer than r taps has no product at infinity.
 * Channels are in the vectors throughout, and a block is so small that all of it stays in L2. Where blocks read a part of
 * the image each, a task makes that part's haloed rows itself (src/join.h): as a stage of its own the haloed image went to
 * memory and came back.
 *
 * The points are 0, +-1 and infinity for a = 4, where every coefficient is a power of two, so small integers stay exact;
 * +-1/2, +-6/5 and infinity for a = 5; 0, +-1/sqrt(2), +-sqrt(2) and infinity for a = 6. Both were searched for: the usual
 * 0, +-1, 2 and 0, +-1, +-2 have four times the error.
 * A NaN or inf spreads over its whole tile here. A tile that holds one is summed again directly.
 */

#define MAX_POINTS 6

#define ROOT_LOW ((real)0.70710678118654752440)
#define ROOT_HIGH ((real)1.41421356237309504880)
#define NEAR ((real)0.5)
#define FAR ((real)1.2)

/* In place: the a inputs d[0], d[step], ... of one line, at the points. */
INLINE void FN(winograd_input_line)(const int a, vec *d, const int step)
{
    vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], half = FN(splat)((real)0.5);
    if (a == 4) {
        d[0] = d0 - d2;
        d[step] = d2 + d1;
        d[2 * step] = d2 - d1;
        d[3 * step] = d3 - d1;
    } else if (a == 5) {
        vec d4 = d[4 * step], near = FN(splat)(-NEAR * NEAR), far = FN(splat)(-FAR * FAR);
        vec odd = FN(fma)(far, d1, d3), even = NEAR * FN(fma)(far, d0, d2);
        d[0] = odd + even;
        d[step] = odd - even;
        odd = FN(fma)(near, d1, d3);
        even = FAR * FN(fma)(near, d0, d2);
        d[2 * step] = odd + even;
        d[3 * step] = odd - even;
        d[4 * step] = FN(fma)(near * far, d0, FN(fma)(near + far, d2, d4));
    } else {
        vec d4 = d[4 * step], d5 = d[5 * step], middle = FN(splat)((real)-2.5);
        vec even = FN(fma)(FN(splat)(-2), d2, d4), odd = FN(fma)(FN(splat)(-2), d1, d3), low = FN(splat)(ROOT_LOW);
        d[0] = FN(fma)(middle, d2, d0 + d4);
        d[step] = FN(fma)(low, odd, even);
        d[2 * step] = FN(fma)(-low, odd, even);
        vec high = FN(splat)(ROOT_HIGH);
        even = FN(fma)(-half, d2, d4);
        odd = FN(fma)(-half, d1, d3);
        d[3 * step] = FN(fma)(high, odd, even);
        d[4 * step] = FN(fma)(-high, odd, even);
        d[5 * step] = FN(fma)(middle, d3, d1 + d5);
    }
}

/* In place: the products p[0], p[step], ... at the points become m outputs of one line, each the value of a polynomial
 * at the points. */
INLINE void FN(winograd_output_line)(const int a, const int m, vec *p, const int step)
{
    vec last = p[(a - 1) * step], y[MAX_POINTS];
    if (a == 4) {
        vec sum = p[step] + p[2 * step];
        y[0] = p[0] + sum;
        y[1] = p[step] - p[2 * step];
        y[2] = sum;
    } else {
        /* Two pairs of opposite points, and 0 before them if there are six. */
        const real low = a == 5 ? NEAR : ROOT_LOW, high = a == 5 ? FAR : ROOT_HIGH;
        vec *pair = p + (a - 5) * step;
        vec sum = pair[0] + pair[step], difference = low * (pair[0] - pair[step]);
        vec sum_2 = pair[2 * step] + pair[3 * step], difference_2 = high * (pair[2 * step] - pair[3 * step]);
        y[0] = a == 5 ? sum + sum_2 : p[0] + sum + sum_2;
        y[1] = difference + difference_2;
        y[2] = FN(fma)(FN(splat)(high * high), sum_2, low * low * sum);
        y[3] = FN(fma)(FN(splat)(high * high), difference_2, low * low * difference);
    }
    y[m - 1] += last;
    UNROLL(6)
    for (int i = 0; i < m; i++)
        p[i * step] = y[i];
}

/* In place: r weights g[0], g[step], ... of one line, at the a points. */
INLINE void FN(winograd_weight_line)(const int a, const int r, vec *g, const int step)
{
    vec zero = {0}, g0 = g[0], g1 = g[step], g2 = r > 2 ? g[2 * step] : zero;
    vec g3 = r > 3 ? g[3 * step] : zero, last = g[(r - 1) * step];
    if (a == 4) {
        vec even = (g0 + g2) * (real)0.5, odd = (g1 + g3) * (real)0.5;
        g[step] = even + odd;
        g[2 * step] = even - odd;
    } else if (a == 5) {
        const real near = NEAR * NEAR, far = FAR * FAR;
        vec even = (g0 + near * g2) / (2 * NEAR * (near - far)), odd = (g1 + near * g3) / (2 * (near - far));
        g[0] = odd + even;
        g[step] = odd - even;
        even = (g0 + far * g2) / (2 * FAR * (far - near));
        odd = (g1 + far * g3) / (2 * (far - near));
        g[2 * step] = odd + even;
        g[3 * step] = odd - even;
    } else {
        vec even = g0 + (real)0.5 * g2, odd = (g1 + (real)0.5 * g3) * ROOT_LOW;
        g[step] = (even + odd) * (real)(-2. / 3);
        g[2 * step] = (even - odd) * (real)(-2. / 3);
        even = g0 + 2 * g2;
        odd = (g1 + 2 * g3) * ROOT_HIGH;
        g[3 * step] = (even + odd) * (real)(1. / 6);
        g[4 * step] = (even - odd) * (real)(1. / 6);
    }
    g[(a - 1) * step] = last;
}

/* y[point][channel][o] of `channels` input channels. */
INLINE void FN(winograd_weights_body)(const int a, const int r, const int rank, const real *x, real *y, int64_t y_point,
                                      int64_t width, int64_t channels)
{
    const int r_h = rank == 2 ? r : 1, a_h = rank == 2 ? a : 1;
    for (int64_t c = 0; c < channels; c++, x += r_h * r * width, y += width)
        for (int64_t o = 0; o < width; o += LANES) {
            vec g[MAX_POINTS * MAX_POINTS];
            UNROLL(6)
            for (int i = 0; i < r_h; i++)
                UNROLL(6)
                for (int j = 0; j < r; j++)
                    g[i * a + j] = FN(load)(x + (i * r + j) * width + o);
            if (rank == 2)
                UNROLL(6)
                for (int j = 0; j < r; j++)
                    FN(winograd_weight_line)(a, r, g + j, a);
            UNROLL(6)
            for (int i = 0; i < a_h; i++)
                FN(winograd_weight_line)(a, r, g + i * a, 1);
            UNROLL(36)
            for (int p = 0; p < a_h * a; p++)
                FN(store)(y + p * y_point + o, g[p]);
        }
}

/* v[point][channel] of one source. */
INLINE void FN(winograd_input_body)(const int a, const int rank, const real *x, int64_t x_h, int64_t x_w, int64_t channels,
                                    real *v, int64_t v_point)
{
    const int a_h = rank == 2 ? a : 1;
    for (int64_t c = 0; c < channels; c += LANES) {
        vec d[MAX_POINTS * MAX_POINTS];
        UNROLL(6)
        for (int i = 0; i < a_h; i++)
            UNROLL(6)
            for (int j = 0; j < a; j++)
                d[i * a + j] = FN(load)(x + i * x_h + j * x_w + c);
        if (rank == 2)
            UNROLL(6)
            for (int j = 0; j < a; j++)
                FN(winograd_input_line)(a, d + j, a);
        UNROLL(6)
        for (int i = 0; i < a_h; i++)
            FN(winograd_input_line)(a, d + i * a, 1);
        UNROLL(36)
        for (int p = 0; p < a_h * a; p++)
            FN(store)(v + p * v_point + c, d[p]);
    }
}

/* One tile's outputs to y + i * y_row + j * y_pixel; returns whether all of them are finite. */
INLINE int FN(winograd_output_body)(const int a, const int m, const int rank, const real *sums, int64_t point,
                                    int64_t channels, real *y, int64_t y_row, int64_t y_pixel)
{
    const int a_h = rank == 2 ? a : 1, m_h = rank == 2 ? m : 1;
    vec spoiled = {0};
    for (int64_t o = 0; o < channels; o += LANES) {
        vec p[MAX_POINTS * MAX_POINTS];
        UNROLL(36)
        for (int i = 0; i < a_h * a; i++)
            p[i] = FN(load)(sums + i * point + o);
        if (rank == 2)
            UNROLL(6)
            for (int j = 0; j < a; j++)
                FN(winograd_output_line)(a, m, p + j, a);
        UNROLL(6)
        for (int i = 0; i < m_h; i++)
            FN(winograd_output_line)(a, m, p + i * a, 1);
        UNROLL(6)
        for (int i = 0; i < m_h; i++)
            UNROLL(6)
            for (int j = 0; j < m; j++) {
                vec one = p[i * a + j];
                FN(store)(y + i * y_row + j * y_pixel + o, one);
                spoiled = FN(fma)(one, (vec){0}, spoiled);
            }
    }
    int finite = 1;
    for (int i = 0; i < LANES; i++)
        finite &= spoiled[i] == 0;
    return finite;
}

/* One algorithm F(m, r) of one rank, a = m + r - 1: its three transforms. Adding one is adding a line to the table below. */
typedef struct {
    int64_t outputs, kernel, rank;
    void (*weights)(const real *, real *, int64_t, int64_t, int64_t);
    void (*input)(const real *, int64_t, int64_t, int64_t, real *, int64_t);
    int (*output)(const real *, int64_t, int64_t, real *, int64_t, int64_t);
} FN(winograd_algorithm);

#define INPUT_TRANSFORM(A, RANK)                                                                                       \
    static NOINLINE void FN(winograd_input_##A##_##RANK)(const real *x, int64_t x_h, int64_t x_w, int64_t channels,    \
                                                         real *v, int64_t v_point)                                     \
    {                                                                                                                  \
        FN(winograd_input_body)(A, RANK, x, x_h, x_w, channels, v, v_point);                                           \
    }
INPUT_TRANSFORM(4, 1) INPUT_TRANSFORM(5, 1) INPUT_TRANSFORM(6, 1)
INPUT_TRANSFORM(4, 2) INPUT_TRANSFORM(5, 2) INPUT_TRANSFORM(6, 2)
#undef INPUT_TRANSFORM

#define ALGORITHMS(F, RANK) F(2, 3, 4, RANK) F(3, 3, 5, RANK) F(4, 3, 6, RANK) F(3, 2, 4, RANK) F(4, 2, 5, RANK) F(3, 4, 6, RANK)
#define TRANSFORMS(M, R, A, RANK)                                                                                      \
    static NOINLINE void FN(winograd_weights_##M##x##R##_##RANK)(const real *x, real *y, int64_t y_point,              \
                                                                 int64_t width, int64_t channels)                      \
    {                                                                                                                  \
        FN(winograd_weights_body)(A, R, RANK, x, y, y_point, width, channels);                                         \
    }                                                                                                                  \
    static NOINLINE int FN(winograd_output_##M##x##R##_##RANK)(const real *sums, int64_t point, int64_t channels,      \
                                                               real *y, int64_t y_row, int64_t y_pixel)                \
    {                                                                                                                  \
        return FN(winograd_output_body)(A, M, RANK, sums, point, channels, y, y_row, y_pixel);                         \
    }
ALGORITHMS(TRANSFORMS, 1)
ALGORITHMS(TRANSFORMS, 2)
#undef TRANSFORMS

#define ROW(M, R, A, RANK)                                                                                             \
    {M, R, RANK, FN(winograd_weights_##M##x##R##_##RANK), FN(winograd_input_##A##_##RANK), FN(winograd_output_##M##x##R##_##RANK)},
static const FN(winograd_algorithm) FN(winograd_algorithms)[] = {ALGORITHMS(ROW, 1) ALGORITHMS(ROW, 2)};
#undef ROW

INLINE const FN(winograd_algorithm) *FN(winograd_find)(int64_t outputs, int64_t kernel, int64_t rank)
{
    const FN(winograd_algorithm) *found = FN(winograd_algorithms);
    while (found->outputs != outputs || found->kernel != kernel || found->rank != rank)
        found++;
    return found;
}

/* n to the power of the rank. */
INLINE int64_t FN(ranked)(int64_t n, int64_t rank) { return rank == 2 ? n * n : n; }

/* A task is a piece of the channels of one block of output channels. */
static void FN(winograd_weights)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const winograd_weights_words *a = (const winograd_weights_words *)words;
    const FN(winograd_algorithm) *f = FN(winograd_find)(a->outputs, a->kernel, a->rank);
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t piece = task % a->pieces, block = task / a->pieces;
        int64_t first = a->channels * piece / a->pieces, count = a->channels * (piece + 1) / a->pieces - first;
        f->weights((const real *)a->x + block * a->x_block + first * FN(ranked)(a->kernel, a->rank) * a->width,
                   (real *)a->y + block * a->y_block + first * a->width, a->y_point, a->width, count);
    }
}

/* What a task has: some tiles of a sum, in one group, and the sources that they read. Tiles and sources of all images of a
 * chunk are numbered through. */
typedef struct {
    const winograd_sum_words *sum;
    const winograd_tile_words *tiles;
    int64_t part, group, index, first, count, source, sources;
} FN(winograd_task);

/* All blocks are of nearly one size, and none has tiles of images on both sides of a multiple of images_per_task. `index`
 * numbers (some blocks, group, sum, block). */
INLINE FN(winograd_task) FN(winograd_decode)(const winograd_words *w, int64_t task)
{
    FN(winograd_task) t;
    t.part = task % w->parts;
    t.index = task / w->parts;
    int64_t rest = t.index / w->in_a_row;
    t.sum = (const winograd_sum_words *)w->sums + rest % w->sum_count;
    t.tiles = (const winograd_tile_words *)t.sum->tiles;
    t.group = rest / w->sum_count % w->groups;
    int64_t block = rest / w->sum_count / w->groups * w->in_a_row + t.index % w->in_a_row, total = w->images * t.sum->tile_count;
    int64_t blocks = (w->images + w->images_per_task - 1) / w->images_per_task * w->blocks;
    t.first = total * block / blocks;
    t.count = total * (block + 1) / blocks - t.first;
    t.source = t.sources = 0;
    if (t.count) {
        int64_t end = t.first + t.count - 1;
        const winograd_tile_words *last = t.tiles + end % t.sum->tile_count;
        t.source = t.first / t.sum->tile_count * t.sum->source_count + t.tiles[t.first % t.sum->tile_count].source;
        end = end / t.sum->tile_count * t.sum->source_count + last->source + (w->taps - 1) * last->step;
        t.sources = end + w->pieces - t.source;
    }
    return t;
}

/* v[point][source][channel] of a task's sources, for some channels. */
INLINE void FN(winograd_transform)(const winograd_words *w, const FN(winograd_algorithm) *f, const FN(winograd_task) *t,
                                   int64_t channel, int64_t channels, real *v, int64_t v_point)
{
    const real *x = (const real *)w->x + t->group * w->x_group + channel;
    void (*input)(const real *, int64_t, int64_t, int64_t, real *, int64_t) = f->input;
#ifdef HALF
    if (channels <= LANES / 2)
        input = HALF_FN(winograd_find)(w->outputs, w->kernel, w->rank)->input;
#endif
    const int64_t *sources = (const int64_t *)t->sum->sources, count = t->sum->source_count;
    int64_t at = t->source % count;
    x += t->source / count * w->x_image;
    for (int64_t i = 0; i < t->sources; i++) {
        input(x + sources[at], w->x_h, w->x_w, channels, v + i * w->v_row + channel, v_point);
        if (++at == count) {
            at = 0;
            x += w->x_image;
        }
    }
}

/* The transformed inputs of all blocks, where several tasks share them. A task is a part of the channels. */
static void FN(winograd_inputs)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const winograd_words *w = (const winograd_words *)words;
    const FN(winograd_algorithm) *f = FN(winograd_find)(w->outputs, w->kernel, w->rank);
    int64_t points = FN(ranked)(w->outputs + w->kernel - 1, w->rank), v_point = w->block_sources * w->v_row + LANES;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        FN(winograd_task) t = FN(winograd_decode)(w, task);
        int64_t vectors = (w->depth + LANES - 1) / LANES, first = vectors * t.part / w->parts;
        FN(winograd_transform)(w, f, &t, first * LANES, (vectors * (t.part + 1) / w->parts - first) * LANES,
                               (real *)w->v + t.index * points * v_point, v_point);
    }
}

/* One tile's outputs by the direct sum, pixels in the vectors and weights as they were given. */
static NOINLINE void FN(winograd_direct)(const winograd_words *a, const winograd_sum_words *sum, const real *x, const real *w,
                                         int64_t channels, real *panel, real *y, int64_t y_row, int64_t y_pixel)
{
    const int64_t *x_offsets = (const int64_t *)sum->x_offsets, *w_offsets = (const int64_t *)sum->w_offsets;
    int64_t steps[MAX_K_BLOCK], m = a->outputs, all = FN(ranked)(m, a->rank);
    real c[WINOGRAD_WIDTH / sizeof(real) * LANES];
    for (int64_t i = 0; i < a->k_block; i++)
        steps[i] = i * LANES;
    for (int64_t first = 0; first < all; first += LANES) {
        int64_t pixels = all - first < LANES ? all - first : LANES, pixel[VEC_BYTES / sizeof(real)];
        for (int64_t p = 0; p < LANES; p++)
            pixel[p] = (first + p % pixels) / m * a->x_h + (first + p % pixels) % m * a->x_w;
        for (int64_t k = 0; k < sum->terms; k += a->k_block) {
            int64_t count = sum->terms - k < a->k_block ? sum->terms - k : a->k_block;
            for (int64_t i = 0; i < count; i++)
                for (int64_t p = 0; p < LANES; p++)
                    panel[i * LANES + p] = x[x_offsets[k + i] + pixel[p]];
            for (int64_t o = 0; o < channels; o += TILE_ROWS) {
                int64_t rows = channels - o < TILE_ROWS ? channels - o : TILE_ROWS;
                const real *row[TILE_ROWS];
                for (int64_t r = 0; r < rows; r++)
                    row[r] = w + (o + r) * a->w_row;
                FN(tiles)[rows][1](count, row, w_offsets + k, panel, steps, c + o * LANES, LANES, k > 0);
            }
        }
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t o = 0; o < channels; o++)
                y[(first + p) / m * y_row + (first + p) % m * y_pixel + o] = c[o * LANES + p];
    }
}

/* sums[point][tile][o] of a task's tiles and one block of output channels. */
INLINE void FN(winograd_products)(const winograd_words *w, const FN(winograd_task) *t, int64_t points, int64_t vectors,
                                  const real *v, int64_t v_point, const real *u, real *sums, int64_t point)
{
    const int64_t *columns = (const int64_t *)w->columns;
    const winograd_point_words *range = (const winograd_point_words *)t->sum->points;
    int64_t steps[MAX_K_BLOCK], place[MAX_WINOGRAD_TILES], step[MAX_WINOGRAD_TILES];
    /* With AVX2, 512 channels of 7x7 and 14x14 pixels took 1.45 times as long without. */
    int64_t far = SHORT_PANELS && w->channels / w->w_width * w->w_block > BEYOND_CACHE;
    for (int64_t i = 0; i < w->k_block; i++)
        steps[i] = i * w->w_width;
    for (int64_t i = 0; i < t->count; i++) {
        int64_t number = t->first + i, image = number / t->sum->tile_count;
        const winograd_tile_words *tile = t->tiles + number % t->sum->tile_count;
        place[i] = (image * t->sum->source_count + tile->source - t->source) * w->v_row;
        step[i] = tile->step * w->v_row;
    }
    for (int64_t tap = 0; tap < w->taps; tap++, u += w->pieces * w->depth * w->w_width) {
        for (int64_t p = 0; p < points; p++) {
            if (range[p].begin == range[p].end)
                FN(clear)(sums + p * point, t->count * w->width);
            for (int64_t k = range[p].begin; k < range[p].end; k += w->k_block) {
                int64_t count = range[p].end - k < w->k_block ? range[p].end - k : w->k_block;
                int add = tap > 0 || k > range[p].begin;
                const real *after = u + (k + count < range[p].end ? p * w->w_point + (k + count) * w->w_width
                                                                  : (p + 1) * w->w_point + range[(p + 1) % points].begin * w->w_width);
                for (int64_t i = 0; i < t->count; i += LANE_ROWS) {
                    int64_t rows = t->count - i < LANE_ROWS ? t->count - i : LANE_ROWS;
                    const real *row[LANE_ROWS];
                    for (int64_t r = 0; r < rows; r++)
                        row[r] = v + p * v_point + place[i + r];
                    /* Narrow vectors make narrow tiles: with some of them in turn, inputs come from L2 less often. */
                    const real *block = u + p * w->w_point + k * w->w_width;
                    for (int64_t n = 0; far && n * LANE_VECTORS < vectors; n++)
                        FN(prefetch_part)(after + n * w->w_block, count * w->w_width, i, i + rows, t->count);
                    for (int64_t n = 0; n < vectors; n += LANE_VECTORS, block += w->w_block)
                        FN(tiles)[rows][vectors - n < LANE_VECTORS ? vectors - n : LANE_VECTORS](
                            count, row, columns + k, block, steps, sums + p * point + i * w->width + n * LANES, w->width, add);
                }
            }
        }
        for (int64_t i = 0; i < t->count; i++)
            place[i] += step[i];
    }
}

/* Where the pixels of tiles go that leave together, `together` of them side by side: as whole rows of pixels, tile by tile,
 * or with y_next, where tiles interleave, first the first pixel of each. Returns how many runs were added. */
INLINE int64_t FN(winograd_runs)(const winograd_words *w, const winograd_tile_words *tile, int64_t together, int64_t at,
                                 int64_t y, FN(run) *runs)
{
    int64_t m = w->outputs, found = 0;
    for (int64_t h = 0; h < tile->rows; h++, at += together * m, y += w->y_h) {
        if (!w->y_next) {
            runs[found++] = (FN(run)){.x = 0, .at = at, .count = (together - 1) * m + tile[together - 1].columns, .y = y};
            continue;
        }
        for (int64_t j = 0, count = together; j < tile->columns; j++) {
            while (tile[count - 1].columns <= j)
                count--;
            runs[found++] = (FN(run)){.x = 0, .at = at + j * together, .count = count, .y = y + j * w->y_w};
        }
    }
    return found;
}

static void FN(winograd)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const winograd_words *w = (const winograd_words *)words;
    const FN(winograd_algorithm) *f = FN(winograd_find)(w->outputs, w->kernel, w->rank);
    const real *bias = (const real *)w->b;
    int64_t m = w->outputs, points = FN(ranked)(m + w->kernel - 1, w->rank), pixels = FN(ranked)(m, w->rank), width = w->width;
    int64_t v_point = w->block_sources * w->v_row + LANES, point = w->block * width + LANES;
    int64_t leaving_tiles = LEAVING_PIXELS / pixels, turned_row = leaving_tiles * pixels + LANES;
    real *sums = (real *)(w->work + thread * w->work_stride), *leaving = sums + points * point;
    real *turned = leaving + leaving_tiles * pixels * width, *panel = turned + width * turned_row, *own = panel + w->k_block * LANES;
    FN(run) runs[LEAVING_PIXELS];
    for (int64_t task = begin; task < end; task++) {
        FN(winograd_task) t = FN(winograd_decode)(w, task);
        if (!t.count)
            continue;
        const real *x = (const real *)w->x + t.group * w->x_group, *v = (const real *)w->v + t.index * points * v_point;
        const real *weight = (const real *)w->weight + t.group * w->weight_group;
        if (!w->v) {
            v = own;
            FN(winograd_transform)(w, f, &t, 0, w->depth, own, v_point);
        }
        int64_t blocks = (w->channels + width - 1) / width, w_blocks = (w->channels + w->w_width - 1) / w->w_width;
        for (int64_t block = blocks * t.part / w->parts; block < blocks * (t.part + 1) / w->parts; block++) {
            int64_t o = block * width, channels = w->channels - o < width ? w->channels - o : width;
            FN(winograd_products)(w, &t, points, (channels + LANES - 1) / LANES, v, v_point,
                                  (const real *)w->w + t.sum->w + (t.group * w_blocks + o / w->w_width) * w->w_block, sums, point);
            real *y = (real *)w->y + t.group * w->y_group + o * w->y_channel;
            for (int64_t i = 0; i < t.count; i += leaving_tiles) {
                int64_t end_tile = t.count - i < leaving_tiles ? t.count : i + leaving_tiles, at = 0, found = 0;
                for (int64_t done = i; done < end_tile;) {
                    int64_t number = t.first + done, image = number / t.sum->tile_count, together = 1;
                    const winograd_tile_words *tile = t.tiles + number % t.sum->tile_count;
                    while (done + together < end_tile && (number + together) / t.sum->tile_count == image &&
                           tile[together].row == tile->row)
                        together++;
                    int64_t y_tile = (w->y_next ? 1 : m) * width, y_pixel = (w->y_next ? together : 1) * width;
                    int64_t more = FN(winograd_runs)(w, tile, together, at, image * w->y_image + tile->y, runs + found);
                    if (w->ahead)
                        FN(expect_rows)(channels, runs + found, more, y, w->y_channel, w->y_next ? w->y_next : w->y_w);
                    for (int64_t n = 0; n < together; n++) {
                        real *yt = leaving + at * width + n * y_tile;
                        if (!f->output(sums + (done + n) * width, point, channels, yt, together * m * width, y_pixel))
                            FN(winograd_direct)(w, t.sum, x + image * w->x_image + ((const int64_t *)t.sum->sources)[tile[n].source],
                                                weight + o * w->w_row, channels, panel, yt, together * m * width, y_pixel);
                    }
                    found += more;
                    at += together * pixels;
                    done += together;
                }
                FN(leave_lanes)(leaving, width, at, channels, runs, found, bias ? bias + t.group * w->channels + o : 0, w->activation,
                                turned, turned_row, y, w->y_channel, w->y_next ? w->y_next : w->y_w);
            }
        }
    }
}

#undef ROOT_LOW
#undef ROOT_HIGH
#undef NEAR
#undef FAR
#undef MAX_POINTS
#undef ALGORITHMS

/* Weight gradients of 3x3 taps by Winograd's minimal filtering, see winograd.h: the taps are the outputs of F(3, r), its
 * weights are r x r pixels of the output's gradient, and its inputs the a x a pixels that these meet, a = r + 2.
 *
 * winograd_grad_tiles turns the image into a^2 matrices [source][channel], and the gradient into as many [tile][o].
 * winograd_grad multiplies each pair of them, which sums over all tiles of all images; only then are the products of a
 * channel and an output channel turned into 9 taps. The taps of a third axis are sums of their own: a source is what a
 * tile meets at one of them, and neighbours share most of theirs.
 *
 * What is not finite, or so large that a product might overflow where the direct sum does not, would spread over all
 * weights of its channels. Such a tile or source is zeros here, and the tiles that it meets are summed directly.
 */

#define GRAD_TAPS 3
#define MAX_GRAD_POINTS 36
/* The greatest sum of squares of what is transformed: 1e6 products of two such values are far from overflow. */
#define GRAD_LIMIT ((real)1e28)

/* v[point][channel] of r x r pixels; returns whether they are small enough. */
INLINE int FN(winograd_grad_tile_body)(const int a, const int r, const real *x, int64_t x_h, int64_t x_w, int64_t channels, real *v,
                                       int64_t v_point)
{
    vec squares = {0};
    for (int64_t c = 0; c < channels; c += LANES) {
        vec d[MAX_GRAD_POINTS];
        UNROLL(6)
        for (int i = 0; i < r; i++)
            UNROLL(6)
            for (int j = 0; j < r; j++) {
                d[i * a + j] = FN(load)(x + i * x_h + j * x_w + c);
                squares = FN(fma)(d[i * a + j], d[i * a + j], squares);
            }
        UNROLL(6)
        for (int j = 0; j < r; j++) {
            if (r == a)
                FN(winograd_input_line)(a, d + j, a);
            else
                FN(winograd_weight_line)(a, r, d + j, a);
        }
        UNROLL(6)
        for (int i = 0; i < a; i++) {
            if (r == a)
                FN(winograd_input_line)(a, d + i * a, 1);
            else
                FN(winograd_weight_line)(a, r, d + i * a, 1);
        }
        UNROLL(36)
        for (int p = 0; p < a * a; p++)
            FN(store)(v + p * v_point + c, d[p]);
    }
    int small = 1;
    for (int i = 0; i < LANES; i++)
        small &= squares[i] < GRAD_LIMIT;
    return small;
}

/* The taps y[tap][o] of one channel from its sums at the points, stored or added. */
INLINE void FN(winograd_grad_output_body)(const int a, const real *sums, int64_t point, int64_t channels, real *y, int64_t y_tap,
                                          int64_t add)
{
    for (int64_t o = 0; o < channels; o += LANES) {
        vec p[MAX_GRAD_POINTS];
        UNROLL(36)
        for (int i = 0; i < a * a; i++)
            p[i] = FN(load)(sums + i * point + o);
        UNROLL(6)
        for (int j = 0; j < a; j++)
            FN(winograd_output_line)(a, GRAD_TAPS, p + j, a);
        UNROLL(3)
        for (int i = 0; i < GRAD_TAPS; i++)
            FN(winograd_output_line)(a, GRAD_TAPS, p + i * a, 1);
        UNROLL(3)
        for (int i = 0; i < GRAD_TAPS; i++)
            UNROLL(3)
            for (int j = 0; j < GRAD_TAPS; j++) {
                real *to = y + (i * GRAD_TAPS + j) * y_tap + o;
                FN(store)(to, add ? FN(load)(to) + p[i * a + j] : p[i * a + j]);
            }
    }
}

#define GRAD_TRANSFORMS(A)                                                                                             \
    static NOINLINE int FN(winograd_grad_source_##A)(const real *x, int64_t x_h, int64_t x_w, int64_t channels, real *v, \
                                                     int64_t v_point)                                                  \
    {                                                                                                                  \
        return FN(winograd_grad_tile_body)(A, A, x, x_h, x_w, channels, v, v_point);                                   \
    }                                                                                                                  \
    static NOINLINE int FN(winograd_grad_tile_##A)(const real *x, int64_t x_h, int64_t x_w, int64_t channels, real *v, \
                                                   int64_t v_point)                                                    \
    {                                                                                                                  \
        return FN(winograd_grad_tile_body)(A, A - 2, x, x_h, x_w, channels, v, v_point);                               \
    }                                                                                                                  \
    static NOINLINE void FN(winograd_grad_output_##A)(const real *sums, int64_t point, int64_t channels, real *y,      \
                                                      int64_t y_tap, int64_t add)                                      \
    {                                                                                                                  \
        FN(winograd_grad_output_body)(A, sums, point, channels, y, y_tap, add);                                        \
    }
GRAD_TRANSFORMS(4)
GRAD_TRANSFORMS(6)
#undef GRAD_TRANSFORMS

typedef int (*FN(winograd_grad_transform))(const real *, int64_t, int64_t, int64_t, real *, int64_t);

/* A task is a piece of the sources of an image, or of its tiles. */
static void FN(winograd_grad_tiles)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const winograd_grad_words *w = (const winograd_grad_words *)words;
    const winograd_grad_tile_words *tiles = (const winograd_grad_tile_words *)w->tiles;
    FN(winograd_grad_transform) source_turn = w->points == 4 ? FN(winograd_grad_source_4) : FN(winograd_grad_source_6);
    FN(winograd_grad_transform) tile_turn = w->points == 4 ? FN(winograd_grad_tile_4) : FN(winograd_grad_tile_6);
    int64_t points = w->points * w->points;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / (w->source_pieces + w->tile_pieces), piece = task % (w->source_pieces + w->tile_pieces);
        if (piece < w->source_pieces) {
            int64_t last = w->source_count * (piece + 1) / w->source_pieces;
            for (int64_t i = w->source_count * piece / w->source_pieces; i < last; i++) {
                int64_t number = image * w->source_count + i;
                const real *x = (const real *)w->x + image * w->x_image + ((const int64_t *)w->sources)[i];
                real *v = (real *)w->v + number * w->v_row;
                int small = source_turn(x, w->x_h, w->x_w, w->inputs, v, w->v_point);
                ((real *)w->source_marks)[number] = !small;
                for (int64_t p = 0; !small && p < points; p++)
                    FN(clear)(v + p * w->v_point, w->inputs);
            }
            continue;
        }
        piece -= w->source_pieces;
        int64_t last = w->tile_count * (piece + 1) / w->tile_pieces, blocks = w->groups * w->blocks;
        for (int64_t i = w->tile_count * piece / w->tile_pieces; i < last; i++) {
            int64_t number = image * w->tile_count + i;
            const real *gy = (const real *)w->gy + image * w->gy_image + tiles[i].gy;
            real *u = (real *)w->u + number * w->width;
            int small = 1;
            for (int64_t block = 0; block < blocks; block++)
                small &= tile_turn(gy + block * w->gy_block, w->gy_h, w->gy_w, w->width, u + block * w->u_block, w->u_point);
            ((real *)w->tile_marks)[number] = !small;
            for (int64_t i = 0; !small && i < blocks * points; i++)
                FN(clear)(u + i / points * w->u_block + i % points * w->u_point, w->width);
        }
    }
}

/* What a task has: some input channels of a group, and a block of its output channels. */
typedef struct {
    int64_t group, block, first, units, vectors;
} FN(winograd_grad_task);

/* sums[tap][point][unit][o] of all tiles. */
INLINE void FN(winograd_grad_products)(const winograd_grad_words *w, const FN(winograd_grad_task) *t, real *sums, int64_t add)
{
    const winograd_grad_tile_words *tiles = (const winograd_grad_tile_words *)w->tiles;
    int64_t v_offsets[MAX_K_BLOCK], u_offsets[MAX_K_BLOCK], points = w->points * w->points, count = w->images * w->tile_count;
    const real *v = (const real *)w->v + t->group * w->units + t->first;
    const real *u = (const real *)w->u + (t->group * w->blocks + t->block) * w->u_block;
    int64_t most = FN(grad_rows)(t->vectors), parts = (t->units + most - 1) / most;
    for (int64_t tap = 0; tap < w->taps; tap++, sums += points * t->units * w->width)
        for (int64_t k = 0; k < count; k += w->k_block) {
            int64_t some = count - k < w->k_block ? count - k : w->k_block;
            for (int64_t i = 0; i < some; i++) {
                int64_t source = tiles[(k + i) % w->tile_count].source + ((const int64_t *)w->tap_sources)[tap];
                v_offsets[i] = ((k + i) / w->tile_count * w->source_count + source) * w->v_row;
                u_offsets[i] = (k + i) * w->width;
            }
            for (int64_t p = 0; p < points; p++)
                for (int64_t i = 0; i < parts; i++) {
                    int64_t unit = t->units * i / parts, rows = t->units * (i + 1) / parts - unit;
                    const real *row[TILE_ROWS > LANE_ROWS ? TILE_ROWS : LANE_ROWS];
                    for (int64_t r = 0; r < rows; r++)
                        row[r] = v + p * w->v_point + unit + r;
                    FN(tiles)[rows][t->vectors](some, row, v_offsets, u + p * w->u_point, u_offsets,
                                                sums + (p * t->units + unit) * w->width, w->width, add || k > 0);
                }
        }
}

/* Add the direct sums of marked tiles to y[unit][tap][o]; returns whether there were any, `any` of before included. */
static NOINLINE int FN(winograd_grad_direct)(const winograd_grad_words *w, const FN(winograd_grad_task) *t, real *y, int any)
{
    const winograd_grad_tile_words *tiles = (const winograd_grad_tile_words *)w->tiles;
    int64_t kernel = w->taps * GRAD_TAPS * GRAD_TAPS, x_offsets[MAX_GRAD_POINTS], gy_offsets[MAX_GRAD_POINTS];
    for (int64_t number = 0; number < w->images * w->tile_count * w->taps; number++) {
        int64_t tap = number % w->taps, image = number / w->taps / w->tile_count;
        const winograd_grad_tile_words *tile = tiles + number / w->taps % w->tile_count;
        int64_t source = tile->source + ((const int64_t *)w->tap_sources)[tap], count = 0;
        if (((const real *)w->tile_marks)[number / w->taps] == 0 && ((const real *)w->source_marks)[image * w->source_count + source] == 0)
            continue;
        if (!any)
            FN(clear)(y, t->units * kernel * w->width);
        any = 1;
        for (int64_t h = 0; h < tile->rows; h++)
            for (int64_t i = 0; i < tile->columns; i++, count++) {
                x_offsets[count] = h * w->x_h + i * w->x_w;
                gy_offsets[count] = h * w->gy_h + i * w->gy_w;
            }
        const real *x = (const real *)w->x + image * w->x_image + ((const int64_t *)w->sources)[source] + t->group * w->units + t->first;
        const real *gy = (const real *)w->gy + image * w->gy_image + (t->group * w->blocks + t->block) * w->gy_block + tile->gy;
        for (int64_t i = 0; i < GRAD_TAPS * GRAD_TAPS; i++)
            for (int64_t unit = 0; unit < t->units; unit += LANE_ROWS) {
                int64_t rows = t->units - unit < LANE_ROWS ? t->units - unit : LANE_ROWS;
                const real *row[LANE_ROWS];
                for (int64_t r = 0; r < rows; r++)
                    row[r] = x + i / GRAD_TAPS * w->x_h + i % GRAD_TAPS * w->x_w + unit + r;
                FN(tiles)[rows][t->vectors](count, row, x_offsets, gy, gy_offsets,
                                            y + (unit * kernel + tap * GRAD_TAPS * GRAD_TAPS + i) * w->width, kernel * w->width, 1);
            }
    }
    return any;
}

/* A task is a part of the units of one block of output channels, over all images of the chunk. The sums of some passes over
 * chunks and bands are added up before they are added to the total: the error grows with the passes of either. */
static void FN(winograd_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const winograd_grad_words *w = (const winograd_grad_words *)words;
    int64_t points = w->points * w->points, kernel = w->taps * GRAD_TAPS * GRAD_TAPS;
    int64_t pass = w->first_image / w->chunk * w->bands + w->band, whole = (pass + 1) % w->together == 0;
    int64_t done = w->first_image + w->images == w->batch && w->band == w->bands - 1;
    for (int64_t task = begin; task < end; task++) {
        int64_t part = task % w->unit_parts, number = task / w->unit_parts;
        FN(winograd_grad_task) t = {.group = number / w->blocks, .block = number % w->blocks, .first = part * w->unit_part};
        t.units = w->units - t.first < w->unit_part ? w->units - t.first : w->unit_part;
        int64_t o = t.block * w->width, channels = w->channels - o < w->width ? w->channels - o : w->width;
        t.vectors = (channels + LANES - 1) / LANES;
        /* Sums that are complete at once never leave the thread's scratch. */
        int64_t size = w->taps * points * t.units * w->width;
        real *sums = pass || !done ? (real *)w->sums + (number * w->units + t.first) * w->unit : (real *)(w->work + thread * w->work_stride);
        real *y = sums + size, *total = y + kernel * t.units * w->width, *direct = (real *)w->direct + task;
        real *gw = (real *)w->gw + (t.group * w->channels + o) * w->units * kernel + t.first * kernel;
        FN(winograd_grad_products)(w, &t, sums, pass % w->together);
        int any = FN(winograd_grad_direct)(w, &t, y, pass && *direct != 0);
        *direct = (real)any;
        if (pass >= w->together && (whole || done))
            FN(add_to)(total, sums, size);
        else if (whole && !done)
            FN(copy)(total, sums, size);
        if (!done)
            continue;
        const real *found = pass < w->together ? sums : total;
        for (int64_t i = 0; i < t.units * w->taps; i++) {
            int64_t unit = i / w->taps, tap = i % w->taps;
            (w->points == 4 ? FN(winograd_grad_output_4) : FN(winograd_grad_output_6))(
                found + (tap * points * t.units + unit) * w->width, t.units * w->width, t.vectors * LANES,
                y + i * GRAD_TAPS * GRAD_TAPS * w->width, w->width, any);
        }
        FN(transpose)(gw, w->units * kernel, y, w->width, t.units * kernel, channels);
    }
}

#undef GRAD_TAPS
#undef MAX_GRAD_POINTS
#undef GRAD_LIMIT

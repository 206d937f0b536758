/* The haloed image: see HALO_WORDS. After it, everything is a stride-1 sum. */

#define MOST_STEPS 3 /* of vectors that are put together from so many */

/* The first of n elements, if any. */
INLINE vec FN(load_some)(const real *p, int64_t n) { return n >= LANES ? FN(load)(p) : n > 0 ? FN(load_part)(p, n) : (vec){0}; }

/* n elements of a source, `step` apart; nothing behind the last of them is read. */
INLINE void FN(copy_steps)(real *y, const real *x, int64_t step, int64_t n)
{
    int64_t i = 0;
    if (step == 1) {
        FN(copy)(y, x, n);
        return;
    }
    if (step == 2)
        for (; n - i > LANES; i += LANES)
            FN(store)(y + i, FN(evens)(FN(load)(x + i * 2), FN(load)(x + i * 2 + LANES)));
    if (step == 3)
        for (; n - i > LANES; i += LANES)
            FN(store)(y + i, FN(thirds)(FN(load)(x + i * 3), FN(load)(x + i * 3 + LANES), FN(load)(x + i * 3 + 2 * LANES)));
#if ISA_LEVEL == 2
    if ((step == 2 || step == 3) && i < n) {
        int64_t left = (n - i - 1) * step + 1;
        vec a = FN(load_some)(x + i * step, left), b = FN(load_some)(x + i * step + LANES, left - LANES);
        FN(store_part)(y + i, step == 2 ? FN(evens)(a, b) : FN(thirds)(a, b, FN(load_some)(x + i * step + 2 * LANES, left - 2 * LANES)), n - i);
        return;
    }
#endif
    for (; i < n; i++)
        y[i] = x[i * step];
}

/* n elements to places `step` apart. */
INLINE void FN(copy_spread)(real *y, int64_t step, const real *x, int64_t n)
{
    if (step == 1)
        FN(copy)(y, x, n);
    else
        for (int64_t i = 0; i < n; i++)
            y[i * step] = x[i];
}

/* One row of a plane: each W phase in turn. A phase is a run through the source in equal steps, with whatever
 * padding asks for on both sides of it. A row that lies in the padding (source null) is zero. */
static void FN(fill_row)(real *y, int64_t y_phase, const real *x, int64_t x_w, int64_t phases, int64_t lines,
                         const int64_t *map, const int64_t *runs)
{
    for (int64_t p = 0; p < phases; p++, y += y_phase, map += lines, runs += 4) {
        if (!x) {
            FN(clear)(y, lines);
            continue;
        }
        for (int64_t i = 0; i < runs[0]; i++)
            y[i] = map[i] < 0 ? 0 : x[map[i] * x_w];
        FN(copy_steps)(y + runs[0], x + runs[2] * x_w, runs[3] * x_w, runs[1] - runs[0]);
        for (int64_t i = runs[1]; i < lines; i++)
            y[i] = map[i] < 0 ? 0 : x[map[i] * x_w];
    }
}

INLINE void FN(split_two)(real *even, real *odd, vec a, vec b)
{
    FN(store)(even, FN(evens)(a, b));
    FN(store)(odd, FN(odds)(a, b));
}

INLINE void FN(split_three)(real *first, real *second, real *last, vec a, vec b, vec c)
{
    FN(store)(first, FN(thirds)(a, b, c));
    FN(store)(second, FN(second_thirds)(a, b, c));
    FN(store)(last, FN(last_thirds)(a, b, c));
}

/* Copies of COPY_WORDS. Zeros fill the last vector of a row, so that all vectors are stored whole. */
static void FN(copy_rows)(const copy_words *c, real *to, const real *x)
{
    real *y = to + c->to, *odd = to + c->odd;
    int64_t y_row = c->to_row, x_row = c->at_row, n = c->n, step = c->step;
    x += c->at;
    if (step == 1 && ISA_LEVEL > 0) {
        int64_t whole = (n - 1) / LANES * LANES;
        for (int64_t rows = c->rows; rows > 0; rows--, y += y_row, x += x_row) {
            for (int64_t i = 0; i < whole; i += LANES)
                FN(store)(y + i, FN(held)(FN(load)(x + i)));
            FN(store)(y + whole, FN(load_part)(x + whole, n - whole));
        }
    } else if (step == -2) {
        for (int64_t rows = c->rows; rows > 0; rows--, y += y_row, odd += y_row, x += x_row) {
            int64_t i = 0;
            for (; n - i >= 2 * LANES; i += 2 * LANES)
                FN(split_two)(y + i / 2, odd + i / 2, FN(load)(x + i), FN(load)(x + i + LANES));
            if (i < n)
                FN(split_two)(y + i / 2, odd + i / 2, FN(load_some)(x + i, n - i), FN(load_some)(x + i + LANES, n - i - LANES));
        }
    } else if (step == -3) {
        real *third = to + c->third;
        for (int64_t rows = c->rows; rows > 0; rows--, y += y_row, odd += y_row, third += y_row, x += x_row) {
            int64_t i = 0;
            for (; n - i >= 3 * LANES; i += 3 * LANES)
                FN(split_three)(y + i / 3, odd + i / 3, third + i / 3, FN(load)(x + i), FN(load)(x + i + LANES), FN(load)(x + i + 2 * LANES));
            if (i < n)
                FN(split_three)(y + i / 3, odd + i / 3, third + i / 3, FN(load_some)(x + i, n - i), FN(load_some)(x + i + LANES, n - i - LANES),
                                FN(load_some)(x + i + 2 * LANES, n - i - 2 * LANES));
        }
    } else {
        for (int64_t rows = c->rows; rows > 0; rows--, y += y_row, x += x_row)
            if (step == 0)
                FN(clear)(y, n);
            else
                FN(copy_steps)(y, x, step, n);
    }
}

/* Lines i..i + LANES of rows of as many planes. Padding is turned with the rest: written by itself, channel by channel, it
 * took a third of the time of rows of 28. */
INLINE void FN(fill_square)(real *y, int64_t y_block, const real *x, int64_t x_w, const int64_t *map)
{
    vec row[VEC_BYTES / sizeof(real)];
    UNROLL(16)
    for (int i = 0; i < LANES; i++)
        row[i] = map[i] < 0 ? (vec){0} : FN(load)(x + map[i] * x_w);
    FN(turn)(row);
    UNROLL(16)
    for (int c = 0; c < LANES; c++)
        FN(store)(y + c * y_block, row[c]);
}

/* As fill_row, rows of as many planes as there are channels side by side. */
static void FN(fill_rows)(real *y, int64_t y_phase, int64_t y_block, const real *x, int64_t x_w, int64_t channels, int64_t phases,
                          int64_t lines, const int64_t *map, const int64_t *runs)
{
    for (int64_t p = 0; p < phases; p++, y += y_phase, map += lines, runs += 4) {
        if (channels == LANES && lines >= LANES) {
            for (int64_t next = 0; next < lines; next += LANES) { /* the last square overlaps the one before */
                int64_t i = next + LANES > lines ? lines - LANES : next;
                FN(fill_square)(y + i, y_block, x, x_w, map + i);
            }
            continue;
        }
        for (int64_t i = 0; i < lines; i++) {
            if (i == runs[0] && runs[1] > i) {
                FN(transpose)(y + i, y_block, x + runs[2] * x_w, runs[3] * x_w, runs[1] - i, channels);
                i = runs[1];
                if (i == lines)
                    break;
            }
            for (int64_t c = 0; c < channels; c++)
                y[c * y_block + i] = map[i] < 0 ? 0 : x[map[i] * x_w + c];
        }
    }
}

/* Which elements of some vectors of a source there are. */
typedef struct {
    FN(lane_mask) masks[MOST_STEPS];
} FN(edge);

INLINE FN(edge) FN(edge_of)(int64_t begin, int64_t end)
{
    FN(edge) edge;
    for (int64_t i = 0; i < MOST_STEPS; i++)
        edge.masks[i] = FN(lanes_between)(begin - i * LANES, end - i * LANES);
    return edge;
}

/* n lines of a W phase, `step` elements apart in the source, or of `both` phases that take turns there; zeros where the source
 * has an edge. */
INLINE void FN(fill_vector)(const int step, const int both, real *y, real *odd, int64_t n, const real *x, const FN(edge) *edge)
{
    vec part[MOST_STEPS];
    UNROLL(3)
    for (int i = 0; i < step; i++)
        part[i] = edge ? FN(load_masked)(x + i * LANES, edge->masks[i]) : FN(load)(x + i * LANES);
    vec v = step == 1 ? part[0] : step == 2 ? FN(evens)(part[0], part[1]) : FN(thirds)(part[0], part[1], part[2]);
    if (n < LANES)
        FN(store_part)(y, v, n);
    else
        FN(store)(y, v);
    if (both && n < LANES)
        FN(store_part)(odd, FN(odds)(part[0], part[1]), n);
    else if (both)
        FN(store)(odd, FN(odds)(part[0], part[1]));
}

/* Lines begin..end of one W phase of a plane, or of both. Outside of the run there are zeros, on each side no more than a
 * vector holds, and the last vector overlaps the one before. */
INLINE void FN(fill_lines)(const halo_words *a, const int step, const int both, real *y, const real *plane, const int64_t *run,
                           int64_t begin, int64_t end)
{
    const int64_t *map_h = (const int64_t *)a->map_h;
    int64_t lines = a->w_lines, last = lines - LANES, before = last > 0 ? (last - 1) / LANES * LANES : 0, h_lines = a->rows_h / a->h_phases;
    int64_t first = run[0] * step, stop = (run[1] - 1) * step + 1;
    if (both) {
        first = run[4] < run[0] ? run[4] * step + 1 : first;
        stop = run[5] < run[1] ? stop : (run[5] - 1) * step + 2;
    }
    FN(edge) left = FN(edge_of)(first, stop), right = FN(edge_of)(first - last * step, stop - last * step);
    FN(edge) middle = FN(edge_of)(first - before * step, stop - before * step);
    plane += (run[2] - run[0] * step) * a->x_w;
    for (int64_t line = begin; line < end; line++)
        for (int64_t row = line; row < a->rows_h; row += h_lines) {
            real *to = y + row * a->y_h, *odd = to + a->y_phase;
            const real *x = plane + map_h[row] * a->x_h;
            if (map_h[row] < 0) {
                FN(clear)(to, lines);
                if (both)
                    FN(clear)(odd, lines);
            } else if (last <= 0) {
                FN(fill_vector)(step, both, to, odd, lines, x, &left);
            } else {
                FN(fill_vector)(step, both, to, odd, LANES, x, &left);
                for (int64_t i = LANES; i < before; i += LANES)
                    FN(fill_vector)(step, both, to + i, odd + i, LANES, x + i * step, 0);
                if (before > 0) /* may reach behind the run, as may the last one */
                    FN(fill_vector)(step, both, to + before, odd + before, LANES, x + before * step, &middle);
                FN(fill_vector)(step, both, to + last, odd + last, LANES, x + last * step, &right);
            }
        }
}

static void FN(fill_plane)(const halo_words *a, real *y, const real *plane, int64_t begin, int64_t end)
{
    const int64_t *run = (const int64_t *)a->runs;
    /* One pass for both phases of stride 2 (56 channels of 56x56: 47 and not 54 us). */
    if (a->w_phases == 2 && run[3] == 2 && run[7] == 2 && run[6] - 2 * run[4] == run[2] - 2 * run[0] + 1) {
        FN(fill_lines)(a, 2, 1, y, plane, run, begin, end);
        return;
    }
    for (int64_t p = 0; p < a->w_phases; p++, y += a->y_phase, run += 4)
        if (run[3] == 1)
            FN(fill_lines)(a, 1, 0, y, plane, run, begin, end);
        else if (run[3] == 2)
            FN(fill_lines)(a, 2, 0, y, plane, run, begin, end);
        else
            FN(fill_lines)(a, 3, 0, y, plane, run, begin, end);
}

/* A task is a band of lines, of all H phases, of a block of channels; the result has planes of channels. Channels of a
 * block lie side by side in the source if there are several. The last tasks come first: of an image too large for the
 * cache, what is read next is in it. */
static void FN(halo_planes)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const halo_words *a = (const halo_words *)words;
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h, *map_w = (const int64_t *)a->map_w;
    const int64_t *starts = (const int64_t *)a->starts, *runs = (const int64_t *)a->runs;
    int64_t h_lines = a->rows_h / a->h_phases, bands = (h_lines + a->band - 1) / a->band;
    (void)thread;
    for (int64_t task = end - 1; task >= begin; task--) {
        int64_t inner = a->by_bands ? a->blocks : a->rows_d * bands, outer = a->by_bands ? a->rows_d * bands : a->blocks;
        int64_t of_inner = task % inner, of_outer = task / inner % outer, image = task / inner / outer;
        int64_t block = a->by_bands ? of_inner : of_outer, part = a->by_bands ? of_outer : of_inner;
        int64_t d = part / bands, line = part % bands * a->band, line_end = line + a->band < h_lines ? line + a->band : h_lines;
        int64_t first = starts[block], last = starts[block + 1];
        const real *plane = (const real *)a->x + image * a->x_image + first / a->repeat * a->x_channel + (map_d[d] < 0 ? 0 : map_d[d]) * a->x_d;
        real *y = (real *)a->y + image * a->y_image + first * a->y_block + d * a->y_d;
        if (a->zeros && last - first == 1 && map_d[d] >= 0) {
            FN(fill_plane)(a, y, plane, line, line_end);
            continue;
        }
        for (; line < line_end; line++)
            for (int64_t h = line; h < a->rows_h; h += h_lines) {
                const real *x = map_d[d] >= 0 && map_h[h] >= 0 ? plane + map_h[h] * a->x_h : 0;
                if (x && last - first > 1)
                    FN(fill_rows)(y + h * a->y_h, a->y_phase, a->y_block, x, a->x_w, last - first, a->w_phases, a->w_lines, map_w, runs);
                else
                    for (int64_t c = 0; c < last - first; c++)
                        FN(fill_row)(y + h * a->y_h + c * a->y_block, a->y_phase, x, a->x_w, a->w_phases, a->w_lines, map_w, runs);
            }
    }
}

#define PIECE 64
/* count pixels from a run of the source; channels past the last of the image stay zero. */
INLINE void FN(fill_pixels)(real *y, int64_t y_w, const real *x, int64_t x_channel, int64_t step, int64_t count,
                            int64_t channels, int64_t repeat, int64_t first_channel)
{
    if (repeat > 1) {
        for (int64_t i = 0; i < count; i++) {
            const real *from = x + i * step + first_channel / repeat * x_channel;
            for (int64_t c = 0, r = first_channel % repeat; c < channels; c++) {
                y[i * y_w + c] = *from;
                if (++r == repeat) {
                    r = 0;
                    from += x_channel;
                }
            }
        }
    } else if (x_channel == 1) {
        for (int64_t i = 0; i < count; i++)
            FN(copy)(y + i * y_w, x + i * step + first_channel, channels);
    } else if (step == 1) {
        FN(transpose)(y, y_w, x + first_channel * x_channel, x_channel, channels, count);
    } else if (step != 2) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t c = 0; c < channels; c++)
                y[i * y_w + c] = x[i * step + (first_channel + c) * x_channel];
    } else {
        /* Every second pixel: brought side by side first. */
        real near[VEC_BYTES / sizeof(real) * PIECE];
        for (int64_t i = 0; i < count; i += PIECE)
            for (int64_t c = 0; c < channels; c += LANES) {
                int64_t pixels = count - i < PIECE ? count - i : PIECE, some = channels - c < LANES ? channels - c : LANES;
                for (int64_t r = 0; r < some; r++)
                    FN(copy_steps)(near + r * PIECE, x + i * step + (first_channel + c + r) * x_channel, step, pixels);
                FN(transpose)(y + i * y_w + c, y_w, near, PIECE, some, pixels);
            }
    }
}
#undef PIECE

/* A task is a row of one block of channels, rows of the H phases in turn, as they are in the image; in the result the
 * channels of a block lie side by side. The last tasks come first. */
static void FN(halo_pixels)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const halo_words *a = (const halo_words *)words;
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h;
    (void)thread;
    for (int64_t task = end - 1; task >= begin; task--) {
        int64_t h = task % a->rows_h, rest = task / a->rows_h;
        int64_t d = rest % a->rows_d;
        rest /= a->rows_d;
        h = h % a->h_phases * (a->rows_h / a->h_phases) + h / a->h_phases;
        int64_t block = rest % a->blocks, image = rest / a->blocks;
        int64_t first = ((const int64_t *)a->starts)[block], channels = ((const int64_t *)a->starts)[block + 1] - first;
        real *y = (real *)a->y + image * a->y_image + block * a->y_block + d * a->y_d + h * a->y_h;
        int inside = map_d[d] >= 0 && map_h[h] >= 0;
        const real *x = (const real *)a->x + image * a->x_image;
        if (inside)
            x += map_d[d] * a->x_d + map_h[h] * a->x_h;
        const int64_t *map = (const int64_t *)a->map_w, *runs = (const int64_t *)a->runs;
        for (int64_t p = 0; p < a->w_phases; p++, y += a->y_phase, map += a->w_lines, runs += 4) {
            if (!inside || channels < a->y_w) {
                FN(clear)(y, a->w_lines * a->y_w);
                if (!inside)
                    continue;
            }
            for (int64_t i = 0; i < a->w_lines; i++) {
                if (i == runs[0] && runs[1] > runs[0]) {
                    FN(fill_pixels)(y + i * a->y_w, a->y_w, x + runs[2] * a->x_w, a->x_channel, runs[3] * a->x_w,
                                    runs[1] - runs[0], channels, a->repeat, first);
                    i = runs[1];
                    if (i == a->w_lines)
                        break;
                }
                if (map[i] < 0)
                    FN(clear)(y + i * a->y_w, channels);
                else
                    FN(fill_pixels)(y + i * a->y_w, a->y_w, x + map[i] * a->x_w, a->x_channel, a->x_w, 1, channels, a->repeat, first);
            }
        }
    }
}

#undef MOST_STEPS

/* The weight gradient as dot products of rows: see PLANE_GRAD_WORDS. For groups of so few channels that no tile of them
 * fills a vector: pixels lie in the vectors, and sums stay vectors until the very end.
 *
 * A task is a group over all images. Its input is made a haloed band in line space, its output gradient rows of whole
 * vectors with zeros behind, both in the thread's scratch. A tile of output channels and (channel, tap) pairs shares what
 * is loaded.
 */

#if MANY_REGISTERS
#define DOT_ROWS 8
#else
#define DOT_ROWS 4
#endif
#define DOT_COLUMNS 3

/* Left alone, GCC loads a value again for each multiply-add that takes it, and loads are what there are too many of. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) (void)(v)
#endif

/* c[i * c_i + c_j[j]] += sum over rows and elements of a[i * a_i] * b[j], vectors of them. a is zero behind a row's end, b may
 * hold anything there. */
INLINE void FN(dots_body)(const int row_count, const int column_count, int64_t rows, int64_t count, const real *a, int64_t a_i,
                          int64_t a_row, const real *const *b, int64_t b_row, real *c, int64_t c_i, const int64_t *c_j)
{
    vec sum[DOT_ROWS][DOT_COLUMNS];
    UNROLL(8)
    for (int i = 0; i < row_count; i++) {
        UNROLL(3)
        for (int j = 0; j < column_count; j++)
            sum[i][j] = (vec){0};
    }
    /* One index for all rows and one for all columns: there are not registers for as many pointers that move. */
    const real *row[DOT_ROWS], *column[DOT_COLUMNS];
    UNROLL(8)
    for (int i = 0; i < row_count; i++)
        row[i] = a + i * a_i;
    UNROLL(3)
    for (int j = 0; j < column_count; j++)
        column[j] = b[j];
    int64_t whole = count / LANES * LANES;
    ivec lane;
    UNROLL(16)
    for (int i = 0; i < (int)(VEC_BYTES / sizeof(real)); i++)
        lane[i] = i;
    ivec inside = lane < (int_of_real)(count - whole);
    for (int64_t h = 0; h < rows; h++) {
        int64_t at = h * a_row, from = h * b_row, end = at + whole;
        for (; at < end; at += LANES, from += LANES) {
            vec x[DOT_COLUMNS];
            UNROLL(3)
            for (int j = 0; j < column_count; j++) {
                x[j] = FN(load)(column[j] + from);
                IN_REGISTER(x[j]);
            }
            UNROLL(8)
            for (int i = 0; i < row_count; i++) {
                vec y = FN(load)(row[i] + at);
                IN_REGISTER(y);
                UNROLL(3)
                for (int j = 0; j < column_count; j++)
                    sum[i][j] = FN(fma)(y, x[j], sum[i][j]);
            }
        }
        if (whole < count) {
            vec x[DOT_COLUMNS];
            UNROLL(3)
            for (int j = 0; j < column_count; j++)
                x[j] = (vec)((ivec)FN(load)(column[j] + from) & inside);
            UNROLL(8)
            for (int i = 0; i < row_count; i++) {
                vec y = FN(load)(row[i] + at);
                IN_REGISTER(y);
                UNROLL(3)
                for (int j = 0; j < column_count; j++)
                    sum[i][j] = FN(fma)(y, x[j], sum[i][j]);
            }
        }
    }
    UNROLL(8)
    for (int i = 0; i < row_count; i++) {
        UNROLL(3)
        for (int j = 0; j < column_count; j++) {
            real *to = c + i * c_i + c_j[j];
            FN(store)(to, FN(load)(to) + sum[i][j]);
        }
    }
}

#define DOTS(R, C)                                                                                                     \
    static NOINLINE void FN(dots_##R##x##C)(int64_t rows, int64_t count, const real *a, int64_t a_i, int64_t a_row,    \
                                            const real *const *b, int64_t b_row, real *c, int64_t c_i,                 \
                                            const int64_t *c_j)                                                        \
    {                                                                                                                  \
        FN(dots_body)(R, C, rows, count, a, a_i, a_row, b, b_row, c, c_i, c_j);                                        \
    }
#define DOTS_OF(R) DOTS(R, 1) DOTS(R, 2) DOTS(R, 3)
#define DOTS_ROW(R) {FN(dots_##R##x1), FN(dots_##R##x2), FN(dots_##R##x3)}

typedef void (*FN(dots_fn))(int64_t, int64_t, const real *, int64_t, int64_t, const real *const *, int64_t, real *, int64_t,
                            const int64_t *);

DOTS_OF(1) DOTS_OF(2) DOTS_OF(3) DOTS_OF(4)
#if MANY_REGISTERS
DOTS_OF(5) DOTS_OF(6) DOTS_OF(7) DOTS_OF(8)
#endif

static const FN(dots_fn) FN(dot_tiles)[DOT_ROWS][DOT_COLUMNS] = {
    DOTS_ROW(1), DOTS_ROW(2), DOTS_ROW(3), DOTS_ROW(4),
#if MANY_REGISTERS
    DOTS_ROW(5), DOTS_ROW(6), DOTS_ROW(7), DOTS_ROW(8),
#endif
};
#undef DOTS
#undef DOTS_OF
#undef DOTS_ROW

/* As dots_body, in pieces whose sums from zero have at most so many terms. */
static void FN(dots)(int64_t row_count, int64_t column_count, int64_t rows, int64_t count, const real *a, int64_t a_i, int64_t a_row,
                     const real *const *b, int64_t b_row, real *c, int64_t c_i, const int64_t *c_j)
{
    int64_t width = MAX_K_BLOCK * LANES, vectors = (count + LANES - 1) / LANES;
    int64_t height = vectors < MAX_K_BLOCK ? MAX_K_BLOCK / vectors : 1;
    for (int64_t w = 0; w < count; w += width)
        for (int64_t h = 0; h < rows; h += height) {
            const real *at[DOT_COLUMNS];
            for (int64_t j = 0; j < column_count; j++)
                at[j] = b[j] + h * b_row + w;
            FN(dot_tiles)[row_count - 1][column_count - 1](rows - h < height ? rows - h : height, count - w < width ? count - w : width,
                                                           a + h * a_row + w, a_i, a_row, at, b_row, c, c_i, c_j);
        }
}

/* A band of the output's gradient of one group, in rows of whole vectors: rows and planes lie h, d and o elements apart. */
typedef struct {
    const real *at;
    int64_t h, d, o;
} FN(gradient);

INLINE FN(gradient) FN(gradient_rows)(const plane_grad_words *a, const real *gy, int64_t first_row, int64_t rows, real *to)
{
    if (a->gy_w == 1 && a->pitch == a->n_w)
        return (FN(gradient)){gy + first_row * a->gy_h, a->gy_h, a->gy_d, a->gy_channel};
    FN(gradient) copied = {to, a->pitch, rows * a->pitch, a->n_d * rows * a->pitch};
    for (int64_t o = 0; o < a->outputs; o++)
        for (int64_t d = 0; d < a->n_d; d++)
            for (int64_t h = 0; h < rows; h++, to += a->pitch) {
                const real *from = gy + o * a->gy_channel + d * a->gy_d + (first_row + h) * a->gy_h;
                FN(clear)(to + a->pitch - LANES, LANES);
                if (a->gy_w == 1)
                    FN(copy)(to, from, a->n_w);
                else
                    for (int64_t w = 0; w < a->n_w; w++)
                        to[w] = from[w * a->gy_w];
            }
    return copied;
}

/* Every pair of an output channel and a (channel, tap). */
static void FN(grad_of_pairs)(const plane_grad_words *a, const real *lines, FN(gradient) gy, int64_t rows, real *sums)
{
    const int64_t *x_offsets = (const int64_t *)a->x_offsets, *pair_places = (const int64_t *)a->places;
    int64_t parts = (a->outputs + DOT_ROWS - 1) / DOT_ROWS;
    int64_t weights = a->channels * a->kernel_taps;
    for (int64_t d = 0; d < a->n_d; d++)
        for (int64_t p = 0; p < parts; p++) {
            int64_t o = a->outputs * p / parts, some = a->outputs * (p + 1) / parts - o;
            for (int64_t k = 0; k < a->pairs; k += DOT_COLUMNS) {
                int64_t columns = a->pairs - k < DOT_COLUMNS ? a->pairs - k : DOT_COLUMNS, places[DOT_COLUMNS];
                const real *column[DOT_COLUMNS];
                for (int64_t j = 0; j < columns; j++) {
                    column[j] = lines + x_offsets[k + j] + d * a->line_d;
                    places[j] = pair_places[k + j] * LANES;
                }
                FN(dots)(some, columns, rows, a->n_w, gy.at + o * gy.o + d * gy.d, gy.o, gy.h, column, a->line_h,
                         sums + o * weights * LANES, weights * LANES, places);
            }
        }
}

static void FN(plane_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const plane_grad_words *a = (const plane_grad_words *)words;
    const int64_t *map_d = (const int64_t *)a->map_d, *map_h = (const int64_t *)a->map_h;
    int64_t weights = a->channels * a->kernel_taps;
    real *sums = (real *)(a->work + thread * a->work_stride);
    real *lines = sums + a->outputs * weights * LANES, *rows = lines + a->channels * a->line_channel + LANES;
    for (int64_t group = begin; group < end; group++) {
        FN(clear)(sums, a->outputs * weights * LANES);
        for (int64_t image = 0; image < a->images; image++) {
            const real *x = (const real *)a->x + image * a->x_image + group * a->channels * a->x_channel;
            const real *gy = (const real *)a->gy + image * a->gy_image + group * a->outputs * a->gy_channel;
            for (int64_t first = 0; first < a->n_h; first += a->band) {
                int64_t band = a->n_h - first < a->band ? a->n_h - first : a->band;
                int64_t heights = a->h_lines - first < a->band_lines ? a->h_lines - first : a->band_lines;
                FN(gradient) gradient = FN(gradient_rows)(a, gy, first, band, rows);
                for (int64_t c = 0; c < a->channels; c++)
                    for (int64_t d = 0; d < a->lines_d; d++)
                        for (int64_t p = 0; p < a->h_phases; p++)
                            for (int64_t h = 0; h < heights; h++) {
                                int64_t from_d = map_d[d], from_h = map_h[p * a->h_lines + first + h];
                                FN(fill_row)(lines + c * a->line_channel + d * a->line_d + (p * a->band_lines + h) * a->line_h,
                                             a->line_phase,
                                             from_d < 0 || from_h < 0 ? 0 : x + c * a->x_channel + from_d * a->x_d + from_h * a->x_h,
                                             a->x_w, a->w_phases, a->w_lines, (const int64_t *)a->map_w, (const int64_t *)a->runs);
                            }
                FN(grad_of_pairs)(a, lines, gradient, band, sums);
            }
        }
        FN(sum_lanes)(sums, a->outputs * weights, (real *)a->gw + group * a->outputs * weights);
    }
}

#undef DOT_ROWS
#undef DOT_COLUMNS
#undef IN_REGISTER

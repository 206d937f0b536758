/* Bias, activation and the way out. Results arrive in a small buffer, are finished there in whole vectors
 * (so that an element at a tail is rounded like any other) and are then only moved.
 * Every activation hands a NaN on.
 */

#if IS_FLOAT
#define EXP expf
#define ERF erff
#else
#define EXP exp
#define ERF erf
#endif

INLINE vec FN(activate_vec)(vec v, int64_t activation)
{
    vec zero = {0}, six = FN(splat)((real)6), t;
    switch (activation) {
    case RELU:
        return FN(select)(v < zero, zero, v);
    case RELU6:
        v = FN(select)(v < zero, zero, v);
        return FN(select)(v > six, six, v);
    case HARDSWISH:
        t = v + (real)3;
        t = FN(select)(t < zero, zero, t);
        t = FN(select)(t > six, six, t);
        return v * t / six;
    case SILU:
        for (int i = 0; i < LANES; i++)
            v[i] = v[i] / (1 + EXP(-v[i]));
        return v;
    case GELU:
        for (int i = 0; i < LANES; i++)
            v[i] = (real)0.5 * v[i] * (1 + ERF(v[i] * (real)0.70710678118654752440));
        return v;
    default:
        return v;
    }
}

/* count elements (rounded up to whole vectors) that share one bias. */
static void FN(finish_row)(real *c, int64_t count, real bias, int64_t activation)
{
    for (int64_t i = 0; i < count; i += LANES)
        FN(store)(c + i, FN(activate_vec)(FN(load)(c + i) + bias, activation));
}

/* count elements (rounded up to whole vectors), each with its own bias; bias may be null. */
static void FN(finish_lanes)(real *c, int64_t count, const real *bias, int64_t activation)
{
    for (int64_t i = 0; i < count; i += LANES) {
        vec v = FN(load)(c + i);
        if (bias)
            v += count - i >= LANES ? FN(load)(bias + i) : FN(load_part)(bias + i, count - i);
        FN(store)(c + i, FN(activate_vec)(v, activation));
    }
}

/* Where runs of consecutive results go: result at..at+count is written from y on, with step y_w. */
typedef struct {
    int64_t x, at, count, y;
} FN(run);

/* Write a buffer of rows (one a channel) by runs of pixels. */
static void FN(store_rows)(const real *c, int64_t c_row, int64_t rows, const FN(run) *runs, int64_t run_count, real *y,
                           int64_t y_channel, int64_t y_w)
{
    if (y_w == 1) {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t s = 0; s < run_count; s++)
                FN(copy)(y + r * y_channel + runs[s].y, c + r * c_row + runs[s].at, runs[s].count);
    } else if (y_channel == 1) {
        for (int64_t s = 0; s < run_count; s++)
            FN(transpose)(y + runs[s].y, y_w, c + runs[s].at, c_row, rows, runs[s].count);
    } else {
        for (int64_t r = 0; r < rows; r++)
            for (int64_t s = 0; s < run_count; s++) {
                real *to = y + r * y_channel + runs[s].y;
                const real *from = c + r * c_row + runs[s].at;
                for (int64_t i = 0; i < runs[s].count; i++)
                    to[i * y_w] = from[i];
            }
    }
}

#undef EXP
#undef ERF

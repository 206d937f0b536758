/* Bias, activation and the way out. Results arrive in a small buffer, are finished there in whole vectors
 * (so that an element at a tail is rounded like any other) and are then only moved.
 * Every activation hands a NaN on.
 */

/* 2^n e^r with |r| <= log(2)/2: the Taylor series to the last bit. Beyond the range of the type: 0 and inf, as libm. */
INLINE vec FN(exp_vec)(vec x)
{
#if IS_FLOAT
    enum { DEGREE = 7, MANTISSA = 23, BIAS = 127 };
    const real round = 12582912.0f, low = -105, high = 90; /* 1.5 * 2^23: adding it leaves n in the last bits */
    const real log2_high = 0.693359375f, log2_low = -2.12194440e-4f;
#else
    enum { DEGREE = 13, MANTISSA = 52, BIAS = 1023 };
    const real round = 6755399441055744.0, low = -746, high = 710; /* 1.5 * 2^52 */
    const real log2_high = 6.93145751953125e-1, log2_low = 1.42860682030941723212e-6;
#endif
    static const double factorials[] = {1,         1,          0.5,         1. / 6,       1. / 24,       1. / 120,       1. / 720,
                                        1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    x = FN(select)(x < low, FN(splat)(low), x);
    x = FN(select)(x > high, FN(splat)(high), x);
    vec shifted = FN(fma)(x, FN(splat)((real)1.44269504088896340736), FN(splat)(round)), n = shifted - round;
    vec r = FN(fma)(n, FN(splat)(-log2_low), FN(fma)(n, FN(splat)(-log2_high), x)), sum = FN(splat)((real)factorials[DEGREE]);
    UNROLL(13)
    for (int i = DEGREE - 1; i >= 0; i--)
        sum = FN(fma)(sum, r, FN(splat)((real)factorials[i]));
    /* In two steps, as 2^n alone may not exist. */
    ivec power = (ivec)shifted - (ivec)FN(splat)(round), half = power >> 1;
    return sum * (vec)((half + BIAS) << MANTISSA) * (vec)((power - half + BIAS) << MANTISSA);
}

INLINE vec FN(gelu_vec)(vec v)
{
#if IS_FLOAT
    /* erfc(z) for z >= 0 with a relative error of 1.2e-7: Press et al., Numerical Recipes, section 6.2. */
    static const float c[] = {-1.26551223f, 1.00002368f, 0.37409196f, 0.09678418f, -0.18628806f,
                              0.27886807f, -1.13520398f, 1.48851587f, -0.82215223f, 0.17087277f};
    vec z = FN(select)(v < 0, -v, v) * (real)0.70710678118654752440, t = 1 / (1 + z * (real)0.5), sum = FN(splat)(c[9]);
    UNROLL(9)
    for (int i = 8; i >= 0; i--)
        sum = FN(fma)(sum, t, FN(splat)(c[i]));
    vec tail = (real)0.5 * t * FN(exp_vec)(sum - z * z);
    return v * FN(select)(v < 0, tail, 1 - tail);
#else
    for (int i = 0; i < LANES; i++)
        v[i] = 0.5 * v[i] * erfc(v[i] * -0.70710678118654752440);
    return v;
#endif
}

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
        return v / (1 + FN(exp_vec)(-v));
    case GELU:
        return FN(gelu_vec)(v);
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
    if (y_w == 1 && rows <= TILE_ROWS && ISA_LEVEL == 2) {
#if ISA_LEVEL == 2
        /* As copies of runs, row by row, a layer of 72 products for each took 3 % longer. More rows are better written one
         * after the other: planes of 32 kB share sets of the cache. */
        for (int64_t s = 0; s < run_count; s++)
            for (int64_t i = 0; i < runs[s].count; i += LANES) {
                FN(lane_mask) mask = FN(lanes_between)(0, runs[s].count - i);
                for (int64_t r = 0; r < rows; r++)
                    FN(store_masked)(y + r * y_channel + runs[s].y + i, mask, FN(load)(c + r * c_row + runs[s].at + i));
            }
#endif
    } else if (y_w == 1) {
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

/* Ask for the lines that rows will be written to, while their sums are made: these lie in so many planes that the processor
 * foresees none (2 x 64 x 112x112, 1x1 taps: 4.2 and not 5.8 ms with AVX2). Where seven products or lanes of channels leave, it
 * made no difference. */
INLINE void FN(expect_rows)(int64_t rows, const FN(run) *runs, int64_t run_count, const real *y, int64_t y_channel, int64_t y_w)
{
    int64_t line = CACHE_LINE / (int64_t)sizeof(real), step = y_w < line ? line / y_w : 1;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < run_count; s++) {
            const real *to = y + r * y_channel + runs[s].y;
            for (int64_t i = 0; i < runs[s].count; i += step)
                __builtin_prefetch(to + i * y_w, 1, 2);
            __builtin_prefetch(to + (runs[s].count - 1) * y_w, 1, 2);
        }
}

/* The way out of [pixel][channel] results: finished in place, then copied, or turned where channels come first. */
static void FN(leave_lanes)(real *c, int64_t width, int64_t pixels, int64_t channels, const FN(run) *runs, int64_t run_count,
                            const real *bias, int64_t activation, real *turned, int64_t turned_row, real *y, int64_t y_channel,
                            int64_t y_w)
{
    if (bias || activation)
        for (int64_t p = 0; p < pixels; p++)
            FN(finish_lanes)(c + p * width, channels, bias, activation);
    if (y_channel == 1) {
        for (int64_t s = 0; s < run_count; s++)
            for (int64_t i = 0; i < runs[s].count; i++)
                FN(copy)(y + runs[s].y + i * y_w, c + (runs[s].at + i) * width, channels);
    } else {
        FN(transpose)(turned, turned_row, c, width, pixels, channels);
        FN(store_rows)(turned, turned_row, channels, runs, run_count, y, y_channel, y_w);
    }
}

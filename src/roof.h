/* What a core can do at best: multiply-adds in registers, and reading an array.
 *
 * Included once for each instruction set and type, like the engines it judges. Both return something computed from
 * everything they did, so that the compiler cannot leave any of it out.
 */

/* Accumulators that hide the latency of an addition behind a multiplication, and still fit the registers. */
#if MANY_REGISTERS
#define CHAINS 24
#else
#define CHAINS 12
#endif

/* `count` operations. x = x * a + b has no part that could be moved out of the loop, and keeps to normal numbers: it
 * tends to b / (1 - a). */
static NOINLINE double FN(peak)(const void *data, int64_t bytes, int64_t count)
{
    const real *p = data;
    vec a = FN(splat)(p[0] + (real)0.5), b = FN(splat)(p[1] + (real)0.5), sum[CHAINS];
    UNROLL(24)
    for (int i = 0; i < CHAINS; i++)
        sum[i] = FN(splat)((real)i);
    for (int64_t done = 0; done < count; done += 2 * CHAINS * LANES) {
        UNROLL(24)
        for (int i = 0; i < CHAINS; i++)
            sum[i] = FN(fma)(sum[i], a, b);
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] += sum[i];
    (void)bytes;
    return sum[0][0];
}

#define READS 8

/* `count` passes over the array, whose size is a multiple of READS vectors of any width: 512 bytes. */
static NOINLINE double FN(read)(const void *data, int64_t bytes, int64_t count)
{
    vec sum[READS];
    UNROLL(8)
    for (int i = 0; i < READS; i++)
        sum[i] = (vec){0};
    for (int64_t pass = 0; pass < count; pass++)
        for (const real *p = data, *end = p + bytes / sizeof(real); p < end; p += READS * LANES) {
            UNROLL(8)
            for (int i = 0; i < READS; i++)
                sum[i] += FN(load)(p + i * LANES);
        }
    for (int i = 1; i < READS; i++)
        sum[0] += sum[i];
    return sum[0][0];
}

#undef CHAINS
#undef READS

static const limit_fn FN(limits)[] = {FN(peak), FN(read)};

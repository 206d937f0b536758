/* Every engine, once for each instruction set, and the choice between them at run time. */
#ifndef FASTCONV_NATIVE_H
#define FASTCONV_NATIVE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "program.h"
#include "relax.h"
#include "turns.h"

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(n) PRAGMA(clang loop unroll(full))
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif
#define SHUFFLE(...) __builtin_shufflevector(__VA_ARGS__)

/* Four short vectors as the rows of a matrix: afterwards they are its columns. */
#define TRANSPOSE_QUADS(quad, a, b, c, d)                                                                              \
    do {                                                                                                               \
        quad ab0 = SHUFFLE(a, b, 0, 4, 1, 5), ab1 = SHUFFLE(a, b, 2, 6, 3, 7);                                         \
        quad cd0 = SHUFFLE(c, d, 0, 4, 1, 5), cd1 = SHUFFLE(c, d, 2, 6, 3, 7);                                         \
        a = SHUFFLE(ab0, cd0, 0, 1, 4, 5);                                                                             \
        b = SHUFFLE(ab0, cd0, 2, 3, 6, 7);                                                                             \
        c = SHUFFLE(ab1, cd1, 0, 1, 4, 5);                                                                             \
        d = SHUFFLE(ab1, cd1, 2, 3, 6, 7);                                                                             \
    } while (0)

#define CACHE_LINE 64
#define BEYOND_CACHE (1 << 20) /* weights that no L2 holds */
#define MAX_K_BLOCK 256
#define MAX_PIXEL_BLOCK 256

/* Depthwise tiles: rows (or pixels) of one, and taps of a column. */
#define COLUMN_ROWS 8
#define MAX_COLUMN_TAPS 5

/* Winograd's outputs that leave together stay in L1; the most tiles of a task; and bytes of a block of output channels. */
#define LEAVING_PIXELS 128
#define MAX_WINOGRAD_TILES 192
#define WINOGRAD_WIDTH 256

/* Pixels of each half of a tile whose samples are in L1 together. */
#define PAIRED_PIXELS 8
#define MOST_PIXELS_LEFT 2 /* beyond whole vectors */

/* Vectors of channels that DCN sums at once. */
#define DCN_VECTORS 4

#define ENGINE_NAMES                                                                                                   \
    "halo_planes halo_pixels pack dense_rows dense_lanes dense_seven winograd_weights winograd_inputs winograd " \
    "depthwise_planes depthwise_pixels settle strassen_weights deform dcn weight_grad winograd_grad_tiles "             \
    "winograd_grad plane_grad depthwise_plane_grad depthwise_pixel_grad deform_grad dcn_grad"

/* Does something so many times; the result is there to be used. */
typedef double (*limit_fn)(const void *data, int64_t bytes, int64_t count);

/* The register tile is TILE_ROWS x TILE_VECTORS with pixels in the vectors, LANE_ROWS x LANE_VECTORS with channels. */
typedef struct {
    const char *name;
    int64_t vec_bytes, tile_rows, tile_vectors, lane_rows, lane_vectors;
    const engine_fn *engines[2];
    const limit_fn *limits[2];
} isa_table;

#define ISA baseline
#define ISA_LEVEL 0
#define VEC_BYTES 16
#if defined(__aarch64__)
#define MANY_REGISTERS 1
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define LANE_ROWS 6
#define LANE_VECTORS 4
#else
#define MANY_REGISTERS 0
#define TILE_ROWS 4
#define TILE_VECTORS 3
#define LANE_ROWS 6
#define LANE_VECTORS 2
#endif
#include "isa.h"

#if defined(__x86_64__)

/* Features are listed one by one: clang silently makes slow code of target("arch=x86-64-v4"). */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt")
#endif
#define ISA avx2
#define ISA_LEVEL 1
#define VEC_BYTES 32
#define MANY_REGISTERS 0
#define TILE_ROWS 4
#define TILE_VECTORS 3
#define LANE_ROWS 6
#define LANE_VECTORS 2
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define ISA avx512
#define HALF avx2
#define ISA_LEVEL 2
#define VEC_BYTES 64
#define MANY_REGISTERS 1
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define LANE_ROWS 6
#define LANE_VECTORS 4
#include "isa.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const isa_table *const isa_tables[] = {&table_all_baseline, &table_all_avx2, &table_all_avx512};

static int isa_level(void)
{
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
               __builtin_cpu_supports("bmi2");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? 2 : avx2;
}

#else

static const isa_table *const isa_tables[] = {&table_all_baseline};

static int isa_level(void) { return 0; }

#endif

#include "join.h"
#include "parallel.h"

#endif

/* All engines for one instruction set, in both types. */
#define IS_FLOAT 1
#include "engines.h"
#define IS_FLOAT 0
#include "engines.h"

static const isa_table JOIN(table, all, ISA) = {
    STRING(ISA), VEC_BYTES, TILE_ROWS, TILE_VECTORS, LANE_ROWS, LANE_VECTORS, {JOIN(engines, f32, ISA), JOIN(engines, f64, ISA)},
    {JOIN(limits, f32, ISA), JOIN(limits, f64, ISA)}};

#undef ISA
#undef ISA_LEVEL
#undef VEC_BYTES
#undef HALF
#undef MANY_REGISTERS
#undef TILE_ROWS
#undef TILE_VECTORS
#undef LANE_ROWS
#undef LANE_VECTORS

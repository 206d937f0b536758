"""THE register tile, the one matrix kernel behind every dense product:

    c[r][j] (+)= sum_k rows[r][a_offsets[k]] * b[b_offsets[k] + j],   j < vectors * LANES

Rows are broadcast, columns are vectors, and both are found through tables, so that strides, dilations,
phases, packed and unpacked weights, stitched panels and images read in place are all the same code. Each call
sums from zero and then stores or adds: the error grows with the K block and not with K, and the result does
not depend on where a tile lies. Each shape is a function of its own, emitted fully unrolled.
"""

import platform
from collections.abc import Callable
from typing import Any

from numba import types

from .simd import (
    INTEGERS,
    WORD,
    bytes_of,
    emit_at,
    emit_fma,
    emit_get,
    emit_loads,
    emit_loop,
    emit_out_of_line,
    emit_splat,
    emit_switch,
    emit_totals,
    ll_reals,
    ll_vector,
    verb,
    void,
    word,
    zeros,
)

# What the engines have room for in their frames, and the lowering keeps to.
MAX_K_BLOCK = 256
MAX_PIXEL_BLOCK = 256
MAX_TILE_ROWS = 8
MAX_TILE_WIDTH = 64


def many_registers(vector_bytes: int) -> bool:
    """Whether there are 32 vector registers of this width and not 16."""
    return vector_bytes == 64 or platform.machine() in ("aarch64", "arm64")


def tile_shapes(vector_bytes: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (rows, vectors) of the full tile with pixels in the vectors, and with channels in the vectors.

    24 accumulators fit 32 registers and 12 fit 16, beside the columns and a broadcast.
    """
    return ((8, 3), (6, 4)) if many_registers(vector_bytes) else ((4, 3), (6, 2))


def shapes_for(kind: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return tile_shapes(kind.lanes * bytes_of(kind.element))


@verb
def tile_rows(like):
    return word(like), lambda builder, _: WORD(shapes_for(like)[0][0])


@verb
def tile_vectors(like):
    return word(like), lambda builder, _: WORD(shapes_for(like)[0][1])


@verb
def lane_rows(like):
    return word(like), lambda builder, _: WORD(shapes_for(like)[1][0])


@verb
def lane_vectors(like):
    return word(like), lambda builder, _: WORD(shapes_for(like)[1][1])


def emit_tile(kind: Any, row_count: int, vector_count: int) -> Callable:
    """Return what emits the body of a tile of one shape."""

    def emit(builder, count, rows, a_offsets, b, b_offsets, c, c_row, add):
        row = [builder.inttoptr(emit_get(builder, rows, r), ll_reals(kind)) for r in range(row_count)]

        def step(k, sums):
            a_k, b_k = emit_get(builder, a_offsets, k), emit_get(builder, b_offsets, k)
            columns = emit_loads(builder, kind, emit_at(builder, b, b_k), vector_count)
            updated = []
            for r in range(row_count):
                a = emit_splat(builder, ll_vector(kind), emit_get(builder, row[r], a_k))
                row_sums = sums[r * vector_count : (r + 1) * vector_count]
                updated += [emit_fma(builder, a, b, c) for b, c in zip(columns, row_sums, strict=True)]
            return updated

        totals = emit_loop(builder, count, zeros(kind, row_count * vector_count), step)
        c_rows = [emit_at(builder, c, builder.mul(c_row, WORD(r))) for r in range(row_count)]
        places = [emit_at(builder, at, v * kind.lanes) for at in c_rows for v in range(vector_count)]
        emit_totals(builder, kind, totals, places, add)

    return emit


def tile_verb(family: int) -> Callable:
    """Return the verb for one family of shapes: 0 with pixels, 1 with channels in the vectors.

    Engines have no more shapes compiled than they can meet; where the number of vectors is written out, those.
    """

    def tile(rows, vectors, count, row, a_offsets, b, b_offsets, c, c_row, add):
        most_rows, most_vectors = shapes_for(b)[family]
        widths = [vectors.literal_value] if isinstance(vectors, types.Literal) else range(1, most_vectors + 1)

        def emit(builder, rows, vectors, *args):
            def case(r, v):
                name = f"fastconv_tile_{r}x{v}_{b.element}x{b.lanes}"
                return lambda: emit_out_of_line(builder, name, args, emit_tile(b, r, v))

            number = builder.add(builder.mul(rows, WORD(8)), vectors)
            shapes = [(r, v) for r in range(1, most_rows + 1) for v in widths]
            emit_switch(builder, number, {8 * r + v: case(r, v) for r, v in shapes})

        return void(word, vectors, word, INTEGERS, INTEGERS, b, INTEGERS, b, word, word), emit

    return verb(tile)


# Multiply a tile of rows x vectors; `row` holds the addresses of the rows of a.
pixel_tile, lane_tile = tile_verb(0), tile_verb(1)

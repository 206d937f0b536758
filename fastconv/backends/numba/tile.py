"""THE register tile, the one matrix kernel behind every dense product:

    c[r][j] (+)= sum_k rows[r][a_offsets[k]] * b[b_offsets[k] + j],   j < vectors * LANES

Rows are broadcast, columns are vectors, and both are found through tables, so that strides, dilations,
phases, packed and unpacked weights, stitched panels and images read in place are all the same code. Each call
sums from zero and then stores or adds: the error grows with the K block and not with K, and the result does
not depend on where a tile lies. Each shape is a function of its own, emitted fully unrolled.
"""

from collections.abc import Callable
from typing import Any

from .shapes import tile_shapes
from .simd import (
    INTEGER_POINTER,
    INTEGERS,
    WORD,
    bytes_of,
    emit_at,
    emit_call_entry,
    emit_fma,
    emit_function,
    emit_get,
    emit_loads,
    emit_loop,
    emit_splat,
    emit_table,
    emit_totals,
    ir,
    ll_reals,
    ll_vector,
    reals_of,
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

# Tiles are numbered rows * ROW_OF_TABLE + vectors.
ROW_OF_TABLE = 8


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


def tile_type(kind: Any) -> ir.FunctionType:
    reals = ll_reals(kind)
    args = [WORD, INTEGER_POINTER, INTEGER_POINTER, reals, INTEGER_POINTER, reals, WORD, WORD]
    return ir.FunctionType(ir.VoidType(), args)


def emit_tiles(builder: Any, like: Any, family: int) -> Any:
    most_rows, most_vectors = shapes_for(like)[family]
    kind = reals_of(like)

    def shape(r, v):
        return emit_function(
            builder,
            f"fastconv_tile_{r}x{v}_{kind.element}x{kind.lanes}",
            tile_type(kind),
            emit_tile(kind, r, v),
        )

    functions = {
        ROW_OF_TABLE * r + v: shape(r, v) for r in range(1, most_rows + 1) for v in range(1, most_vectors + 1)
    }
    return emit_table(builder, f"fastconv_tiles_{family}", functions)


@verb
def pixel_tiles(like):
    """The tiles with pixels in the vectors, up to tile_rows x tile_vectors."""
    return INTEGERS(like), lambda builder, _: emit_tiles(builder, like, 0)


@verb
def lane_tiles(like):
    """The tiles with channels in the vectors, up to lane_rows x lane_vectors."""
    return INTEGERS(like), lambda builder, _: emit_tiles(builder, like, 1)


@verb
def tile(tiles, rows, vectors, count, row, a_offsets, b, b_offsets, c, c_row, add):
    """Multiply a tile of rows x vectors; `row` holds the addresses of the rows of a."""

    def emit(builder, tiles, rows, vectors, *args):
        number = builder.add(builder.mul(rows, WORD(ROW_OF_TABLE)), vectors)
        emit_call_entry(builder, tiles, number, tile_type(b), args)

    return void(INTEGERS, word, word, word, INTEGERS, INTEGERS, b, INTEGERS, b, word, word), emit

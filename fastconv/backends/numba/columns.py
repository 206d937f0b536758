"""The register tile of one input channel: output rows (or pixels) x vectors, summed over columns of taps.

A column is a run of taps that lie one row of the tile apart, so a vector of the image is loaded once for all the
rows of the tile that read it: 8 rows of a 3x3 kernel take 10 loads for 24 products. Strides, dilations and phases
only change which taps make a column (``fastconv.lowering.columns``). Each K block is summed from zero, and the
order does not depend on where a tile lies.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ...lowering.program import WORDS
from .epilogue import CACHE_LINE, RELU6
from .simd import (
    INTEGER_POINTER,
    INTEGERS,
    MASKED_BYTES,
    WORD,
    Pointer,
    bytes_of,
    emit_at,
    emit_call_entry,
    emit_first,
    emit_fma,
    emit_function,
    emit_get,
    emit_load,
    emit_loop,
    emit_mask,
    emit_masked_load,
    emit_prefetch,
    emit_shuffle,
    emit_splat,
    emit_store,
    emit_store_parts,
    emit_table,
    ir,
    ll_element,
    ll_reals,
    ll_vector,
    reals_of,
    verb,
    void,
    word,
    zeros,
)

MAX_ROWS, MAX_TAPS = 8, 5
# Vectors of a tile (their logarithm) by its rows, and what stands there for half a vector, for one of every second pixel, and
# for one of each of two phases of the output, with the rows of such tiles: as in the lowering.
MOST_VECTORS = (0, 3, 2, 1, 1, 0, 0, 0, 0)
HALF, HALVED_BYTES = 4, 64
SECOND, PAIRED = 5, 6
SECOND_ROWS, PAIRED_ROWS = (1, 2, 4, 7), (1, 2, 4)
MAX_COLUMNS = 3
# Vectors so short have no masks.
UNMASKED_BYTES = 16
COLUMN_WORDS = len(WORDS["plane_column"])
# Tiles are numbered rows * ROW_OF_TABLE + size.
ROW_OF_TABLE = 8


def half_of(kind: Any) -> Pointer | None:
    """Vectors of half the width, where vectors are so wide that there are tiles of them."""
    return (
        Pointer(kind.element, kind.lanes // 2)
        if kind.lanes * bytes_of(kind.element) == HALVED_BYTES
        else None
    )


@verb
def halves(like):
    """Whether there are tiles of half a vector."""
    return word(like), lambda builder, _: WORD(int(half_of(like) is not None))


def emit_groups(builder: Any, group: Any, sums: list, kinds: int, add: Callable) -> tuple[Any, list]:
    """Emit ``while group[0]: group, sums = add(kind, group, sums)`` with code of its own for each kind."""
    before, function = builder.block, builder.function
    head, after = function.append_basic_block("group"), function.append_basic_block("summed")
    builder.branch(head)
    builder.position_at_end(head)
    at, carried = builder.phi(INTEGER_POINTER), [builder.phi(value.type) for value in sums]
    jump = builder.switch(emit_get(builder, at, 0), after)
    arrivals = [(group, sums, before)]
    for kind in range(1, kinds + 1):
        block = function.append_basic_block(f"kind_{kind}")
        jump.add_case(WORD(kind), block)
        builder.position_at_end(block)
        following, updated = add(kind, at, carried)
        builder.branch(head)
        arrivals.append((following, updated, builder.block))
    for place, values, block in arrivals:
        at.add_incoming(place, block)
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, block)
    builder.position_at_end(after)
    return at, carried


def emit_when(builder: Any, condition: Any, values: list, change: Callable) -> list:
    """Emit ``change(values) if condition else values``."""
    before = builder.block
    with builder.if_then(builder.icmp_signed("!=", condition, WORD(0))):
        changed = change(values)
        inside = builder.block
    found = []
    for old, new in zip(values, changed, strict=True):
        phi = builder.phi(old.type)
        phi.add_incoming(old, before)
        phi.add_incoming(new, inside)
        found.append(phi)
    return found


def emit_either(builder: Any, condition: Any, one: Callable, other: Callable) -> list:
    """Emit ``one() if condition else other()``, lists of values."""
    ends = []
    with builder.if_else(condition) as branches:
        for branch, make in zip(branches, (one, other), strict=True):
            with branch:
                ends.append((make(), builder.block))
    found = []
    for values in zip(*(values for values, _ in ends), strict=True):
        phi = builder.phi(values[0].type)
        for value, (_, block) in zip(values, ends, strict=True):
            phi.add_incoming(value, block)
        found.append(phi)
    return found


def emit_products(builder: Any, rows: int, weights: list, values: list, sums: list, stride: int = 1) -> list:
    """Add weight j times value stride * r + j to row r; values and sums are lists of one vector a row."""
    sums = list(sums)
    for i, value in enumerate(values):
        for j, weight in enumerate(weights):
            r, between = divmod(i - j, stride)
            if 0 <= r < rows and between == 0:
                sums[r] = emit_fma(builder, weight, value, sums[r])
    return sums


def emit_clamp(builder: Any, kind: Any, activation: Any, values: list) -> list:
    """RELU or RELU6; a NaN stays."""
    element = ll_element(kind.element)
    six = builder.icmp_signed("==", activation, WORD(RELU6))
    most = builder.select(six, ir.Constant(element, 6.0), ir.Constant(element, float("inf")))
    most = emit_splat(builder, ll_vector(kind), most)
    (zero,) = zeros(kind, 1)
    positive = [builder.select(builder.fcmp_ordered("<", v, zero), zero, v) for v in values]
    return [builder.select(builder.fcmp_ordered(">", v, most), most, v) for v in positive]


def emit_lines(
    builder: Any, kind: Any, x: Any, stride: int, columns: int, vectors: int, masks: list | None
) -> list:
    """Load the vectors of a line: those side by side, or of every second pixel those of columns beside each other."""

    def load(n: int) -> Any:
        place = emit_at(builder, x, n * kind.lanes)
        mask = masks[n] if masks else None
        return emit_masked_load(builder, kind, place, mask) if mask else emit_load(builder, kind, place)

    if stride == 1:
        return [load(v) for v in range(vectors)]
    a, b = load(0), load(1)
    found = [
        emit_shuffle(builder, a, b, list(range(odd, 2 * kind.lanes, 2))) for odd in range(min(columns, 2))
    ]
    if columns == MAX_COLUMNS:
        found.append(emit_shuffle(builder, found[0], load(2), list(range(1, kind.lanes + 1))))
    return found


def emit_mask_if(builder: Any, kind: Any, condition: Any, mask: Any) -> Any:
    """The mask if the condition holds, else none of its lanes."""
    bits = bytes_of(kind.element) * 8
    if kind.lanes * bits == MASKED_BYTES * 8:
        return builder.select(condition, mask, ir.Constant(mask.type, None))
    # Masks of AVX2 are whole vectors: as bits, each was made into one anew.
    whole = ir.VectorType(ir.IntType(bits), kind.lanes)
    allowed = emit_splat(builder, whole, builder.sext(condition, ir.IntType(bits)))
    return builder.icmp_signed(
        "<", builder.and_(builder.sext(mask, whole), allowed), ir.Constant(whole, None)
    )


def emit_columns(kind: Any, rows: int, vectors: int, stride: int = 1, phases: int = 1) -> Callable:
    """Return what emits the sums of a tile of one shape.

    It may be of every second pixel (stride 2), or have a vector of each of two phases of the output.
    """
    kinds = MAX_TAPS * (MAX_COLUMNS if stride > 1 else phases)
    bytes = kind.lanes * bytes_of(kind.element)
    masked = bytes > UNMASKED_BYTES

    def emit(builder, group, x, x_row, w, w_step, y, y_row, part, total, adding, bias, activation, state):
        def add(number, group, sums):
            more, taps = divmod(number - 1, MAX_TAPS)
            taps += 1
            columns, phase = (more + 1, 0) if stride > 1 else (1, more)
            side_by_side = vectors if phases == 1 else 1

            def step(k, sums):
                column = emit_at(builder, group, builder.add(builder.mul(k, WORD(COLUMN_WORDS)), WORD(2)))
                x_k = emit_at(builder, x, emit_get(builder, column, 0))
                w_k = emit_at(builder, w, emit_get(builder, column, 1))
                inside = emit_get(builder, column, 2)
                lanes = [emit_mask(builder, kind, column, 3 + n) for n in range(3)]
                if side_by_side > 1:
                    lanes = [ir.Constant(lanes[0].type, [1] * kind.lanes)] * side_by_side
                weights: list[list] = [[] for _ in range(columns)]
                for _ in range(taps):
                    for n, those in enumerate(weights):
                        those.append(emit_splat(builder, ll_vector(kind), emit_get(builder, w_k, n)))
                    w_k = emit_at(builder, w_k, w_step)
                count = stride * (rows - 1) + taps

                def add_lines(whole: bool) -> list:
                    """Load all vectors of all lines; the last of a third column may end too early, whatever the others do."""
                    place, lines = x_k, []
                    for i in range(count):
                        masks = [None, None, lanes[-1]] if masked and stride > 1 else None
                        if not whole:
                            bit = builder.trunc(builder.lshr(inside, WORD(i)), ir.IntType(1))
                            masks = [emit_mask_if(builder, kind, bit, mask) for mask in lanes]
                        lines.append(emit_lines(builder, kind, place, stride, columns, side_by_side, masks))
                        place = emit_at(builder, place, x_row)
                    updated = list(sums)
                    for v in range(side_by_side):
                        those = slice(phase + v, None, vectors)
                        for n, several in enumerate(weights):
                            values = [line[v if stride == 1 else n] for line in lines]
                            updated[those] = emit_products(
                                builder, rows, several, values, updated[those], stride
                            )
                    return updated

                # With AVX-512 masks cost nothing; with AVX2 they took three times as long (91 x 75x101, 3x3).
                if not masked or bytes == MASKED_BYTES:
                    return add_lines(whole=not masked)
                every = builder.icmp_signed("==", inside, WORD((1 << count) - 1))
                for which in range(3, 5 if stride > 1 else 4) if side_by_side == 1 else ():
                    full = builder.icmp_signed(
                        "==", emit_get(builder, column, which), WORD((1 << kind.lanes) - 1)
                    )
                    every = builder.and_(every, full)
                return emit_either(builder, every, lambda: add_lines(True), lambda: add_lines(False))

            count = emit_get(builder, group, 1)
            end = emit_at(builder, group, builder.add(builder.mul(count, WORD(COLUMN_WORDS)), WORD(2)))
            return end, emit_loop(builder, count, sums, step)

        end, sums = emit_groups(builder, group, zeros(kind, rows * vectors), kinds, add)
        builder.store(builder.ptrtoint(emit_at(builder, end, 1), WORD), state)

        def add_totals(sums):
            before = [emit_load(builder, kind, total, n * kind.lanes) for n in range(rows * vectors)]
            if phases > 1:
                before = emit_turns(builder, kind, before, apart=True)
            return [builder.fadd(old, new) for old, new in zip(before, sums, strict=True)]

        sums = emit_when(builder, adding, sums, add_totals)
        shift = emit_splat(builder, ll_vector(kind), bias)
        sums = [builder.fadd(value, shift) for value in sums]
        sums = emit_when(builder, activation, sums, lambda sums: emit_clamp(builder, kind, activation, sums))
        if phases > 1:
            sums = emit_turns(builder, kind, sums, apart=False)
        places = [emit_at(builder, y, builder.mul(y_row, WORD(r))) for r in range(rows)]
        emit_rows(builder, kind, places, sums, vectors, part, phases > 1)

    return emit


def emit_turns(builder: Any, kind: Any, pairs: list, *, apart: bool) -> list:
    """Of each pair of vectors, which lie one after the other, the lanes by turns, or what had been so apart."""
    size, found = kind.lanes, []
    for a, b in zip(pairs[::2], pairs[1::2], strict=True):
        for side in (0, 1):
            turns = [side * size // 2 + i // 2 + i % 2 * size for i in range(size)]
            found.append(emit_shuffle(builder, a, b, list(range(side, 2 * size, 2)) if apart else turns))
    return found


def emit_rows(
    builder: Any, kind: Any, places: list, sums: list, vectors: int, part: Any, paired: bool = False
) -> None:
    """Store the rows of a tile, or the first `part` elements of each, if it has one vector, or two that are paired."""

    def whole():
        for n, value in enumerate(sums):
            emit_store(builder, kind, emit_at(builder, places[n // vectors], n % vectors * kind.lanes), value)

    if vectors > 1 and not paired:
        whole()
        return
    with builder.if_else(builder.icmp_signed("==", part, WORD(0))) as (all_of_them, some):
        with all_of_them:
            whole()
        with some:
            for v in range(vectors):
                left = builder.sub(part, WORD(v * kind.lanes))
                none = builder.icmp_signed("<", left, WORD(0))
                to = [emit_at(builder, place, v * kind.lanes) for place in places]
                emit_store_parts(builder, kind, to, sums[v::vectors], builder.select(none, WORD(0), left))


def columns_type(like: Any) -> ir.FunctionType:
    reals = ll_reals(like)
    places = [INTEGER_POINTER, reals, WORD, reals, WORD, reals, WORD, WORD, reals, WORD]
    return ir.FunctionType(ir.VoidType(), [*places, ll_element(like.element), WORD, INTEGER_POINTER])


def emit_shapes(builder: Any, name: str, kind: ir.FunctionType, cases: dict) -> Any:
    """Return the table of what `cases` emit, by (rows, size); each has (vectors of a tile, emit)."""
    functions = {
        ROW_OF_TABLE * r + s: emit_function(builder, f"{name}_{r}_{s}_{of.element}x{of.lanes}", kind, emit)
        for (r, s), (of, emit) in cases.items()
    }
    return emit_table(builder, name, functions)


@verb
def column_tiles(like):
    """The tiles of rows x 2^size vectors, and of half a vector where there are such."""
    kind, half = reals_of(like), half_of(like)
    cases = {
        (r, s): (kind, emit_columns(kind, r, 1 << s))
        for r in range(1, MAX_ROWS + 1)
        for s in range(MOST_VECTORS[r] + 1)
    }
    cases |= {(r, PAIRED): (kind, emit_columns(kind, r, 2, phases=2)) for r in PAIRED_ROWS}
    if half:
        cases |= {(r, HALF): (half, emit_columns(half, r, 1)) for r in range(1, MAX_ROWS + 1)}
        cases |= {(r, SECOND): (kind, emit_columns(kind, r, 1, stride=2)) for r in SECOND_ROWS}
    name = "fastconv_columns"
    return INTEGERS(like), lambda builder, _: emit_shapes(builder, name, columns_type(like), cases)


def emit_shape(builder: Any, tiles: Any, rows: Any, size: Any, kind: ir.FunctionType, args: Sequence) -> None:
    number = builder.add(builder.mul(rows, WORD(ROW_OF_TABLE)), size)
    emit_call_entry(builder, tiles, number, kind, args)


@verb
def columns(
    tiles, rows, size, group, x, x_row, w, w_step, y, y_row, part, total, adding, bias, activation, state
):
    """Sum one K block of a tile of rows x 2^size vectors, and put into state[0] where the next block begins."""

    def emit(builder, tiles, rows, size, *args):
        emit_shape(builder, tiles, rows, size, columns_type(x), args)

    places = (INTEGERS, x, word, w, word, y, word, word, total, word)
    return void(INTEGERS, word, word, *places, x.element, word, INTEGERS), emit


def emit_shares(builder: Any, kind: Any, k: Any, shares: Sequence) -> None:
    """Fetch ahead what vector k of a tile of pixels has to: so many elements of each of (pointer, elements)."""
    line = CACHE_LINE // bytes_of(kind.element)
    for pointer, share in shares:
        place = emit_at(builder, pointer, builder.mul(k, share))
        lines = builder.sdiv(builder.add(share, WORD(line - 1)), WORD(line))

        def fetch(i, _, place=place):
            emit_prefetch(builder, emit_at(builder, place, builder.mul(i, WORD(line))))
            return []

        emit_loop(builder, lines, [], fetch)


def emit_pixels(kind: Any, rows: int, masked: bool) -> Callable:
    """Return what emits the sums of so many pixels, for `many` vectors of channels or a part of one."""

    def emit(
        builder, kernel_rows, columns, channel, w, w_step, y, y_row, part, many, first_step, total, adding, bias, has_bias,
        activation, x_ahead, x_share, y_ahead, y_share, state,
    ):  # fmt: skip
        size = WORD(bytes_of(kind.element))

        def load_pixel(address):
            pixel = builder.inttoptr(address, ll_reals(kind))
            if masked:
                return emit_masked_load(builder, kind, pixel, emit_first(builder, kind, part))
            return emit_load(builder, kind, pixel)

        def vector(k, _):
            more = builder.select(
                builder.icmp_signed("==", k, WORD(0)), k, builder.sub(first_step, WORD(kind.lanes))
            )
            here = builder.add(channel, builder.add(builder.mul(k, WORD(kind.lanes)), more))
            w_here = emit_at(builder, w, here)
            emit_shares(builder, kind, k, ((x_ahead, x_share), (y_ahead, y_share)))

            def kernel_row(r, carried):
                pair = builder.mul(r, WORD(2))
                row = emit_get(builder, kernel_rows, builder.add(pair, WORD(1)))
                x = builder.add(row, builder.mul(here, size))
                w_row = emit_at(builder, w_here, emit_get(builder, kernel_rows, builder.add(pair, WORD(2))))

                def add(taps, column, sums):
                    w_k = emit_at(builder, w_row, emit_get(builder, column, 1))
                    weights = [
                        emit_load(builder, kind, w_k, builder.mul(w_step, WORD(j))) for j in range(taps)
                    ]
                    pixels = rows + taps - 1
                    values = [
                        load_pixel(builder.add(x, emit_get(builder, column, 2 + i))) for i in range(pixels)
                    ]
                    following = emit_at(builder, column, 2 + pixels)
                    return following, emit_products(builder, rows, weights, values, sums)

                end, sums = emit_groups(builder, columns, carried, MAX_TAPS, add)
                builder.store(builder.ptrtoint(emit_at(builder, end, 1), WORD), state)
                return sums

            sums = emit_loop(builder, emit_get(builder, kernel_rows, 0), zeros(kind, rows), kernel_row)

            def add_totals(sums):
                before = [
                    emit_load(builder, kind, emit_at(builder, total, r * kind.lanes), here)
                    for r in range(rows)
                ]
                return [builder.fadd(old, new) for old, new in zip(before, sums, strict=True)]

            def add_bias(sums):
                place = emit_at(builder, bias, here)
                mask = emit_first(builder, kind, part) if masked else None
                shift = (
                    emit_masked_load(builder, kind, place, mask)
                    if masked
                    else emit_load(builder, kind, place)
                )
                return [builder.fadd(value, shift) for value in sums]

            sums = emit_when(builder, adding, sums, add_totals)
            sums = emit_when(builder, has_bias, sums, add_bias)
            sums = emit_when(
                builder, activation, sums, lambda sums: emit_clamp(builder, kind, activation, sums)
            )
            y_here = emit_at(builder, y, here)
            places = [emit_at(builder, y_here, builder.mul(y_row, WORD(r))) for r in range(rows)]
            if masked:
                emit_store_parts(builder, kind, places, sums, part)
            else:
                for place, value in zip(places, sums, strict=True):
                    emit_store(builder, kind, place, value)
            return []

        emit_loop(builder, many, [], vector)

    return emit


def pixels_type(like: Any) -> ir.FunctionType:
    reals = ll_reals(like)
    places = [INTEGER_POINTER, INTEGER_POINTER, WORD, reals, WORD, reals, WORD, WORD, WORD, WORD, reals, WORD]
    ahead = [reals, WORD, reals, WORD]
    return ir.FunctionType(ir.VoidType(), [*places, reals, WORD, WORD, *ahead, INTEGER_POINTER])


@verb
def pixel_tiles(like):
    """The tiles of so many pixels; their size is 0, or HALF, or 1 for a part of a vector."""
    kind, half = reals_of(like), half_of(like)
    rows = range(1, MAX_ROWS + 1)
    cases = {(r, masked): (kind, emit_pixels(kind, r, bool(masked))) for r in rows for masked in (0, 1)}
    if half:
        cases |= {(r, HALF): (half, emit_pixels(half, r, False)) for r in rows}
    name = "fastconv_pixels"
    return INTEGERS(like), lambda builder, _: emit_shapes(builder, name, pixels_type(like), cases)


@verb
def pixels(
    tiles, rows, size, kernel_rows, columns, channel, w, w_step, y, y_row, part, many, step, total, adding, bias,
    has_bias, activation, x_ahead, x_share, y_ahead, y_share, state,
):  # fmt: skip
    """Sum one K block of a tile of pixels, channels last.

    Results go to y[r * y_row + channel], for `many` vectors of channels, the second of which is `step` behind the first;
    so many elements of x and y are fetched ahead with each of them. state[0] becomes where the next block begins.
    """

    def emit(builder, tiles, rows, size, *args):
        emit_shape(builder, tiles, rows, size, pixels_type(w), args)

    places = (INTEGERS, INTEGERS, word, w, word, y, word, word, word, word, total, word)
    return void(INTEGERS, word, word, *places, bias, word, word, x_ahead, word, y_ahead, word, INTEGERS), emit

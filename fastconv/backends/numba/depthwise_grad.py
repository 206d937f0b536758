"""Weight gradients of one input channel a group: see ``fastconv.lowering.depthwise_grad``.

Each product of a pixel and a gradient goes to a sum of its own, so what counts is how often a value is loaded. Sums
stay in registers, and vectors until the very end.

Channels first, pixels lie in the vectors. A line of the image meets one row of the gradient for each kernel row; these
rows are kept in registers and move on by one with each line. Arrays are read in place: lanes beyond a row's end, and in
the padding, are masked in both, so that nothing there meets a number that is not finite.

Channels last, they lie in the vectors. The gradient is cut into parts that the same taps reach: nothing is padded.
"""

from collections.abc import Callable
from typing import Any

from .moves import clear, store_some, transpose
from .shapes import many_registers
from .simd import (
    INTEGER_POINTER,
    INTEGERS,
    WORD,
    Pointer,
    bytes_of,
    emit_at,
    emit_call_entry,
    emit_fma,
    emit_function,
    emit_load,
    emit_loop,
    emit_mask,
    emit_masked_load,
    emit_shuffle,
    emit_store,
    emit_table,
    helper,
    integers,
    ir,
    lanes,
    ll_reals,
    load,
    reals,
    reals_of,
    records,
    stack_vectors,
    verb,
    void,
    word,
    zeros,
)
from .tile import MAX_K_BLOCK

MANY_ROWS, FEW_ROWS, STRIDED_ROWS = 7, 3, 3
TILE_COLUMNS = 3
LEAST_LINES = 8
SQUARE = 16
MAX_LANES = 16
# Tiles are numbered (rows + STRIDED * (stride - 1)) * ROW_OF_TABLE + columns.
ROW_OF_TABLE, STRIDED = 4, 8


def most_rows(kind: Any) -> int:
    return MANY_ROWS if many_registers(kind.lanes * bytes_of(kind.element)) else FEW_ROWS


def emit_line(
    builder: Any, kind: Any, columns: int, stride: int, at: Any, x_column: Any, masks: list
) -> list:
    """Load a line of the image, from as many columns of the kernel. With a stride of 2, two columns share two loads."""
    found = []
    for j in range(0, columns, stride):
        if stride == 1:
            place = emit_at(builder, at, builder.mul(x_column, WORD(j)))
            found.append(emit_masked_load(builder, kind, place, masks[j]))
            continue
        a, b = (
            emit_masked_load(builder, kind, emit_at(builder, at, j + n * kind.lanes), masks[j + n])
            for n in (0, 1)
        )
        found += [
            emit_shuffle(builder, a, b, list(range(odd, 2 * kind.lanes, 2)))
            for odd in range(min(columns - j, 2))
        ]
    return found


def emit_plane_part(kind: Any, rows: int, columns: int, stride: int) -> Callable:
    """Return what emits the sums over some lines and vectors of a plane."""
    loads = columns if stride == 1 else 2 * ((columns + 1) // 2)
    width = 1 + loads

    def emit(
        builder, begin, end, n_h, v, vectors, x, x_row, x_column, gy, gy_row, table, tap_row, tap_column, sums
    ):
        def least(a, b):
            return builder.select(builder.icmp_signed("<", a, b), a, b)

        # All kernel rows meet lines first..last; the others are on the border.
        fewest = WORD(rows - 1)
        first = builder.select(builder.icmp_signed(">", begin, fewest), begin, fewest)
        last = least(end, n_h)
        some = builder.icmp_signed("<", first, last)
        head = builder.sub(builder.select(some, first, end), begin)
        tail = builder.select(some, last, end)
        border = builder.add(head, builder.sub(end, tail))
        inner = builder.select(some, builder.sub(last, first), WORD(0))

        def vector(n, sums):
            here = builder.add(v, n)
            masks_v = emit_at(builder, table, builder.mul(here, WORD(width)))
            mask, *masks = [emit_mask(builder, kind, masks_v, i) for i in range(width)]
            none = ir.Constant(mask.type, None)
            x_v = emit_at(builder, x, builder.mul(here, WORD(stride * kind.lanes)))
            gy_v = emit_at(builder, gy, builder.mul(here, WORD(kind.lanes)))

            def border_line(i, sums):
                inside = builder.icmp_signed("<", i, head)
                line = builder.select(inside, builder.add(begin, i), builder.add(tail, builder.sub(i, head)))
                values = emit_line(
                    builder,
                    kind,
                    columns,
                    stride,
                    emit_at(builder, x_v, builder.mul(line, x_row)),
                    x_column,
                    masks,
                )
                updated = []
                for k in range(rows):
                    row = builder.sub(line, WORD(k))
                    met = builder.and_(
                        builder.icmp_signed(">=", row, WORD(0)), builder.icmp_signed("<", row, n_h)
                    )
                    place = emit_at(builder, gy_v, builder.mul(row, gy_row))
                    gradient = emit_masked_load(builder, kind, place, builder.select(met, mask, none))
                    for j, value in enumerate(values):
                        old = sums[k * columns + j]
                        updated.append(builder.select(met, emit_fma(builder, gradient, value, old), old))
                return updated

            def line(i, carried):
                at = builder.add(first, i)
                gradients, sums = carried[: rows - 1], carried[rows - 1 :]
                newest = emit_masked_load(
                    builder, kind, emit_at(builder, gy_v, builder.mul(at, gy_row)), mask
                )
                gradients = [newest, *gradients]
                values = emit_line(
                    builder,
                    kind,
                    columns,
                    stride,
                    emit_at(builder, x_v, builder.mul(at, x_row)),
                    x_column,
                    masks,
                )
                updated = [
                    emit_fma(builder, gradients[k], value, sums[k * columns + j])
                    for k in range(rows)
                    for j, value in enumerate(values)
                ]
                return gradients[: rows - 1] + updated

            sums = emit_loop(builder, border, sums, border_line)
            before = builder.select(some, mask, none)
            kept = [
                emit_masked_load(
                    builder,
                    kind,
                    emit_at(builder, gy_v, builder.mul(builder.sub(first, WORD(k)), gy_row)),
                    before,
                )
                for k in range(1, rows)
            ]
            return emit_loop(builder, inner, kept + sums, line)[rows - 1 :]

        totals = emit_loop(builder, vectors, zeros(kind, rows * columns), vector)
        emit_add(builder, kind, totals, columns, tap_row, tap_column, sums)

    return emit


def emit_add(
    builder: Any, kind: Any, totals: list, columns: int, tap_row: Any, tap_column: Any, sums: Any
) -> None:
    """Add the totals of a tile to the sums of their taps."""
    for n, total in enumerate(totals):
        k, j = divmod(n, columns)
        tap = builder.add(builder.mul(tap_row, WORD(k)), builder.mul(tap_column, WORD(j)))
        to = emit_at(builder, sums, builder.mul(tap, WORD(kind.lanes)))
        emit_store(builder, kind, to, builder.fadd(emit_load(builder, kind, to), total))


def emit_pixel_part(kind: Any, rows: int, columns: int) -> Callable:
    """Return what emits the sums over n_h x n_w outputs of one vector of channels."""

    def emit(builder, n_h, n_w, x, x_h, x_w, x_row, x_column, gy, gy_h, gy_w, tap_row, tap_column, sums):
        def row(h, sums):
            x_at = emit_at(builder, x, builder.mul(h, x_h))
            gy_at = emit_at(builder, gy, builder.mul(h, gy_h))

            def pixel(w, sums):
                gradient = emit_load(builder, kind, gy_at, builder.mul(w, gy_w))
                at, updated = emit_at(builder, x_at, builder.mul(w, x_w)), []
                for k in range(rows):
                    for j in range(columns):
                        value = emit_load(builder, kind, at, builder.mul(x_column, WORD(j)))
                        updated.append(emit_fma(builder, gradient, value, sums[k * columns + j]))
                    at = emit_at(builder, at, x_row)
                return updated

            return emit_loop(builder, n_w, sums, pixel)

        totals = emit_loop(builder, n_h, zeros(kind, rows * columns), row)
        emit_add(builder, kind, totals, columns, tap_row, tap_column, sums)

    return emit


def plane_part_type(like: Any) -> ir.FunctionType:
    at = ll_reals(like)
    args = [WORD, WORD, WORD, WORD, WORD, at, WORD, WORD, at, WORD, INTEGER_POINTER, WORD, WORD, at]
    return ir.FunctionType(ir.VoidType(), args)


def pixel_part_type(like: Any) -> ir.FunctionType:
    at = ll_reals(like)
    return ir.FunctionType(
        ir.VoidType(), [WORD, WORD, at, WORD, WORD, WORD, WORD, at, WORD, WORD, WORD, WORD, at]
    )


def number_of(rows: int, columns: int, stride: int = 1) -> int:
    return (rows + STRIDED * (stride - 1)) * ROW_OF_TABLE + columns


def shapes_of(kind: Pointer, stride: int) -> list[tuple[int, int]]:
    rows = most_rows(kind) if stride == 1 else STRIDED_ROWS
    return [(r, c) for r in range(1, rows + 1) for c in range(1, TILE_COLUMNS + 1)]


@verb
def plane_parts(like):
    """The tiles with pixels in the vectors."""
    kind = reals_of(like)

    def emit(builder, _):
        functions = {
            number_of(r, c, stride): emit_function(
                builder,
                f"fastconv_plane_part_{r}x{c}_s{stride}_{kind.element}x{kind.lanes}",
                plane_part_type(kind),
                emit_plane_part(kind, r, c, stride),
            )
            for stride in (1, 2)
            for r, c in shapes_of(kind, stride)
        }
        return emit_table(builder, "fastconv_plane_parts", functions)

    return INTEGERS(like), emit


@verb
def pixel_parts(like):
    """The tiles with channels in the vectors."""
    kind = reals_of(like)

    def emit(builder, _):
        functions = {
            number_of(r, c): emit_function(
                builder,
                f"fastconv_pixel_part_{r}x{c}_{kind.element}x{kind.lanes}",
                pixel_part_type(kind),
                emit_pixel_part(kind, r, c),
            )
            for r, c in shapes_of(kind, 1)
        }
        return emit_table(builder, "fastconv_pixel_parts", functions)

    return INTEGERS(like), emit


@verb
def plane_part(
    tiles,
    number,
    begin,
    end,
    n_h,
    v,
    vectors,
    x,
    x_row,
    x_column,
    gy,
    gy_row,
    masks,
    tap_row,
    tap_column,
    sums,
):
    """Add what lines begin..end of some vectors of a plane sum to."""

    def emit(builder, tiles, number, *args):
        emit_call_entry(builder, tiles, number, plane_part_type(x), args)

    places = (x, word, word, gy, word, INTEGERS, word, word, sums)
    return void(INTEGERS, word, word, word, word, word, word, *places), emit


@verb
def pixel_part(
    tiles, number, n_h, n_w, x, x_h, x_w, x_row, x_column, gy, gy_h, gy_w, tap_row, tap_column, sums
):
    """Add what n_h x n_w outputs of one vector of channels sum to."""

    def emit(builder, tiles, number, *args):
        emit_call_entry(builder, tiles, number, pixel_part_type(x), args)

    places = (x, word, word, word, word, gy, word, word, word, word, sums)
    return void(INTEGERS, word, word, word, *places), emit


@helper
def sum_plane_part(a, p, tiles, x, gy, sums):
    """All of a plane for one part: bands of lines that stay in L1, in pieces whose sums from zero have at most so many terms."""
    count = p.end - p.begin
    height = max(MAX_K_BLOCK // p.vectors, min(count, LEAST_LINES))
    width = MAX_K_BLOCK // height
    number = (p.rows + STRIDED * (p.stride - 1)) * ROW_OF_TABLE + p.columns
    for line in range(p.begin, p.end, height):
        for v in range(0, p.vectors, width):
            plane_part(
                tiles, number, line, min(line + height, p.end), p.n_h, v, min(width, p.vectors - v), x, p.x_row, p.x_column,
                gy, p.gy_row, integers(p.masks), p.tap_row, p.tap_column, sums + p.tap * lanes(a),
            )  # fmt: skip


@helper
def sum_pixel_part(a, p, tiles, x, gy, first, vectors, sums):
    """One part of an image for some vectors of channels, in squares of outputs for all tiles of taps in turn.

    What they read stays in L1, though pixels lie apart as far as there are channels, and sums from zero have few
    terms. The last vector of all overlaps the one before.
    """
    width = min(p.n_w, SQUARE)
    height = MAX_K_BLOCK // width
    for h in range(0, p.n_h, height):
        for w in range(0, p.n_w, width):
            for v in range(vectors):
                channel = min((first + v) * lanes(a), a.channels - lanes(a))
                n_h, n_w = min(height, p.n_h - h), min(width, p.n_w - w)
                gradient = gy + (h * p.gy_h + w * p.gy_w + channel)
                for n in range(p.together):
                    q = p[n]
                    number = q.rows * ROW_OF_TABLE + q.columns
                    x_q = x + (q.x + h * q.x_h + w * q.x_w + channel)
                    pixel_part(
                        tiles, number, n_h, n_w, x_q, q.x_h, q.x_w, q.x_row, q.x_column, gradient, q.gy_h, q.gy_w,
                        q.tap_row, q.tap_column, sums + (v * a.kernel_taps + q.tap) * lanes(a),
                    )  # fmt: skip


@helper
def sum_lanes(columns, sums, count, y):
    """y[i] = the sum of the lanes of vector i, always in the same order."""
    for i in range(0, count, lanes(y)):
        some = min(count - i, lanes(y))
        transpose(columns, lanes(y), sums + i * lanes(y), lanes(y), some, lanes(y))
        total = load(columns)
        for lane in range(1, lanes(y)):
            total = total + load(columns + lane * lanes(y))
        store_some(y + i, total, some)


@helper
def kept_sums(a, task, size, thread):
    """Where the sums of a task are kept; those of one chunk alone never leave the thread's scratch."""
    sums = reals(a, a.work + thread * a.work_stride)
    if a.first_image > 0 or a.images < a.batch:
        sums = reals(a, a.sums) + task * size
    if a.first_image == 0:
        clear(sums, size)
    return sums


def depthwise_plane_grad(a, begin, end, thread):
    """A task is a channel over all images of the chunk."""
    weights, tiles = a.outputs * a.kernel_taps, plane_parts(a)
    columns = stack_vectors(a, MAX_LANES)
    for lane in range(lanes(a)):
        clear(columns + lane * lanes(a), lanes(a))
    for channel in range(begin, end):
        sums = kept_sums(a, channel, weights * lanes(a), thread)
        for image in range(a.images):
            for o in range(a.outputs):
                x = reals(a, a.x) + (image * a.x_image + channel * a.x_channel)
                gy = reals(a, a.gy) + (image * a.gy_image + (channel * a.outputs + o) * a.gy_channel)
                for n in range(a.part_count):
                    p = records(a, a.parts, "plane_part")[n]
                    for d in range(p.n_d):
                        x_d, gy_d = x + (p.x + d * p.x_d), gy + (p.gy + d * p.gy_d)
                        sum_plane_part(a, p, tiles, x_d, gy_d, sums + o * a.kernel_taps * lanes(a))
        if a.first_image + a.images == a.batch:
            sum_lanes(columns, sums, weights, reals(a, a.gw) + channel * weights)


def depthwise_pixel_grad(a, begin, end, thread):
    """A task is some vectors of channels over all images of the chunk."""
    taps, tiles = a.kernel_taps, pixel_parts(a)
    every = (a.channels + lanes(a) - 1) // lanes(a)
    for task in range(begin, end):
        first = task * a.outputs
        vectors = min(every - first, a.outputs)
        sums = kept_sums(a, task, a.outputs * taps * lanes(a), thread)
        for image in range(a.images):
            x = reals(a, a.x) + image * a.x_image
            gy = reals(a, a.gy) + image * a.gy_image
            n = 0
            while n < a.part_count:
                p = records(a, a.parts, "pixel_part")[n]
                for d in range(p.n_d):
                    gy_d = gy + (p.gy + d * p.gy_d)
                    sum_pixel_part(a, p, tiles, x + d * p.x_d, gy_d, first, vectors, sums)
                n += p.together
        if a.first_image + a.images < a.batch:
            continue
        for v in range(vectors):
            channel = (first + v) * lanes(a)
            some = min(a.channels - channel, lanes(a))
            source = sums + (v * taps * lanes(a) + lanes(a) - some)
            transpose(reals(a, a.gw) + channel * taps, taps, source, lanes(a), taps, some)

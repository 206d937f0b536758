"""Weight gradients of 3x3 taps by Winograd's minimal filtering: the taps are the outputs of F(3, r), its weights are
r x r pixels of the output's gradient, and its inputs the a x a pixels that these meet, a = r + 2.

``winograd_grad_tiles`` turns the image into a^2 matrices [source][channel], and the gradient into as many [tile][o].
``winograd_grad`` multiplies each pair of them, which sums over all tiles of all images; only then are the products of a
channel and an output channel turned into 9 taps. The taps of a third axis are sums of their own.

What is not finite, or so large that a product might overflow where the direct sum does not, would spread over all weights
of its channels. Such a tile or source is zeros here, and the tiles that it meets are summed directly.
"""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from .moves import add_to, clear, copy, transpose
from .simd import (
    INTEGERS,
    WORD,
    address,
    emit_at,
    emit_call_entry,
    emit_fma,
    emit_function,
    emit_load,
    emit_store,
    emit_table,
    helper,
    integers,
    ir,
    lanes,
    ll_reals,
    reals,
    reals_of,
    records,
    stack_integers,
    verb,
    void,
    word,
    zeros,
)
from .tile import MAX_K_BLOCK, MAX_TILE_ROWS, lane_tiles, pixel_tiles, tile
from .transforms import Points, emit_lines, emit_stores, emit_vectors, on_axes
from .weight_grad import grad_rows

TAPS = 3
MAX_POINTS = 36
# The greatest sum of squares of what is transformed: 1e6 products of two such values are far from overflow.
LIMIT = 1e28

# What a task has: some input channels of a group, and a block of its output channels.
Task = namedtuple("Task", "group block first units vectors")


def emit_tile(kind: Any, points: int, size: int) -> Callable:
    """Emit v[point][channel] of size x size pixels; it returns whether they are small enough."""

    def emit(builder, x, x_h, x_w, channels, v, v_point):
        def step(c, squares):
            lines = emit_lines(builder, kind, emit_at(builder, x, c), x_h, x_w, 2, size)
            for term in (term for row in lines for term in row):
                squares = [emit_fma(builder, term.value, term.value, *squares)]
            formulas = Points(kind.element)
            line = formulas.inputs if size == points else lambda g: formulas.weights(points, g)
            emit_stores(builder, kind, on_axes(line, 2, lines), emit_at(builder, v, c), v_point)
            return squares

        (squares,) = emit_vectors(builder, kind, channels, zeros(kind, 1), step)
        limit = ir.Constant(squares.type, [LIMIT] * kind.lanes)
        small = builder.bitcast(builder.fcmp_ordered("<", squares, limit), ir.IntType(kind.lanes))
        return builder.zext(builder.icmp_signed("==", small, small.type(-1)), WORD)

    return emit


def emit_output(kind: Any, points: int) -> Callable:
    """Emit the taps y[tap][o] of one channel from its sums at the points, stored or added."""

    def emit(builder, sums, point, channels, y, y_tap, add):
        def step(o, _):
            row = builder.mul(point, WORD(points))
            lines = emit_lines(builder, kind, emit_at(builder, sums, o), row, point, 2, points)
            taps = on_axes(lambda line: Points(kind.element).outputs(TAPS, line), 2, lines)
            y_o = emit_at(builder, y, o)
            places = [emit_at(builder, y_o, builder.mul(y_tap, WORD(i))) for i in range(len(taps))]
            with builder.if_else(builder.icmp_signed("!=", add, WORD(0))) as (adding, storing):
                with adding:
                    for tap, place in zip(taps, places, strict=True):
                        emit_store(
                            builder, kind, place, builder.fadd(emit_load(builder, kind, place), tap.value)
                        )
                with storing:
                    for tap, place in zip(taps, places, strict=True):
                        emit_store(builder, kind, place, tap.value)
            return []

        emit_vectors(builder, kind, channels, [], step)

    return emit


def tile_type(like: Any) -> ir.FunctionType:
    return ir.FunctionType(WORD, [ll_reals(like), WORD, WORD, WORD, ll_reals(like), WORD])


def output_type(like: Any) -> ir.FunctionType:
    return ir.FunctionType(ir.VoidType(), [ll_reals(like), WORD, WORD, ll_reals(like), WORD, WORD])


@verb
def tile_transforms(like):
    """A table by points and pixels, points * MAX_POINTS + pixels."""
    kind = reals_of(like)

    def emit(builder, _):
        functions = {
            points * MAX_POINTS + size: emit_function(
                builder,
                f"fastconv_winograd_grad_{points}_{size}_{kind.element}x{kind.lanes}",
                tile_type(kind),
                emit_tile(kind, points, size),
            )
            for points in (4, 6)
            for size in (points, points - TAPS + 1)
        }
        return emit_table(builder, "fastconv_winograd_grad_tiles", functions)

    return INTEGERS(like), emit


@verb
def output_transforms(like):
    """A table by points."""
    kind = reals_of(like)

    def emit(builder, _):
        functions = {
            points: emit_function(
                builder,
                f"fastconv_winograd_grad_output_{points}_{kind.element}x{kind.lanes}",
                output_type(kind),
                emit_output(kind, points),
            )
            for points in (4, 6)
        }
        return emit_table(builder, "fastconv_winograd_grad_outputs", functions)

    return INTEGERS(like), emit


@verb
def transform_tile(transforms, points, size, x, x_h, x_w, channels, v, v_point):
    """v[point][channel] of size x size pixels; returns whether they are small enough."""

    def emit(builder, transforms, points, size, *args):
        number = builder.add(builder.mul(points, WORD(MAX_POINTS)), size)
        return emit_call_entry(builder, transforms, number, tile_type(x), args)

    return word(INTEGERS, word, word, x, word, word, word, v, word), emit


@verb
def transform_output(transforms, points, sums, point, channels, y, y_tap, add):
    """The taps y[tap][o] of one channel from its sums at the points, stored or added."""

    def emit(builder, transforms, points, *args):
        emit_call_entry(builder, transforms, points, output_type(sums), args)

    return void(INTEGERS, word, sums, word, word, y, word, word), emit


def winograd_grad_tiles(a, begin, end, thread):
    """A task is a piece of the sources of an image, or of its tiles."""
    transforms, tiles = tile_transforms(a), records(a, a.tiles, "winograd_grad_tile")
    source_marks, tile_marks = reals(a, a.source_marks), reals(a, a.tile_marks)
    points, size = a.points * a.points, a.points - TAPS + 1
    for task in range(begin, end):
        image, piece = task // (a.source_pieces + a.tile_pieces), task % (a.source_pieces + a.tile_pieces)
        if piece < a.source_pieces:
            for i in range(
                a.source_count * piece // a.source_pieces, a.source_count * (piece + 1) // a.source_pieces
            ):
                number = image * a.source_count + i
                x = reals(a, a.x) + (image * a.x_image + integers(a.sources)[i])
                v = reals(a, a.v) + number * a.v_row
                small = transform_tile(
                    transforms, a.points, a.points, x, a.x_h, a.x_w, a.inputs, v, a.v_point
                )
                source_marks[number] = 1 - small
                if small == 0:
                    for p in range(points):
                        clear(v + p * a.v_point, a.inputs)
            continue
        piece -= a.source_pieces
        blocks = a.groups * a.blocks
        for i in range(a.tile_count * piece // a.tile_pieces, a.tile_count * (piece + 1) // a.tile_pieces):
            number, small = image * a.tile_count + i, 1
            gy = reals(a, a.gy) + (image * a.gy_image + tiles[i].gy)
            u = reals(a, a.u) + number * a.width
            for block in range(blocks):
                gy_b, u_b = gy + block * a.gy_block, u + block * a.u_block
                small &= transform_tile(
                    transforms, a.points, size, gy_b, a.gy_h, a.gy_w, a.width, u_b, a.u_point
                )
            tile_marks[number] = 1 - small
            if small == 0:
                for block in range(blocks):
                    for p in range(points):
                        clear(u + (block * a.u_block + p * a.u_point), a.width)


@helper
def winograd_grad_products(a, multiply, most, task, sums, add):
    """sums[tap][point][unit][o] of all tiles."""
    tiles, tap_sources = records(a, a.tiles, "winograd_grad_tile"), integers(a.tap_sources)
    v_offsets, u_offsets = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK)
    row = stack_integers(MAX_TILE_ROWS)
    points, count, parts = a.points * a.points, a.images * a.tile_count, (task.units + most - 1) // most
    v = reals(a, a.v) + (task.group * a.units + task.first)
    u = reals(a, a.u) + (task.group * a.blocks + task.block) * a.u_block
    for tap in range(a.taps):
        for k in range(0, count, a.k_block):
            some = min(count - k, a.k_block)
            for i in range(some):
                image, source = (
                    (k + i) // a.tile_count,
                    tiles[(k + i) % a.tile_count].source + tap_sources[tap],
                )
                v_offsets[i] = (image * a.source_count + source) * a.v_row
                u_offsets[i] = (k + i) * a.width
            for p in range(points):
                for i in range(parts):
                    unit = task.units * i // parts
                    rows = task.units * (i + 1) // parts - unit
                    for r in range(rows):
                        row[r] = address(v + (p * a.v_point + unit + r))
                    c = sums + ((tap * points + p) * task.units + unit) * a.width
                    tile(
                        multiply, rows, task.vectors, some, row, v_offsets, u + p * a.u_point, u_offsets, c, a.width,
                        add + k,
                    )  # fmt: skip


@helper
def winograd_grad_direct(a, multiply, most, task, y, any_before):
    """Add the direct sums of marked tiles to y[unit][tap][o]; returns whether there were any, those before included."""
    tiles, tap_sources = records(a, a.tiles, "winograd_grad_tile"), integers(a.tap_sources)
    source_marks, tile_marks = reals(a, a.source_marks), reals(a, a.tile_marks)
    x_offsets, gy_offsets = stack_integers(MAX_POINTS), stack_integers(MAX_POINTS)
    row = stack_integers(MAX_TILE_ROWS)
    kernel, found, parts = a.taps * TAPS * TAPS, any_before, (task.units + most - 1) // most
    for number in range(a.images * a.tile_count):
        image, at = number // a.tile_count, tiles[number % a.tile_count]
        for tap in range(a.taps):
            source = at.source + tap_sources[tap]
            if tile_marks[number] == 0 and source_marks[image * a.source_count + source] == 0:
                continue
            if found == 0:
                clear(y, task.units * kernel * a.width)
            found, count = 1, 0
            for h in range(at.rows):
                for i in range(at.columns):
                    x_offsets[count] = h * a.x_h + i * a.x_w
                    gy_offsets[count] = h * a.gy_h + i * a.gy_w
                    count += 1
            x = reals(a, a.x) + (
                image * a.x_image + integers(a.sources)[source] + task.group * a.units + task.first
            )
            gy = reals(a, a.gy) + (
                image * a.gy_image + (task.group * a.blocks + task.block) * a.gy_block + at.gy
            )
            for i in range(TAPS * TAPS):
                for part in range(parts):
                    unit = task.units * part // parts
                    rows = task.units * (part + 1) // parts - unit
                    for r in range(rows):
                        row[r] = address(x + (i // TAPS * a.x_h + i % TAPS * a.x_w + unit + r))
                    c = y + (unit * kernel + tap * TAPS * TAPS + i) * a.width
                    tile(
                        multiply,
                        rows,
                        task.vectors,
                        count,
                        row,
                        x_offsets,
                        gy,
                        gy_offsets,
                        c,
                        kernel * a.width,
                        1,
                    )
    return found


def winograd_grad(a, begin, end, thread):
    """A task is a part of the units of one block of output channels, over all images of the chunk.

    The sums of some passes over chunks and bands are added up before they are added to the total.
    """
    outputs, narrow, wide = output_transforms(a), pixel_tiles(a), lane_tiles(a)
    points, kernel = a.points * a.points, a.taps * TAPS * TAPS
    number_of_pass = a.first_image // a.chunk * a.bands + a.band
    whole = (number_of_pass + 1) % a.together == 0
    done = a.first_image + a.images == a.batch and a.band == a.bands - 1
    for number in range(begin, end):
        part, block = number % a.unit_parts, number // a.unit_parts
        first, o = part * a.unit_part, block % a.blocks * a.width
        units, channels = min(a.units - first, a.unit_part), min(a.channels - o, a.width)
        task = Task(block // a.blocks, block % a.blocks, first, units, (channels + lanes(a) - 1) // lanes(a))
        most, is_wide = grad_rows(a, task.vectors)
        multiply = wide if is_wide else narrow
        # Sums that are complete at once never leave the thread's scratch.
        sums = reals(a, a.work + thread * a.work_stride)
        if number_of_pass > 0 or not done:
            sums = reals(a, a.sums) + (block * a.units + first) * a.unit
        size, direct = a.taps * points * units * a.width, reals(a, a.direct) + number
        y = sums + size
        total = y + kernel * units * a.width
        winograd_grad_products(a, multiply, most, task, sums, number_of_pass % a.together)
        found = winograd_grad_direct(a, multiply, most, task, y, int(number_of_pass > 0 and direct[0] != 0))
        direct[0] = found
        if number_of_pass >= a.together and (whole or done):
            add_to(total, sums, size)
        elif whole and not done:
            copy(total, sums, size)
        if not done:
            continue
        if number_of_pass < a.together:
            total = sums
        for i in range(units * a.taps):
            unit, tap = i // a.taps, i % a.taps
            sums_i, y_i = total + (tap * points * units + unit) * a.width, y + i * TAPS * TAPS * a.width
            transform_output(
                outputs, a.points, sums_i, units * a.width, task.vectors * lanes(a), y_i, a.width, found
            )
        gw = reals(a, a.gw) + ((task.group * a.channels + o) * a.units + first) * kernel
        transpose(gw, a.units * kernel, y, a.width, units * kernel, channels)

"""Deformable convolution of few pixels with weights as they came: packing these took a fifth of a call on 7x7 pixels.

Pixels are in the vectors, samples turned to panel[channel, tap][pixel], and output channels are rows that the register
tile reads where they are, k by k. What is beyond the last whole vector, if it is a pixel or two, is summed along k in
place, while the tile's weights are in L1.
"""

from collections import namedtuple

from ...lowering.deform import MOST_LEFT
from .epilogue import finish_row, store_rows
from .moves import transpose
from .simd import (
    WORD,
    address,
    emit_at,
    emit_first,
    emit_fma,
    emit_load,
    emit_loop,
    emit_masked_load,
    emit_totals,
    helper,
    lanes,
    real,
    reals,
    stack_integers,
    stack_runs,
    verb,
    void,
    word,
    zeros,
)
from .tile import MAX_K_BLOCK, MAX_TILE_ROWS, pixel_tiles, tile, tile_vectors

# width           elements of a row of the panel
# pixels, rest    in it, and those left
# row             elements of a row of sums
# panel           [channel, tap][width]
# left            [rest][channel, tap]
# parts           [output channel][rest][lanes], of the pixels left
# Output channels whose sums of a pixel left are in registers together.
LEFT_ROWS = 4

FewWork = namedtuple("FewWork", "width pixels rest row panel left parts")


@helper
def few_scratch(a, work, pixels):
    width = a.vectors * lanes(a)
    inside = min(pixels, width)
    left = work.panel + a.panel
    parts = left + MOST_LEFT * (a.panel // width + lanes(a))
    return FewWork(width, inside, pixels - inside, width + lanes(a), work.panel, left, parts)


@helper
def few_turn(few, work, channels, taps):
    """The samples of one block of channels as panel and rows of the pixels left."""
    depth = channels * taps
    for t in range(taps):
        columns, panel = work.columns + t * channels, few.panel + t * few.width
        transpose(panel, taps * few.width, columns, depth, few.pixels, channels)
    for i in range(few.rest):
        columns = work.columns + (few.pixels + i) * depth
        transpose(few.left + i * depth, taps, columns, channels, taps, channels)


@verb
def few_left_rows(rows, w, w_row, left, count, parts, parts_row, add):
    """parts (+)= products of a pixel left with some k of some output channels, lane by lane."""
    literal = rows.literal_value

    def emit(builder, _, w_, w_row, left_, count, parts_, parts_row, add):
        size = WORD(w.lanes)
        row = [emit_at(builder, w_, builder.mul(w_row, WORD(r))) for r in range(literal)]

        def step(k, sums):
            at = builder.mul(k, size)
            pixel = emit_load(builder, left, left_, at)
            return [
                emit_fma(builder, emit_load(builder, w, here, at), pixel, total)
                for here, total in zip(row, sums, strict=True)
            ]

        whole = builder.udiv(count, size)
        sums = emit_loop(builder, whole, zeros(w, literal), step)
        at, mask = builder.mul(whole, size), emit_first(builder, w, builder.urem(count, size))
        pixel = emit_masked_load(builder, left, emit_at(builder, left_, at), mask)
        totals = [
            emit_fma(builder, emit_masked_load(builder, w, emit_at(builder, here, at), mask), pixel, total)
            for here, total in zip(row, sums, strict=True)
        ]
        places = [emit_at(builder, parts_, builder.mul(parts_row, WORD(r))) for r in range(literal)]
        emit_totals(builder, w, totals, places, add)

    return void(rows, w, word, left, word, parts, word, word), emit


@helper
def few_left(few, w, w_row, rows, first, k, count, depth, add):
    for i in range(few.rest):
        left, parts = few.left + (i * depth + k), few.parts + (first * few.rest + i) * lanes(w)
        between = few.rest * lanes(w)
        whole = rows // LEFT_ROWS * LEFT_ROWS
        for r in range(0, whole, LEFT_ROWS):
            few_left_rows(
                LEFT_ROWS, w + (r * w_row + k), w_row, left, count, parts + r * between, between, add
            )
        for r in range(whole, rows):
            few_left_rows(1, w + (r * w_row + k), w_row, left, count, parts + r * between, between, add)


@helper
def few_multiply(a, few, work, block, taps, begin, end, add):
    """Sums of some output channels, one block of input channels more."""
    ones, steps, row = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK), stack_integers(MAX_TILE_ROWS)
    tiles, depth = pixel_tiles(a), taps * block.channels
    parts, panels = (depth + a.k_block - 1) // a.k_block, (a.vectors + tile_vectors(a) - 1) // tile_vectors(a)
    for k in range(a.k_block):
        ones[k] = k
        steps[k] = k * few.width
    for part in range(parts):
        k = depth * part // parts
        count = depth * (part + 1) // parts - k
        for o in range(begin, end):
            rows, first = min(a.channels - o * a.w_width, a.w_width), o * a.w_width
            w = reals(a, a.given) + (block.given + first * a.w_row)
            for r in range(rows):
                row[r] = address(w + (r * a.w_row + k))
            for p in range(panels):
                start = a.vectors * p // panels
                nv, at = a.vectors * (p + 1) // panels - start, start * lanes(a)
                panel, c = few.panel + (k * few.width + at), work.sums + (first * few.row + at)
                tile(tiles, rows, nv, count, row, ones, panel, steps, c, few.row, add or k > 0)
            few_left(few, w, a.w_row, rows, first, k, count, depth, add or k > 0)


@helper
def few_finish(a, few, work, group, begin, end, y):
    run = stack_runs(a, 1)
    run.at, run.count, run.y = 0, few.pixels + few.rest, 0
    for o in range(begin, end):
        rows, first = min(a.channels - o * a.w_width, a.w_width), o * a.w_width
        channel, c = group * a.channels + first, work.sums + first * few.row
        for r in range(rows):
            for i in range(few.rest):
                part = few.parts + ((first + r) * few.rest + i) * lanes(a)
                total = real(a, 0.0)
                for lane in range(lanes(a)):
                    total += part[lane]
                c[r * few.row + few.pixels + i] = total
            if a.b or a.activation:
                bias = reals(a, a.b)[channel + r] if a.b else real(a, 0.0)
                finish_row(c + r * few.row, few.pixels + few.rest, bias, a.activation)
        store_rows(c, few.row, rows, run, 1, y + channel * a.y_channel, a.y_channel, a.y_w)

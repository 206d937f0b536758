"""Weight packing: y[group][block] + places[i] + r = x[group][block * width + r] + offsets[i], r < width.

Rows past the last are zero. A task is a piece of the offsets of one block of output channels. Sources are visited
in the order they lie in, wherever they go: a kernel that wants taps and channels the other way round, or the taps
of each phase apart, is still a blocked transpose, whose rows merely land elsewhere.
"""

from .moves import clear, transpose
from .simd import helper, integers, reals


@helper
def pack_piece(y, x, x_row, rows, offsets, places, count):
    """y[places[i] + r] = x[r * x_row + offsets[i]] for i < count, r < rows, and 0 where an offset is negative."""
    i = 0
    while i < count:
        # How far the source runs on without a gap.
        first, run = offsets[i], 1
        if first < 0:
            clear(y + places[i], rows)
            i += 1
            continue
        while i + run < count and offsets[i + run] == first + run:
            run += 1
        transpose(y, places + i, x + first, x_row, rows, run)
        i += run


@helper
def pack_block(y, width, x, x_row, rows, offsets, places, count):
    """The same for a block of `width` rows of which only the first `rows` exist: the others are zero."""
    if rows < width:
        for i in range(count):
            clear(y + (places[i] + rows), width - rows)
    pack_piece(y, x, x_row, rows, offsets, places, count)


def pack(a, begin, end, thread):
    for task in range(begin, end):
        group, rest = task // (a.pieces * a.blocks), task % (a.pieces * a.blocks)
        piece, block = rest % a.pieces, rest // a.pieces
        if a.by_blocks:
            piece, block = rest // a.blocks, rest % a.blocks
        row = block * a.width
        rows = min(a.rows - row, a.width)
        start = a.count * piece // a.pieces
        count = a.count * (piece + 1) // a.pieces - start
        x = reals(a, a.x) + (group * a.x_group + row * a.x_row)
        y = reals(a, a.y) + (group * a.y_group + block * a.y_block)
        offsets, places = integers(a.offsets) + start, integers(a.places) + start
        pack_block(y, a.width, x, a.x_row, rows, offsets, places, count)

"""Weight packing: y[group][block] + places[i] + r = x[group][block * width + r] + offsets[i], r < width.

Rows past the last are zero. A task is a piece of the offsets of one block of output channels. Sources are visited
in the order they lie in, wherever they go: a kernel that wants taps and channels the other way round, or the taps
of each phase apart, is still a blocked transpose, whose rows merely land elsewhere.
"""

from .moves import clear, copy_strided, load_quads, transpose_quads
from .simd import (
    INTEGERS,
    WORD,
    emit_at,
    emit_get,
    emit_load,
    emit_shuffle,
    emit_store,
    helper,
    integers,
    lanes,
    narrow,
    reals,
    store,
    verb,
    void,
    word,
)


@verb
def pack_square(y, x, x_row, places):
    """As many rows as a vector has elements, and as many of each: y[places[i] + r] = x[r * x_row + i].

    Whole cache lines come and go at once: rows of a power of two lie in few sets of the cache, which forgets a line
    that is left for a moment.
    """

    def emit(builder, to, source, step, places_):
        count = y.lanes
        low = [i // 2 + i % 2 * count for i in range(count)]
        high = [i + count // 2 for i in low]
        rows = [emit_load(builder, x, source, builder.mul(step, WORD(row))) for row in range(count)]
        for _ in range(count.bit_length() - 1):
            pairs = list(zip(rows[: count // 2], rows[count // 2 :], strict=True))
            rows = [emit_shuffle(builder, a, b, chosen) for a, b in pairs for chosen in (low, high)]
        for i, row in enumerate(rows):
            emit_store(builder, y, emit_at(builder, to, emit_get(builder, places_, i)), row)

    return void(y, x, word, INTEGERS), emit


@helper
def pack_piece(y, x, x_row, rows, offsets, places, count):
    """y[places[i] + r] = x[r * x_row + offsets[i]] for i < count, r < rows."""
    i = 0
    while i < count:
        # How far the source runs on without a gap.
        first, run = offsets[i], 1
        while i + run < count and offsets[i + run] == first + run:
            run += 1
        source, to = x + first, places + i
        quads, whole_rows = run & ~3, rows & ~3
        squares, squared = run // lanes(x) * lanes(x), rows // lanes(x) * lanes(x)
        for r in range(0, squared, lanes(x)):
            for k in range(0, squares, lanes(x)):
                pack_square(y + r, source + (r * x_row + k), x_row, to + k)
        for r in range(0, whole_rows, 4):
            x_r, y_r = narrow(source + r * x_row, 4), narrow(y + r, 4)
            for k in range(squares if r < squared else 0, quads, 4):
                a, b, c, d = transpose_quads(*load_quads(x_r + k, x_row))
                store(y_r + to[k], a)
                store(y_r + to[k + 1], b)
                store(y_r + to[k + 2], c)
                store(y_r + to[k + 3], d)
        for k in range(run):
            done = whole_rows if k < quads else 0
            copy_strided(y + (to[k] + done), 1, source + (done * x_row + k), x_row, rows - done)
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

"""Weight packing: y[sum][group][block][k][width] = x[row][offsets[k]], zero in rows past the last.

A task is a piece of k of one block of output channels, in every sum: the sums of a transposed convolution
take their taps from the same cache lines. Sources are visited in the order they lie in (`x_offsets` of a sum
holds the k of each), so that a kernel that wants taps and channels the other way round is still a blocked
transpose, whose rows merely land elsewhere.
"""

from .moves import clear, copy_strided, load_quads, transpose_quads
from .simd import helper, integers, narrow, reals, records, store


@helper
def pack_piece(y, width, x, x_row, rows, offsets, order, count):
    """y[order[i] * width + r] = x[r * x_row + offsets[order[i]]] for i < count, r < rows."""
    i = 0
    while i < count:
        # How far the source runs on without a gap.
        first, run = offsets[order[i]], 1
        while i + run < count and offsets[order[i + run]] == first + run:
            run += 1
        source, to = x + first, order + i
        quads, whole_rows = run & ~3, rows & ~3
        for r in range(0, whole_rows, 4):
            x_r, y_r = narrow(source + r * x_row, 4), narrow(y + r, 4)
            for k in range(0, quads, 4):
                a, b, c, d = transpose_quads(*load_quads(x_r + k, x_row))
                store(y_r + to[k] * width, a)
                store(y_r + to[k + 1] * width, b)
                store(y_r + to[k + 2] * width, c)
                store(y_r + to[k + 3] * width, d)
        for k in range(run):
            done = whole_rows if k < quads else 0
            copy_strided(y + (to[k] * width + done), 1, source + (done * x_row + k), x_row, rows - done)
        i += run


def pack(a, begin, end, thread):
    for task in range(begin, end):
        group, rest = task // (a.pieces * a.blocks), task % (a.pieces * a.blocks)
        piece, block = rest % a.pieces, rest // a.pieces
        if a.by_blocks:
            piece, block = rest // a.blocks, rest % a.blocks
        width = a.width
        row = block * width
        rows = min(a.rows - row, width)
        x = reals(a, a.x) + (group * a.x_group + row * a.x_row)
        for s in range(a.sum_count):
            part = records(a, a.sums, "sum")[s]
            start = part.taps * piece // a.pieces
            count = part.taps * (piece + 1) // a.pieces - start
            order = integers(part.x_offsets) + start
            y = reals(a, a.y) + (part.w + group * part.w_group + block * part.w_block)
            if rows < width:
                for i in range(count):
                    clear(y + (order[i] * width + rows), width - rows)
            pack_piece(y, width, x + part.x, a.x_row, rows, integers(part.w_offsets), order, count)

"""The weight gradient of groups of a few channels, as dot products of rows: pixels lie in the vectors.

A task is a group over all images. Its input is made a haloed band in line space, its output gradient rows of
whole vectors with zeros behind, both in the thread's scratch. A tile of output channels and (channel, tap) pairs
shares what is loaded. Sums stay vectors until the very end.
"""

from .depthwise_grad import MAX_LANES, sum_lanes
from .halo import fill_row
from .moves import clear, copy, copy_strided
from .simd import (
    INTEGERS,
    WORD,
    address,
    emit_at,
    emit_first,
    emit_fma,
    emit_get,
    emit_load,
    emit_loop,
    emit_out_of_line,
    emit_store,
    emit_switch,
    helper,
    integers,
    lanes,
    ll_reals,
    reals,
    stack_integers,
    stack_vectors,
    verb,
    void,
    word,
    zeros,
)
from .tile import MAX_K_BLOCK, shapes_for, tile_rows

DOT_COLUMNS = 3


def emit_dots(kind, row_count, column_count):
    """Return what emits the sums of a tile of dot products."""

    def emit(builder, rows, count, a, a_i, a_row, b, b_row, c, c_i, c_j):
        columns = [builder.inttoptr(emit_get(builder, b, j), ll_reals(kind)) for j in range(column_count)]
        starts = [builder.mul(a_i, WORD(i)) for i in range(row_count)]
        vectors = builder.sdiv(count, WORD(kind.lanes))
        whole = builder.mul(vectors, WORD(kind.lanes))
        left = builder.sub(count, whole)
        tails = builder.zext(builder.icmp_signed(">", left, WORD(0)), WORD)
        inside = emit_first(builder, kind, left)
        (zero,) = zeros(kind, 1)

        def row(h, sums):
            a_h = emit_at(builder, a, builder.mul(h, a_row))
            b_h = [emit_at(builder, column, builder.mul(h, b_row)) for column in columns]

            def products(at, sums, masked):
                x = [emit_load(builder, kind, column, at) for column in b_h]
                if masked:
                    x = [builder.select(inside, value, zero) for value in x]
                y = [emit_load(builder, kind, emit_at(builder, a_h, start), at) for start in starts]
                pairs = [(value, column) for value in y for column in x]
                return [emit_fma(builder, *pair, total) for pair, total in zip(pairs, sums, strict=True)]

            def step(v, sums):
                return products(builder.mul(v, WORD(kind.lanes)), sums, False)

            sums = emit_loop(builder, vectors, sums, step)
            return emit_loop(builder, tails, sums, lambda _, sums: products(whole, sums, True))

        totals = emit_loop(builder, rows, zeros(kind, row_count * column_count), row)
        for n, total in enumerate(totals):
            i, j = divmod(n, column_count)
            to = emit_at(builder, c, builder.add(builder.mul(c_i, WORD(i)), emit_get(builder, c_j, j)))
            emit_store(builder, kind, to, builder.fadd(emit_load(builder, kind, to), total))

    return emit


@verb
def dot_tile(row_count, column_count, rows, count, a, a_i, a_row, b, b_row, c, c_i, c_j):
    """c[i * c_i + c_j[j]] += sum over rows and elements of a[i * a_i] * b[j], vectors of them.

    a is zero behind a row's end, b may hold anything there; `b` holds addresses.
    """
    most = shapes_for(a)[0][0]
    shapes = [(r + 1, j + 1) for r in range(most) for j in range(DOT_COLUMNS)]

    def emit(builder, row_count, column_count, *args):
        def case(r, j):
            name = f"fastconv_dots_{r}x{j}_{a.element}x{a.lanes}"
            return lambda: emit_out_of_line(builder, name, args, emit_dots(a, r, j))

        number = builder.add(builder.mul(row_count, WORD(8)), column_count)
        emit_switch(builder, number, {8 * r + j: case(r, j) for r, j in shapes})

    return void(word, word, word, word, a, word, word, INTEGERS, word, c, word, INTEGERS), emit


@helper
def dots(row_count, column_count, rows, count, a, a_i, a_row, column, b_row, c, c_i, c_j, x):
    """Sum the tile in pieces that have at most so many terms; `column` holds offsets from x."""
    at = stack_integers(DOT_COLUMNS)
    width, vectors = MAX_K_BLOCK * lanes(a), (count + lanes(a) - 1) // lanes(a)
    height = max(MAX_K_BLOCK // vectors, 1)
    for w in range(0, count, width):
        for h in range(0, rows, height):
            for j in range(column_count):
                at[j] = address(x + (column[j] + h * b_row + w))
            some_rows, some = min(rows - h, height), min(count - w, width)
            a_h = a + (h * a_row + w)
            dot_tile(row_count, column_count, some_rows, some, a_h, a_i, a_row, at, b_row, c, c_i, c_j)


@helper
def copy_gradient(a, gy, first_row, rows, to):
    """Copy a band of the output's gradient of one group into rows of whole vectors."""
    for o in range(a.outputs):
        for d in range(a.n_d):
            for h in range(rows):
                source = gy + (o * a.gy_channel + d * a.gy_d + (first_row + h) * a.gy_h)
                row = to + ((o * a.n_d + d) * rows + h) * a.pitch
                clear(row + (a.pitch - lanes(a)), lanes(a))
                if a.gy_w == 1:
                    copy(row, source, a.n_w)
                else:
                    copy_strided(row, 1, source, a.gy_w, a.n_w)


@helper
def fill_lines(a, x, first_row, lines):
    """Make the haloed band of one group's input."""
    map_d, map_h, map_w, runs = integers(a.map_d), integers(a.map_h), integers(a.map_w), integers(a.runs)
    heights = min(a.h_lines - first_row, a.band_lines)
    for c in range(a.channels):
        for d in range(a.lines_d):
            for p in range(a.h_phases):
                for h in range(heights):
                    from_d, from_h = map_d[d], map_h[p * a.h_lines + first_row + h]
                    to = lines + (c * a.line_channel + d * a.line_d + (p * a.band_lines + h) * a.line_h)
                    inside = from_d >= 0 and from_h >= 0
                    row = x + c * a.x_channel
                    if inside:
                        row = x + (c * a.x_channel + from_d * a.x_d + from_h * a.x_h)
                    fill_row(to, a.line_phase, row, inside, a.x_w, a.w_phases, a.w_lines, map_w, runs)


@helper
def grad_of_pairs(a, lines, gy, gy_h, gy_d, gy_o, rows, sums):
    """Every pair of an output channel and a (channel, tap)."""
    x_offsets, pair_places = integers(a.x_offsets), integers(a.places)
    column, places = stack_integers(DOT_COLUMNS), stack_integers(DOT_COLUMNS)
    parts = (a.outputs + tile_rows(a) - 1) // tile_rows(a)
    weights = a.channels * a.kernel_taps * lanes(a)
    for d in range(a.n_d):
        for p in range(parts):
            o = a.outputs * p // parts
            some = a.outputs * (p + 1) // parts - o
            for k in range(0, a.pairs, DOT_COLUMNS):
                columns = min(a.pairs - k, DOT_COLUMNS)
                for j in range(columns):
                    column[j] = x_offsets[k + j] + d * a.line_d
                    places[j] = pair_places[k + j] * lanes(a)
                dots(
                    some, columns, rows, a.n_w, gy + (o * gy_o + d * gy_d), gy_o, gy_h,
                    column, a.line_h, sums + o * weights, weights, places, lines,
                )  # fmt: skip


def plane_grad(a, begin, end, thread):
    weights = a.outputs * a.channels * a.kernel_taps
    sums = reals(a, a.work + thread * a.work_stride)
    lines = sums + weights * lanes(a)
    copied = lines + (a.channels * a.line_channel + lanes(a))
    columns = stack_vectors(a, MAX_LANES)
    for lane in range(lanes(a)):
        clear(columns + lane * lanes(a), lanes(a))
    in_place = a.gy_w == 1 and a.pitch == a.n_w
    for group in range(begin, end):
        clear(sums, weights * lanes(a))
        for image in range(a.images):
            x = reals(a, a.x) + (image * a.x_image + group * a.channels * a.x_channel)
            whole = reals(a, a.gy) + (image * a.gy_image + group * a.outputs * a.gy_channel)
            for first in range(0, a.n_h, a.band):
                band = min(a.n_h - first, a.band)
                gy, gy_h, gy_d, gy_o = whole + first * a.gy_h, a.gy_h, a.gy_d, a.gy_channel
                if not in_place:
                    copy_gradient(a, whole, first, band, copied)
                    gy, gy_h, gy_d, gy_o = copied, a.pitch, band * a.pitch, a.n_d * band * a.pitch
                fill_lines(a, x, first, lines)
                grad_of_pairs(a, lines, gy, gy_h, gy_d, gy_o, band, sums)
        sum_lanes(columns, sums, weights, reals(a, a.gw) + group * weights)

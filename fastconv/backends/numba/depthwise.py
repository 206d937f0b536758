"""One input channel a group. There is no matrix product to block: what counts is how often a value is moved.

``depthwise_planes`` (channels first) sums tiles of rows, of the image as it lies, or of a band whose halo is made in the
thread's own scratch. ``depthwise_pixels`` (channels last) makes no halo at all: tiles that meet padding get a list of the
addresses of their pixels, in which padding is a pixel of zeros.
"""

from numba import int64

from .columns import HALF, MAX_ROWS, PAIRED, SECOND, column_tiles, columns, halves, pixel_tiles, pixels
from .epilogue import LINEAR, RELU6, finish_lanes, finish_row
from .halo import copy_rows, fill_row
from .moves import clear, copy, copy_strided, load_some, merge
from .simd import (
    address,
    bytes_each,
    call_engine,
    fma,
    helper,
    integers,
    lanes,
    prefetch,
    real,
    reals,
    records,
    splat,
    stack_integers,
    stack_vectors,
    store,
    words_of,
)


@helper
def map_band(a, x, first_row, scratch):
    """The rows of one band of one channel, each element through its maps: for padding that is not zero."""
    map_d, map_h, map_w, runs = integers(a.map_d), integers(a.map_h), integers(a.map_w), integers(a.runs)
    for d in range(a.lines_d):
        for p in range(a.h_phases):
            for h in range(min(a.h_lines - first_row, a.band_lines)):
                from_d, from_h = map_d[d], map_h[p * a.h_lines + first_row + h]
                to = scratch + (d * a.line_d + (h * a.h_phases + p) * a.line_h)
                inside = from_d >= 0 and from_h >= 0
                row = x
                if inside:
                    row = x + (from_d * a.x_d + from_h * a.x_h)
                fill_row(to, a.line_phase, row, inside, a.x_w, a.w_phases, a.w_lines, map_w, runs)


@helper
def width_of(like, size):
    """How many results a row of a tile has."""
    if size == HALF:
        return lanes(like) // 2
    if size == PAIRED:
        return lanes(like) * 2
    return lanes(like) if size == SECOND else lanes(like) << size


@helper
def buffered_tile(shapes, s, tile, rows, x, w, y, bias, activation, c, state):
    """One tile by way of a buffer: several K blocks, strided output, activations that are not simple."""
    size, zero = tile.size, real(x, 0.0)
    width = width_of(x, size)
    simple = activation <= RELU6
    state[0] = tile.groups
    for block in range(tile.blocks - 1):
        at, adding = integers(state[0]), min(block, 1)
        columns(shapes, rows, size, at, x, s.x_row, w, s.w_step, c, width, 0, c, adding, zero, LINEAR, state)
    clamp = activation if simple else LINEAR
    adding, at = 1 if tile.blocks > 1 else 0, integers(state[0])
    columns(shapes, rows, size, at, x, s.x_row, w, s.w_step, c, width, 0, c, adding, bias, clamp, state)
    if not simple:
        finish_row(c, rows * width, zero, activation)
    for r in range(rows):
        count = tile.part if tile.part else width
        if s.y_w == 1:
            copy(y + r * s.y_row, c + r * width, count)
        else:
            copy_strided(y + r * s.y_row, s.y_w, c + r * width, 1, count)


@helper
def sum_band(a, shapes, sums, lines, image, o, band, scratch, c, state):
    """The sums of one band that share output rows, for one output channel."""
    w = reals(a, a.w) + o * a.kernel_taps
    bias = reals(a, a.b)[o] if a.b else real(a, 0.0)
    apart, activation = scratch + a.spare, a.activation
    first = sums[0]
    y = reals(a, a.y) + (image * a.y_image + o * a.y_channel + first.y + band * a.band * first.y_h)
    for d in range(first.n_d):
        y_d = y + d * first.y_d
        for k in range(a.w_sums):
            s = sums[k]
            rows, r = records(a, integers(s.rows)[band], "plane_row"), 0
            x, to = lines + d * s.x_d, y_d if a.w_sums == 1 else apart + k * a.spare_sum
            direct = activation <= RELU6 and s.y_w == 1
            while rows[r].rows:
                row, tiles, t = rows[r], records(a, rows[r].tiles, "plane_tile"), 0
                x_r, y_r = x + row.x, to + row.y
                while tiles[t].groups:
                    tile = tiles[t]
                    if s.ahead:
                        for i in range(row.rows * s.ahead_lines):
                            prefetch(x_r + (tile.x + s.ahead + i * s.ahead_line))
                        for i in range(row.rows, 2 * row.rows):
                            prefetch(y_r + (tile.y + i * s.y_row))
                    if direct and tile.blocks == 1:
                        columns(
                            shapes, row.rows, tile.size, integers(tile.groups), x_r + tile.x, s.x_row, w, s.w_step,
                            y_r + tile.y, s.y_row, tile.part, c, 0, bias, activation, state,
                        )  # fmt: skip
                    else:
                        buffered_tile(
                            shapes,
                            s,
                            tile,
                            row.rows,
                            x_r + tile.x,
                            w,
                            y_r + tile.y,
                            bias,
                            activation,
                            c,
                            state,
                        )
                    t += 1
                r += 1
        if a.w_sums > 1:
            for h in range(min(first.n_h - band * a.band, a.band)):
                merge(
                    y_d + h * first.y_h, apart + h * (a.spare_sum // a.band), a.spare_sum, a.w_sums, a.out_w
                )


@helper
def place(a, task):
    """Return (band, channel, image) of a task."""
    if a.by_bands:
        return task // a.channels % a.bands, task % a.channels, task // a.channels // a.bands
    return task % a.bands, task // a.bands % a.channels, task // a.bands // a.channels


@helper
def step_place(a, band, channel, image):
    """Return the same of the next task; counted and not divided out, as small planes take no longer than a few divisions."""
    inner, outer, inners, outers = band, channel, a.bands, a.channels
    if a.by_bands:
        inner, outer, inners, outers = channel, band, a.channels, a.bands
    inner += 1
    if inner == inners:
        inner, outer = 0, outer + 1
        if outer == outers:
            outer, image = 0, image + 1
    if a.by_bands:
        return outer, inner, image
    return inner, outer, image


@helper
def read_band(a, band, channel, image, to):
    """A band of a channel: in place, or its lines in scratch."""
    x = reals(a, a.x) + (image * a.x_image + channel * a.x_channel)
    if a.in_place:
        return x + band * a.x_band
    if a.copies == 0:
        map_band(a, x, band * a.band, to)
    else:
        listed, c = records(a, integers(a.copies)[band], "copy"), 0
        while listed[c].rows:
            copy_rows(listed[c], to, x)
            c += 1
    return to


def depthwise_planes(a, begin, end, thread):
    """A task is a band of rows of one channel."""
    c, state, shapes = stack_vectors(a, MAX_ROWS), stack_integers(1), column_tiles(a)
    scratch = reals(a, a.work + thread * a.work_stride)
    clear(scratch, 2 * a.band_size)
    sums = records(a, a.sums, "plane_sum")
    lines = following = scratch
    next_band, next_channel, next_image = place(a, begin)
    band, channel, image = next_band, next_channel, next_image
    # The next band is copied before this one is summed: its stores have time to land.
    for task in range(begin - 1, end):
        if task + 1 < end:
            half = scratch + (task & 1) * a.band_size
            following = read_band(a, next_band, next_channel, next_image, half)
            next_band, next_channel, next_image = step_place(a, next_band, next_channel, next_image)
        if task >= begin:
            for s in range(0, a.sum_count, a.w_sums):
                for m in range(a.multiplier):
                    o = channel * a.multiplier + m
                    sum_band(a, shapes, sums[s], lines, image, o, band, scratch, c, state)
            band, channel, image = step_place(a, band, channel, image)
        lines = following


@helper
def list_kernel_rows(s, x, d, h, rows):
    """The kernel rows that output row (d, h) meets, with how many they are in front."""
    map_d, map_h, w = integers(s.map_d), integers(s.map_h), integers(s.w_rows)
    count = 0
    for i in range(s.taps_d):
        for j in range(s.taps_h):
            at_d, at_h = map_d[i * s.n_d + d], map_h[j * s.n_h + h]
            if at_d >= 0 and at_h >= 0:
                rows[1 + 2 * count] = address(x + (at_d + at_h))
                rows[2 + 2 * count] = w[i * s.taps_h + j]
                count += 1
    rows[0] = count


@helper
def address_columns(kernel_rows, column, pixels, k_block, zero, to):
    """All columns of a tile as if of one kernel row, with addresses for places, so that padding can be zeros.

    A 0 is behind each K block, and the number of blocks in front.
    """
    at, blocks, in_block = 1, 1, 0
    for r in range(kernel_rows[0]):
        x, w = kernel_rows[1 + 2 * r], kernel_rows[2 + 2 * r]
        k = 0
        while column[k]:
            taps = column[k]
            if in_block + taps > k_block:
                to[at] = 0
                at, blocks, in_block = at + 1, blocks + 1, 0
            in_block += taps
            to[at], to[at + 1] = taps, w + column[k + 1]
            for i in range(2, pixels + taps + 1):
                to[at + i] = zero if column[k + i] < 0 else x + column[k + i]
            at += pixels + taps + 1
            k += pixels + taps + 1
    to[at] = 0
    to[0] = blocks


@helper
def pixel_tile(a, shapes, s, count, kernel_rows, column, blocks, channel, end, shift, y, ahead, c, state):
    """A tile of pixels for some channels. The last vector overlaps the one before, or is the only one; the second one of
    all, at `shift` if that is not 0, overlaps the first.
    """
    w, bias = reals(a, a.w), reals(a, a.b)
    simple = a.activation <= RELU6
    x_ahead, x_share, y_ahead, y_share = ahead
    while channel < end:
        left = end - channel
        width, size, part, many = lanes(a), 0, 0, 1
        step = shift if channel == 0 and shift else lanes(a)
        if left >= lanes(a):
            if blocks == 1 and simple:
                many = (left - step) // lanes(a) + 1
        else:
            if halves(a) and left <= lanes(a) // 2 and a.channels >= lanes(a) // 2:
                width, size = lanes(a) // 2, HALF
            if a.channels >= width:
                channel = a.channels - width
            else:
                size, part = 1, left
        aside = c + -channel
        state[0] = address(column)
        for block in range(blocks - 1):
            pixels(
                shapes, count, size, kernel_rows, integers(state[0]), channel, w, s.w_step, aside, width, part, 1,
                step, aside, min(block, 1), bias, 0, LINEAR, x_ahead, 0, y_ahead, 0, state,
            )  # fmt: skip
        to, to_row = (y, s.y_row) if simple else (aside, width)
        adding, has_bias = 1 if blocks > 1 else 0, 1 if a.b else 0
        clamp = a.activation if simple else LINEAR
        pixels(
            shapes, count, size, kernel_rows, integers(state[0]), channel, w, s.w_step, to, to_row, part, many,
            step, aside, adding, bias, has_bias, clamp, x_ahead, x_share, y_ahead, y_share, state,
        )  # fmt: skip
        x_ahead, y_ahead = x_ahead + many * x_share, y_ahead + many * y_share
        if not simple:
            finish_row(c, count * width, real(a, 0.0), a.activation)
            for r in range(count):
                copy(y + (r * s.y_row + channel), c + r * width, part if part else width)
        channel += step + (many - 1) * lanes(a)


@helper
def pixels_ahead(a, s, rows, number, tiles, channels, y):
    """Where lies what the next row is the first to read of a large image, and its place: the share of one tile of this row,
    as many elements of each as one of the vectors of so many channels fetches.
    """
    begin, end = a.ahead * number // s.tile_count, a.ahead * (number + 1) // s.tile_count
    vectors = (channels + lanes(a) - 1) // lanes(a)
    x_share = (end - begin + vectors - 1) // vectors
    y_share = (tiles[number].pixels * s.y_row + vectors - 1) // vectors
    return reals(a, rows[2 * rows[0] - 1]) + (a.x_row + begin), x_share, y + s.y_h, y_share


@helper
def pixel_strip(
    a, shapes, s, first_row, row_count, tile, tile_end, rows, lists, channel, end, shift, y, one_row, c, state
):
    """The tiles of a strip of columns in all rows of a band, for some channels.

    From row to row: what the rows of a kernel read in common stays in L1, and each row of the image comes from below once.
    """
    tiles = records(a, s.tiles, "pixel_tile")
    for r in range(row_count):
        y_r = y + ((first_row + r) // s.n_h * s.y_d + (first_row + r) % s.n_h * s.y_h)
        for t in range(tile, tile_end):
            count, y_t, rows_t = tiles[t].pixels, y_r + tiles[t].y, rows + r * a.row_words
            columns_t, blocks = integers(tiles[t].columns), int64(1)
            ahead = y_t, int64(0), y_t, int64(0)
            if a.ahead and channel == 0 and rows_t[0]:
                ahead = pixels_ahead(a, s, rows_t, t, tiles, end, y_t)
            if tiles[t].list >= 0:
                made = lists + (r * a.list_words + tiles[t].list)
                rows_t, columns_t, blocks = one_row, made + 1, made[0]
            pixel_tile(
                a, shapes, s, count, rows_t, columns_t, blocks, channel, end, shift, y_t, ahead, c, state
            )


@helper
def list_band(a, s, x, first_row, row_count, zeros, rows, lists):
    """The kernel rows of each row of a band, and the lists of its tiles."""
    tiles = records(a, s.tiles, "pixel_tile")
    for r in range(row_count):
        rows_r = rows + r * a.row_words
        list_kernel_rows(s, x, (first_row + r) // s.n_h, (first_row + r) % s.n_h, rows_r)
        for t in range(s.tile_count):
            if tiles[t].list >= 0:
                to = lists + (r * a.list_words + tiles[t].list)
                address_columns(
                    rows_r, integers(tiles[t].columns), tiles[t].pixels, a.k_block, address(zeros), to
                )


def depthwise_pixels(a, begin, end, thread):
    """A task is a band of rows of pixels, for a block of channels."""
    c, state, one_row = stack_vectors(a, MAX_ROWS), stack_integers(1), stack_integers(3)
    shapes = pixel_tiles(a)
    one_row[0], one_row[1], one_row[2] = 1, 0, 0
    zeros = reals(a, a.work + thread * a.work_stride)
    rows = integers(address(zeros + a.w_stride))
    lists = integers(address(rows + a.band * a.row_words))
    clear(zeros, a.w_stride)
    for task in range(begin, end):
        image, block, rest = task // a.tasks // a.blocks, task // a.tasks % a.blocks, task % a.tasks
        sums, number = records(a, a.sums, "pixel_sum"), a.sum_count - 1
        while sums[number].task_begin > rest:
            number -= 1
        s = sums[number]
        first_row = (rest - s.task_begin) * a.band
        row_count = min(a.band, s.n_d * s.n_h - first_row)
        list_band(a, s, reals(a, a.x) + image * a.x_image, first_row, row_count, zeros, rows, lists)
        # Vectors on their own cache lines, behind a first one that overlaps the second.
        size, y = lanes(a), reals(a, a.y) + (image * a.y_image + s.y)
        shift = -a.x // bytes_each(a) & (size - 1) if a.on_lines else 0
        vectors, channel, last = a.channels // size, 0, a.channels
        if block:
            channel = vectors * block // a.blocks * size + shift
        if block + 1 < a.blocks:
            last = vectors * (block + 1) // a.blocks * size + shift
        while channel < last:
            until = min(channel + a.piece + (shift if channel == 0 else 0), last)
            for t in range(0, s.tile_count, s.strip):
                tile_end = min(t + s.strip, s.tile_count)
                pixel_strip(
                    a, shapes, s, first_row, row_count, t, tile_end, rows, lists, channel, until, shift, y, one_row, c, state
                )  # fmt: skip
            channel = until


@helper
def settle_all(a, y, shift, has_bias, count, steps, c):
    """Bias and activation, in place; `shift` holds the bias of each lane."""
    for p in range(steps):
        for i in range(0, count, lanes(c)):
            some, at = min(count - i, lanes(c)), y + (p * a.y_pixel + i)
            copy(c, at, some)
            finish_lanes(c, some, shift, has_bias, a.activation)
            copy(at, c, some)


@helper
def settle_anew(a, image, channel, thread):
    """The engine's sums for one channel of an image."""
    first = (image * a.channels + channel) * a.engine_tasks
    call_engine(a.engine, words_of(a) + a.engine_words, first, first + a.engine_tasks, thread)


def settle(a, begin, end, thread):
    """A task is a channel, or with channels last a vector of them.

    Bias and activation if all sums are finite, else all anew.
    """
    c, shift, spoiled = stack_vectors(a, 1), stack_vectors(a, 1), stack_vectors(a, 1)
    planes, has_bias, zero = a.y_pixel == 1, 1 if a.b else 0, splat(c, real(a, 0.0))
    size = 1 if planes else lanes(c)
    for task in range(begin, end):
        image, channel = task // a.tasks, task % a.tasks * size
        channels = min(a.channels - channel, size)
        count, steps = channels, a.pixels
        if planes:
            count, steps = a.pixels, 1
        y = reals(a, a.y) + (image * a.y_image + channel * a.y_channel)
        sums = zero
        for p in range(steps):
            for i in range(0, count, lanes(c)):
                sums = fma(load_some(y + (p * a.y_pixel + i), count - i), zero, sums)
        store(spoiled, sums)
        finite = True
        for i in range(lanes(c)):
            finite = finite and spoiled[i] == 0.0
        if has_bias:
            bias = reals(a, a.b) + channel
            store(shift, splat(c, bias[0]) if planes else load_some(bias, channels))
        if (finite or not planes) and (has_bias or a.activation):
            settle_all(a, y, shift, has_bias, count, steps, c)
        if not finite:
            for i in range(channels):
                if planes or spoiled[i] != 0.0:
                    settle_anew(a, image, channel + i, thread)

"""The haloed image. After it, everything is a stride-1 sum: padding, strides and phases are gone.

An image is copied through one index map an axis (-1: zero). Along W a phase is a run through the source in
equal steps, with whatever the padding mode asks for on both sides of it.
"""

from .moves import (
    clear,
    copy,
    copy_evens,
    copy_mapped,
    copy_strided,
    copy_thirds,
    fill_square,
    split,
    split_in_three,
    transpose,
)
from .simd import helper, integers, lanes, load, load_part, reals, stack_vectors, store

PIECE = 64  # pixels that are turned at a time


@helper
def fill_row(y, y_phase, x, inside, x_w, phases, lines, maps, all_runs):
    """One row of a plane, each W phase in turn; a row that is not inside lies in the padding, and is zero."""
    for p in range(phases):
        to, index, runs = y + p * y_phase, maps + p * lines, all_runs + p * 4
        if inside:
            begin, end, step = runs[0], runs[1], runs[3] * x_w
            run = x + runs[2] * x_w
            copy_mapped(to, x, x_w, index, begin)
            if step == 1:
                copy(to + begin, run, end - begin)
            elif step == 2:
                copy_evens(to + begin, run, end - begin)
            elif step == 3:
                copy_thirds(to + begin, run, end - begin)
            else:
                copy_strided(to + begin, 1, run, step, end - begin)
            copy_mapped(to + end, x, x_w, index + end, lines - end)
        else:
            clear(to, lines)


@helper
def copy_rows(c, scratch, x):
    """Copies as COPY_WORDS of src/program.h; zeros fill the last vector of a row, so that all are stored whole."""
    whole = (c.n - 1) // lanes(x) * lanes(x)
    for r in range(c.rows):
        to, source = scratch + (c.to + r * c.to_row), x + (c.at + r * c.at_row)
        if c.step == 1:
            for i in range(0, whole, lanes(x)):
                store(to + i, load(source + i))
            store(to + whole, load_part(source + whole, c.n - whole))
        elif c.step == -2:
            split(to, scratch + (c.odd + r * c.to_row), source, c.n)
        elif c.step == -3:
            row = scratch + r * c.to_row
            split_in_three(to, row + c.odd, row + c.third, source, c.n)
        elif c.step == 0:
            clear(to, c.n)
        elif c.step == 2:
            copy_evens(to, source, c.n)
        elif c.step == 3:
            copy_thirds(to, source, c.n)
        else:
            copy_strided(to, 1, source, c.step, c.n)


@helper
def fill_rows(y, y_phase, y_block, x, x_w, channels, phases, lines, maps, all_runs):
    """As fill_row, rows of as many planes as there are channels side by side."""
    for p in range(phases):
        to, index, runs = y + p * y_phase, maps + p * lines, all_runs + p * 4
        if channels == lanes(y) and lines >= lanes(y):
            for next_line in range(0, lines, lanes(y)):  # the last square overlaps the one before
                i = min(next_line, lines - lanes(y))
                fill_square(to + i, y_block, x, x_w, index + i)
            continue
        begin, end = runs[0], runs[1]
        for c in range(channels):
            copy_mapped(to + c * y_block, x + c, x_w, index, begin)
            copy_mapped(to + (c * y_block + end), x + c, x_w, index + end, lines - end)
        transpose(to + begin, y_block, x + runs[2] * x_w, runs[3] * x_w, end - begin, channels)


def halo_planes(a, begin, end, thread):
    """A task is a band of lines, of all H phases, of a block of channels; the result has planes of channels.

    Channels of a block lie side by side in the source if there are several. The last tasks come first: of an image too
    large for the cache, what is read next is in it.
    """
    map_d, map_h, starts = integers(a.map_d), integers(a.map_h), integers(a.starts)
    map_w, runs = integers(a.map_w), integers(a.runs)
    h_lines = a.rows_h // a.h_phases
    bands = (h_lines + a.band - 1) // a.band
    for task in range(end - 1, begin - 1, -1):
        parts = a.rows_d * bands
        part, block, image = task % parts, task // parts % a.blocks, task // parts // a.blocks
        if a.by_bands:
            block, part = task % a.blocks, task // a.blocks % parts
        d, line_begin = part // bands, part % bands * a.band
        first, last = starts[block], starts[block + 1]
        plane = reals(a, a.x) + (
            image * a.x_image + first // a.repeat * a.x_channel + max(map_d[d], 0) * a.x_d
        )
        y = reals(a, a.y) + (image * a.y_image + first * a.y_block + d * a.y_d)
        for line in range(line_begin, min(line_begin + a.band, h_lines)):
            for h in range(line, a.rows_h, h_lines):
                inside = map_d[d] >= 0 and map_h[h] >= 0
                x, to = plane, y + h * a.y_h
                if inside:
                    x = plane + map_h[h] * a.x_h
                if inside and last - first > 1:
                    fill_rows(
                        to, a.y_phase, a.y_block, x, a.x_w, last - first, a.w_phases, a.w_lines, map_w, runs
                    )
                else:
                    for c in range(last - first):
                        fill_row(
                            to + c * a.y_block,
                            a.y_phase,
                            x,
                            inside,
                            a.x_w,
                            a.w_phases,
                            a.w_lines,
                            map_w,
                            runs,
                        )


@helper
def fill_pixels(y, y_w, x, x_channel, step, count, channels, repeat, first_channel):
    """`count` pixels from a run of the source; channels past the last of the image stay zero."""
    if repeat > 1:
        for i in range(count):
            for c in range(channels):
                y[i * y_w + c] = x[i * step + (first_channel + c) // repeat * x_channel]
    elif x_channel == 1:
        for i in range(count):
            copy(y + i * y_w, x + (i * step + first_channel), channels)
    elif step == 1:
        transpose(y, y_w, x + first_channel * x_channel, x_channel, channels, count)
    elif step != 2:
        for i in range(count):
            copy_strided(y + i * y_w, 1, x + (i * step + first_channel * x_channel), x_channel, channels)
    else:
        # Every second pixel: brought side by side first.
        near = stack_vectors(y, PIECE)
        for i in range(0, count, PIECE):
            for c in range(0, channels, lanes(y)):
                pixels, some = min(count - i, PIECE), min(channels - c, lanes(y))
                for r in range(some):
                    source = x + (i * step + (first_channel + c + r) * x_channel)
                    copy_evens(near + r * PIECE, source, pixels)
                transpose(y + (i * y_w + c), y_w, near, PIECE, some, pixels)


def halo_pixels(a, begin, end, thread):
    """A task is a row of one block of channels, rows of the H phases in turn, as they are in the image.

    In the result the channels of a block lie side by side. The last tasks come first.
    """
    map_d, map_h, starts = integers(a.map_d), integers(a.map_h), integers(a.starts)
    for task in range(end - 1, begin - 1, -1):
        h, rest = task % a.rows_h, task // a.rows_h
        d, rest = rest % a.rows_d, rest // a.rows_d
        block, image = rest % a.blocks, rest // a.blocks
        h = h % a.h_phases * (a.rows_h // a.h_phases) + h // a.h_phases
        first = starts[block]
        channels = starts[block + 1] - first
        y = reals(a, a.y) + (image * a.y_image + block * a.y_block + d * a.y_d + h * a.y_h)
        x = reals(a, a.x) + image * a.x_image
        inside = map_d[d] >= 0 and map_h[h] >= 0
        if inside:
            x = x + (map_d[d] * a.x_d + map_h[h] * a.x_h)
        for p in range(a.w_phases):
            to, index, runs = y + p * a.y_phase, integers(a.map_w) + p * a.w_lines, integers(a.runs) + p * 4
            if not inside or channels < a.y_w:
                clear(to, a.w_lines * a.y_w)
            if not inside:
                continue
            i = 0
            while i < a.w_lines:
                # The run in one piece, and single pixels before and behind it.
                count = max(runs[1] - i, 1) if i >= runs[0] else 1
                step = runs[3] * a.x_w
                if index[i] < 0:
                    clear(to + i * a.y_w, channels)
                else:
                    source = x + index[i] * a.x_w
                    fill_pixels(
                        to + i * a.y_w, a.y_w, source, a.x_channel, step, count, channels, a.repeat, first
                    )
                i += count

"""The dense product around the register tile: K blocks, panels, and which pixels and channels a task has.

``dense_rows`` puts pixels into the vectors. For each K block it stitches a panel [k][pixels] of one tile's
width, about 24 KB that stay in L1 while every block of output channels passes over it. With few output
channels a group the stitching would not pay, and the vectors read the image in line space as it is
(`direct`), rubbish between the rows included, which is dropped on the way out.

Both phases of a row that a transposed convolution of stride 2 writes are summed by one task, and leave zipped.

``dense_lanes`` puts output channels into the vectors and broadcasts pixels from the image through the table.
"""

from numba import int64

from .epilogue import CACHE_LINE, expect_rows, finish_row, leave_lanes, store_rows
from .moves import copy, copy_over, copy_zipped
from .pack import pack_block
from .simd import (
    address,
    bytes_each,
    elements_before,
    helper,
    integers,
    lanes,
    prefetch,
    reals,
    records,
    stack_integers,
    stack_runs,
)
from .tile import (
    MAX_K_BLOCK,
    MAX_PIXEL_BLOCK,
    MAX_TILE_ROWS,
    lane_rows,
    lane_tiles,
    lane_vectors,
    pixel_tiles,
    tile,
    tile_rows,
    tile_vectors,
)

# Weights that no L2 holds.
BEYOND_CACHE = 1 << 20
LEAST_LINE = 8  # elements of a cache line


@helper
def line_pixels(part):
    return (part.n_d - 1) * part.x_d + (part.n_h - 1) * part.x_h + part.n_w


@helper
def dense_decode(a, task):
    """Return (sum, image, group, first pixel, chunk of output channels, pixels) of a task."""
    image = task // a.tasks * a.images_per_task
    images = min(a.images - image, a.images_per_task)
    rest, s = task % a.tasks, a.sum_count - 1
    sums = records(a, a.sums, "sum")
    if a.in_turn:  # neighbouring pixels of all sums read the same
        chunk, rest = rest % a.chunks, rest // a.chunks
        s, rest = rest % a.sum_count * a.together, rest // a.sum_count
    else:
        s *= a.together
        while sums[s].task_begin > rest:
            s -= a.together
        rest -= sums[s].task_begin
        chunk, rest = rest % a.chunks, rest // a.chunks
    part = sums[s]
    each = line_pixels(part) if a.direct else part.n_d * part.n_h * part.n_w
    blocks = (each * a.images_per_task + a.pixel_block - 1) // a.pixel_block
    group, block = rest // blocks, rest % blocks
    if not a.by_groups:
        group, block = rest % a.groups, rest // a.groups
    pixel = block * a.pixel_block
    return s, image, group, pixel, chunk, min(each * images - pixel, a.pixel_block)


@helper
def pixel_runs(a, part, pixel, count, runs):
    """Runs of pixels that lie side by side in the image and in the output: `count` pixels from `pixel` on."""
    w, rest = pixel % part.n_w, pixel // part.n_w
    h, rest = rest % part.n_h, rest // part.n_h
    d, image = rest % part.n_d, rest // part.n_d
    at, found = 0, 0
    while at < count:
        run = runs[found]
        run.x = image * a.x_image + d * part.x_d + h * part.x_h + w * part.x_w
        run.y = image * a.y_image + d * part.y_d + h * part.y_h + w * part.y_w
        run.at = at
        run.count = min(part.n_w - w, count - at)
        at += run.count
        found += 1
        w = 0
        h += 1
        if h == part.n_h:
            h = 0
            d += 1
            if d == part.n_d:
                d = 0
                image += 1
    return found


@helper
def line_runs(part, position, count, runs):
    """The pixels among `count` positions of line space from `position` on; not the rubbish between rows."""
    d, rest = position // part.x_d, position % part.x_d
    h, w = rest // part.x_h, rest % part.x_h
    found = 0
    if h >= part.n_h:  # between two planes
        d += 1
        h = w = 0
    while d < part.n_d:
        while h < part.n_h:
            at = d * part.x_d + h * part.x_h + w - position
            if at >= count:
                return found
            if w < part.n_w:
                run = runs[found]
                run.at = at
                run.count = min(part.n_w - w, count - at)
                run.y = d * part.y_d + h * part.y_h + w * part.y_w
                found += 1
            h += 1
            w = 0
        d += 1
        h = w = 0
    return found


@helper
def stitch(panel, width, x, x_end, offsets, count, runs, run_count):
    """panel[k][0..width) from the image.

    Whole vectors are copied from left to right, so that a run covers what the one before wrote too much;
    where that would read past the end of the array, exactly the run is copied.
    """
    last = runs[run_count - 1]
    reach = last.x + last.count + lanes(x)
    for k in range(count):
        x_k, to = x + offsets[k], panel + k * width
        if elements_before(x_k, x_end) >= reach:
            for s in range(run_count):
                run = runs[s]
                copy_over(to + run.at, x_k + run.x, run.count)
        else:
            for s in range(run_count):
                run = runs[s]
                copy(to + run.at, x_k + run.x, run.count)


@helper
def leave_rows(a, part, group, channel, rows, c, between, c_row, pixels, runs, run_count, y):
    """The sums of some channels of a group leave, by runs of pixels; with two phases, `between` has the pixels between them."""
    if a.b or a.activation:
        for r in range(rows):
            bias = reals(a, a.b)[group * a.channels + channel + r] if a.b else 0.0
            finish_row(c + r * c_row, pixels, bias, a.activation)
            if a.together == 2:
                finish_row(between + r * c_row, pixels, bias, a.activation)
    if a.together == 2:
        for r in range(rows):
            for n in range(run_count):
                run = runs[n]
                at = r * c_row + run.at
                copy_zipped(y + ((channel + r) * a.y_channel + run.y), c + at, between + at, run.count)
        return
    store_rows(c, c_row, rows, runs, run_count, y + channel * a.y_channel, a.y_channel, part.y_w)


@helper
def task_runs(a, part, pixel, pixels, runs):
    """Find the runs of a task's pixels, however they are counted; returns how many."""
    return line_runs(part, pixel, pixels, runs) if a.direct else pixel_runs(a, part, pixel, pixels, runs)


def dense_rows(a, begin, end, thread):
    """A row of the tile is an output channel, its vectors are pixels."""
    tiles = pixel_tiles(a)
    panel = reals(a, a.work + thread * a.work_stride)
    steps, row = stack_integers(MAX_K_BLOCK), stack_integers(MAX_TILE_ROWS)
    runs, source = stack_runs(a, MAX_PIXEL_BLOCK), stack_runs(a, 1)
    # Behind the panel: sums, of the whole task if there are several K blocks, else of a tile. Those of one row of tiles are
    # held as well if they leave as rows, whose way is then found once.
    partial = panel + (a.k_block * tile_vectors(a) * lanes(a) + lanes(a))
    for task in range(begin, end):
        s, image, group, first_pixel, chunk, task_pixels = dense_decode(a, task)
        if task_pixels <= 0:  # fewer images than share a task
            continue
        part, last_part = records(a, a.sums, "sum")[s], records(a, a.sums, "sum")[s + a.together - 1]
        x = reals(a, a.x) + (image * a.x_image + group * a.x_group + part.x)
        w = reals(a, a.w) + (part.w + group * part.w_group)
        y = reals(a, a.y) + (image * a.y_image + group * a.y_group + part.y)
        # Packed weights have a block of channels for each row of tiles: their steps to the next channel and block.
        w_r, w_o = (1, part.w_block // tile_rows(a)) if a.w_width > 1 else (part.w_block, part.w_block)
        first = chunk * a.chunk
        last = min(first + a.chunk, a.channels)
        k_blocks = max((max(part.taps, last_part.taps) + a.k_block - 1) // a.k_block, 1)
        held = a.together == 2 or (k_blocks == 1 and last - first <= tile_rows(a) and a.y_channel != 1)
        whole = held or k_blocks > 1
        c_row = a.pixel_block + lanes(a)
        c_phase = (last - first) * c_row
        # Panels of equal width rather than full ones and a narrow last.
        vectors = (task_pixels + lanes(a) - 1) // lanes(a)
        panels = (vectors + tile_vectors(a) - 1) // tile_vectors(a)
        if a.ahead and held:
            found = task_runs(a, part, first_pixel, task_pixels, runs)
            expect_rows(last - first, runs, found, y + first * a.y_channel, a.y_channel, part.y_w)
        for kb in range(k_blocks):
            k = kb * a.k_block
            for n in range(panels * a.together):
                p, phase = n // a.together, n % a.together
                of = records(a, a.sums, "sum")[s + phase]
                x_offsets, w_offsets = integers(of.x_offsets), integers(of.w_offsets)
                count = min(of.taps - k, a.k_block)
                if count <= 0 and kb > 0:  # the other phase has more taps
                    continue
                start = vectors * p // panels
                nv = vectors * (p + 1) // panels - start
                width = nv * lanes(a)
                pixel = first_pixel + start * lanes(a)
                pixels = min(task_pixels - start * lanes(a), width)
                columns, column_offsets = panel, steps
                found = int64(0)
                if not a.direct:
                    found = pixel_runs(a, part, pixel, pixels, runs)
                elif not held:  # else found at the end
                    found = line_runs(part, pixel, pixels, runs)
                if a.direct and elements_before(x + (pixel + of.x_most), a.x_end) >= width:
                    columns, column_offsets = x + pixel, x_offsets + k
                else:
                    pieces, piece_count = runs, found
                    if a.direct:
                        source.x, source.at, source.count = pixel, 0, pixels
                        pieces, piece_count = source, int64(1)
                    # Both phases of 2x2 taps read the same.
                    if phase == 0 or last_part.x_offsets != part.x_offsets:
                        stitch(panel, width, x, a.x_end, x_offsets + k, count, pieces, piece_count)
                    for i in range(count):
                        steps[i] = i * width
                for o in range(first, last, tile_rows(a)):
                    rows = min(last - o, tile_rows(a))
                    for r in range(rows):
                        row[r] = address(w + (o * w_o + r * w_r))
                    c = partial
                    if whole:
                        c = partial + (phase * c_phase + (o - first) * c_row + start * lanes(a))
                    else:
                        c_row = width
                    if a.ahead and not held and kb == k_blocks - 1:
                        expect_rows(rows, runs, found, y + o * a.y_channel, a.y_channel, part.y_w)
                    tile(tiles, rows, nv, count, row, w_offsets + k, columns, column_offsets, c, c_row, kb)
                    if not held and kb == k_blocks - 1:
                        leave_rows(a, part, group, o, rows, c, c, c_row, pixels, runs, found, y)
        if held:
            found = task_runs(a, part, first_pixel, task_pixels, runs)
            between = partial + c_phase
            leave_rows(
                a, part, group, first, last - first, partial, between, c_row, task_pixels, runs, found, y
            )


@helper
def prefetch_rows(x, x_row, begin, end, count):
    """Fetch rows that will be packed next into L2."""
    for r in range(begin, end):
        for i in range(0, count, LEAST_LINE):
            prefetch(x + (r * x_row + i))


@helper
def short_panels(a):
    """Whether weights come in panels for narrow vectors: long ones the processor fetches in time by itself."""
    return lanes(a) * bytes_each(a) < CACHE_LINE


@helper
def prefetch_part(following, elements, begin, end, parts):
    """Fetch a part of what is multiplied next into L2."""
    line = CACHE_LINE // bytes_each(following)
    lines = elements // line
    for at in range(lines * begin // parts, lines * end // parts):
        prefetch(following + at * line)


def dense_lanes(a, begin, end, thread):
    """A row of the tile is a pixel, its vectors are output channels."""
    bias, tiles = reals(a, a.b), lane_tiles(a)
    c = reals(a, a.work + thread * a.work_stride)
    turned = c + a.pixel_block * lane_vectors(a) * lanes(a)
    turned_row = a.pixel_block + lanes(a)
    panel = turned + lane_vectors(a) * lanes(a) * turned_row
    steps, pixel = stack_integers(MAX_K_BLOCK), stack_integers(MAX_PIXEL_BLOCK)
    runs = stack_runs(a, MAX_PIXEL_BLOCK)
    for i in range(a.k_block):
        steps[i] = i * a.w_width
    for task in range(begin, end):
        s, image, group, first_pixel, chunk, pixels = dense_decode(a, task)
        if pixels <= 0:  # fewer images than share a task
            continue
        part = records(a, a.sums, "sum")[s]
        x = reals(a, a.x) + (image * a.x_image + group * a.x_group + part.x)
        w = reals(a, a.w) + (part.w + group * part.w_group + chunk * part.w_block)
        x_offsets, w_offsets = integers(part.x_offsets), integers(part.w_offsets)
        first = chunk * a.w_width
        channels = min(a.channels - first, a.w_width)
        nv = (channels + lanes(a) - 1) // lanes(a)
        width = nv * lanes(a)
        y = reals(a, a.y) + (image * a.y_image + group * a.y_group + first * a.y_channel + part.y)
        found = pixel_runs(a, part, first_pixel, pixels, runs)
        for s in range(found):
            for i in range(runs[s].count):
                pixel[runs[s].at + i] = address(x + (runs[s].x + i * part.x_w))
        far = short_panels(a) and not a.w_row and a.groups * a.channels * part.taps > BEYOND_CACHE
        k_blocks = max((part.taps + a.k_block - 1) // a.k_block, 1)
        for kb in range(k_blocks):
            k = kb * a.k_block
            count = min(part.taps - k, a.k_block)
            columns, column_offsets = w, w_offsets + k
            if a.w_row:
                places = integers(part.w_places) + k
                pack_block(panel, a.w_width, w, a.w_row, channels, w_offsets + k, places, count)
                columns, column_offsets = panel, steps
            following = part.taps - k - count
            ahead = 0
            if a.w_row and a.groups * a.channels * part.taps > BEYOND_CACHE:
                ahead = min(following, count)
            for p in range(0, pixels, lane_rows(a)):
                rows, c_p = min(pixels - p, lane_rows(a)), c + p * width
                if far and following > 0:
                    after = w + w_offsets[k + count]
                    prefetch_part(after, min(following, count) * a.w_width, p, p + rows, pixels)
                if ahead > 0:
                    upto = channels * (p + rows) // pixels
                    prefetch_rows(w + w_offsets[k + count], a.w_row, channels * p // pixels, upto, ahead)
                tile(
                    tiles, rows, nv, count, pixel + p, x_offsets + k, columns, column_offsets, c_p, width, kb
                )
        b = bias + (group * a.channels + first)
        leave_lanes(
            c, width, pixels, channels, runs, found, b, a.b != 0, a.activation,
            turned, turned_row, y, a.y_channel, part.y_w,
        )  # fmt: skip

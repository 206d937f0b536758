"""Winograd's minimal filtering: m outputs of a stride-1 sum over r taps from a = m + r - 1 products, along one axis
(rank 1) or along two at once (rank 2), with the taps of a third axis and the pieces of a kernel among the channels.

``winograd_weights`` turns the packed weights [k][o] into a^rank matrices [channel][o]. ``winograd`` (and before it
``winograd_inputs``, where tasks share them) does a block of tiles: their inputs become a^rank matrices
[source][channel], each is multiplied by its weights with the register tile, and the sums of each output become
its pixels. A source is what a tile of outputs reads at one tap of the third axis, where neighbours share most
of theirs, for one piece of the kernel. Channels are in the vectors throughout, and a block is so small that all of it
stays in L2. Where blocks read a part of the image each, a task makes that part's haloed rows itself (src/join.h).
src/winograd.h tells where the points come from.

A NaN or inf spreads over its whole tile here. A tile that holds one is summed again directly.
"""

from collections import namedtuple

from .dense import BEYOND_CACHE, prefetch_part, short_panels
from .epilogue import expect_rows, leave_lanes
from .moves import clear
from .simd import (
    address,
    helper,
    integers,
    lanes,
    reals,
    records,
    stack_integers,
    stack_runs,
    stack_vectors,
)
from .tile import MAX_K_BLOCK, MAX_TILE_ROWS, lane_rows, lane_tiles, lane_vectors, tile
from .transforms import (
    input_transforms,
    output_transforms,
    transform_inputs,
    transform_outputs,
    transform_weights,
    weight_transforms,
)

# Outputs that leave together stay in L1; and the most tiles of a task.
LEAVING_PIXELS = 128
MAX_TILES = 192
WIDTH_BYTES = 256  # of a block of output channels
MAX_WIDTH = WIDTH_BYTES // 4

# What a task has: some tiles of a sum, in one group, and the sources that they read. Tiles and sources of all images
# of a chunk are numbered through. `index` numbers (block, group, sum).
Task = namedtuple("Task", "part group index first count source sources")

# The scratch of a thread:
#   sums [points][tile][o]
#   leaving [pixel][o], turned [o][pixel]   outputs that leave together
#   panel [k][pixel]                        inputs of a tile that is summed directly
#   own [points][source][channel]             transformed inputs that no other task needs
Scratch = namedtuple("Scratch", "sums leaving turned panel own")

# What is compiled with the engine and called through tables.
Tables = namedtuple("Tables", "multiply outputs")


@helper
def ranked(n, rank):
    """n to the power of the rank."""
    return n * n if rank == 2 else n


@helper
def winograd_points(a):
    return ranked(a.outputs + a.kernel - 1, a.rank)


@helper
def leaving_tiles(a):
    return LEAVING_PIXELS // ranked(a.outputs, a.rank)


@helper
def source_point(a):
    """Elements from a matrix of transformed inputs to the next."""
    return a.block_sources * a.v_row + lanes(a)


@helper
def winograd_scratch(a, thread):
    leaving_pixels = leaving_tiles(a) * ranked(a.outputs, a.rank)
    sums = reals(a, a.work + thread * a.work_stride)
    leaving = sums + winograd_points(a) * (a.block * a.width + lanes(a))
    turned = leaving + leaving_pixels * a.width
    panel = turned + a.width * (leaving_pixels + lanes(a))
    return Scratch(sums, leaving, turned, panel, panel + a.k_block * lanes(a))


def winograd_weights(a, begin, end, thread):
    """A task is a piece of the channels of one block of output channels."""
    transforms = weight_transforms(a)
    for task in range(begin, end):
        piece, block = task % a.pieces, task // a.pieces
        first = a.channels * piece // a.pieces
        count = a.channels * (piece + 1) // a.pieces - first
        x = reals(a, a.x) + (block * a.x_block + first * ranked(a.kernel, a.rank) * a.width)
        y = reals(a, a.y) + (block * a.y_block + first * a.width)
        transform_weights(transforms, a.outputs, a.kernel, a.rank, x, y, a.y_point, a.width, count)


@helper
def winograd_decode(a, task):
    """Return the sum and the task; all blocks are of nearly one size."""
    part, index = task % a.parts, task // a.parts
    rest = index // a.in_a_row
    block = rest // a.sum_count // a.groups * a.in_a_row + index % a.in_a_row
    of = records(a, a.sums, "winograd_sum")[rest % a.sum_count]
    total = a.images * of.tile_count
    blocks = (a.images + a.images_per_task - 1) // a.images_per_task * a.blocks
    first = total * block // blocks
    count, source, sources = total * (block + 1) // blocks - first, 0, 0
    if count:
        tiles, end = records(a, of.tiles, "winograd_tile"), first + count - 1
        last = tiles[end % of.tile_count]
        source = first // of.tile_count * of.source_count + tiles[first % of.tile_count].source
        sources = (
            end // of.tile_count * of.source_count
            + last.source
            + (a.taps - 1) * last.step
            + a.pieces
            - source
        )
    return of, Task(part, rest // a.sum_count % a.groups, index, first, count, source, sources)


@helper
def winograd_transform(a, transforms, of, task, channel, channels, v):
    """v[point][source][channel] of a task's sources, for some channels."""
    x, sources = reals(a, a.x) + (task.group * a.x_group + channel), integers(of.sources)
    points = a.outputs + a.kernel - 1
    for i in range(task.sources):
        image, number = (task.source + i) // of.source_count, (task.source + i) % of.source_count
        source, to = x + (image * a.x_image + sources[number]), v + (i * a.v_row + channel)
        transform_inputs(transforms, points, a.rank, source, a.x_h, a.x_w, channels, to, source_point(a))


def winograd_inputs(a, begin, end, thread):
    """The transformed inputs of all blocks, where several tasks share them; a task is a part of the channels."""
    transforms = input_transforms(a)
    vectors = (a.depth + lanes(a) - 1) // lanes(a)
    for number in range(begin, end):
        of, task = winograd_decode(a, number)
        first = vectors * task.part // a.parts
        count = vectors * (task.part + 1) // a.parts - first
        v = reals(a, a.v) + task.index * winograd_points(a) * source_point(a)
        winograd_transform(a, transforms, of, task, first * lanes(a), count * lanes(a), v)


@helper
def winograd_direct(a, multiply, of, x, w, channels, panel, y, y_row, y_pixel):
    """One tile's outputs by the direct sum, pixels in the vectors and weights as they were given."""
    x_offsets, w_offsets = integers(of.x_offsets), integers(of.w_offsets)
    steps, row = stack_integers(MAX_K_BLOCK), stack_integers(MAX_TILE_ROWS)
    c = stack_vectors(x, MAX_WIDTH)
    m = a.outputs
    for i in range(a.k_block):
        steps[i] = i * lanes(a)
    for first in range(0, ranked(m, a.rank), lanes(a)):
        pixels = min(ranked(m, a.rank) - first, lanes(a))
        for k in range(0, of.terms, a.k_block):
            count = min(of.terms - k, a.k_block)
            for p in range(lanes(a)):
                pixel = first + p % pixels
                at = pixel // m * a.x_h + pixel % m * a.x_w
                for i in range(count):
                    panel[i * lanes(a) + p] = x[x_offsets[k + i] + at]
            for o in range(0, channels, lane_rows(a)):
                rows, c_o = min(channels - o, lane_rows(a)), c + o * lanes(a)
                for r in range(rows):
                    row[r] = address(w + (o + r) * a.w_row)
                tile(multiply, rows, 1, count, row, w_offsets + k, panel, steps, c_o, lanes(a), k)
        for p in range(pixels):
            to = y + ((first + p) // m * y_row + (first + p) % m * y_pixel)
            for o in range(channels):
                to[o] = c[o * lanes(a) + p]


@helper
def winograd_products(a, multiply, of, task, vectors, v, w, sums):
    """sums[point][tile][o] of a task's tiles and one block of output channels."""
    columns, ranges = integers(a.columns), records(a, of.points, "winograd_point")
    steps = stack_integers(MAX_K_BLOCK)
    place, step = stack_integers(MAX_TILES), stack_integers(MAX_TILES)
    row = stack_integers(MAX_TILE_ROWS)
    point = a.block * a.width + lanes(a)
    far = short_panels(a) and a.channels // a.w_width * a.w_block > BEYOND_CACHE
    for i in range(a.k_block):
        steps[i] = i * a.w_width
    for i in range(task.count):
        image, number = (task.first + i) // of.tile_count, (task.first + i) % of.tile_count
        tiles = records(a, of.tiles, "winograd_tile")[number]
        place[i] = (image * of.source_count + tiles.source - task.source) * a.v_row
        step[i] = tiles.step * a.v_row
    for tap in range(a.taps):
        for p in range(winograd_points(a)):
            begin, end = ranges[p].begin, ranges[p].end
            if begin == end:
                clear(sums + p * point, task.count * a.width)
            for k in range(begin, end, a.k_block):
                count, add = min(end - k, a.k_block), tap + k - begin
                w_p = w + (p * a.w_point + (tap * a.pieces * a.depth + k) * a.w_width)
                after = w_p + count * a.w_width
                if k + count >= end:
                    after = w_p + (a.w_point + (ranges[(p + 1) % winograd_points(a)].begin - k) * a.w_width)
                for t in range(0, task.count, lane_rows(a)):
                    rows = min(task.count - t, lane_rows(a))
                    for i in range(rows):
                        row[i] = address(v + (p * source_point(a) + place[t + i]))
                    if far:
                        for n in range((vectors + lane_vectors(a) - 1) // lane_vectors(a)):
                            prefetch_part(after + n * a.w_block, count * a.w_width, t, t + rows, task.count)
                    # Narrow vectors make narrow tiles: with some of them in turn, inputs come from L2 less often.
                    for n in range(0, vectors, lane_vectors(a)):
                        some, block = (
                            min(vectors - n, lane_vectors(a)),
                            w_p + n // lane_vectors(a) * a.w_block,
                        )
                        c = sums + (p * point + t * a.width + n * lanes(a))
                        tile(multiply, rows, some, count, row, columns + k, block, steps, c, a.width, add)
        for i in range(task.count):
            place[i] += step[i]


@helper
def winograd_runs(a, tiles, together, at, y, runs):
    """Where the pixels of tiles go that leave together, `together` of them side by side.

    They lie as whole rows of pixels, tile by tile, or with `y_next`, where tiles interleave, first the first pixel
    of each. Returns how many runs that is.
    """
    m, found = a.outputs, 0
    for h in range(tiles.rows):
        begin, y_row = at + h * together * m, y + h * a.y_h
        if a.y_next:
            count = together
            for j in range(tiles.columns):
                while tiles[count - 1].columns <= j:
                    count -= 1
                run = runs[found]
                run.at, run.count, run.y = begin + j * together, count, y_row + j * a.y_w
                found += 1
        else:
            run = runs[found]
            run.at, run.count, run.y = begin, (together - 1) * m + tiles[together - 1].columns, y_row
            found += 1
    return found


@helper
def winograd_leave(a, tables, of, task, begin, end, x, w, y, channels, work, runs):
    """The outputs of some tiles; those of one row of tiles lie side by side.

    Returns how many pixels, and in how many runs.
    """
    m, point = a.outputs, a.block * a.width + lanes(a)
    at, found, done = 0, 0, begin
    while done < end:
        image, number = (task.first + done) // of.tile_count, (task.first + done) % of.tile_count
        tiles = records(a, of.tiles, "winograd_tile")[number]
        together = 1
        while (
            done + together < end and number + together < of.tile_count and tiles[together].row == tiles.row
        ):
            together += 1
        more = winograd_runs(a, tiles, together, at, image * a.y_image + tiles.y, runs[found])
        if a.ahead:
            expect_rows(channels, runs[found], more, y, a.y_channel, a.y_next if a.y_next else a.y_w)
        y_row, y_tile, y_pixel = together * m * a.width, m * a.width, a.width
        if a.y_next:
            y_tile, y_pixel = a.width, together * a.width
        for n in range(together):
            to = work.leaving + (at * a.width + n * y_tile)
            sums = work.sums + (done + n) * a.width
            if not transform_outputs(
                tables.outputs, m, a.kernel, a.rank, sums, point, channels, to, y_row, y_pixel
            ):
                source = x + (image * a.x_image + integers(of.sources)[tiles[n].source])
                winograd_direct(a, tables.multiply, of, source, w, channels, work.panel, to, y_row, y_pixel)
        found += more
        at += together * ranked(m, a.rank)
        done += together
    return at, found


def winograd(a, begin, end, thread):
    """A task is a block of tiles of one group, and a part of its output channels."""
    bias, work, leaving = reals(a, a.b), winograd_scratch(a, thread), leaving_tiles(a)
    tables, runs = Tables(lane_tiles(a), output_transforms(a)), stack_runs(a, LEAVING_PIXELS)
    turned_row = leaving * ranked(a.outputs, a.rank) + lanes(a)
    blocks, w_blocks = (a.channels + a.width - 1) // a.width, (a.channels + a.w_width - 1) // a.w_width
    for number in range(begin, end):
        of, task = winograd_decode(a, number)
        if task.count == 0:
            continue
        x = reals(a, a.x) + task.group * a.x_group
        weight = reals(a, a.weight) + task.group * a.weight_group
        v = work.own
        if a.v:
            v = reals(a, a.v) + task.index * winograd_points(a) * source_point(a)
        else:
            winograd_transform(a, input_transforms(a), of, task, 0, a.depth, v)
        for block in range(blocks * task.part // a.parts, blocks * (task.part + 1) // a.parts):
            o = block * a.width
            channels = min(a.channels - o, a.width)
            vectors = (channels + lanes(a) - 1) // lanes(a)
            w = reals(a, a.w) + (of.w + (task.group * w_blocks + o // a.w_width) * a.w_block)
            winograd_products(a, tables.multiply, of, task, vectors, v, w, work.sums)
            y = reals(a, a.y) + (task.group * a.y_group + o * a.y_channel)
            b = bias + (task.group * a.channels + o)
            for i in range(0, task.count, leaving):
                last, w_o = min(i + leaving, task.count), weight + o * a.w_row
                pixels, found = winograd_leave(a, tables, of, task, i, last, x, w_o, y, channels, work, runs)
                leave_lanes(
                    work.leaving, a.width, pixels, channels, runs, found, b, a.b != 0, a.activation,
                    work.turned, turned_row, y, a.y_channel, a.y_next if a.y_next else a.y_w,
                )  # fmt: skip

"""The dense product by seven products of quarters in place of eight: see strassen.py.

Pixels have two halves, as have output channels, which are in the vectors, and each block of a tap's channels. Weights and
their sums are there; those of pixels are made by each task.
"""

from .dense import dense_decode, pixel_runs
from .epilogue import leave_lanes
from .moves import transpose
from .simd import address, helper, integers, lanes, reals, records, stack_integers, stack_runs
from .strassen import strassen_join, strassen_rows
from .tile import MAX_K_BLOCK, MAX_PIXEL_BLOCK, lane_rows, lane_tiles, tile

PRODUCTS = 7
MAX_LEFT = PRODUCTS * MAX_PIXEL_BLOCK // 2  # rows of the left factors


@helper
def seven_begin(a, piece):
    """The first k of a piece of a tap's channels, which has whole vectors on either side of its middle."""
    pieces = (a.depth + a.k_block - 1) // a.k_block
    vectors = a.depth // (2 * lanes(a)) * (piece % pieces) // pieces
    return piece // pieces * a.depth + vectors * 2 * lanes(a)


@helper
def seven_pixels(part, x, k, count, runs, found, pixels, columns, row, pixel):
    """Find where the channels k ... k + count of each pixel lie side by side.

    That is in the image, or where they are turned from its planes. An odd number of pixels is completed.
    """
    x_offsets = integers(part.x_offsets)
    step, x_k = x_offsets[1] - x_offsets[0], x + x_offsets[k]
    for s in range(found):
        run = runs[s]
        if step > 1:
            transpose(columns + run.at * row, row, x_k + run.x, step, count, run.count)
        for i in range(run.count):
            at = columns + (run.at + i) * row
            if step == 1:
                at = x_k + (run.x + i * part.x_w)
            pixel[run.at + i] = address(at)
    pixel[pixels] = pixel[pixels - 1]


def dense_seven(a, begin, end, thread):
    """A row of the tile is a pixel, its vectors are output channels."""
    bias, tiles = reals(a, a.b), lane_tiles(a)
    width, area = a.w_width, a.pixel_block // 2 * a.w_width
    nv, pairs = width // lanes(a), (a.channels + width - 1) // width // 2
    sums = reals(a, a.work + thread * a.work_stride)
    turned = sums + a.chunk * PRODUCTS * area
    # Rows of pixels do not lie a power of two apart.
    row, mixed_row = a.k_block + lanes(a), 2 * a.k_block + lanes(a)
    mixed = turned + width * (a.pixel_block + lanes(a))
    columns = mixed + a.pixel_block // 2 * mixed_row
    ones, steps = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK)
    pixel, left = stack_integers(MAX_PIXEL_BLOCK), stack_integers(MAX_LEFT)
    right, to = stack_integers(PRODUCTS), stack_integers(PRODUCTS)
    runs = stack_runs(a, MAX_PIXEL_BLOCK)
    for i in range(a.k_block):
        ones[i] = i
        steps[i] = i * width
    for task in range(begin, end):
        s, image, _, first_pixel, chunk, pixels = dense_decode(a, task)
        if pixels <= 0:  # fewer images than share a task
            continue
        part = records(a, a.sums, "sum")[s]
        x = reals(a, a.x) + (image * a.x_image + part.x)
        pieces = part.taps // a.depth * ((a.depth + a.k_block - 1) // a.k_block)
        first = chunk * a.chunk
        last, half = min(first + a.chunk, pairs), (pixels + 1) // 2
        found = pixel_runs(a, part, first_pixel, pixels, runs)
        for piece in range(pieces):
            k = seven_begin(a, piece)
            depth = (seven_begin(a, piece + 1) - k) // 2
            size, place = depth * width, integers(part.w_offsets)[k]
            seven_pixels(part, x, k, 2 * depth, runs, found, pixels, columns, row, pixel)
            for p in range(half):
                sides, upper, lower = mixed + p * mixed_row, reals(a, pixel[p]), reals(a, pixel[half + p])
                strassen_rows(upper, lower, depth, sides, depth)
                left[p] = address(upper)
                left[half + p] = address(upper + depth)
                left[2 * half + p] = address(sides + 3 * depth)
                left[3 * half + p] = address(lower + depth)
                left[4 * half + p] = address(sides)
                left[5 * half + p] = address(sides + depth)
                left[6 * half + p] = address(sides + 2 * depth)
            for pair in range(first, last):
                at = pair * part.w_block + place
                b11, other = reals(a, a.w) + at, reals(a, a.seven) + 2 * at
                b22 = b11 + (pairs * part.w_block + size)
                c = sums + (pair - first) * PRODUCTS * area
                across = c + 2 * area
                right[0], right[1], right[2] = address(b11), address(b11 + size), address(b22)
                right[3], right[4] = address(other + 3 * size), address(other)
                right[5], right[6] = address(other + size), address(other + 2 * size)
                to[0], to[1], to[2] = address(c), address(c + 4 * area), address(across)
                to[3], to[4] = address(c + half * width), address(c + 5 * area)
                to[5], to[6] = address(c + 6 * area), address(across + half * width)
                for i in range(PRODUCTS):
                    for p in range(0, half, lane_rows(a)):
                        tile(
                            tiles, min(half - p, lane_rows(a)), nv, depth, left + (i * half + p), ones,
                            reals(a, right[i]), steps, reals(a, to[i]) + p * width, width, piece,
                        )  # fmt: skip
        finite = True
        for pair in range(last - first):
            c = sums + pair * PRODUCTS * area
            across, lower, end_of_half = c + 2 * area, c + half * width, half * width
            joined = strassen_join(
                c, c + 4 * area, across, lower, c + 5 * area, c + 6 * area, across + end_of_half, end_of_half
            )
            finite = finite and joined
        # The blocks of each pair in turn, with their sums.
        if not finite:
            for piece in range(pieces):
                k = seven_begin(a, piece)
                count, w = seven_begin(a, piece + 1) - k, reals(a, a.w) + integers(part.w_offsets)[k]
                seven_pixels(part, x, k, count, runs, found, pixels, columns, row, pixel)
                for i in range(2 * (last - first)):
                    block = first + i // 2 + i % 2 * pairs
                    c = sums + (i // 2 * PRODUCTS + i % 2 * 2) * area
                    for p in range(0, pixels, lane_rows(a)):
                        tile(
                            tiles, min(pixels - p, lane_rows(a)), nv, count, pixel + p, ones,
                            w + block * part.w_block, steps, c + p * width, width, k,
                        )  # fmt: skip
        for i in range(2 * (last - first)):
            o = (first + i // 2 + i % 2 * pairs) * width
            y = reals(a, a.y) + (image * a.y_image + o * a.y_channel + part.y)
            leave_lanes(
                sums + (i // 2 * PRODUCTS + i % 2 * 2) * area, width, pixels, min(a.channels - o, width), runs, found,
                bias + o, a.b != 0, a.activation, turned, a.pixel_block + lanes(a), y, a.y_channel, part.y_w,
            )  # fmt: skip

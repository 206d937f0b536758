"""The weight gradient as a product over pixels.

A row of the tile is an input channel at a tap, broadcast pixel by pixel; its vectors are output channels of the
output's gradient, channels last. Pixels are found through tables made for each K block and tap, so a tap simply
leaves out the pixels where it meets padding. The panel of a K block of pixels stays in L1 while taps and channels
pass over it; each K block is summed from zero and then added, in the order of the pixels. Some K blocks are added up before
they are added to the total: the error grows with the additions of either.
"""

from .moves import add_to, copy, transpose
from .simd import address, helper, integers, lanes, reals, records, stack_integers
from .tile import (
    MAX_K_BLOCK,
    MAX_TILE_ROWS,
    lane_rows,
    lane_tiles,
    lane_vectors,
    pixel_tiles,
    tile,
    tile_rows,
    tile_vectors,
)


@helper
def met_pixels(a, tap, at, count, x_offsets, gy_offsets):
    """List the pixels among at..at+count of the chunk that a tap meets: in the image and in the panels."""
    pixels = a.n_d * a.n_h * a.n_w
    image, pixel = at // pixels, at % pixels
    w, h, d, found = pixel % a.n_w, pixel // a.n_w % a.n_h, pixel // a.n_w // a.n_h, 0
    while count > 0:
        run = min(a.n_w - w, count)
        if tap.begin_d <= d < tap.end_d and tap.begin_h <= h < tap.end_h:
            x = image * a.x_image + d * a.x_d + h * a.x_h
            gy = image * a.gy_image + (pixel - w) * a.width
            for i in range(max(w, tap.begin_w), min(w + run, tap.end_w)):
                x_offsets[found] = x + i * a.x_w
                gy_offsets[found] = gy + i * a.width
                found += 1
        count -= run
        pixel += run
        w = 0
        h += 1
        if h == a.n_h:
            h = 0
            d += 1
            if d == a.n_d:
                d = pixel = 0
                image += 1
    return found


@helper
def grad_rows(a, vectors):
    """Rows of the tile for so many vectors, of whichever shape is higher, and whether that is the one of channels."""
    if vectors > tile_vectors(a) or (vectors <= lane_vectors(a) and lane_rows(a) > tile_rows(a)):
        return lane_rows(a), True
    return tile_rows(a), False


@helper
def store_weights(a, c, first, rows, channels, gw):
    """Sums of a task, rows of (unit, tap), become the weights of output channels."""
    at = integers(a.places) + first
    if at[rows - 1] - at[0] == rows - 1:
        transpose(gw + at[0], a.w_row, c, a.width, rows, channels)
        return
    for r in range(rows):
        for o in range(channels):
            gw[o * a.w_row + at[r]] = c[r * a.width + o]


def weight_grad(a, begin, end, thread):
    """A task is a part of the units of one block of output channels, over all images of the chunk."""
    x_offsets, gy_offsets = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK)
    row = stack_integers(MAX_TILE_ROWS)
    pixels = a.images * a.n_d * a.n_h * a.n_w
    last = a.first_image + a.images == a.batch
    for task in range(begin, end):
        part, rest = task % a.unit_parts, task // a.unit_parts
        block, group = rest % a.blocks, rest // a.blocks
        first = part * a.unit_part
        units = min(a.units - first, a.unit_part)
        channel = block * a.width
        channels = min(a.channels - channel, a.width)
        nv = (channels + lanes(a) - 1) // lanes(a)
        most, wide = grad_rows(a, nv)
        shapes = lane_tiles(a) if wide else pixel_tiles(a)
        tiles = (units + most - 1) // most
        x = reals(a, a.x) + group * a.x_group
        gy = reals(a, a.gy) + (group * a.blocks + block) * a.gy_block
        c = reals(a, a.work + thread * a.work_stride)
        size, begun, alone = units * a.tap_count * a.width, a.first_image > 0, False
        # A total of one chunk alone never leaves the thread's scratch, and may be all that there is.
        total = reals(a, a.sums) + ((group * a.blocks + block) * a.units + first) * a.tap_count * a.width
        if last and not begun:
            alone = pixels <= a.together * a.k_block
            total = c if alone else c + size
        for k in range(0, pixels, a.k_block):
            add = k // a.k_block % a.together
            for t in range(a.tap_count):
                tap = records(a, a.taps, "grad_tap")[t]
                offsets = integers(tap.x_offsets) + first
                count = met_pixels(a, tap, k, min(pixels - k, a.k_block), x_offsets, gy_offsets)
                if add > 0 and count == 0:
                    continue
                for i in range(tiles):
                    start = units * i // tiles
                    rows = units * (i + 1) // tiles - start
                    for r in range(rows):
                        row[r] = address(x + offsets[start + r])
                    c_t = c + (start * a.tap_count + t) * a.width
                    tile(
                        shapes, rows, nv, count, row, x_offsets, gy, gy_offsets, c_t, a.tap_count * a.width, add
                    )  # fmt: skip
            if alone or (add < a.together - 1 and k + a.k_block < pixels):
                continue
            if begun:
                add_to(total, c, size)
            else:
                copy(total, c, size)
            begun = True
        if not last:
            continue
        gw = reals(a, a.gw) + (group * a.channels + channel) * a.w_row
        if a.tap_count > 0:
            store_weights(a, total, first * a.tap_count, units * a.tap_count, channels, gw)
        if part == 0:
            places = integers(a.unmet_places)
            for i in range(a.unmet):
                for o in range(channels):
                    gw[o * a.w_row + places[i]] = 0

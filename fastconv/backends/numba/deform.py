"""Deformable convolution: points from learned offsets, linear samples, then the register tile.

For a tile of output pixels and each block of input channels, the samples of a few taps are written to
columns[pixel][tap][channel], which stay in L2 (mostly L1) until the tile has multiplied them into the sums
of all output channels. The image has a border of zeros, so the corners of a point lie at fixed distances from
one base and need no clamps; a point outside is sent to a pixel whose corners are all zero.
"""

from collections import namedtuple

from numba.core import cgutils

from ...lowering.deform import MOST_LEFT
from .deform_few import few_finish, few_multiply, few_scratch, few_turn
from .dense import BEYOND_CACHE, prefetch_part, prefetch_rows, short_panels
from .epilogue import leave_lanes
from .moves import clear, load_some, store_some
from .pack import pack_block
from .simd import (
    INTEGERS,
    WORD,
    Pointer,
    address,
    emit_at,
    emit_fma,
    emit_get,
    emit_load,
    emit_shuffle,
    emit_splat,
    emit_store,
    floor,
    helper,
    integers,
    ir,
    lanes,
    ll_vector,
    load,
    reals,
    records,
    select,
    splat,
    stack_integers,
    stack_runs,
    stack_vectors,
    store,
    to_integers,
    verb,
    void,
    word,
)
from .strassen import strassen_join, strassen_rows
from .tile import MAX_K_BLOCK, MAX_TILE_ROWS, lane_rows, lane_tiles, tile

NAN = float("nan")
AXES, CORNERS = 3, 8

# The scratch of a thread:
#   base [taps][tile]             first corner of a point, in pixels (integers)
#   grid [axes][tile]             position of each output pixel before taps and offsets
#   weight [taps][corners][tile]  share of each corner
#   mask [taps][tile]
#   turned, sums                  results channels first, results channels last
#   panel                         weights of a block of input and one of output channels, where they are packed as used
#   mixed [pairs of pixels][4][half of the columns]  s1 ... s4 of strassen.py
#   products [3][pairs of blocks of output channels][pairs of pixels][w_width]  p2, p5, p6
#   columns                       samples
Task = namedtuple("Task", "image first pixels begin end")
Work = namedtuple("Work", "base grid weight mask turned sums panel mixed products columns")
# Pixels of each half of a tile whose samples are in L1 together.
PAIRED_PIXELS = 8
PRODUCTS = 7
FOLLOWED = PRODUCTS + 1  # and what is multiplied first of the next block
CACHE_LINE = 64


@helper
def deform_scratch(a, thread):
    taps, corners = a.kernel_d * a.kernel_h * a.kernel_w, 1 << a.ndim
    base = integers(a.work + thread * a.work_stride)
    grid = reals(a, address(base + taps * a.tile))
    weight = grid + AXES * a.tile
    mask = weight + taps * corners * a.tile
    # A vector across two cache lines is two: samples took half as long again.
    line = (address(mask + taps * a.tile) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    turned = reals(a, line)
    sums = turned + a.w_width * (a.tile + lanes(a))
    panel = sums + a.w_blocks * a.w_width * ((a.vectors + 1) * lanes(a) if a.vectors else a.tile)
    mixed = panel + a.panel
    if a.vectors:
        left = a.panel // (a.vectors * lanes(a)) + lanes(a) + a.w_blocks * a.w_width * lanes(a)
        mixed = mixed + MOST_LEFT * left
    products, columns = mixed, mixed
    if a.seven:
        products = mixed + a.tile * a.seven_row * 2
        columns = products + 3 * (a.w_blocks // 2) * (a.tile // 2) * a.w_width
    return Work(base, grid, weight, mask, turned, sums, panel, mixed, products, columns)


@helper
def deform_grid(a, first, pixels, grid):
    """Position of the kernel's origin for each output pixel of the tile; exact below 2^24 pixels an axis."""
    w, rest = first % a.out_w, first // a.out_w
    h, d = rest % a.out_h, rest // a.out_h
    for p in range(pixels):
        grid[p] = d * a.stride_d - a.pad_d
        grid[a.tile + p] = h * a.stride_h - a.pad_h
        grid[2 * a.tile + p] = w * a.stride_w - a.pad_w
        w += 1
        if w == a.out_w:
            w = 0
            h += 1
            if h == a.out_h:
                h = 0
                d += 1


@helper
def deform_points(a, work, offset, plane, mask, has_mask, tap, pixels, closed, fractions):
    """One tap of one offset group: the base and the corner weights of each pixel.

    A point is outside unless every coordinate lies in (-1, size), or [-1, size) if `closed`: there samples are
    zero, but their slopes are not. These are ordered compares, before anything is converted to an integer. The
    fraction is the offset less a whole number: taken from the position, it would lack the bits that the position
    rounds away. `fractions` are kept if `closed`.
    """
    size, shift, line = stack_integers(AXES), stack_integers(AXES), stack_integers(AXES)
    fraction = stack_vectors(offset, AXES)
    size[0], size[1], size[2] = a.size_d, a.size_h, a.size_w
    line[0], line[1], line[2] = a.line_d, a.line_h, 1
    shift[0] = tap // (a.kernel_w * a.kernel_h) * a.dil_d
    shift[1] = tap // a.kernel_w % a.kernel_h * a.dil_h
    shift[2] = tap % a.kernel_w * a.dil_w
    base, weight = work.base + tap * a.tile, work.weight + (tap << a.ndim) * a.tile
    first_axis = AXES - a.ndim
    zero, one, nan = splat(offset, 0.0), splat(offset, 1.0), splat(offset, NAN)
    for p in range(0, pixels, lanes(offset)):
        n = pixels - p
        share, start = one, to_integers(zero)
        for axis in range(first_axis, AXES):
            moved = load_some(offset + ((axis - first_axis) * plane + p), n)
            origin = load_some(work.grid + (axis * a.tile + p), n) + splat(offset, shift[axis])
            at = origin + moved
            inside = at > splat(offset, -1.0)
            if closed:
                inside = inside | (at == splat(offset, -1.0))
            inside = inside & (at < splat(offset, size[axis]))
            share = select(inside | (share != share), share, zero)
            share = select(at == at, share, nan)
            low = floor(select(inside, at, zero))
            rest = moved - (low - origin)
            start = start + to_integers(low + one) * splat(start, line[axis])
            rest = select(inside & (rest > zero), rest, zero)
            store(fraction + axis * lanes(offset), rest)
            if closed:
                store_some(fractions + (axis * a.tile + p), rest, n)
        store_some(base + p, select(share > zero, start, splat(start, a.outside)), n)
        for corner in range(1 << a.ndim):
            product = share
            for axis in range(first_axis, AXES):
                part = load(fraction + axis * lanes(offset))
                product = product * (part if corner >> (2 - axis) & 1 else one - part)
            store_some(weight + (corner * a.tile + p), product, n)
        store_some(work.mask + (tap * a.tile + p), load_some(mask + p, n) if has_mask else one, n)


@verb
def interpolate(to, source, deltas, weight, weight_step, mask, channels, corners):
    """to[c] = mask * sum over corners of weight[corner] * source[deltas[corner] + c], in whole vectors."""

    def emit(builder, to, start, deltas, weight, weight_step, mask, channels, _):
        vector, shares, pixels = ll_vector(source), [], []
        for corner in range(corners.literal_value):
            share = emit_get(builder, weight, builder.mul(weight_step, WORD(corner)))
            shares.append(emit_splat(builder, vector, share))
            pixels.append(emit_at(builder, start, emit_get(builder, deltas, corner)))
        factor = emit_splat(builder, vector, mask)
        with cgutils.for_range_slice(builder, WORD(0), channels, WORD(source.lanes), WORD) as (c, _):
            values = [emit_load(builder, source, pixel, c) for pixel in pixels]
            total = builder.fmul(shares[0], values[0])
            for share, value in zip(shares[1:], values[1:], strict=True):
                total = emit_fma(builder, share, value, total)
            emit_store(builder, source, emit_at(builder, to, c), builder.fmul(total, factor))

    return void(to, source, INTEGERS, weight, word, source.element, word, corners), emit


@verb
def interpolate_narrow(to, source, deltas, weight, weight_step, mask, width):
    """The same of two dimensions where a pixel fills half of a vector, or a quarter.

    Two neighbours along W come in one, and are added in the end. Corner by corner, twice as many vectors are loaded, more
    of them across two cache lines.
    """
    given, width = width, width.literal_value

    def emit(builder, to_, start, deltas, weight, weight_step, mask, _):
        if 2 * width > source.lanes:
            return  # where vectors are short, it is not called
        vector, sum = ll_vector(source), None
        lanes_of_both = [i if i < width else source.lanes + i for i in range(source.lanes)]
        for row in range(2):
            left, right = (
                emit_splat(builder, vector, emit_get(builder, weight, builder.mul(weight_step, WORD(corner))))
                for corner in (2 * row, 2 * row + 1)
            )
            share = emit_shuffle(builder, left, right, lanes_of_both)
            pixels = emit_load(builder, source, emit_at(builder, start, emit_get(builder, deltas, row)))
            sum = emit_fma(builder, share, pixels, sum) if row else builder.fmul(share, pixels)
        here, beside = (
            emit_shuffle(builder, sum, sum, [first + i for i in range(width)]) for first in (0, width)
        )
        factor = emit_splat(builder, ir.VectorType(vector.element, width), mask)
        narrow = Pointer(source.element, width)
        emit_store(builder, narrow, to_, builder.fmul(builder.fadd(here, beside), factor))

    return void(to, source, INTEGERS, weight, word, source.element, given), emit


@helper
def deform_sample(a, work, x, channels, tap, taps, begin, end, row):
    """columns[pixel][tap][channel] for one block of channels and some taps.

    Whole vectors are written from left to right, each over what the one before wrote too much.
    """
    delta = stack_integers(CORNERS)
    narrow = a.ndim == 2 and 2 * a.width <= lanes(a)
    for corner in range(1 << a.ndim):
        delta[corner] = ((corner >> 2 & 1) * a.line_d + (corner >> 1 & 1) * a.line_h + (corner & 1)) * a.width
    delta[1] = delta[2] if narrow else delta[1]
    for p in range(begin, end):
        for t in range(taps):
            at = (tap + t) * a.tile + p
            source, to = x + work.base[at] * a.width, work.columns + (p * row + t * channels)
            weight, mask = work.weight + (((tap + t) << a.ndim) * a.tile + p), work.mask[at]
            if narrow and a.width == 8:
                interpolate_narrow(to, source, delta, weight, a.tile, mask, 8)
            elif narrow:
                interpolate_narrow(to, source, delta, weight, a.tile, mask, 4)
            elif a.ndim == 2:
                interpolate(to, source, delta, weight, a.tile, mask, channels, 4)
            elif a.ndim == 1:
                interpolate(to, source, delta, weight, a.tile, mask, channels, 2)
            else:
                interpolate(to, source, delta, weight, a.tile, mask, channels, 8)


@helper
def prefetch_panel(a, following, elements, begin, end, parts):
    """A part of what is multiplied next comes to L2 while a tile is multiplied."""
    if short_panels(a) and a.w_blocks * a.w_block >= BEYOND_CACHE // 4:
        prefetch_part(following, elements, begin, end, parts)


@helper
def deform_multiply(a, tiles, work, block, following, tap, taps, pixels, row, begin, end, add):
    """Multiply the samples of some taps into the sums of some blocks of output channels.

    `following` is the next block of input channels, or the same one again.
    """
    ones, steps = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK)
    pixel, columns = stack_integers(MAX_TILE_ROWS), taps * block.channels
    parts = (columns + a.k_block - 1) // a.k_block * pixels
    for k in range(a.k_block):
        ones[k] = k
        steps[k] = k * a.w_width
    for o in range(begin, end):
        some = min(a.channels - o * a.w_width, a.w_width)
        nv = (some + lanes(a) - 1) // lanes(a)
        w = reals(a, a.w) + (o * a.w_block + block.w + tap * block.channels * a.w_width)
        # Of the weights as they came, what is packed next.
        upcoming, next_rows, next_columns = reals(a, a.given), 0, columns
        if a.panel:
            given = upcoming + (block.given + o * a.w_width * a.w_row)
            offsets, places = integers(block.offsets), integers(block.places)
            pack_block(work.panel, a.w_width, given, a.w_row, some, offsets, places, columns)
            w = work.panel
            if o + 1 < end:
                upcoming, next_rows = (
                    given + a.w_width * a.w_row,
                    min(a.channels - (o + 1) * a.w_width, a.w_width),
                )
            elif following.given != block.given:
                upcoming = upcoming + (following.given + begin * a.w_width * a.w_row)
                next_rows = min(a.channels - begin * a.w_width, a.w_width)
                next_columns = taps * following.channels
        for k in range(0, columns, a.k_block):
            count = min(columns - k, a.k_block)
            for p in range(0, pixels, lane_rows(a)):
                rows, part = min(pixels - p, lane_rows(a)), k // a.k_block * pixels + p
                for r in range(rows):
                    pixel[r] = address(work.columns + ((p + r) * row + k))
                if a.panel:
                    start, stop = next_rows * part // parts, next_rows * (part + rows) // parts
                    prefetch_rows(upcoming, a.w_row, start, stop, next_columns)
                else:
                    after = w + ((k + count) * a.w_width if k + count < columns else a.w_block)
                    prefetch_panel(a, after, count * a.w_width, p, p + rows, pixels)
                c, w_k = work.sums + (o * a.tile + p) * a.w_width, w + k * a.w_width
                tile(tiles, rows, nv, count, pixel, ones, w_k, steps, c, a.w_width, add or k > 0)


@helper
def deform_sample_pairs(a, work, x, channels, tap, taps, pixels, row):
    """Samples as above, and the sums of their quarters: pixels of the first half and of the second, while they are in L1."""
    half, depth = (pixels + 1) // 2, taps * channels // 2
    if pixels < 2 * half:
        clear(work.columns + pixels * row, 2 * depth)
    for p in range(0, half, PAIRED_PIXELS):
        end = min(p + PAIRED_PIXELS, half)
        deform_sample(a, work, x, channels, tap, taps, p, end, row)
        deform_sample(a, work, x, channels, tap, taps, half + p, min(half + end, pixels), row)
        for i in range(p, end):
            upper, lower = work.columns + i * row, work.columns + (half + i) * row
            strassen_rows(upper, lower, depth, work.mixed + i * 4 * a.seven_row, a.seven_row)


@helper
def deform_multiply_pairs(a, tiles, work, block, tap, taps, pixels, row, begin, end, add):
    """The seven products of the samples of some taps, summed over blocks of input channels.

    p1, p3, p4 and p7 are in the quarters of the sums that they become part of.
    """
    ones, steps, pixel = (
        stack_integers(MAX_K_BLOCK),
        stack_integers(MAX_K_BLOCK),
        stack_integers(MAX_TILE_ROWS),
    )
    left, left_row, right, sums = (
        stack_integers(PRODUCTS), stack_integers(PRODUCTS), stack_integers(FOLLOWED), stack_integers(PRODUCTS)
    )  # fmt: skip
    half, depth, pairs = (pixels + 1) // 2, taps * block.channels // 2, a.w_blocks // 2
    size, parts, mixed = depth * a.w_width, (depth + a.k_block - 1) // a.k_block, work.mixed
    area, across = a.tile // 2 * a.w_width, pairs * a.tile * a.w_width
    for k in range(a.k_block):
        ones[k] = k
        steps[k] = k * a.w_width
    for i in range(PRODUCTS):
        left_row[i] = 4 * a.seven_row
    left_row[0], left_row[1], left_row[3] = row, row, row
    left[0], left[1] = address(work.columns), address(work.columns + depth)
    left[2], left[3] = address(mixed + 3 * a.seven_row), address(work.columns + (half * row + depth))
    left[4], left[5] = address(mixed), address(mixed + a.seven_row)
    left[6] = address(mixed + 2 * a.seven_row)
    for o in range(begin, end):
        at = o * a.w_block + block.w + tap * block.channels * a.w_width
        b11, t = reals(a, a.w) + at, reals(a, a.seven) + 2 * at
        right[0], right[1], right[2] = (
            address(b11),
            address(b11 + size),
            address(b11 + (pairs * a.w_block + size)),
        )
        right[3], right[4], right[5] = address(t + 3 * size), address(t), address(t + size)
        right[6], right[7] = address(t + 2 * size), address(b11 + a.w_block)
        upper, other = work.sums + o * a.tile * a.w_width, work.products + o * area
        lower = upper + half * a.w_width
        sums[0], sums[1], sums[2], sums[3] = (
            address(upper),
            address(other),
            address(upper + across),
            address(lower),
        )
        sums[4], sums[5] = address(other + pairs * area), address(other + 2 * pairs * area)
        sums[6] = address(lower + across)
        for i in range(PRODUCTS):
            for part in range(parts):
                k = depth * part // parts
                count = depth * (part + 1) // parts - k
                for p in range(0, half, lane_rows(a)):
                    rows = min(half - p, lane_rows(a))
                    for r in range(rows):
                        pixel[r] = address(reals(a, left[i]) + ((p + r) * left_row[i] + k))
                    b, c = reals(a, right[i]) + k * a.w_width, reals(a, sums[i]) + p * a.w_width
                    after = b + count * a.w_width if part + 1 < parts else reals(a, right[i + 1])
                    prefetch_panel(a, after, count * a.w_width, p, p + rows, half)
                    tile(
                        tiles,
                        rows,
                        a.w_width // lanes(a),
                        count,
                        pixel,
                        ones,
                        b,
                        steps,
                        c,
                        a.w_width,
                        add or k > 0,
                    )


@helper
def deform_join_pairs(a, work, pixels, begin, end):
    """Put the products together. Returns whether all sums are finite."""
    half, across, finite = (pixels + 1) // 2 * a.w_width, a.w_blocks // 2 * a.tile * a.w_width, True
    area, between = a.tile // 2 * a.w_width, a.w_blocks // 2 * (a.tile // 2) * a.w_width
    for o in range(begin, end):
        upper, other = work.sums + o * a.tile * a.w_width, work.products + o * area
        lower = upper + half
        joined = strassen_join(
            upper, other, upper + across, lower, other + between, other + 2 * between, lower + across, half
        )  # fmt: skip
        finite = finite and joined
    return finite


@helper
def deform_finish(a, work, group, pixels, begin, end, y):
    """Bias, activation and the way out for some blocks of output channels of one weight group."""
    run = stack_runs(a, 1)
    run.at, run.count, run.y = 0, pixels, 0
    for block in range(begin, end):
        first = group * a.channels + block * a.w_width
        leave_lanes(
            work.sums + block * a.tile * a.w_width, a.w_width, pixels, min(a.channels - block * a.w_width, a.w_width),
            run, 1, reals(a, a.b) + first, a.b != 0, a.activation, work.turned, a.tile + lanes(y),
            y + first * a.y_channel, a.y_channel, a.y_w,
        )  # fmt: skip


@helper
def deform_sums(a, tiles, work, task, start, stop, seven, offset_group):
    """Sums over some blocks of input channels, by seven products or one.

    `offset_group` is the one whose points are there; returns the one whose points are there then.
    """
    taps, plane, pixels, add = (
        a.kernel_d * a.kernel_h * a.kernel_w,
        a.out_d * a.out_h * a.out_w,
        task.pixels,
        False,
    )
    other = a.w_blocks // 2
    for b in range(start, stop):
        block = records(a, a.blocks, "block")[b]
        following = records(a, a.blocks, "block")[min(b + 1, a.block_count - 1)]
        if block.offset_group != offset_group:
            offset_group = block.offset_group
            first_tap = offset_group * taps
            offset = reals(a, a.offset) + (
                task.image * a.offset_image + first_tap * a.ndim * plane + task.first
            )
            mask = reals(a, a.mask) + (task.image * a.mask_image + first_tap * plane + task.first)
            for t in range(taps):
                offset_t, mask_t = offset + t * a.ndim * plane, mask + t * plane
                deform_points(a, work, offset_t, plane, mask_t, a.mask != 0, t, pixels, False, work.grid)
        x = reals(a, a.x) + (task.image * a.x_image + block.x)
        for t in range(0, taps, a.tap_block):
            some, row = min(taps - t, a.tap_block), a.tap_block * block.channels
            if seven:
                row = 2 * a.seven_row
                deform_sample_pairs(a, work, x, block.channels, t, some, pixels, row)
                deform_multiply_pairs(a, tiles, work, block, t, some, pixels, row, task.begin, task.end, add)
            else:
                deform_sample(a, work, x, block.channels, t, some, 0, pixels, row)
            if a.vectors:
                few = few_scratch(a, work, pixels)
                few_turn(few, work, block.channels, taps)
                few_multiply(a, few, work, block, taps, task.begin, task.end, add)
            elif not seven:
                for half in range(2 if a.seven else 1):  # the other blocks of the pairs, too
                    begin, end = task.begin + half * other, task.end + half * other
                    deform_multiply(a, tiles, work, block, following, t, some, pixels, row, begin, end, add)
            add = True
    return offset_group


def deform(a, begin, end, thread):
    """A task is a tile of output pixels, and some blocks of output channels, or pairs of them."""
    work, tiles = deform_scratch(a, thread), lane_tiles(a)
    plane, seven = a.out_d * a.out_h * a.out_w, a.seven != 0
    shared = a.w_blocks // 2 if seven else a.w_blocks
    for number in range(begin, end):
        rest, split = number // a.splits, number % a.splits
        image, first = rest // a.tiles, rest % a.tiles * a.tile
        o_begin, o_end = split * shared // a.splits, (split + 1) * shared // a.splits
        task = Task(image, first, min(plane - first, a.tile), o_begin, o_end)
        y = reals(a, a.y) + (image * a.y_image + first * a.y_w)
        deform_grid(a, first, task.pixels, work.grid)
        if a.vectors:  # lanes of no pixel would be multiplied as they are found, at worst slowly
            clear(work.panel, a.panel)
        offset_group, stop = -1, 0
        while stop < a.block_count:
            start = stop
            while not records(a, a.blocks, "block")[stop].last:
                stop += 1
            stop += 1
            group, done = records(a, a.blocks, "block")[start].group, False
            if seven:
                offset_group = deform_sums(a, tiles, work, task, start, stop, True, offset_group)
                done = deform_join_pairs(a, work, task.pixels, o_begin, o_end)
            if not done:
                offset_group = deform_sums(a, tiles, work, task, start, stop, False, offset_group)
            if a.vectors:
                few_finish(a, few_scratch(a, work, task.pixels), work, group, o_begin, o_end, y)
            else:
                deform_finish(a, work, group, task.pixels, o_begin, o_end, y)
            if seven:
                deform_finish(a, work, group, task.pixels, shared + o_begin, shared + o_end, y)

"""Gradients of a deformable convolution.

A task is a band of output pixels of one image and one block of input channels. It goes through the band tile by tile:

    pulls[pixel][tap, channel] = output's gradient x weights            the register tile
    one pass over points and channels: columns = samples, dots = pulls . corners, image += pulls * shares
    gradients of offsets and mask, linear in the dots
    sums[output channel][tap, channel] += output's gradient x columns   the register tile

The image's gradient and the weights' are summed in the thread's own scratch, and added to those of the bands before
in the order of the bands; those of offsets and mask are added tile by tile in the order of the channel blocks. Tasks
take turns for that.
"""

from collections import namedtuple

from ...lowering.deform_grad import PROGRESS_STEP
from .deform import AXES, CORNERS, Work, deform_grid, deform_points, deform_sample
from .moves import add_to, clear, copy, load_some, store_some, transpose
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
    emit_shuffle,
    emit_splat,
    emit_store,
    helper,
    integers,
    ir,
    lanes,
    ll_vector,
    narrow,
    reals,
    records,
    splat,
    stack_integers,
    verb,
    void,
    word,
    zeros,
)
from .tile import MAX_K_BLOCK, MAX_TILE_ROWS, pixel_tiles, tile, tile_rows, tile_vectors
from .turns import await_progress, tell_progress

LEAST_DOTS = 4
OCT, QUAD = 8, 4

# The scratch of a thread:
#   points                       of a tile
#   fractions [taps][axes][tile]
#   weights [output channel][tap, channel], and sums of their gradient; rows as those of the columns
#   pulls [pixel][tap, channel]  gradient of the columns
#   dots [tap][corner][tile]     at least four corners
#   image                        gradient of the bordered image of the block
GradWork = namedtuple("GradWork", "points fractions weights sums pulls dots image turned")


@helper
def dots_of(ndim):
    return max(1 << ndim, LEAST_DOTS)


@helper
def deform_grad_scratch(a, f, thread):
    taps, corners = f.kernel_d * f.kernel_h * f.kernel_w, 1 << f.ndim
    base = integers(a.work + thread * a.work_stride)
    grid = reals(a, address(base + taps * f.tile))
    weight = grid + AXES * f.tile
    mask = weight + taps * corners * f.tile
    fractions = mask + taps * f.tile
    dots = fractions + taps * AXES * f.tile
    turned = dots + f.tile * a.tap_block * dots_of(f.ndim)
    pulls = turned + a.turned
    columns = pulls + (f.tile * a.row + lanes(a))
    weights = columns + (f.tile * a.row + lanes(a))
    sums = weights + (a.channels * a.row + lanes(a))
    image = sums + (a.channels * a.row + lanes(a))
    points = Work(base, grid, weight, mask, turned, sums, columns, columns, columns, columns)
    return GradWork(points, fractions, weights, sums, pulls, dots, image, turned)


@helper
def multiply_columns(a, tiles, rows, columns, count, x, x_row, x_k, b, b_row, c, c_row, add):
    """c[r][j] (+)= sum_k x[r * x_row + k * x_k] * b[k][j], j < columns."""
    x_offsets, b_offsets = stack_integers(MAX_K_BLOCK), stack_integers(MAX_K_BLOCK)
    row = stack_integers(MAX_TILE_ROWS)
    vectors = (columns + lanes(a) - 1) // lanes(a)
    panels, parts = (
        (vectors + tile_vectors(a) - 1) // tile_vectors(a),
        (rows + tile_rows(a) - 1) // tile_rows(a),
    )
    for k in range(min(a.k_block, count)):
        x_offsets[k] = k * x_k
        b_offsets[k] = k * b_row
    for k in range(0, count, a.k_block):
        some = min(count - k, a.k_block)
        for p in range(panels):
            start = vectors * p // panels
            nv = vectors * (p + 1) // panels - start
            for i in range(parts):
                first = rows * i // parts
                height = rows * (i + 1) // parts - first
                for r in range(height):
                    row[r] = address(x + ((first + r) * x_row + k * x_k))
                at = start * lanes(a)
                b_k, c_r = b + (k * b_row + at), c + (first * c_row + at)
                tile(tiles, height, nv, some, row, x_offsets, b_k, b_offsets, c_r, c_row, add or k > 0)


def emit_quad(builder, vector):
    """Return the sum of the quads of a vector."""
    count = vector.type.count
    if count < LEAST_DOTS:
        return emit_shuffle(builder, vector, ir.Constant(vector.type, None), list(range(LEAST_DOTS)))
    while count > LEAST_DOTS:
        count //= 2
        low = emit_shuffle(builder, vector, vector, list(range(count)))
        high = emit_shuffle(builder, vector, vector, list(range(count, 2 * count)))
        vector = builder.fadd(low, high)
    return vector


def emit_dots(builder, to, step, sums):
    """Store the sum of the lanes of each of some vectors, `step` apart."""
    quads = [emit_quad(builder, vector) for vector in sums]
    for first in range(0, len(quads), LEAST_DOTS):
        some = quads[first : first + LEAST_DOTS]
        a, b, c, d = some + [ir.Constant(some[0].type, None)] * (LEAST_DOTS - len(some))
        low = [emit_shuffle(builder, p, q, [0, 4, 1, 5]) for p, q in ((a, b), (c, d))]
        high = [emit_shuffle(builder, p, q, [2, 6, 3, 7]) for p, q in ((a, b), (c, d))]
        columns = [
            emit_shuffle(builder, p, q, chosen)
            for p, q in (low, high)
            for chosen in ([0, 1, 4, 5], [2, 3, 6, 7])
        ]
        total = builder.fadd(builder.fadd(*columns[:2]), builder.fadd(*columns[2:]))
        for i in range(len(some)):
            place = emit_at(builder, to, builder.mul(step, WORD(first + i)))
            builder.store(builder.extract_element(total, WORD(i)), place)


@verb
def pull(column, source, image, deltas, pulls, weight, mask, dots, step, channels, scatter, columns, corners):
    """One point: its samples, the dots of its corners, and what it gives to the image (`give` does that alone).

    column[c] = mask * sum over corners of weight[corner * step] * source[deltas[corner] + c]
    dots[corner * step] = sum over c of pulls[c] * source[deltas[corner] + c]
    image[deltas[corner] + c] += weight[corner * step] * mask * pulls[c]

    Behind a block's own channels in their last vector, the image is zero and pulls are another tap's.
    """
    kind, count = source, corners.literal_value

    def emit(
        builder, column, source, image, deltas, pulls, weight, mask, dots, step, channels, scatter, columns, _
    ):
        vector = ll_vector(kind)
        shares = [
            emit_splat(builder, vector, emit_get(builder, weight, builder.mul(step, WORD(corner))))
            for corner in range(count)
        ]
        delta = [emit_get(builder, deltas, corner) for corner in range(count)]
        factor = emit_splat(builder, vector, mask)
        (zero,) = zeros(kind, 1)
        scatters, samples = (builder.icmp_signed("!=", flag, WORD(0)) for flag in (scatter, columns))
        vectors = builder.udiv(builder.add(channels, WORD(kind.lanes - 1)), WORD(kind.lanes))

        def one(v, sums):
            c = builder.mul(v, WORD(kind.lanes))
            own = emit_first(builder, kind, builder.sub(channels, c))
            g = builder.select(own, emit_load(builder, kind, pulls, c), zero)
            places = [builder.add(c, d) for d in delta]
            values = [emit_load(builder, kind, source, place) for place in places]
            sums = [emit_fma(builder, g, value, total) for value, total in zip(values, sums, strict=True)]
            with builder.if_then(scatters):
                moved = builder.fmul(g, factor)
                for share, place in zip(shares, places, strict=True):
                    total = emit_fma(builder, share, moved, emit_load(builder, kind, image, place))
                    emit_store(builder, kind, emit_at(builder, image, place), total)
            with builder.if_then(samples):
                total = builder.fmul(shares[0], values[0])
                for share, value in zip(shares[1:], values[1:], strict=True):
                    total = emit_fma(builder, share, value, total)
                emit_store(builder, kind, emit_at(builder, column, c), builder.fmul(total, factor))
            return sums

        emit_dots(builder, dots, step, emit_loop(builder, vectors, zeros(kind, count), one))

    flags = (word, word, corners)
    return void(
        column, source, image, INTEGERS, pulls, weight, source.element, dots, word, word, *flags
    ), emit


@verb
def give(image, deltas, pulls, weight, mask, step, channels, corners):
    """One point, where no sample is wanted: image[deltas[corner] + c] += weight[corner * step] * mask * pulls[c]."""
    kind, count = image, corners.literal_value

    def emit(builder, image, deltas, pulls, weight, mask, step, channels, _):
        vector = ll_vector(kind)
        shares = [
            emit_splat(builder, vector, emit_get(builder, weight, builder.mul(step, WORD(corner))))
            for corner in range(count)
        ]
        delta = [emit_get(builder, deltas, corner) for corner in range(count)]
        factor = emit_splat(builder, vector, mask)
        (zero,) = zeros(kind, 1)
        vectors = builder.udiv(builder.add(channels, WORD(kind.lanes - 1)), WORD(kind.lanes))

        def one(v, sums):
            c = builder.mul(v, WORD(kind.lanes))
            own = emit_first(builder, kind, builder.sub(channels, c))
            moved = builder.fmul(builder.select(own, emit_load(builder, kind, pulls, c), zero), factor)
            for share, d in zip(shares, delta, strict=True):
                place = emit_at(builder, image, builder.add(c, d))
                emit_store(
                    builder, kind, place, emit_fma(builder, share, moved, emit_load(builder, kind, place))
                )
            return sums

        emit_loop(builder, vectors, [], one)

    return void(image, INTEGERS, pulls, weight, image.element, word, word, corners), emit


@helper
def pull_points(a, f, work, x, image, channels, pulls, pull_row, pull_tap, tap, taps, pixels):
    """The pass over points and channels, in vectors of the width that `x` and `image` have.

    They never reach into the next pixel: what is added there would overlap what the next corner reads, and
    reading what part of a vector has just been written takes longer than all the rest. The pulls of a pixel lie
    pull_row behind those of the one before, and pull_tap behind those of the tap before.
    """
    delta = stack_integers(CORNERS)
    points, sampled = work.points, a.goffset or a.gmask or a.gw
    for corner in range(1 << f.ndim):
        delta[corner] = ((corner >> 2 & 1) * f.line_d + (corner >> 1 & 1) * f.line_h + (corner & 1)) * f.width
    for p in range(pixels):
        for t in range(taps):
            at = (tap + t) * f.tile + p
            weight, mask = points.weight + (((tap + t) << f.ndim) * f.tile + p), points.mask[at]
            dots = work.dots + (t * dots_of(f.ndim) * f.tile + p)
            to, g = points.columns + (p * a.row + t * channels), pulls + (p * pull_row + t * pull_tap)
            source, into = x + points.base[at] * f.width, image + points.base[at] * f.width
            if not sampled:
                if f.ndim == 2:
                    give(into, delta, g, weight, mask, f.tile, channels, 4)
                elif f.ndim == 1:
                    give(into, delta, g, weight, mask, f.tile, channels, 2)
                else:
                    give(into, delta, g, weight, mask, f.tile, channels, 8)
            elif f.ndim == 2:
                pull(to, source, into, delta, g, weight, mask, dots, f.tile, channels, a.gx, a.gw, 4)
            elif f.ndim == 1:
                pull(to, source, into, delta, g, weight, mask, dots, f.tile, channels, a.gx, a.gw, 2)
            else:
                pull(to, source, into, delta, g, weight, mask, dots, f.tile, channels, a.gx, a.gw, 8)


@helper
def deform_pull(a, f, work, x, channels, pulls, row, step, tap, taps, pixels):
    if f.width % lanes(x) == 0:
        pull_points(a, f, work, x, work.image, channels, pulls, row, step, tap, taps, pixels)
    elif f.width % OCT == 0:
        own, image = narrow(x, OCT), narrow(work.image, OCT)
        pull_points(a, f, work, own, image, channels, pulls, row, step, tap, taps, pixels)
    else:
        own, image = narrow(x, QUAD), narrow(work.image, QUAD)
        pull_points(a, f, work, own, image, channels, pulls, row, step, tap, taps, pixels)


@helper
def point_grads(a, f, work, tap, dots, pixels, plane, offset, mask, add):
    """Gradients of the offsets and the mask of one tap from its dots: those of corners, weighted by slopes or shares.

    NaN shares make NaN gradients, along every axis.
    """
    corners, first_axis = 1 << f.ndim, AXES - f.ndim
    shares = work.points.weight + tap * corners * f.tile
    fractions, masks = work.fractions + tap * AXES * f.tile, work.points.mask + tap * f.tile
    zero, one = splat(dots, 0.0), splat(dots, 1.0)
    for p in range(0, pixels, lanes(dots)):
        n = pixels - p
        if a.gmask:
            total = load_some(mask + p, n) if add else zero
            for corner in range(corners):
                at = corner * f.tile + p
                total = total + load_some(shares + at, n) * load_some(dots + at, n)
            store_some(mask + p, total, n)
        if a.goffset:
            share = load_some(shares + p, n)
            for axis in range(first_axis, AXES):
                total = zero
                for corner in range(corners):
                    slope = load_some(dots + (corner * f.tile + p), n)
                    for other in range(first_axis, AXES):
                        if other != axis:
                            part = load_some(fractions + (other * f.tile + p), n)
                            slope = slope * (part if corner >> (2 - other) & 1 else one - part)
                    total = total + slope if corner >> (2 - axis) & 1 else total - slope
                total = total * load_some(masks + p, n) + (share - share)
                to = offset + ((axis - first_axis) * plane + p)
                store_some(to, load_some(to, n) + total if add else total, n)


@helper
def clear_touched(f, work, tap, taps, pixels, low, high):
    """Clear what points of some taps touch of the image's gradient, and return which lines are clear then.

    Lines low..high along its slowest axis are clear already.
    """
    slow, least, most = 1, f.outside, -1
    if f.ndim == 2:
        slow = f.line_h
    elif f.ndim == 3:
        slow = f.line_d
    for t in range(tap, tap + taps):
        for p in range(pixels):
            base = work.points.base[t * f.tile + p]
            least = min(least, base)
            most = max(most, base if base < f.outside else -1)
    if most < 0:
        return low, high
    first, last, line = least // slow, most // slow + 2, slow * f.width
    if low == high:
        low, high = first, first
    if first < low:
        clear(work.image + first * line, (low - first) * line)
    if last > high:
        clear(work.image + high * line, (last - high) * line)
    return min(low, first), max(high, last)


@helper
def leave_image(a, f, work, channels, low, high, gx, add):
    """Add to (or write) the gradient of the input what the thread has summed of lines low..high."""
    begin, end = stack_integers(AXES), stack_integers(AXES)
    begin[0], begin[1], begin[2] = 0, 0, 0
    end[0], end[1], end[2] = f.size_d, f.size_h, f.size_w
    slow = AXES - f.ndim
    begin[slow], end[slow] = max(low - 1, 0), min(high - 1, end[slow])
    for d in range(begin[0], end[0]):
        for h in range(begin[1], end[1]):
            for w in range(begin[2], end[2], a.turned_pixels):
                pixels = min(end[2] - w, a.turned_pixels)
                line = w + 1
                if f.ndim > 1:
                    line += (h + 1) * f.line_h
                if f.ndim > 2:
                    line += (d + 1) * f.line_d
                source, to = work.image + line * f.width, gx + (d * a.gx_d + h * a.gx_h + w * a.gx_w)
                rows, row, count, step = pixels, a.gx_w, channels, f.width
                if a.gx_channel != 1:
                    step = a.turned_pixels + lanes(gx)
                    transpose(work.turned, step, source, f.width, pixels, channels)
                    source, rows, row, count = work.turned, channels, a.gx_channel, pixels
                for r in range(rows):
                    if add:
                        add_to(to + r * row, source + r * step, count)
                    else:
                        copy(to + r * row, source + r * step, count)


@helper
def enter_weights(a, w, channels, kernel_taps, taps, weights):
    """Weights of a block of channels at some taps, as rows of (tap, channel), or of (channel, tap) as they are."""
    for o in range(a.channels):
        if a.as_given:
            copy(weights + o * a.row, w + o * a.w_row, channels * taps)
        else:
            transpose(weights + o * a.row, channels, w + o * a.w_row, kernel_taps, channels, taps)


@helper
def turn_rows(a, work, rows, count, first, second):
    """Rows of [first][second] become rows of [second][first]."""
    for p in range(count):
        row = rows + p * a.row
        transpose(work.turned, first, row, second, first, second)
        copy(row, work.turned, first * second)


@helper
def leave_weights(a, sums, channels, kernel_taps, taps, kept, first, last, gw):
    """The sums of a task go to those of the tasks before (`kept`) or, with them, to the gradient of the weights."""
    if not last:
        if first:
            copy(kept, sums, a.channels * a.row)
        else:
            add_to(kept, sums, a.channels * a.row)
        return
    if not first:
        add_to(sums, kept, a.channels * a.row)
    for o in range(a.channels):
        if a.as_given:
            copy(gw + o * a.w_row, sums + o * a.row, channels * taps)
        else:
            transpose(gw + o * a.w_row, kernel_taps, sums + o * a.row, channels, taps, channels)


def deform_grad(a, begin, end, thread):
    """A task is a band of an image and a block of channels: blocks before bands before images."""
    f = records(a, a.geometry, "deform")[0]
    work = deform_grad_scratch(a, f, thread)
    tiles = pixel_tiles(a)
    taps, plane = f.kernel_d * f.kernel_h * f.kernel_w, f.out_d * f.out_h * f.out_w
    slow, slow_size = 1, f.size_w
    if f.ndim == 2:
        slow, slow_size = f.line_h, f.size_h
    elif f.ndim == 3:
        slow, slow_size = f.line_d, f.size_d
    band_steps = (a.band + f.tile - 1) // f.tile + 1
    pulled, dotted = a.gx or a.goffset or a.gmask, a.goffset or a.gmask
    for task in range(begin, end):
        block_index, rest = task % a.block_count, task // a.block_count
        band, image = rest % a.bands, rest // a.bands
        block = records(a, a.blocks, "grad_block")[block_index]
        channels, band_begin = block.channels, band * a.band
        band_end = min(band_begin + a.band, plane)
        first = a.first_image + image == 0 and band == 0
        last = a.first_image + image + 1 == a.batch and band + 1 == a.bands
        progress = integers(a.progress) + task * PROGRESS_STEP
        before, neighbour = progress + -a.block_count * PROGRESS_STEP, progress + -PROGRESS_STEP
        x = reals(a, a.x) + (image * a.x_image + block.x)
        gy = reals(a, a.gy) + (image * a.gy_image + block.group * a.channels)
        w, gw = reals(a, a.w) + block.w, reals(a, a.gw) + block.w
        points = image * a.mask_image + block.offset_group * taps * plane
        offset, goffset = reals(a, a.offset) + points * f.ndim, reals(a, a.goffset) + points * f.ndim
        mask, gmask = reals(a, a.mask) + points, reals(a, a.gmask) + points
        low, high = 0, 0 if band > 0 else slow_size + 2
        if a.gx and low < high:
            clear(work.image, high * slow * f.width)
        for t in range(0, taps, a.tap_block):
            some, part = min(taps - t, a.tap_block), t // a.tap_block
            columns = some * channels
            # Whole vectors as given are read, and a band that is all there is written, in place.
            in_place = a.as_given != 0 and columns % lanes(a) == 0
            out_in_place = in_place and first and last and band_end - band_begin <= f.tile
            weights, weights_row, sums, sums_row = work.weights, a.row, work.sums, a.row
            if in_place:
                weights, weights_row = w + t, a.w_row
            if out_in_place:
                sums, sums_row = gw + t, a.w_row
            if pulled and not in_place:
                enter_weights(a, w + t, channels, taps, some, work.weights)
            for at in range(band_begin, band_end, f.tile):
                pixels = min(band_end - at, f.tile)
                step = part * band_steps + (at - band_begin) // f.tile + 1
                deform_grid(f, at, pixels, work.points.grid)
                for i in range(t, t + some):
                    offset_i, mask_i = offset + (i * f.ndim * plane + at), mask + (i * plane + at)
                    fractions = work.fractions + i * AXES * f.tile
                    deform_points(
                        f, work.points, offset_i, plane, mask_i, a.mask != 0, i, pixels, True, fractions
                    )
                gy_at = gy + at * a.gy_row
                if pulled:
                    multiply_columns(
                        a, tiles, pixels, columns, a.channels, gy_at, a.gy_row, 1, weights, weights_row,
                        work.pulls, a.row, False,
                    )  # fmt: skip
                    if a.as_given:
                        turn_rows(a, work, work.pulls, pixels, channels, some)
                    if a.gx and band > 0:
                        low, high = clear_touched(f, work, t, some, pixels, low, high)
                    deform_pull(a, f, work, x, channels, work.pulls, a.row, channels, t, some, pixels)
                else:
                    deform_sample(f, work.points, x, channels, t, some, 0, pixels, a.row)
                if dotted:
                    if block.shared:
                        await_progress(neighbour, step)
                    for i in range(some):
                        dots = work.dots + i * dots_of(f.ndim) * f.tile
                        to = goffset + ((t + i) * f.ndim * plane + at)
                        to_mask = gmask + ((t + i) * plane + at)
                        point_grads(a, f, work, t + i, dots, pixels, plane, to, to_mask, block.shared != 0)
                    tell_progress(progress, step)
                if a.gw:
                    if a.as_given:
                        turn_rows(a, work, work.points.columns, pixels, some, channels)
                    multiply_columns(
                        a, tiles, a.channels, columns, pixels, gy_at, 1, a.gy_row, work.points.columns, a.row,
                        sums, sums_row, at > band_begin,
                    )  # fmt: skip
            step = (part + 1) * band_steps
            if a.gw and not out_in_place:
                if task >= a.block_count:
                    await_progress(before, step)
                kept = reals(a, a.kept) + (part * a.block_count + block_index) * a.channels * a.row
                leave_weights(a, work.sums, channels, taps, some, kept, first, last, gw + t)
            tell_progress(progress, step)
        done = (taps + a.tap_block - 1) // a.tap_block * band_steps + 1
        if a.gx:
            if task >= a.block_count:
                await_progress(before, done)
            gx = reals(a, a.gx) + (image * a.gx_image + block.channel * a.gx_channel)
            leave_image(a, f, work, channels, low, high, gx, band > 0)
        tell_progress(progress, done)

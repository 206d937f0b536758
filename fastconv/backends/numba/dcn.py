"""DCNv3 and DCNv4: each channel is the sum of its own samples, weighted by the masks of its group.

A task is a tile of output pixels of one group of channels: points as for a deformable convolution, then the sums in
registers, over all points of a pixel. The scratch is the deformable convolution's, with the sums of a group in place
of output channels; what is columns there holds offsets here.
"""

from .activation import exp
from .deform import AXES, deform_finish, deform_grid, deform_points, deform_scratch
from .moves import load_some, transpose
from .simd import (
    INTEGERS,
    WORD,
    at_least,
    double_of,
    emit_at,
    emit_fma,
    emit_get,
    emit_load,
    emit_loop,
    emit_splat,
    emit_store,
    fma,
    helper,
    lanes,
    ll_vector,
    load,
    real,
    reals,
    splat,
    stack_integers,
    store,
    verb,
    void,
    word,
    zeros,
)

# Vectors of channels summed at once.
VECTORS = 4
CORNERS = 4


@helper
def dcn_offsets(a, scale, offset, plane, tap, pixels, scaled):
    """The offsets of one tap as deform_points takes them: the grid around its middle is scaled with them."""
    grid = stack_integers(AXES)
    grid[1] = tap // a.kernel_w % a.kernel_h * a.dil_h - a.middle_h
    grid[2] = tap % a.kernel_w * a.dil_w - a.middle_w
    factor = splat(offset, scale)
    for axis in range(2):
        moved = splat(offset, (scale - 1) * grid[axis + 1])
        for p in range(0, pixels, lanes(offset)):
            given = load_some(offset + (axis * plane + p), pixels - p)
            store(scaled + (axis * a.tile + p), fma(factor, given, moved))


@helper
def dcn_turned(x, pixel, channels, first, pixels, tile, turned):
    """Offsets or masks of a tile with channels first, as they are if that is how they come."""
    if pixel == 1:
        return x + first
    transpose(turned, tile, x + first * pixel, pixel, pixels, channels)
    return turned


@helper
def dcn_softmax(a, mask, taps, pixels):
    """Masks become exp(l) over its sum over the points of a pixel; the largest is subtracted first."""
    first = 1 if a.skipped == 0 else 0
    for p in range(0, pixels, lanes(mask)):
        most, total = load(mask + (first * a.tile + p)), splat(mask, 0.0)
        for t in range(taps):
            if t != a.skipped:
                most = at_least(most, load(mask + (t * a.tile + p)))
        for t in range(taps):
            if t != a.skipped:
                power = exp(load(mask + (t * a.tile + p)) - most)
                total = total + power
                store(mask + (t * a.tile + p), power)
        for t in range(taps):
            if t != a.skipped:
                store(mask + (t * a.tile + p), load(mask + (t * a.tile + p)) / total)


@helper
def dcn_points(a, work, offset, mask, plane, pixels, scaled, closed, fractions):
    """All points of a tile; `scaled` is room for its offsets, once they are scaled, and `fractions` are kept if `closed`."""
    scale, taps = real(offset, double_of(a.scale)), a.kernel_d * a.kernel_h * a.kernel_w
    for t in range(taps):
        if t != a.skipped:
            kept = fractions + t * AXES * a.tile
            if scale == 1:
                deform_points(a, work, offset, plane, mask, True, t, pixels, closed, kept)
            else:
                dcn_offsets(a, scale, offset, plane, t, pixels, scaled)
                deform_points(a, work, scaled, a.tile, mask, True, t, pixels, closed, kept)
            offset = offset + 2 * plane
            mask = mask + plane
    if a.softmax:
        dcn_softmax(a, work.mask, taps, pixels)


@verb
def sum_points(sums, source, base, weight, mask, deltas, tile, width, taps, add, vectors):
    """sums[c] (+)= sum over taps of mask * sum over corners of weight * source[base * width + delta + c]."""

    def emit(builder, sums, start, base, weight, mask, deltas, tile, width, taps, add, _):
        kind, vector, count = source, ll_vector(source), vectors.literal_value
        apart = [emit_get(builder, deltas, corner) for corner in range(CORNERS)]

        def step(k, carried):
            at = builder.mul(k, tile)
            first = emit_at(builder, start, builder.mul(emit_get(builder, base, at), width))
            row = emit_at(builder, weight, builder.mul(at, WORD(CORNERS)))
            shares = [
                emit_splat(builder, vector, emit_get(builder, row, builder.mul(tile, WORD(corner))))
                for corner in range(CORNERS)
            ]
            factor = emit_splat(builder, vector, emit_get(builder, mask, at))
            totals = []
            for v, before in enumerate(carried):
                values = [
                    emit_load(builder, kind, emit_at(builder, first, delta), v * kind.lanes)
                    for delta in apart
                ]
                total = builder.fmul(shares[0], values[0])
                for share, value in zip(shares[1:], values[1:], strict=True):
                    total = emit_fma(builder, share, value, total)
                totals.append(emit_fma(builder, total, factor, before))
            return totals

        places = [emit_at(builder, sums, v * kind.lanes) for v in range(count)]
        adding = builder.icmp_signed("!=", add, WORD(0))
        begun = [
            builder.select(adding, emit_load(builder, kind, place), zero)
            for place, zero in zip(places, zeros(kind, count), strict=True)
        ]
        for total, place in zip(emit_loop(builder, taps, begun, step), places, strict=True):
            emit_store(builder, kind, place, total)

    arguments = (sums, source, INTEGERS, weight, mask, INTEGERS, word, word, word, word, vectors)
    return void(*arguments), emit


@helper
def dcn_sums(a, work, x, delta, first, taps, p, add):
    """The sums of one pixel over some taps, for all channels of a group."""
    base, mask = work.base + (first * a.tile + p), work.mask + (first * a.tile + p)
    weight = work.weight + (first * CORNERS * a.tile + p)
    for c in range(0, a.channels, VECTORS * lanes(x)):
        sums, n = work.sums + (p * a.w_width + c), (a.channels - c + lanes(x) - 1) // lanes(x)
        if n == 1:
            sum_points(sums, x + c, base, weight, mask, delta, a.tile, a.width, taps, add, 1)
        elif n == 2:
            sum_points(sums, x + c, base, weight, mask, delta, a.tile, a.width, taps, add, 2)
        elif n == 3:
            sum_points(sums, x + c, base, weight, mask, delta, a.tile, a.width, taps, add, 3)
        else:
            sum_points(sums, x + c, base, weight, mask, delta, a.tile, a.width, taps, add, VECTORS)


def dcn(a, begin, end, thread):
    """A task is a tile of output pixels of one group of channels."""
    work, delta = deform_scratch(a, thread), stack_integers(CORNERS)
    taps, plane = a.kernel_d * a.kernel_h * a.kernel_w, a.out_d * a.out_h * a.out_w
    delta[0], delta[1], delta[2], delta[3] = 0, a.width, a.line_h * a.width, (a.line_h + 1) * a.width
    for task in range(begin, end):
        tile, rest = task % a.tiles, task // a.tiles
        group, image = rest % a.groups, rest // a.groups
        first = tile * a.tile
        pixels = min(plane - first, a.tile)
        step, channel = plane, plane
        if a.offset_pixel != 1:
            step, channel = a.tile, 1
        offset = reals(a, a.offset) + (image * a.offset_image + group * a.points * 2 * channel)
        mask = reals(a, a.mask) + (image * a.mask_image + group * a.points * channel)
        room = work.columns + 2 * a.tile
        mask = dcn_turned(mask, a.mask_pixel, a.points, first, pixels, a.tile, room)
        room = room + a.points * a.tile
        offset = dcn_turned(offset, a.offset_pixel, 2 * a.points, first, pixels, a.tile, room)
        deform_grid(a, first, pixels, work.grid)
        dcn_points(a, work, offset, mask, step, pixels, work.columns, False, work.grid)
        x = reals(a, a.x) + (image * a.x_image + group * a.x_group)
        for p in range(pixels):
            dcn_sums(a, work, x, delta, 0, min(a.skipped, taps), p, 0)
            if a.skipped < taps:
                dcn_sums(a, work, x, delta, a.skipped + 1, taps - a.skipped - 1, p, 1)
        deform_finish(a, work, group, pixels, 0, 1, reals(a, a.y) + (image * a.y_image + first * a.y_w))

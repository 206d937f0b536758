"""The gradients of a deformable convolution with respect to what its samples depend on.

A block takes a tile of pixels, one tap and one offset group. For its channels, tile by tile, it computes the
gradient of the samples, ``W[t]^T gy[p]``, as a product in registers, and uses it at once: for the mask, for the
offset by the slopes of the interpolation, and for the input, to whose pixels around a sample it is added.

Many samples share a pixel. Added as they come, by atomics, their sum is rounded differently each time. The
deterministic way stores the gradients of all samples, and one thread for each channel of an image adds them in
the order of taps and pixels: the same bits always, with as many times the memory as there are taps.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, from_dtype, int32

from .dense import PAD
from .tables import RECORD
from .tiles import Tile

__all__ = ["ordered_scatter", "sample_grad", "sample_grad_shared_bytes"]


def sample_grad_shared_bytes(tile: Tile, ndim: int, dtype: np.dtype) -> int:
    """Return the shared memory of a block, in bytes."""
    corners = 2**ndim
    words = (corners + 1) * tile.pixels * 4
    places = (corners * (ndim + 1) + 1) * tile.pixels
    staged = tile.depth * (tile.pixels + tile.channels + 2 * PAD) + tile.channels * (tile.pixels + PAD)
    return words + (places + staged + tile.channel_lanes * (ndim + 1) * tile.pixels) * dtype.itemsize


@cache
def _places(ndim: int, dtype: np.dtype) -> Any:
    """Return the device function that finds corners, shares and slopes of a sample, and whether it is NaN.

    Row `corners` of the shares is the mask; rows ``corners * (axis + 1) + 1 + corner`` are slopes along an axis.
    """
    kind = dtype.type
    zero, one = kind(0), kind(1)
    corners = 2**ndim
    flat, plane = ndim < 3, ndim < 2

    @cuda.jit(device=True)
    def place(at, share, bad, slot, words, sums, tap, d, h, w, offset, mask, form, image, group, p):
        taps_w, taps_h = sums[0, 2 * RECORD], sums[0, RECORD]
        td, rest = tap // (taps_h * taps_w), tap % (taps_h * taps_w)
        th, tw = rest // taps_w, rest % taps_w
        first = image * form[4] + (group * form[3] + tap) * ndim * form[5] + p * form[6]
        y, z = zero, zero
        if not flat:
            z = kind(words[sums[0, 2] + td * sums[0, 1] + d]) + offset[first]
        if not plane:
            y = kind(words[sums[0, RECORD + 2] + th * sums[0, RECORD + 1] + h])
            y += offset[first + (ndim - 2) * form[5]]
        x = kind(words[sums[0, 2 * RECORD + 2] + tw * sums[0, 2 * RECORD + 1] + w])
        x += offset[first + (ndim - 1) * form[5]]
        # At -1 itself the sample is zero, but its slope to the right is not.
        inside = x >= -one and x < kind(form[2])
        inside = inside and y >= -one and y < kind(form[1])
        inside = inside and z >= -one and z < kind(form[0])
        bad[slot] = 1 if x != x or y != y or z != z else 0
        if not inside:
            x, y, z = zero, zero, zero
        low_x, low_y, low_z = math.floor(x), math.floor(y), math.floor(z)
        high_x, high_y, high_z = x - kind(low_x), y - kind(low_y), z - kind(low_z)
        for corner in range(corners):
            bit_x, bit_y, bit_z = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1
            cx, cy, cz = low_x + bit_x, low_y + bit_y, low_z + bit_z
            exists = inside and cx >= 0 and cx < form[2]
            exists = exists and cy >= 0 and cy < form[1] and cz >= 0 and cz < form[0]
            along_x = high_x if bit_x else one - high_x
            along_y = high_y if bit_y else one - high_y
            along_z = high_z if bit_z else one - high_z
            at[corner, slot] = (cz * form[1] + cy) * form[2] + cx if exists else -1
            share[corner, slot] = along_x * along_y * along_z
            slope = along_y * along_z
            share[corners * ndim + 1 + corner, slot] = slope if bit_x else -slope
            if not plane:
                slope = along_x * along_z
                share[corners * (ndim - 1) + 1 + corner, slot] = slope if bit_y else -slope
            if not flat:
                slope = along_x * along_y
                share[corners * (ndim - 2) + 1 + corner, slot] = slope if bit_z else -slope
        share[corners, slot] = (
            mask[image * form[7] + (group * form[3] + tap) * form[8] + p * form[9]] if form[8] > 0 else one
        )

    return place


@cache
def sample_grad(dtype: np.dtype, tile: Tile, ndim: int, channels_last: bool, ordered: bool) -> Any:
    """Return the kernel for a type, a tile, a rank and a layout; `ordered` stores the samples' gradients.

    Its arguments are the arrays, flat: gradients of the input (which starts as zeros; or of the samples), offset
    and mask, gradient of the output, input, packed weights, offset, mask, and the tables; `form` as the gather
    reads it; images; groups, offset groups, channels of a group in and out, taps; and the strides of image,
    channel and pixel, of the input and the output.
    """
    kind = from_dtype(dtype)
    zero, nan = dtype.type(0), dtype.type(math.nan)
    place = _places(ndim, dtype)
    CORNERS, RESULTS = 2**ndim, ndim + 1
    PIXELS, CHANNELS, ROWS, COLUMNS, DEPTH = tile.pixels, tile.channels, tile.rows, tile.columns, tile.depth
    PIXEL_LANES, CHANNEL_LANES, THREADS = tile.pixel_lanes, tile.channel_lanes, tile.threads
    PADDED, PADDED_CHANNELS, SHARES = PIXELS + PAD, CHANNELS + PAD, CORNERS * (ndim + 1) + 1

    @cuda.jit
    def kernel(
        grad_input, grad_offset, grad_mask, gy, x, weight, offset, mask, words, sums, form,
        groups, offset_groups, cg, og, taps,
        x_image, x_channel, x_pixel, y_image, y_channel, y_pixel,
    ):  # fmt: skip
        at = cuda.shared.array((CORNERS, PIXELS), int32)
        share = cuda.shared.array((SHARES, PIXELS), kind)
        bad = cuda.shared.array(PIXELS, int32)
        values = cuda.shared.array((DEPTH, PADDED), kind)
        weights = cuda.shared.array((DEPTH, PADDED_CHANNELS), kind)
        found = cuda.shared.array((CHANNEL_LANES, RESULTS, PIXELS), kind)
        samples = cuda.shared.array((CHANNELS, PADDED), kind)
        acc = cuda.local.array((ROWS, COLUMNS), kind)
        thread = cuda.threadIdx.x
        if channels_last:
            lane_p, lane_c = thread // CHANNEL_LANES, thread % CHANNEL_LANES
        else:
            lane_p, lane_c = thread % PIXEL_LANES, thread // PIXEL_LANES

        count_h, count_w = sums[0, RECORD + 1], sums[0, 2 * RECORD + 1]
        count = sums[0, 1] * count_h * count_w
        block = cuda.blockIdx.x
        pixel_tiles = (count + PIXELS - 1) // PIXELS
        first_p = block % pixel_tiles * PIXELS
        block //= pixel_tiles
        tap = block % taps
        block //= taps
        piece, image = block % offset_groups, block // offset_groups
        per_offset = groups * cg // offset_groups

        for i in range(thread, PIXELS, THREADS):
            p = first_p + i if first_p + i < count else count - 1
            d, h, w = p // (count_h * count_w), p // count_w % count_h, p % count_w
            place(at, share, bad, i, words, sums, tap, d, h, w, offset, mask, form, image, piece, p)
        for r in range(RESULTS):
            for i in range(ROWS):
                found[lane_c, r, lane_p + i * PIXEL_LANES] = zero

        for group in range(piece * per_offset // cg, ((piece + 1) * per_offset - 1) // cg + 1):
            begin, end = piece * per_offset - group * cg, (piece + 1) * per_offset - group * cg
            begin, end = begin if begin > 0 else 0, end if end < cg else cg
            for first_c in range(begin, end, CHANNELS):
                for i in range(ROWS):
                    for j in range(COLUMNS):
                        acc[i, j] = zero
                for first_o in range(0, og, DEPTH):
                    cuda.syncthreads()
                    for i in range(thread, DEPTH * PIXELS, THREADS):
                        if channels_last:
                            k, pixel = i % DEPTH, i // DEPTH
                        else:
                            k, pixel = i // PIXELS, i % PIXELS
                        value = zero
                        if first_p + pixel < count and first_o + k < og:
                            o = group * og + first_o + k
                            value = gy[image * y_image + o * y_channel + (first_p + pixel) * y_pixel]
                        values[k, pixel] = value
                    for i in range(thread, DEPTH * CHANNELS, THREADS):
                        k, c = i % DEPTH, first_c + i // DEPTH
                        value = zero
                        if c < end and first_o + k < og:
                            value = weight[((group * taps + tap) * cg + c) * og + first_o + k]
                        weights[k, c - first_c] = value
                    cuda.syncthreads()
                    for k in range(DEPTH):
                        for i in range(ROWS):
                            for j in range(COLUMNS):
                                acc[i, j] += (
                                    values[k, lane_p + i * PIXEL_LANES]
                                    * weights[k, lane_c + j * CHANNEL_LANES]
                                )
                # Registers cannot be indexed, and what follows is too long to unroll.
                for i in range(ROWS):
                    for j in range(COLUMNS):
                        samples[lane_c + j * CHANNEL_LANES, lane_p + i * PIXEL_LANES] = acc[i, j]
                for j in range(COLUMNS):
                    c = first_c + lane_c + j * CHANNEL_LANES
                    if c < end:
                        channel = group * cg + c
                        first = image * x_image + channel * x_channel
                        for i in range(ROWS):
                            slot = lane_p + i * PIXEL_LANES
                            if first_p + slot < count:
                                to_sample = samples[c - first_c, slot]
                                scaled = to_sample * share[CORNERS, slot]
                                sample = zero
                                for corner in range(CORNERS):
                                    pixel = at[corner, slot]
                                    if pixel >= 0:
                                        value = x[first + pixel * x_pixel]
                                        sample += share[corner, slot] * value
                                        for axis in range(ndim):
                                            slope = share[CORNERS * (axis + 1) + 1 + corner, slot]
                                            found[lane_c, axis, slot] += scaled * slope * value
                                        if not ordered:
                                            cuda.atomic.add(
                                                grad_input,
                                                first + pixel * x_pixel,
                                                scaled * share[corner, slot],
                                            )
                                found[lane_c, ndim, slot] += to_sample * sample
                                if ordered:
                                    row = (image * taps + tap) * groups * cg + channel
                                    grad_input[row * count + first_p + slot] = scaled

        cuda.syncthreads()
        for i in range(thread, PIXELS, THREADS):
            if first_p + i < count:
                p = first_p + i
                for r in range(RESULTS):
                    value = nan if bad[i] else zero
                    for lane in range(CHANNEL_LANES):
                        value += found[lane, r, i]
                    if r < ndim:
                        at_offset = (
                            image * form[4] + ((piece * taps + tap) * ndim + r) * form[5] + p * form[6]
                        )
                        grad_offset[at_offset] = value
                    elif form[8] > 0:
                        grad_mask[image * form[7] + (piece * taps + tap) * form[8] + p * form[9]] = value

    return kernel


@cache
def ordered_scatter(dtype: np.dtype, ndim: int) -> Any:
    """Return the kernel that adds the samples' gradients to the input's, a thread for each channel of an image."""
    kind = from_dtype(dtype)
    place = _places(ndim, dtype)
    CORNERS = 2**ndim
    SHARES = CORNERS * (ndim + 1) + 1

    @cuda.jit
    def kernel(
        grad_input, samples, offset, mask, words, sums, form,
        images, channels, offset_groups, taps, x_image, x_channel, x_pixel,
    ):  # fmt: skip
        at = cuda.local.array((CORNERS, 1), int32)
        share = cuda.local.array((SHARES, 1), kind)
        bad = cuda.local.array(1, int32)
        count_h, count_w = sums[0, RECORD + 1], sums[0, 2 * RECORD + 1]
        count = sums[0, 1] * count_h * count_w
        for owner in range(cuda.grid(1), images * channels, cuda.gridsize(1)):
            image, channel = owner // channels, owner % channels
            piece = channel // (channels // offset_groups)
            first = image * x_image + channel * x_channel
            for tap in range(taps):
                for p in range(count):
                    d, h, w = p // (count_h * count_w), p // count_w % count_h, p % count_w
                    place(at, share, bad, 0, words, sums, tap, d, h, w, offset, mask, form, image, piece, p)
                    scaled = samples[((image * taps + tap) * channels + channel) * count + p]
                    for corner in range(CORNERS):
                        pixel = at[corner, 0]
                        if pixel >= 0:
                            grad_input[first + pixel * x_pixel] += scaled * share[corner, 0]

    return kernel

"""The gradient with respect to the weight: output channels x input channels of one tap, summed over images and pixels.

    dW[t][o, c] = sum over n and p of gy[n, o, p] x[n](p, t)[c]

The pixels are read through the same gathers as forward. They are cut into parts, each of which is summed by a
block of its own into a gradient of its own; a second kernel adds the parts in their order. So there are blocks
enough, and the bits are always the same.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import cuda, from_dtype, int32

from .gather import gather
from .tables import RECORD
from .tiles import Tile

__all__ = ["add_parts", "weight_grad", "weight_grad_shared_bytes"]

# Neighbours write to neighbouring rows here, 32 of them: an odd distance keeps all of their banks apart.
PAD = 1


def weight_grad_shared_bytes(tile: Tile, corners: int, dtype: np.dtype) -> int:
    """Return the shared memory of a block, in bytes."""
    shares = (corners + 1) * tile.depth if corners > 1 else 1
    staged = tile.depth * (tile.pixels + tile.channels + 2 * PAD)
    return (corners + 1) * tile.depth * 4 + (shares + staged) * dtype.itemsize


@cache
def weight_grad(dtype: np.dtype, tile: Tile, corners: int, channels_last: bool) -> Any:
    """Return the kernel for a type, a tile, a gather (by its corners) and a layout.

    Its arguments are the arrays, flat: a gradient for each part, the gradient of the output, input, offset, mask,
    and the tables; `form` as the gather reads it; images and parts; groups, offset groups, channels of a group in
    and out, taps of the kernel; and the strides of image, channel and pixel, of the input and the output.
    """
    kind = from_dtype(dtype)
    zero = dtype.type(0)
    place, fetch = gather(corners, dtype)
    OUTS, INS, ROWS, COLUMNS, DEPTH = tile.pixels, tile.channels, tile.rows, tile.columns, tile.depth
    OUT_LANES, IN_LANES, THREADS = tile.pixel_lanes, tile.channel_lanes, tile.threads
    PADDED_OUTS, PADDED_INS = OUTS + PAD, INS + PAD
    SHARES, SHARE_SLOTS = (corners + 1, DEPTH) if corners > 1 else (1, 1)

    @cuda.jit
    def kernel(
        grads, gy, x, offset, mask, words, sums, form,
        images, parts, groups, offset_groups, cg, og, kernel_taps,
        x_image, x_channel, x_pixel, y_image, y_channel, y_pixel,
    ):  # fmt: skip
        at = cuda.shared.array((corners, DEPTH), int32)
        share = cuda.shared.array((SHARES, SHARE_SLOTS), kind)
        pixels = cuda.shared.array(DEPTH, int32)
        outs = cuda.shared.array((DEPTH, PADDED_OUTS), kind)
        ins = cuda.shared.array((DEPTH, PADDED_INS), kind)
        acc = cuda.local.array((ROWS, COLUMNS), kind)
        thread = cuda.threadIdx.x
        lane_o, lane_c = thread % OUT_LANES, thread // OUT_LANES

        s = 0  # a convolution has one sum
        count_h, count_w = sums[s, RECORD + 1], sums[s, 2 * RECORD + 1]
        count = sums[s, 1] * count_h * count_w
        taps_h, taps_w = sums[s, RECORD], sums[s, 2 * RECORD]
        taps = sums[s, 0] * taps_h * taps_w

        block = cuda.blockIdx.x
        out_tiles, in_tiles = (og + OUTS - 1) // OUTS, (cg + INS - 1) // INS
        first_o = block % out_tiles * OUTS
        block //= out_tiles
        first_c = block % in_tiles * INS
        block //= in_tiles
        tap = block % taps
        block //= taps
        group, part = block % groups, block // groups
        slabs_each = (count + DEPTH - 1) // DEPTH
        slabs = images * slabs_each
        begin_slab, end_slab = slabs * part // parts, slabs * (part + 1) // parts

        for i in range(ROWS):
            for j in range(COLUMNS):
                acc[i, j] = zero
        per_offset = groups * cg // offset_groups
        last_c = first_c + INS if first_c + INS < cg else cg
        for piece in range((group * cg + first_c) // per_offset, (group * cg + last_c - 1) // per_offset + 1):
            begin, end = piece * per_offset - group * cg, (piece + 1) * per_offset - group * cg
            begin, end = begin if begin > first_c else first_c, end if end < last_c else last_c
            for slab in range(begin_slab, end_slab):
                image, first_p = slab // slabs_each, slab % slabs_each * DEPTH
                cuda.syncthreads()
                for i in range(thread, DEPTH, THREADS):
                    p = first_p + i if first_p + i < count else count - 1
                    d, h, w = p // (count_h * count_w), p // count_w % count_h, p % count_w
                    whole = (
                        words[sums[s, 3] + d]
                        + words[sums[s, RECORD + 3] + h]
                        + words[sums[s, 2 * RECORD + 3] + w]
                    )
                    pixels[i] = whole
                    place(
                        at, share, i, words, sums, s, tap, d, h, w, offset, mask, form, image, piece, whole
                    )  # fmt: skip
                cuda.syncthreads()
                for i in range(thread, DEPTH * OUTS, THREADS):
                    if channels_last:
                        k, o = i // OUTS, i % OUTS
                    else:
                        k, o = i % DEPTH, i // DEPTH
                    value = zero
                    if first_p + k < count and first_o + o < og:
                        value = gy[
                            image * y_image + (group * og + first_o + o) * y_channel + pixels[k] * y_pixel
                        ]
                    outs[k, o] = value
                for i in range(thread, DEPTH * INS, THREADS):
                    if channels_last:
                        k, c = i // INS, first_c + i % INS
                    else:
                        k, c = i % DEPTH, first_c + i // DEPTH
                    value = zero
                    if first_p + k < count and c >= begin and c < end:
                        value = fetch(
                            x, image * x_image + (group * cg + c) * x_channel, x_pixel, at, share, k
                        )
                    ins[k, c - first_c] = value
                cuda.syncthreads()
                for k in range(DEPTH):
                    for i in range(ROWS):
                        for j in range(COLUMNS):
                            acc[i, j] += outs[k, lane_o + i * OUT_LANES] * ins[k, lane_c + j * IN_LANES]

        tap_at = (
            words[sums[s, 4] + tap // (taps_h * taps_w)]
            + words[sums[s, RECORD + 4] + tap // taps_w % taps_h]
            + words[sums[s, 2 * RECORD + 4] + tap % taps_w]
        )
        for i in range(ROWS):
            o = first_o + lane_o + i * OUT_LANES
            for j in range(COLUMNS):
                c = first_c + lane_c + j * IN_LANES
                if o < og and c < cg:
                    grads[(((part * groups + group) * og + o) * cg + c) * kernel_taps + tap_at] = acc[i, j]

    return kernel


@cache
def add_parts() -> Any:
    """Return the kernel ``(total, parts, count)`` that adds the parts in their order."""

    @cuda.jit
    def kernel(total, parts, count):
        for i in range(cuda.grid(1), total.shape[0], cuda.gridsize(1)):
            value = parts[i]
            for part in range(1, count):
                value += parts[part * total.shape[0] + i]
            total[i] = value

    return kernel

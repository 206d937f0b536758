"""The matrix kernel: a tile of pixels times a tile of output channels, summed over taps and input channels.

    y[p, o] = sum over t, c of x(p, t)[c] W[t][c][o]

A block stages `depth` products at a time: the pixels' values, through the gather, and the weights. Either it
takes one tap and `depth` channels, or, where a group has fewer channels, several taps. A group of channels with
offsets of their own is a piece of the sum; without offsets there is one.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, from_dtype, int32

from .activation import REMEMBERED_KERNELS, activation
from .gather import gather
from .tables import RECORD
from .tiles import Tile

__all__ = ["PAD", "dense", "dense_shared_bytes", "placed_taps"]

# Elements between rows of staged values, so that lanes along channels write to different banks.
PAD = 4


def dense_shared_bytes(tile: Tile, corners: int, dtype: np.dtype) -> int:
    """Return the shared memory of a block, in bytes."""
    slots = placed_taps(tile, corners) * tile.pixels
    shares = corners + 1 if corners > 1 else 1
    staged = tile.depth * (tile.pixels + PAD + tile.channels)
    words = 4 * tile.pixels + corners * slots + placed_taps(tile, corners)
    return words * 4 + (staged + shares * (slots if corners > 1 else 1)) * dtype.itemsize


def placed_taps(tile: Tile, corners: int) -> int:
    """Return how many taps are placed at a time: corners and shares take room, positions alone do not."""
    return tile.depth if corners == 1 else 1


@lru_cache(REMEMBERED_KERNELS)
def dense(
    dtype: np.dtype, tile: Tile, corners: int, channels_last: bool, function: str | Callable | None
) -> Any:
    """Return the kernel for a type, a tile, a gather (by its corners), a layout and an activation.

    Its arguments are the arrays, flat: output, input, packed weights, bias (of no elements if absent), offset,
    mask, and the tables; `form` as the gather reads it; groups, offset groups, channels of a group in and out,
    taps of the kernel; and the strides of image, channel and pixel, of the input and the output.
    """
    kind = from_dtype(dtype)
    zero = dtype.type(0)
    act = activation(function, dtype)
    place, fetch = gather(corners, dtype)
    PIXELS, CHANNELS, ROWS, COLUMNS, DEPTH = tile.pixels, tile.channels, tile.rows, tile.columns, tile.depth
    PIXEL_LANES, CHANNEL_LANES, THREADS = tile.pixel_lanes, tile.channel_lanes, tile.threads
    TAPS = placed_taps(tile, corners)
    SLOTS, PADDED, LOG_DEPTH = TAPS * PIXELS, PIXELS + PAD, DEPTH.bit_length() - 1
    STEP_P, STEP_O = np.uint32(PIXEL_LANES), np.uint32(CHANNEL_LANES)
    SHARES, SHARE_SLOTS = (corners + 1, SLOTS) if corners > 1 else (1, 1)

    @cuda.jit
    def kernel(
        y, x, weight, bias, offset, mask, words, sums, tiles, form,
        groups, offset_groups, cg, og, kernel_taps,
        x_image, x_channel, x_pixel, y_image, y_channel, y_pixel,
    ):  # fmt: skip
        at = cuda.shared.array((corners, SLOTS), int32)
        share = cuda.shared.array((SHARES, SHARE_SLOTS), kind)
        pixels = cuda.shared.array((4, PIXELS), int32)  # d, h, w of the sum, and the output pixel
        tap_at = cuda.shared.array(TAPS, int32)
        values = cuda.shared.array((DEPTH, PADDED), kind)
        weights = cuda.shared.array((DEPTH, CHANNELS), kind)
        acc = cuda.local.array((ROWS, COLUMNS), kind)
        a = cuda.local.array(ROWS, kind)
        b = cuda.local.array(COLUMNS, kind)
        thread = cuda.threadIdx.x

        # Channel tiles go round fastest: blocks that run together read the same pixels.
        block = cuda.blockIdx.x
        channel_tiles = (og + CHANNELS - 1) // CHANNELS
        first_o = block % channel_tiles * CHANNELS
        block //= channel_tiles
        group = block % groups
        block //= groups
        s, first_p = tiles[block % tiles.shape[0], 0], tiles[block % tiles.shape[0], 1]
        image = block // tiles.shape[0]

        count_h, count_w = sums[s, RECORD + 1], sums[s, 2 * RECORD + 1]
        count = sums[s, 1] * count_h * count_w
        taps = sums[s, 0] * sums[s, RECORD] * sums[s, 2 * RECORD]
        for i in range(thread, PIXELS, THREADS):
            p = (
                first_p + i if first_p + i < count else count - 1
            )  # beyond the last pixel the last again, which is not written
            d, h, w = p // (count_h * count_w), p // count_w % count_h, p % count_w
            pixels[0, i], pixels[1, i], pixels[2, i] = d, h, w
            pixels[3, i] = (
                words[sums[s, 3] + d] + words[sums[s, RECORD + 3] + h] + words[sums[s, 2 * RECORD + 3] + w]
            )
        cuda.syncthreads()  # pixels are read below even if there are no taps
        for i in range(ROWS):
            for j in range(COLUMNS):
                acc[i, j] = zero
        if channels_last:
            lane_p, lane_o = thread // CHANNEL_LANES, thread % CHANNEL_LANES
        else:
            lane_p, lane_o = thread % PIXEL_LANES, thread // PIXEL_LANES

        # Unsigned, the indices of the inner loop are not looked at for counting from the end: 20 registers less.
        near_p, near_o = np.uint32(lane_p), np.uint32(lane_o)
        per_offset = groups * cg // offset_groups
        for piece in range(group * cg // per_offset, ((group + 1) * cg - 1) // per_offset + 1):
            begin, end = piece * per_offset - group * cg, (piece + 1) * per_offset - group * cg
            begin, end = begin if begin > 0 else 0, end if end < cg else cg
            step = DEPTH  # channels at a time; the taps at a time are DEPTH // step
            shift = 0
            while step // 2 >= end - begin and (2 << shift) <= TAPS:
                step //= 2
                shift += 1
            bits = step - 1
            for first_tap in range(0, taps, 1 << shift):
                cuda.syncthreads()
                for i in range(thread, PIXELS << shift, THREADS):
                    tap, pixel = first_tap + i // PIXELS, i % PIXELS
                    if tap < taps:
                        place(
                            at, share, i, words, sums, s, tap, pixels[0, pixel], pixels[1, pixel], pixels[2, pixel],
                            offset, mask, form, image, piece, pixels[3, pixel],
                        )  # fmt: skip
                if thread < (1 << shift) and first_tap + thread < taps:
                    tap = first_tap + thread
                    taps_h, taps_w = sums[s, RECORD], sums[s, 2 * RECORD]
                    tap_at[thread] = (
                        words[sums[s, 4] + tap // (taps_h * taps_w)]
                        + words[sums[s, RECORD + 4] + tap // taps_w % taps_h]
                        + words[sums[s, 2 * RECORD + 4] + tap % taps_w]
                    )
                cuda.syncthreads()
                for first_c in range(begin, end, step):
                    for i in range(thread, DEPTH * PIXELS, THREADS):
                        if channels_last:
                            k, pixel = i % DEPTH, i // DEPTH
                        else:
                            k, pixel = i // PIXELS, i % PIXELS
                        tap, c = k >> (LOG_DEPTH - shift), first_c + (k & bits)
                        if c < end and first_tap + tap < taps:
                            first = image * x_image + (group * cg + c) * x_channel
                            values[k, pixel] = fetch(x, first, x_pixel, at, share, tap * PIXELS + pixel)
                        else:
                            values[k, pixel] = zero
                    for i in range(thread, DEPTH * CHANNELS, THREADS):
                        k, o = i // CHANNELS, i % CHANNELS
                        tap, c = k >> (LOG_DEPTH - shift), first_c + (k & bits)
                        if c < end and first_tap + tap < taps and first_o + o < og:
                            weights[k, o] = weight[
                                ((group * kernel_taps + tap_at[tap]) * cg + c) * og + first_o + o
                            ]
                        else:
                            weights[k, o] = zero
                    cuda.syncthreads()
                    for k in range(DEPTH):
                        for i in range(ROWS):
                            a[i] = values[np.uint32(k), near_p + np.uint32(i) * STEP_P]
                        for j in range(COLUMNS):
                            b[j] = weights[np.uint32(k), near_o + np.uint32(j) * STEP_O]
                        for i in range(ROWS):
                            for j in range(COLUMNS):
                                acc[i, j] += a[i] * b[j]
                    cuda.syncthreads()

        for j in range(COLUMNS):
            o = first_o + lane_o + j * CHANNEL_LANES
            if o < og:
                shift_by = bias[group * og + o] if bias.shape[0] > 0 else zero
                first = image * y_image + (group * og + o) * y_channel
                for i in range(ROWS):
                    pixel = lane_p + i * PIXEL_LANES
                    if first_p + pixel < count:
                        y[first + pixels[3, pixel] * y_pixel] = act(acc[i, j] + shift_by)

    return kernel

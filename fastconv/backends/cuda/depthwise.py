"""One input channel a group: nothing is shared between channels but positions, and pixels are read where they are.

A block takes a tile of pixels and of output channels; positions are placed once for all of its channels.
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

__all__ = ["depthwise", "depthwise_shared_bytes"]


def depthwise_shared_bytes(tile: Tile, dtype: np.dtype) -> int:
    """Return the shared memory of a block, in bytes."""
    return 4 * (4 + tile.depth) * tile.pixels + (tile.depth * tile.channels + 1) * dtype.itemsize


@lru_cache(REMEMBERED_KERNELS)
def depthwise(dtype: np.dtype, tile: Tile, channels_last: bool, function: str | Callable | None) -> Any:
    """Return the kernel for a type, a tile, a layout and an activation; its arguments are those of ``dense``."""
    kind = from_dtype(dtype)
    zero = dtype.type(0)
    act = activation(function, dtype)
    place, fetch = gather(1, dtype)
    PIXELS, CHANNELS, ROWS, COLUMNS, TAPS = tile.pixels, tile.channels, tile.rows, tile.columns, tile.depth
    SLOTS = TAPS * PIXELS
    PIXEL_LANES, CHANNEL_LANES, THREADS = tile.pixel_lanes, tile.channel_lanes, tile.threads

    @cuda.jit
    def kernel(
        y, x, weight, bias, offset, mask, words, sums, tiles, form,
        groups, offset_groups, cg, og, kernel_taps,
        x_image, x_channel, x_pixel, y_image, y_channel, y_pixel,
    ):  # fmt: skip
        at = cuda.shared.array((1, SLOTS), int32)
        share = cuda.shared.array((1, 1), kind)
        pixels = cuda.shared.array((4, PIXELS), int32)
        weights = cuda.shared.array((TAPS, CHANNELS), kind)
        acc = cuda.local.array((ROWS, COLUMNS), kind)
        thread = cuda.threadIdx.x

        block = cuda.blockIdx.x
        channels = groups * og
        channel_tiles = (channels + CHANNELS - 1) // CHANNELS
        first_o = block % channel_tiles * CHANNELS
        block //= channel_tiles
        s, first_p = tiles[block % tiles.shape[0], 0], tiles[block % tiles.shape[0], 1]
        image = block // tiles.shape[0]

        count_h, count_w = sums[s, RECORD + 1], sums[s, 2 * RECORD + 1]
        count = sums[s, 1] * count_h * count_w
        taps_h, taps_w = sums[s, RECORD], sums[s, 2 * RECORD]
        taps = sums[s, 0] * taps_h * taps_w
        for i in range(thread, PIXELS, THREADS):
            p = first_p + i if first_p + i < count else count - 1
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

        for first_tap in range(0, taps, TAPS):
            cuda.syncthreads()
            for i in range(thread, TAPS * PIXELS, THREADS):
                tap, pixel = first_tap + i // PIXELS, i % PIXELS
                if tap < taps:
                    place(
                        at, share, i, words, sums, s, tap, pixels[0, pixel], pixels[1, pixel], pixels[2, pixel],
                        offset, mask, form, image, 0, pixels[3, pixel],
                    )  # fmt: skip
            for i in range(thread, TAPS * CHANNELS, THREADS):
                tap, o = first_tap + i // CHANNELS, first_o + i % CHANNELS
                if tap < taps and o < channels:
                    tap_at = (
                        words[sums[s, 4] + tap // (taps_h * taps_w)]
                        + words[sums[s, RECORD + 4] + tap // taps_w % taps_h]
                        + words[sums[s, 2 * RECORD + 4] + tap % taps_w]
                    )
                    weights[i // CHANNELS, i % CHANNELS] = weight[
                        (o // og * kernel_taps + tap_at) * og + o % og
                    ]
            cuda.syncthreads()
            here = TAPS if taps - first_tap > TAPS else taps - first_tap
            for j in range(COLUMNS):
                o = first_o + lane_o + j * CHANNEL_LANES
                if o < channels:
                    first = image * x_image + o // og * x_channel
                    for t in range(here):
                        for i in range(ROWS):
                            value = fetch(x, first, x_pixel, at, share, t * PIXELS + lane_p + i * PIXEL_LANES)
                            acc[i, j] += value * weights[t, lane_o + j * CHANNEL_LANES]

        for j in range(COLUMNS):
            o = first_o + lane_o + j * CHANNEL_LANES
            if o < channels:
                shift_by = bias[o] if bias.shape[0] > 0 else zero
                first = image * y_image + o * y_channel
                for i in range(ROWS):
                    pixel = lane_p + i * PIXEL_LANES
                    if first_p + pixel < count:
                        y[first + pixels[3, pixel] * y_pixel] = act(acc[i, j] + shift_by)

    return kernel

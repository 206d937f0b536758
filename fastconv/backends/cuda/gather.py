"""What a tap reads at a pixel: one element by a table, or several between which it interpolates.

Both kinds are two device functions. ``place`` finds, once for each (pixel, tap, offset group), the positions and
their shares, and puts them into shared memory; ``fetch`` reads them for one channel, as often as there are
channels. Device functions of the simulator cannot see ``cuda``, so they get all they need.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from .tables import RECORD

__all__ = ["corners_of", "gather"]


def corners_of(variant: str, ndim: int) -> int:
    """Return how many elements a tap reads; 1 by a table."""
    return 2**ndim if variant == "deform_conv" else 1


@cache
def gather(corners: int, dtype: np.dtype) -> tuple[Any, Any]:
    """Return the device functions ``(place, fetch)``.

    ``place(at, share, slot, words, sums, s, tap, d, h, w, offset, mask, form, image, group, p)`` fills column
    `slot` for a flat tap of sum `s` at output (d, h, w) of that sum, which is pixel `p` of the whole;
    ``fetch(x, first, step, at, share, slot)`` returns what is read, where `first` is the channel's first element
    and `step` the distance of two pixels.
    """
    return _by_table(dtype) if corners == 1 else _interpolated(corners.bit_length() - 1, dtype)


def _by_table(dtype: np.dtype) -> tuple[Any, Any]:
    zero = dtype.type(0)

    @cuda.jit(device=True)
    def place(at, share, slot, words, sums, s, tap, d, h, w, offset, mask, form, image, group, p):
        taps_w, taps_h = sums[s, 2 * RECORD], sums[s, RECORD]
        td, rest = tap // (taps_h * taps_w), tap % (taps_h * taps_w)
        th, tw = rest // taps_w, rest % taps_w
        at[0, slot] = (
            words[sums[s, 2] + td * sums[s, 1] + d]
            + words[sums[s, RECORD + 2] + th * sums[s, RECORD + 1] + h]
            + words[sums[s, 2 * RECORD + 2] + tw * sums[s, 2 * RECORD + 1] + w]
        )

    @cuda.jit(device=True)
    def fetch(x, first, step, at, share, slot):
        pixel = at[0, slot]
        return x[first + pixel * step] if pixel >= 0 else zero

    return place, fetch


def _interpolated(ndim: int, dtype: np.dtype) -> tuple[Any, Any]:
    kind = dtype.type
    zero, one = kind(0), kind(1)
    corners = 2**ndim
    flat, plane = ndim < 3, ndim < 2  # axes that are not there have coordinate 0

    @cuda.jit(device=True)
    def place(at, share, slot, words, sums, s, tap, d, h, w, offset, mask, form, image, group, p):
        # form: D, H, W of the image; taps; strides (image, channel, pixel) of the offset, then of the mask.
        taps_w, taps_h = sums[s, 2 * RECORD], sums[s, RECORD]
        td, rest = tap // (taps_h * taps_w), tap % (taps_h * taps_w)
        th, tw = rest // taps_w, rest % taps_w
        first = image * form[4] + (group * form[3] + tap) * ndim * form[5] + p * form[6]
        y, z = zero, zero
        if not flat:
            z = kind(words[sums[s, 2] + td * sums[s, 1] + d]) + offset[first]
        if not plane:
            y = kind(words[sums[s, RECORD + 2] + th * sums[s, RECORD + 1] + h])
            y += offset[first + (ndim - 2) * form[5]]
        x = kind(words[sums[s, 2 * RECORD + 2] + tw * sums[s, 2 * RECORD + 1] + w])
        x += offset[first + (ndim - 1) * form[5]]
        nan = x != x or y != y or z != z
        inside = x > -one and x < kind(form[2])
        inside = inside and y > -one and y < kind(form[1])
        inside = inside and z > -one and z < kind(form[0])
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
        if nan:  # whatever pixel 0 holds, the sample is NaN
            at[0, slot] = 0
            share[0, slot] = kind(math.nan)
        # Kept apart from the shares: an infinite factor times a share of zero would be NaN.
        share[corners, slot] = (
            mask[image * form[7] + (group * form[3] + tap) * form[8] + p * form[9]] if form[8] > 0 else one
        )

    @cuda.jit(device=True)
    def fetch(x, first, step, at, share, slot):
        value = zero
        for corner in range(corners):
            pixel = at[corner, slot]
            if pixel >= 0:
                value += share[corner, slot] * x[first + pixel * step]
        return value * share[corners, slot]

    return place, fetch

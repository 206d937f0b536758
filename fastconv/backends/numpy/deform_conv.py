"""y[p] = sum over taps t of W[t] m[t, p] x(p*stride + t*dilation - padding + offset[t, p]), x(.) interpolated linearly.

Dai et al., "Deformable convolutional networks", 2017 (v1: m = 1); Zhu et al., "Deformable ConvNets v2", 2019.
The border is torchvision's: a point outside (-1, size) on any axis reads zero.
"""

from itertools import product

import numpy as np

from ...problem import Problem
from .conv import channels


def deform_conv(
    problem: Problem, x: np.ndarray, weight: np.ndarray, offset: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Return the deformable convolution of x (N, C, *size) with weight (O, C/G, *kernel), without bias."""
    n, dg, taps, out = problem.batch, problem.offset_groups, problem.taps, problem.output_size
    offset = offset.reshape(n, dg, taps, problem.ndim, *out)
    mask = np.ones((n, dg, taps, *out)) if mask is None else mask.reshape(n, dg, taps, *out)
    y = np.zeros((n, problem.out_channels, *out))
    column = np.empty((problem.in_channels, *out))
    for i in range(n):
        for t, tap in enumerate(np.ndindex(*problem.kernel_size)):
            for d in range(dg):
                inputs = channels(problem.in_channels, dg, d)
                column[inputs] = (
                    interpolate(x[i, inputs], regular_points(problem, tap) + offset[i, d, t]) * mask[i, d, t]
                )
            for g in range(problem.groups):
                inputs, outputs = (
                    channels(problem.in_channels, problem.groups, g),
                    channels(problem.out_channels, problem.groups, g),
                )
                y[i, outputs] += np.einsum(
                    "oc,c...->o...", weight[(outputs, slice(None), *tap)], column[inputs]
                )
    return y


def regular_points(problem: Problem, tap: tuple[int, ...]) -> np.ndarray:
    """Return the (ndim, *output size) coordinates that an ordinary convolution reads at one tap, in input pixels."""
    axes = (
        np.arange(out) * s + t * d - before
        for out, s, t, d, (before, _) in zip(
            problem.output_size, problem.stride, tap, problem.dilation, problem.padding, strict=True
        )
    )
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float64)


def interpolate(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return x (C, *size) at real-valued points (ndim, *out): sum over pixels q of x[q] prod(max(0, 1 - |p - q|))."""
    size = np.array(x.shape[1:]).reshape(-1, *(1,) * (points.ndim - 1))
    inside = np.all((points > -1) & (points < size), axis=0)
    nan = np.isnan(points).any(axis=0)
    points = np.where(inside, points, 0.0)
    low = np.floor(points)
    value = np.zeros((x.shape[0], *points.shape[1:]))
    for corner in product((0, 1), repeat=len(points)):
        q = (low + np.array(corner).reshape(size.shape)).astype(np.int64)
        share = np.prod(1 - np.abs(points - q), axis=0)
        exists = inside & np.all((q >= 0) & (q < size), axis=0)
        pixel = x[(slice(None), *np.where(exists, q, 0))]
        value += np.where(exists, share * pixel, 0.0)
    return np.where(nan, np.nan, value)

"""Gradients of the deformable convolution, by the chain rule through its samples.

With v[t, p] = x(P), P = p*stride + t*dilation - padding + offset[t, p] and y[p] = sum over t of W[t] m[t, p] v[t, p]:

    dW[t] = sum over p of gy[p] m[t, p] v[t, p]         dm[t, p] = W[t]^T gy[p] . v[t, p]
    dx[q] = sum over t, p of m W[t]^T gy[p] share(P, q)  doffset[t, p] = m W[t]^T gy[p] . dv/dP

Where x(.) has a kink, at whole coordinates, dv/dP is the derivative to the right, as in torchvision. A point
with a NaN among its coordinates makes its own gradients and dW NaN and gives nothing to dx.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from ...problem import Problem
from .conv import channels
from .deform_conv import regular_points


def deform_conv_grad(
    problem: Problem,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return the gradients of input, offset, weight and mask, each of its operand's shape."""
    n, dg, taps, out = problem.batch, problem.offset_groups, problem.taps, problem.output_size
    offset = offset.reshape(n, dg, taps, problem.ndim, *out)
    mask = np.ones((n, dg, taps, *out)) if mask is None else mask.reshape(n, dg, taps, *out)
    grads = {name: np.zeros_like(array) for name, array in (("input", x), ("offset", offset), ("mask", mask))}
    grads["weight"] = np.zeros_like(weight)
    pixels = range(1, 1 + problem.ndim)
    for i, (t, tap), d in product(range(n), enumerate(np.ndindex(*problem.kernel_size)), range(dg)):
        points = regular_points(problem, tap) + offset[i, d, t]
        for g in range(problem.groups):
            inputs = both(
                channels(problem.in_channels, dg, d), channels(problem.in_channels, problem.groups, g)
            )
            outputs = channels(problem.out_channels, problem.groups, g)
            if inputs.start >= inputs.stop:
                continue
            within = slice(
                *(c - g * problem.in_channels // problem.groups for c in (inputs.start, inputs.stop))
            )
            gy = grad_output[i, outputs]
            to_sample = np.einsum("oc,o...->c...", weight[(outputs, within, *tap)], gy)
            sample = np.zeros((inputs.stop - inputs.start, *out))
            for q, exists, share, slopes in corners(points, problem.input_size):
                pixel = np.where(exists, x[i][(inputs, *q)], 0.0)
                sample += share * pixel
                for axis, slope in enumerate(slopes):
                    grads["offset"][i, d, t, axis] += (to_sample * mask[i, d, t] * slope * pixel).sum(axis=0)
                channel = np.arange(inputs.start, inputs.stop).reshape(-1, *(1,) * problem.ndim)
                scattered = np.where(exists, to_sample * mask[i, d, t] * share, 0.0)
                np.add.at(grads["input"][i], (channel, *q), scattered)
            sample[:, np.isnan(points).any(axis=0)] = np.nan
            grads["mask"][i, d, t] += (to_sample * sample).sum(axis=0)
            grads["weight"][(outputs, within, *tap)] += np.tensordot(
                gy, sample * mask[i, d, t], axes=(pixels, pixels)
            )
        grads["offset"][i, d, t][:, np.isnan(points).any(axis=0)] = np.nan
    grads["offset"] = grads["offset"].reshape(problem.offset_shape)
    grads["mask"] = grads["mask"].reshape(problem.mask_shape)
    return grads


def both(a: slice, b: slice) -> slice:
    """Return what two ranges have in common."""
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def corners(
    points: np.ndarray, size: tuple[int, ...]
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Yield for each corner around the points (ndim, *out): its pixel, whether that exists, its share, the share's slopes."""
    sizes = np.array(size).reshape(-1, *(1,) * (points.ndim - 1))
    inside = np.all((points >= -1) & (points < sizes), axis=0)
    points = np.where(inside, points, 0.0)
    low = np.floor(points)
    for corner in product((0, 1), repeat=len(points)):
        at = np.array(corner).reshape(sizes.shape)
        q = (low + at).astype(np.int64)
        exists = inside & np.all((q >= 0) & (q < sizes), axis=0)
        along = 1 - np.abs(points - q)
        slopes = [
            (2 * bit - 1) * np.prod(np.delete(along, axis, axis=0), axis=0) for axis, bit in enumerate(corner)
        ]
        yield tuple(np.where(exists, q, 0)), exists, np.prod(along, axis=0), slopes

"""y[p] = sum over points k of m[k, p] x(p*stride - padding + r + s (k*dilation - r + offset[k, p])), x(.) interpolated linearly.

r is the middle of the grid and s the offset scale. DCNv3 (Wang et al., "InternImage", 2023): the masks m of a group
are the softmax of what is given. DCNv4 (Xiong et al., 2024): m is what is given.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from ...problem import Problem
from .conv import channels
from .deform_conv import interpolate, regular_points
from .deform_conv_grad import corners


def dcnv3(problem: Problem, x: np.ndarray, offset: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the sums (N, C, *output size) of samples of x (N, C, *size), masks normalised."""
    return dcnv4(problem, x, offset, softmax(problem, mask))


def dcnv4(problem: Problem, x: np.ndarray, offset: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the sums (N, C, *output size) of samples of x (N, C, *size)."""
    mask = by_point(problem, mask)
    y = np.zeros((problem.batch, problem.out_channels, *problem.output_size))
    for i, d, k, points in sampled(problem, offset):
        inputs = channels(problem.in_channels, problem.offset_groups, d)
        y[i, inputs] += mask[i, d, k] * interpolate(x[i, inputs], points)
    return y


def dcnv3_grad(
    problem: Problem, grad_output: np.ndarray, x: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the gradients of input, offset and mask: through m = softmax(l), dl = m (dm - sum of m dm)."""
    m = softmax(problem, mask)
    grads = dcnv4_grad(problem, grad_output, x, offset, m)
    m, dm = by_point(problem, m), by_point(problem, grads["mask"])
    grads["mask"] = (m * (dm - (m * dm).sum(axis=2, keepdims=True))).reshape(problem.mask_shape)
    return grads


def dcnv4_grad(
    problem: Problem, grad_output: np.ndarray, x: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the gradients of input, offset and mask, each of its operand's shape.

    A point with a NaN among its coordinates makes its own gradients NaN and gives nothing to the input's.
    """
    mask = by_point(problem, mask)
    grads = {"input": np.zeros_like(x), "mask": np.zeros_like(mask)}
    along = np.zeros((*mask.shape[:3], problem.ndim, *problem.output_size))
    for i, d, k, points in sampled(problem, offset):
        inputs = channels(problem.in_channels, problem.offset_groups, d)
        gy = grad_output[i, inputs]
        channel = np.arange(inputs.start, inputs.stop).reshape(-1, *(1,) * problem.ndim)
        sample = np.zeros_like(gy)
        for q, exists, share, slopes in corners(points, problem.input_size):
            pixel = np.where(exists, x[i][(inputs, *q)], 0.0)
            sample += share * pixel
            for axis, slope in enumerate(slopes):
                along[i, d, k, axis] += (gy * mask[i, d, k] * slope * pixel).sum(axis=0)
            np.add.at(grads["input"][i], (channel, *q), np.where(exists, gy * mask[i, d, k] * share, 0.0))
        nan = np.isnan(points).any(axis=0)
        sample[:, nan] = np.nan
        grads["mask"][i, d, k] = (gy * sample).sum(axis=0)
        along[i, d, k][:, nan] = np.nan
    grads["offset"] = (problem.offset_scale * along).reshape(problem.offset_shape)
    grads["mask"] = grads["mask"].reshape(problem.mask_shape)
    return grads


def softmax(problem: Problem, logits: np.ndarray) -> np.ndarray:
    """Return exp(l) over its sum over the points of a group, in the shape of the logits."""
    by = by_point(problem, logits)
    powers = np.exp(by - by.max(axis=2, keepdims=True))
    return (powers / powers.sum(axis=2, keepdims=True)).reshape(logits.shape)


def by_point(problem: Problem, mask: np.ndarray) -> np.ndarray:
    """Return what there is one of for each point as (N, groups, points, *output size)."""
    return mask.reshape(problem.batch, problem.offset_groups, problem.points, *problem.output_size)


def sampled(problem: Problem, offset: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Yield (image, group, point, coordinates (ndim, *output size) in input pixels) for all that is sampled."""
    n, groups = problem.batch, problem.offset_groups
    offset = offset.reshape(n, groups, problem.points, problem.ndim, *problem.output_size)
    column = (-1, *(1,) * problem.ndim)
    middle = np.array([d * (k - 1) // 2 for k, d in zip(problem.kernel_size, problem.dilation, strict=True)])
    taps = list(np.ndindex(*problem.kernel_size))
    if problem.remove_center:
        del taps[len(taps) // 2]
    centre = regular_points(problem, (0,) * problem.ndim) + middle.reshape(column)
    for i, d, (k, tap) in product(range(n), range(groups), enumerate(taps)):
        grid = (np.array(tap) * problem.dilation - middle).reshape(column)
        yield i, d, k, centre + problem.offset_scale * (grid + offset[i, d, k])

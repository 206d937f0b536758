"""The points that a stack of deformable layers samples, composed from the displacements of each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..call import check_memory
from ..problem import as_ints
from .layers import Layer

__all__ = ["affine_offset", "interpolated", "sampling_points"]


def sampling_points(layers: Sequence[Layer], at: Sequence[int], offset_group: int = 0) -> np.ndarray:
    """Return the (points, ndim) positions sampled in the input of the first layer for output pixel `at` of the last.

    Examples
    --------
    A plain kernel samples its regular grid:

    >>> from fastconv.analysis.layers import as_layers
    >>> from fastconv.analysis.points import sampling_points
    >>> sampling_points(as_layers([{"kernel": 2, "stride": 3}]), (1, 0)).tolist()
    [[3.0, 0.0], [3.0, 1.0], [4.0, 0.0], [4.0, 1.0]]
    """
    count = math.prod(math.prod(layer.kernel) for layer in layers)
    check_memory("the sampling points", (count, len(at)), np.dtype(np.float64))
    points = np.array([at], np.float64)
    for layer in reversed(layers):
        if layer.op == "conv_transpose":
            raise ValueError(
                "a transposed layer samples no points: its taps lie between the pixels of its input"
            )
        taps = np.indices(layer.kernel).reshape(len(at), -1).T * layer.dilation
        before = np.array(layer.padding)[:, 0]
        sampled = points[:, None] * layer.stride + taps - before
        if layer.offset is not None:
            if not 0 <= offset_group < len(layer.offset):
                raise ValueError(
                    f"offset_group must be less than the {len(layer.offset)} offset groups, got {offset_group}"
                )
            sampled = sampled + interpolated(layer.offset[offset_group], points)
        points = sampled.reshape(-1, len(at))
    return points


def interpolated(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return values (points, ...) of a field (..., *size), linear between pixels and constant beyond the border."""
    ndim = points.shape[1]
    size = np.array(field.shape[-ndim:])
    points = np.clip(points, 0, size - 1)
    low = np.minimum(np.floor(points), np.maximum(size - 2, 0)).astype(np.int64)
    value = np.zeros((*field.shape[:-ndim], len(points)))
    for corner in np.ndindex(*(2,) * ndim):
        pixel = np.minimum(low + np.array(corner), size - 1)
        share = np.prod(np.where(corner, points - low, 1 - (points - low)), axis=1)
        value += field[(..., *pixel.T)] * share
    return np.moveaxis(value, -1, 0)


def affine_offset(kernel: Any, change: Any, output_size: Sequence[int], *, dilation: Any = 1) -> np.ndarray:
    """Return the offset of a deformable convolution that turns, scales or shears its grid about the middle.

    Parameters
    ----------
    kernel : int or sequence of int
    change : array_like, shape (ndim, ndim), or callable
        The matrix that the grid is multiplied by, in the order of the axes (row before column). Or a function that
        returns it for an output pixel.
    output_size : sequence of int
    dilation : int or sequence of int, optional

    Returns
    -------
    numpy.ndarray of float64, shape (taps*ndim, *output_size)

    Examples
    --------
    Twice the grid is dilation 2:

    >>> import numpy as np
    >>> from fastconv.analysis import affine_offset
    >>> affine_offset(3, [[2]], (1,)).ravel()
    array([-1.,  0.,  1.])
    """
    size = tuple(output_size)
    ndim = len(size)
    kernel, dilation = as_ints("kernel", kernel, ndim, 1), as_ints("dilation", dilation, ndim, 1)
    taps = np.indices(kernel).reshape(ndim, -1).T - (np.array(kernel) - 1) / 2
    grid = taps * dilation
    offset = np.empty((len(grid), ndim, *size))
    if not callable(change):
        moved = grid @ np.asarray(change, np.float64).T - grid
        offset[...] = moved.reshape(*moved.shape, *(1,) * ndim)
        return offset.reshape(-1, *size)
    for pixel in np.ndindex(*size):
        offset[(..., *pixel)] = grid @ np.asarray(change(pixel), np.float64).T - grid
    return offset.reshape(-1, *size)

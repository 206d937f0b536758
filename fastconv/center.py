"""The share of an input's own pixel in the result of DCNv3 and DCNv4: (1 - f) y + f x, with f for each group."""

from typing import Protocol

import numpy as np

from .errors import ShapeError
from .problem import Problem

__all__ = ["blend", "by_group", "check_scale", "expanded"]


class Form(Protocol):
    """What is asked of a call: the problem, and how the user's arrays are shaped."""

    problem: Problem
    unbatched: bool
    dtype: np.dtype


def check_scale(call: Form, scale: np.ndarray) -> None:
    """Raise unless `scale` has a value for each group and pixel, and output pixels are input pixels."""
    problem = call.problem
    if problem.output_size != problem.input_size:
        raise ShapeError(
            f"center_feature_scale needs an output of the input's size {problem.input_size}, got {problem.output_size} ({problem})"
        )
    shape = (problem.offset_groups, *problem.output_size)
    shape = shape if problem.layout == "NCHW" else (*shape[1:], shape[0])
    shape = shape if call.unbatched else (problem.batch, *shape)
    if scale.shape != shape:
        raise ShapeError(
            f"center_feature_scale must have shape {shape}, one value a group and pixel, got {scale.shape} ({problem})"
        )
    if scale.dtype.kind not in "fiub" and scale.dtype.name != "bfloat16":
        raise TypeError(f"center_feature_scale must hold real numbers, got dtype {scale.dtype}")


def blend(call: Form, y: np.ndarray, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return (1 - f) y + f x, in the memory of y."""
    share = expanded(call, scale)
    wide = y.astype(call.dtype, copy=False)
    mixed = by_group(call, wide)
    mixed += share * (by_group(call, x.astype(call.dtype, copy=False)) - mixed)
    if wide is not y or not np.shares_memory(mixed, y):
        y[...] = mixed.reshape(y.shape)
    return y


def by_group(call: Form, image: np.ndarray) -> np.ndarray:
    """Return an image with its channels split into (G, C/G)."""
    groups, channel = call.problem.offset_groups, _channel_axis(call, image)
    shape = image.shape
    return image.reshape(*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :])


def expanded(call: Form, scale: np.ndarray) -> np.ndarray:
    """Return the shares so that they go with the image by groups."""
    return np.expand_dims(scale.astype(call.dtype, copy=False), _channel_axis(call, scale) + 1)


def _channel_axis(call: Form, image: np.ndarray) -> int:
    return image.ndim - 1 if call.problem.layout == "NHWC" else image.ndim - 1 - call.problem.ndim

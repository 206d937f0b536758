"""From tensors to arrays and back, without copies where memory can be shared."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .. import config
from ..call import stand_in

__all__ = ["FLOATS", "as_array", "as_tensor", "channels_last", "empty", "placeholder", "thread_count"]

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, torch.float64, *HALVES)


def channels_last(x: torch.Tensor) -> bool:
    """Return whether a tensor (N, C, *size) lies in memory as (N, *size, C), and not also as (N, C, *size)."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def as_array(x: torch.Tensor, last: bool) -> np.ndarray:
    """Return a tensor (N, C, *size) as a contiguous array, (N, *size, C) if `last`; halves become float32."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype in HALVES:
        x = x.float()
    elif x.dtype not in FLOATS:
        raise TypeError(f"tensors must be float16, bfloat16, float32 or float64, got {x.dtype}")
    return (x.movedim(1, -1) if last else x).contiguous().numpy()


def as_tensor(array: np.ndarray, last: bool, dtype: torch.dtype) -> torch.Tensor:
    """Return an array as a tensor (N, C, *size) of `dtype` that shares its memory if types are equal."""
    x = torch.from_numpy(array)
    x = x.movedim(-1, 1) if last else x
    return x.to(dtype) if dtype in HALVES else x


def empty(like: torch.Tensor, shape: Sequence[int], last: bool) -> torch.Tensor:
    """Return a tensor as :func:`as_tensor` makes it, of `shape` (N, C, *size), with nothing in it."""
    if last:
        n, c, *size = shape
        return like.new_empty((n, *size, c)).movedim(-1, 1)
    return like.new_empty(shape)


@lru_cache(maxsize=512)
def placeholder(shape: tuple[int, ...], dtype: np.dtype, last: bool) -> np.ndarray:
    """Return an array without memory for an operand of which only shape (N, C, *size) and type are looked at."""
    return stand_in("operand", (shape[0], *shape[2:], shape[1]) if last else shape, dtype)


def thread_count() -> Any:
    """Return the threads a call may use: no more than either library has been told."""
    return min(config.thread_count(), torch.get_num_threads())

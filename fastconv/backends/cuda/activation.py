"""The activations, in the type computed in, and functions of the user's; a NaN stays a NaN."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

__all__ = ["activation"]


@cache
def activation(name: str | Callable | None, dtype: np.dtype) -> Any:
    """Return the device function of an activation."""
    if callable(name):
        return cuda.jit(device=True)(name)
    kind = dtype.type
    zero, half, one, three, six = kind(0), kind(0.5), kind(1), kind(3), kind(6)
    root = kind(math.sqrt(0.5))

    def identity(v):
        return v

    def relu(v):
        return zero if v < zero else v

    def relu6(v):
        return six if v > six else (zero if v < zero else v)

    def silu(v):
        return v / (one + math.exp(-v))

    def gelu(v):
        return v * (half * math.erfc(-v * root))

    def hardswish(v):
        shifted = v + three
        gate = six if shifted > six else (zero if shifted < zero else shifted)
        return v * gate / six

    formulas = (identity, relu, relu6, silu, gelu, hardswish)
    found = {formula.__name__: formula for formula in formulas}
    return cuda.jit(device=True)(found[name or "identity"])

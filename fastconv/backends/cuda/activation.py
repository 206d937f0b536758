"""The activations, in the type computed in, and functions of the user's; a NaN stays a NaN."""

import math
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import numpy as np
from numba import config, cuda, from_dtype

__all__ = ["REMEMBERED_KERNELS", "activation"]

# There are as many kernels as functions of the user's, and those may be new ones at each call.
REMEMBERED_KERNELS = 256


@lru_cache(REMEMBERED_KERNELS)
def activation(name: str | Callable | None, dtype: np.dtype) -> Any:
    """Return the device function of an activation.

    Raises
    ------
    TypeError
        If numba cannot compile a function of the user's for a GPU.
    """
    if callable(name):
        function = _plain(name)
        if not getattr(config, "ENABLE_CUDASIM", False):
            _check(function, name, dtype)
        return cuda.jit(device=True)(function)
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


def _plain(function: Any) -> Callable:
    """Return a function as code in Python, which numba compiles for the device: what it was before another jit, or a call of it."""
    plain = getattr(function, "py_func", function)
    if isinstance(plain, FunctionType):
        return plain

    def called(v):
        return plain(v)

    return called


def _check(function: Callable, given: Any, dtype: np.dtype) -> None:
    """Raise TypeError unless a function maps a number to a number on the device."""
    from numba.core.errors import NumbaError

    element = from_dtype(dtype)
    try:
        capability = cuda.get_current_device().compute_capability
        _, result = cuda.compile_ptx(function, (element,), device=True, cc=capability)
        number = np.dtype(str(result)).kind in "fiub"
    except (NumbaError, TypeError):  # TypeError: a result that is no type of NumPy's
        number = False
    if not number:
        name = getattr(given, "__qualname__", repr(given))
        raise TypeError(
            f"activation {name} cannot be compiled: it must map one {element} to a number, in code that numba knows "
            "on CUDA devices, and not raise"
        )

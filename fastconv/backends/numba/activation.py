"""Activations that engines call by address: two of the library's own, and whatever function a user brings.

Each works on an array in place. The arithmetic stays in the element type.
"""

import dis
import math
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.dispatcher import Dispatcher

from .simd import real

__all__ = ["gelu", "silu", "over_array"]


def silu(values, count):
    """v * sigmoid(v)."""
    one = real(values, 1.0)
    for i in range(count):
        v = values[i]
        values[i] = v / (one + math.exp(-v))


def gelu(values, count):
    """v * Phi(v) in its exact form."""
    half, one, sqrt_half = real(values, 0.5), real(values, 1.0), real(values, math.sqrt(0.5))
    for i in range(count):
        v = values[i]
        values[i] = half * v * (one + math.erf(v * sqrt_half))


def over_array(function: Callable) -> Callable:
    """Return a function that replaces each value of an array by ``function(value)``, for numba to compile.

    A function that numba knows under its own name (``math.tanh``, a NumPy ufunc) is taken as it is. One written in
    Python, jitted or not, is compiled anew without Python's division errors: an engine has nobody to raise to.
    """
    plain = function.py_func if isinstance(function, Dispatcher) else function
    code = getattr(plain, "__code__", None)
    if code is not None and any(instruction.opname == "RAISE_VARARGS" for instruction in dis.get_instructions(code)):
        raise TypeError("it raises an exception")
    scalar: Any = plain if code is None else njit(error_model="numpy")(plain)

    def apply(values, count):
        for i in range(count):
            values[i] = scalar(values[i])

    return apply

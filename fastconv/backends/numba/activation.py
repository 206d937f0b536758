"""Activations that engines call by address: two of the library's own, and whatever function a user brings.

Each works on an array in place; those of the library take it in whole vectors, in the element type.
"""

import dis
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core.dispatcher import Dispatcher

from .simd import (
    INDEX,
    at_least,
    emit_call,
    emit_fma,
    fma,
    lanes,
    ll_vector,
    load,
    real,
    select,
    splat,
    store,
    verb,
)

__all__ = ["gelu", "gelu_double", "over_array", "silu"]

# For exp, by bits of the type: degree of the series, bits of the mantissa, bias of the exponent, range, and
# log(2) in two parts, the first so short that its product with a whole number is exact.
EXP = {
    32: (7, 23, 127, (-105.0, 90.0), (0.693359375, -2.12194440e-4)),
    64: (13, 52, 1023, (-746.0, 710.0), (0.693145751953125, 1.42860682030941723212e-6)),
}

SQRT_HALF = math.sqrt(0.5)


@verb
def exp(v):
    """2^n e^r with |r| <= log(2)/2, by the Taylor series to the last bit; beyond its range 0 and inf."""
    bits = v.element.bitwidth
    degree, mantissa, bias, (low, high), (log_2, log_2_rest) = EXP[bits]
    whole = ir.VectorType(ir.IntType(bits), v.lanes)

    def all_lanes(value):
        return ir.Constant(ll_vector(v), [value] * v.lanes)

    def emit(builder, x):
        def power_of_2(n):
            exponent = builder.add(n, whole([bias] * v.lanes))
            return builder.bitcast(builder.shl(exponent, whole([mantissa] * v.lanes)), x.type)

        x = builder.select(builder.fcmp_ordered("<", x, all_lanes(low)), all_lanes(low), x)
        x = builder.select(builder.fcmp_ordered(">", x, all_lanes(high)), all_lanes(high), x)
        n = emit_call(builder, "llvm.rint", x.type, [builder.fmul(x, all_lanes(1 / math.log(2)))])
        r = emit_fma(builder, n, all_lanes(-log_2_rest), emit_fma(builder, n, all_lanes(-log_2), x))
        total = all_lanes(1 / math.factorial(degree))
        for i in reversed(range(degree)):
            total = emit_fma(builder, total, r, all_lanes(1 / math.factorial(i)))
        # A NaN is in `total` already; it has no integer. 2^n in two steps, because alone it may not exist.
        n = builder.select(builder.fcmp_ordered("==", n, n), n, all_lanes(0.0))
        power = builder.fptosi(n, ir.VectorType(INDEX, v.lanes))
        power = builder.sext(power, whole) if bits > INDEX.width else power
        half = builder.ashr(power, whole([1] * v.lanes))
        return builder.fmul(builder.fmul(total, power_of_2(half)), power_of_2(builder.sub(power, half)))

    return v(v), emit


def silu(values, count):
    """v * sigmoid(v)."""
    zero, one = splat(values, 0.0), splat(values, 1.0)
    for i in range(0, count, lanes(values)):
        v = load(values + i)
        store(values + i, v / (one + exp(zero - v)))


def gelu(values, count):
    """v * Phi(v) in its exact form, for single precision.

    erfc(z) for z >= 0 with a relative error of 1.2e-7: Press et al., Numerical Recipes, section 6.2.
    """
    zero, half, one, scale = (
        splat(values, 0.0),
        splat(values, 0.5),
        splat(values, 1.0),
        splat(values, SQRT_HALF),
    )
    for i in range(0, count, lanes(values)):
        v = load(values + i)
        z = at_least(v, zero - v) * scale
        t = one / (one + z * half)
        total = splat(values, 0.17087277)
        total = fma(total, t, splat(values, -0.82215223))
        total = fma(total, t, splat(values, 1.48851587))
        total = fma(total, t, splat(values, -1.13520398))
        total = fma(total, t, splat(values, 0.27886807))
        total = fma(total, t, splat(values, -0.18628806))
        total = fma(total, t, splat(values, 0.09678418))
        total = fma(total, t, splat(values, 0.37409196))
        total = fma(total, t, splat(values, 1.00002368))
        total = fma(total, t, splat(values, -1.26551223))
        tail = half * t * exp(total - z * z)
        store(values + i, v * select(v < zero, tail, one - tail))


def gelu_double(values, count):
    """v * Phi(v) in its exact form, for double precision."""
    half, scale = real(values, 0.5), real(values, -SQRT_HALF)
    for i in range(count):
        v = values[i]
        values[i] = half * v * math.erfc(scale * v)


def over_array(function: Callable) -> Callable:
    """Return a function that replaces each value of an array by ``function(value)``, for numba to compile.

    A function that numba knows under its own name (``math.tanh``, a NumPy ufunc) is taken as it is. One
    written in Python, jitted or not, is compiled anew without Python's division errors: an engine has nobody
    to raise to, which is also why a function with a ``raise`` is turned away.
    """
    plain = function.py_func if isinstance(function, Dispatcher) else function
    if not isinstance(plain, FunctionType):
        scalar: Any = plain
    elif any(instruction.opname == "RAISE_VARARGS" for instruction in dis.get_instructions(plain)):
        raise TypeError(f"{plain.__qualname__} raises an exception")
    else:
        scalar = njit(error_model="numpy")(plain)

    def apply(values, count):
        for i in range(count):
            values[i] = scalar(values[i])

    return apply

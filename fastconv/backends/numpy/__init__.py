"""The oracle: each variant straight from its formula, accumulated in float64.

It exists to be right, not fast. Every other backend is tested against it. The formulas see channels-first
float64 arrays; this file converts, adds the bias, applies the activation and rounds once at the end.
"""

from collections.abc import Callable

import numpy as np

from ...activation import apply
from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, Problem
from ...registry import Kernel
from .conv import conv
from .conv_transpose import conv_transpose
from .deform_conv import deform_conv

__all__ = ["backend"]


def _build(formula: Callable[..., np.ndarray]) -> Callable:
    def build(problem: Problem) -> Callable:
        def run(output, input, weight, bias, offset, mask, threads):  # one thread is plenty for an oracle
            arrays = (input if problem.layout == "NCHW" else np.moveaxis(input, -1, 1), weight, offset, mask)
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and inf are data here
                y = formula(problem, *(array.astype(np.float64) for array in arrays if array is not None))
                if bias is not None:
                    y += bias.reshape(-1, *(1,) * problem.ndim)
                y = apply(problem.activation, y)
                output[...] = y if problem.layout == "NCHW" else np.moveaxis(y, 1, -1)

        return run

    return build


def _accept(problem: Problem) -> None:
    return None


def _cost(problem: Problem) -> float:
    return problem.flops / 1e8  # about what it reaches; the choice takes it last in any case


class _Oracle:
    name = "numpy"
    kernels = (
        Kernel("conv_direct", "numpy", CONV, _accept, _cost, _build(conv)),
        Kernel("conv_transpose_direct", "numpy", CONV_TRANSPOSE, _accept, _cost, _build(conv_transpose)),
        Kernel("deform_conv_direct", "numpy", DEFORM_CONV, _accept, _cost, _build(deform_conv)),
    )


backend = _Oracle()

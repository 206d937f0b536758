"""The oracle: each variant straight from its formula, accumulated in float64.

It exists to be right, not fast. Every other backend is tested against it. The formulas see channels-first
float64 arrays; this file converts, adds the bias, applies the activation and rounds once at the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...activation import apply
from ...problem import (
    CONV,
    CONV_TRANSPOSE,
    DEFORM_CONV,
    DEFORM_GRAD,
    DEFORM_TRANSPOSE,
    SEPARABLE,
    WEIGHT_GRAD,
    Problem,
)
from ...registry import Kernel
from .conv import conv
from .conv_transpose import conv_transpose
from .conv_weight_grad import conv_weight_grad
from .dcn import dcnv3, dcnv3_grad, dcnv4, dcnv4_grad
from .deform_conv import deform_conv
from .deform_conv_grad import deform_conv_grad
from .deform_conv_transpose import deform_conv_transpose
from .separable_conv import separable_conv

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


def _build_separable(problem: Any) -> Callable:
    def run(output, input, d, a, w, b, threads):
        (x,) = _formula_arrays(problem, input)
        with np.errstate(invalid="ignore", over="ignore"):
            y = separable_conv(problem, x, d, a, w.astype(np.float64))
            if b is not None:
                y += b.reshape(-1, *(1,) * problem.ndim)
            y = apply(problem.activation, y)
            output[...] = y if problem.layout == "NCHW" else np.moveaxis(y, 1, -1)

    return run


def _build_weight_grad(problem: Problem) -> Callable:
    def run(grad_weight, input, grad_output, bias, offset, mask, threads):
        with np.errstate(invalid="ignore", over="ignore"):
            grad_weight[...] = conv_weight_grad(problem, *_formula_arrays(problem, input, grad_output))

    return run


def _build_deform_grad(problem: Problem) -> Callable:
    def run(grads, grad_output, input, weight, offset, mask, threads):
        gy, x = _formula_arrays(problem, grad_output, input)
        others: Any = (
            None if array is None else array.astype(np.float64) for array in (weight, offset, mask)
        )
        with np.errstate(invalid="ignore", over="ignore"):
            found = deform_conv_grad(problem, gy, x, *others)
        for name, grad in grads.items():
            last = name == "input" and problem.layout == "NHWC"
            grad[...] = np.moveaxis(found[name], 1, -1) if last else found[name]

    return run


def _build_dcn_grad(formula: Callable[..., dict[str, np.ndarray]]) -> Callable:
    def build(problem: Problem) -> Callable:
        def run(grads, grad_output, input, weight, offset, mask, threads):
            images = _formula_arrays(problem, grad_output, input)
            with np.errstate(invalid="ignore", over="ignore"):
                found = formula(problem, *images, offset.astype(np.float64), mask.astype(np.float64))
            for name, grad in grads.items():
                last = name == "input" and problem.layout == "NHWC"
                grad[...] = np.moveaxis(found[name], 1, -1) if last else found[name]

        return run

    return build


def _formula_arrays(problem: Problem, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return images as the formulas take them: channels first, float64."""
    return [
        (array if problem.layout == "NCHW" else np.moveaxis(array, -1, 1)).astype(np.float64)
        for array in arrays
    ]


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
        Kernel(
            "deform_conv_transpose_direct",
            "numpy",
            DEFORM_TRANSPOSE,
            _accept,
            _cost,
            _build(deform_conv_transpose),
        ),
        Kernel("dcnv3_direct", "numpy", ("dcnv3",), _accept, _cost, _build(dcnv3)),
        Kernel("dcnv4_direct", "numpy", ("dcnv4",), _accept, _cost, _build(dcnv4)),
        Kernel("separable_conv_direct", "numpy", SEPARABLE, _accept, _cost, _build_separable),
        Kernel("conv_weight_grad_direct", "numpy", WEIGHT_GRAD, _accept, _cost, _build_weight_grad),
        Kernel("deform_conv_grad_direct", "numpy", DEFORM_GRAD, _accept, _cost, _build_deform_grad),
        Kernel("dcnv3_grad_direct", "numpy", ("dcnv3_grad",), _accept, _cost, _build_dcn_grad(dcnv3_grad)),
        Kernel("dcnv4_grad_direct", "numpy", ("dcnv4_grad",), _accept, _cost, _build_dcn_grad(dcnv4_grad)),
    )


backend = _Oracle()

"""Transposed deformable convolutions: the gradient of a deformable convolution with respect to its input."""

from dataclasses import replace
from typing import Any

import numpy as np

from ..activation import apply
from ..adjoint import adjoint_of_deformable
from ..problem import Problem
from .deform_grad import lower_deform_grad
from .program import Engines

__all__ = ["TransposedDeform", "lower_deform_transpose"]


class TransposedDeform:
    """A program for that gradient, and what comes after it: called as :class:`fastconv.registry.Executable` says."""

    def __init__(self, problem: Problem, gradients: Any):
        self._problem, self._gradients = problem, gradients
        self.isa, self.tile, self.copies = gradients.isa, gradients.tile, gradients.copies

    def __call__(
        self,
        output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        offset: np.ndarray,
        mask: np.ndarray | None,
        threads: int,
    ) -> None:
        self._gradients({"input": output}, input, output, weight, offset, mask, threads)
        p = self._problem
        if bias is not None:
            output += bias if p.layout == "NHWC" else bias.reshape(-1, *(1,) * p.ndim)
        if p.activation is not None:
            output[...] = apply(p.activation, output)

    def scratch_bytes(self, threads: int = 1) -> int:
        return self._gradients.scratch_bytes(threads)


def lower_deform_transpose(problem: Problem, engines: Engines) -> TransposedDeform:
    """Return what runs any transposed deformable convolution."""
    forward = adjoint_of_deformable(problem)
    gradients = replace(forward, op=f"{forward.op}_grad", prepared=False)
    return TransposedDeform(problem, lower_deform_grad(gradients, engines, of_input_alone=True))

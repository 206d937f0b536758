"""The kernels of every backend that runs programs: what each takes, what it costs, how its program is made.

=========================  ===========================================================================
conv_depthwise_nchw        tiles of rows, the halo of a channel in the thread's own scratch
conv_depthwise_nhwc        channels in vectors, no halo: padding is a pixel of zeros
conv_dense_*               register tile, pixels or channels in the vectors, whichever wastes less
conv_transpose_*           the same on the phases of the output
deform_conv_tile           bilinear samples of a tile of pixels, then the register tile
=========================  ===========================================================================
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import config
from ..problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, Problem
from ..registry import Kernel, Refusal
from .deform import lower_deform
from .dense import lower_dense
from .depthwise import lower_depthwise
from .program import Engines

__all__ = ["program_kernels"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Rough speeds of one core, only there to rank kernels: operations and bytes a second.
DENSE_FLOPS = 60e9
DEPTHWISE_FLOPS = 45e9
SAMPLE_BYTES = 20e9
MEMORY_BYTES = 10e9
OVERHEAD = 2e-6

Lower = Callable[[Problem, Engines], Any]


def program_kernels(
    backend: str, engines: Callable[[str], Engines], *, functions: bool, handicap: float = 1.0
) -> tuple[Kernel, ...]:
    """Return the kernels of a backend whose engines read the tables of this folder.

    Parameters
    ----------
    backend : str
        Name of the backend.
    engines : callable
        ``engines(isa)`` returns the engines for an instruction set; called when a kernel is built.
    functions : bool
        Whether the engines take a Python function as activation.
    handicap : float, optional
        How many times as long as the quickest engines these take.
    """

    def kernel(name: str, ops: tuple[str, ...], refuse: Callable, cost: Callable, lower: Lower) -> Kernel:
        def refuse_all(problem: Problem) -> str | None:
            if problem.dtype not in DTYPES:
                return Refusal.DTYPE
            if callable(problem.activation) and not functions:
                return Refusal.CALLABLE_ACTIVATION
            return refuse(problem)

        def build(problem: Problem) -> Any:
            from .. import _native

            return lower(problem, engines(config.best_isa(_native.isas())))

        return Kernel(name, backend, ops, refuse_all, lambda problem: handicap * cost(problem), build)

    table = []
    for op, ops in (("conv", CONV), ("conv_transpose", CONV_TRANSPOSE)):
        for layout in ("NCHW", "NHWC"):
            case = layout.lower()
            only = refuse_other(layout, depthwise=True)
            table.append(kernel(f"{op}_depthwise_{case}", ops, only, cost_depthwise, lower_depthwise))
            only = refuse_other(layout, depthwise=False)
            table.append(kernel(f"{op}_dense_{case}", ops, only, cost_dense, lower_dense))
    table.append(kernel("deform_conv_tile", DEFORM_CONV, lambda problem: None, cost_deform, lower_deform))
    return tuple(table)


def refuse_other(layout: str, *, depthwise: bool) -> Callable[[Problem], str | None]:
    """Return a check that refuses all but one layout, and all but (or just) one channel per group."""

    def refuse(problem: Problem) -> str | None:
        if (problem.groups == problem.in_channels and problem.groups > 1) != depthwise:
            return Refusal.NOT_DEPTHWISE if depthwise else Refusal.DEPTHWISE
        if problem.layout != layout:
            return Refusal.NOT_NCHW if layout == "NCHW" else Refusal.NOT_NHWC
        return None

    return refuse


def cost_dense(problem: Problem, speed: float = DENSE_FLOPS) -> float:
    """Time to compute and to move memory once, in seconds; vectors hold half as many doubles."""
    return OVERHEAD + problem.flops / speed * problem.dtype.itemsize / 4 + problem.bytes / MEMORY_BYTES


def cost_depthwise(problem: Problem) -> float:
    return cost_dense(problem, DEPTHWISE_FLOPS)


def cost_deform(problem: Problem) -> float:
    pixels = problem.flops / 2 / (problem.out_channels * problem.in_channels / problem.groups)
    samples = pixels * problem.in_channels * 2**problem.ndim * problem.dtype.itemsize
    return cost_dense(problem) + samples / SAMPLE_BYTES

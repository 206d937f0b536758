"""The compiled backend: its kernels, in order. Engines are in src/, their tables come from fastconv.lowering.

=========================  ===========================================================================
conv_depthwise_nchw        strips of pixels, the halo of a channel in the thread's own scratch
conv_depthwise_nhwc        channels in vectors, no halo: an address for each tap
conv_dense_nchw            register tile, pixels in the vectors
conv_dense_nhwc            register tile, channels in the vectors
conv_transpose_*           the same four on the phases of the output
deform_conv_tile           bilinear samples of a tile of pixels, then the register tile
=========================  ===========================================================================
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ... import config
from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, Problem
from ...registry import Kernel, Refusal

__all__ = ["backend"]

NAME = "cython"
DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}

# Rough speeds of one core, only there to rank kernels: operations and bytes a second.
DENSE_FLOPS = 60e9
DEPTHWISE_FLOPS = 15e9
SAMPLE_BYTES = 20e9
MEMORY_BYTES = 10e9
OVERHEAD = 2e-6


@dataclass(frozen=True)
class CompiledEngines:
    """The engines of one instruction set; see :class:`fastconv.lowering.Engines`."""

    isa: str
    vec_bytes: int
    tile: tuple[int, int]
    lane_tile: tuple[int, int]
    addresses: dict[str, int]

    def address(self, engine: str, dtype: np.dtype) -> int:
        return self.addresses[f"{engine}_{DTYPES[dtype]}"]

    def activation(self, problem: Problem) -> int:
        from ...lowering import ACTIVATION_CODES

        if callable(problem.activation):
            raise TypeError(Refusal.CALLABLE_ACTIVATION)
        return ACTIVATION_CODES[problem.activation]


@cache
def engines(isa: str) -> CompiledEngines:
    """Return the engines compiled for an instruction set."""
    from ... import _native

    return CompiledEngines(**_native.engines(isa))


def chosen_isa() -> str:
    """Return the best instruction set of this machine, unless a lower one is asked for."""
    from ... import _native

    limit = config.max_isa() or config.ISAS[-1]
    allowed = config.ISAS[: config.ISAS.index(limit) + 1]
    return [isa for isa in _native.isas() if isa in allowed][-1]


def refuse_common(problem: Problem) -> str | None:
    if problem.dtype not in DTYPES:
        return Refusal.DTYPE
    if callable(problem.activation):
        return Refusal.CALLABLE_ACTIVATION
    return None


def is_depthwise(problem: Problem) -> bool:
    return problem.groups == problem.in_channels and problem.groups > 1


def refuse_layout(problem: Problem, layout: str) -> str | None:
    if problem.layout != layout:
        return Refusal.NOT_NCHW if layout == "NCHW" else Refusal.NOT_NHWC
    return refuse_common(problem)


def kernel(name: str, ops: tuple[str, ...], layout: str, depthwise: bool) -> Kernel:
    def refuse(problem: Problem) -> str | None:
        if is_depthwise(problem) != depthwise:
            return Refusal.NOT_DEPTHWISE if depthwise else Refusal.DEPTHWISE
        return refuse_layout(problem, layout)

    def build(problem: Problem) -> Any:
        from ...lowering import lower_dense, lower_depthwise

        return (lower_depthwise if depthwise else lower_dense)(problem, engines(chosen_isa()))

    return Kernel(name, NAME, ops, refuse, cost_depthwise if depthwise else cost_dense, build)


def cost_dense(problem: Problem, speed: float = DENSE_FLOPS) -> float:
    """Time to compute and to move memory once, in seconds; vectors hold half as many doubles."""
    return OVERHEAD + problem.flops / speed * problem.dtype.itemsize / 4 + problem.bytes / MEMORY_BYTES


def cost_depthwise(problem: Problem) -> float:
    return cost_dense(problem, DEPTHWISE_FLOPS)


def cost_deform(problem: Problem) -> float:
    pixels = problem.flops / 2 / (problem.out_channels * problem.in_channels / problem.groups)
    samples = pixels * problem.in_channels * 2**problem.ndim * problem.dtype.itemsize
    return cost_dense(problem) + samples / SAMPLE_BYTES


def build_deform(problem: Problem) -> Any:
    from ...lowering import lower_deform

    return lower_deform(problem, engines(chosen_isa()))


class CythonBackend:
    """Kernels compiled ahead of time, for every instruction set this machine may have."""

    name = NAME
    kernels = (
        kernel("conv_depthwise_nchw", CONV, "NCHW", True),
        kernel("conv_depthwise_nhwc", CONV, "NHWC", True),
        kernel("conv_dense_nchw", CONV, "NCHW", False),
        kernel("conv_dense_nhwc", CONV, "NHWC", False),
        kernel("conv_transpose_depthwise_nchw", CONV_TRANSPOSE, "NCHW", True),
        kernel("conv_transpose_depthwise_nhwc", CONV_TRANSPOSE, "NHWC", True),
        kernel("conv_transpose_dense_nchw", CONV_TRANSPOSE, "NCHW", False),
        kernel("conv_transpose_dense_nhwc", CONV_TRANSPOSE, "NHWC", False),
        Kernel("deform_conv_tile", NAME, DEFORM_CONV, refuse_common, cost_deform, build_deform),
    )

    def unavailable(self) -> str | None:
        """Return why the compiled module cannot be used, or None."""
        try:
            from ... import _native  # noqa: F401
        except ImportError as error:
            return f"the compiled module cannot be imported: {error}"
        return None


backend = CythonBackend()

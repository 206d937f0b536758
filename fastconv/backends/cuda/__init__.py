"""The backend of NVIDIA's GPUs, compiled by numba: its kernels, in order.

===========================  =========================================================================
conv_depthwise               one input channel a group: positions are shared, values are not
conv_dense                   a tile of pixels x a tile of channels, staged in shared memory
conv_transpose_*             the same on the phases of the output
deform_conv_tile             the same, on bilinear samples
conv_weight_grad_dense       output channels x input channels of a tap, summed over pixels
deform_conv_grad_atomic      all gradients of a deformable one; samples are added to pixels as they come
deform_conv_grad_ordered     the same bits each time: in their order, in more time and memory
===========================  =========================================================================

Kernels know two gathers and no strides, padding or phases; those are tables.

- ``tables``: from a problem to positions; ``tiles``: the shapes of thread blocks
- ``gather``: what a tap reads; ``dense``, ``depthwise``: the engines; ``activation``, ``pack``
- ``weight_grad``, ``deform_grad``: the engines of gradients
- ``launch``, ``launch_grad``: device arrays, streams, and the grid

It runs where it is named, or where the arrays are on a device already: what a copy there and back costs is
seldom worth it. Without a GPU it runs in numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), slowly and rightly.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ... import config
from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, DEFORM_GRAD, WEIGHT_GRAD, Problem
from ...registry import Kernel, Refusal

__all__ = ["backend"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
PIXELS_MOST = 2**29  # of one image: positions of three axes are added in 32 bits

# Rough speeds, only there to rank kernels: operations and bytes a second.
FLOPS = 5e12
BUS_BYTES = 10e9
OVERHEAD = 50e-6
ORDERED = 4.0  # times as long as by atomics

INSTALL = "pip install 'fastconv[cuda]'"


def cost(problem: Problem) -> float:
    """Time to copy the operands to the device and back, and to compute, in seconds."""
    return OVERHEAD + problem.bytes / BUS_BYTES + problem.flops / FLOPS


def _refuse(extra: Callable[[Problem], str | None]) -> Callable[[Problem], str | None]:
    def refuse(problem: Problem) -> str | None:
        if problem.dtype not in DTYPES:
            return Refusal.DTYPE
        if max(np.prod(problem.input_size), np.prod(problem.output_size)) > PIXELS_MOST:
            return Refusal.LARGE_IMAGE
        return extra(problem)

    return refuse


def _depthwise(wanted: bool) -> Callable[[Problem], str | None]:
    def refuse(problem: Problem) -> str | None:
        if (problem.groups == problem.in_channels and problem.groups > 1) != wanted:
            return Refusal.NOT_DEPTHWISE if wanted else Refusal.DEPTHWISE
        return None

    return _refuse(refuse)


def _accept(problem: Problem) -> str | None:
    return None


def _unless_deterministic(problem: Problem) -> str | None:
    return Refusal.NOT_DETERMINISTIC if config.environment_deterministic() else None


def _build(name: str) -> Callable[[Problem], Any]:
    def build(problem: Problem) -> Any:
        from . import launch, launch_grad  # numba.cuda is imported when a kernel is built

        return getattr(launch, name, None)(problem) if hasattr(launch, name) else getattr(launch_grad, name)(problem)

    return build


def _kernel(name: str, ops: tuple[str, ...], refuse: Callable, build: str, slower: float = 1.0) -> Kernel:
    return Kernel(name, "cuda", ops, refuse, lambda problem: slower * cost(problem), _build(build))


class CudaBackend:
    """Kernels compiled by numba for the GPU that is there, or run in its simulator."""

    name = "cuda"
    kernels = (
        _kernel("conv_depthwise", CONV, _depthwise(True), "build_depthwise"),
        _kernel("conv_dense", CONV, _depthwise(False), "build_dense"),
        _kernel("conv_transpose_depthwise", CONV_TRANSPOSE, _depthwise(True), "build_depthwise"),
        _kernel("conv_transpose_dense", CONV_TRANSPOSE, _depthwise(False), "build_dense"),
        _kernel("deform_conv_tile", DEFORM_CONV, _refuse(_accept), "build_dense"),
        _kernel("conv_weight_grad_dense", WEIGHT_GRAD, _refuse(_accept), "build_weight_grad"),
        _kernel("deform_conv_grad_atomic", DEFORM_GRAD, _refuse(_unless_deterministic), "build_deform_grad_atomic"),
        _kernel("deform_conv_grad_ordered", DEFORM_GRAD, _refuse(_accept), "build_deform_grad_ordered", ORDERED),
    )

    def unavailable(self) -> str | None:
        """Return why nothing can run here, and what would change that, or None."""
        simulator = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
        if not simulator and find_spec("numba_cuda") is None:
            return f"numba-cuda is not installed: {INSTALL}"
        try:
            from numba import cuda
        except Exception as error:  # ImportError, or whatever a NumPy it was not made for provokes
            return f"numba.cuda cannot be imported: {error}; {INSTALL}"
        if simulator:
            return None
        try:
            if cuda.is_available():
                return None
            error = cuda.cuda_error()
        except Exception as failure:  # what is half installed fails in any way
            error = failure
        told = f" ({' '.join(str(error).split())})" if error else ""
        return f"there is no NVIDIA driver with a GPU here{told}: install the driver, and see nvidia-smi"


backend = CudaBackend()

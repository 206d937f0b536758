"""The backend of NVIDIA's GPUs, compiled by numba: its kernels, in order.

===========================  =========================================================================
conv_depthwise               one input channel a group: positions are shared, values are not
conv_dense                   a tile of pixels x a tile of channels, staged in shared memory
conv_transpose_*             the same on the phases of the output
deform_conv_tile             the same, on bilinear samples
===========================  =========================================================================

Kernels know two gathers and no strides, padding or phases; those are tables.

- ``tables``: from a problem to positions; ``tiles``: the shapes of thread blocks
- ``gather``: what a tap reads; ``dense``, ``depthwise``: the engines; ``activation``, ``pack``
- ``launch``: device arrays, streams, and the grid

It runs where it is named, or where the arrays are on a device already: what a copy there and back costs is
seldom worth it. Without a GPU it runs in numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), slowly and rightly.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, Problem
from ...registry import Kernel, Refusal

__all__ = ["backend"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
PIXELS_MOST = 2**29  # of one image: positions of three axes are added in 32 bits

# Rough speeds, only there to rank kernels: operations and bytes a second.
FLOPS = 5e12
BUS_BYTES = 10e9
OVERHEAD = 50e-6

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


def _build(name: str) -> Callable[[Problem], Any]:
    def build(problem: Problem) -> Any:
        from . import launch  # numba.cuda is imported when a kernel is built

        return getattr(launch, name)(problem)

    return build


def _kernel(name: str, ops: tuple[str, ...], refuse: Callable, build: str) -> Kernel:
    return Kernel(name, "cuda", ops, refuse, cost, _build(build))


class CudaBackend:
    """Kernels compiled by numba for the GPU that is there, or run in its simulator."""

    name = "cuda"
    kernels = (
        _kernel("conv_depthwise", CONV, _depthwise(True), "build_depthwise"),
        _kernel("conv_dense", CONV, _depthwise(False), "build_dense"),
        _kernel("conv_transpose_depthwise", CONV_TRANSPOSE, _depthwise(True), "build_depthwise"),
        _kernel("conv_transpose_dense", CONV_TRANSPOSE, _depthwise(False), "build_dense"),
        _kernel("deform_conv_tile", DEFORM_CONV, _refuse(lambda problem: None), "build_dense"),
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

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
- ``launch``, ``launch_grad``: device arrays, streams, and the grid; ``arrays``, ``dlpack``: those of other libraries
- ``entry``, ``resources``, ``occupancy``, ``compiled``: what a kernel takes of a GPU, told without one too

It runs where it is named, or where the arrays are on a device already: what a copy there and back costs is
seldom worth it. Without a GPU it runs in numba's simulator (``NUMBA_ENABLE_CUDASIM=1``), slowly and rightly.
"""

import math
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from ... import config
from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, DEFORM_GRAD, WEIGHT_GRAD, Problem
from ...registry import Kernel, Refusal

__all__ = ["backend"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
PIXELS_MOST = 2**29  # of one image: positions of three axes are added in 32 bits
WORDS_MOST = 2**26  # of the table of an axis

# Rough speeds, only there to rank kernels: operations and bytes a second.
FLOPS = 5e12
BUS_BYTES = 10e9
OVERHEAD = 50e-6
ORDERED = 4.0  # times as long as by atomics

INSTALL = "pip install 'fastconv[cuda]'"


def cost(problem: Problem) -> float:
    """Time to copy the operands to the device and back, and to compute, in seconds."""
    return OVERHEAD + problem.bytes / BUS_BYTES + problem.flops / FLOPS


def _accept(problem: Problem) -> str | None:
    if problem.dtype not in DTYPES:
        return Refusal.DTYPE
    if max(math.prod(problem.input_size), math.prod(problem.output_size)) > PIXELS_MOST:
        return Refusal.LARGE_IMAGE
    if max(map(math.prod, zip(problem.kernel_size, problem.output_size, strict=True))) > WORDS_MOST:
        return Refusal.LARGE_TABLES
    return None


def _depthwise(wanted: bool) -> Callable[[Problem], str | None]:
    """Return a check that accepts just (or all but) one channel per group."""

    def refuse(problem: Problem) -> str | None:
        if (problem.groups == problem.in_channels and problem.groups > 1) != wanted:
            return Refusal.NOT_DEPTHWISE if wanted else Refusal.DEPTHWISE
        return _accept(problem)

    return refuse


def _in_any_order(problem: Problem) -> str | None:
    return Refusal.NOT_DETERMINISTIC if config.environment_deterministic() else _accept(problem)


def _kernel(name: str, ops: tuple[str, ...], refuse: Callable, builder: str, slower: float = 1.0) -> Kernel:
    module, function = builder.split(".")

    def build(problem: Problem) -> Any:
        # numba.cuda is imported when a kernel is built.
        return getattr(import_module(f".{module}", __package__), function)(problem)

    return Kernel(name, "cuda", ops, refuse, lambda problem: slower * cost(problem), build)


class CudaBackend:
    """Kernels compiled by numba for the GPU that is there, or run in its simulator."""

    name = "cuda"
    kernels = (
        _kernel("conv_depthwise", CONV, _depthwise(True), "launch.build_depthwise"),
        _kernel("conv_dense", CONV, _depthwise(False), "launch.build_dense"),
        _kernel("conv_transpose_depthwise", CONV_TRANSPOSE, _depthwise(True), "launch.build_depthwise"),
        _kernel("conv_transpose_dense", CONV_TRANSPOSE, _depthwise(False), "launch.build_dense"),
        _kernel("deform_conv_tile", DEFORM_CONV, _accept, "launch.build_dense"),
        _kernel("conv_weight_grad_dense", WEIGHT_GRAD, _accept, "launch_grad.build_weight_grad"),
        _kernel("deform_conv_grad_atomic", DEFORM_GRAD, _in_any_order, "launch_grad.build_atomic"),
        _kernel("deform_conv_grad_ordered", DEFORM_GRAD, _accept, "launch_grad.build_ordered", ORDERED),
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
            found = cuda.cuda_error()
        except Exception as failure:  # what is half installed fails in any way
            found = failure
        told = f" ({' '.join(str(found).split())})" if found else ""
        return f"there is no NVIDIA driver with a GPU here{told}: install the driver, and see nvidia-smi"


backend = CudaBackend()

"""Executables: tables and weights on the device, operands brought there, one kernel launched, the result brought back.

An executable runs on NumPy arrays like those of any backend, which copies them, or through ``launch`` on arrays
that are on the device already, which copies nothing and does not wait.
"""

import threading
import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import config, cuda

from ...lowering.geometry import input_strides, output_strides
from ...problem import Problem
from .dense import dense, dense_shared_bytes
from .depthwise import depthwise, depthwise_shared_bytes
from .gather import corners_of
from .pack import pack, pack_form
from .tables import tables_of
from .tiles import Tile, dense_tile, depthwise_tile

__all__ = [
    "Forward",
    "build_dense",
    "build_depthwise",
    "deform_form",
    "empty",
    "ends",
    "packed",
    "run",
    "simulated",
    "upload",
]

PACK_THREADS = 256
PACK_BLOCKS = 1024
# Operations that a GPU does in about the time that copying their operands takes.
WORTH_COPYING = 10**9

# The simulator runs one kernel at a time.
_simulating = threading.Lock()


def simulated() -> bool:
    """Return whether kernels run in numba's simulator."""
    return bool(getattr(config, "ENABLE_CUDASIM", False))


@cache
def warn_of_copies() -> None:
    """Warn, once, that small problems on NumPy arrays are mostly copies."""
    warnings.warn(
        "backend 'cuda' copies NumPy arrays to the device and back, which takes longer than a small convolution; "
        "keep the arrays on the device (CuPy, PyTorch, numba), or leave small ones to another backend",
        stacklevel=2,
    )


def upload(array: np.ndarray | None, dtype: Any, stream: Any = 0) -> Any:
    """Return a flat copy on the device; no elements for None."""
    array = np.zeros(0, dtype) if array is None else array
    if array.size == 0:
        return cuda.device_array(0, dtype)
    return cuda.to_device(np.ascontiguousarray(array, dtype).reshape(-1), stream=stream)


def empty(count: int, dtype: Any) -> Any:
    """Return a flat array on the device that holds nothing yet."""
    return cuda.device_array(count, dtype)


def run(kernel: Any, blocks: int, threads: int, stream: Any, *arguments: Any) -> None:
    """Launch a kernel; a grid of no blocks is none."""
    if blocks == 0:
        return
    if simulated():
        with _simulating:
            kernel[blocks, threads](*arguments)
    else:
        kernel[blocks, threads, stream](*arguments)


def deform_form(problem: Problem, channels_last: bool) -> np.ndarray:
    """Return what the gather of a deformable convolution reads: sizes, taps, strides of the offset and the mask."""
    sizes = (1,) * (3 - problem.ndim) + problem.input_size
    pixels = int(np.prod(problem.output_size))
    found = [*sizes, problem.taps]
    for channels in (
        problem.offset_groups * problem.taps * problem.ndim,
        problem.offset_groups * problem.taps,
    ):
        found += [channels * pixels, 1, channels] if channels_last else [channels * pixels, pixels, 1]
    if not problem.mask:
        found[-2] = 0
    return np.array(found, np.int64)


@dataclass
class Forward:
    """A forward operation on one kernel: what does not depend on the arrays, on the device once it is needed."""

    problem: Problem
    kernel: Any
    tile: Tile
    channel_tiles: int
    shared_bytes: int
    weight: Any = None
    bias: Any = None
    isa: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.isa = "simulator" if simulated() else "cuda"
        self.host_tables = tables_of(self.problem)
        self.host_tiles = self.host_tables.tiles(self.tile.pixels)

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.problem.batch * self.channel_tiles * len(self.host_tiles)

    @property
    def launched(self) -> str:
        """The grid, for ``explain``."""
        return (
            f"{self.blocks} blocks of {self.tile.threads} threads, {self.shared_bytes} B shared memory each"
        )

    @property
    def copies(self) -> tuple[str, ...]:
        """What moves, for ``explain``."""
        moved = self.problem.bytes
        return (f"NumPy arrays to the device and back: {moved:,} B; none for arrays that are there",)

    def scratch_bytes(self, threads: int) -> int:
        """Return the bytes on the device besides operands: packed weights and tables."""
        weights = int(np.prod(self.problem.weight_shape)) * self.problem.dtype.itemsize
        return weights + self.host_tables.words.nbytes + self.host_tables.sums.nbytes + self.host_tiles.nbytes

    def bind(self, weight: Any, bias: Any) -> "Forward":
        """Return the same with the weight packed, and the bias, on the device."""
        bound = Forward(self.problem, self.kernel, self.tile, self.channel_tiles, self.shared_bytes)
        dtype = self.problem.dtype
        bound.weight, bound.bias = packed(self.problem, upload(weight, dtype), 0), upload(bias, dtype)
        return bound

    def __call__(self, output, input, weight, bias, offset, mask, threads) -> None:
        """Run on NumPy arrays."""
        dtype = self.problem.dtype
        if self.problem.flops < WORTH_COPYING:
            warn_of_copies()
        arrays = [upload(array, dtype) for array in (input, weight, bias, offset, mask)]
        found = empty(output.size, dtype)
        self.launch(found, *arrays)
        output.reshape(-1)[:] = found.copy_to_host()

    def launch(
        self,
        output: Any,
        input: Any,
        weight: Any,
        bias: Any,
        offset: Any,
        mask: Any,
        stream: Any = 0,
        channels_last: bool = False,
    ) -> None:
        """Run on flat arrays of the device, with no elements where absent, in the order of a stream.

        `channels_last` tells that the offset and the mask are.
        """
        problem = self.problem
        weight = packed(problem, weight, stream) if self.weight is None else self.weight
        bias = bias if self.bias is None else self.bias
        words, sums, tiles = self._tables
        run(
            self.kernel, self.blocks, self.tile.threads, stream,
            output, input, weight, bias, offset, mask, words, sums, tiles, self._forms[channels_last],
            problem.groups, max(problem.offset_groups, 1),
            problem.in_channels // problem.groups, problem.out_channels // problem.groups, problem.taps,
            *ends(input_strides(problem)), *ends(output_strides(problem)),
        )  # fmt: skip

    @cached_property
    def _tables(self) -> tuple[Any, Any, Any]:
        tables = self.host_tables
        return cuda.to_device(tables.words), cuda.to_device(tables.sums), cuda.to_device(self.host_tiles)

    @cached_property
    def _forms(self) -> list[Any]:
        return [cuda.to_device(deform_form(self.problem, last)) for last in (False, True)]


def packed(problem: Problem, weight: Any, stream: Any) -> Any:
    """Return the weights in the order they are staged, from those of the user, flat and on the device."""
    found = empty(weight.size, problem.dtype)
    threads = 1 if simulated() else PACK_THREADS
    blocks = 1 if simulated() else min(-(-weight.size // PACK_THREADS), PACK_BLOCKS)
    run(pack(), blocks, threads, stream, found, weight, *pack_form(problem))
    return found


def ends(strides: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the strides (image, channel, pixel) of (image, channel, d, h, w)."""
    return strides[0], strides[1], strides[4]


def build_dense(problem: Problem) -> Forward:
    """Return the executable of the matrix kernel."""
    tile, corners = dense_tile(problem, simulated()), corners_of(problem.variant, problem.ndim)
    kernel = dense(problem.dtype, tile, corners, problem.layout == "NHWC", problem.activation)
    tiles = problem.groups * -(-(problem.out_channels // problem.groups) // tile.channels)
    return Forward(problem, kernel, tile, tiles, dense_shared_bytes(tile, corners, problem.dtype))


def build_depthwise(problem: Problem) -> Forward:
    """Return the executable of one input channel a group."""
    tile = depthwise_tile(problem, simulated())
    kernel = depthwise(problem.dtype, tile, problem.layout == "NHWC", problem.activation)
    tiles = -(-problem.out_channels // tile.channels)
    return Forward(problem, kernel, tile, tiles, depthwise_shared_bytes(tile, problem.dtype))

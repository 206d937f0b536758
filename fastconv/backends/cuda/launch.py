"""Executables: tables and weights on the device, operands brought there, one kernel launched, the result brought back.

An executable runs on NumPy arrays like those of any backend, which copies them, or through ``launch`` on arrays
that are on the device already, which copies nothing and does not wait. Whatever is uploaded once for all calls is
waited for, because the streams of later calls do not follow the one it came by.
"""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numba import config, cuda

from ...errors import BackendError
from ...lowering.geometry import input_strides, output_strides
from ...problem import Problem
from .dense import dense, dense_shared_bytes
from .depthwise import depthwise, depthwise_shared_bytes
from .entry import FORWARD, Entry
from .gather import corners_of
from .pack import clear, pack, pack_form
from .resources import of_this_device, without_a_device
from .tables import tables_of
from .tiles import Tile, dense_tile, depthwise_tile

__all__ = [
    "Forward",
    "OnEachDevice",
    "build_dense",
    "build_depthwise",
    "current_device",
    "deform_form",
    "empty",
    "ends",
    "flat_grid",
    "keep",
    "packed",
    "registers_of",
    "run",
    "simulated",
    "upload",
    "warn_of_copies",
    "zeros",
]

FLAT_THREADS = 128
FLAT_BLOCKS = 4096
BLOCKS_MOST = 2**31 - 1
# Operations that a GPU does in about the time that copying their operands takes.
WORTH_COPYING = 10**9

# The simulator runs one kernel at a time.
_simulating = threading.Lock()
# What running kernels use and nothing else holds, with the events after them.
_kept: deque[tuple[Any, tuple]] = deque()
_keeping = threading.Lock()


def simulated() -> bool:
    """Return whether kernels run in numba's simulator."""
    return bool(getattr(config, "ENABLE_CUDASIM", False))


def current_device() -> int:
    """Return the number of the device that numba launches on."""
    return 0 if simulated() else int(cuda.get_current_device().id)


def warn_of_copies(problem: Problem) -> None:
    """Warn, once, that small problems on NumPy arrays are mostly copies."""
    if problem.flops < WORTH_COPYING:
        _warn_of_copies()


@cache
def _warn_of_copies() -> None:
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


def zeros(count: int, dtype: np.dtype, stream: Any) -> Any:
    """Return a flat array of zeros on the device."""
    found = empty(count, dtype)
    run(clear(), *flat_grid(count), stream, found)
    return found


def flat_grid(count: int) -> tuple[int, int]:
    """Return (blocks, threads) for so many independent elements."""
    if simulated():
        return min(count, 1), 1
    return min(-(-count // FLAT_THREADS), FLAT_BLOCKS), FLAT_THREADS


def keep(stream: Any, *held: Any) -> None:
    """Hold on to arrays until what was launched on a stream so far is done with them.

    Numba frees its own memory only when the device is idle, but not that of a pool it was given, and what we borrow
    from other libraries by DLPack is theirs again as soon as we drop it.
    """
    if simulated():
        return
    done = cuda.event(timing=False)
    done.record(stream)
    with _keeping:
        _kept.append((done, held))
        while _kept and _kept[0][0].query():
            _kept.popleft()


def settle() -> None:
    """Wait for what was uploaded, so that any stream may use it."""
    if not simulated():
        cuda.default_stream().synchronize()


class OnEachDevice:
    """Arrays of host memory that never change, uploaded once to each device that asks for them."""

    def __init__(self, *arrays: np.ndarray):
        self._arrays = arrays
        self._there: dict[int, tuple] = {}

    def __call__(self) -> tuple:
        device = current_device()
        if device not in self._there:
            found = tuple(cuda.to_device(array) for array in self._arrays)
            settle()
            self._there[device] = found
        return self._there[device]


def run(kernel: Any, blocks: int, threads: int, stream: Any, *arguments: Any) -> None:
    """Launch a kernel; a grid of no blocks is none."""
    if blocks == 0:
        return
    if blocks > BLOCKS_MOST:
        raise BackendError(f"{blocks:,} thread blocks are more than a grid holds: split the batch")
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


def registers_of(entries: Sequence[Entry], build: Callable, problem: Problem) -> str:
    """Return the registers and the occupancy of an executable's kernels, for ``explain``."""
    return without_a_device(build, problem) if simulated() else of_this_device(entries)


@dataclass
class Forward:
    """A forward operation on one kernel: what does not depend on the arrays, on the device once it is needed."""

    problem: Problem
    kernel: Any
    tile: Tile
    channel_tiles: int
    shared_bytes: int
    build: Callable  # what makes this of the problem
    weight: Any = None
    bias: Any = None
    device: int | None = None  # where the weight and the bias are, if they are bound
    isa: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.isa = "simulator" if simulated() else "cuda"
        self.host_tables = tables_of(self.problem)
        self.host_tiles = self.host_tables.tiles(self.tile.pixels)
        self._tables = OnEachDevice(self.host_tables.words, self.host_tables.sums, self.host_tiles)
        self._forms = OnEachDevice(*(deform_form(self.problem, last) for last in (False, True)))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The kernel, to be compiled."""
        return (Entry(self.kernel, FORWARD, self.problem.dtype, self.tile.threads, self.shared_bytes),)

    @property
    def registers(self) -> str:
        """Registers and occupancy, for ``explain``."""
        return registers_of(self.entries, self.build, self.problem)

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
        bound = Forward(
            self.problem, self.kernel, self.tile, self.channel_tiles, self.shared_bytes, self.build
        )
        dtype = self.problem.dtype
        bound.weight, bound.bias = packed(self.problem, upload(weight, dtype), 0), upload(bias, dtype)
        bound.device = current_device()
        settle()
        return bound

    def __call__(self, output, input, weight, bias, offset, mask, threads) -> None:
        """Run on NumPy arrays."""
        dtype = self.problem.dtype
        warn_of_copies(self.problem)
        with nullcontext() if self.device is None else cuda.gpus[self.device]:
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
        words, sums, tiles = self._tables()
        run(
            self.kernel, self.blocks, self.tile.threads, stream,
            output, input, weight, bias, offset, mask, words, sums, tiles, self._forms()[channels_last],
            problem.groups, max(problem.offset_groups, 1),
            problem.in_channels // problem.groups, problem.out_channels // problem.groups, problem.taps,
            *ends(input_strides(problem)), *ends(output_strides(problem)),
        )  # fmt: skip
        if self.weight is None:
            keep(stream, weight)


def packed(problem: Problem, weight: Any, stream: Any) -> Any:
    """Return the weights in the order they are staged, from those of the user, flat and on the device."""
    found = empty(weight.size, problem.dtype)
    run(pack(), *flat_grid(weight.size), stream, found, weight, *pack_form(problem))
    return found


def ends(strides: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the strides (image, channel, pixel) of (image, channel, d, h, w)."""
    return strides[0], strides[1], strides[4]


def build_dense(problem: Problem) -> Forward:
    """Return the executable of the matrix kernel."""
    tile, corners = dense_tile(problem, simulated()), corners_of(problem.variant, problem.ndim)
    kernel = dense(problem.dtype, tile, corners, problem.layout == "NHWC", problem.activation)
    tiles = problem.groups * -(-(problem.out_channels // problem.groups) // tile.channels)
    shared = dense_shared_bytes(tile, corners, problem.dtype)
    return Forward(problem, kernel, tile, tiles, shared, build_dense)


def build_depthwise(problem: Problem) -> Forward:
    """Return the executable of one input channel a group."""
    tile = depthwise_tile(problem, simulated())
    kernel = depthwise(problem.dtype, tile, problem.layout == "NHWC", problem.activation)
    tiles = -(-problem.out_channels // tile.channels)
    shared = depthwise_shared_bytes(tile, problem.dtype)
    return Forward(problem, kernel, tile, tiles, shared, build_depthwise)

"""What the compiler says of the kernels, without a GPU: registers, spills, shared memory, and the occupancy they allow.

``python -m fastconv.backends.cuda.compiled`` prints the table of docs/pages/cuda.md. Kernels are compiled to PTX by NVVM and
to machine code by ptxas, which comes with the CUDA toolkit or in NVIDIA's packages
(``pip install numba-cuda[cu13] nvidia-cuda-nvcc``).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from .deform_grad import sample_grad, sample_grad_shared_bytes
from .dense import dense, dense_shared_bytes
from .depthwise import depthwise, depthwise_shared_bytes
from .tiles import DENSE, DEPTHWISE, SAMPLE_GRAD, WEIGHT_GRAD, Tile
from .weight_grad import weight_grad, weight_grad_shared_bytes

__all__ = ["ARCHITECTURES", "Compiled", "Entry", "compile_entry", "entries", "find_ptxas"]

ARCHITECTURES = ((7, 5), (8, 0), (9, 0))

# Of a multiprocessor, by architecture: registers, bytes of shared memory, threads, blocks.
RESOURCES = {
    (7, 5): (65536, 65536, 1024, 16),
    (8, 0): (65536, 167936, 2048, 32),
    (9, 0): (65536, 233472, 2048, 32),
}
REGISTER_UNIT = 8  # a thread's registers are rounded up to this
SHARED_RESERVED = 1024  # of each block, from sm_80 on


@dataclass(frozen=True)
class Entry:
    """One kernel to compile.

    Attributes
    ----------
    name : str
    kernel : object
        What ``numba.cuda.jit`` made.
    arrays, integers : tuple, int
        The signature: kinds of arrays ("float" of the type, "words", "rows" or "form"), then so many integers.
    dtype : numpy.dtype
    tile : Tile
    shared_bytes : int
        What the launch reckons with.
    """

    name: str
    kernel: Any
    arrays: tuple[str, ...]
    integers: int
    dtype: np.dtype
    tile: Tile
    shared_bytes: int


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel on one architecture.

    Attributes
    ----------
    registers, stack, spills, shared : int
        Registers of a thread; the rest in bytes.
    blocks : int
        Blocks that fit on a multiprocessor.
    occupancy : float
        Threads that these are, of the most it could hold.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    blocks: int
    occupancy: float


FORWARD = ("float",) * 6 + ("words", "rows", "rows", "form")
OF_WEIGHT = ("float",) * 5 + ("words", "rows", "form")
OF_SAMPLES = ("float",) * 8 + ("words", "rows", "form")


def entries() -> Iterator[Entry]:
    """Yield the kernels that do the work, in both types and layouts."""
    for dtype in DENSE:
        kind = dtype.name
        for layout in ("NCHW", "NHWC"):
            last = layout == "NHWC"
            for tile in DENSE[dtype]:
                shared = dense_shared_bytes(tile, 1, dtype)
                name = f"conv_dense {tile.pixels}x{tile.channels} {layout} {kind}"
                yield Entry(name, dense(dtype, tile, 1, last, None), FORWARD, 11, dtype, tile, shared)
            tile = DEPTHWISE[layout]
            shared = depthwise_shared_bytes(tile, dtype)
            name = f"conv_depthwise {layout} {kind}"
            yield Entry(name, depthwise(dtype, tile, last, None), FORWARD, 11, dtype, tile, shared)
            tile = DENSE[dtype][0]
            shared = dense_shared_bytes(tile, 4, dtype)
            name = f"deform_conv2d_tile {layout} {kind}"
            yield Entry(name, dense(dtype, tile, 4, last, None), FORWARD, 11, dtype, tile, shared)
        for name, corners in (("conv_weight_grad_dense", 1), ("deform_conv2d weight", 4)):
            kernel = weight_grad(dtype, WEIGHT_GRAD, corners, False)
            shared = weight_grad_shared_bytes(WEIGHT_GRAD, corners, dtype)
            yield Entry(f"{name} {kind}", kernel, OF_WEIGHT, 13, dtype, WEIGHT_GRAD, shared)
        tile = SAMPLE_GRAD[dtype]
        for name, ordered in (("deform_conv2d_grad_atomic", False), ("deform_conv2d_grad_ordered", True)):
            kernel = sample_grad(dtype, tile, 2, False, ordered)
            shared = sample_grad_shared_bytes(tile, 2, dtype)
            yield Entry(f"{name} {kind}", kernel, OF_SAMPLES, 11, dtype, tile, shared)


def find_ptxas() -> str | None:
    """Return the path of ptxas, of the machine or of NVIDIA's packages."""
    found = shutil.which("ptxas")
    if found:
        return found
    packaged = (Path(folder) / "nvidia" for folder in sys.path if folder)
    return next((str(path) for folder in packaged for path in sorted(folder.glob("*/bin/ptxas"))), None)


def compile_entry(entry: Entry, architecture: tuple[int, int], ptxas: str) -> Compiled:
    """Compile one kernel for one architecture."""
    number = "".join(map(str, architecture))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(_ptx(entry, architecture))
        command = [ptxas, "-v", f"-arch=sm_{number}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stack, spills = _figure(r"(\d+) bytes stack frame", told), _figure(r"(\d+) bytes spill stores", told)
    registers, shared = _figure(r"Used (\d+) registers", told), _figure(r"(\d+) bytes smem", told)
    blocks, occupancy = _occupancy(architecture, registers, shared, entry.tile.threads)
    return Compiled(registers, stack, spills, shared, blocks, occupancy)


def _ptx(entry: Entry, architecture: tuple[int, int]) -> str:
    from numba import cuda, from_dtype, types

    kinds = {
        "float": from_dtype(entry.dtype)[::1],
        "words": types.int32[::1],
        "rows": types.int32[:, ::1],
        "form": types.int64[::1],
    }
    signature = (*(kinds[kind] for kind in entry.arrays), *(types.int64,) * entry.integers)
    # Device functions are typed for the device that is there; here there is none.
    stand_in = SimpleNamespace(compute_capability=architecture)
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=stand_in):
        return cuda.compile_ptx(entry.kernel.py_func, signature, cc=architecture)[0]


def _figure(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _occupancy(architecture: tuple[int, int], registers: int, shared: int, threads: int) -> tuple[int, float]:
    all_registers, all_shared, all_threads, all_blocks = RESOURCES[architecture]
    taken = -(-registers // REGISTER_UNIT) * REGISTER_UNIT * threads
    reserved = SHARED_RESERVED if architecture >= (8, 0) else 0
    blocks = min(
        all_registers // taken, all_shared // (shared + reserved), all_threads // threads, all_blocks
    )
    return blocks, blocks * threads / all_threads


def main() -> None:
    """Print the table."""
    ptxas = find_ptxas()
    if ptxas is None:
        raise SystemExit("ptxas is neither on the PATH nor among NVIDIA's packages")
    heads = ["kernel", "threads", "shared, B"]
    heads += [f"sm_{a}{b}: registers, blocks, occupancy" for a, b in ARCHITECTURES]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for entry in entries():
        found = [compile_entry(entry, architecture, ptxas) for architecture in ARCHITECTURES]
        assert not any(one.stack or one.spills for one in found), entry.name
        cells = [f"{one.registers}, {one.blocks}, {one.occupancy:.0%}" for one in found]
        print(
            "| "
            + " | ".join([f"`{entry.name}`", str(entry.tile.threads), str(found[0].shared), *cells])
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What the compiler says of the kernels, without a GPU: registers, spills, shared memory, and the occupancy they allow.

``python -m fastconv.backends.cuda.compiled`` prints the table of docs/pages/cuda.md, with ``--all`` every kernel there is.
Kernels are compiled to PTX by NVVM, for the oldest of the architectures, and to the machine code of each by ptxas.
Both come with the CUDA toolkit or in NVIDIA's packages (``pip install numba-cuda[cu13] nvidia-cuda-nvcc``).
"""

import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from .deform_grad import ordered_scatter, sample_grad, sample_grad_shared_bytes
from .dense import dense, dense_shared_bytes
from .depthwise import depthwise, depthwise_shared_bytes
from .entry import FORWARD, OF_SAMPLES, OF_WEIGHT, Arguments, Entry
from .launch import FLAT_THREADS
from .occupancy import occupancy
from .pack import clear, pack
from .tiles import DENSE, DEPTHWISE, SAMPLE_GRAD, SAMPLE_GRAD_CUBES, WEIGHT_GRAD
from .weight_grad import add_parts, weight_grad, weight_grad_shared_bytes

__all__ = [
    "ARCHITECTURES",
    "Compiled",
    "all_entries",
    "compile_entry",
    "entries",
    "find_ptxas",
    "row",
    "versions",
]

ARCHITECTURES = ((7, 5), (8, 0), (9, 0))
LAYOUTS = {"NCHW": False, "NHWC": True}
CORNERS = {"conv": 1, "deform_conv1d": 2, "deform_conv2d": 4, "deform_conv3d": 8}
OF_SCATTER = Arguments(("float",) * 4 + ("words", "rows", "form"), 7)

# Every engine, type and layout of the forward ones, and of the gradients the type; of the tiles and ranks of
# deformable ones those that need most. What is left out needs less of each resource than another one here.
IN_TABLE = re.compile(
    r"conv |conv_depthwise |deform_conv2d (128x64|64x32) |deform_conv3d (128x64|64x32) NCHW |"
    r"conv_weight_grad NCHW |deform_conv[23]d_weight_grad NCHW |deform_conv2d_grad_\w+ NCHW |"
    r"deform_conv3d_grad_atomic NCHW "
)


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


def entries() -> dict[str, Entry]:
    """Return the kernels of the table, by name."""
    return {name: entry for name, entry in all_entries() if IN_TABLE.match(name)}


def all_entries() -> Iterator[tuple[str, Entry]]:
    """Yield the name and the entry of every kernel there is, without an activation."""
    for dtype in DENSE:
        for layout in LAYOUTS:
            yield from _forward(dtype, layout)
            yield from _gradients(dtype, layout)
        yield from _helpers(dtype)


def _forward(dtype: np.dtype, layout: str) -> Iterator[tuple[str, Entry]]:
    last, kind = LAYOUTS[layout], f"{layout} {dtype.name}"
    tile = DEPTHWISE[layout]
    kernel, shared = depthwise(dtype, tile, last, None), depthwise_shared_bytes(tile, dtype)
    yield f"conv_depthwise {kind}", Entry(kernel, FORWARD, dtype, tile.threads, shared)
    for engine, corners in CORNERS.items():
        for tile in DENSE[dtype]:
            kernel, shared = dense(dtype, tile, corners, last, None), dense_shared_bytes(tile, corners, dtype)
            name = f"{engine} {tile.pixels}x{tile.channels} {kind}"
            yield name, Entry(kernel, FORWARD, dtype, tile.threads, shared)


def _gradients(dtype: np.dtype, layout: str) -> Iterator[tuple[str, Entry]]:
    last, kind = LAYOUTS[layout], f"{layout} {dtype.name}"
    for engine, corners in CORNERS.items():
        kernel = weight_grad(dtype, WEIGHT_GRAD, corners, last)
        shared = weight_grad_shared_bytes(WEIGHT_GRAD, corners, dtype)
        yield (
            f"{engine}_weight_grad {kind}",
            Entry(kernel, OF_WEIGHT, dtype, WEIGHT_GRAD.threads, shared),
        )
    for ndim in (1, 2, 3):
        tile = (SAMPLE_GRAD_CUBES if ndim == 3 else SAMPLE_GRAD)[dtype]
        shared = sample_grad_shared_bytes(tile, ndim, dtype)
        for order in ("atomic", "ordered"):
            kernel = sample_grad(dtype, tile, ndim, last, order == "ordered")
            yield (
                f"deform_conv{ndim}d_grad_{order} {kind}",
                Entry(kernel, OF_SAMPLES, dtype, tile.threads, shared),
            )


def _helpers(dtype: np.dtype) -> Iterator[tuple[str, Entry]]:
    for ndim in (1, 2, 3):
        yield (
            f"ordered_scatter {ndim}d {dtype.name}",
            Entry(ordered_scatter(dtype, ndim), OF_SCATTER, dtype, FLAT_THREADS, 0),
        )
    yield f"add_parts {dtype.name}", Entry(add_parts(), Arguments(("float",) * 2, 1), dtype, FLAT_THREADS, 0)
    yield f"pack {dtype.name}", Entry(pack(), Arguments(("float",) * 2, 6), dtype, FLAT_THREADS, 0)
    yield f"clear {dtype.name}", Entry(clear(), Arguments(("float",)), dtype, FLAT_THREADS, 0)


def find_ptxas() -> str | None:
    """Return the path of ptxas, of the machine or of NVIDIA's packages."""
    found = shutil.which("ptxas")
    if found:
        return found
    packaged = (Path(folder) / "nvidia" for folder in sys.path if folder)
    return next((str(path) for folder in packaged for path in sorted(folder.glob("*/bin/ptxas"))), None)


def versions(ptxas: str) -> str:
    """Return the versions of the compilers, on which the registers depend."""
    from numba import cuda

    told = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", told)
    own = "numba-cuda" if "numba_cuda" in str(cuda.__file__) else "numba"
    return f"{own} {version(own)} and ptxas {release[1] if release else 'of an unknown version'}"


def compile_entry(entry: Entry, ptxas: str) -> dict[tuple[int, int], Compiled]:
    """Compile one kernel for each architecture."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(_ptx(entry, ARCHITECTURES[0]))
        return {each: _assemble(source, each, entry.threads, ptxas) for each in ARCHITECTURES}


def _assemble(source: Path, architecture: tuple[int, int], threads: int, ptxas: str) -> Compiled:
    machine = f"-arch=sm_{architecture[0]}{architecture[1]}"
    command = [ptxas, "-v", machine, str(source), "-o", str(source.with_suffix(".cubin"))]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"ptxas {machine}: {run.stderr.strip()}")
    stack, spills = (_figure(rf"(\d+) bytes {what}", run.stderr) for what in ("stack frame", "spill stores"))
    registers = _figure(r"Used (\d+) registers", run.stderr)
    shared = _figure(r"(\d+) bytes smem", run.stderr)
    found = occupancy(architecture, registers, shared, threads)
    assert found is not None  # all of these are known
    return Compiled(registers, stack, spills, shared, found.blocks, found.share)


def _ptx(entry: Entry, architecture: tuple[int, int]) -> str:
    from numba import cuda

    # Device functions are typed for the device that is there; here there is none.
    stand_in = SimpleNamespace(compute_capability=architecture)
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=stand_in):
        return cuda.compile_ptx(
            entry.kernel.py_func, entry.arguments.signature(entry.dtype).args, cc=architecture
        )[0]


def _figure(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def row(name: str, entry: Entry, found: dict[tuple[int, int], Compiled]) -> str:
    """Return a row of the table."""
    shared = max(one.shared for one in found.values())
    cells = [f"`{name}`", str(entry.threads), str(shared)]
    cells += [f"{one.registers}, {one.blocks}, {one.occupancy:.0%}" for one in found.values()]
    return f"| {' | '.join(cells)} |"


def answer() -> None:
    """Print what ``explain`` asks for on the standard input: the figures of a problem's kernels."""
    build, problem = pickle.load(sys.stdin.buffer)
    ptxas = _ptxas_or_exit()
    told = []
    for entry in build(problem).entries:
        found = compile_entry(entry, ptxas)
        told.append(
            ", ".join(
                f"sm_{a}{b} {one.registers} a thread, {one.blocks} blocks on a multiprocessor, occupancy {one.occupancy:.0%}"
                for (a, b), one in found.items()
            )
        )
    print(f"on a device, by its compiler: {'; then '.join(told)}")


def _ptxas_or_exit() -> str:
    ptxas = find_ptxas()
    if ptxas is None:
        raise SystemExit("ptxas is neither on the PATH nor among NVIDIA's packages")
    return ptxas


def main(arguments: list[str]) -> None:
    """Print the table."""
    ptxas = _ptxas_or_exit()
    print(f"Compiled by {versions(ptxas)}.\n")
    heads = ["kernel", "threads", "shared, B"]
    heads += [f"sm_{a}{b}: registers, blocks, occupancy" for a, b in ARCHITECTURES]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, entry in dict(all_entries()).items() if "--all" in arguments else entries().items():
        found = compile_entry(entry, ptxas)
        spilled = any(one.stack or one.spills for one in found.values())
        print(row(name, entry, found) + (" spills" if spilled else ""), flush=True)


if __name__ == "__main__":
    answer() if "--request" in sys.argv else main(sys.argv[1:])

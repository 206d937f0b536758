"""Registers and occupancy of the kernels of a call, for ``explain``.

On a device its driver tells what it loaded. In the simulator nothing is compiled; what a device would run is then
compiled by another process, if there is a compiler, for devices that are not here.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence

from ...problem import Problem
from .entry import Entry
from .occupancy import occupancy

__all__ = ["of_this_device", "without_a_device"]

PATIENCE = 120  # seconds


def of_this_device(entries: Sequence[Entry]) -> str:
    """Return what the driver says of kernels, which are compiled for that."""
    from numba import cuda

    capability = tuple(cuda.get_current_device().compute_capability)
    told = []
    for entry in entries:
        signature = entry.arguments.signature(entry.dtype)
        entry.kernel.compile(signature)
        registers = entry.kernel.get_regs_per_thread(signature)
        local = entry.kernel.get_local_mem_per_thread(signature)
        shared = entry.kernel.get_shared_mem_per_block(signature)
        found = occupancy(capability, registers, shared, entry.threads)
        running = f"{found}" if found else "occupancy not known of this compute capability"
        told.append(f"{registers} a thread and {local} B of local memory; {running}")
    return f"{'; then '.join(told)} (sm_{capability[0]}{capability[1]})"


def without_a_device(build: Callable, problem: Problem) -> str:
    """Return what the compiler says of the kernels that a device would run, or why that is not known."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    try:
        request = pickle.dumps((build, problem))
        run = subprocess.run(
            [sys.executable, "-m", f"{__package__}.compiled", "--request"],
            input=request, env=environment, capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
    except (pickle.PicklingError, AttributeError, OSError, subprocess.TimeoutExpired) as error:
        return f"not known, the simulator compiles nothing: {error}"
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip().splitlines() or ["the compiler failed"]
        return f"not known, the simulator compiles nothing: {said[-1]}"
    return run.stdout.decode().strip()

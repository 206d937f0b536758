"""One team of threads for PyTorch's operators and ours: see the team of src/pool.h."""

import ctypes
from pathlib import Path

import torch

__all__ = ["share_threads"]

# What OpenMP libraries have, LLVM's too.
ENTRIES = ("GOMP_parallel", "omp_get_max_threads")


def share_threads() -> bool:
    """Have programs run on the threads of PyTorch's OpenMP library, and return whether there is one.

    Without it, as where PyTorch came with threads of another kind, they run on our own as ever.
    """
    # What a library was linked with is found through it, under whatever name and path that was loaded.
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        from .. import _native

        linked = ctypes.CDLL(str(library))
        addresses = [ctypes.cast(linked[name], ctypes.c_void_p).value or 0 for name in ENTRIES]
    except (ImportError, OSError, AttributeError):
        return False
    _native.share_threads(*addresses)
    return True

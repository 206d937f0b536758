"""A kernel with the types of its arguments and what it takes of a multiprocessor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import from_dtype, types

__all__ = ["FORWARD", "OF_SAMPLES", "OF_WEIGHT", "SHARED_MOST", "Arguments", "Entry"]

SHARED_MOST = 48 * 1024  # bytes of a block, on all devices


@dataclass(frozen=True)
class Arguments:
    """The arguments of a kernel: arrays ("float" of its type, "words", "rows" or "form"), then so many integers."""

    arrays: tuple[str, ...]
    integers: int = 0

    def signature(self, dtype: np.dtype) -> Any:
        """Return the signature for an element type, as numba has it."""
        kinds = {
            "float": from_dtype(dtype)[::1],
            "words": types.int32[::1],
            "rows": types.int32[:, ::1],
            "form": types.int64[::1],
        }
        return types.void(*(kinds[kind] for kind in self.arrays), *(types.int64,) * self.integers)


FORWARD = Arguments(("float",) * 6 + ("words", "rows", "rows", "form"), 11)
OF_WEIGHT = Arguments(("float",) * 5 + ("words", "rows", "form"), 13)
OF_SAMPLES = Arguments(("float",) * 8 + ("words", "rows", "form"), 11)


@dataclass(frozen=True)
class Entry:
    """One kernel to compile.

    Attributes
    ----------
    kernel : object
        What ``numba.cuda.jit`` made.
    arguments : Arguments
    dtype : numpy.dtype
    threads : int
        Of a block.
    shared_bytes : int
        Of a block, as the launch reckons.
    """

    kernel: Any
    arguments: Arguments
    dtype: np.dtype
    threads: int
    shared_bytes: int

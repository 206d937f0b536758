"""The compiled backend: engines from src/, built ahead of time for every instruction set.

Its kernels, and the tables their engines follow, come from :mod:`fastconv.lowering`.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from ...lowering import ACTIVATION_CODES, program_kernels
from ...problem import Problem
from ...registry import Refusal

__all__ = ["backend"]

SUFFIXES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}


@dataclass(frozen=True)
class CompiledEngines:
    """The engines of one instruction set; see :class:`fastconv.lowering.Engines`."""

    isa: str
    vec_bytes: int
    tile: tuple[int, int]
    lane_tile: tuple[int, int]
    addresses: dict[str, int]

    def address(self, engine: str, dtype: np.dtype) -> int:
        return self.addresses[f"{engine}_{SUFFIXES[dtype]}"]

    def activation(self, problem: Problem) -> int:
        if callable(problem.activation):
            raise TypeError(Refusal.CALLABLE_ACTIVATION)
        return ACTIVATION_CODES[problem.activation]


@cache
def engines(isa: str) -> CompiledEngines:
    """Return the engines compiled for an instruction set."""
    from ... import _native

    return CompiledEngines(**_native.engines(isa))


class CythonBackend:
    """Kernels compiled ahead of time, for every instruction set this machine may have."""

    name = "cython"
    kernels = program_kernels("cython", engines, functions=False)

    def unavailable(self) -> str | None:
        """Return why the compiled module cannot be used, or None."""
        try:
            from ... import _native  # noqa: F401
        except ImportError as error:
            return f"the compiled module cannot be imported: {error}"
        return None


backend = CythonBackend()

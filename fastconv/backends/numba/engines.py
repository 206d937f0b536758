"""The engines of one vector width: loaded from disk, or else compiled, when a program first asks for one."""

import functools
import os
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...lowering.program import ACTIVATION_CODES
from ...problem import Problem
from . import objects
from .shapes import VECTOR_BYTES, tile_shapes

__all__ = ["NumbaEngines", "engines"]

# Activations that engines have built in; others they call by address.
BUILT_IN = (None, "relu", "relu6", "hardswish")

# Held while compiling and across a fork: no child begins with it taken by a thread that it does not have.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class NumbaEngines:
    """Engines of one vector width, compiled when asked for; see :class:`fastconv.lowering.Engines`.

    A program keeps this object, and this object the activations that the program has addresses of.
    """

    isa: str
    vec_bytes: int
    tile: tuple[int, int]
    lane_tile: tuple[int, int]
    kept: list[Any] = field(default_factory=list, compare=False)

    def address(self, engine: str, dtype: np.dtype) -> int:
        """Return the address of a compiled engine."""
        with _lock:
            return address("engine", engine, dtype, self.vec_bytes // dtype.itemsize)

    def activation(self, problem: Problem) -> int:
        """Return what the word `activation` is: a code, or the address of a compiled function."""
        chosen, dtype = problem.activation, problem.dtype
        if not callable(chosen):
            if chosen in BUILT_IN:
                return ACTIVATION_CODES[chosen]
            with _lock:
                return address("activation", chosen, dtype, self.vec_bytes // dtype.itemsize)
        from .compiling import compiled_function

        with _lock:
            function = compiled_function(chosen, dtype)
        self.kept.append(function)
        return function.address


def engines(isa: str) -> NumbaEngines:
    """Return the engines with the vectors of an instruction set.

    That is the width of vectors and the shape of tiles; for instructions LLVM asks the processor.
    """
    return NumbaEngines(isa, VECTOR_BYTES[isa], *tile_shapes(VECTOR_BYTES[isa]))


_compiled: list[Any] = []  # what owns the code that was compiled by this process


@functools.cache
def address(kind: str, name: str, dtype: np.dtype, lanes: int) -> int:
    """Return the address of an engine or an activation, which stays where it is until the process ends."""
    stored_as = f"{name}-{dtype}x{lanes}"
    found = objects.find(stored_as)
    if found is not None:
        return found
    from . import compiling

    compile_one = compiling.compiled_engine if kind == "engine" else compiling.compiled_activation
    function = compile_one(name, dtype, lanes)
    _compiled.append(function)
    compiling.keep_code(stored_as, function)
    return function.address

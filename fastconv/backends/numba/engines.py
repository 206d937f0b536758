"""Compiling engines: once a process, and mostly once a machine, since numba keeps the code in its disk cache.

There are eleven engines for each element type and vector width; shapes, strides, dilations, groups are data.
"""

import functools
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, types

from ... import config
from ...lowering import program
from ...problem import Problem
from . import activation
from .deform import deform
from .dense import dense_lanes, dense_rows
from .depthwise import depthwise_pixels, depthwise_planes
from .epilogue import HARDSWISH, LINEAR, RELU, RELU6
from .halo import halo_pixels, halo_planes
from .pack import pack
from .simd import Pointer, Record
from .tile import tile_shapes
from .winograd import winograd, winograd_inputs, winograd_weights

__all__ = ["NumbaEngines", "engines"]

VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
ELEMENTS: dict[Any, types.Type] = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}
ENGINES = {
    "halo_planes": halo_planes,
    "halo_pixels": halo_pixels,
    "pack": pack,
    "dense_rows": dense_rows,
    "dense_lanes": dense_lanes,
    "winograd_weights": winograd_weights,
    "winograd_inputs": winograd_inputs,
    "winograd": winograd,
    "depthwise_planes": depthwise_planes,
    "depthwise_pixels": depthwise_pixels,
    "deform": deform,
}
CODES = {None: LINEAR, "relu": RELU, "relu6": RELU6, "hardswish": HARDSWISH}
FUNCTIONS: dict[Any, Callable] = {
    ("silu", types.float32): activation.silu,
    ("silu", types.float64): activation.silu,
    ("gelu", types.float32): activation.gelu,
    ("gelu", types.float64): activation.gelu_double,
}
REMEMBERED_FUNCTIONS = 64

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
            return compiled_engine(engine, ELEMENTS[dtype], self.vec_bytes // dtype.itemsize).address

    def activation(self, problem: Problem) -> int:
        """Return what the word `activation` is: a code, or the address of a compiled function."""
        chosen, element = problem.activation, ELEMENTS[problem.dtype]
        if not callable(chosen) and chosen in CODES:
            return CODES[chosen]
        with _lock:
            if callable(chosen):
                function = compiled_function(chosen, element)
            else:
                function = compiled_activation(chosen, element, self.vec_bytes // problem.dtype.itemsize)
        self.kept.append(function)
        return function.address


def engines(isa: str) -> NumbaEngines:
    """Return the engines with the vectors of an instruction set.

    That is the width of vectors and the shape of tiles; for instructions numba asks the processor.
    """
    return NumbaEngines(isa, VECTOR_BYTES[isa], *tile_shapes(VECTOR_BYTES[isa]))


@functools.cache
def edition() -> int:
    """Return a number that changes with any of the sources that engines are compiled from."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(program.__file__)]
    return functools.reduce(lambda seen, source: zlib.crc32(source.read_bytes(), seen), sources, 0)


@functools.cache
def compiled_engine(name: str, element: types.Type, lanes: int) -> Any:
    record = Record(program.ENGINES[name], element, lanes, edition())
    return compile_cached(ENGINES[name], types.void(record, types.int64, types.int64, types.int64))


@functools.cache
def compiled_activation(name: str | None, element: types.Type, lanes: int) -> Any:
    return compile_cached(FUNCTIONS[name, element], types.void(Pointer(element, lanes), types.int64))


def compiled_function(function: Callable, element: types.Type) -> Any:
    """Compile an activation of the user's.

    Raises
    ------
    TypeError
        If numba cannot compile it.
    """
    try:
        return remembered_function(function, element)
    except Exception as error:  # whatever it is, it comes from the function; numba's account of it is long
        config.log("DEBUG", "numba on activation %r: %s", function, error)
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"activation {name} cannot be compiled: it must map one {element} to a number, in code that "
            "numba knows, and not raise (FASTCONV_LOG=refusals shows what numba says)"
        ) from None


@functools.lru_cache(REMEMBERED_FUNCTIONS)
def remembered_function(function: Callable, element: types.Type) -> Any:
    signature = types.void(Pointer(element, 1), types.int64)
    return cfunc(signature, error_model="numpy")(activation.over_array(function))


def compile_cached(function: Callable, signature: Any) -> Any:
    """Compile a C callback; a disk cache that cannot be read or written is no reason to fail."""
    try:
        return cfunc(signature, cache=True, error_model="numpy")(function)
    except Exception as error:
        config.log("DEBUG", "numba's disk cache: %s", error)
        return cfunc(signature, error_model="numpy")(function)

"""From Python to functions that can be called by address: what imports numba.

There are twenty-one engines for each element type and vector width; shapes, strides, dilations, groups are data.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from ... import config
from ...lowering import program
from . import activation, objects
from .dcn import dcn
from .dcn_grad import dcn_grad
from .deform import deform
from .deform_grad import deform_grad
from .dense import dense_lanes, dense_rows
from .dense_seven import dense_seven
from .depthwise import depthwise_pixels, depthwise_planes, settle
from .depthwise_grad import depthwise_pixel_grad, depthwise_plane_grad
from .halo import halo_pixels, halo_planes
from .narrow_grad import plane_grad
from .pack import pack
from .simd import Pointer, Record
from .strassen import strassen_weights
from .weight_grad import weight_grad
from .winograd import winograd, winograd_inputs, winograd_weights
from .winograd_grad import winograd_grad, winograd_grad_tiles

__all__ = ["ENGINES", "compiled_activation", "compiled_engine", "compiled_function", "keep_code"]

ELEMENTS: dict[np.dtype, types.Type] = {
    np.dtype(np.float32): types.float32,
    np.dtype(np.float64): types.float64,
}
ENGINES = {
    "halo_planes": halo_planes,
    "halo_pixels": halo_pixels,
    "pack": pack,
    "dense_rows": dense_rows,
    "dense_lanes": dense_lanes,
    "dense_seven": dense_seven,
    "winograd_weights": winograd_weights,
    "winograd_inputs": winograd_inputs,
    "winograd": winograd,
    "depthwise_planes": depthwise_planes,
    "depthwise_pixels": depthwise_pixels,
    "settle": settle,
    "strassen_weights": strassen_weights,
    "deform": deform,
    "dcn": dcn,
    "weight_grad": weight_grad,
    "winograd_grad_tiles": winograd_grad_tiles,
    "winograd_grad": winograd_grad,
    "plane_grad": plane_grad,
    "depthwise_plane_grad": depthwise_plane_grad,
    "depthwise_pixel_grad": depthwise_pixel_grad,
    "deform_grad": deform_grad,
    "dcn_grad": dcn_grad,
}
ACTIVATIONS: dict[Any, Callable] = {
    ("silu", types.float32): activation.silu,
    ("silu", types.float64): activation.silu,
    ("gelu", types.float32): activation.gelu,
    ("gelu", types.float64): activation.gelu_double,
}
REMEMBERED_FUNCTIONS = 64
# In LLVM's text: functions and variables that are elsewhere. Intrinsics are not.
ELSEWHERE = re.compile(r"^declare .*?@(?!llvm\.)([\w.$]+)\(|^@([\w.$]+) = external", re.MULTILINE)


def compiled_engine(name: str, dtype: np.dtype, lanes: int) -> Any:
    """Compile an engine; what is returned has its address, and must be kept."""
    record = Record(program.ENGINES[name], ELEMENTS[dtype], lanes)
    return compiled(ENGINES[name], types.void(record, types.int64, types.int64, types.int64))


def compiled_activation(name: str, dtype: np.dtype, lanes: int) -> Any:
    """Compile one of the library's own activations."""
    element = ELEMENTS[dtype]
    return compiled(ACTIVATIONS[name, element], types.void(Pointer(element, lanes), types.int64))


def compiled_function(function: Callable, dtype: np.dtype) -> Any:
    """Compile an activation of the user's.

    Raises
    ------
    TypeError
        If numba cannot compile it.
    """
    element = ELEMENTS[dtype]
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
    return compiled(activation.over_array(function), types.void(Pointer(element, 1), types.int64))


def compiled(function: Callable, signature: Any) -> Any:
    return cfunc(signature, error_model="numpy")(function)


def keep_code(name: str, function: Any) -> None:
    """Store the code of what was compiled; if numba does not hand it out, later processes compile it again."""
    try:
        needed = [a or b for a, b in ELSEWHERE.findall(function.inspect_llvm())]
        _, _, (code, _) = function._library.serialize_using_object_code()
        objects.store(name, function.native_name, needed, code)
    except Exception as error:
        config.log("DEBUG", "compiled engines on disk: %s: %s", name, error)

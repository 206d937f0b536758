"""DLPack, read: where an array that offers nothing else lies, as the interface that numba takes.

The structures are those of dlpack.h, version 0 (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

import ctypes
import math
from typing import Any

import numpy as np

__all__ = ["Borrowed", "interface_of", "read_capsule"]

KINDS = {0: "i", 1: "u", 2: "f"}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Borrowed:
    """An array that another library owns, for as long as this object lives.

    Attributes
    ----------
    owner : object
        The capsule, which keeps the memory until it is collected.
    __cuda_array_interface__ : dict
    """

    def __init__(self, owner: Any, interface: dict[str, Any]):
        self.owner = owner
        self.__cuda_array_interface__ = interface


def interface_of(value: Any) -> Borrowed:
    """Return an array that has DLPack only, by the CUDA array interface."""
    capsule = value.__dlpack__(stream=1)  # made ready in the order of the legacy stream, which we launch on
    return Borrowed(capsule, read_capsule(capsule))


def read_capsule(capsule: Any) -> dict[str, Any]:
    """Return the CUDA array interface of the tensor in a DLPack capsule."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    kind = tensor.dtype
    if kind.code not in KINDS or kind.lanes != 1:
        raise TypeError(
            f"DLPack type (code {kind.code}, {kind.bits} bits, {kind.lanes} lanes) is no real number"
        )
    dtype = np.dtype(f"{KINDS[kind.code]}{kind.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
    data = (tensor.data or 0) + tensor.byte_offset if math.prod(shape) else 0
    return {"shape": shape, "typestr": dtype.str, "data": (data, False), "strides": strides, "version": 3}

"""Arrays of other libraries as numba's, without a copy; the device they are on, and the stream their caller works on."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numba import cuda

from .dlpack import interface_of
from .launch import simulated

__all__ = [
    "address",
    "borrowed",
    "contiguous",
    "device_of",
    "flat",
    "new",
    "on",
    "overlap",
    "read_only",
    "stream_of",
    "view",
]

# Streams of the interface that are no pointers: the one all share, and the one of each thread.
LEGACY_STREAM, THREAD_STREAM = 1, 2
# Libraries whose streams and memory are asked for by name.
LIBRARIES = frozenset({"torch", "cupy"})


def view(value: Any) -> Any:
    """Return a device array of any library as numba's."""
    if getattr(value, "__cuda_ndarray__", False):
        return value
    if not hasattr(value, "__cuda_array_interface__"):
        value = interface_of(value)
    return cuda.as_cuda_array(value, sync=False)  # launches follow it on its own stream


def borrowed(value: Any) -> bool:
    """Return whether a view of this array is all that keeps its memory: it came by DLPack."""
    own = getattr(value, "__cuda_ndarray__", False) or hasattr(value, "__cuda_array_interface__")
    return value is not None and not own


def flat(array: Any, dtype: np.dtype) -> Any:
    """Return a device array in one dimension; no elements for None."""
    return cuda.device_array(0, dtype) if array is None else array.reshape(-1)


def new(shape: tuple[int, ...], dtype: np.dtype, like: Any) -> Any:
    """Return an array that holds nothing yet, of the library that `like` is from; numba's for libraries not known.

    A library's own memory comes from its pool and goes back there in the order of its stream; numba's has to be
    freed, which waits for the device.
    """
    library = library_of(like)
    if library == "torch":
        return sys.modules["torch"].empty(shape, dtype=like.dtype, device=like.device)
    if library == "cupy":
        with like.device:
            return sys.modules["cupy"].empty(shape, dtype)
    return cuda.device_array(shape, dtype)


def library_of(value: Any) -> str | None:
    """Return the library that an array, or what its class derives from, is from, if we know it."""
    modules = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((name for name in modules if name in LIBRARIES), None)


def stream_of(value: Any) -> Any:
    """Return the stream that the caller of this array works on, as numba's."""
    if simulated():
        return 0
    if library_of(value) == "torch":
        pointer = sys.modules["torch"].cuda.current_stream(value.device).cuda_stream
    else:
        pointer = getattr(value, "__cuda_array_interface__", {}).get("stream")
    if pointer in (None, 0, LEGACY_STREAM):
        return 0
    return cuda.per_thread_default_stream() if pointer == THREAD_STREAM else cuda.external_stream(pointer)


def device_of(value: Any) -> int | None:
    """Return the number of the device that an array is on, if it tells."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is not None:
        return int(ask()[1])
    memory = getattr(value, "gpu_data", None)  # of an array of numba's, which has no DLPack
    return None if memory is None else int(memory.context.device.id)


def on(device: int | None) -> AbstractContextManager:
    """Return a context in which numba allocates and launches on a device; the current one for None."""
    return nullcontext() if device is None else cuda.gpus[device]


def contiguous(array: Any) -> bool:
    """Return whether the elements lie side by side, the last axis fastest."""
    return array.size == 0 or bool(array.is_c_contiguous())


def read_only(value: Any) -> bool:
    """Return whether a device array says that it must not be written to."""
    return bool(getattr(value, "__cuda_array_interface__", {}).get("data", (0, False))[1])


def overlap(a: Any, b: Any) -> bool:
    """Return whether two contiguous arrays share memory."""
    first, second = address(a), address(b)
    return a.size > 0 and b.size > 0 and first < second + b.nbytes and second < first + a.nbytes


def address(array: Any) -> int:
    """Return where the first element of an array of numba's lies."""
    if simulated():
        return int(array.ctypes.data)
    return int(array.__cuda_array_interface__["data"][0] or 0)

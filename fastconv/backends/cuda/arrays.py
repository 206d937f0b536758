"""Arrays of other libraries as numba's, and back, without a copy; the stream their caller works on."""

import sys
from typing import Any

import numpy as np
from numba import cuda

from .dlpack import interface_of
from .launch import simulated

__all__ = ["contiguous", "device_of", "flat", "like", "new", "overlap", "stream_of", "view"]

# Streams of the interface that are no pointers: the one all share, and the one of each thread.
LEGACY_STREAM, THREAD_STREAM = 1, 2


def view(value: Any) -> Any:
    """Return a device array of any library as numba's."""
    if getattr(value, "__cuda_ndarray__", False):
        return value
    if not hasattr(value, "__cuda_array_interface__"):
        value = interface_of(value)
    return cuda.as_cuda_array(value, sync=False)  # launches follow it on its own stream


def flat(array: Any, dtype: np.dtype) -> Any:
    """Return a device array in one dimension; no elements for None."""
    return cuda.device_array(0, dtype) if array is None else array.reshape(-1)


def new(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Return a device array that holds nothing yet."""
    return cuda.device_array(shape, dtype)


def like(value: Any, result: Any) -> Any:
    """Return a result as an array of the library that `value` is from; numba's for libraries not known."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].as_tensor(result, device=value.device)
    if library == "cupy":
        return sys.modules["cupy"].asarray(result)
    return result


def stream_of(value: Any) -> Any:
    """Return the stream that the caller of this array works on, as numba's."""
    if simulated():
        return 0
    if type(value).__module__.partition(".")[0] == "torch":
        pointer = sys.modules["torch"].cuda.current_stream(value.device).cuda_stream
    else:
        pointer = getattr(value, "__cuda_array_interface__", {}).get("stream")
    if pointer in (None, 0, LEGACY_STREAM):
        return 0
    return cuda.per_thread_default_stream() if pointer == THREAD_STREAM else cuda.external_stream(pointer)


def device_of(value: Any) -> int | None:
    """Return the number of the device that an array is on, if it tells."""
    ask = getattr(value, "__dlpack_device__", None)
    return int(ask()[1]) if ask is not None else None


def contiguous(array: Any) -> bool:
    """Return whether the elements lie side by side, the last axis fastest."""
    return array.size == 0 or bool(array.is_c_contiguous())


def overlap(a: Any, b: Any) -> bool:
    """Return whether two contiguous arrays share memory."""
    first, second = _span(a), _span(b)
    return a.size > 0 and b.size > 0 and first[0] < second[1] and second[0] < first[1]


def _span(array: Any) -> tuple[int, int]:
    if simulated():
        begin = array.ctypes.data
    else:
        begin = array.__cuda_array_interface__["data"][0]
    return begin, begin + array.size * array.dtype.itemsize

"""Calls on arrays that are on a GPU already: nothing is copied, and nothing waits.

An array counts as being on a device if it says so by ``__cuda_array_interface__`` (CuPy, PyTorch, numba, JAX) or
by DLPack. All arrays of a call have to be there, C-contiguous, of one type; the result is new, of the input's
library, and ready in the order of the caller's stream.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import config
from .call import OPERANDS, Call, find_call, stand_in
from .errors import BackendError, ShapeError

__all__ = ["any_on_device", "on_device", "run", "run_call", "stand_ins"]

BACKEND = "cuda"
DTYPES = ("float32", "float64")
DLPACK_CUDA = 2


def on_device(value: Any) -> bool:
    """Return whether an array lies on a CUDA device."""
    if value is None or type(value) is np.ndarray:
        return False
    if getattr(value, "__cuda_ndarray__", False) or hasattr(value, "__cuda_array_interface__"):
        return True
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == DLPACK_CUDA


def any_on_device(*values: Any) -> bool:
    """Return whether one of these is on a CUDA device."""
    return any(map(on_device, values))


def run(op: str, operands: Sequence[Any], options: tuple, out: Any, backend: Any) -> Any:
    """Return the result of an operation on arrays of a device, as a new one or `out`."""
    from .backends.cuda import arrays

    request = _backend(backend)
    with arrays.on(_one_device(operands, out)):
        views = _views(operands)
        input, weight, bias, offset, mask = _without_memory(views)
        call = find_call(op, input, weight, bias, offset, mask, options, request)
        return _launch(call, operands, views, out)


def stand_ins(operands: Sequence[Any], backend: Any) -> tuple[list[np.ndarray | None], config.Request]:
    """Return arrays of host memory with the shapes and types of those on a device, and the backend that they run on."""
    from .backends.cuda import arrays

    request = _backend(backend)
    with arrays.on(_one_device(operands, None)):
        return _without_memory(_views(operands)), request


def run_call(call: Call, operands: Sequence[Any], out: Any) -> Any:
    """Launch a call that is chosen and built; weight and bias are None if it has them."""
    from .backends.cuda import arrays

    if call.kernel.backend != BACKEND:
        raise BackendError(
            f"input is on a CUDA device, but this call is prepared for backend {call.kernel.backend!r}"
        )
    device = _one_device(operands, out)
    bound = getattr(call.executable, "device", None)
    if None not in (device, bound) and device != bound:
        raise ValueError(
            f"input is on CUDA device {device}, but the plan keeps its weight on device {bound}, which was current when it was made"
        )
    with arrays.on(device if bound is None else bound):
        return _launch(call, operands, _views(operands), out)


def _launch(call: Call, operands: Sequence[Any], views: Sequence[Any], out: Any) -> Any:
    from .backends.cuda import arrays
    from .backends.cuda.launch import keep

    shape = call.result_shape[1:] if call.unbatched else call.result_shape
    stream = arrays.stream_of(operands[0])
    if out is None:
        result = arrays.new(shape, call.dtype, operands[0])
    else:
        _check_out(out, shape, call, views)
        result = out
    if call.problem.batch:
        flat = [arrays.flat(view, call.dtype) for view in views]
        last = call.problem.layout == "NHWC"
        launch: Any = call.executable.launch  # type: ignore[union-attr]
        launch(arrays.view(result).reshape(-1), *flat, stream=stream, channels_last=last)
        if any(arrays.borrowed(value) for value in (*operands, result)):
            keep(stream, *views)
    return result


def _backend(backend: Any) -> config.Request:
    """Return the backend to run on, or raise BackendError if it is one of host memory."""
    request, source = config.as_requested(backend)
    names = (request,) if isinstance(request, str) else request
    if names is not None and BACKEND not in names:
        raise BackendError(
            f"input is on a CUDA device, where only backend {BACKEND!r} runs, but {source} asks for {request!r}; "
            f"copy the arrays to host memory, or ask for {BACKEND!r}"
        )
    return BACKEND


def _without_memory(views: Sequence[Any]) -> list[np.ndarray | None]:
    return [
        None if view is None else stand_in(name, tuple(view.shape), view.dtype)
        for name, view in zip(OPERANDS, views, strict=True)
    ]


def _one_device(operands: Sequence[Any], out: Any) -> int | None:
    """Return the device that all arrays of a call are on, None if none of them tells, or raise if there are two."""
    from .backends.cuda import arrays

    present = {name: value for name, value in zip(OPERANDS, operands, strict=True) if value is not None}
    at_host = [name for name, value in present.items() if not on_device(value)]
    if at_host:
        there = next(name for name in present if name not in at_host)
        raise TypeError(
            f"{at_host[0]} is in host memory, but {there} is on a CUDA device: bring all arrays to one place"
        )
    if out is not None:
        if not on_device(out):
            raise TypeError(f"out must be on the CUDA device that the input is on, got {type(out).__name__}")
        present["out"] = out
    devices = {name: arrays.device_of(value) for name, value in present.items()}
    known = {name: device for name, device in devices.items() if device is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"all arrays must be on one CUDA device, got {known}")
    return next(iter(known.values()), None)


def _views(operands: Sequence[Any]) -> list[Any]:
    """Return the operands (input, weight, bias, offset, mask) as device arrays, or raise if kernels cannot read them."""
    from .backends.cuda import arrays

    views = [None if value is None else arrays.view(value) for value in operands]
    found = {name: view for name, view in zip(OPERANDS, views, strict=True) if view is not None}
    for name, view in found.items():
        _check_memory(name, view)
    kinds = {name: str(view.dtype) for name, view in found.items()}
    if len(set(kinds.values())) > 1 or next(iter(kinds.values())) not in DTYPES:
        raise TypeError(f"arrays on a device must all be float32 or all float64, got {kinds}")
    return views


def _check_out(out: Any, shape: tuple[int, ...], call: Call, views: Sequence[Any]) -> None:
    """Raise unless `out` is a device array that can take the result."""
    from .backends.cuda import arrays

    view = arrays.view(out)
    if tuple(view.shape) != shape:
        raise ShapeError(f"out must have shape {shape}, got {tuple(view.shape)} ({call.problem})")
    if view.dtype != call.dtype:
        raise TypeError(f"out must have dtype {call.dtype}, got {view.dtype}")
    if arrays.read_only(out):
        raise ValueError(f"out (shape {shape}) is read-only, but the result is to be written to it")
    _check_memory("out", view)
    for name, other in zip(OPERANDS, views, strict=True):
        if other is not None and arrays.overlap(view, other):
            raise ValueError(f"out (shape {shape}) overlaps {name} (shape {tuple(other.shape)}) in memory")


def _check_memory(name: str, view: Any) -> None:
    """Raise unless the elements lie side by side, each where the device can read it."""
    from .backends.cuda import arrays

    if not arrays.contiguous(view):
        raise ValueError(
            f"{name} must be C-contiguous on a device, got shape {tuple(view.shape)} with strides {tuple(view.strides)}"
        )
    if view.size and arrays.address(view) % view.dtype.itemsize:
        raise ValueError(
            f"{name} must be aligned on a device: an element of {view.dtype} has {view.dtype.itemsize} bytes, "
            f"and its address {arrays.address(view):#x} is no multiple of that"
        )

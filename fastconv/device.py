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

__all__ = ["any_on_device", "on_device", "run", "run_call"]

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
    views = _views(operands)
    input, weight, bias, offset, mask = (
        None if view is None else stand_in(name, tuple(view.shape), view.dtype)
        for name, view in zip(OPERANDS, views, strict=True)
    )
    call = find_call(op, input, weight, bias, offset, mask, options, _backend(backend))
    return run_call(call, operands, views, out)


def run_call(call: Call, operands: Sequence[Any], views: Sequence[Any] | None, out: Any) -> Any:
    """Launch a call that is chosen and built; weight and bias are None if it has them."""
    from .backends.cuda import arrays

    if call.kernel.backend != BACKEND:
        raise BackendError(
            f"input is on a CUDA device, but this call is prepared for backend {call.kernel.backend!r}"
        )
    views = _views(operands) if views is None else views
    shape = call.result_shape[1:] if call.unbatched else call.result_shape
    stream = arrays.stream_of(operands[0])
    if out is None:
        result = arrays.new(shape, call.dtype)
    else:
        _check_out(out, shape, call, views)
        result = arrays.view(out)
    if call.problem.batch:
        flat = [arrays.flat(view, call.dtype) for view in views]
        last = call.problem.layout == "NHWC"
        launch: Any = call.executable.launch  # type: ignore[union-attr]
        launch(result.reshape(-1), *flat, stream=stream, channels_last=last)
    return arrays.like(operands[0], result) if out is None else out


def _backend(backend: Any) -> config.Request:
    """Return the backend to run on, or raise BackendError if it is one of host memory."""
    request, source = (
        (config.as_request(backend), "backend=") if backend is not None else config.requested_backend()
    )
    names = (request,) if isinstance(request, str) else request
    if names is not None and BACKEND not in names:
        raise BackendError(
            f"input is on a CUDA device, where only backend {BACKEND!r} runs, but {source} asks for {request!r}; "
            f"copy the arrays to host memory, or ask for {BACKEND!r}"
        )
    return BACKEND


def _views(operands: Sequence[Any]) -> list[Any]:
    """Return the operands (input, weight, bias, offset, mask) as device arrays, or raise if they do not go together."""
    from .backends.cuda import arrays

    present = {name: value for name, value in zip(OPERANDS, operands, strict=True) if value is not None}
    at_host = [name for name, value in present.items() if not on_device(value)]
    if at_host:
        there = next(name for name in present if name not in at_host)
        raise TypeError(
            f"{at_host[0]} is in host memory, but {there} is on a CUDA device: bring all arrays to one place"
        )
    devices = {name: arrays.device_of(value) for name, value in present.items()}
    known = {name: device for name, device in devices.items() if device is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"all arrays must be on one device, got {known}")
    views = [None if value is None else arrays.view(value) for value in operands]
    found = {name: view for name, view in zip(OPERANDS, views, strict=True) if view is not None}
    for name, view in found.items():
        if not arrays.contiguous(view):
            raise ValueError(
                f"{name} must be C-contiguous on a device, got shape {tuple(view.shape)} with strides {tuple(view.strides)}"
            )
    kinds = {name: str(view.dtype) for name, view in found.items()}
    if len(set(kinds.values())) > 1 or next(iter(kinds.values())) not in DTYPES:
        raise TypeError(f"arrays on a device must all be float32 or all float64, got {kinds}")
    return views


def _check_out(out: Any, shape: tuple[int, ...], call: Call, views: Sequence[Any]) -> None:
    """Raise unless `out` is a device array that can take the result."""
    from .backends.cuda import arrays

    if not on_device(out):
        raise TypeError(f"out must be on the CUDA device that the input is on, got {type(out).__name__}")
    view = arrays.view(out)
    if tuple(view.shape) != shape:
        raise ShapeError(f"out must have shape {shape}, got {tuple(view.shape)} ({call.problem})")
    if view.dtype != call.dtype:
        raise TypeError(f"out must have dtype {call.dtype}, got {view.dtype}")
    if not arrays.contiguous(view):
        raise ValueError(f"out must be C-contiguous, got shape {shape} with strides {tuple(view.strides)}")
    for name, other in zip(OPERANDS, views, strict=True):
        if other is not None and arrays.overlap(view, other):
            raise ValueError(f"out (shape {shape}) overlaps {name} (shape {tuple(other.shape)}) in memory")

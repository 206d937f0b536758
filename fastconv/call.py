"""From arrays to an answer: one problem, the kernel chosen for it, and the conversions around the kernel.

A :class:`Call` is made once for a set of shapes, types and options and remembered; what it does each time is
only what depends on the arrays: their memory layout, the overlap of `out`, and the result.
"""

import math
import os
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np

from . import config, registry
from .errors import ShapeError
from .problem import DCN, DEFORM_CONV, DEFORM_TRANSPOSE, Problem, axis_names, dims, parse_op

__all__ = ["OPTIONS", "Call", "find_call", "options_by_name", "prepare", "required"]

OPERANDS = ("input", "weight", "bias", "offset", "mask")
# Those that a call may leave out.
OPTIONAL = frozenset({"weight", "bias", "offset", "mask", "depthwise_bias", "pointwise_bias"})

# The options of every operation and what they are if not given, in the one order in which they are passed around.
# The last ones are those of operations without a weight, and may be left off elsewhere.
OPTIONS = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": None,
    "output_padding": 0,
    "output_size": None,
    "padding_mode": "zeros",
    "layout": "NCHW",
    "activation": None,
    "accuracy": None,
    "kernel_size": None,
    "offset_scale": 1.0,
    "remove_center": False,
}

REMEMBERED_CALLS = 512
# Of tables that the remembered calls hold: many sounds of different lengths must not fill the memory.
REMEMBERED_BYTES = 1 << 26

ndarray = np.ndarray
Array = Any  # an array or whatever NumPy makes one of

_calls: dict[Hashable, "Call"] = {}
_lock = threading.Lock()


def _unlock() -> None:
    """Replace the lock in a forked child: the thread that held it may not exist there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def find_call(
    op: str,
    input: Array,
    weight: Array,
    bias: Array,
    offset: Array,
    mask: Array,
    options: tuple,
    backend: Any,
    fresh: bool = False,
) -> "Call":
    """Return the remembered call for these shapes, types, options and settings, or make it.

    `fresh` tells that a new array is wanted for the result, so that one that cannot exist is refused at once.
    """
    request, source = config.as_requested(backend)
    kinds: Any = tuple(map(type, options))  # 1.0 and 1 are equal keys, but only one of them is a stride
    if tuple in kinds:
        kinds = repr(options)
    try:
        key = (
            op, input.shape, input.dtype, options, kinds, request, config.max_isa(), config.requested_accuracy(),
            registry.generation, None if weight is None else (weight.shape, weight.dtype),
            None if bias is None else (bias.shape, bias.dtype),
            None if offset is None else (offset.shape, offset.dtype),
            None if mask is None else (mask.shape, mask.dtype),
        )  # fmt: skip
        call = _calls.get(key)
    except TypeError:  # an option is a list or an array, and no key
        plain = tuple(map(_as_tuples, options))
        if _can_be_key(plain):
            return find_call(op, input, weight, bias, offset, mask, plain, backend, fresh)
        return prepare(op, input, weight, bias, offset, mask, options, request, source, fresh=fresh)
    if call is None:
        call = prepare(op, input, weight, bias, offset, mask, options, request, source, fresh=fresh)
        remember(_calls, key, call)
    return call


def _as_tuples(option: Any) -> Any:
    """Return an option with tuples in place of lists and arrays."""
    if isinstance(option, ndarray):
        option = option.tolist()
    return tuple(map(_as_tuples, option)) if isinstance(option, (list, tuple)) else option


def _can_be_key(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def remember(calls: dict, key: Hashable, call: Any) -> None:
    """Keep a call for its key; the oldest make way for it."""
    with _lock:
        calls[key] = call
        held = sum(other.table_bytes for other in calls.values())
        while len(calls) > REMEMBERED_CALLS or (held > REMEMBERED_BYTES and len(calls) > 1):
            held -= calls.pop(next(iter(calls))).table_bytes


def prepare(
    op: str,
    input: Array,
    weight: Array,
    bias: Array,
    offset: Array,
    mask: Array,
    options: tuple,
    request: config.Request,
    source: str,
    *,
    prepared: bool = False,
    dtype: Any = None,
    fresh: bool = False,
) -> "Call":
    """Validate the arguments, choose a kernel and build it. Only shapes and types of the arrays are looked at."""
    config.check_environment()
    operands = {"input": input, "weight": weight, "bias": bias, "offset": offset, "mask": mask}
    result_dtype = result_type(
        {name: array.dtype for name, array in operands.items() if array is not None}, dtype
    )
    named = options_by_name(options)
    ndim = parse_op(op)[1]
    for name in required(op):
        if operands[name] is None:
            raise TypeError(f"{name} must be an array, got None")
    unbatched = input.ndim == ndim + 1
    problem = create_problem(op, operands, unbatched, result_dtype, named, prepared)
    if fresh:  # before a kernel is built, whose tables may grow with the output
        check_memory("the output", problem.output_shape, problem.dtype)
    return Call(problem, registry.choose(problem, request), source, unbatched, result_dtype)


def options_by_name(options: tuple) -> dict[str, Any]:
    """Return the options as they are called; those left off at the end are not in it."""
    return dict(zip(OPTIONS, options, strict=False))


def required(op: str) -> tuple[str, ...]:
    """Return the operands without which there is no such operation, other than the input."""
    if op in DCN:
        return "offset", "mask"
    return ("weight", "offset") if op in DEFORM_CONV + DEFORM_TRANSPOSE else ("weight",)


def create_problem(
    op: str, operands: dict[str, Any], unbatched: bool, result_dtype: np.dtype, named: dict, prepared: bool
) -> Problem:
    """Return the problem that arrays and options by name describe."""
    ndim = parse_op(op)[1]
    channels_last = named["layout"] == "NHWC"
    if named["accuracy"] is None:
        named = {**named, "accuracy": config.requested_accuracy()}
    weight, bias = operands.get("weight"), operands.get("bias")
    shapes = {
        f"{name}_shape": _channels_first(name, operands[name], unbatched, ndim, channels_last)
        for name in ("offset", "mask")
        if operands.get(name) is not None
    }
    return Problem.create(
        op,
        _batched_shape("input", operands["input"], unbatched, ndim),
        None if weight is None else weight.shape,
        dtype=np.float64 if result_dtype == np.float64 else np.float32,
        bias_shape=None if bias is None else bias.shape,
        prepared=prepared,
        **shapes,
        **named,
    )


def result_type(dtypes: dict[str, np.dtype], dtype: Any = None) -> np.dtype:
    """Return the type asked for, or by NumPy's promotion rules that of the result: a float also for integers.

    Raises
    ------
    TypeError
        If an argument is not made of real numbers, or there is no kernel for the promoted type.
    """
    for name, given in dtypes.items():
        if given.kind not in "fiub" and given.name != "bfloat16":
            raise TypeError(f"{name} must hold real numbers, got dtype {given}")
    listed = ", ".join(f"{name} {given}" for name, given in dtypes.items())
    try:
        result = np.dtype(dtype) if dtype is not None else np.result_type(*dtypes.values())
        if dtype is None and result.kind in "iub":
            result = np.result_type(result, np.float32)
    except TypeError:
        wrong = (
            f"dtype {dtype!r} is not a type"
            if dtype is not None
            else "no type holds all arguments by NumPy's promotion rules"
        )
        raise TypeError(f"{wrong} ({listed})") from None
    if result.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(
            f"the result would be {result}, but must be float16, bfloat16, float32 or float64 ({listed})"
        )
    return result.newbyteorder("=")


def _batched_shape(name: str, array: ndarray, unbatched: bool, ndim: int) -> tuple[int, ...]:
    return (1, *array.shape) if unbatched else array.shape


def _channels_first(
    name: str, array: ndarray, unbatched: bool, ndim: int, channels_last: bool
) -> tuple[int, ...]:
    shape = _batched_shape(name, array, unbatched, ndim)
    if len(shape) != ndim + 2:
        letters = [f"O{axis}" for axis in axis_names(ndim)]
        letters = [*letters, "channels"] if channels_last else ["channels", *letters]
        wanted = dims(*letters) if unbatched else dims("N", *letters)
        raise ShapeError(
            f"{name} must have {ndim + 2 - unbatched} dimensions {wanted} like the input, got shape {array.shape}"
        )
    return (shape[0], shape[-1], *shape[1:-1]) if channels_last else shape


class Call:
    """A problem bound to a kernel and to the form its arrays come in."""

    operands: tuple[str, ...] = OPERANDS
    constant: tuple[str, ...] = ("weight", "bias")  # what a plan keeps

    __slots__ = (
        "affordable",
        "as_is",
        "dtype",
        "executable",
        "kernel",
        "problem",
        "result_dtype",
        "result_shape",
        "source",
        "unbatched",
    )

    def __init__(
        self, problem: Problem, kernel: registry.Kernel, source: str, unbatched: bool, result_dtype: np.dtype
    ):
        self.problem = problem
        self.kernel = kernel
        self.source = source
        self.unbatched = unbatched
        self.dtype = problem.dtype
        self.result_dtype = result_dtype
        self.result_shape = problem.result_shape
        self.as_is = not unbatched and result_dtype == problem.dtype  # the kernel's output is the result
        self.affordable = False  # whether a new result is known to fit in memory
        # An empty batch has nothing to run, so nothing is built for it.
        self.executable = kernel.build(problem) if problem.batch else _nothing

    def __call__(
        self,
        input: ndarray,
        weight: Array,
        bias: Array,
        offset: Array,
        mask: Array,
        out: ndarray | None,
        num_threads: int | None,
    ) -> ndarray:
        threads = config.thread_count(num_threads)
        if out is None:
            result = self.new_result()
        else:
            result = self.check_out(out, (input, weight, bias, offset, mask))
        dtype = self.dtype
        input = as_operand(input, dtype)
        weight = None if weight is None else as_operand(weight, dtype)
        bias = None if bias is None else as_operand(bias, dtype)
        if offset is not None:
            offset, mask = self._points(offset), None if mask is None else self._points(mask)
        if self.unbatched:
            input = input[None]
        self.executable(result, input, weight, bias, offset, mask, threads)
        return result if result is out or (out is None and self.as_is) else self.finish(result, out)

    @property
    def table_bytes(self) -> int:
        """Estimate of what the kernel's tables take: two words for each position along each axis."""
        return 16 * sum(
            max(sizes) for sizes in zip(self.problem.input_size, self.problem.output_size, strict=True)
        )

    def new_result(self) -> ndarray:
        """Return a new array for the kernel to fill: batched, in the type computed in."""
        if not self.affordable:
            check_memory("the output", self.result_shape, self.dtype)
            self.affordable = True
        return np.empty(self.result_shape, self.dtype)

    def check_out(self, out: ndarray, operands: tuple) -> ndarray:
        """Return the array the kernel shall fill for `out`: itself if it can be written to directly."""
        usual = self.as_is and type(out) is ndarray and out.dtype == self.dtype and out.flags.carray
        if not usual or out.shape != self.result_shape:
            self._check_form(out)
        for array in operands:
            if array is not None and overlaps(out, array):
                name = self.operands[[array is operand for operand in operands].index(True)]
                raise ValueError(f"out (shape {out.shape}) overlaps {name} (shape {array.shape}) in memory")
        if usual:
            return out
        if out.flags.carray and out.dtype == self.dtype:
            return out[None] if self.unbatched else out
        if overlaps_itself(out):
            raise ValueError(f"out (shape {out.shape}, strides {out.strides}) has elements that share memory")
        return self.new_result()

    def _check_form(self, out: ndarray) -> None:
        """Raise unless `out` is an array of the result's shape and type that can be written to."""
        if not isinstance(out, ndarray) or isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
        shape = self.result_shape[1:] if self.unbatched else self.result_shape
        if out.shape != shape:
            raise ShapeError(f"out must have shape {shape}, got {out.shape} ({self.problem})")
        if out.dtype != self.result_dtype and out.dtype.newbyteorder("=") != self.result_dtype:
            raise TypeError(f"out must have dtype {self.result_dtype}, got {out.dtype}")
        if not out.flags.writeable:
            raise ValueError(f"out (shape {out.shape}) is read-only, but the result is to be written to it")

    def finish(self, result: ndarray, out: ndarray | None) -> ndarray:
        """Return the filled result in the user's form, copied to `out` if the kernel could not write there."""
        result = result[0] if self.unbatched else result
        if out is None:
            return result if self.result_dtype == self.dtype else result.astype(self.result_dtype)
        if result.dtype != out.dtype or not out.flags.carray:
            out[...] = result
        return out

    def _points(self, array: ndarray) -> ndarray:
        """Return an offset or mask as the kernel takes it."""
        if self.unbatched:
            array = array[None]
        as_given = self.problem.layout == "NCHW" or self.kernel.points_as_given
        return as_operand(array if as_given else np.moveaxis(array, -1, 1), self.dtype)


def as_operand(array: ndarray, dtype: np.dtype) -> ndarray:
    """Return the array as kernels take it: C-contiguous, aligned, of `dtype`; a copy only where it must be."""
    flags = array.flags
    if array.dtype == dtype and (flags.carray or (flags.c_contiguous and flags.aligned)):
        return array
    check_memory("a contiguous copy of an argument", array.shape, dtype)
    return np.array(array, dtype=dtype, order="C")


def check_memory(what: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise MemoryError if an array of this shape cannot exist on this machine."""
    needed = math.prod(shape) * dtype.itemsize
    if needed > MEMORY_BYTES:
        raise MemoryError(
            f"{what} {shape} of {dtype} needs {needed / 2**30:.3g} GiB; this machine has {MEMORY_BYTES / 2**30:.3g}"
        )


def as_arrays(**operands: Any) -> list[ndarray | None]:
    """Return every operand as a NumPy array; TypeError names the one that cannot be."""
    return [
        array if type(array) is ndarray or (array is None and name in OPTIONAL) else _as_array(name, array)
        for name, array in operands.items()
    ]


def _as_array(name: str, value: Any) -> ndarray:
    if value is None:
        raise TypeError(f"{name} must be an array, got None")
    if np.ma.is_masked(value):
        raise TypeError(
            f"{name} has masked values, which would count as what lies under the mask; fill them first"
        )
    if hasattr(value, "__cuda_array_interface__") or getattr(value, "__cuda_ndarray__", False):
        raise TypeError(f"{name} is on a CUDA device, and this function works on arrays of host memory")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, of a tensor that records gradients
        raise TypeError(f"{name} cannot be made an array: {error}") from None


def stand_in(name: str, shape: tuple[int, ...], dtype: np.dtype) -> ndarray:
    """Return an array of this shape that holds no memory, for where only the shape and type are looked at."""
    if min(shape, default=0) < 0:
        raise ShapeError(f"{name} must not be negative, got {shape}")
    try:
        return np.broadcast_to(np.zeros((), dtype), shape)
    except ValueError:
        raise MemoryError(f"{name} {shape} is larger than an array can be") from None


def is_shape(value: Any) -> bool:
    """Return whether a value is a shape: a tuple of integers."""
    return isinstance(value, tuple) and all(isinstance(size, (int, np.integer)) for size in value)


def array_or_stand_in(name: str, value: Any) -> Any:
    """Return a value as it is, or if it is a shape, an array of it that holds no memory, float32."""
    return stand_in(name, tuple(map(int, value)), np.dtype(np.float32)) if is_shape(value) else value


def overlaps(a: ndarray, b: ndarray) -> bool:
    """Return whether two arrays share memory, or may where finding out would take long."""
    if a is not b and a.flags.owndata and b.flags.owndata:  # the usual case, at a fifth of the cost
        return False
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # its stub knows 0 and -1 only
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: ndarray) -> bool:
    """Return whether two elements of an array share memory; True also for layouts no slicing or transposing makes."""
    reach = array.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True) if size > 1
    ):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def _nothing(output: ndarray, *_: Any) -> None:
    """Run an empty batch: a result without images is empty, and a sum over them is zero."""
    output.fill(0)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not known on this system: let NumPy try
        return 2**62


MEMORY_BYTES = _memory_bytes()

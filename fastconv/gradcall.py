"""From arrays to gradients: the calls that one set of gradients is made of, remembered like any other call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np

from . import config, registry
from .adjoint import Adjoint, adjoint_of, adjoint_of_deformable, fold
from .call import (
    Call,
    as_operand,
    check_memory,
    create_problem,
    options_by_name,
    overlaps,
    remember,
    required,
    result_type,
)
from .center import by_group, check_scale, expanded
from .config import Request
from .errors import ShapeError
from .problem import DCN, DEFORM_CONV, DEFORM_TRANSPOSE, Ints, Problem, parse_op

__all__ = [
    "ConvGrads",
    "DcnGrads",
    "DeformGrads",
    "GradCall",
    "as_wrt",
    "fields_of",
    "find_grad_call",
    "prepare_grad",
]


class ConvGrads(NamedTuple):
    """Gradients of a convolution or transposed convolution; None for those not asked for.

    Attributes
    ----------
    input, weight : numpy.ndarray or None
        Of the shapes of the operands.
    bias : numpy.ndarray, shape (O,), or None
    """

    input: np.ndarray | None
    weight: np.ndarray | None
    bias: np.ndarray | None


class DeformGrads(NamedTuple):
    """Gradients of a deformable convolution or its transpose; None for those not asked for.

    Attributes
    ----------
    input, offset, weight, mask : numpy.ndarray or None
        Of the shapes of the operands.
    bias : numpy.ndarray, shape (O,), or None
    """

    input: np.ndarray | None
    offset: np.ndarray | None
    weight: np.ndarray | None
    bias: np.ndarray | None
    mask: np.ndarray | None


class DcnGrads(NamedTuple):
    """Gradients of DCNv3 or DCNv4; None for those not asked for.

    Attributes
    ----------
    input, offset, mask, center_feature_scale : numpy.ndarray or None
        Of the shapes of the operands.
    """

    input: np.ndarray | None
    offset: np.ndarray | None
    mask: np.ndarray | None
    center_feature_scale: np.ndarray | None


def fields_of(op: str) -> tuple[str, ...]:
    """Return the names of the gradients that an operation has."""
    if op in DCN:
        return DcnGrads._fields
    return (DeformGrads if op in DEFORM_CONV + DEFORM_TRANSPOSE else ConvGrads)._fields


NOWHERE = ConvGrads(None, None, None)
# Options that are keys themselves; that of others is their text, which takes longer to make.
PLAIN = {int, str, type(None)}

_calls: dict[Hashable, "GradCall"] = {}


def find_grad_call(
    op: str, operands: dict[str, Any], options: tuple, wrt: tuple[str, ...], backend: Any
) -> "GradCall":
    """Return the remembered call for these shapes, types, options and settings, or make it."""
    request, source = config.as_requested(backend)
    forms = tuple((name, array.shape, array.dtype) for name, array in operands.items() if array is not None)
    kinds = tuple(map(type, options))  # 1.0 and 1 are equal keys, but only one of them is a stride
    key = (
        op,
        forms,
        (options, kinds) if PLAIN.issuperset(kinds) else repr(options),
        wrt,
        request,
        config.max_isa(),
        config.requested_accuracy(),
        registry.generation,
    )
    call = _calls.get(key)
    if call is None:
        call = prepare_grad(op, operands, options, wrt, request, source)
        remember(_calls, key, call)
    return call


def prepare_grad(
    op: str,
    operands: dict[str, Any],
    options: tuple,
    wrt: tuple[str, ...],
    request: Request,
    source: str,
    *,
    prepared: bool = False,
    dtype: Any = None,
) -> "GradCall":
    """Validate the arguments, choose kernels and build them. Only shapes and types of the arrays are looked at."""
    config.check_environment()
    kind = result_type({name: array.dtype for name, array in operands.items() if array is not None}, dtype)
    unbatched = operands["input"].ndim == parse_op(op)[1] + 1
    named = options_by_name(options)
    for name in required(op):
        if operands.get(name) is None:
            raise TypeError(f"{name} must be an array, got None")
    problem = create_problem(op, operands, unbatched, kind, named, prepared)
    wanted = problem.output_shape[1:] if unbatched else problem.output_shape
    given = operands["grad_output"].shape
    if given != wanted:
        raise ShapeError(f"grad_output must have the shape of the output, {wanted}, got {given} ({problem})")
    made: type[GradCall] = {
        "deform_conv": DeformGradCall,
        "deform_conv_transpose": DeformTransposeGradCall,
        "dcnv3": DcnGradCall,
        "dcnv4": DcnGradCall,
    }.get(problem.variant, ConvGradCall)
    return made(problem, wrt, request, source, unbatched, kind)


def as_wrt(value: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return which gradients are wanted, in the order of `names`; all if `value` is None."""
    if value is None:
        return names
    if not isinstance(value, Iterable):
        raise TypeError(f"wrt must be a name or several of {', '.join(map(repr, names))}, got {value!r}")
    wanted = (value,) if isinstance(value, str) else tuple(value)
    for name in wanted:
        if name not in names:
            raise ValueError(f"wrt must hold some of {', '.join(map(repr, names))}, got {value!r}")
    return tuple(name for name in names if name in wanted)


class GradCall(ABC):
    """What gradients of all kinds have in common: conversions around the kernels, and the bias.

    Attributes
    ----------
    problem : Problem
        Of the forward operation.
    parts : dict of str to Call
        The kernels' calls, by what they compute.
    """

    parts: dict[str, Any]
    __call__: Callable[..., Any]

    def __init__(
        self,
        problem: Problem,
        wrt: tuple[str, ...],
        request: Request,
        source: str,
        unbatched: bool,
        result_dtype: np.dtype,
    ):
        self.problem = problem
        self.wrt = frozenset(wrt)
        self.source = source
        self.unbatched = unbatched
        self.dtype = problem.dtype
        self.result_dtype = result_dtype
        self.prepare(request)

    @abstractmethod
    def prepare(self, request: Request) -> None:
        """Choose and build the kernels."""

    @property
    def table_bytes(self) -> int:
        """Estimate of what the kernels' tables take."""
        return sum(part.table_bytes for part in self.parts.values())

    def image(self, array: np.ndarray) -> np.ndarray:
        """Return a batched image as the kernels take it."""
        return as_operand(array[None] if self.unbatched else array, self.dtype)

    def bias(self, grad_output: np.ndarray) -> np.ndarray:
        """Return the sum over everything but channels, one axis at a time: partial sums stay small."""
        channel = 1 if self.problem.layout == "NCHW" else grad_output.ndim - 1
        for axis in reversed(range(grad_output.ndim)):
            if axis != channel:
                grad_output = grad_output.sum(axis=axis)
        return grad_output

    def finish(self, name: str, grad: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Return a gradient in the user's form, or fill `out` with it."""
        if self.unbatched and name not in ("weight", "bias"):
            grad = grad[0]
        if out is None:
            return np.ascontiguousarray(grad, self.result_dtype)
        if grad is not out and not (out.flags.c_contiguous and out.ctypes.data == grad.ctypes.data):
            out[...] = grad
        return out

    def check_out(self, name: str, out: Any, shape: tuple[int, ...], operands: tuple) -> None:
        """Raise unless `out` can take the gradient of `name`."""
        if self.unbatched and name in ("input", "offset", "mask"):
            shape = shape[1:]
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out.{name} must be a NumPy array, got {type(out).__name__}")
        if out.shape != shape:
            raise ShapeError(f"out.{name} must have shape {shape}, got {out.shape} ({self.problem})")
        if out.dtype.newbyteorder("=") != self.result_dtype:
            raise TypeError(f"out.{name} must have dtype {self.result_dtype}, got {out.dtype}")
        if not out.flags.writeable:
            raise ValueError(
                f"out.{name} (shape {out.shape}) is read-only, but the gradient is to be written to it"
            )
        if any(overlaps(out, array) for array in operands if array is not None):
            raise ValueError(f"out.{name} (shape {out.shape}) overlaps an argument in memory")


class ConvGradCall(GradCall):
    """The gradients of a convolution or transposed convolution: two calls of linear kernels, and a sum."""

    def prepare(self, request: Request) -> None:
        self.adjoint = adjoint_of(self.problem)
        self.parts = {}
        if self.adjoint is None:
            return
        self.parts = {
            name: Call(problem, registry.choose(problem, request), self.source, False, self.dtype)
            for name, problem in (("input", self.adjoint.input), ("weight", self.adjoint.weight))
            if name in self.wrt
        }

    def __call__(
        self,
        grad_output: np.ndarray,
        input: np.ndarray | None,
        weight: np.ndarray | None,
        out: ConvGrads | None = None,
        num_threads: int | None = None,
    ) -> ConvGrads:
        if out is None:
            out = NOWHERE
        else:
            shapes = (self.problem.input_shape, self.problem.weight_shape, (self.problem.out_channels,))
            for name, array, shape in zip(out._fields, out, shapes, strict=True):
                if array is not None:
                    self.check_out(name, array, shape, (grad_output, input, weight))
        whole = self.image(grad_output)
        found: dict[str, np.ndarray | None] = dict.fromkeys(ConvGrads._fields)
        if self.adjoint is None:
            for name in self.wrt - {"bias"}:
                found[name] = self.finish(
                    name, np.zeros(getattr(self.problem, f"{name}_shape"), self.dtype), getattr(out, name)
                )
        else:
            self._linear(found, self.adjoint, whole, input, weight, out, num_threads)
        if "bias" in self.wrt:
            found["bias"] = self.finish("bias", self.bias(whole), out.bias)
        return ConvGrads(**found)

    def _linear(
        self,
        found: dict[str, np.ndarray | None],
        adjoint: Adjoint,
        whole: np.ndarray,
        input: np.ndarray | None,
        weight: np.ndarray | None,
        out: ConvGrads,
        num_threads: int | None,
    ) -> None:
        gy = self._cut(whole, adjoint.kept)
        if "input" in self.wrt:
            target = None if adjoint.folded else self._target(out.input, self.unbatched)
            grad = self.parts["input"](gy, weight, None, None, None, target, num_threads)
            grad = fold(self.problem, grad) if adjoint.folded else grad
            found["input"] = self.finish("input", grad, out.input)
        if "weight" in self.wrt:
            assert input is not None
            pair = (self.image(input), gy)
            pair = pair[::-1] if self.problem.variant == "conv_transpose" else pair
            grad = self.parts["weight"](*pair, None, None, None, self._target(out.weight, False), num_threads)
            found["weight"] = self.finish("weight", grad, out.weight)

    def _cut(self, grad_output: np.ndarray, kept: Ints) -> np.ndarray:
        if kept == self.problem.output_size:
            return grad_output
        spatial = tuple(slice(size) for size in kept)
        last = self.problem.layout == "NHWC"
        index = (slice(None), *spatial) if last else (slice(None), slice(None), *spatial)
        return as_operand(grad_output[index], self.dtype)

    def _target(self, out: np.ndarray | None, unbatched: bool) -> np.ndarray | None:
        """Return `out` as a kernel can fill it, if it can."""
        if out is None or out.dtype != self.dtype or not out.flags.carray:
            return None
        return out[None] if unbatched else out


class SampleGradCall(GradCall):
    """Gradients that one kernel computes together, because they share its samples."""

    def sampled(self, problem: Problem, request: Request, names: tuple[str, ...]) -> None:
        """Choose the kernel that computes those of `names` that are wanted."""
        self.names = tuple(name for name in names if name in self.wrt and (name != "mask" or problem.mask))
        self.parts = {}
        if self.names:
            op = f"{problem.op}_grad"
            self.parts["samples"] = SampleCall.create(problem, op, request, self.source)

    def run_samples(
        self,
        images: tuple[np.ndarray, np.ndarray],
        weight: np.ndarray | None,
        offset: np.ndarray,
        mask: np.ndarray | None,
        num_threads: int | None,
    ) -> dict[str, np.ndarray]:
        """Return the gradients, batched and in the layout of the call; `images` as the kernel takes them."""
        if not self.names:
            return {}
        part = self.parts["samples"]
        p = part.problem
        shapes = {
            "input": p.input_shape,
            "offset": p.offset_shape,
            "weight": p.weight_shape,
            "mask": p.mask_shape,
        }
        grads = {}
        for name in self.names:
            check_memory(f"the gradient of {name}", shapes[name], self.dtype)
            grads[name] = np.empty(shapes[name], self.dtype)
        operands = (
            *images,
            None if weight is None else as_operand(weight, self.dtype),
            self.channels_first(offset),
            None if mask is None else self.channels_first(mask),
        )
        part(grads, *operands, config.thread_count(num_threads))
        last = [name for name in ("offset", "mask") if name in grads and p.layout == "NHWC"]
        return grads | {name: np.moveaxis(grads[name], 1, -1) for name in last}

    def channels_first(self, array: np.ndarray) -> np.ndarray:
        array = array[None] if self.unbatched else array
        return as_operand(array if self.problem.layout == "NCHW" else np.moveaxis(array, -1, 1), self.dtype)


class DeformGradCall(SampleGradCall):
    """The gradients of a deformable convolution: one kernel for all that share its samples, and a sum."""

    def prepare(self, request: Request) -> None:
        self.sampled(self.problem, request, ("input", "offset", "weight", "mask"))

    def __call__(
        self,
        grad_output: np.ndarray,
        input: np.ndarray,
        offset: np.ndarray,
        weight: np.ndarray,
        mask: np.ndarray | None,
        num_threads: int | None = None,
    ) -> DeformGrads:
        gy = self.image(grad_output)
        found: dict[str, np.ndarray | None] = dict.fromkeys(DeformGrads._fields)
        found |= self.run_samples((gy, self.image(input)), weight, offset, mask, num_threads)
        if "bias" in self.wrt:
            found["bias"] = self.bias(gy)
        return DeformGrads(**{n: None if g is None else self.finish(n, g, None) for n, g in found.items()})


class DeformTransposeGradCall(SampleGradCall):
    """Those of a transposed deformable convolution.

    Its function is linear in the input x, and so <gy, y> = <d, x> with d the deformable convolution of gy: the
    gradient in x is d itself, and the others are those of d, where x is the gradient of its output.
    """

    def prepare(self, request: Request) -> None:
        forward = adjoint_of_deformable(self.problem)
        self.sampled(forward, request, ("offset", "weight", "mask"))
        if "input" in self.wrt:
            kernel = registry.choose(forward, request)
            self.parts["input"] = Call(forward, kernel, self.source, False, self.dtype)

    def __call__(
        self,
        grad_output: np.ndarray,
        input: np.ndarray,
        offset: np.ndarray,
        weight: np.ndarray,
        mask: np.ndarray | None,
        num_threads: int | None = None,
    ) -> DeformGrads:
        gy = self.image(grad_output)
        found: dict[str, np.ndarray | None] = dict.fromkeys(DeformGrads._fields)
        found |= self.run_samples((self.image(input), gy), weight, offset, mask, num_threads)
        if "input" in self.wrt:
            points = (
                array if array is None or not self.unbatched else array[None] for array in (offset, mask)
            )
            found["input"] = self.parts["input"](gy, weight, None, *points, None, num_threads)
        if "bias" in self.wrt:
            found["bias"] = self.bias(gy)
        return DeformGrads(**{n: None if g is None else self.finish(n, g, None) for n, g in found.items()})


class DcnGradCall(SampleGradCall):
    """Those of DCNv3 and DCNv4, of which a share of the input's own pixel may be part: (1 - f) y + f x."""

    def prepare(self, request: Request) -> None:
        self.sampled(self.problem, request, ("input", "offset", "mask"))
        if "center_feature_scale" in self.wrt:
            kernel = registry.choose(self.problem, request)
            self.parts["samples' sum"] = Call(self.problem, kernel, self.source, self.unbatched, self.dtype)

    def __call__(
        self,
        grad_output: np.ndarray,
        input: np.ndarray,
        offset: np.ndarray,
        mask: np.ndarray,
        scale: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> DcnGrads:
        gy, x = self.image(grad_output), self.image(input)
        found: dict[str, np.ndarray | None] = dict.fromkeys(DcnGrads._fields)
        if scale is None:
            found |= self.run_samples((gy, x), None, offset, mask, num_threads)
        else:
            check_scale(self, scale)
            share = expanded(self, scale[None] if self.unbatched else scale)
            direct = (by_group(self, gy) * share).reshape(gy.shape)
            found |= self.run_samples((gy - direct, x), None, offset, mask, num_threads)
            if found["input"] is not None:
                found["input"] += direct
            if "center_feature_scale" in self.wrt:
                y = self.parts["samples' sum"](input, None, None, offset, mask, None, num_threads)
                apart = by_group(self, gy) * by_group(self, x - y.reshape(x.shape))
                found["center_feature_scale"] = apart.sum(axis=-1 if self.problem.layout == "NHWC" else 2)
        return DcnGrads(**{n: None if g is None else self.finish(n, g, None) for n, g in found.items()})


class SampleCall(NamedTuple):
    """The kernel of a deformable convolution's gradients, with what :func:`fastconv.explain` asks of a call."""

    problem: Problem
    kernel: registry.Kernel
    source: str
    executable: Any
    dtype: np.dtype
    result_dtype: np.dtype

    @classmethod
    def create(cls, problem: Problem, op: str, request: Request, source: str) -> "SampleCall":
        from dataclasses import replace

        problem = replace(problem, op=op)
        kernel = registry.choose(problem, request)
        executable = kernel.build(problem) if problem.batch else _zero
        return cls(problem, kernel, source, executable, problem.dtype, problem.dtype)

    @property
    def table_bytes(self) -> int:
        return 16 * math.prod(self.problem.output_size)

    def __call__(self, grads: dict[str, np.ndarray], *operands: Any) -> None:
        self.executable(grads, *operands)


def _zero(grads: dict[str, np.ndarray], *_: Any) -> None:
    """Run an empty batch."""
    for grad in grads.values():
        grad.fill(0)

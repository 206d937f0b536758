"""The operators behind convolutions and transposed convolutions: the map itself and its two gradients.

Each is linear in each of its first two arguments, and the derivative of each is again one of the three (the table is
in :mod:`fastconv.grad`), so derivatives of any order come from these three formulas.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..call import find_call
from ..gradcall import find_grad_call
from ..problem import Problem
from .arrays import as_array, as_tensor, channels_last, empty, placeholder, thread_count
from .operation import Operation, unobserved

__all__ = ["convolution", "input_grad", "weight_grad"]

# In the order of torch.convolution; `padding` has (before, after) of each axis, one after the other.
OPTIONS = (
    "int[] stride, int[] padding, int[] dilation, bool transposed, SymInt[] output_padding, int groups, "
    "str padding_mode"
)


def _describe(ndim: int, options: Sequence[Any]) -> tuple[str, tuple]:
    """Return the name of the function, and the options in the order of ``call.OPTIONS`` but for layout and later."""
    try:
        return _described(ndim, *options)
    except TypeError:  # the dispatcher makes lists of tuples
        return _described(ndim, *(tuple(o) if isinstance(o, list) else o for o in options))


@lru_cache(maxsize=512)
def _described(
    ndim: int,
    stride: tuple,
    padding: tuple,
    dilation: tuple,
    transposed: bool,
    output_padding: tuple,
    groups: int,
    padding_mode: str,
) -> tuple[str, tuple]:
    pairs: Any = tuple(zip(padding[::2], padding[1::2], strict=True))
    if len(set(padding)) == 1:
        pairs = padding[0]
    # One number for all axes where it will do: calls with plain numbers are found in less time.
    short = tuple(o[0] if len(set(o)) == 1 else o for o in (stride, dilation, output_padding))
    op = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
    return op, (short[0], pairs, short[1], groups, short[2], None, padding_mode)


def _layout(last: bool) -> tuple:
    """Return the options from the layout on."""
    return ("NHWC" if last else "NCHW", None, None)


def _convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any
) -> torch.Tensor:
    last = channels_last(input)
    op, ordered = _describe(weight.dim() - 2, options)
    x, w = as_array(input, last), as_array(weight, False)
    b = None if bias is None else as_array(bias, False)
    call = find_call(op, x, w, b, None, None, ordered + _layout(last), None, True)
    return as_tensor(call(x, w, b, None, None, None, thread_count()), last, input.dtype)


def _convolve_fake(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any
) -> torch.Tensor:
    shape = _output_shape(input.shape, weight.shape, None if bias is None else bias.shape, options)
    return empty(input, shape, channels_last(input))


def _output_shape(
    input: Sequence[int], weight: Sequence[int], bias: Sequence[int] | None, options: Sequence[Any]
) -> Sequence[int]:
    stride, padding, dilation, transposed, output_padding, groups, padding_mode = options
    pairs = list(zip(padding[::2], padding[1::2], strict=True))
    if all(isinstance(size, int) for size in (*input, *weight, *output_padding)):
        op = f"conv_transpose{len(stride)}d" if transposed else f"conv{len(stride)}d"
        checked = Problem.create(
            op,
            input,
            weight,
            bias_shape=bias,
            stride=stride,
            padding=pairs,
            dilation=dilation,
            output_padding=output_padding,
            groups=groups,
            padding_mode=padding_mode,
        )
        return checked.output_shape
    # Symbolic sizes: the formula alone. A check would narrow what the compiled program can be called with.
    extents = [d * (k - 1) for k, d in zip(weight[2:], dilation, strict=True)]
    sums = [before + after for before, after in pairs]
    axes = zip(input[2:], extents, stride, sums, output_padding, strict=True)
    if transposed:
        return (input[0], weight[1] * groups, *((i - 1) * s - p + k + e + 1 for i, k, s, p, e in axes))
    return (input[0], weight[0], *((i + p - k - 1) // s + 1 for i, k, s, p, _ in axes))


def _convolve_setup(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    input, weight, _, *options = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(input if needs[1] else None, weight if needs[0] else None)
    ctx.shapes = input.shape, weight.shape
    ctx.options = options


def _convolve_backward(ctx: Any, gy: torch.Tensor) -> tuple:
    input, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if needs[0] and needs[1] and unobserved(gy, input, weight):
        gx, gw = _both_grads(gy, input, weight, ctx.options)
    else:
        gx = input_grad(gy, weight, ctx.shapes[0], *ctx.options) if needs[0] else None
        gw = weight_grad(gy, input, ctx.shapes[1], *ctx.options) if needs[1] else None
    gb = gy.sum([0, *range(2, gy.dim())]) if needs[2] else None
    return (gx, gw, gb, *_none(ctx.options))


def _both_grads(
    grad_output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, options: Sequence[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the two operators return, in less time: arrays are made and kernels are looked up once."""
    last = channels_last(grad_output)
    gy, x, w = as_array(grad_output, last), as_array(input, last), as_array(weight, False)
    found = _gradients(("input", "weight"), gy, x, w, options, last)
    dtype = grad_output.dtype
    return as_tensor(found.input, last, dtype), as_tensor(found.weight, False, dtype)


def _input_grad(
    grad_output: torch.Tensor, weight: torch.Tensor, input_size: Sequence[int], *options: Any
) -> torch.Tensor:
    last = channels_last(grad_output)
    gy, w = as_array(grad_output, last), as_array(weight, False)
    x = placeholder(tuple(input_size), gy.dtype, last)
    return as_tensor(_gradients(("input",), gy, x, w, options, last).input, last, grad_output.dtype)


def _input_grad_fake(
    grad_output: torch.Tensor, weight: torch.Tensor, input_size: Sequence[int], *options: Any
) -> torch.Tensor:
    return empty(grad_output, input_size, channels_last(grad_output))


def _input_grad_setup(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    grad_output, weight, _, *options = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(grad_output if needs[1] else None, weight if needs[0] else None)
    ctx.weight_size = weight.shape
    ctx.options = options


def _input_grad_backward(ctx: Any, ggx: torch.Tensor) -> tuple:
    grad_output, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    ggy = convolution(ggx, weight, None, *ctx.options) if needs[0] else None
    gw = weight_grad(grad_output, ggx, ctx.weight_size, *ctx.options) if needs[1] else None
    return (ggy, gw, None, *_none(ctx.options))


def _weight_grad(
    grad_output: torch.Tensor, input: torch.Tensor, weight_size: Sequence[int], *options: Any
) -> torch.Tensor:
    last = channels_last(input)
    gy, x = as_array(grad_output, last), as_array(input, last)
    w = placeholder(tuple(weight_size), gy.dtype, False)
    return as_tensor(_gradients(("weight",), gy, x, w, options, last).weight, False, grad_output.dtype)


def _weight_grad_fake(
    grad_output: torch.Tensor, input: torch.Tensor, weight_size: Sequence[int], *options: Any
) -> torch.Tensor:
    return grad_output.new_empty(weight_size)


def _weight_grad_setup(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    grad_output, input, _, *options = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(grad_output if needs[1] else None, input if needs[0] else None)
    ctx.input_size = input.shape
    ctx.options = options


def _weight_grad_backward(ctx: Any, ggw: torch.Tensor) -> tuple:
    grad_output, input = ctx.saved_tensors
    needs = ctx.needs_input_grad
    ggy = convolution(input, ggw, None, *ctx.options) if needs[0] else None
    gx = input_grad(grad_output, ggw, ctx.input_size, *ctx.options) if needs[1] else None
    return (ggy, gx, None, *_none(ctx.options))


def _gradients(
    wrt: tuple[str, ...], gy: np.ndarray, x: np.ndarray, w: np.ndarray, options: Sequence[Any], last: bool
) -> Any:
    op, ordered = _describe(w.ndim - 2, options)
    operands = {"grad_output": gy, "input": x, "weight": w}
    call = find_grad_call(op, operands, ordered + _layout(last), wrt, None)
    return call(gy, x, w, num_threads=thread_count())


def _none(options: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(options)


convolution = Operation(
    f"convolution(Tensor input, Tensor weight, Tensor? bias, {OPTIONS}) -> Tensor",
    _convolve,
    _convolve_fake,
    _convolve_setup,
    _convolve_backward,
)
input_grad = Operation(
    f"convolution_input_grad(Tensor grad_output, Tensor weight, SymInt[] input_size, {OPTIONS}) -> Tensor",
    _input_grad,
    _input_grad_fake,
    _input_grad_setup,
    _input_grad_backward,
)
weight_grad = Operation(
    f"convolution_weight_grad(Tensor grad_output, Tensor input, SymInt[] weight_size, {OPTIONS}) -> Tensor",
    _weight_grad,
    _weight_grad_fake,
    _weight_grad_setup,
    _weight_grad_backward,
)

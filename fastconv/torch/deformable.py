"""The operators behind deformable convolutions: the map itself, and all of its gradients together."""

from collections.abc import Sequence
from typing import Any

import torch

from .. import grad
from ..call import find_call
from ..gradcall import find_grad_call
from ..problem import Problem
from . import sampler
from .arrays import as_array, as_tensor, channels_last, empty, thread_count
from .operation import Operation

__all__ = ["deform_convolution", "deform_grads"]

OPTIONS = "int[] stride, int[] padding, int[] dilation"
# The operands, in the order in which the operators take them and return their gradients.
OPERANDS = ("input", "weight", "offset", "mask")


def _options(options: Sequence[Any], last: bool) -> tuple:
    """Return the options in the order of ``call.OPTIONS``."""
    stride, padding, dilation = map(tuple, options)
    pairs = tuple(zip(padding[::2], padding[1::2], strict=True))
    return (stride, pairs, dilation, None, 0, None, "zeros", "NHWC" if last else "NCHW", None, None)


def _arrays(
    last: bool, input: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None
) -> list:
    lasts = (last, False, last, last)
    return [
        None if x is None else as_array(x, along)
        for x, along in zip((input, weight, offset, mask), lasts, strict=True)
    ]


def _deform(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    *options: Any,
) -> torch.Tensor:
    last = channels_last(input)
    x, w, o, m = _arrays(last, input, weight, offset, mask)
    b = None if bias is None else as_array(bias, False)
    op = f"deform_conv{weight.dim() - 2}d"
    call = find_call(op, x, w, b, o, m, _options(options, last), None, True)
    return as_tensor(call(x, w, b, o, m, None, thread_count()), last, input.dtype)


def _deform_fake(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    *options: Any,
) -> torch.Tensor:
    tensors = [x for x in (input, weight, offset, mask, bias) if x is not None]
    stride, padding, dilation = options
    # Symbolic sizes are not checked: that would narrow what the compiled program can be called with.
    if all(isinstance(size, int) for x in tensors for size in x.shape):
        Problem.create(
            f"deform_conv{weight.dim() - 2}d",
            input.shape,
            weight.shape,
            offset_shape=offset.shape,
            mask_shape=None if mask is None else mask.shape,
            bias_shape=None if bias is None else bias.shape,
            stride=stride,
            padding=list(zip(padding[::2], padding[1::2], strict=True)),
            dilation=dilation,
        )
    return empty(input, (input.shape[0], weight.shape[0], *offset.shape[2:]), channels_last(input))


def _deform_setup(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    *operands, _, stride, padding, dilation = inputs
    ctx.save_for_backward(*operands)
    ctx.options = stride, padding, dilation


def _deform_backward(ctx: Any, gy: torch.Tensor) -> tuple:
    *wanted, bias = ctx.needs_input_grad[:5]
    found: list = [None] * 4
    if any(wanted):
        grads = deform_grads(gy, *ctx.saved_tensors, *ctx.options, wanted)
        found = [g if wants else None for g, wants in zip(grads, wanted, strict=True)]
    gb = gy.sum([0, *range(2, gy.dim())]) if bias else None
    return (*found, gb, None, None, None)


def _grads(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, ...]:
    last = channels_last(input)
    x, w, o, m = _arrays(last, input, weight, offset, mask)
    gy = as_array(grad_output, last)
    operands = {"grad_output": gy, "input": x, "weight": w, "offset": o, "mask": m}
    names = tuple(name for name, wants in zip(OPERANDS, wanted, strict=True) if wants)
    wrt = tuple(name for name in grad.DeformGrads._fields if name in names)
    op = f"deform_conv{weight.dim() - 2}d"
    call = find_grad_call(op, operands, _options((stride, padding, dilation), last), wrt, None)
    found = call(gy, x, o, w, m, num_threads=thread_count())
    return tuple(
        grad_output.new_empty(0)
        if getattr(found, name) is None
        else as_tensor(getattr(found, name), last and name != "weight", grad_output.dtype)
        for name in OPERANDS
    )


def _grads_fake(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[torch.Tensor, ...]:
    last = channels_last(input)
    operands = (input, weight, offset, mask)
    return tuple(
        empty(grad_output, x.shape, last and x is not weight)
        if wants and x is not None
        else grad_output.new_empty(0)
        for x, wants in zip(operands, wanted, strict=True)
    )


def _grads_setup(ctx: Any, inputs: Any, output: Any) -> None:
    *operands, stride, padding, dilation, wanted = inputs
    ctx.save_for_backward(*operands)
    ctx.options = stride, padding, dilation
    ctx.wanted = wanted


def _grads_backward(ctx: Any, *grads: torch.Tensor) -> tuple:
    """Differentiate the gradients once more, through the composition of PyTorch's operators."""
    needs = ctx.needs_input_grad[:5]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Names of their own: one operand may have been computed from another, which is not to count here.
        operands: list[Any]
        gy, *operands = (_alias(x, again) for x in ctx.saved_tensors)
        y = sampler.deform_conv(*operands, *ctx.options)
        firsts = [
            (x, g) for x, g, wants in zip(operands, grads, ctx.wanted, strict=True) if wants and x is not None
        ]
        found = torch.autograd.grad(y, [x for x, _ in firsts], gy, create_graph=True)
        wanted = [x for x, wants in zip((gy, *operands), needs, strict=True) if wants]
        seconds = iter(
            torch.autograd.grad(
                found, wanted, [g for _, g in firsts], create_graph=again, materialize_grads=True
            )
        )
    return (*(next(seconds) if wants else None for wants in needs), None, None, None, None)


def _alias(x: torch.Tensor | None, recorded: bool) -> torch.Tensor | None:
    if x is None:
        return None
    return x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_()


deform_convolution = Operation(
    f"deform_convolution(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, {OPTIONS}) -> Tensor",
    _deform,
    _deform_fake,
    _deform_setup,
    _deform_backward,
)
deform_grads = Operation(
    f"deform_convolution_grad(Tensor grad_output, Tensor input, Tensor weight, Tensor offset, Tensor? mask, {OPTIONS}, "
    "bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _grads,
    _grads_fake,
    _grads_setup,
    _grads_backward,
)

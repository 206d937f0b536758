"""The functions of ``torch.nn.functional`` and ``torchvision.ops``, by the same names, on fastconv's kernels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem, as_ints, as_padding
from .arrays import FLOATS
from .convolution import convolution
from .deformable import deform_convolution

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv2d",
]

Ints = int | Sequence[int]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve a 1-D input, as :func:`torch.nn.functional.conv1d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, W) or (C, W)
    weight : Tensor, shape (O, C/G, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, dilation, groups
        As for :func:`fastconv.conv1d`.
    padding_mode : str, optional
        As for :func:`fastconv.conv1d`: "zeros", "reflect", "replicate", "circular" or "symmetric".

    Returns
    -------
    Tensor, shape (N, O, OW) or (O, OW)

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.conv1d(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[[1.0, 1.0]]]))
    tensor([[3., 6.]])
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve a 2-D input, as :func:`torch.nn.functional.conv2d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (C, H, W)
        Channels last (``torch.channels_last``) are computed on as they lie, and so are their gradients.
    weight : Tensor, shape (O, C/G, KH, KW)
        Always best contiguous: of weights in another memory format a copy is made.
    bias : Tensor, shape (O,), optional
    stride, padding, dilation, groups
        As for :func:`fastconv.conv2d`.
    padding_mode : str, optional
        As for :func:`fastconv.conv2d`: "zeros", "reflect", "replicate", "circular" or "symmetric".

    Returns
    -------
    Tensor, shape (N, O, OH, OW) or (O, OH, OW)
        Of the type and memory format of the input. float16 and bfloat16 are computed in float32. Under autocast
        the type is autocast's.

    Raises
    ------
    ShapeError, ValueError
        If sizes or options do not fit.
    TypeError
        If tensors differ in type, or are not floats, or do not lie densely in the memory of the CPU.

    Notes
    -----
    It runs on the backend that :func:`fastconv.use_backend` and its like choose, and on as many threads as both
    ``torch.set_num_threads`` and :func:`fastconv.threads` allow. All derivatives are there, of any order.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3).requires_grad_()
    >>> y = fastconv.torch.conv2d(x, torch.ones(1, 1, 2, 2))
    >>> y.sum().backward()
    >>> x.grad[0, 0]
    tensor([[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]])
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve a 3-D input, as :func:`torch.nn.functional.conv3d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, D, H, W) or (C, D, H, W)
    weight : Tensor, shape (O, C/G, KD, KH, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, dilation, groups
        As for :func:`fastconv.conv3d`.
    padding_mode : str, optional
        As for :func:`fastconv.conv3d`: "zeros", "reflect", "replicate", "circular" or "symmetric".

    Returns
    -------
    Tensor, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.conv3d(torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 2, 2, 2), stride=2).shape
    torch.Size([1, 3, 2, 2, 2])
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """Transpose a 1-D convolution, as :func:`torch.nn.functional.conv_transpose1d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, W) or (C, W)
    weight : Tensor, shape (C, O/G, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, output_padding, groups, dilation
        As for :func:`fastconv.conv_transpose1d`.

    Returns
    -------
    Tensor, shape (N, O, OW) or (O, OW)

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.conv_transpose1d(torch.tensor([[1.0, 10.0]]), torch.tensor([[[1.0, 2.0]]]))
    tensor([[ 1., 12., 20.]])
    """
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """Transpose a 2-D convolution, as :func:`torch.nn.functional.conv_transpose2d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (C, H, W)
    weight : Tensor, shape (C, O/G, KH, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, output_padding, groups, dilation
        As for :func:`fastconv.conv_transpose2d`.

    Returns
    -------
    Tensor, shape (N, O, OH, OW) or (O, OH, OW)

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.conv_transpose2d(torch.ones(1, 2, 4, 4), torch.ones(2, 3, 2, 2), stride=2).shape
    torch.Size([1, 3, 8, 8])
    """
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """Transpose a 3-D convolution, as :func:`torch.nn.functional.conv_transpose3d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, D, H, W) or (C, D, H, W)
    weight : Tensor, shape (C, O/G, KD, KH, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, output_padding, groups, dilation
        As for :func:`fastconv.conv_transpose3d`.

    Returns
    -------
    Tensor, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.conv_transpose3d(torch.ones(1, 2, 2, 2, 2), torch.ones(2, 3, 2, 2, 2), stride=2).shape
    torch.Size([1, 3, 4, 4, 4])
    """
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = (1, 1),
    padding: Ints = (0, 0),
    dilation: Ints = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve a 2-D input at displaced points, as :func:`torchvision.ops.deform_conv2d` does.

    Parameters
    ----------
    input : Tensor, shape (N, C, H, W) or (C, H, W)
    offset : Tensor, shape (N, DG*2*KH*KW, OH, OW) or without N
        Displacements in input pixels, row before column.
    weight : Tensor, shape (O, C/G, KH, KW)
    bias : Tensor, shape (O,), optional
    stride, padding, dilation
        As for :func:`fastconv.deform_conv2d`.
    mask : Tensor, shape (N, DG*KH*KW, OH, OW) or without N, optional
        Factor for each sampled value (v2).

    Returns
    -------
    Tensor, shape (N, O, OH, OW) or (O, OH, OW)
        Of the type of the input. Under autocast too, which computes it in float32, as torchvision's.

    Raises
    ------
    ShapeError, ValueError, TypeError
        As :func:`conv2d` does.

    Notes
    -----
    First derivatives run on fastconv's kernels, with respect to all five tensors; those of higher order are put
    together from PyTorch's operators, which takes long and much memory.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> x = torch.arange(6.0).reshape(1, 1, 2, 3)
    >>> right = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
    >>> fastconv.torch.deform_conv2d(x, right, torch.ones(1, 1, 1, 1))[0, 0]
    tensor([[1., 2., 0.],
            [4., 5., 0.]])
    """
    unbatched = _check_rank("deform_conv2d", 2, input, weight)
    tensors = (input, offset, weight, bias, mask)
    kept = input.dtype
    if torch.is_autocast_enabled("cpu"):
        tensors = _cast(tensors, torch.float32)
    input, offset, weight, bias, mask = tensors
    _check(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    weight = weight.contiguous()  # once, for the backward pass too
    stride, dilation = _ints("stride", stride, 2), _ints("dilation", dilation, 2)
    pads = _padding(padding, "deform_conv", weight, stride, dilation)
    if unbatched:
        input, offset = input.unsqueeze(0), offset.unsqueeze(0)
        mask = None if mask is None else mask.unsqueeze(0)
    y = deform_convolution(input, weight, offset, mask, bias, stride, pads, dilation)
    return (y.squeeze(0) if unbatched else y).to(kept)


def _conv(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    padding_mode: str,
) -> Tensor:
    unbatched = _check_rank(f"conv{ndim}d", ndim, input, weight)
    if torch.is_autocast_enabled("cpu"):
        input, weight, bias = _cast((input, weight, bias), torch.get_autocast_dtype("cpu"))
    _check(input=input, weight=weight, bias=bias)
    weight = weight.contiguous()  # once, for the backward pass too
    stride, dilation = _ints("stride", stride, ndim), _ints("dilation", dilation, ndim)
    pads = _padding(padding, "conv", weight, stride, dilation)
    options = (stride, pads, dilation, False, (0,) * ndim, groups, padding_mode)
    if unbatched:
        return convolution(input.unsqueeze(0), weight, bias, *options).squeeze(0)
    return convolution(input, weight, bias, *options)


def _conv_transpose(
    ndim: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> Tensor:
    unbatched = _check_rank(f"conv_transpose{ndim}d", ndim, input, weight)
    if torch.is_autocast_enabled("cpu"):
        input, weight, bias = _cast((input, weight, bias), torch.get_autocast_dtype("cpu"))
    _check(input=input, weight=weight, bias=bias)
    weight = weight.contiguous()  # once, for the backward pass too
    stride, dilation = _ints("stride", stride, ndim), _ints("dilation", dilation, ndim)
    pads = _padding(padding, "conv_transpose", weight, stride, dilation)
    extra = _ints("output_padding", output_padding, ndim)
    options = (stride, pads, dilation, True, extra, groups, "zeros")
    if unbatched:
        return convolution(input.unsqueeze(0), weight, bias, *options).squeeze(0)
    return convolution(input, weight, bias, *options)


def _check_rank(op: str, ndim: int, input: Tensor, weight: Tensor) -> bool:
    """Return whether the input has no batch axis; raise unless these are tensors whose dimensions fit."""
    for name, x in (("input", input), ("weight", weight)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if weight.dim() != ndim + 2 or input.dim() not in (ndim + 1, ndim + 2):
        batched = input.dim() != ndim + 1
        Problem.create(op, input.shape if batched else (1, *input.shape), weight.shape)
    return input.dim() == ndim + 1


def _check(**tensors: Any) -> None:
    """Raise unless all tensors are of one floating type, strided and on a device there are kernels for."""
    input = tensors["input"]
    dtype = input.dtype
    usual = dtype in FLOATS and input.is_cpu
    for name, x in tensors.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if usual and x.dtype is dtype and x.is_cpu and x.layout is torch.strided:
            continue
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dtype != dtype:
            raise TypeError(f"all tensors must have one dtype: input has {dtype}, {name} has {x.dtype}")
        if x.device.type not in ("cpu", "meta"):
            raise TypeError(f"{name} must be on the CPU, got a tensor on {x.device}")
        if x.device.type != input.device.type:
            raise TypeError(
                f"all tensors must be on one device: input is on {input.device}, {name} on {x.device}"
            )
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a strided tensor, got {x.layout}")


def _cast(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Return the tensors as autocast hands them on: all but float64 in `dtype`."""
    return tuple(
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    )


def _ints(name: str, value: Ints, ndim: int) -> tuple[int, ...]:
    if type(value) is int:
        return (value,) * ndim
    if type(value) is tuple and len(value) == ndim and all(type(item) is int for item in value):
        return value  # the operator looks at how large they are
    return as_ints(name, value, ndim, 0)


def _padding(
    value: Ints | str, variant: str, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Return (before, after) of each axis, one after the other."""
    if type(value) is int:
        return (value,) * (2 * len(stride))
    if type(value) is tuple and len(value) == len(stride) and all(type(item) is int for item in value):
        return tuple(item for item in value for _ in range(2))
    pairs = as_padding(value, variant, tuple(weight.shape[2:]), stride, dilation)
    return tuple(size for pair in pairs for size in pair)

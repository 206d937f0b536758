"""The layers of a stack, as far as geometry goes: no channels, no weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..problem import MAX_STEP, PADDING_MODES, Ints, Pairs, Problem, as_choice, as_ints, as_padding

__all__ = ["Layer", "as_layers", "input_sizes", "joined"]

VARIANTS = ("conv", "conv_transpose", "deform_conv", "pool", "max_pool", "avg_pool")
OP = re.compile(rf"({'|'.join(sorted(VARIANTS, key=len, reverse=True))})(?:([123])d)?")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a stack, for :func:`fastconv.receptive_field`.

    Attributes
    ----------
    kernel : int or tuple of int
        Kernel size.
    stride, padding, dilation, output_padding : int or tuple
        As for the functions.
    op : str
        ``"conv"``, ``"conv_transpose"``, ``"deform_conv"`` or ``"pool"`` (``"max_pool"``, ``"avg_pool"``), with or
        without a rank, such as ``"conv2d"``.
    padding_mode : str
    offset : numpy.ndarray, shape (DG*taps*ndim, OD, OH, OW), optional
        Displacements of a deformable layer for one image, channels first.

    Examples
    --------
    >>> from fastconv.analysis import Layer
    >>> Layer(3, dilation=2).effective_kernel
    5
    """

    kernel: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    output_padding: Any = 0
    op: str = "conv"
    padding_mode: str = "zeros"
    offset: Any = None

    @property
    def effective_kernel(self) -> Any:
        """Extent of the dilated kernel: k + (r - 1)(k - 1)."""
        if isinstance(self.kernel, tuple):
            return tuple(k + (r - 1) * (k - 1) for k, r in zip(self.kernel, self.dilation, strict=True))
        return self.kernel + (self.dilation - 1) * (self.kernel - 1)

    def output_size(self, input_size: Ints) -> Ints:
        """Return the output size of a layer with an entry for each axis."""
        axes = zip(
            input_size, self.effective_kernel, self.stride, self.padding, self.output_padding, strict=True
        )
        if self.op == "conv_transpose":
            size = tuple((i - 1) * s - b - a + k + e for i, k, s, (b, a), e in axes)
        else:
            size = tuple((i + b + a - k) // s + 1 for i, k, s, (b, a), _ in axes)
        if min(size) < 1:
            raise ShapeError(f"the output would have size {size} (input size {input_size}, layer {self})")
        return size

    def __str__(self) -> str:
        text = f"{self.op} k{joined(self.kernel)} s{joined(self.stride)} p{joined(self.padding)}"
        return text + (f" l{joined(self.dilation)}" if np.max(self.dilation) > 1 else "")


def joined(values: Any) -> str:
    """Return what an option says for each axis, once if it is the same for all: ``3``, ``3x5``, ``1:0``."""
    if isinstance(values, (str, int)):
        return str(values)
    texts = [":".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def as_layers(layers: Sequence[Any], ndim: int | None = None) -> tuple[Layer, ...]:
    """Return layers with a tuple for each option, one entry an axis, from any of the accepted forms."""
    if isinstance(layers, (Layer, Mapping, Problem, str)) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(f"layers must be a sequence of at least one layer, got {layers!r}")
    given = [_as_layer(index, layer) for index, layer in enumerate(layers)]
    ranks = {rank for _, rank in given if rank is not None} | ({ndim} if ndim is not None else set())
    if len(ranks) > 1:
        raise ValueError(f"layers must all have the same number of axes, got {sorted(ranks)}")
    rank = ranks.pop() if ranks else 2
    if rank not in (1, 2, 3):
        raise ValueError(f"layers must have 1, 2 or 3 axes, got {rank}")
    return tuple(_normal(layer, rank) for layer, _ in given)


def input_sizes(layers: Sequence[Layer], input_size: Any) -> list[Ints]:
    """Return the sizes of the input of each layer, and of the output of the last."""
    sizes = [as_ints("input_size", input_size, len(layers[0].kernel), 1)]
    for layer in layers:
        sizes.append(layer.output_size(sizes[-1]))
        if layer.offset is not None and layer.offset.shape[-len(layer.kernel) :] != sizes[-1]:
            raise ShapeError(
                f"offset must have the output size {sizes[-1]} of its layer, got shape {layer.offset.shape}"
            )
    return sizes


def _as_layer(index: int, value: Any) -> tuple[Layer, int | None]:
    """Return a layer as it was given, and its number of axes where that shows."""
    value = getattr(value, "problem", value)  # of a plan
    if isinstance(value, Problem):
        names = {field.name for field in fields(Layer)} & {field.name for field in fields(Problem)}
        given = {name: getattr(value, name) for name in names} | {
            "kernel": value.kernel_size,
            "op": value.variant,
        }
        return Layer(**given), value.ndim
    if isinstance(value, Mapping):
        unknown = set(value) - {field.name for field in fields(Layer)}
        if unknown or "kernel" not in value:
            raise TypeError(
                f"layer {index} must have a kernel and none but {', '.join(f.name for f in fields(Layer))}, got {dict(value)}"
            )
        value = Layer(**value)
    if not isinstance(value, Layer):
        raise TypeError(f"layer {index} must be a Layer, a mapping, a Problem or a Plan, got {value!r}")
    match = OP.fullmatch(value.op) if isinstance(value.op, str) else None
    if match is None:
        raise ValueError(f"op of layer {index} must be one of {', '.join(VARIANTS)}, got {value.op!r}")
    options = (value.kernel, value.stride, value.padding, value.dilation, value.output_padding)
    ranks = {
        len(option) for option in options if isinstance(option, Sequence) and not isinstance(option, str)
    }
    ranks |= {int(match[2])} if match[2] else set()
    if len(ranks) > 1:
        raise ValueError(f"layer {index} must have the same number of axes in every option, got {value}")
    return replace(value, op=match[1]), ranks.pop() if ranks else None


def _normal(layer: Layer, ndim: int) -> Layer:
    op = "pool" if layer.op.endswith("pool") else layer.op
    kernel = as_ints("kernel", layer.kernel, ndim, 1)
    stride = as_ints("stride", layer.stride, ndim, 1, MAX_STEP)
    dilation = as_ints("dilation", layer.dilation, ndim, 1, MAX_STEP)
    padding: Pairs = as_padding(layer.padding, op, kernel, stride, dilation)
    return Layer(
        kernel,
        stride,
        padding,
        dilation,
        as_ints("output_padding", layer.output_padding, ndim, 0),
        op,
        as_choice("padding_mode", layer.padding_mode, PADDING_MODES),
        _as_offset(layer, kernel) if op == "deform_conv" else None,
    )


def _as_offset(layer: Layer, kernel: Ints) -> np.ndarray:
    """Return the displacements of one image as (DG, taps, ndim, *output size)."""
    taps, ndim = int(np.prod(kernel)), len(kernel)
    if layer.offset is None:
        raise TypeError("a deformable layer must have an offset, got None")
    offset = np.asarray(layer.offset, np.float64)
    if offset.ndim == ndim + 3:  # of a layer that has been here before
        offset = offset.reshape(-1, *offset.shape[3:])
    if offset.ndim == ndim + 2 and len(offset) == 1:
        offset = offset[0]
    if offset.ndim != ndim + 1 or not len(offset) or len(offset) % (taps * ndim):
        raise ShapeError(
            f"offset must have shape (DG*{taps * ndim}, *output size) for kernel {kernel}, got {offset.shape}"
        )
    return offset.reshape(-1, taps, ndim, *offset.shape[1:])

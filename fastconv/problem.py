"""The frozen, validated description of one convolution.

Every entry point turns its arguments into a :class:`Problem` before any work is done. Whatever is wrong with
the arguments is found here, so that kernels never have to check anything again.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ShapeError

__all__ = [
    "ACTIVATIONS",
    "CONV",
    "CONV_TRANSPOSE",
    "DCN",
    "DCN_GRAD",
    "DEFORM_CONV",
    "DEFORM_GRAD",
    "DEFORM_TRANSPOSE",
    "FORWARD_OPS",
    "GRAD_OPS",
    "LAYOUTS",
    "OPS",
    "PADDING_MODES",
    "SEPARABLE",
    "WEIGHT_GRAD",
    "Problem",
]

CONV = ("conv1d", "conv2d", "conv3d")
CONV_TRANSPOSE = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
DEFORM_CONV = ("deform_conv1d", "deform_conv2d", "deform_conv3d")
OPS = CONV + CONV_TRANSPOSE + DEFORM_CONV

# Relatives of the deformable convolution, in two dimensions: its adjoint, and those without a dense weight.
DEFORM_TRANSPOSE = ("deform_conv_transpose2d",)
DCN = ("dcnv3", "dcnv4")
FORWARD_OPS = OPS + DEFORM_TRANSPOSE + DCN

# What gradients need beyond those: a convolution's with respect to its weight (its input's is a transposed
# convolution, and the other way round), and all of a deformable one's together, which share their samples. Those
# of a transposed deformable convolution are the same with input and output in each other's place.
WEIGHT_GRAD = ("conv1d_weight_grad", "conv2d_weight_grad", "conv3d_weight_grad")
DEFORM_GRAD = ("deform_conv1d_grad", "deform_conv2d_grad", "deform_conv3d_grad")
DCN_GRAD = ("dcnv3_grad", "dcnv4_grad")
GRAD_OPS = WEIGHT_GRAD + DEFORM_GRAD + DCN_GRAD

# A depthwise convolution and a pointwise one behind it, in one call.
SEPARABLE = ("separable_conv1d", "separable_conv2d", "separable_conv3d")

ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish")
LAYOUTS = ("NCHW", "NHWC")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
ACCURACIES = (None, "default", "high")

# Offsets inside an array are computed in signed 64-bit integers, in bytes; so are products of two steps.
MAX_BYTES = 2**63 - 1
MAX_STEP = 2**31 - 1

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def parse_op(op: object, among: Sequence[str] = FORWARD_OPS) -> tuple[str, int]:
    """Split an operation name into its variant and rank: ``"conv2d"`` is ``("conv", 2)``, ``"dcnv3"`` ``("dcnv3", 2)``.

    A gradient has the variant of the operation whose gradient it is.
    """
    if op not in among:
        raise ValueError(f"op must be one of {', '.join(among)}, got {op!r}")
    name = forward_op(str(op))
    return (name, 2) if name in DCN else (name[:-2], int(name[-2]))


def forward_op(op: str) -> str:
    """Return the operation whose gradient `op` is, or `op` itself."""
    return op.removesuffix("_weight_grad").removesuffix("_grad")


def axis_names(ndim: int) -> str:
    """Return the letters of the spatial axes: ``"W"``, ``"HW"`` or ``"DHW"``."""
    return "DHW"[-ndim:]


def dims(*names: str) -> str:
    return "(" + ", ".join(names) + ")"


def as_int(name: str, value: Any) -> int:
    """Return `value` as a Python int, or raise a TypeError that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def as_ints(name: str, value: Any, ndim: int, minimum: int, maximum: float = math.inf) -> Ints:
    """Return one integer for each spatial axis; a single integer serves all of them."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an integer or {ndim} integers, got {value!r}")
    if isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1):
        items = tuple(as_int(name, item) for item in value)
        if len(items) == 1:
            items *= ndim
    else:
        items = (as_int(name, value),) * ndim
    if len(items) != ndim:
        raise ValueError(f"{name} must be an integer or {ndim} integers ({axis_names(ndim)}), got {value!r}")
    if min(items) < minimum:
        raise ValueError(f"{name} must be at least {minimum} on every axis, got {value!r}")
    if max(items) > maximum:
        raise ValueError(f"{name} must be at most {maximum} on every axis, got {value!r}")
    return items


def as_number(name: str, value: Any) -> float:
    """Return `value` as a finite float, or raise an error that names the argument."""
    if not isinstance(value, (int, float, np.number)) or isinstance(
        value, (bool, complex, np.complexfloating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def as_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    if not isinstance(value, (str, type(None))) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return value


def as_activation(value: Any, name: str = "activation") -> str | Callable | None:
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        return as_choice(name, value, ("none", *ACTIVATIONS))
    if callable(value):
        return value
    raise TypeError(f"{name} must be None, one of {', '.join(ACTIVATIONS)}, or a function, got {value!r}")


def as_padding(value: Any, variant: str, kernel: Ints, stride: Ints, dilation: Ints) -> Pairs:
    """Return (before, after) for each axis from any of the accepted forms."""
    ndim = len(kernel)
    if isinstance(value, str):
        if variant.endswith("conv_transpose"):
            raise ValueError(f"padding of a transposed convolution must be given in numbers, got {value!r}")
        if value == "valid":
            return ((0, 0),) * ndim
        if value != "same":
            raise ValueError(
                f"padding must be an integer, {ndim} integers, (before, after) pairs, 'same' or 'valid', got {value!r}"
            )
        if max(stride) > 1:
            raise ValueError(f"padding='same' keeps the size only where stride is 1, got stride {stride}")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and any(isinstance(item, (Sequence, np.ndarray)) for item in value):
        pairs = []
        for item in value:
            pair = (
                tuple(item) if isinstance(item, (Sequence, np.ndarray)) and not isinstance(item, str) else ()
            )
            if len(pair) != 2:
                raise ValueError(f"padding must have a (before, after) pair for each axis, got {value!r}")
            pairs.append((as_int("padding", pair[0]), as_int("padding", pair[1])))
        if len(pairs) != ndim:
            raise ValueError(
                f"padding must have {ndim} (before, after) pairs ({axis_names(ndim)}), got {value!r}"
            )
        if min(map(min, pairs)) < 0:
            raise ValueError(f"padding must not be negative, got {value!r}")
        return tuple(pairs)
    return tuple((p, p) for p in as_ints("padding", value, ndim, 0))


@dataclass(frozen=True, slots=True)
class Problem:
    """One convolution: shapes, options and type, normalised; every tuple has one entry for each spatial axis.

    Attributes
    ----------
    op : str
        Name of the public function, such as ``"conv2d"``, or of a gradient, such as ``"conv2d_weight_grad"``,
        whose problem is described by the convolution's own shapes.
    variant : str
        ``"conv"``, ``"conv_transpose"``, ``"deform_conv"``, ``"deform_conv_transpose"``, ``"dcnv3"`` or ``"dcnv4"``.
    ndim : int
        Number of spatial axes (1, 2 or 3).
    batch, in_channels, out_channels, groups : int
        N, C, O and G. For `dcnv3` and `dcnv4`, which mix no channels, G = O = C.
    input_size, kernel_size, output_size : tuple of int
        Spatial sizes.
    stride, dilation, output_padding : tuple of int
    padding : tuple of (int, int)
        Padding before and after each axis, in input pixels.
    offset_groups : int
        DG, the number of channel groups with offsets of their own; 0 unless deformable.
    mask, bias : bool
        Whether there is a mask (modulation) and a bias.
    padding_mode, layout : str
    activation : str, callable or None
    dtype : numpy.dtype
        The type computed in, float32 or float64.
    accuracy : str or None
    prepared : bool
        True when the weights are constant and may be packed once (a plan).
    offset_scale : float
    remove_center : bool
        Of `dcnv3` and `dcnv4`: the scale of the sampled grid around its centre, and whether that lacks a sample.
    """

    op: str
    variant: str
    ndim: int
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input_size: Ints
    kernel_size: Ints
    output_size: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    output_padding: Ints
    offset_groups: int
    mask: bool
    bias: bool
    padding_mode: str
    layout: str
    activation: str | Callable | None
    dtype: np.dtype
    accuracy: str | None
    prepared: bool
    offset_scale: float = 1.0
    remove_center: bool = False

    @classmethod
    def create(
        cls,
        op: str,
        input_shape: Sequence[int],
        weight_shape: Sequence[int] | None,
        *,
        dtype: Any = np.float32,
        bias_shape: Sequence[int] | None = None,
        offset_shape: Sequence[int] | None = None,
        mask_shape: Sequence[int] | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = None,
        output_padding: Any = 0,
        output_size: Any = None,
        padding_mode: Any = "zeros",
        layout: Any = "NCHW",
        activation: Any = None,
        accuracy: Any = None,
        kernel_size: Any = None,
        offset_scale: Any = 1.0,
        remove_center: Any = False,
        prepared: bool = False,
    ) -> "Problem":
        """Validate the arguments of one call, with its batched shapes, and return the problem they describe.

        `input_shape` follows `layout`; `offset_shape` and `mask_shape` are channels first. `groups` is read
        off the shapes when it is None, as the deformable functions do. The last three are for `dcnv3` and `dcnv4`,
        which have no weight.
        """
        variant, ndim = parse_op(op, FORWARD_OPS + SEPARABLE + GRAD_OPS)
        transposed = variant.endswith("conv_transpose")
        layout = as_choice("layout", layout, LAYOUTS)
        input_shape = tuple(input_shape)
        batch, in_channels, input_size = _split_input(op, ndim, input_shape, layout)
        if variant in DCN:
            kernel_size = as_ints("kernel_size", kernel_size, ndim, 1, MAX_STEP)
            weight_shape = (
                in_channels,
                1,
                *kernel_size,
            )  # all ones: each channel is the sum of its own samples
            groups = in_channels
        assert weight_shape is not None
        weight_shape = tuple(weight_shape)
        kernel_size = _kernel_size(op, ndim, weight_shape)

        stride = as_ints("stride", stride, ndim, 1, MAX_STEP)
        dilation = as_ints("dilation", dilation, ndim, 1, MAX_STEP)
        groups, out_channels = _channels(variant, groups, in_channels, input_shape, weight_shape)
        offset_scale = as_number("offset_scale", offset_scale)
        remove_center = removed_center(remove_center, kernel_size)
        pairs = as_padding(padding, variant, kernel_size, stride, dilation)
        padding_mode = as_choice("padding_mode", padding_mode, PADDING_MODES)
        _check_padding_mode(variant, padding_mode, pairs, input_size)

        if transposed:
            extra = _output_padding(
                variant, output_padding, output_size, input_size, kernel_size, stride, pairs, dilation
            )
            out_size = _transposed_size(input_size, kernel_size, stride, pairs, dilation, extra)
            rule = "(size - 1)*stride - padding + dilation*(kernel - 1) + output_padding + 1"
        else:
            extra = (0,) * ndim
            out_size = tuple(
                (i + b + a - d * (k - 1) - 1) // s + 1
                for i, k, s, (b, a), d in zip(input_size, kernel_size, stride, pairs, dilation, strict=True)
            )
            rule = "(size + padding - dilation*(kernel - 1) - 1)//stride + 1"
        if min(out_size) < 1:
            raise ShapeError(
                f"the output would have size {out_size} ({rule}; input size {input_size}, kernel {kernel_size}, "
                f"stride {stride}, padding {pairs}, dilation {dilation})"
            )

        problem = cls(
            op=op,
            variant=variant,
            ndim=ndim,
            batch=batch,
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            input_size=input_size,
            kernel_size=kernel_size,
            output_size=out_size,
            stride=stride,
            padding=pairs,
            dilation=dilation,
            output_padding=extra,
            offset_groups=_offset_groups(
                offset_shape,
                layout,
                batch,
                ("output", out_channels) if transposed else ("input", in_channels),
                kernel_size,
                math.prod(kernel_size) - remove_center,
                ("input", input_size) if transposed else ("output", out_size),
            ),
            mask=mask_shape is not None,
            bias=bias_shape is not None,
            padding_mode=padding_mode,
            layout=layout,
            activation=as_activation(activation),
            dtype=np.dtype(dtype),
            accuracy="high" if as_choice("accuracy", accuracy, ACCURACIES) == "high" else None,
            prepared=prepared,
            offset_scale=offset_scale,
            remove_center=remove_center,
        )
        if bias_shape is not None and tuple(bias_shape) != (out_channels,):
            raise ShapeError(
                f"bias must have shape ({out_channels},), one value an output channel, got {tuple(bias_shape)}"
            )
        if mask_shape is not None and tuple(mask_shape) != problem.mask_shape:
            of = "input" if transposed else "output"
            names = dims(*_laid_out(("N", "offset groups * kernel taps", f"*{of} size"), layout))
            raise ShapeError(
                f"mask must have shape {_laid_out(problem.mask_shape, layout)} {names}, got {_laid_out(tuple(mask_shape), layout)}"
            )
        check_addressable("output", problem.output_shape)
        inner = problem.output_size if transposed else problem.input_size
        padded = tuple(before + size + after for size, (before, after) in zip(inner, pairs, strict=True))
        channels = problem.out_channels if transposed else problem.in_channels
        check_addressable(
            f"{'output' if transposed else 'input'} with its padding",
            (batch, channels, *padded),
        )
        return problem

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return math.prod(self.kernel_size)

    @property
    def points(self) -> int:
        """Number of points sampled for an output pixel and offset group: the taps, or all but the centre."""
        return self.taps - self.remove_center

    @property
    def transposed(self) -> bool:
        """Whether this is the adjoint of a convolution, which maps sizes the other way."""
        return self.variant.endswith("conv_transpose")

    @property
    def input_shape(self) -> Ints:
        """Shape of the batched input, in `layout`."""
        return self._shape(self.in_channels, self.input_size)

    @property
    def output_shape(self) -> Ints:
        """Shape of the batched output, in `layout`."""
        return self._shape(self.out_channels, self.output_size)

    @property
    def result_shape(self) -> Ints:
        """Shape of what a kernel computes: the output's, or the weight's for its gradient."""
        return self.weight_shape if self.op in WEIGHT_GRAD else self.output_shape

    @property
    def weight_shape(self) -> Ints:
        """(O, C/G, *kernel); (C, O/G, *kernel) for a transposed convolution; all ones where there is no weight."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def offset_shape(self) -> Ints:
        """(N, DG * points * ndim, *output size), channels first in both layouts; transposed, *input size."""
        return (self.batch, self.offset_groups * self.points * self.ndim, *self._offset_size)

    @property
    def mask_shape(self) -> Ints:
        """(N, DG * points, *output size), channels first in both layouts; transposed, *input size."""
        return (self.batch, self.offset_groups * self.points, *self._offset_size)

    @property
    def _offset_size(self) -> Ints:
        return self.input_size if self.transposed else self.output_size

    @property
    def flops(self) -> int:
        """Floating-point operations of all taps, padding included: two for each multiply-add."""
        pixels = math.prod(self.input_size if self.transposed else self.output_size)
        return 2 * self.batch * pixels * math.prod(self.weight_shape)

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic in bytes: every operand once."""
        counts = [math.prod(self.input_shape), math.prod(self.output_shape)]
        counts.append(0 if self.variant in DCN else math.prod(self.weight_shape))
        counts.append(self.out_channels if self.bias else 0)
        counts.append(math.prod(self.offset_shape) + (math.prod(self.mask_shape) if self.mask else 0))
        return sum(counts) * self.dtype.itemsize

    def _shape(self, channels: int, size: Ints) -> Ints:
        return (self.batch, channels, *size) if self.layout == "NCHW" else (self.batch, *size, channels)

    def __str__(self) -> str:
        """One line in the project's alphabet of symbols, such as ``conv2d n1 c64 h56 w56 o64 k3 s1 p1 g1``."""
        sizes = " ".join(
            f"{axis.lower()}{size}" for axis, size in zip(axis_names(self.ndim), self.input_size, strict=True)
        )
        padding = tuple(b if b == a else f"{b}:{a}" for b, a in self.padding)
        text = f"{self.op} n{self.batch} c{self.in_channels} {sizes} o{self.out_channels} k{_joined(self.kernel_size)} "
        text += f"s{_joined(self.stride)} p{_joined(padding)} g{self.groups}"
        text += f" l{_joined(self.dilation)}" if max(self.dilation) > 1 else ""
        text += f" op{_joined(self.output_padding)}" if max(self.output_padding) > 0 else ""
        text += f" dg{self.offset_groups}{' mask' if self.mask else ''}" if self.offset_groups else ""
        text += f" scale{self.offset_scale:g}" if self.offset_scale != 1 else ""
        text += " no-centre" if self.remove_center else ""
        text += " bias" if self.bias else ""
        text += f" {self.padding_mode}" if self.padding_mode != "zeros" else ""
        text += f" {self.layout}" if self.layout != "NCHW" else ""
        text += f" {getattr(self.activation, '__name__', self.activation)}" if self.activation else ""
        return f"{text} {self.dtype.name}"


def _laid_out(shape: tuple, layout: str) -> tuple:
    """Return a channels-first shape as the user writes it."""
    return shape if layout == "NCHW" else (shape[0], *shape[2:], shape[1])


def check_addressable(what: str, shape: Ints) -> None:
    needed = math.prod(shape) * np.dtype(np.float64).itemsize  # the oracle's type, whatever the problem's
    if needed > MAX_BYTES:
        raise MemoryError(f"the {what}, {shape}, would need {needed:.3g} bytes, more than can be addressed")


def _joined(values: Sequence[Any]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def _split_input(op: str, ndim: int, shape: Ints, layout: str) -> tuple[int, int, Ints]:
    names = ("N", "C", *axis_names(ndim)) if layout == "NCHW" else ("N", *axis_names(ndim), "C")
    if len(shape) != ndim + 2:
        raise ShapeError(
            f"input of {op} must have {ndim + 2} dimensions {dims(*names)} or {ndim + 1} without the batch, got shape {shape}"
        )
    channels, size = (shape[1], shape[2:]) if layout == "NCHW" else (shape[-1], shape[1:-1])
    if min(channels, *size) < 1:
        raise ShapeError(
            f"input of {op} must have at least one channel and one pixel on each axis {dims(*names)}, got shape {shape}"
        )
    return shape[0], channels, size


def _kernel_size(op: str, ndim: int, shape: Ints) -> Ints:
    transposed = op in CONV_TRANSPOSE + DEFORM_TRANSPOSE
    names = dims(*(("C", "O/G") if transposed else ("O", "C/G")), *(f"K{axis}" for axis in axis_names(ndim)))
    if len(shape) != ndim + 2:
        raise ShapeError(f"weight of {op} must have {ndim + 2} dimensions {names}, got shape {shape}")
    if min(shape) < 1:
        raise ShapeError(f"weight of {op} must have no empty dimension {names}, got shape {shape}")
    return shape[2:]


def _channels(
    variant: str, groups: Any, in_channels: int, input_shape: Ints, weight_shape: Ints
) -> tuple[int, int]:
    """Return (groups, output channels) after checking that input, weight and groups agree."""
    shapes = f"(input {input_shape}, weight {weight_shape})"
    if groups is None:
        if in_channels % weight_shape[1]:
            raise ShapeError(
                f"input has {in_channels} channels, which is no multiple of the weight's {weight_shape[1]} channels per group {shapes}"
            )
        groups = in_channels // weight_shape[1]
    groups = as_int("groups", groups)
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if in_channels % groups:
        raise ShapeError(f"groups={groups} does not divide the input's {in_channels} channels {shapes}")
    if variant.endswith("conv_transpose"):
        if weight_shape[0] != in_channels:
            raise ShapeError(
                f"weight has {weight_shape[0]} input channels, but input has {in_channels} {shapes}"
            )
        return groups, weight_shape[1] * groups
    if weight_shape[1] * groups != in_channels:
        raise ShapeError(
            f"weight has {weight_shape[1]} input channels per group, but input has {in_channels} channels and "
            f"groups={groups}, so {in_channels // groups} are needed {shapes}"
        )
    if weight_shape[0] % groups:
        raise ShapeError(
            f"groups={groups} does not divide the weight's {weight_shape[0]} output channels {shapes}"
        )
    return groups, weight_shape[0]


def _check_padding_mode(variant: str, mode: str, padding: Pairs, size: Ints) -> None:
    if mode == "zeros":
        return
    if variant not in ("conv", "separable_conv"):
        raise ValueError(f"padding_mode of a {variant.replace('_', ' ')} must be 'zeros', got {mode!r}")
    if mode == "replicate":
        return
    limits = tuple(i - 1 for i in size) if mode == "reflect" else size
    if any(max(pair) > limit for pair, limit in zip(padding, limits, strict=True)):
        raise ShapeError(
            f"padding_mode={mode!r} allows at most {limits} pixels of padding on input size {size}, got padding {padding}"
        )


def _transposed_size(
    size: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints, extra: Ints
) -> Ints:
    return tuple(
        (i - 1) * s - b - a + d * (k - 1) + e + 1
        for i, k, s, (b, a), d, e in zip(size, kernel, stride, padding, dilation, extra, strict=True)
    )


def _output_padding(
    variant: str,
    output_padding: Any,
    output_size: Any,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
) -> Ints:
    """Return the rows and columns added at the end, given directly or through the size that is wanted."""
    ndim = len(size)
    limits, rule = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)), "stride or dilation"
    if variant != "conv_transpose":  # the deformable convolution of a larger output would have more points
        limits, rule = tuple(s - 1 for s in stride), "stride"
    if output_size is None:
        extra = as_ints("output_padding", output_padding, ndim, 0)
        if any(e > limit for e, limit in zip(extra, limits, strict=True)):
            raise ValueError(f"output_padding must be less than {rule} (at most {limits}), got {extra}")
        return extra
    if np.any(np.asarray(output_padding) != 0):
        raise ValueError(
            f"give output_padding or output_size, not both, got {output_padding!r} and {output_size!r}"
        )
    wanted = as_ints("output_size", output_size, ndim, 1)
    smallest = _transposed_size(size, kernel, stride, padding, dilation, (0,) * ndim)
    extra = tuple(w - least for w, least in zip(wanted, smallest, strict=True))
    if any(not 0 <= e <= limit for e, limit in zip(extra, limits, strict=True)):
        largest = tuple(least + limit for least, limit in zip(smallest, limits, strict=True))
        raise ShapeError(
            f"output_size must lie between {smallest} and {largest} for input size {size}, got {wanted}"
        )
    return extra


def _offset_groups(
    shape: Sequence[int] | None,
    layout: str,
    batch: int,
    channels: tuple[str, int],
    kernel: Ints,
    points: int,
    size: tuple[str, Ints],
) -> int:
    """Return the number of offset groups that the offset's channels make, after checking its shape.

    `channels` and `size` tell whose they are: the input's or the output's.
    """
    if shape is None:
        return 0
    ndim, shape = len(kernel), tuple(shape)
    given = _laid_out(shape, layout)
    per_group = ndim * points
    names = dims(*_laid_out(("N", f"offset groups * {per_group}", f"*{size[0]} size"), layout))
    wanted = dims(*map(str, _laid_out((batch, f"{per_group}*DG", *size[1]), layout)))
    if len(shape) != ndim + 2 or shape[0] != batch or shape[2:] != size[1]:
        raise ShapeError(f"offset must have shape {names} = {wanted}, got {given}")
    if shape[1] < per_group or shape[1] % per_group:
        but = "" if points == math.prod(kernel) else " but the centre"
        raise ShapeError(
            f"offset must have a multiple of {per_group} channels ({ndim} for each of the taps {kernel}{but}), got shape {given}"
        )
    offset_groups = shape[1] // per_group
    if channels[1] % offset_groups:
        raise ShapeError(
            f"offset has {offset_groups} offset groups, which do not divide the {channels[0]}'s {channels[1]} channels "
            f"(offset {given})"
        )
    return offset_groups


def removed_center(value: Any, kernel: Ints) -> bool:
    """Return whether the tap in the middle is left out, after checking that there is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"remove_center must be True or False, got {value!r}")
    if value and min(k % 2 for k in kernel) == 0:
        raise ValueError(f"remove_center needs a kernel with a centre, of odd sizes, got {kernel}")
    if value and max(kernel) == 1:
        raise ValueError(f"remove_center leaves no tap of a kernel of size {kernel}")
    return bool(value)

"""The layers that are timed: read from ``workloads.toml`` and filled with data."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from ..problem import OPS, SEPARABLE, Problem, parse_op
from ..separable_problem import SeparableProblem

__all__ = ["TINY", "Workload", "load", "scaling", "select"]

# Displacements lie between the multiples of 1/64: exact in float32, and never where the gradient jumps.
OFFSET_STEPS = 64
OFFSET_SPREAD = 2.0
DENORMAL = 1e-40  # the size of float32 inputs that have no leading one


@dataclass(frozen=True)
class Workload:
    """One layer.

    Attributes
    ----------
    name, family, list : str
        `list` is ``"known"``, ``"other"`` (nobody tuned for these) or ``"scaling"``.
    op : str
        Name of the public function.
    input, kernel : tuple of int
        (N, C, *spatial) and the spatial sizes.
    out_channels, groups, offset_groups : int
        `out_channels` of a separable convolution are those between its parts.
    pointwise : int
        Output channels of a separable convolution.
    stride, padding, dilation, output_padding : int or tuple of int
    mask : bool
    quick : bool
        Whether ``--quick`` takes it.
    axis, value : str, int
        What a scaling workload varies, and how far.
    scale : float
        Size of the input's values.
    """

    name: str
    family: str
    list: str
    op: str
    input: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pointwise: int = 0
    output_padding: Any = 0
    offset_groups: int = 0
    mask: bool = False
    quick: bool = False
    axis: str = ""
    value: int = 0
    scale: float = 1.0

    @property
    def variant(self) -> str:
        """``"conv"``, ``"conv_transpose"``, ``"deform_conv"`` or ``"separable_conv"``."""
        return parse_op(self.op, OPS + SEPARABLE)[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(O, C/G, *kernel); (C, O/G, *kernel) for a transposed convolution; of the depthwise part."""
        first, second = self.out_channels, self.input[1]
        if self.variant == "conv_transpose":
            first, second = second, first
        return (first, second // self.groups, *self.kernel)

    @property
    def pointwise_shape(self) -> tuple[int, ...]:
        """(O, C*M, 1, ...) of a separable convolution."""
        return (self.pointwise, self.out_channels, *(1,) * len(self.kernel))

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the public function."""
        names = {
            "conv": ("stride", "padding", "dilation", "groups"),
            "conv_transpose": ("stride", "padding", "output_padding", "groups", "dilation"),
            "deform_conv": ("stride", "padding", "dilation"),
            "separable_conv": ("stride", "padding", "dilation"),
        }
        return {name: getattr(self, name) for name in names[self.variant]}

    def problem(self, dtype: Any = np.float32) -> Problem:
        """Return the problem, channels first."""
        if self.pointwise:
            return SeparableProblem.of(
                self.op, self.input, self.weight_shape, self.pointwise_shape, dtype=dtype, **self.options()
            )
        shapes: dict[str, Any] = {}
        if self.offset_groups:
            # What the deformation does not change, the output size among it, is that of the plain convolution.
            plain = Problem.create(
                self.op.replace("deform_", ""),
                self.input,
                self.weight_shape,
                groups=self.groups,
                **self.options(),
            )
            channels = self.offset_groups * plain.taps
            shapes["offset_shape"] = (plain.batch, channels * plain.ndim, *plain.output_size)
            if self.mask:
                shapes["mask_shape"] = (plain.batch, channels, *plain.output_size)
        return Problem.create(self.op, self.input, self.weight_shape, dtype=dtype, **self.options(), **shapes)

    def operands(self, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Return the arrays: normal noise, weights scaled so that results are near 1."""
        problem = self.problem(dtype)
        rng = np.random.default_rng(0)
        fan_in = math.prod(self.weight_shape[1:]) * self.scale
        operands = {
            "input": rng.standard_normal(self.input) * self.scale,
            "weight": rng.standard_normal(self.weight_shape)
            / math.sqrt(fan_in),  # results stay normal numbers
        }
        if self.pointwise:
            operands["depthwise_weight"] = operands.pop("weight")
            mixing = rng.standard_normal(self.pointwise_shape) / math.sqrt(self.out_channels)
            operands["pointwise_weight"] = mixing
        if self.offset_groups:
            far = OFFSET_SPREAD * rng.standard_normal(problem.offset_shape)
            operands["offset"] = (np.floor(far * OFFSET_STEPS) + 0.5) / OFFSET_STEPS
            if self.mask:
                operands["mask"] = rng.random(problem.mask_shape)
        return {name: np.ascontiguousarray(array, problem.dtype) for name, array in operands.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Workload":
        """Return the workload whose fields came from TOML or JSON."""
        values: dict[str, Any] = {name: tuple(v) if type(v) is list else v for name, v in fields.items()}
        return cls(**values)


# So small that a call costs little but its overhead.
TINY = Workload("tiny", "overhead", "overhead", "conv2d", (1, 8, 8, 8), 8, (3, 3), padding=1)


@cache
def load() -> tuple[Workload, ...]:
    """Return all layers of ``workloads.toml``, in its order.

    Examples
    --------
    >>> from fastconv.benchmark import workloads
    >>> sorted({layer.family for layer in workloads.load()})
    ['conv1d', 'conv3d', 'deformable', 'dense', 'depthwise', 'dilated', 'grouped', 'separable', 'transposed']
    """
    text = resources.files(__package__).joinpath("workloads.toml").read_text(encoding="utf-8")
    return tuple(
        Workload.from_dict({"name": name, "family": family, "list": list_, **fields})
        for list_, families in tomllib.loads(text).items()
        for family, layers in families.items()
        for name, fields in layers.items()
    )


def select(workloads: Sequence[Workload], patterns: Sequence[str]) -> list[Workload]:
    """Return the layers whose name, family or list matches one of the patterns; all where there are none.

    A pattern without wildcards matches any part of the name.

    Examples
    --------
    >>> from fastconv.benchmark import workloads
    >>> [layer.name for layer in workloads.select(workloads.load(), ["unet_*", "rnx50_c5"])]
    ['rnx50_c5_g32', 'unet_up2']
    """
    return [w for w in workloads if not patterns or any(_matches(w, pattern) for pattern in patterns)]


def _matches(workload: Workload, pattern: str) -> bool:
    if pattern in (workload.family, workload.list):
        return True
    return fnmatchcase(workload.name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")


def scaling() -> list[Workload]:
    """Return one dense layer with each of its sizes varied in turn, around powers of two too."""
    base = Workload("", "scaling", "scaling", "conv2d", (1, 64, 56, 56), 64, (3, 3), padding=1).as_dict()
    found = []

    def vary(axis: str, value: int, **changes: Any) -> None:
        fields = base | changes | {"name": f"scale_{axis}_{value}", "axis": axis, "value": value}
        found.append(Workload.from_dict(fields))

    for size in (7, 14, 28, 56, 112, 224):
        vary("size", size, input=(1, 64, size, size))
    for size in (31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257):
        vary("edge", size, input=(1, 16, size, size), out_channels=16)
    for channels in (1, 3, 8, 16, 31, 32, 33, 64, 127, 128, 129, 256):
        vary("channels", channels, input=(1, channels, 28, 28), out_channels=channels)
    for kernel in (1, 2, 3, 5, 7, 9, 11):
        vary(
            "kernel",
            kernel,
            kernel=(kernel, kernel),
            padding=kernel // 2,
            input=(1, 32, 56, 56),
            out_channels=32,
        )
    for batch in (1, 2, 3, 4, 8, 16):
        vary("batch", batch, input=(batch, 64, 28, 28))
    for dilation in (1, 2, 3, 4, 8, 16):
        vary("dilation", dilation, dilation=dilation, padding=dilation)
    for exponent in (0, 1):
        vary("denormal", exponent, scale=DENORMAL if exponent else 1.0)
    return found

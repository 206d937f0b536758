"""The description of a depthwise-separable convolution: a depthwise one, and a pointwise one that reads its output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import ShapeError
from .problem import SEPARABLE, Ints, Problem, as_activation, axis_names, check_addressable, dims, parse_op

__all__ = ["SeparableProblem"]


@dataclass(frozen=True, slots=True)
class SeparableProblem(Problem):
    """One separable convolution; kernel, stride, padding and bias are those of the depthwise part.

    Attributes
    ----------
    depthwise_channels : int
        Channels between the parts, a multiple of C.
    depthwise_activation : str, callable or None
        Applied between them; `activation` comes last.
    pointwise_bias : bool
    """

    depthwise_channels: int = 0
    depthwise_activation: str | Callable | None = None
    pointwise_bias: bool = False

    @classmethod
    def of(
        cls,
        op: str,
        input_shape: Sequence[int],
        depthwise_shape: Sequence[int],
        pointwise_shape: Sequence[int],
        *,
        depthwise_bias_shape: Sequence[int] | None = None,
        pointwise_bias_shape: Sequence[int] | None = None,
        depthwise_activation: Any = None,
        **options: Any,
    ) -> "SeparableProblem":
        """Validate the arguments of one call, with its batched shapes, and return the problem they describe."""
        _, ndim = parse_op(op, SEPARABLE)
        input_shape, first, last = tuple(input_shape), tuple(depthwise_shape), tuple(pointwise_shape)
        names = dims("C*M", "1", *(f"K{axis}" for axis in axis_names(ndim)))
        if len(first) != ndim + 2 or first[1] != 1 or min(first) < 1:
            raise ShapeError(
                f"depthwise_weight must have a shape {names} without empty dimensions, got {first}"
            )
        if len(input_shape) == ndim + 2:
            channels = input_shape[-1 if options.get("layout") == "NHWC" else 1]
            if channels and first[0] % channels:
                raise ShapeError(
                    f"depthwise_weight must have a multiple of the input's {channels} channels as outputs, got "
                    f"{first[0]} (input {input_shape}, depthwise_weight {first})"
                )
        if len(last) != ndim + 2 or last[0] < 1 or last[1:] != (first[0], *(1,) * ndim):
            raise ShapeError(
                f"pointwise_weight must have shape {dims('O', str(first[0]), *'1' * ndim)}, with an input for each of "
                f"the depthwise outputs, got {last} (depthwise_weight {first})"
            )
        for name, shape, count in (
            ("depthwise_bias", depthwise_bias_shape, first[0]),
            ("pointwise_bias", pointwise_bias_shape, last[0]),
        ):
            if shape is not None and tuple(shape) != (count,):
                raise ShapeError(
                    f"{name} must have shape ({count},), one value an output channel, got {tuple(shape)}"
                )
        problem = cls.create(op, input_shape, first, bias_shape=depthwise_bias_shape, **options)
        assert isinstance(problem, cls)
        problem = replace(
            problem,
            out_channels=last[0],
            depthwise_channels=first[0],
            depthwise_activation=as_activation(depthwise_activation, "depthwise_activation"),
            pointwise_bias=pointwise_bias_shape is not None,
        )
        check_addressable("output", problem.output_shape)
        return problem

    def parts(self) -> tuple[Problem, Problem]:
        """Return the depthwise problem and the pointwise one."""
        common = {field.name: getattr(self, field.name) for field in fields(Problem)}
        common |= {"op": f"conv{self.ndim}d", "variant": "conv"}
        depthwise = Problem(
            **common | {"out_channels": self.depthwise_channels, "activation": self.depthwise_activation}
        )
        ones = (1,) * self.ndim
        changes = {
            "in_channels": self.depthwise_channels,
            "groups": 1,
            "input_size": self.output_size,
            "kernel_size": ones,
            "stride": ones,
            "dilation": ones,
            "padding": ((0, 0),) * self.ndim,
            "bias": self.pointwise_bias,
            "padding_mode": "zeros",
        }
        return depthwise, Problem(**common | changes)

    @property
    def weight_shape(self) -> Ints:
        """Of the depthwise weight: (C*M, 1, *kernel)."""
        return (self.depthwise_channels, 1, *self.kernel_size)

    @property
    def pointwise_shape(self) -> Ints:
        """Of the pointwise weight: (O, C*M, 1, ...)."""
        return (self.out_channels, self.depthwise_channels, *(1,) * self.ndim)

    @property
    def flops(self) -> int:
        """Floating-point operations of both parts."""
        return sum(part.flops for part in self.parts())

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic in bytes: every operand once, and nothing in between."""
        return sum(part.bytes for part in self.parts()) - self.saved_bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes that two calls write and read again in between."""
        between = self.batch * self.depthwise_channels * math.prod(self.output_size)
        return 2 * between * self.dtype.itemsize

    def __str__(self) -> str:
        """The depthwise part in the project's alphabet of symbols, and what the pointwise one adds."""
        text = str(self.parts()[0]).replace(f"conv{self.ndim}d", self.op, 1)
        text = text.replace(
            f" o{self.depthwise_channels} ", f" m{self.depthwise_channels} o{self.out_channels} ", 1
        )
        text += " pointwise" + (" bias" if self.pointwise_bias else "")
        return text + (f" {getattr(self.activation, '__name__', self.activation)}" if self.activation else "")

"""What a convolution costs: parameters, multiply-adds, bytes. The benchmark counts by this too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..call import is_shape
from ..functional import Ints, Layout, Padding, PaddingMode
from ..problem import CONV_TRANSPOSE, DCN, DEFORM_CONV, DEFORM_TRANSPOSE, Problem
from ..separable_problem import SeparableProblem
from .arguments import as_image_operands, problem_of
from .geometry import positions, source_pixels, tap_numbers

__all__ = ["Cost", "cost", "inbounds_flops"]


def cost(
    op: str,
    input_shape: Sequence[int],
    weight: Any = None,
    *,
    bias: bool = False,
    offset: Any = None,
    mask: Any = None,
    offset_groups: int | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int | None = None,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    kernel_size: Ints | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    dtype: Any = None,
) -> "Cost":
    """Return what a convolution costs, whoever computes it.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"`` or ``"deform_conv3d"``.
    input_shape : sequence of int
        Shape of the input, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    weight : array_like or tuple of int
        As for the function, or its shape; ``"dcnv3"`` and ``"dcnv4"`` have none.
    bias : bool, optional
        Whether there is a bias.
    offset, mask : array_like or tuple of int, optional
        As for the function, or their shapes (deformable only). Where the displacements are not known, those taps
        are counted that would lie on the image without them.
    offset_groups : int, optional
        In place of `offset`: the number of channel groups with offsets of their own; 1 if not given.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    kernel_size, offset_scale, remove_center : optional
        As for :func:`dcnv3`, where they take the place of a weight.
    dtype : dtype, optional
        Type that bytes are counted in; that of the arrays if not given, float32 for shapes.

    Returns
    -------
    Cost
        Costs of layers add up: ``cost(...) + cost(...)``.

    Raises
    ------
    ShapeError, ValueError, TypeError
        As the function does.

    Examples
    --------
    The second layer of AlexNet, split over two GPUs, has half of the parameters and work:

    >>> import fastconv
    >>> whole = fastconv.cost("conv2d", (96, 27, 27), (256, 96, 5, 5), padding=2)
    >>> split = fastconv.cost("conv2d", (96, 27, 27), (256, 48, 5, 5), padding=2, groups=2)
    >>> whole.parameters, split.parameters, split.macs, split.macs / whole.macs
    (614400, 307200, 223948800, 0.5)
    >>> print(split)
    parameters       307,200
    multiply-adds    223,948,800 (204,484,608 on the image)
    bytes            2,255,232
    intensity        181 FLOP/byte
    """
    if isinstance(mask, bool):
        raise TypeError(f"mask must be an array or a shape, got {mask}")
    deformable = op in DEFORM_CONV + DEFORM_TRANSPOSE + DCN
    if deformable and offset is None and offset_groups is None:
        offset_groups = 1
    problem, unbatched = problem_of(
        op,
        input_shape,
        weight,
        bias=(_out_channels(op, weight, groups),) if bias else None,
        offset=offset,
        mask=mask,
        offset_groups=offset_groups,
        dtype=dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        output_size=output_size,
        padding_mode=padding_mode,
        layout=layout,
        kernel_size=kernel_size,
        offset_scale=offset_scale,
        remove_center=remove_center,
    )
    moved = None if offset is None or is_shape(offset) else as_image_operands(problem, unbatched, offset)
    channels, pixels = (
        (problem.out_channels, problem.input_size)
        if problem.transposed
        else (problem.in_channels, problem.output_size)
    )
    samples = problem.batch * channels * problem.points * math.prod(pixels)
    weights = 0 if op in DCN else math.prod(problem.weight_shape)
    return Cost(
        parameters=weights + (problem.out_channels if bias else 0),
        macs=problem.flops // 2 * problem.points // problem.taps,
        macs_inside=inbounds_flops(problem, moved) // 2,
        sampling_macs=samples * 2**problem.ndim if deformable else 0,
        bytes=problem.bytes,
    )


@dataclass(frozen=True)
class Cost:
    """What convolutions cost; made by :func:`cost`.

    Attributes
    ----------
    parameters : int
        Weights and biases.
    macs : int
        Multiply-adds of all taps, those in the padding included.
    macs_inside : int
        Multiply-adds of the taps on the image: what has to be done.
    sampling_macs : int
        Multiply-adds of interpolating between pixels (deformable only), not counted in the others. That many are
        added to pixels in a transposed one.
    bytes : int
        Compulsory memory traffic: each operand and the result, once.
    """

    parameters: int
    macs: int
    macs_inside: int
    sampling_macs: int
    bytes: int

    @property
    def flops(self) -> int:
        """Operations that have to be done: two for each multiply-add on the image."""
        return 2 * self.macs_inside

    @property
    def intensity(self) -> float:
        """Operations on the image for each byte of compulsory traffic."""
        return self.flops / max(self.bytes, 1)

    def __add__(self, other: "Cost") -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __str__(self) -> str:
        lines = {
            "parameters": f"{self.parameters:,}",
            "multiply-adds": f"{self.macs:,} ({self.macs_inside:,} on the image)",
            "sampling": f"{self.sampling_macs:,} multiply-adds" if self.sampling_macs else None,
            "bytes": f"{self.bytes:,}",
            "intensity": f"{self.intensity:.3g} FLOP/byte",
        }
        return "\n".join(f"{name:<17}{text}" for name, text in lines.items() if text is not None)


def inbounds_flops(problem: Problem, offset: np.ndarray | None = None) -> int:
    """Count the operations of the taps that fall on the image: two for each multiply-add.

    Interpolation between pixels is not counted: how much of it there is depends on who does it.

    Parameters
    ----------
    problem : Problem
    offset : numpy.ndarray, optional
        The displacements of a deformable problem, (N, DG * taps * ndim, *output size); zero if not given. A sampled
        point counts if it reads at least one pixel.

    Examples
    --------
    >>> from fastconv import Problem
    >>> from fastconv.analysis.cost import inbounds_flops
    >>> inbounds_flops(Problem.create("conv1d", (1, 1, 4), (1, 1, 3), padding=1, groups=1))  # 3 + 3 + 2 + 2 taps
    20
    """
    if isinstance(problem, SeparableProblem):
        return sum(inbounds_flops(part) for part in problem.parts())
    if offset is not None:
        inside = _sampled_inside(problem, offset)
        moved, mixed = problem.in_channels, problem.out_channels
        if problem.transposed:
            moved, mixed = mixed, moved
        return 2 * inside * (moved // problem.offset_groups) * (mixed // problem.groups)
    if problem.variant in DCN:
        nowhere = (problem.batch, problem.offset_groups * problem.points * problem.ndim, *problem.output_size)
        return inbounds_flops(problem, np.broadcast_to(0.0, nowhere))
    met = problem.output_size if problem.transposed else problem.input_size
    pairs = [
        np.count_nonzero(source_pixels(positions(problem, axis), size, problem.padding_mode) >= 0)
        for axis, size in enumerate(met)
    ]
    return 2 * problem.batch * math.prod(map(int, pairs)) * math.prod(problem.weight_shape[:2])


def _sampled_inside(problem: Problem, offset: np.ndarray) -> int:
    """Count the sampled points, over images, offset groups, taps and output pixels, that are not zero by rule."""
    ndim, size = problem.ndim, offset.shape[2:]
    met = problem.output_size if problem.transposed else problem.input_size
    moved = offset.reshape(problem.batch, problem.offset_groups, problem.points, ndim, *size)
    total = 0
    for index, tap in enumerate(tap_numbers(problem)):
        inside: Any = True
        for axis in range(ndim):
            grid = positions(problem, axis)[:, tap[axis]]
            at = problem.offset_scale * moved[:, :, index, axis] + grid.reshape(-1, *(1,) * (ndim - 1 - axis))
            inside = inside & (at > -1) & (at < met[axis])
        total += int(np.count_nonzero(inside))
    return total


def _out_channels(op: str, weight: Any, groups: int | None) -> int:
    """Return the number of output channels that a weight, or its shape, says."""
    shape = weight if is_shape(weight) else np.shape(weight)
    if op in DCN:
        raise ValueError(f"{op} has no bias")
    if len(shape) < 2:
        return 0
    return shape[1] * (groups or 1) if op in CONV_TRANSPOSE + DEFORM_TRANSPOSE else shape[0]

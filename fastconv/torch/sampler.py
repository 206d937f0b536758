"""The deformable convolution as a composition of PyTorch's own operators, which autograd can differentiate at will.

It is slow and holds every sample in memory. It serves derivatives of second and higher order, for which there is no
kernel; its first derivatives are those of the kernels, also at kinks and at the border.
"""

from collections.abc import Sequence
from itertools import product

import torch

__all__ = ["deform_conv"]


def deform_conv(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return the deformable convolution without bias; `padding` has (before, after) of each axis in turn."""
    n, c, *size = input.shape
    o, per_group, *kernel = weight.shape
    out = offset.shape[2:]
    taps, groups = kernel_taps(kernel), c // per_group
    offset_groups = offset.shape[1] // (len(taps) * len(kernel))
    points = regular_points(input, taps, out, stride, padding, dilation)
    points = points + offset.reshape(n, offset_groups, len(taps), len(kernel), -1)
    columns = interpolate(input.reshape(n, offset_groups, c // offset_groups, -1), size, points)
    if mask is not None:
        columns = columns * mask.reshape(n, offset_groups, 1, len(taps), -1)
    columns = columns.reshape(n, groups, per_group, len(taps), -1)
    weight = weight.reshape(groups, o // groups, per_group, len(taps))
    return torch.einsum("ngckp,gock->ngop", columns, weight).reshape(n, o, *out)


def kernel_taps(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the position of each tap, the last axis fastest."""
    return list(product(*map(range, kernel)))


def regular_points(
    like: torch.Tensor,
    taps: Sequence[tuple[int, ...]],
    out: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Return the (taps, axes, pixels) coordinates that an ordinary convolution reads, in input pixels."""
    axes = [
        torch.arange(size, dtype=like.dtype, device=like.device) * s - before
        for size, s, before in zip(out, stride, padding[::2], strict=True)
    ]
    starts = torch.stack([grid.reshape(-1) for grid in torch.meshgrid(*axes, indexing="ij")])
    steps = torch.tensor(taps, dtype=like.dtype, device=like.device) * like.new_tensor(dilation)
    return starts + steps[:, :, None]


def interpolate(x: torch.Tensor, size: Sequence[int], points: torch.Tensor) -> torch.Tensor:
    """Return x (N, DG, C, pixels of `size`) at points (N, DG, taps, axes, pixels), as (N, DG, C, taps, pixels)."""
    limits = points.new_tensor(size)[:, None]
    # At -1 the value is zero like outside, but its derivative to the right is not.
    inside = ((points >= -1) & (points < limits)).all(-2)
    points = torch.where((inside | points.isnan().any(-2)).unsqueeze(-2), points, 0.0)
    low = points.detach().floor()
    above = points - low
    value = x.new_zeros(())
    for corner in product((0, 1), repeat=len(size)):
        q = low + points.new_tensor(corner)[:, None]
        exists = inside & ((q >= 0) & (q < limits)).all(-2)
        share = torch.where(points.new_tensor(corner)[:, None] > 0, above, 1 - above).prod(-2)
        pixel = torch.zeros_like(exists, dtype=torch.long)
        for axis, extent in enumerate(size):
            pixel = pixel * extent + torch.where(exists, q[..., axis, :], 0.0).long()
        index = pixel.flatten(2).unsqueeze(2).expand(-1, -1, x.shape[2], -1)
        read = x.gather(-1, index).unflatten(-1, exists.shape[2:])
        value = value + torch.where(exists.unsqueeze(2), read, 0.0) * share.unsqueeze(2)
    return value

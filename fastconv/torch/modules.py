"""Layers by the names, arguments, state_dict keys and initialisation of ``torch.nn`` and ``torchvision.ops``."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..problem import as_ints
from .functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    deform_conv2d,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeformConv2d",
    "DeformConv2dPack",
]

# One node each in what torch.fx traces.
for name in (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv2d",
):
    torch.fx.wrap(name)

Ints = int | tuple[int, ...]


class Conv1d(nn.Conv1d):
    """:class:`torch.nn.Conv1d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.Conv1d(2, 4, 3, padding="same")(torch.ones(1, 2, 9)).shape
    torch.Size([1, 4, 9])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, (N, C, W) or (C, W)."""
        return _forward(conv1d, self, input)


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")(torch.ones(1, 2, 9, 9)).shape
    torch.Size([1, 4, 9, 9])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, (N, C, H, W) or (C, H, W)."""
        return _forward(conv2d, self, input)


class Conv3d(nn.Conv3d):
    """:class:`torch.nn.Conv3d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.Conv3d(2, 4, 3, stride=2)(torch.ones(1, 2, 9, 9, 9)).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, (N, C, D, H, W) or (C, D, H, W)."""
        return _forward(conv3d, self, input)


class ConvTranspose1d(nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.ConvTranspose1d(2, 4, 2, stride=2)(torch.ones(1, 2, 9)).shape
    torch.Size([1, 4, 18])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of `input`, (N, C, W) or (C, W)."""
        return _forward_transposed(conv_transpose1d, self, input, output_size)


class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> up = fastconv.torch.ConvTranspose2d(2, 4, 3, stride=2, padding=1)
    >>> up(torch.ones(1, 2, 9, 9), output_size=(18, 18)).shape
    torch.Size([1, 4, 18, 18])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of `input`, (N, C, H, W) or (C, H, W)."""
        return _forward_transposed(conv_transpose2d, self, input, output_size)


class ConvTranspose3d(nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` on fastconv's kernels.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> fastconv.torch.ConvTranspose3d(2, 4, 2, stride=2)(torch.ones(1, 2, 3, 3, 3)).shape
    torch.Size([1, 4, 6, 6, 6])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of `input`, (N, C, D, H, W) or (C, D, H, W)."""
        return _forward_transposed(conv_transpose3d, self, input, output_size)


class DeformConv2d(nn.Module):
    """``torchvision.ops.DeformConv2d`` on fastconv's kernels.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size, stride, padding, dilation : int or 2 ints
    groups : int, optional
        G.
    bias : bool, optional
        Whether to learn a bias.

    Attributes
    ----------
    weight : Parameter, shape (O, C/G, KH, KW)
    bias : Parameter, shape (O,), or None

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> layer = fastconv.torch.DeformConv2d(4, 6, 3, padding=1)
    >>> layer(torch.ones(1, 4, 8, 8), torch.zeros(1, 18, 8, 8)).shape
    torch.Size([1, 6, 8, 8])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_ints("kernel_size", kernel_size, 2, 1)
        self.stride = as_ints("stride", stride, 2, 1)
        self.padding = as_ints("padding", padding, 2, 0)
        self.dilation = as_ints("dilation", dilation, 2, 1)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as those of :class:`torch.nn.Conv2d` are drawn."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the deformable convolution of `input`, (N, C, H, W) or (C, H, W)."""
        return deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )

    def extra_repr(self) -> str:
        """Return the arguments that make this layer."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        text += f", padding={self.padding}" if any(self.padding) else ""
        text += f", dilation={self.dilation}" if max(self.dilation) > 1 else ""
        text += f", groups={self.groups}" if self.groups > 1 else ""
        return text + ("" if self.bias is not None else ", bias=False")


class DeformConv2dPack(DeformConv2d):
    """A deformable convolution that learns where to look: a parallel convolution gives offsets and mask.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of :class:`DeformConv2d`.
    offset_groups : int, optional
        DG, the number of groups of channels with offsets of their own.
    modulated : bool, optional
        Whether samples are multiplied with a learned mask (v2) or not (v1).

    Attributes
    ----------
    conv_offset : Conv2d
        The parallel branch, of the same kernel size, stride, padding and dilation. It starts at zero, so that the
        layer starts as an ordinary convolution, halved by the mask. Its output has the offsets first, then the
        mask before the sigmoid.

    Notes
    -----
    v1: Dai et al., "Deformable convolutional networks", 2017 (arXiv:1703.06211). v2: Zhu et al., "Deformable
    ConvNets v2", 2019 (arXiv:1811.11168), where the branch learns at a tenth of the learning rate.

    Examples
    --------
    >>> import torch, fastconv.torch
    >>> layer = fastconv.torch.DeformConv2dPack(4, 6, 3, padding=1)
    >>> layer(torch.ones(1, 4, 8, 8)).shape
    torch.Size([1, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        offset_groups: int = 1,
        modulated: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(f"offset_groups={offset_groups} must divide in_channels={in_channels}")
        self.offset_groups = offset_groups
        self.modulated = modulated
        taps = offset_groups * math.prod(self.kernel_size)
        self.conv_offset = Conv2d(
            in_channels,
            taps * (3 if modulated else 2),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def sampling(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the offsets and the mask for `input`; the mask is None in v1."""
        found = self.conv_offset(input)
        if not self.modulated:
            return found, None
        taps = found.shape[-3] // 3
        offset, mask = found.split([2 * taps, taps], dim=-3)
        return offset, mask.sigmoid()

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Return the deformable convolution of `input`, (N, C, H, W) or (C, H, W)."""
        return super().forward(input, *self.sampling(input))

    def extra_repr(self) -> str:
        """Return the arguments that make this layer."""
        text = f"{super().extra_repr()}, offset_groups={self.offset_groups}"
        return text + ("" if self.modulated else ", modulated=False")


def _forward(function: Any, layer: Any, input: Tensor) -> Tensor:
    return function(
        input,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        padding_mode=layer.padding_mode,
    )


def _forward_transposed(function: Any, layer: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
    ndim = len(layer.kernel_size)
    size = None if output_size is None else list(output_size)
    extra = layer._output_padding(
        input, size, layer.stride, layer.padding, layer.kernel_size, ndim, layer.dilation
    )
    return function(
        input,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        tuple(extra),
        layer.groups,
        layer.dilation,
    )

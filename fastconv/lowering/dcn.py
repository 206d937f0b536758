"""DCNv3 and DCNv4: the sampling stage of a deformable convolution, and sums in place of the register tile."""

import math
import struct
from typing import Any

import numpy as np

from ..problem import Problem
from .deform import GFLOPS, NARROW, bordered_axes
from .dense import add_halo
from .geometry import Image, output_strides
from .program import WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["lower_dcn"]

# Points and masks of a tile, for all taps, stay in L1 beside what they sample.
TILE = 64
MOST_POINTS = 1 << 11


def lower_dcn(problem: Problem, engines: Engines) -> Any:
    """Return a program for sums of samples, whether masks are logits or not."""
    p, b = problem, Builder(problem, engines)
    channels = p.in_channels // p.offset_groups
    # A vector may reach into the next pixel: with few channels, whole vectors would multiply the image in memory.
    width = round_up(channels, b.lanes if channels >= b.lanes else NARROW)
    axes = bordered_axes(p)
    image = Image.of(axes, width)
    image_elements = image.size * p.offset_groups
    b.chunked(image_elements * b.itemsize)
    starts = np.arange(p.offset_groups + 1) * channels
    what = "bordered input in channel blocks"
    x = add_halo(b, "halo_pixels", axes, image, image_elements, image.size, starts, 2 * b.lanes, what=what)

    pixels, sums = math.prod(p.output_size), round_up(channels, b.lanes)
    tile = round_up(min(max(min(TILE, MOST_POINTS // p.taps), b.lanes), pixels), b.lanes)
    work = (
        p.taps * tile * (8 // b.itemsize + 4 + 1)
        + 11 * tile
        + sums * (tile + b.lanes)
        + tile * sums
        + 2 * tile
        + b.lanes
    )
    y_image, y_channel, _, _, y_w = output_strides(p)
    middle = [d * (k - 1) // 2 for k, d in zip(p.kernel_size, p.dilation, strict=True)]
    words: Words = dict.fromkeys(WORDS["dcn"], 0)
    words |= dict(
        x=x,
        offset=b.operand("offset"),
        mask=b.operand("mask"),
        y=b.operand("output"),
        work=b.thread(work),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=image_elements,
        offset_image=math.prod(p.offset_shape[1:]),
        mask_image=math.prod(p.mask_shape[1:]),
        y_image=y_image,
        y_channel=y_channel,
        y_w=y_w,
        ndim=p.ndim,
        size_d=1,
        line_d=image.d // width,
        line_h=image.h // width,
        width=width,
        outside=(p.input_size[0] + 1) * image.h // width,
        out_d=1,
        stride_d=1,
        dil_d=1,
        kernel_d=1,
        groups=p.offset_groups,
        channels=channels,
        w_width=sums,
        w_blocks=1,
        tile=tile,
        tiles=-(-pixels // tile),
        x_group=image.size,
        points=p.points,
        skipped=p.taps // 2 if p.remove_center else p.taps,
        middle_h=middle[0],
        middle_w=middle[1],
        scale=struct.unpack("<q", struct.pack("<d", p.offset_scale))[0],
        softmax=int(p.variant == "dcnv3"),
    )
    before = tuple(pair[0] for pair in p.padding)
    named = {"size": p.input_size, "out": p.output_size, "kernel": p.kernel_size}
    for name, values in (named | {"stride": p.stride, "pad": before, "dil": p.dilation}).items():
        words |= {f"{name}_{axis}": value for axis, value in zip("hw", values, strict=True)}
    b.stage("dcn", p.offset_groups * -(-pixels // tile), words)
    work_ns = pixels * p.taps * p.in_channels * 10 / GFLOPS
    return b.finish(work_ns, f"{tile} points, {min(sums // b.lanes, 4)} vectors of channels")

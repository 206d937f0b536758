"""DCNv3 and DCNv4: the sampling stage of a deformable convolution, and sums in place of the register tile."""

import math
import struct
from typing import Any

from ..problem import Problem
from .deform import GFLOPS, LINE, Bordered
from .geometry import output_strides
from .program import WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["dcn_words", "lower_dcn", "tile_of"]

# Points and masks of a tile, for all taps, stay in L1 beside what they sample.
TILE = 64
MOST_POINTS = 1 << 11
# Operations of a sample: its corners, and the sum.
SAMPLE_FLOPS = 10


def lower_dcn(problem: Problem, engines: Engines) -> Any:
    """Return a program for sums of samples, whether masks are logits or not."""
    p, b = problem, Builder(problem, engines)
    channels = p.in_channels // p.offset_groups
    bordered = Bordered.of(b, [(g * channels, channels) for g in range(p.offset_groups)])
    b.chunked(bordered.elements * b.itemsize)
    x = bordered.add(b)

    pixels, sums = math.prod(p.output_size), round_up(channels, b.lanes)
    tile = tile_of(b)
    bases, shares, masks = p.taps * tile * 8 // b.itemsize, p.taps * tile * 4, p.taps * tile
    turned, results, offsets = sums * (tile + b.lanes), tile * sums, (2 + 3 * p.points) * tile
    work = bases + 6 * tile + shares + masks + turned + results + offsets + b.lanes + LINE
    y_image, y_channel, _, _, y_w = output_strides(p)
    words: Words = dict.fromkeys(WORDS["dcn"], 0)
    words |= dcn_words(p, bordered, tile)
    words |= dict(
        x=x,
        offset=b.operand("offset"),
        mask=b.operand("mask"),
        y=b.operand("output"),
        work=b.thread(work),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=bordered.elements,
        offset_image=math.prod(p.offset_shape[1:]),
        mask_image=math.prod(p.mask_shape[1:]),
        y_image=y_image,
        y_channel=y_channel,
        y_w=y_w,
        groups=p.offset_groups,
        channels=channels,
        w_width=sums,
        w_blocks=1,
        tiles=-(-pixels // tile),
        splits=1,
        x_group=bordered.image.size,
        offset_pixel=1 if p.layout == "NCHW" else math.prod(p.offset_shape[1 : -p.ndim]),
        mask_pixel=1 if p.layout == "NCHW" else math.prod(p.mask_shape[1 : -p.ndim]),
    )
    b.stage("dcn", p.offset_groups * -(-pixels // tile), words)
    work_ns = pixels * p.taps * p.in_channels * SAMPLE_FLOPS / GFLOPS
    return b.finish(work_ns, f"{tile} points, {min(sums // b.lanes, 4)} vectors of channels")


def tile_of(b: Builder) -> int:
    """Return how many output pixels are taken together."""
    p = b.problem
    most = max(min(TILE, MOST_POINTS // p.taps), b.lanes)
    return round_up(min(most, math.prod(p.output_size)), b.lanes)


def dcn_words(p: Problem, bordered: Bordered, tile: int) -> dict[str, int]:
    """Return the words about points, and how they and their masks are made."""
    middle = {
        f"middle_{axis}": d * (k - 1) // 2 for axis, k, d in zip("hw", p.kernel_size, p.dilation, strict=True)
    }
    return (
        bordered.words(p, tile)
        | middle
        | dict(
            points=p.points,
            skipped=p.taps // 2 if p.remove_center else p.taps,
            scale=struct.unpack("<q", struct.pack("<d", p.offset_scale))[0],
            softmax=int(p.variant == "dcnv3"),
        )
    )

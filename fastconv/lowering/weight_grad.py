"""The weight gradient of a convolution: a product over pixels through the register tile.

The image in line space is the one a convolution reads, so padding, stride and dilation are the same tables as
there. The output's gradient is copied channels last, in blocks of one tile's width.
"""

import math
from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_halo
from .geometry import Axes, Image, axes_of, kernel_index, output_strides, sums_of
from .program import Builder, Engines, Operand, Words, round_up

__all__ = ["lower_weight_grad"]

# Pixels of a panel: with its rows of the image it stays in L1.
PIXEL_BLOCK = 96
# Sums of a task: as many as leave L2 room for the image.
MOST_SUMS_BYTES = 1 << 17
# More tasks than this are enough to keep threads busy.
ENOUGH_TASKS = 16
GFLOPS = 50.0


def lower_weight_grad(problem: Problem, engines: Engines) -> Any:
    """Return a program for the weight gradient of any convolution."""
    b = Builder(problem, engines)
    axes = axes_of(problem)
    p = problem
    taps, offsets, image = _met_taps(axes, 1 if p.layout == "NCHW" else p.in_channels)
    c, o = p.in_channels // p.groups, p.out_channels // p.groups
    most = engines.lane_tile[1] * b.lanes
    blocks = -(-o // most)
    width = round_up(-(-o // blocks), b.lanes)
    rows = c * len(taps)

    x_channel, in_place = _channel_stride(b, axes, image)
    x_image = image.size if p.layout == "NHWC" else x_channel * p.in_channels
    pixels = math.prod(p.output_size)
    gy_image = p.groups * blocks * pixels * width
    b.chunked(((0 if in_place else x_image) + gy_image) * b.itemsize)
    x = b.operand("input") if in_place else _add_image(b, axes, image, x_image, x_channel)
    gy = _add_panels(b, blocks, width, gy_image, most)

    tile_rows = _tile_rows(engines, width // b.lanes)
    parts = max(-(-rows * width * b.itemsize // MOST_SUMS_BYTES), -(-ENOUGH_TASKS // (p.groups * blocks)))
    part = max(round_up(-(-rows // parts), tile_rows), 4 * tile_rows)
    parts = max(-(-rows // part), 1)
    one_chunk = p.batch <= b.images_per_chunk
    sums = 0 if one_chunk else p.groups * blocks * rows * width
    unmet = np.setdiff1d(np.arange(p.taps), taps)
    every = np.arange(c)[:, None]
    words: Words = dict(
        x=x,
        gy=gy,
        gw=Operand("output"),
        sums=_scratch_once(b, sums),
        work=b.thread(part * width),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        first_image=Operand("first_image"),
        batch=p.batch,
        x_image=x_image,
        x_group=c * x_channel,
        x_d=image.d,
        x_h=image.h,
        x_w=image.w,
        gy_image=gy_image,
        gy_block=pixels * width,
        channels=o,
        blocks=blocks,
        width=width,
        rows=rows,
        row_parts=parts,
        row_part=part,
        row_offsets=b.table((every * x_channel + offsets).ravel()),
        row_places=b.table((every * p.taps + taps).ravel()),
        w_row=c * p.taps,
        unmet=c * len(unmet),
        unmet_places=b.table((every * p.taps + unmet).ravel()),
        k_block=PIXEL_BLOCK,
    )
    spatial = zip(("n_d", "n_h", "n_w"), (1,) * (3 - p.ndim) + p.output_size, strict=True)
    tasks = p.groups * blocks * parts
    # All images of a chunk are one task's.
    b.stage("weight_grad", tasks, words | dict(spatial), images_per_task=1 << 40)
    tile = f"{tile_rows} (channel, tap) x {width} channels"
    return b.finish(p.flops / p.batch / GFLOPS if p.batch else 0, tile)


def _met_taps(axes: Axes, pixel: int) -> tuple[np.ndarray, np.ndarray, Image]:
    """Return the taps that meet the image, where each finds output pixel 0 in line space, and that space."""
    image = Image.of(axes, pixel)
    found = sums_of(axes)
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), image
    (one,) = found
    return kernel_index(axes, one), image.tap_offsets(one), image


def _channel_stride(b: Builder, axes: Axes, image: Image) -> tuple[int, bool]:
    """Return the stride of channels in line space, and whether the image is the input itself."""
    in_place = all(axis.is_identity for axis in axes)
    if b.problem.layout == "NHWC":
        return 1, in_place
    # Planes a multiple of 4 kB apart would all fall into the same cache sets.
    aliased = not in_place and image.size * b.itemsize % 4096 == 0
    return image.size + (16 if aliased else 0), in_place


def _add_image(b: Builder, axes: Axes, image: Image, x_image: int, x_channel: int) -> Operand:
    channels = b.problem.in_channels
    if b.problem.layout == "NHWC":
        return add_halo(b, "halo_pixels", axes, image, x_image, 0, np.array([0, channels]), 0)
    return add_halo(b, "halo_planes", axes, image, x_image, x_channel, np.arange(channels + 1), 0)


def _add_panels(b: Builder, blocks: int, width: int, gy_image: int, most: int) -> Operand:
    """Add the stage that copies the output's gradient channels last, and return where it goes."""
    p = b.problem
    o = p.out_channels // p.groups
    starts = [g * o + block * width for g in range(p.groups) for block in range(blocks)]
    image_stride, channel, _, _, w = output_strides(p)
    pixels = math.prod(p.output_size)
    # Rows of pixels are the tasks; they have nothing to do with the image's rows.
    rows = max(d for d in range(1, max(pixels // 64, 1) + 1) if pixels % d == 0)
    line = pixels // rows
    y = b.scratch(gy_image, most, "output gradient, channels last")
    words: Words = dict(
        x=Operand("weight", image_stride * b.itemsize),
        y=y,
        images=Operand("images"),
        x_image=image_stride,
        x_channel=channel,
        x_d=0,
        x_h=line * w,
        x_w=w,
        y_image=gy_image,
        y_block=pixels * width,
        y_d=0,
        y_h=line * width,
        y_phase=0,
        y_w=width,
        repeat=1,
        blocks=p.groups * blocks,
        starts=b.table([*starts, p.out_channels]),
        rows_d=1,
        rows_h=rows,
        w_phases=1,
        w_lines=line,
        map_d=b.table([0]),
        map_h=b.table(np.arange(rows)),
        map_w=b.table(np.arange(line)),
        runs=b.table([0, line, 0, 1]),
    )
    b.stage("halo_pixels", p.groups * blocks * rows, words)
    return y


def _tile_rows(engines: Engines, vectors: int) -> int:
    (tile_rows, tile_vectors), (lane_rows, _) = engines.tile, engines.lane_tile
    return lane_rows if vectors > tile_vectors or lane_rows > tile_rows else tile_rows


def _scratch_once(b: Builder, elements: int) -> Operand:
    """Reserve scratch that all chunks of images share."""
    found = Operand("scratch", 0, b.scratch_bytes)
    b.scratch_bytes = round_up(b.scratch_bytes + elements * b.itemsize, 64)
    return found

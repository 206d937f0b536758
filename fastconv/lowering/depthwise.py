"""One input channel a group, with any channel multiplier, plain or transposed."""

from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_bias_only, add_halo
from .geometry import (
    Axes,
    Image,
    axes_of,
    convolution_axis,
    input_strides,
    kernel_index,
    output_strides,
    sums_of,
)
from .program import ENOUGH_TASKS, K_BLOCK, Builder, Engines, Operand, Words, round_up

__all__ = ["lower_depthwise"]

# The haloed rows of a band share L2 with its output.
BAND_BYTES = 1 << 18
# As in src/native.h: vectors of a strip (so many may be read behind the last pixel), pixels of a tile.
STRIP = 8
PIXELS = 4
GFLOPS = 20.0


def lower_depthwise(problem: Problem, engines: Engines) -> Any:
    """Return a program for a problem with one input channel per group."""
    b = Builder(problem, engines)
    axes = axes_of(problem)
    if any(axis.has_gaps for axis in axes):
        add_bias_only(b)
    if not sums_of(axes):
        return b.finish(0, "none: no tap meets the input")
    if problem.layout == "NHWC":
        _lower_pixels(b, axes)
        tile = f"{PIXELS} pixels x {4 * b.lanes} channels"
    else:
        _lower_planes(b, axes)
        tile = f"{STRIP * b.lanes} pixels"
    return b.finish(problem.flops / problem.batch / GFLOPS if problem.batch else 0, tile)


def _lower_planes(b: Builder, axes: Axes) -> None:
    p = b.problem
    d, h, w = axes
    direct = all(axis.is_identity for axis in axes)
    rows = max(s.count for s in h.sums)
    band = _band(b, axes, rows, direct)
    band_lines = h.lines if band == rows else min(band + h.reach, h.lines)
    image = Image.of(axes, 1, h.lines if direct else band_lines)
    y_image, y_channel, y_d, y_h, y_w = output_strides(p)
    source = input_strides(p)
    records = []
    for s in sums_of(axes):
        kernel = kernel_index(axes, s)
        records.append(
            dict.fromkeys(("task_begin", "w", "w_group", "w_block", "x"), 0)
            | {
                "taps": len(kernel),
                "x_offsets": b.table(image.tap_offsets(s)),
                "w_places": 0,
                "w_offsets": b.table(kernel),
                "x_d": image.d,
                "x_h": image.h,
                "x_w": 1,
                "y": s[0].start * y_d + s[1].start * y_h + s[2].start * y_w,
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_w": s[2].step * y_w,
                "n_d": s[0].count,
                "n_h": s[1].count,
                "n_w": s[2].count,
            }
        )
    if not direct:
        b.copies.append(f"haloed rows: {image.size * b.itemsize / 1e3:.3g} kB a thread")
    bands = -(-rows // band)
    words: Words = dict(
        x=b.operand("input"),
        x_end=Operand("input_end"),
        w=Operand("weight"),
        b=b.operand("bias"),
        y=b.operand("output"),
        work=b.thread(image.size + 2 * STRIP * b.lanes),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=source[0],
        x_channel=source[1],
        x_d=source[2],
        x_h=source[3],
        x_w=source[4],
        y_image=y_image,
        y_channel=y_channel,
        channels=p.in_channels,
        multiplier=p.out_channels // p.in_channels,
        bands=bands,
        band=band,
        lines_d=d.map.size,
        h_phases=h.phases,
        h_lines=h.lines,
        band_lines=band_lines,
        w_phases=w.phases,
        w_lines=w.lines,
        map_d=b.table(d.map),
        map_h=b.table(h.map),
        map_w=b.table(w.map),
        runs=b.table(w.runs()),
        line_d=image.d,
        line_phase=image.phase,
        line_h=image.h,
        sums=b.records("sum", records),
        sum_count=len(records),
        kernel_taps=p.taps,
        k_block=K_BLOCK,
        activation=b.engines.activation(p),
        direct=int(direct),
    )
    b.stage("depthwise_planes", p.in_channels * bands, words)


def _band(b: Builder, axes: Axes, rows: int, direct: bool) -> int:
    """Output rows of a task: all, unless the halo would leave L2 or there would be too few tasks."""
    d, h, w = axes
    if direct and d.lines > 1:
        return rows  # the copy at the end of the array has the strides of the whole image
    line = d.map.size * w.map.size * h.phases * b.itemsize
    most = max(BAND_BYTES // line - h.reach, 4 + h.reach // 2)
    bands = max(-(-rows // most), min(ENOUGH_TASKS // b.problem.in_channels, rows // (8 + 4 * h.reach)), 1)
    return -(-rows // bands)


def _lower_pixels(b: Builder, axes: Axes) -> None:
    p = b.problem
    channels = p.out_channels
    x_image, _, *strides = input_strides(p)
    x = b.operand("input")
    if channels != p.in_channels:
        # Each channel is repeated for every output it feeds; then output and input channels agree.
        x, x_image, strides = _repeat(b)
    w_stride = round_up(channels, b.lanes)
    taps = np.arange(p.taps)
    packed = b.pack(taps, taps * w_stride, p.taps * w_stride, w_stride, 1, rows=channels, x_row=p.taps)
    y_image, _, y_d, y_h, y_w = output_strides(p)
    records, tasks = [], 0
    for s in sums_of(axes):
        sources = [axis.sources(one) for axis, one in zip(axes, s, strict=True)]
        maps = [np.where(at >= 0, at * stride, -1) for at, stride in zip(sources, strides, strict=True)]
        records.append(
            {
                "task_begin": tasks,
                "taps_d": len(s[0].taps),
                "taps_h": len(s[1].taps),
                "taps_w": len(s[2].taps),
                "map_d": b.table(maps[0]),
                "map_h": b.table(maps[1]),
                "map_w": b.table(maps[2]),
                "w_offsets": b.table(kernel_index(axes, s) * w_stride),
                "y": s[0].start * y_d + s[1].start * y_h + s[2].start * y_w,
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_w": s[2].step * y_w,
                "n_d": s[0].count,
                "n_h": s[1].count,
                "n_w": s[2].count,
            }
        )
        tasks += s[0].count * s[1].count
    words: Words = dict(
        x=x,
        w=packed,
        b=b.operand("bias"),
        y=b.operand("output"),
        work=b.thread(w_stride + PIXELS * p.taps * 8 // b.itemsize),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=x_image,
        y_image=y_image,
        channels=channels,
        w_stride=w_stride,
        sums=b.records("pixel_sum", records),
        sum_count=len(records),
        tasks=tasks,
        k_block=K_BLOCK,
        activation=b.engines.activation(p),
    )
    b.stage("depthwise_pixels", tasks, words)


def _repeat(b: Builder) -> tuple[Operand, int, list[int]]:
    """Add the stage that repeats input channels, and return the image it makes, its size and its strides."""
    p = b.problem
    sizes = (1,) * (3 - p.ndim) + p.input_size
    d, h, w = (convolution_axis(size, 1, size, 1, (0, 0), 1, "zeros") for size in sizes)
    image = Image.of((d, h, w), p.out_channels)
    b.chunked(image.size * b.itemsize)
    starts = np.array([0, p.out_channels])
    repeat = p.out_channels // p.in_channels
    x = add_halo(b, "halo_pixels", (d, h, w), image, image.size, 0, starts, 0, repeat, "repeated channels")
    return x, image.size, [image.d, image.h, image.w]

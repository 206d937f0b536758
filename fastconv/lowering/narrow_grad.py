"""The weight gradient of groups with a few channels: dot products of rows, pixels in the vectors."""

from typing import Any

import numpy as np

from ..problem import Problem
from .geometry import Axes, Image, axes_of, input_strides, kernel_index, output_strides, sums_of
from .program import Builder, Engines, Operand, Words, round_up

__all__ = ["lower_plane_grad"]

# The haloed rows of a band and those of the gradient share L2.
BAND_BYTES = 1 << 18
# Rows of a band, per row that it has in common with the next.
BAND_ROWS = 3
GFLOPS = 30.0


def lower_plane_grad(problem: Problem, engines: Engines) -> Any:
    """Return a program for the weight gradient, a group at a time."""
    p, b = problem, Builder(problem, engines)
    axes = axes_of(p)
    d, h, w = axes
    c, o = p.in_channels // p.groups, p.out_channels // p.groups
    n_d, n_h, n_w = (1,) * (3 - p.ndim) + p.output_size
    pitch = round_up(n_w, b.lanes)
    row_bytes = (c * d.map.size * w.map.size * h.phases + o * n_d * pitch) * b.itemsize
    band = min(max(BAND_BYTES // row_bytes - h.reach, BAND_ROWS * h.reach, 1), n_h)
    band = -(-n_h // -(-n_h // band))
    band_lines = h.lines if band == n_h else min(band + h.reach, h.lines)
    line = Image.of(axes, 1, band_lines)
    x_image, x_channel, x_d, x_h, x_w = input_strides(p)
    gy_image, gy_channel, gy_d, gy_h, gy_w = output_strides(p)
    work = o * c * p.taps * b.lanes + c * line.size + b.lanes + o * n_d * band * pitch
    words: Words = dict(
        x=b.operand("input"),
        gy=Operand("weight"),
        gw=Operand("output"),
        work=b.thread(work),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=x_image,
        x_channel=x_channel,
        x_d=x_d,
        x_h=x_h,
        x_w=x_w,
        gy_image=gy_image,
        gy_channel=gy_channel,
        gy_d=gy_d,
        gy_h=gy_h,
        gy_w=gy_w,
        channels=c,
        outputs=o,
        n_d=n_d,
        n_h=n_h,
        n_w=n_w,
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
        line_channel=line.size,
        line_d=line.d,
        line_phase=line.phase,
        line_h=line.h,
        pitch=pitch,
        kernel_taps=p.taps,
    )
    words |= _pairs(b, axes, line, c)
    b.copies.append(f"haloed rows: {c * line.size * b.itemsize / 1e3:.3g} kB a thread")
    # All images belong to each task.
    b.stage("plane_grad", p.groups, words, images_per_task=1 << 40)
    return b.finish(p.flops / p.batch / GFLOPS, f"rows of {n_w} pixels, {o} outputs of a group")


def _pairs(b: Builder, axes: Axes, line: Image, channels: int) -> Words:
    """Return the words about pairs (channel, tap)."""
    found = sums_of(axes)
    if not found:
        return dict(x_offsets=0, places=0, pairs=0)
    (one,) = found
    every = np.arange(channels)[:, None]
    offsets = (every * line.size + line.tap_offsets(one)).ravel()
    places = (every * b.problem.taps + kernel_index(axes, one)).ravel()
    return dict(x_offsets=b.table(offsets), places=b.table(places), pairs=len(places))

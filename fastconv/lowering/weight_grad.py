"""The weight gradient of a convolution: a product over pixels through the register tile.

Where padding is zero, each tap has a list of the pixels at which it meets the image, which is read in place: no halo
and no work on padding. Other padding modes, and few input channels (whose taps share tiles instead), read the
image in line space, where every tap meets every pixel. The output's gradient is copied channels last, in blocks of
one tile's width.
"""

import math
from itertools import product
from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_halo
from .geometry import Image, axes_of, input_strides, kernel_index, output_strides, sums_of
from .program import Builder, Engines, Operand, Words, round_up

__all__ = ["add_channels_last", "lower_weight_grad", "tile_rows"]

# Pixels of a panel: with its rows of the image it stays in L1.
PIXEL_BLOCK = 128
# Panels that are added up first: with 12000 of them in one row, errors were 4e-6 of the greatest weight's gradient.
TOGETHER = 32
# Sums of a task: as many as leave L2 room for the image.
MOST_SUMS_BYTES = 1 << 17
# More tasks than this are enough to keep threads busy, and a task has so many tiles or more.
ENOUGH_TASKS = 16
LEAST_TILES = 2
GFLOPS = 50.0


def lower_weight_grad(problem: Problem, engines: Engines) -> Any:
    """Return a program for the weight gradient of any convolution."""
    p, b = problem, Builder(problem, engines)
    c, o = p.in_channels // p.groups, p.out_channels // p.groups
    most = engines.lane_tile[1] * b.lanes
    blocks = -(-o // most)
    width = round_up(-(-o // blocks), b.lanes)
    rows = tile_rows(engines, width // b.lanes)
    pixels = math.prod(p.output_size)
    gy_image = p.groups * blocks * pixels * width
    in_place = p.padding_mode == "zeros" and (c >= rows // 2 or p.taps == 1)
    image, records, places = (_taps_in_place if in_place else _taps_in_lines)(b, gy_image)
    gy = _add_panels(b, blocks, width, gy_image, most)

    units = len(places) // len(records) if records else c
    sums = units * len(records) * width
    parts = max(-(-sums * b.itemsize // MOST_SUMS_BYTES), -(-ENOUGH_TASKS // (p.groups * blocks)))
    part = max(round_up(-(-units // parts), rows), LEAST_TILES * rows)
    parts = -(-units // part)
    # One chunk of images has its total in the scratch of the thread.
    shared = 0 if p.batch <= b.images_per_chunk else p.groups * blocks * sums
    unmet = np.setdiff1d(np.arange(c * p.taps), places)
    words: Words = dict(
        gy=gy,
        gw=Operand("output"),
        sums=b.scratch_of_all_chunks(shared),
        work=b.thread(2 * part * len(records) * width),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        first_image=Operand("first_image"),
        batch=p.batch,
        gy_image=gy_image,
        gy_block=pixels * width,
        channels=o,
        blocks=blocks,
        width=width,
        units=units,
        unit_parts=parts,
        unit_part=part,
        taps=b.records("grad_tap", records),
        tap_count=len(records),
        places=b.table(places),
        w_row=c * p.taps,
        unmet=len(unmet),
        unmet_places=b.table(unmet),
        k_block=PIXEL_BLOCK,
        together=TOGETHER,
    )
    spatial = zip(("n_d", "n_h", "n_w"), (1,) * (3 - p.ndim) + p.output_size, strict=True)
    # All images of a chunk belong to each task.
    b.stage("weight_grad", p.groups * blocks * parts, words | image | dict(spatial), images_per_task=1 << 40)
    return b.finish(p.flops / p.batch / GFLOPS, f"{rows} channels of a tap x {width} channels")


Taps = tuple[Words, list[dict[str, int]], np.ndarray]


def _taps_in_place(b: Builder, gy_image: int) -> Taps:
    """Return the words about the image, the record of each tap, and where (channel, tap) goes in the weights."""
    p = b.problem
    b.chunked(gy_image * b.itemsize)
    c = p.in_channels // p.groups
    x_image, x_channel, *along = input_strides(p)
    along = along[3 - p.ndim :]
    met = []  # for each axis (tap, begin, end, offset), of taps that meet the image
    for size, kernel, out, s, (before, _), dilation, step in zip(
        p.input_size, p.kernel_size, p.output_size, p.stride, p.padding, p.dilation, along, strict=True
    ):
        shifts = [t * dilation - before for t in range(kernel)]
        # Output q reads q*s + shift, which lies in the image for begin <= q < end.
        bounds = [(max(-(shift // s), 0), min(-((shift - size) // s), out)) for shift in shifts]
        met.append(
            [
                (t, begin, end, shift * step)
                for t, (shift, (begin, end)) in enumerate(zip(shifts, bounds, strict=True))
                if begin < end
            ]
        )
    records, kept = [], []
    for taps in product(*met):
        ranges = [(0, 1)] * (3 - p.ndim) + [(begin, end) for _, begin, end, _ in taps]
        offset = sum(offset for *_, offset in taps)
        record = {"x_offsets": b.table(np.arange(c) * x_channel + offset)}
        for axis, (begin, end) in zip("dhw", ranges, strict=True):
            record |= {f"begin_{axis}": begin, f"end_{axis}": end}
        records.append(record)
        kept.append(np.ravel_multi_index([t for t, *_ in taps], p.kernel_size))
    steps = [0] * (3 - p.ndim) + [s * step for s, step in zip(p.stride, along, strict=True)]
    image: Words = dict(x=b.operand("input"), x_image=x_image, x_group=c * x_channel)
    image |= dict(zip(("x_d", "x_h", "x_w"), steps, strict=True))
    places = np.arange(c)[:, None] * p.taps + np.array(kept, np.int64)
    return image, records, places.ravel()


def _taps_in_lines(b: Builder, gy_image: int) -> Taps:
    """As above, of the image in line space, where one record has all channels and taps."""
    p = b.problem
    axes = axes_of(p)
    c, channels = p.in_channels // p.groups, p.in_channels
    last = p.layout == "NHWC"
    line = Image.of(axes, channels if last else 1)
    # Planes a multiple of 4 kB apart would all fall into the same cache sets.
    x_channel = 1 if last else line.size + (16 if line.size * b.itemsize % 4096 == 0 else 0)
    x_image = line.size if last else x_channel * channels
    b.chunked((x_image + gy_image) * b.itemsize)
    if last:
        x = add_halo(b, "halo_pixels", axes, line, x_image, 0, np.array([0, channels]), 0)
    else:
        x = add_halo(b, "halo_planes", axes, line, x_image, x_channel, np.arange(channels + 1), 0)
    image: Words = dict(x=x, x_image=x_image, x_group=c * x_channel, x_d=line.d, x_h=line.h, x_w=line.w)
    found = sums_of(axes)
    if not found:
        return image, [], np.zeros(0, np.int64)
    (one,) = found
    every = np.arange(c)[:, None]
    record = {"x_offsets": b.table((every * x_channel + line.tap_offsets(one)).ravel())}
    for axis, size in zip("dhw", (1,) * (3 - p.ndim) + p.output_size, strict=True):
        record |= {f"begin_{axis}": 0, f"end_{axis}": size}
    return image, [record], (every * p.taps + kernel_index(axes, one)).ravel()


def _add_panels(b: Builder, blocks: int, width: int, gy_image: int, most: int) -> Operand:
    """Add the stage that copies the output's gradient channels last in blocks, and return where it goes."""
    p = b.problem
    o = p.out_channels // p.groups
    starts = [g * o + block * width for g in range(p.groups) for block in range(blocks)]
    return add_channels_last(b, "weight", [*starts, p.out_channels], width, gy_image, most)


def add_channels_last(
    b: Builder, operand: str, starts: list[int], width: int, gy_image: int, slack: int
) -> Operand:
    """Add the stage that copies the output's gradient, given as `operand`, to blocks of channels, channels last."""
    p = b.problem
    image_stride, channel, _, _, w = output_strides(p)
    pixels = math.prod(p.output_size)
    # Rows of pixels are the tasks; they have nothing to do with the image's rows.
    rows = max(d for d in range(1, max(pixels // 64, 1) + 1) if pixels % d == 0)
    line, blocks = pixels // rows, len(starts) - 1
    y = b.scratch(gy_image, slack, "output gradient, channels last")
    words: Words = dict(
        x=Operand(operand, image_stride * b.itemsize),
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
        blocks=blocks,
        starts=b.table(starts),
        rows_d=1,
        rows_h=rows,
        h_phases=1,
        band=1,
        by_bands=0,
        zeros=0,
        w_phases=1,
        w_lines=line,
        map_d=b.table([0]),
        map_h=b.table(np.arange(rows)),
        map_w=b.table(np.arange(line)),
        runs=b.table([0, line, 0, 1]),
    )
    b.stage("halo_pixels", blocks * rows, words)
    return y


def tile_rows(engines: Engines, vectors: int) -> int:
    """Return the rows of the tile for so many vectors: of whichever shape is higher."""
    (rows, most), (lane_rows, _) = engines.tile, engines.lane_tile
    return lane_rows if vectors > most or lane_rows > rows else rows

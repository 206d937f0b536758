"""Weight gradients of 3x3 taps by Winograd's minimal filtering: see src/winograd_grad.h.

They have stride 1 along the last two axes. Dilated ones are undilated ones on each phase of the image, whose tiles are
spread, no more. Images with more tiles than stay in cache are done in bands of rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..problem import Problem
from ..registry import Refusal
from .dense import add_halo
from .geometry import Axis, Image, axes_of
from .program import Builder, Engines, Operand, Words, round_up
from .weight_grad import tile_rows
from .winograd import EXACT_POINTS, tile_counts

__all__ = ["lower_winograd_grad", "refuse_winograd_grad", "winograd_grad_tiles"]

# Taps of the filtered axes; a tile of the gradient has points - KERNEL + 1 pixels along each. F(5x5, 2x2) of the same 6
# points was tried: 1.6 to 2 times as fast as direct sums, but its errors, 2e-6 on one image of 14x14 pixels, were 6e-6 on
# 256 of 28x28 (with sums in one level).
KERNEL = 3
# Tiles, transformed, of a band of rows and of a chunk of images: more do not stay in a core's share of L3. Where sums take
# more than that, they are written and read again for each chunk, so chunks are no smaller; nor are they of few tiles.
BAND_BYTES = 1 << 21
LEAST_TILES = 48
# Passes over chunks and bands that are added up first. In one row, the 100000 tiles of 8 images of 448x448 pixels made errors
# of 4e-6 of the greatest weight's gradient.
TOGETHER = 16
# Sums of a task, which stay in L2 with the panels; more tasks than this are enough to keep threads busy.
MOST_SUMS_BYTES = 1 << 18
ENOUGH_TASKS = 16
LEAST_ROWS = 2
# Tiles of a panel, which stays in L1, and of one task of the transforms.
TILE_BLOCK = 128
PIECE = 4
GFLOPS = 50.0


def refuse_winograd_grad(points: int) -> Callable[[Problem], str | None]:
    """Return the check of the algorithm with `points` points along an axis."""

    def refuse(problem: Problem) -> str | None:
        if points > EXACT_POINTS and problem.accuracy == "high":
            return Refusal.HIGH_ACCURACY
        if problem.groups == problem.in_channels and problem.groups > 1:
            return Refusal.DEPTHWISE
        if problem.kernel_size[-2:] != (KERNEL, KERNEL):
            return Refusal.NO_SMALL_KERNEL
        if problem.stride[-2:] != (1, 1):
            return Refusal.STRIDED
        if any(not axis.sums or len(axis.sums[0].taps) < axis.kernel for axis in axes_of(problem)):
            return Refusal.UNEVEN_TAPS
        return None

    return refuse


def winograd_grad_tiles(problem: Problem, points: int) -> int:
    """Return the tiles of an image."""
    sizes = zip(problem.output_size[-2:], problem.dilation[-2:], strict=True)
    along = [int(tile_counts(size, step, points - KERNEL + 1)[1].sum()) for size, step in sizes]
    return math.prod((*problem.output_size[:-2], *along))


def lower_winograd_grad(points: int) -> Callable[[Problem, Engines], Any]:
    """Return the function that lowers a problem for the algorithm with `points` points along an axis."""

    def lower(problem: Problem, engines: Engines) -> Any:
        b = Builder(problem, engines)
        plan = WinogradGradPlan(b, points)
        plan.add_stages()
        m = points - KERNEL + 1
        tile = f"F({KERNEL}x{KERNEL}, {m}x{m}), {plan.rows} x {plan.width} channels"
        flops = 2 * winograd_grad_tiles(problem, points) * points**2 * math.prod(problem.kernel_size[:-2])
        pairs = problem.in_channels // problem.groups * problem.out_channels
        return b.finish(flops * pairs / GFLOPS, tile)

    return lower


@dataclass(frozen=True)
class Line:
    """The tiles along a filtered axis: where each begins, and the outputs that it has."""

    begin: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, size: int, step: int, outputs: int) -> "Line":
        counts, tiles = tile_counts(size, step, outputs)
        phase = np.repeat(np.arange(len(tiles)), tiles)
        tile = np.arange(len(phase)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        return cls(phase + tile * outputs * step, np.minimum(counts[phase] - tile * outputs, outputs))


class WinogradGradPlan:
    """The choices for one problem: bands of rows, chunks of images, and parts of the channels."""

    def __init__(self, b: Builder, points: int) -> None:
        p = b.problem
        self.b, self.p, self.points, self.outputs = b, p, points, points - KERNEL + 1
        self.axes = axes_of(p)
        self.dilation = p.dilation[-2:]
        self.taps = p.kernel_size[0] if p.ndim == 3 else 1
        self.c, self.o = p.in_channels // p.groups, p.out_channels // p.groups
        self.blocks = -(-self.o // (b.engines.lane_tile[1] * b.lanes))
        self.width = round_up(-(-self.o // self.blocks), b.lanes)
        self.rows = rows = tile_rows(b.engines, self.width // b.lanes)
        self.inputs = round_up(p.in_channels, b.lanes)
        # One vector more: rows of a matrix a multiple of 4 kB apart would share cache sets.
        self.v_row = self.inputs + b.lanes
        self.kernel = self.taps * KERNEL**2
        # Of one input channel: at the points, and as weights.
        unit = (self.taps * points**2 + self.kernel) * self.width
        most = max(MOST_SUMS_BYTES // (unit * b.itemsize) // rows * rows, rows)
        enough = -(-self.c // max(ENOUGH_TASKS // (p.groups * self.blocks), 1))
        self.part = min(most, max(round_up(enough, rows), LEAST_ROWS * rows))
        self.parts = -(-self.c // self.part)
        self.unit = unit

    def add_stages(self) -> None:
        b, p = self.b, self.p
        tiles = winograd_grad_tiles(p, self.points)
        tile = self.points**2 * (self.v_row + p.groups * self.blocks * self.width) * b.itemsize
        units = p.groups * self.blocks * self.c
        image, room = tiles * tile, max(BAND_BYTES, units * self.unit * b.itemsize // 2, LEAST_TILES * tile)
        height, step = p.output_size[-2], self.outputs * self.dilation[0]
        rows = min(round_up(-(-height // -(-image // room)), step), height)
        self.bands = -(-height // rows)
        chunks = -(-max(p.batch, 1) // max(room // image, 1))
        b.images_per_chunk = -(-max(p.batch, 1) // chunks)
        if self.bands * chunks > TOGETHER:
            self.unit += self.taps * self.points**2 * self.width
        sums = b.scratch_of_all_chunks(0 if self.bands * chunks == 1 else units * self.unit)
        direct = b.scratch_of_all_chunks(p.groups * self.blocks * self.parts)
        free = b.scratch_bytes
        for band in range(self.bands):
            # Bands come one after the other and share their scratch.
            most, b.scratch_bytes = b.scratch_bytes, free
            self.add_band(band, band * rows, min(rows, height - band * rows), sums, direct)
            b.scratch_bytes = max(most, b.scratch_bytes)

    def add_band(self, band: int, first: int, height: int, sums: Operand, direct: Operand) -> None:
        """Add the stages for a band, `height` rows of outputs from the `first` on."""
        b, p = self.b, self.p
        lines = Line.of(height, self.dilation[0], self.outputs)
        columns = Line.of(p.output_size[-1], self.dilation[1], self.outputs)
        d, h, w = self.axes
        axes = (
            d,
            reached(h, lines, self.dilation[0], self.points, first),
            reached(w, columns, self.dilation[1], self.points),
        )
        image = Image.of(axes, self.inputs)
        x = add_halo(b, "halo_pixels", axes, image, image.size, 0, np.array([0, p.in_channels]), 0)
        planes = d.sums[0].count
        gy_axes = (
            gradient_axis(planes, 0, planes),
            gradient_axis(p.output_size[-2], first, height, lines, self.dilation[0], self.outputs),
            gradient_axis(p.output_size[-1], 0, p.output_size[-1], columns, self.dilation[1], self.outputs),
        )
        gy_image = Image.of(gy_axes, self.width)
        blocks = p.groups * self.blocks
        starts = [g * self.o + block * self.width for g in range(p.groups) for block in range(self.blocks)]
        gradient = replace(p, in_channels=p.out_channels, input_size=p.output_size)
        given = Operand("weight", math.prod(p.output_size) * p.out_channels * b.itemsize)
        with b.part(gradient, input=given):
            gy = add_halo(
                b, "halo_pixels", gy_axes, gy_image, blocks * gy_image.size, gy_image.size,
                np.array([*starts, p.out_channels]), 0, what="output gradient, channels last",
            )  # fmt: skip

        # Lines of D in the order in which they lie in the image, phase by phase, each with the tiles of a plane.
        plane = len(lines.begin) * len(columns.begin)
        at = (lines.begin[:, None] * image.h + columns.begin * image.w).ravel()
        sources = (np.arange(d.map.size)[:, None] * image.d + at).ravel()
        gy_at = (lines.begin[:, None] * gy_image.h + columns.begin * gy_image.w).ravel()
        tiles = np.empty((planes, plane, 4), np.int64)
        tiles[..., 0] = np.arange(planes * plane).reshape(planes, plane)
        tiles[..., 1] = np.arange(planes)[:, None] * gy_image.d + gy_at
        tiles[..., 2] = np.repeat(lines.left, len(columns.left))
        tiles[..., 3] = np.tile(columns.left, len(lines.left))
        tap_sources = (d.sums[0].phases * d.lines + d.sums[0].offsets) * plane

        points, images = self.points**2, min(b.images_per_chunk, max(p.batch, 1))
        v_point = images * len(sources) * self.v_row + b.lanes
        u_block = images * planes * plane * self.width
        u_point = blocks * u_block + b.lanes
        source_pieces, tile_pieces = -(-len(sources) // PIECE), -(-planes * plane // PIECE)
        words: Words = dict(
            x=x,
            gy=gy,
            v=b.scratch(0, points * v_point),
            u=b.scratch(0, points * u_point),
            source_marks=b.scratch(len(sources), 0),
            tile_marks=b.scratch(planes * plane, 0),
            gw=Operand("output"),
            sums=sums,
            direct=direct,
            work=b.thread(self.part * self.unit),
            work_stride=Operand("thread_stride"),
            images=Operand("images"),
            first_image=Operand("first_image"),
            batch=p.batch,
            chunk=b.images_per_chunk,
            band=band,
            bands=self.bands,
            together=TOGETHER,
            points=self.points,
            x_image=image.size,
            x_h=self.dilation[0] * image.h,
            x_w=self.dilation[1] * image.w,
            gy_image=blocks * gy_image.size,
            gy_block=gy_image.size,
            gy_h=self.dilation[0] * gy_image.h,
            gy_w=self.dilation[1] * gy_image.w,
            inputs=self.inputs,
            v_row=self.v_row,
            v_point=v_point,
            u_block=u_block,
            u_point=u_point,
            sources=b.table(sources),
            source_count=len(sources),
            source_pieces=source_pieces,
            tiles=b.table(tiles),
            tile_count=planes * plane,
            tile_pieces=tile_pieces,
            taps=self.taps,
            tap_sources=b.table(tap_sources),
            groups=p.groups,
            channels=self.o,
            blocks=self.blocks,
            width=self.width,
            units=self.c,
            unit_parts=self.parts,
            unit_part=self.part,
            unit=self.unit,
            k_block=TILE_BLOCK,
        )
        b.stage("winograd_grad_tiles", source_pieces + tile_pieces, words)
        # All images of a chunk belong to each task.
        b.stage("winograd_grad", blocks * self.parts, words, images_per_task=1 << 40)


def reached(axis: Axis, tiles: Line, step: int, points: int, first: int = 0) -> Axis:
    """Return the lines of a filtered axis that tiles read, from line `first` on, with zeros behind what there is."""
    lines = int(tiles.begin.max()) + (points - 1) * step + 1
    found = np.full((1, lines), -1)
    there = axis.map[:, first : first + lines]
    found[:, : there.shape[1]] = there
    return replace(axis, map=found)


def gradient_axis(
    size: int, first: int, count: int, tiles: Line | None = None, step: int = 1, outputs: int = 1
) -> Axis:
    """Return `count` lines of an axis of the gradient, and zeros behind them wherever tiles reach."""
    lines = count if tiles is None else int(tiles.begin.max()) + (outputs - 1) * step + 1
    found = np.full((1, max(lines, count)), -1)
    found[0, :count] = first + np.arange(count)
    return Axis(size, 1, size, found, ())

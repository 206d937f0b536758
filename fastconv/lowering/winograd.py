"""Stride-1 convolutions with small square kernels by Winograd's minimal filtering: see src/winograd.h.

A dilated convolution is an undilated one on each phase of the image: its tiles are spread, no more. A transposed
convolution is one stride-1 convolution for each phase of its output, such as four of 2x2 where 4x4 has stride 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..problem import Problem
from ..registry import Refusal
from .dense import add_halo
from .geometry import Axes, Axis, AxisSum, Image, axes_of, output_strides
from .program import ENOUGH_TASKS, K_BLOCK, Builder, Engines, Operand, Words, round_up

__all__ = ["EXACT_POINTS", "Filtering", "filtering_of", "lower_winograd", "refuse_winograd"]

# The algorithms F(m, r) of src/winograd.h: by the kernel r, the outputs m.
OUTPUTS = {2: (3, 4), 3: (2, 3, 4), 5: (2,)}
# With so many points or fewer all coefficients are powers of two.
EXACT_POINTS = 4
# Transformed inputs and sums of a block of tiles that stay in L2, beside a panel of weights.
L2_BYTES = 1 << 19
MOST_TILES = 96
# Tiles whose outputs leave together (src/native.h).
LEAVING_TILES = 8
# Weights of one task of their transform, in channels.
WEIGHT_PIECE = 32
GFLOPS = 50.0


@dataclass(frozen=True)
class Filtering:
    """A problem seen as stride-1 convolutions with r taps on each axis, `steps` lines apart."""

    problem: Problem
    axes: Axes
    kernel: int
    steps: tuple[int, int]

    @property
    def sums(self) -> list[tuple[AxisSum, AxisSum]]:
        return [(h, w) for h in self.axes[1].sums for w in self.axes[2].sums]

    def outputs(self, points: int) -> int:
        """Return m of the algorithm with so many points, m + r - 1."""
        return points - self.kernel + 1

    def products(self, points: int) -> int:
        """Return the number of tiles of an image times the products of each, per pair of channels."""
        m = self.outputs(points)
        tiles = 0
        for sums in self.sums:
            counts = [
                sum(tiles for _, tiles in tile_counts(s.count, step, m))
                for s, step in zip(sums, self.steps, strict=True)
            ]
            tiles += math.prod(counts)
        return tiles * points**2


def filtering_of(problem: Problem, points: int) -> Filtering | str:
    """Return how a problem looks to the algorithm with `points` points, or why it cannot use it."""
    if problem.groups == problem.in_channels and problem.groups > 1:
        return Refusal.DEPTHWISE
    if problem.ndim != 2:
        return Refusal.NOT_2D
    if problem.variant == "conv" and set(problem.stride) != {1}:
        return Refusal.STRIDED
    if len(set(problem.kernel_size)) != 1 or max(problem.kernel_size) > max(OUTPUTS) * max(problem.stride):
        return Refusal.NOT_SMALL_SQUARE
    axes = axes_of(problem)
    taps = {len(s.taps) for axis in axes[1:] for s in axis.sums}
    if len(taps) != 1 or axes[1].has_gaps or axes[2].has_gaps:
        return Refusal.UNEVEN_TAPS
    kernel = taps.pop()
    if points - kernel + 1 not in OUTPUTS.get(kernel, ()):
        return Refusal.NOT_SMALL_SQUARE
    if problem.variant == "conv" and kernel != problem.kernel_size[0]:
        return Refusal.UNEVEN_TAPS
    steps = []
    for axis in axes[1:]:
        found = {int(step) for s in axis.sums for step in np.diff(np.sort(s.offsets))}
        if len(found) != 1:
            return Refusal.UNEVEN_TAPS
        steps.append(found.pop())
    return Filtering(problem, axes, kernel, (steps[0], steps[1]))


def refuse_winograd(points: int) -> Callable[[Problem], str | None]:
    """Return the check of the algorithm with `points` points."""

    def refuse(problem: Problem) -> str | None:
        if points > EXACT_POINTS and problem.accuracy == "high":
            return Refusal.HIGH_ACCURACY
        found = filtering_of(problem, points)
        return found if isinstance(found, str) else None

    return refuse


def lower_winograd(points: int) -> Callable[[Problem, Engines], Any]:
    """Return the function that lowers a problem for the algorithm with `points` points."""

    def lower(problem: Problem, engines: Engines) -> Any:
        filtering = filtering_of(problem, points)
        assert isinstance(filtering, Filtering)
        b = Builder(problem, engines)
        WinogradPlan(b, filtering, points).add_stages()
        rows, vectors = engines.lane_tile
        m, r = filtering.outputs(points), filtering.kernel
        tile = f"F({m}x{m}, {r}x{r}), {rows} tiles x {vectors * b.lanes} channels"
        flops = 2 * filtering.products(points) * problem.in_channels // problem.groups
        return b.finish(flops * problem.out_channels / GFLOPS, tile)

    return lower


def tile_counts(size: int, step: int, outputs: int) -> list[tuple[int, int]]:
    """Return (outputs, tiles) of each phase of an axis whose taps are `step` lines apart."""
    counts = [-(-(size - phase) // step) for phase in range(min(step, size))]
    return [(n, -(-n // outputs)) for n in counts]


class WinogradPlan:
    """The choices for one problem: tiles, how many at a time, and who transforms them."""

    def __init__(self, b: Builder, filtering: Filtering, points: int) -> None:
        p = b.problem
        self.b, self.p, self.filtering, self.points = b, p, filtering, points**2
        self.outputs, self.kernel = filtering.outputs(points), filtering.kernel
        self.c, self.o = p.in_channels // p.groups, p.out_channels // p.groups
        self.depth = self.c * self.kernel**2
        rows, vectors = b.engines.lane_tile
        self.width = min(vectors * b.lanes, round_up(self.o, b.lanes))
        self.blocks = -(-self.o // self.width)
        d, h, w = filtering.axes
        self.axes: Axes = (
            d,
            self.reach_tiles(h, filtering.steps[0]),
            self.reach_tiles(w, filtering.steps[1]),
        )
        self.image = Image.of(self.axes, p.in_channels)
        self.tiles = [self.tile_table(*sums) for sums in filtering.sums]
        # One vector more: rows of a matrix a multiple of 4 kB apart would share cache sets.
        self.v_row = round_up(self.c, b.lanes) + b.lanes
        tiles = max(len(table) for table in self.tiles)
        most = self.tiles_at_once(tiles, rows)
        # Small images share a task, so that weights are used more than once; no result changes with it.
        self.images_per_task = max(min(most // tiles, p.batch), 1)
        self.tile_blocks = -(-tiles * self.images_per_task // most)
        self.block = -(-tiles * self.images_per_task // self.tile_blocks)
        tasks = self.tile_blocks * len(self.tiles) * p.groups
        self.parts = max(min(-(-ENOUGH_TASKS // tasks), self.blocks), 1)
        self.tasks = tasks * self.parts

    def tiles_at_once(self, tiles: int, rows: int) -> int:
        """Return the block of tiles that moves the fewest bytes between L2 and what is behind it.

        Each block streams all weights; inputs too large for L2 are streamed for each block of output channels.
        """
        inputs = self.points * self.v_row * self.b.itemsize
        sums = self.points * self.width * self.b.itemsize
        weights = self.points * self.c * self.o * self.b.itemsize

        def moved(block: int) -> int:
            again = self.blocks if block * (inputs + sums) > L2_BYTES else 1
            return -(-tiles // block) * weights + again * tiles * inputs

        return min(range(rows, MOST_TILES + 1, rows), key=moved)

    def reach_tiles(self, axis: Axis, step: int) -> Axis:
        """Return the axis with zeros behind it wherever its last tiles reach."""
        lines = axis.lines
        for s in axis.sums:
            for phase, (_, tiles) in enumerate(tile_counts(s.count, step, self.outputs)):
                reach = tiles * self.outputs + self.kernel - 2
                lines = max(lines, int(s.offsets.min()) + phase + reach * step + 1)
        padding = np.full((1, lines - axis.lines), -1)
        return replace(axis, map=np.concatenate([axis.map, padding], axis=1))

    def tile_table(self, sum_h: AxisSum, sum_w: AxisSum) -> list[dict[str, int]]:
        """Return where each tile of an image begins, row by row of tiles, phase by phase."""
        m = self.outputs
        *_, y_h, y_w = output_strides(self.p)
        step_h, step_w = self.filtering.steps
        low_h, low_w = int(sum_h.offsets.min()), int(sum_w.offsets.min())
        found = []
        row = 0
        for phase_h, (n_h, tiles_h) in enumerate(tile_counts(sum_h.count, step_h, m)):
            for phase_w, (n_w, tiles_w) in enumerate(tile_counts(sum_w.count, step_w, m)):
                for i in range(tiles_h):
                    h = phase_h + i * m * step_h
                    for j in range(tiles_w):
                        w = phase_w + j * m * step_w
                        found.append(
                            {
                                "x": (low_h + h) * self.image.h + (low_w + w) * self.image.w,
                                "y": (sum_h.start + sum_h.step * h) * y_h
                                + (sum_w.start + sum_w.step * w) * y_w,
                                "rows": min(m, n_h - i * m),
                                "columns": min(m, n_w - j * m),
                                "row": row,
                            }
                        )
                    row += 1
        return found

    def add_stages(self) -> None:
        b, p = self.b, self.p
        b.chunked(self.image.size * b.itemsize, self.images_per_task)
        starts = np.array([0, p.in_channels])
        x = add_halo(b, "halo_pixels", self.axes, self.image, self.image.size, 0, starts, b.lanes)
        words = self.words(x)
        if self.parts > 1:
            blocks = self.tasks // self.parts
            size = blocks * self.points * (self.block * self.v_row + b.lanes)
            words["v"] = b.scratch(-(-size // self.images_per_task), size, "transformed input")
            b.stage("winograd_inputs", self.tasks, words, self.images_per_task)
        b.stage("winograd", self.tasks, words, self.images_per_task)

    def add_weights(self) -> tuple[Operand, int, int, list[dict[str, int]]]:
        """Add the stages that pack and transform the weights.

        Returns where they go, the strides of their blocks and points, and a record for each sum.
        """
        b, p = self.b, self.p
        o_stride, c_stride = self.weight_strides()
        channels = np.arange(self.c)[:, None] * c_stride
        sources = [(channels + self.tap_order(*sums)).ravel() for sums in self.filtering.sums]
        sums, raw = len(sources), self.depth * self.width
        packed = b.pack(
            np.concatenate(sources),
            np.arange(sums * self.depth) * self.width,
            sums * raw,
            self.width,
            self.blocks,
            rows=self.o,
            x_row=o_stride,
            groups=p.groups,
            x_group=self.c * self.o * p.taps,
            keep=False,
        )
        w_point = self.c * self.width + b.lanes
        w_sum = self.points * w_point
        blocks = p.groups * self.blocks * sums
        w = b.packed(blocks * w_sum)
        pieces = -(-self.c // WEIGHT_PIECE)
        words: Words = dict(
            x=packed,
            y=w,
            outputs=self.outputs,
            kernel=self.kernel,
            channels=self.c,
            width=self.width,
            pieces=pieces,
            x_block=raw,
            y_block=w_sum,
            y_point=w_point,
        )
        b.stage("winograd_weights", blocks * pieces, words, weights_only=True)
        records = [
            {
                "tiles": b.records("winograd_tile", tiles),
                "tile_count": len(tiles),
                "w": i * w_sum,
                "w_offsets": b.table(source),
                "x_offsets": b.table(self.direct_offsets()),
            }
            for i, (tiles, source) in enumerate(zip(self.tiles, sources, strict=True))
        ]
        return w, sums * w_sum, w_point, records

    def weight_strides(self) -> tuple[int, int]:
        """Return the strides of the weights over output channels of a group and over input channels."""
        taps = self.p.taps
        return (taps, self.o * taps) if self.p.variant == "conv_transpose" else (self.c * taps, taps)

    def tap_order(self, sum_h: AxisSum, sum_w: AxisSum) -> np.ndarray:
        """Return the taps of a sum in the order in which they meet the image."""
        h, w = (s.taps[np.argsort(s.offsets)] for s in (sum_h, sum_w))
        return (h[:, None] * self.p.kernel_size[1] + w).ravel()

    def direct_offsets(self) -> np.ndarray:
        """Return the image offset of every (channel, tap) from the first pixel of a tile."""
        taps = np.arange(self.kernel)
        x_h, x_w = self.x_steps()
        return (np.arange(self.c)[:, None] + (taps[:, None] * x_h + taps * x_w).ravel()).ravel()

    def x_steps(self) -> tuple[int, int]:
        """Return how far apart the inputs of a tile are."""
        return self.filtering.steps[0] * self.image.h, self.filtering.steps[1] * self.image.w

    def words(self, x: Operand) -> Words:
        b, p, m = self.b, self.p, self.outputs
        y_image, y_channel, _, y_h, y_w = output_strides(p)
        sum_h, sum_w = self.filtering.sums[0]
        x_h, x_w = self.x_steps()
        k_block = min(K_BLOCK, self.depth)
        w, w_block, w_point, records = self.add_weights()
        leaving = LEAVING_TILES * m * m
        work = self.points * (self.block * self.width + b.lanes)
        work += leaving * self.width + self.width * (leaving + b.lanes) + k_block * b.lanes
        work += self.points * (self.block * self.v_row + b.lanes) if self.parts == 1 else 0
        return dict(
            x=x,
            w=w,
            weight=Operand("weight"),
            b=b.operand("bias"),
            y=b.operand("output"),
            work=b.thread(work),
            work_stride=Operand("thread_stride"),
            images=Operand("images"),
            outputs=m,
            kernel=self.kernel,
            x_image=self.image.size,
            x_group=self.c,
            x_h=x_h,
            x_w=x_w,
            y_image=y_image,
            y_group=self.o * y_channel,
            y_channel=y_channel,
            y_h=y_h * sum_h.step * self.filtering.steps[0],
            y_w=y_w * sum_w.step * self.filtering.steps[1],
            groups=p.groups,
            depth=self.c,
            channels=self.o,
            parts=self.parts,
            sums=b.records("winograd_sum", records),
            sum_count=len(records),
            block=self.block,
            v=0,
            v_row=self.v_row,
            width=self.width,
            w_block=w_block,
            w_point=w_point,
            k_block=k_block,
            activation=b.engines.activation(p),
            weight_group=self.c * self.o * p.taps,
            w_row=self.weight_strides()[0],
        )

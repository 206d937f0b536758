"""A depthwise convolution and a pointwise one behind it, in bands of rows: what lies between them stays in L2.

There is no kernel for it. The engines of both take turns on each band (src/join.h), the second one reading from the
thread's scratch what the first has just written there: channels last where the input is, or where planes are small,
else planes of the band's rows.
"""

import math
from typing import Any

from ..registry import Refusal
from ..separable_problem import SeparableProblem
from .columns import TILE_ROWS
from .dense import FAR, DensePlan, reads_lines
from .depthwise import GFLOPS, lower_planes
from .geometry import Axes, AxisSum, Image, axes_of, sums_of
from .pixels import lower_pixels
from .program import ENOUGH_TASKS, Builder, Engines, Operand, round_up

__all__ = ["lower_separable", "refuse_separable"]

# What lies between: with the weights it shares L2.
PANEL_BYTES = 1 << 19
# An image that is turned stays in L2 (728 x 19x19 gains 8 %, 144 x 56x56 loses 20 %), and its rows fill few vectors (75 x
# 45x80 takes 970 and not 710 us).
TURNED_BYTES = 5 << 18
TURNED_VECTORS = 2
# Fewer pixels are not worth a task of their own, as each reads all pointwise weights; nor are fewer rows of planes, as
# each copies a halo.
MIN_PIXELS = 24
MIN_ROWS = 7


def lower_separable(problem: SeparableProblem, engines: Engines) -> Any:
    """Return a program for a separable convolution some tap of which meets the image."""
    b = Builder(problem, engines)
    depthwise, pointwise = problem.parts()
    axes = axes_of(depthwise)
    with b.part(depthwise):
        in_lanes = problem.layout == "NHWC" or _pays_to_turn(b)
        if in_lanes:
            band, image, name = _pixel_bands(b, axes), None, "depthwise_pixels"
            first_band = band // lower_pixels(b, axes, joined=band)
        else:
            band, image = lower_planes(b, axes, _plane_rows(b, axes))
            name = "depthwise_planes"
        one = (*b.stages.pop(), name)
    with b.part(pointwise, weight=Operand("offset"), bias=Operand("mask")):
        plan = BandPlan(b, in_lanes, band, image)
        plan.add_image()
        plan.add_weights()
        plan.add_product()
        other = (*b.stages.pop(), "dense")
    if in_lanes:
        panel = band_elements = band * depthwise.output_size[-1] * depthwise.out_channels
    else:
        first_band, band_elements = depthwise.in_channels, band * depthwise.output_size[-1]
        panel = plan.x_channel * depthwise.out_channels
    b.join(
        one,
        other,
        panel + 2 * plan.width,
        [
            dict(
                first=i * first_band,
                first_end=min((i + 1) * first_band, one[2]),
                second=i * plan.band_tasks,
                second_end=min((i + 1) * plan.band_tasks, other[2]),
                y_bytes=i * band_elements * b.itemsize,
                x_bytes=0,
            )
            for i in range(plan.bands)
        ],
    )
    rows, vectors = engines.lane_tile if in_lanes else engines.tile
    names = ("pixels", "channels") if in_lanes else ("rows", "pixels")
    last = (
        f"{rows} pixels x {vectors * b.lanes} channels"
        if in_lanes
        else f"{rows} channels x {vectors * b.lanes} pixels"
    )
    tile = f"{TILE_ROWS} {names[0]} x {b.lanes} {names[1]}, then {last}, in {plan.bands} bands"
    saved = problem.saved_bytes / max(problem.batch, 1)
    b.copies.append(f"saved between the two: {saved / 1e6:.3g} MB an image, which stay in cache")
    return b.finish(problem.flops / problem.batch / GFLOPS if problem.batch else 0, tile)


def _pays_to_turn(b: Builder) -> bool:
    """Whether channels, put last, fill vectors, and the image stays in L2 meanwhile.

    Bands of pixels can be as small as threads need them, and the product stitches no panel: 384 x 14x14 to 64 takes
    128 us and not 132, in 7 tasks and not 1.
    """
    p = b.problem
    in_cache = math.prod(p.input_shape[1:]) * b.itemsize <= TURNED_BYTES
    short = p.output_size[-1] < TURNED_VECTORS * b.lanes
    return in_cache and short and p.in_channels == p.out_channels >= b.lanes


def refuse_separable(problem: SeparableProblem) -> str | None:
    """Refuse rows so long that no band of them stays in cache, and kernels that meet nothing but padding."""
    depthwise, _ = problem.parts()
    rows = 1 if problem.layout == "NHWC" else math.prod(depthwise.output_size[:-2])
    row_bytes = depthwise.out_channels * depthwise.output_size[-1] * problem.dtype.itemsize
    if rows * row_bytes > 2 * PANEL_BYTES:
        return Refusal.LONG_ROWS
    return None if sums_of(axes_of(depthwise)) else Refusal.ONLY_PADDING


def _pixel_bands(b: Builder, axes: Axes) -> int:
    """Return how many rows of pixels a band has. Twice as many, so that they come out even, take 1.1 of the time."""
    p = b.problem
    width, rows = p.output_size[-1], math.prod(p.output_size[:-1])
    most = max(PANEL_BYTES // (width * p.out_channels * b.itemsize), 1)
    bands = max(-(-rows // most), min(ENOUGH_TASKS, rows * width // MIN_PIXELS, rows))
    return -(-rows // max(bands, 1))


def _plane_rows(b: Builder, axes: Axes) -> int:
    """Return how many rows of planes a band may have: whole tiles, unless of two bands one would be left with little.

    20 rows in two of 10, and not 16 and 4, take 0.65 to 0.71 of the time on two threads and the same on one (144 x 20x20 to 40,
    AVX2). More bands alike do not pay: 28 rows in four of 7, and not three of 8 and one of 4, take 0.95 to 1.4 of the time, 19
    in 7, 7 and 5 1.1 to 1.25.
    """
    p = b.problem
    d, h, w = axes
    most = max(PANEL_BYTES // (d.out * w.out * p.out_channels * b.itemsize), 1)
    bands = max(-(-h.out // most), min(ENOUGH_TASKS, h.out // MIN_ROWS), 1)
    rows = -(-h.out // bands)
    return rows if bands == 2 else min(round_up(rows, TILE_ROWS), h.out)


class BandPlan(DensePlan):
    """The pointwise product: a sum for each band of rows, which is where the first row of the panel is."""

    def __init__(self, b: Builder, in_lanes: bool, band: int, image: Image | None) -> None:
        super().__init__(b, axes_of(b.problem), in_lanes)
        self.images_per_task = 1
        self.band, self.panel = band, image

    def add_image(self) -> None:
        self.x, self.x_end, self.x_image = Operand("thread"), Operand("thread", 0, FAR), 0
        if self.panel is None:
            self.image, self.x_channel = Image.of(self.axes, self.c), 1
            return
        self.image, self.x_channel = self.panel, self.panel.size
        self.direct = reads_lines(self.image, self.sums, self.o, self.rows)

    def add_product(self) -> None:
        """Give each band a sum of its own before the product is made of them."""
        d, h, w = self.sums[0]
        whole = self.panel is not None  # a band of planes has rows of every plane along D
        rows = h.count if whole else d.count * h.count
        self.bands = -(-rows // self.band)
        sums = [
            (d if whole else _stretch(d, 0, 1), _stretch(h, at, min(self.band, rows - at)), w)
            for at in range(0, rows, self.band)
        ]
        self.sums, self.records = sums, [dict(self.records[0]) for _ in sums]
        super().add_product()
        self.band_tasks = self.records[1]["task_begin"] if self.bands > 1 else self.b.stages[-1][2]

    def channel_chunk(self, pixel_block: int, tasks: int, deep: bool) -> int:
        return super().channel_chunk(pixel_block, ENOUGH_TASKS, deep)


def _stretch(axis: AxisSum, start: int, count: int) -> AxisSum:
    return AxisSum(axis.taps, axis.phases, axis.offsets, start, 1, count)

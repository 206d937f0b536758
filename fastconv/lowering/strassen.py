"""Convolutions by seven products of quarters in place of eight: see src/dense_seven.h and src/strassen.h."""

from typing import Any

import numpy as np

from ..problem import Problem
from ..registry import Refusal
from .deform import PAIRS_TILE, cut_pairs
from .dense import LANES, DensePlan, split_axes
from .geometry import Axes, Image, sums_of
from .program import ENOUGH_TASKS, Builder, Engines, Operand, Words, round_up

__all__ = ["lower_strassen", "refuse_strassen", "strassen_blocks"]

# Input channels that are summed at once, both halves of them.
K_BLOCK = 256
# Products of a task that stay in L2, with what they are made of.
SUMS_BYTES = 1 << 18
# Output channels that a last block may lack, as of 255: as few as the lowest register tile has.
MOST_LACKING = 4
GFLOPS = 55.0


def refuse_strassen(problem: Problem) -> str | None:
    """Quarters of the product have whole vectors."""
    if problem.accuracy == "high":
        return Refusal.HIGH_ACCURACY
    axes = split_axes(problem)
    if any(axis.has_gaps for axis in axes) or not sums_of(axes):
        return Refusal.ONLY_PADDING
    lacking = -problem.out_channels % (2 * LANES)
    if problem.groups > 1 or problem.in_channels % (2 * LANES) or lacking >= MOST_LACKING:
        return Refusal.NO_QUARTERS
    return None


def lower_strassen(problem: Problem, engines: Engines) -> Any:
    """Return a program for a problem that is not refused."""
    b = Builder(problem, engines)
    plan = SevenPlan(b, split_axes(problem))
    plan.add_image()
    plan.add_weights()
    plan.add_product()
    tile = f"{plan.rows} pixels x {plan.width} channels, seven products for eight"
    return b.finish(problem.flops / problem.batch / GFLOPS if problem.batch else 0, tile)


def strassen_blocks(pixels: int, rows: int) -> int:
    """Return how many tasks share the pixels of an image, each of which reads all weights."""
    return -(-pixels // (2 * _half(pixels, rows)))


def _half(pixels: int, rows: int) -> int:
    return cut_pairs(pixels, max(min(PAIRS_TILE, pixels + 1) // 2, 1), rows)


class SevenPlan(DensePlan):
    """The choices for one product of quarters."""

    engines = "", "dense_seven"
    packs = True

    def __init__(self, b: Builder, axes: Axes) -> None:
        super().__init__(b, axes, in_lanes=True)
        self.k_block = K_BLOCK
        outputs, widths = round_up(self.o, 2 * LANES), range(b.lanes, self.width + 1, b.lanes)
        self.width = max(width for width in widths if outputs % (2 * width) == 0)

    def k_order(self, taps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (channel, tap) of each k: all channels of a tap."""
        return np.tile(np.arange(self.c), taps), np.repeat(np.arange(taps), self.c)

    def add_image(self) -> None:
        """Let each task turn what it reads of planes; what is padded or strided is turned before."""
        if self.p.layout == "NHWC" or self.p.taps > 1 or not all(axis.is_identity for axis in self.axes):
            super().add_image()
            return
        self.image = Image.of(self.axes, 1)
        self.x_channel, self.x_image = self.image.size, self.image.size * self.p.in_channels
        self.x, self.x_end = self.b.operand("input"), Operand("input_end")

    def add_weights(self) -> None:
        """Add the sums of quarters to the weights, piece by piece of what is multiplied at once."""
        super().add_weights()
        b, block, step = self.b, self.records[0]["w_block"], 2 * self.b.lanes
        blocks, parts = -(-self.o // self.width), -(-self.c // self.k_block)
        bounds = np.array([self.c // step * part // parts * step for part in range(parts + 1)]) * self.width
        places = np.arange(0, block, self.c * self.width)[:, None] + bounds[:-1]
        self.seven = b.packed(blocks * block)
        words: Words = dict(
            x=self.w,
            y=self.seven,
            pairs=blocks // 2,
            block=block,
            places=b.table(places.ravel()),
            sizes=b.table(np.tile(np.diff(bounds), len(places))),
            piece_count=places.size,
        )
        b.stage("strassen_weights", blocks // 2 * places.size, words, weights_only=True)

    def pixel_block(self, pixels: int) -> int:
        return 2 * _half(pixels, self.rows)

    def shares(self, pixel_block: int, tasks: int) -> tuple[int, int, int]:
        """Return the pairs of blocks of output channels of a task, how many tasks have them all, and its scratch."""
        pairs, sums = -(-self.o // self.width) // 2, 7 * self.width * (pixel_block // 2)
        parts = max(-(-pairs * sums * self.b.itemsize // SUMS_BYTES), ENOUGH_TASKS // tasks, 1)
        chunk = -(-pairs // min(parts, pairs))
        lanes = self.b.lanes
        columns = pixel_block * (self.k_block + lanes) + pixel_block // 2 * (2 * self.k_block + lanes)
        return chunk, -(-pairs // chunk), chunk * sums + self.width * (pixel_block + lanes) + columns

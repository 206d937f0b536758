"""From a problem to what the kernels look up: where each tap of each output pixel reads, one axis at a time.

A *sum* is a set of outputs that the same taps reach: all of a convolution, one phase of a transposed one, or
outputs that no tap reaches and that are only bias. A thread block computes a tile of pixels of one sum, so
strides, dilations, padding modes and phases are data here, and the kernels know none of them.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from ...lowering.geometry import Axis, axes_of
from ...problem import Problem

__all__ = ["NOWHERE", "PIXELS_MOST", "RECORD", "Tables", "tables_of"]

# Three positions are added, and one of them outside the image must keep the sum negative.
NOWHERE = -(2**29)
PIXELS_MOST = 2**29

# A sum is three of these: taps, outputs, and where the axis's positions, outputs and taps begin in `words`.
RECORD = 5


@dataclass(frozen=True)
class Tables:
    """What is uploaded for a problem.

    Attributes
    ----------
    words : numpy.ndarray of int32
        For each sum of each axis: the position read by (tap, output), in pixels of the image, or NOWHERE (of
        a deformable convolution: the coordinate before it is displaced); the outputs; the taps.
    sums : numpy.ndarray of int32, shape (S, 15)
        For each sum of the three axes, a record of each axis.
    counts : list of int
        Output pixels of each sum.
    """

    words: np.ndarray
    sums: np.ndarray
    counts: list[int]

    def tiles(self, pixels: int) -> np.ndarray:
        """Return (sum, first pixel) of each tile of so many pixels."""
        found = [(s, first) for s, count in enumerate(self.counts) for first in range(0, count, pixels)]
        return np.array(found, np.int32).reshape(-1, 2)


def tables_of(problem: Problem) -> Tables:
    """Return the tables of a problem."""
    words: list[np.ndarray] = []
    axes = axes_of(problem)
    sizes = [axis.size for axis in axes], [axis.kernel for axis in axes], [axis.out for axis in axes]
    strides = [(size[1] * size[2], size[2], 1) for size in sizes]
    deformable = problem.variant == "deform_conv"  # which has zeros around it: no map, but coordinates
    records = []
    for i, axis in enumerate(axes):
        found = _displaced(problem, i, axis) if deformable else _regular(axis, strides[0][i])
        records.append(
            [
                _record(words, reads, outputs * strides[2][i], taps * strides[1][i])
                for reads, outputs, taps in found
            ]
        )
    sums = [[*d, *h, *w] for d, h, w in product(*records)]
    counts = [one[1] * one[RECORD + 1] * one[2 * RECORD + 1] for one in sums]
    return Tables(np.concatenate(words).astype(np.int32), np.array(sums, np.int32), counts)


Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def _regular(axis: Axis, stride: int) -> list[Found]:
    """Return (positions read, outputs, taps) of each sum of an axis; outputs without taps make one of their own."""
    found = []
    reached = np.zeros(axis.out, bool)
    for one in axis.sums:
        source = axis.sources(one)
        outputs = one.start + one.step * np.arange(one.count)
        reached[outputs] = True
        found.append((np.where(source >= 0, source * stride, NOWHERE), outputs, one.taps))
    if not reached.all():
        nothing = np.zeros(0, np.int64)
        found.append((nothing, np.flatnonzero(~reached), nothing))
    return found


def _displaced(problem: Problem, i: int, axis: Axis) -> list[Found]:
    """Return the same for offsets to be added to: all taps, and coordinates that may lie outside."""
    taps, outputs = np.arange(axis.kernel), np.arange(axis.out)
    own = i - (3 - problem.ndim)
    if own < 0:
        return [(np.zeros((1, 1), np.int64), outputs, taps)]
    reads = outputs * problem.stride[own] + taps[:, None] * problem.dilation[own] - problem.padding[own][0]
    return [(reads, outputs, taps)]


def _record(
    words: list[np.ndarray], reads: np.ndarray, outputs: np.ndarray, taps: np.ndarray
) -> tuple[int, ...]:
    """Append the three tables of one sum of an axis and return where they are."""
    begins = []
    for table in (reads, outputs, taps):
        begins.append(sum(map(len, words)))
        words.append(table.ravel())
    return len(taps), len(outputs), *begins

"""Taps in columns, and the tiles that sum them: see src/columns.h.

A column is a run of taps that lie one row of the tile apart (or one pixel, with channels last): what one row of the
tile loads for the second tap is what the next row loads for the first.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .geometry import Axes, AxisSum, Image, Sums
from .program import K_BLOCK, Builder

__all__ = ["MAX_TAPS", "TILE_ROWS", "Columns", "plane_tiles", "row_step", "runs_of", "tile_rows"]

# Rows of a tile, taps of a column. The rows, a weight for each tap and a value fit 16 registers.
TILE_ROWS = 8
MAX_TAPS = 5
# Vectors of a tile (their logarithm) by its rows, and what stands there for half a vector. There are tiles of half
# a vector where vectors are so wide.
MOST_VECTORS = (0, 3, 2, 1, 1, 0, 0, 0, 0)
HALF, HALVED_BYTES = 4, 64
# Rows of a tile that make it worth while to lie a dilation apart.
MIN_ROWS = 3


class Columns:
    """The taps of a sum in columns, for each tile: taps that lie as far apart as the rows of the tile.

    Attributes
    ----------
    row_step : int
        Lines from one row of a tile to the next.
    w_step : int
        Weights from one tap of a column to the next.
    """

    def __init__(self, b: Builder, axes: Axes, sums: Sums, image: Image, band: int, whole: bool):
        self.b, self.axes, self.sums, self.image, self.whole = b, axes, sums, image, whole
        h = sums[1]
        self.row_step, self.tap_step = row_step(h, min(band, h.count), MIN_ROWS)
        self.w_step = self.tap_step * axes[2].kernel
        self._known: dict[bytes, dict[str, int]] = {}

    def of_tile(self, rows: Sequence[int], pixels: Sequence[int]) -> dict[str, int]:
        """Return the words `groups` and `blocks` for a tile of these rows of a band and pixels of a row.

        Taps are left out that meet nothing but padding in all of the pixels and, where a band is the whole plane, in
        all of the rows.
        """
        h, w = self.sums[1:]
        used_h = np.ones(len(h.taps), bool)
        if self.whole:
            used_h = (self.axes[1].map[h.phases, np.asarray(rows)[:, None] + h.offsets] >= 0).any(0)
        used_w = (self.axes[2].map[w.phases, np.asarray(pixels)[:, None] + w.offsets] >= 0).any(0)
        key = used_h.tobytes() + used_w.tobytes()
        if key not in self._known:
            groups, blocks = self._groups(np.flatnonzero(used_h), used_w)
            self._known[key] = {"groups": self.b.table(groups), "blocks": blocks}
        return self._known[key]

    def _groups(self, used: np.ndarray, used_w: np.ndarray) -> tuple[list[int], int]:
        d, h, w = self.sums
        along_d = (d.phases * self.image.lines_d + d.offsets) * self.image.d
        along_w = (w.phases * self.image.phase + w.offsets)[used_w]
        kh, kw = self.axes[1].kernel, self.axes[2].kernel
        runs = runs_of(h, used, self.row_step, self.tap_step)
        groups: list[int] = []
        blocks, in_block = 1, 0
        for taps in sorted({len(run) for run in runs}):
            starts = [run[0] for run in runs if len(run) == taps]
            along_h = (h.offsets[starts] * self.axes[1].phases + h.phases[starts]) * self.image.h
            x = (along_d[:, None, None] + along_h[:, None] + along_w).ravel()
            kernel = ((d.taps[:, None, None] * kh + h.taps[starts][:, None]) * kw + w.taps[used_w]).ravel()
            columns = np.stack([x, kernel], 1)
            while len(columns):
                some = min((K_BLOCK - in_block) // taps, len(columns))
                if some == 0:
                    groups.append(0)
                    blocks, in_block = blocks + 1, 0
                    continue
                groups += [taps, 2 + 2 * some, *columns[:some].ravel().tolist()]
                in_block += some * taps
                columns = columns[some:]
        return [*groups, 0], blocks


def row_step(h: AxisSum, rows: int, least: int) -> tuple[int, int]:
    """Return lines between neighbouring rows of a tile, and kernel rows between the taps they share lines by."""
    order = np.lexsort((h.offsets, h.phases))
    pairs = [
        (int(h.offsets[j] - h.offsets[i]), int(h.taps[j] - h.taps[i]))
        for i, j in itertools.pairwise(order)
        if h.phases[i] == h.phases[j]
    ]
    row_step, tap_step = max(set(pairs), key=pairs.count) if pairs else (1, 1)
    # Where too few rows would share what they load: tiles of neighbouring rows, each tap by itself.
    return (row_step, tap_step) if row_step == 1 or rows // row_step >= least else (1, 0)


def runs_of(h: AxisSum, used: np.ndarray, row_step: int, tap_step: int) -> list[list[int]]:
    """Return the taps in runs that lie row_step lines and tap_step kernel rows apart."""
    runs: list[list[int]] = []
    for i in used[np.lexsort((h.offsets[used], h.phases[used]))].tolist():
        last = runs[-1][-1] if runs else i
        if h.phases[i] == h.phases[last] and (h.offsets[i] - h.offsets[last], h.taps[i] - h.taps[last]) == (
            row_step,
            tap_step,
        ):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [piece.tolist() for run in runs for piece in np.array_split(run, -(-len(run) // MAX_TAPS))]


def plane_tiles(
    b: Builder, rows: int, width: int, columns: Columns, x: tuple[int, int], y: tuple[int, int]
) -> Iterator[dict[str, int]]:
    """Cover rows x width pixels with tiles; x and y are the strides of (row, pixel)."""
    step, halves = columns.row_step, b.engines.vec_bytes == HALVED_BYTES
    for some, first in tile_rows(rows, step):
        tile_of = range(first, first + some * step, step)
        for size, at, part in _pieces(width, b.lanes, MOST_VECTORS[some], halves):
            pixels = b.lanes << size if size != HALF else b.lanes // 2
            taps = columns.of_tile(tile_of, range(at, min(at + pixels, width)))
            place = {"x": first * x[0] + at * x[1], "y": first * y[0] + at * y[1]}
            yield {"rows": some, "size": size, "part": part} | place | taps


def tile_rows(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Share out rows, `step` apart, to tiles of about the same size: (rows of the tile, the first of them)."""
    for first in range(min(step, max(rows, 0))):
        left = -(-(rows - first) // step)
        for tiles in range(-(-left // TILE_ROWS), 0, -1):
            some = -(-left // tiles)
            yield some, first
            left -= some
            first += some * step


def _pieces(width: int, lanes: int, most: int, halves: bool) -> Iterator[tuple[int, int, int]]:
    """Cut a row into (size, begin, part): whole vectors, and one last piece that overlaps the one before."""
    at = 0
    while at < width:
        left = width - at
        size = min(most, (left // lanes).bit_length() - 1)
        if size >= 0:
            yield size, at, 0
            at += lanes << size
            continue
        half = halves and left <= lanes // 2
        piece = lanes // 2 if half else lanes
        yield HALF if half else 0, max(width - piece, 0), 0 if width >= piece else left
        return

"""Taps in columns, and the tiles that sum them: see src/columns.h.

A column is a run of taps that lie one row of the tile apart (or one pixel, with channels last): what one row of the
tile loads for the second tap is what the next row loads for the first.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Axes, Axis, AxisSum, Sums
from .program import K_BLOCK, WORDS, Builder

__all__ = [
    "HALVED_BYTES",
    "MAX_TAPS",
    "STRIDED",
    "TILE_ROWS",
    "AllReads",
    "Columns",
    "PlaneRows",
    "Reads",
    "row_step",
    "runs_of",
    "tile_rows",
]

# Rows of a tile, taps of a column. The rows, a weight for each tap and a value fit 16 registers.
TILE_ROWS = 8
ALL_ROWS = tuple(range(1, TILE_ROWS + 1))
MAX_TAPS = 5
# Taps beside each other that share the vectors of a tile of every second pixel.
MAX_COLUMNS = 3
# Vectors of a tile (their logarithm) by its rows, and what stands there for half a vector. There are tiles of half
# a vector where vectors are so wide.
MOST_VECTORS = (0, 3, 2, 1, 1, 0, 0, 0, 0)
HALF, HALVED_BYTES = 4, 64
# What stands there for a vector of every second pixel (no other stride has tiles, and no shorter vectors), and for one of each
# of two phases of the output. Few numbers of rows have such tiles: all would take numba three times as long to compile.
SECOND, PAIRED = 5, 6
STRIDED, STRIDED_BYTES = 2, 64
SECOND_ROWS = (1, 2, 4, 7)
PAIRED_ROWS = (1, 2, 4)
# Rows of a tile that make it worth while to lie a dilation apart.
MIN_ROWS = 3


@dataclass(frozen=True)
class Reads:
    """Where the taps of one axis of a sum read, in elements of the image.

    Attributes
    ----------
    at : ndarray
        For each tap, where the first output reads, which may lie in the padding of an image that is read in place.
    step : int
        From one output to the next.
    inside : ndarray
        Whether (tap, output) meets the image, and not its padding.
    """

    at: np.ndarray
    step: int
    inside: np.ndarray

    @classmethod
    def of_lines(cls, axis: Axis, s: AxisSum, at: np.ndarray, step: int) -> "Reads":
        """Return the reads of an image in line space, which has its padding about it."""
        return cls(at, step, axis.sources(s) >= 0)

    @classmethod
    def in_place(cls, axis: Axis, s: AxisSum, stride: int, element: int) -> "Reads":
        """Return the reads of an image as it lies; outputs are `stride` apart in it, and its neighbours `element`."""
        source = axis.sources(s)
        inside = source >= 0
        met = inside.argmax(axis=1)
        first = source[np.arange(len(source)), met] - met * stride
        return cls(first * element, stride * element, inside)


AllReads = tuple[Reads, Reads, Reads]


class Columns:
    """The taps of a sum in columns, for each tile: taps that lie as far apart as the rows of the tile.

    Attributes
    ----------
    row_step : int
        Lines from one row of a tile to the next.
    w_step : int
        Weights from one tap of a column to the next.
    """

    def __init__(
        self,
        b: Builder,
        axes: Axes,
        phases: Sequence[Sums],
        reads: Sequence[AllReads],
        band: int,
        in_place: bool,
    ) -> None:
        self.b, self.axes, self.in_place = b, axes, in_place
        # Sums of two phases of the output along W differ in that axis alone.
        self.sums, self.reads = phases[0], reads[0]
        self.phases = [(sums[2], one[2]) for sums, one in zip(phases, reads, strict=True)]
        h = self.sums[1]
        self.whole = in_place or band >= h.count
        self.row_step, self.tap_step = (1, 1) if self.strided else row_step(h, min(band, h.count), MIN_ROWS)
        self.w_step = self.tap_step * axes[2].kernel
        self._known: dict[tuple, dict[str, int]] = {}

    @property
    def strided(self) -> bool:
        """Whether outputs read every second pixel of a row, and every second row."""
        return self.reads[2].step == STRIDED

    @property
    def x_row(self) -> int:
        """Elements from a line of a tile to the next; every second one is that of a row if the tile is strided."""
        return self.reads[1].step // STRIDED if self.strided else self.row_step * self.reads[1].step

    def runs_of_rows(self, rows: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return (first tap, taps, lines not in the padding) of each run of taps for a tile of these rows.

        Taps are left out that meet nothing but padding in all of the rows, unless other bands share the tile.
        """
        h, inside = self.sums[1], self.reads[1].inside
        used = inside[:, rows].any(axis=1) if self.whole else np.ones(len(h.taps), bool)
        found = []
        lines = STRIDED if self.strided else 1  # from row to row of a tile
        for run in self._runs(np.flatnonzero(used)):
            met = np.ones(lines * (len(rows) - 1) + len(run), bool)
            if self.in_place:
                met[:] = False
                for j, tap in enumerate(run):
                    met[j : j + lines * len(rows) : lines] |= inside[tap, rows]
            found.append((run[0], len(run), _bits(met)))
        return tuple(found)

    def _runs(self, used: np.ndarray) -> list[list[int]]:
        if not self.strided:
            return runs_of(self.sums[1], used, self.row_step, self.tap_step)
        at = self.reads[1].at[used]
        runs = np.split(used, np.flatnonzero(np.diff(at) != self.x_row) + 1) if len(used) else []
        pieces = [np.array_split(run, -(-len(run) // MAX_TAPS)) for run in runs]
        return [piece.tolist() for run in pieces for piece in run]

    def taps_of_pixels(self, begin: int, end: int) -> tuple[tuple[int, ...], ...]:
        """Return the taps of a tile of these pixels of a row, and the masks of the lanes of their vectors.

        A tuple has what a column's kind is more than its taps, the first tap and where it reads, and three masks. Taps are
        left out that meet nothing but padding in all of the pixels.
        """
        found = []
        for phase, (w, reads) in enumerate(self.phases):
            inside = reads.inside[:, begin:end]
            used = np.flatnonzero(inside.any(axis=1)).tolist()
            while used:
                beside = [
                    tap for tap in used[:MAX_COLUMNS] if reads.at[tap] - reads.at[used[0]] == tap - used[0]
                ]
                beside = beside if self.strided else used[:1]
                kind = (phase + len(beside) - 1) * MAX_TAPS
                masks = self._masks(inside[beside], end - begin, reads.step)
                found.append((kind, int(w.taps[beside[0]]), int(reads.at[beside[0]]), *masks))
                used = used[len(beside) :]
        return tuple(found)

    def _masks(self, inside: np.ndarray, lanes: int, step: int) -> tuple[int, int, int]:
        """Return the masks of a vector, or of the two of a strided tile, and of the pixel behind these."""
        if not self.in_place:
            inside = np.ones((1, lanes), bool)
        if lanes > self.b.lanes:
            return 0, 0, 0  # several vectors have none
        elements = np.zeros(step * (lanes + 1), bool)
        for place, some in enumerate(inside):
            elements[place : place + step * len(some) : step] |= some
        masks = [_bits(some) for some in np.split(elements[: step * lanes], step)]
        return masks[0], masks[-1], int(elements[step * lanes])

    def is_inside(self, pixels: range) -> bool:
        """Whether all taps that these pixels of a row use meet the image for each of them."""
        inside = self.reads[2].inside[:, pixels.start : pixels.stop]
        return not self.in_place or bool((inside.all(axis=1) | ~inside.any(axis=1)).all())

    def groups(self, runs: tuple, taps: tuple) -> dict[str, int]:
        """Return the words `groups` and `blocks` for a tile with these runs and taps along W."""
        key = runs, taps
        if key not in self._known:
            self._known[key] = self._groups(runs, taps)
        return self._known[key]

    def _groups(self, runs: tuple, taps: tuple) -> dict[str, int]:
        (d, h, _), (at_d, at_h, _) = self.sums, (reads.at.tolist() for reads in self.reads)
        kh, kw = self.axes[1].kernel, self.axes[2].kernel
        kinds: dict[tuple[int, int], list[list[int]]] = {}
        for k, depth in enumerate(d.taps.tolist()):
            for first, count, lines in runs:
                for more, tap, at, *masks in taps:
                    weight = (depth * kh + int(h.taps[first])) * kw + tap
                    column = [at_d[k] + at_h[first] + at, weight, lines, *masks]
                    kinds.setdefault((more, count), []).append(column)
        groups: list[int] = []
        blocks, in_block = 1, 0
        for (more, count), columns in sorted(kinds.items()):
            each = count if len(self.phases) > 1 else count * (1 + more // MAX_TAPS)
            while columns:
                fit = min((K_BLOCK - in_block) // each, len(columns))
                if fit == 0:
                    groups.append(0)
                    blocks, in_block = blocks + 1, 0
                    continue
                groups += [count + more, fit, *itertools.chain.from_iterable(columns[:fit])]
                in_block += fit * each
                columns = columns[fit:]
        return {"groups": self.b.table([*groups, 0]), "blocks": blocks}


def _bits(lanes: np.ndarray) -> int:
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


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


class PlaneRows:
    """Covers the rows of a band with tiles; x and y are the strides of (row, pixel)."""

    def __init__(self, b: Builder, columns: Columns, y: tuple[int, int]) -> None:
        self.b, self.columns, self.y = b, columns, y
        self.paired = len(columns.phases) > 1
        self.x = columns.reads[1].step, columns.reads[2].step
        self._taps: dict[tuple[int, int], tuple] = {}
        self._tiles: dict[tuple, int] = {}
        self._bands: dict[tuple, int] = {}

    def of_band(self, begin: int, rows: int) -> int:
        """Keep the list of rows of tiles for so many rows, and return its address; bands that are alike share it."""
        step = self.columns.row_step
        found = []
        sizes = PAIRED_ROWS if self.paired else SECOND_ROWS if self.columns.strided else ALL_ROWS
        for some, first in tile_rows(rows, step, sizes):
            lines = self.columns.runs_of_rows(range(begin + first, begin + first + some * step, step))
            found.append((some, first * self.x[0], first * self.y[0], self._tiles_of(some, lines)))
        key = (*found, (0, 0, 0, 0))
        if key not in self._bands:
            self._bands[key] = self.b.table(key)
        return self._bands[key]

    def _tiles_of(self, rows: int, runs: tuple) -> int:
        key = rows, runs
        if key not in self._tiles:
            tiles = []
            for size, at, part in self._pieces(rows):
                place = {"x": at * self.x[1], "y": at * self.y[1] * len(self.columns.phases)}
                stretch = at, at + _width(size, self.b.lanes)
                if stretch not in self._taps:
                    self._taps[stretch] = self.columns.taps_of_pixels(*stretch)
                taps = self._taps[stretch]
                tiles.append({"size": size, "part": part} | place | self.columns.groups(runs, taps))
            end = dict.fromkeys(WORDS["plane_tile"], 0)
            self._tiles[key] = self.b.records("plane_tile", [*tiles, end])
        return self._tiles[key]

    def _pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """Cut a row into (size, begin, part): whole vectors, and one last piece that overlaps the one before."""
        columns, lanes = self.columns, self.b.lanes
        width = columns.sums[2].count
        if self.paired:
            for at in range(0, width, lanes):
                at = min(at, max(width - lanes, 0))
                left = columns.axes[2].out - 2 * at
                yield PAIRED, at, left if left < 2 * lanes else 0
            return
        most, one = (0, SECOND) if columns.strided else (MOST_VECTORS[rows], 0)
        halves = self.b.engines.vec_bytes == HALVED_BYTES and width >= lanes // 2 and not columns.strided
        at = 0
        while at < width:
            left = width - at
            size = min(most, (left // lanes).bit_length() - 1)
            while size > 0 and not columns.is_inside(range(at, at + (lanes << size))):
                size -= 1
            if size >= 0:
                yield size or one, at, 0
                at += lanes << size
                continue
            size = HALF if halves and left <= lanes // 2 else one
            piece = _width(size, lanes)
            yield size, max(width - piece, 0), 0 if width >= piece else left
            return


def _width(size: int, lanes: int) -> int:
    """Return how many pixels a tile of a size has, in each phase if there are two."""
    if size == HALF:
        return lanes // 2
    return lanes << size if size < HALF else lanes


def tile_rows(rows: int, step: int, sizes: Sequence[int] = ALL_ROWS) -> Iterator[tuple[int, int]]:
    """Share out rows, `step` apart, to tiles of about the same size: (rows of the tile, the first of them)."""
    for first in range(min(step, max(rows, 0))):
        left = -(-(rows - first) // step)
        while left:
            some = -(-left // -(-left // sizes[-1]))
            some = max(size for size in sizes if size <= some)
            yield some, first
            left -= some
            first += some * step

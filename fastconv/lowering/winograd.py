"""Convolutions with few taps along an axis or two by Winograd's minimal filtering: see src/winograd.h.

A dilated convolution is an undilated one on each phase of the image: its tiles are spread, no more. A transposed
convolution is one stride-1 convolution for each phase of its output, such as four of 2x2 where 4x4 has stride 2.
Taps along a third axis, as of 3x3x3, are summed over like channels. So are the pieces of a kernel: it is cut where it
has many taps, such as 7x7 into 4x4, 4x3, 3x4 and 3x3, and by the phases of the image that a strided convolution reads,
such as 3x3 of stride 2 into 2x2, 2x1, 1x2 and 1x1. All pieces go to the points of the largest; the product at infinity
is that of the last tap, and is left out where a piece has none.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np

from ..problem import Problem
from ..registry import Refusal
from .dense import add_halo
from .geometry import Axes, Axis, AxisSum, Image, Sums, axes_of, output_strides, sums_of
from .program import ENOUGH_TASKS, K_BLOCK, WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["EXACT_POINTS", "Filtering", "filtering_of", "lower_winograd", "refuse_winograd"]

# The algorithms F(m, r) of src/winograd.h: by the kernel r, the outputs m.
OUTPUTS = {2: (3, 4), 3: (2, 3, 4), 4: (3,)}
# With so many points or fewer all coefficients are powers of two.
EXACT_POINTS = 4
# Transformed inputs and sums of a block of tiles that stay in L2 of 512 kB, beside a panel of weights: arrays do not fill
# its sets evenly.
L2_BYTES = 3 << 17
# What stays there from block to block, beside the image and the output that go by: of 370 kB, 300 of them weights, those
# came 2.6 times.
STAY_BYTES = 1 << 18
# What inputs that come from L2 once more cost, of what they would cost from behind it.
NEAR_COST = 0.25
# Along one axis a tile has few points, and a block more of them (src/native.h).
MOST_TILES = {1: 192, 2: 96}
# Outputs that leave together (src/native.h).
LEAVING_PIXELS = 128
# Of a block of output channels (src/native.h).
WIDTH_BYTES = 256
# With at least so many phases, output pixels of one phase lie so far apart that tiles of neighbouring phases interleave.
SPREAD_PHASES = 4
# Weights of one task of their transform, in channels.
WEIGHT_PIECE = 32
# Six rows so far apart, or a multiple of that, share a quarter of the first level's sets or fewer.
SPREAD_BYTES = 256
GFLOPS = 50.0
# A band of the haloed image that a task makes itself, and how much of those before it a thread keeps.
PANEL_BYTES = 5 << 17
KEPT_BYTES = 1 << 17
# A tile reads so many sources at most, whose transforms are in L2.
MOST_PIECES = 16


@dataclass(frozen=True, eq=False)
class Piece:
    """Neighbouring taps along an axis that read one phase of the image, the first of them at line `first`."""

    phase: int
    first: int
    taps: np.ndarray


# Of a sum, each along the second and the third axis.
Pieces = list[tuple[Piece, Piece]]


def pieces_of(axis_sum: AxisSum, kernel: int) -> list[Piece]:
    """Return the pieces of a sum that have up to `kernel` taps."""
    order = np.lexsort((axis_sum.offsets, axis_sum.phases))
    ends = np.flatnonzero(np.diff(axis_sum.phases[order])) + 1
    pieces = [
        of_phase[i : i + kernel]
        for of_phase in np.split(order, ends)
        for i in range(0, len(of_phase), kernel)
    ]
    return [
        Piece(int(axis_sum.phases[piece[0]]), int(axis_sum.offsets[piece[0]]), axis_sum.taps[piece])
        for piece in pieces
    ]


@dataclass(frozen=True)
class Filtering:
    """A problem seen as stride-1 convolutions with r taps, `steps` lines apart, along the last axis or the last two.

    Attributes
    ----------
    problem : Problem
    axes : tuple of Axis
        Ordered by their roles: taps of the first are summed over as they are. Of the second too there is but one
        if the rank is 1.
    places : tuple of int
        Which of D, H and W they are.
    rank, kernel : int
    steps : tuple of int
    """

    problem: Problem
    axes: Axes
    places: tuple[int, ...]
    rank: int
    kernel: int
    steps: tuple[int, ...]

    @cached_property
    def sums(self) -> list[Sums]:
        return sums_of(self.axes)

    @property
    def taps(self) -> int:
        """Taps of the axis that is not filtered."""
        return len(self.axes[0].sums[0].taps)

    @property
    def kernels(self) -> tuple[int, int]:
        """Taps along the second and the third axis."""
        return (self.kernel if self.rank == 2 else 1), self.kernel

    @cached_property
    def pieces(self) -> list[Pieces]:
        """The pieces of each sum, ordered so that those which have a product at any one point are neighbours."""

        def order(piece: tuple[Piece, Piece]) -> tuple[bool, bool]:
            second, third = self.are_full(piece)
            return not second, second == third

        def of_sum(sums: Sums) -> Pieces:
            second, third = (pieces_of(s, kernel) for s, kernel in zip(sums[1:], self.kernels, strict=True))
            return sorted(product(second, third), key=order)

        return [of_sum(sums) for sums in self.sums]

    @property
    def most_pieces(self) -> int:
        return max(map(len, self.pieces))

    def are_full(self, piece: tuple[Piece, Piece]) -> tuple[bool, bool]:
        """Return whether a piece has a product at infinity, along the second and the third axis."""
        second, third = (len(along.taps) == kernel for along, kernel in zip(piece, self.kernels, strict=True))
        return second, third

    def shared(self, points: int) -> int:
        """Return how many pieces along the third axis read what a tile beside reads for another one, or 1.

        They do where tiles begin as far apart as pieces.
        """
        first, _, third = self.axes
        alike = self.outputs(points)[1] == self.kernel and self.steps[2] == 1 and self.places[2] == 2
        if not alike or first.out > 1 or third.phases > 1 or len(self.sums) > 1:
            return 1
        return len(pieces_of(third.sums[0], self.kernel))

    def ranges(self, points: int) -> list[list[tuple[int, int]]]:
        """Return the range of the pieces that have a product, for each sum and each point."""
        line = [False] * (points - 1) + [True]
        infinite = list(product(line if self.rank == 2 else [False], line))

        def of_sum(pieces: Pieces) -> list[tuple[int, int]]:
            full = list(map(self.are_full, pieces))
            found = []
            for second, third in infinite:
                mine = [i for i, (h, w) in enumerate(full) if h >= second and w >= third]
                found.append((mine[0], mine[-1] + 1) if mine else (0, 0))
            return found

        return list(map(of_sum, self.pieces))

    def outputs(self, points: int) -> tuple[int, int]:
        """Return the outputs of a tile along the second and the third axis."""
        m = points - self.kernel + 1
        return (m if self.rank == 2 else 1), m

    def tiles(self, points: int) -> list[int]:
        """Return the number of tiles of each sum in an image."""
        found = []
        for first, *filtered in self.sums:
            along = zip(filtered, self.steps[1:], self.outputs(points), strict=True)
            counts = [int(tile_counts(s.count, step, m)[1].sum()) for s, step, m in along]
            found.append(first.count * math.prod(counts))
        return found

    def weights(self, points: int) -> list[int]:
        """Return how many products a tile of each sum has per pair of channels, each with a weight of its own."""
        return [self.taps * sum(end - begin for begin, end in ranges) for ranges in self.ranges(points)]

    def products(self, points: int) -> int:
        """Return the products of all tiles of an image, per pair of channels."""
        return sum(map(operator.mul, self.tiles(points), self.weights(points)))


# Every backend asks, of each kernel, whether it can be used and what it costs: of one problem at a time.
@lru_cache(maxsize=3)
def filtering_of(problem: Problem, points: int) -> Filtering | str:
    """Return how a problem looks to the algorithm with `points` points, or why it cannot use it."""
    if problem.groups == problem.in_channels and problem.groups > 1:
        return Refusal.DEPTHWISE
    axes = axes_of(problem)
    if any(axis.has_gaps or not axis.sums for axis in axes):
        return Refusal.UNEVEN_TAPS
    steps = [{int(step) for s in axis.sums for step in lines_apart(s)} or {1} for axis in axes]
    if any(len(found) > 1 for found in steps):
        return Refusal.UNEVEN_TAPS
    most = [max(int(np.bincount(s.phases).max()) for s in axis.sums) for axis in axes]
    for rank, *places in (
        (2, 0, 1, 2),
        (2, 1, 0, 2),
        (2, 2, 0, 1),
        (1, 0, 1, 2),
        (1, 1, 0, 2),
        (1, 0, 2, 1),
        (1, 1, 2, 0),
    ):
        first, second, third = (axes[place] for place in places)
        _, *taps = (most[place] for place in places)
        if first.phases > 1 or len({len(s.taps) for s in first.sums}) > 1 or (rank == 1 and taps[0] > 1):
            continue
        apart = tuple(min(steps[place]) for place in places)
        candidates = [
            Filtering(problem, (first, second, third), tuple(places), rank, kernel, apart)
            for kernel, outputs in OUTPUTS.items()
            if kernel <= min(taps[-rank:]) and points - kernel + 1 in outputs
        ]
        candidates = [
            found
            for found in candidates
            if found.most_pieces <= MOST_PIECES and {found.most_pieces} == set(map(len, found.pieces))
        ]
        if candidates:
            return min(candidates, key=lambda filtering: (filtering.products(points), filtering.most_pieces))
    return Refusal.NO_SMALL_KERNEL


def lines_apart(axis_sum: AxisSum) -> np.ndarray:
    """Return how far apart neighbouring taps of the same phase are."""
    order = np.lexsort((axis_sum.offsets, axis_sum.phases))
    same = np.diff(axis_sum.phases[order]) == 0
    return np.diff(axis_sum.offsets[order])[same]


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
        m, r = filtering.outputs(points)[1], filtering.kernel
        of = f"F({m}x{m}, {r}x{r})" if filtering.rank == 2 else f"F({m}, {r})"
        tile = f"{of}, {rows} tiles x {vectors * b.lanes} channels"
        flops = 2 * filtering.products(points) * problem.in_channels // problem.groups
        return b.finish(flops * problem.out_channels / GFLOPS, tile)

    return lower


def tile_counts(size: int, step: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs and the tiles of each phase of an axis whose taps are `step` lines apart."""
    counts = -(-(size - np.arange(min(step, size))) // step)
    return counts, -(-counts // outputs)


def spilt(room: float, streamed: float) -> float:
    """Return the share of what is used evenly, while so many bytes go by, that is no longer in a cache with so much room."""
    return min(max(1 - room / streamed, 0), 1)


@dataclass(frozen=True)
class Tiles:
    """The tiles of a sum: columns of the table (see src/program.h), and where in the image each source begins."""

    table: dict[str, np.ndarray]
    sources: np.ndarray
    taps: int
    pieces: int

    @property
    def count(self) -> int:
        return len(self.table["source"])

    @cached_property
    def last_source(self) -> np.ndarray:
        return self.table["source"] + (self.taps - 1) * self.table["step"]

    def lines_of(self, block: int, blocks: int, image: Image) -> tuple[int, int]:
        """Return the first and the last line in which sources of a block of tiles begin."""
        first, end = self.count * block // blocks, self.count * (block + 1) // blocks
        if first == end:
            return 0, 0
        sources = self.sources[self.table["source"][first] : self.last_source[end - 1] + self.pieces]
        lines = sources // image.h % image.lines_h
        return int(lines.min()), int(lines.max())

    def most_sources(self, block: int) -> int:
        """Return how many sources a block of so many tiles has at most, wherever it begins and over how many images."""
        images = np.arange(-(-block // self.count) + 1)[:, None] * len(self.sources)
        first, last = (images + self.table["source"]).ravel(), (images + self.last_source).ravel()
        return int((last[block - 1 :] - first[: len(first) - block + 1]).max()) + self.pieces


class WinogradPlan:
    """The choices for one problem: tiles, how many at a time, and who transforms them."""

    def __init__(self, b: Builder, filtering: Filtering, points: int) -> None:
        p = b.problem
        self.b, self.p, self.filtering, self.points = b, p, filtering, points**filtering.rank
        self.ranges, self.weights = filtering.ranges(points), max(filtering.weights(points))
        self.outputs, self.kernel, self.taps = filtering.outputs(points), filtering.kernel, filtering.taps
        self.pieces, self.shared = filtering.most_pieces, filtering.shared(points)
        self.c, self.o = p.in_channels // p.groups, p.out_channels // p.groups
        self.depth = self.pieces * self.c
        # The sources of a tile lie side by side; those of the next one begin so many further on.
        self.apart = self.pieces // self.shared
        rows, vectors = b.engines.lane_tile
        widest = min(WIDTH_BYTES // b.itemsize, round_up(self.o, b.lanes))
        self.w_width = min(vectors * b.lanes, widest)
        self.w_blocks = -(-self.o // self.w_width)
        o, h, w = filtering.axes
        roles = (o, *(self.reach_tiles(i, axis) for i, axis in enumerate((h, w))))
        d, h, w = (roles[filtering.places.index(place)] for place in range(3))
        self.axes: Axes = (d, h, w)
        self.image = Image.of(self.axes, p.in_channels)
        self.x_steps = self.by_role((self.image.d, self.image.h, self.image.w))
        phases = self.image.lines_d * self.image.d, self.image.lines_h * self.image.h, self.image.phase
        self.x_phases = self.by_role(phases)
        self.y_steps = self.by_role(output_strides(p)[2:])
        # Channels first, pixels that lie far apart would be written one by one.
        far = filtering.places[2] != 2 or filtering.steps[2] >= SPREAD_PHASES
        self.spread = p.layout == "NCHW" and (
            filtering.steps[2] >= SPREAD_PHASES or (far and filtering.rank == 1)
        )
        self.tiles = list(map(self.tiles_of, filtering.sums, filtering.pieces))
        # One vector more where rows of a matrix would share cache sets. Few channels are written
        # source by source, what is too much behind one is overwritten by the next.
        self.v_row = round_up(self.c, b.lanes) if self.c >= b.lanes else self.c
        if self.c >= b.lanes and self.v_row * b.itemsize % SPREAD_BYTES == 0:
            self.v_row += b.lanes
        largest = max(self.tiles, key=lambda tiles: tiles.count)
        most, self.width = self.sums_at_once(largest, rows, widest)
        # Small images share a task, so that weights are used more than once; no result changes with it.
        self.images_per_task = max(min(most // largest.count, p.batch), 1)
        tiles = largest.count * self.images_per_task
        self.tile_blocks = -(-tiles // most)
        self.block = -(-tiles // self.tile_blocks)
        self.block_sources = max(tiles.most_sources(self.block) for tiles in self.tiles)
        # Weights of one sum and group that fit L2, where those of all do not: all blocks before the next weights.
        inputs, sums, weights = self.room(largest, self.block, self.width)
        fit = STAY_BYTES - inputs - sums
        self.in_a_row = self.tile_blocks if weights <= fit < weights * len(self.tiles) * p.groups else 1
        tasks = self.tile_blocks * len(self.tiles) * p.groups
        self.parts = max(min(-(-ENOUGH_TASKS // tasks), -(-self.o // widest)), 1)
        self.tasks = tasks * self.parts

    def by_role(self, of_axes: tuple[int, ...]) -> tuple[int, ...]:
        """Return what D, H and W have in the order of the roles."""
        return tuple(of_axes[place] for place in self.filtering.places)

    def sums_at_once(self, tiles: Tiles, rows: int, widest: int) -> tuple[int, int]:
        """Return the blocks of tiles and of output channels that move the fewest bytes between L2 and what is behind it.

        Weights that fit L2 beside a block come once, others with each block. Then they drive transformed inputs out of L2
        before these are used, the later in the order of the points the more of them, and sums before they are put
        together, and so do inputs and sums themselves; what was driven out is written and read again.
        """

        def moved(choice: tuple[int, int]) -> float:
            block, width = choice
            inputs, sums, weights = self.room(tiles, block, width)
            passes = -(-self.o // width)
            again = NEAR_COST * (passes - 1) * inputs * -(-tiles.count // block)
            if inputs + sums + weights <= STAY_BYTES:
                return weights + again
            streamed = weights / passes + sums
            away = 2 * inputs * spilt(L2_BYTES - inputs, streamed)
            away += 2 * passes * sums * spilt(L2_BYTES, streamed)
            if inputs + streamed > L2_BYTES:
                away += (passes - 1) * inputs
            return -(-tiles.count // block) * (weights + away) + again

        blocks = range(rows, MOST_TILES[self.filtering.rank] + 1, rows)
        # Whole blocks of packed weights, or all of them.
        widths = [widest, *reversed(range(self.w_width, widest, self.w_width))]
        return min(product(blocks, widths), key=moved)

    def room(self, tiles: Tiles, block: int, width: int) -> tuple[int, int, int]:
        """Return the bytes of a block's transformed inputs, of its sums, and of the weights of a sum and a group."""
        size = self.points * self.b.itemsize
        weights = self.weights * self.c * self.o * self.b.itemsize
        return tiles.most_sources(block) * self.v_row * size, block * width * size, weights

    def reach_tiles(self, i: int, axis: Axis) -> Axis:
        """Return the second or third axis with zeros behind it wherever its last tiles reach."""
        m, step = self.outputs[i], self.filtering.steps[1 + i]
        kernel = self.kernel if i == 1 or self.filtering.rank == 2 else 1
        lines = axis.lines
        for s in axis.sums:
            _, tiles = tile_counts(s.count, step, m)
            reach = np.arange(len(tiles)) + (tiles * m + kernel - 2) * step
            first = max(piece.first for piece in pieces_of(s, kernel))
            lines = max(lines, int(first + reach.max()) + 1)
        padding = np.full((axis.phases, lines - axis.lines), -1)
        return replace(axis, map=np.concatenate([axis.map, padding], axis=1))

    def tiles_of(self, sums: Sums, pieces: Pieces) -> Tiles:
        """Return the tiles of a sum.

        Tiles that are to leave side by side are members of a row. For each row along the other filtered axis, and
        each group of members, the tiles go along the axis that is not filtered, where they share sources.
        """
        first, *filtered = sums
        lines, members = (self.line_of(i, s) for i, s in enumerate(filtered))
        if self.spread and self.filtering.steps[2] == 1:
            lines, members = members, lines
        elif self.spread:
            order = np.lexsort((members["phase"], members["tile"]))
            sort = {name: members[name][order] for name in ("at", "x", "y", "left")}
            members |= sort | {"phase": members["tile"][order]}
        along, step, size = first.count, self.filtering.steps[0], len(members["at"])
        reach = along + (self.taps - 1) * step
        # Groups so small that what neighbours share is still in a block of tiles, if they share anything.
        group = members["phase"] * size
        if reach > 1:
            run = np.arange(size) - np.searchsorted(members["phase"], members["phase"])
            group = group + run // (LEAVING_PIXELS // math.prod(self.outputs))
        begin = np.searchsorted(group, group)
        length = np.searchsorted(group, group, side="right") - begin
        low = int(first.offsets.min()) * self.x_steps[0]
        starts = low + np.array(list(map(self.piece_offset, self.in_sources(pieces))))[: self.apart]

        def every(count: int) -> tuple[np.ndarray, np.ndarray]:
            """Return (place along the first axis, member) of a line's tiles or sources, in their order."""
            place, member = (a.ravel() for a in np.indices((count, size)))
            order = np.lexsort((member, place, group[member]))
            return place[order], member[order]

        place, member = every(reach)
        x = place * self.x_steps[0] + members["x"][member]
        if self.shared > 1:
            x = np.arange(size + self.shared - 1) * self.outputs[1] * self.x_steps[2]
        sources = (lines["x"][:, None] + x).ravel()[:, None] + starts
        place, member = every(along)
        source = begin[member] * reach + place * length[member] + member - begin[member]
        y = (first.start + first.step * place) * self.y_steps[0] + members["y"][member]
        _, row = np.unique(group[member] * along + place, return_inverse=True)
        line = np.arange(len(lines["x"]))[:, None]
        table = {
            "source": (line * len(x) + source) * self.apart,
            "step": np.broadcast_to(step * length[member] * self.apart, (len(line), len(member))),
            "y": lines["y"][:, None] + y,
            "row": line * (int(row.max()) + 1) + row,
        }
        limits = {lines["limit"]: lines["left"][:, None], members["limit"]: members["left"][member]}
        table |= {name: np.broadcast_to(left, table["y"].shape) for name, left in limits.items()}
        table = {name: values.ravel() for name, values in table.items()}
        return Tiles(table, sources.ravel(), self.taps, self.pieces)

    def in_sources(self, pieces: Pieces) -> Pieces:
        """Return the pieces in the order of a tile's sources."""
        if self.shared == 1:
            return pieces
        return sorted(pieces, key=lambda piece: (piece[1].first, piece[0].phase, piece[0].first))

    def piece_offset(self, piece: tuple[Piece, Piece]) -> int:
        """Return where in the image what a piece reads begins."""
        steps = zip(piece, self.x_phases[1:], self.x_steps[1:], strict=True)
        return sum(along.phase * x_phase + along.first * x for along, x_phase, x in steps)

    def line_of(self, i: int, s: AxisSum) -> dict[str, Any]:
        """Return the tiles along the second or the third axis, phase by phase.

        Their phase, number in it, input and output offsets, and how many outputs are left.
        """
        m, step = self.outputs[i], self.filtering.steps[1 + i]
        counts, tiles = tile_counts(s.count, step, m)
        phase = np.repeat(np.arange(len(tiles)), tiles)
        tile = np.arange(len(phase)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
        at = phase + tile * m * step
        return {
            "phase": phase,
            "tile": tile,
            "at": at,
            "x": at * self.x_steps[1 + i],
            "y": (s.start + s.step * at) * self.y_steps[1 + i],
            "left": np.minimum(counts[phase] - tile * m, m),
            "limit": ("rows", "columns")[i],
        }

    def add_stages(self) -> None:
        b, p = self.b, self.p
        starts, bands = np.array([0, p.in_channels]), self.bands()
        room = self.room_of(bands)
        if room:
            add_halo(b, "halo_pixels", self.axes, self.image, 0, 0, starts, 0, what="")
            halo = b.stages.pop()
            b.stage("winograd", self.tasks, self.words(Operand("thread"), 0))
            # The phases of a band lie as far apart as those of the whole image.
            panel = self.image.size - (self.image.lines_h - room) * self.image.h + b.lanes
            joined = (*halo, "halo"), (*b.stages.pop(), "winograd")
            b.join(*joined, panel, bands, room * self.axes[1].phases)
            return
        b.chunked(self.image.size * b.itemsize, self.images_per_task)
        x = add_halo(b, "halo_pixels", self.axes, self.image, self.image.size, 0, starts, b.lanes)
        words = self.words(x, self.image.size)
        if self.parts > 1:
            blocks = self.tasks // self.parts
            size = blocks * self.points * (self.block_sources * self.v_row + b.lanes)
            words["v"] = b.scratch(-(-size // self.images_per_task), size, "transformed input")
            b.stage("winograd_inputs", self.tasks, words, self.images_per_task)
        b.stage("winograd", self.tasks, words, self.images_per_task)

    def bands(self) -> list[dict[str, int]]:
        """Return which lines of the haloed image each task reads, or nothing where it cannot make them itself."""
        h_phases = self.axes[1].phases
        # A band has all channels: what goes over it again, for each group or with other weights, would make it again.
        again = self.p.groups > 1 or self.in_a_row > 1
        if again or self.parts > 1 or self.images_per_task > 1 or self.axes[0].map.size > 1:
            return []
        role = self.filtering.places.index(1)
        points = 1, self.outputs[0] + self.filtering.kernels[0] - 1, self.outputs[1] + self.kernel - 1
        reach = (points[role] - 1) * self.filtering.steps[role] + 1
        bands = []
        for task in range(self.tasks):
            number, place = divmod(task, self.in_a_row)
            block = number // len(self.tiles) // self.p.groups * self.in_a_row + place
            first, end = self.tiles[number % len(self.tiles)].lines_of(block, self.tile_blocks, self.image)
            at = first * self.image.h * self.b.itemsize
            bands.append(
                dict(
                    first=first * h_phases,
                    first_end=(end + reach) * h_phases,
                    second=task,
                    second_end=task + 1,
                    y_bytes=at,
                    x_bytes=at,
                )
            )
        return bands

    def room_of(self, bands: list[dict[str, int]]) -> int:
        """Return how many lines of the haloed image a thread keeps, or 0 where that is a stage of its own.

        Bands that overlap much would be made several times, and large ones leave L2.
        """
        lines = self.image.lines_h
        line_bytes = self.image.size // lines * self.b.itemsize
        most = max((band["first_end"] - band["first"] for band in bands), default=0) // self.axes[1].phases
        if not bands or most * line_bytes > PANEL_BYTES or 3 * most > 2 * lines:
            return 0
        room = min(max(most, KEPT_BYTES // line_bytes), lines)
        self.b.copies.append(f"haloed bands: {room * line_bytes / 1e3:.3g} kB a thread")
        return room

    def add_weights(self) -> tuple[Operand, int, int, list[dict[str, int]]]:
        """Add the stages that pack and transform the weights.

        Returns where they go, the strides of their blocks and points, and a record for each sum.
        """
        b, p = self.b, self.p
        sources = list(map(self.weight_order, self.filtering.sums, self.filtering.pieces))
        count, depth = len(sources), len(sources[0])
        raw = depth * self.w_width
        packed = b.pack(
            np.concatenate(sources),
            np.arange(count * depth) * self.w_width,
            count * raw,
            self.w_width,
            self.w_blocks,
            rows=self.o,
            x_row=self.weight_strides()[0],
            groups=p.groups,
            x_group=self.c * self.o * p.taps,
            keep=False,
        )
        channels = self.taps * self.depth
        w_point = channels * self.w_width + b.lanes
        w_sum = self.points * w_point
        blocks = p.groups * self.w_blocks * count
        w = b.packed(blocks * w_sum)
        shares = -(-channels // WEIGHT_PIECE)
        words: Words = dict(
            x=packed,
            y=w,
            outputs=self.outputs[1],
            kernel=self.kernel,
            rank=self.filtering.rank,
            channels=channels,
            width=self.w_width,
            pieces=shares,
            x_block=raw,
            y_block=w_sum,
            y_point=w_point,
        )
        b.stage("winograd_weights", blocks * shares, words, weights_only=True)
        records = [self.sum_record(i, i * w_sum, source) for i, source in enumerate(sources)]
        return w, count * w_sum, w_point, records

    def sum_record(self, i: int, w: int, weights: np.ndarray) -> dict[str, int]:
        """Return the record of a sum, whose weights are at `w` of a block and come from the places `weights`."""
        b, tiles, given = self.b, self.tiles[i], weights >= 0
        points = [{"begin": begin * self.c, "end": end * self.c} for begin, end in self.ranges[i]]
        return {
            "tiles": b.table(np.stack([tiles.table[name] for name in WORDS["winograd_tile"]], axis=1)),
            "tile_count": tiles.count,
            "sources": b.table(tiles.sources),
            "source_count": len(tiles.sources),
            "w": w,
            "points": b.records("winograd_point", points),
            "terms": int(np.count_nonzero(given)),
            "w_offsets": b.table(weights[given]),
            "x_offsets": b.table(self.direct_offsets(self.filtering.pieces[i])[given]),
        }

    def weight_strides(self) -> tuple[int, int]:
        """Return the strides of the weights over output channels of a group and over input channels."""
        taps = self.p.taps
        return (taps, self.o * taps) if self.p.variant == "conv_transpose" else (self.c * taps, taps)

    def weight_order(self, sums: Sums, pieces: Pieces) -> np.ndarray:
        """Return where the weight of each (tap, piece, channel, filtered taps) is, taps in their order in the image.

        It is negative where a piece has fewer taps than the algorithm.
        """
        kernel = (1, 1, *self.p.kernel_size)[-3:]
        steps = self.by_role((kernel[1] * kernel[2], kernel[2], 1))
        first = sums[0].taps[np.argsort(sums[0].offsets)] * steps[0]
        start = first[:, None, None, None] + np.arange(self.c)[:, None, None] * self.weight_strides()[1]
        found = []
        for piece in pieces:
            places = np.full((self.taps, self.c, *self.filtering.kernels), -1)
            h, w = (along.taps * step for along, step in zip(piece, steps[1:], strict=True))
            places[..., : len(h), : len(w)] = start + h[:, None] + w
            found.append(places)
        return np.stack(found, axis=1).ravel()

    def direct_offsets(self, pieces: Pieces) -> np.ndarray:
        """Return the image offset of every (tap, piece, channel, filtered taps) from the first pixel of a tile."""
        steps = zip((self.taps, *self.filtering.kernels), self.filtering.steps, self.x_steps, strict=True)
        o, h, w = (np.arange(kernel) * step * x for kernel, step, x in steps)
        first = self.piece_offset(self.in_sources(pieces)[0])
        starts = np.array([self.piece_offset(piece) - first for piece in pieces])[:, None, None, None]
        return (
            o[:, None, None, None, None] + starts + np.arange(self.c)[:, None, None] + h[:, None] + w
        ).ravel()

    def words(self, x: Operand, x_image: int) -> Words:
        b, p, steps = self.b, self.p, self.filtering.steps
        y_image, y_channel, *_ = output_strides(p)
        _, sum_h, sum_w = self.filtering.sums[0]
        y_next = 0
        if self.spread:
            y_next = sum_w.step * self.y_steps[2] if steps[2] > 1 else sum_h.step * self.y_steps[1]
        w, w_block, w_point, records = self.add_weights()
        pieces = self.filtering.pieces[0]
        order = [self.in_sources(pieces).index(piece) for piece in pieces]
        columns = np.array(order)[:, None] * self.v_row + np.arange(self.c)
        k_block = min(K_BLOCK, self.taps * self.depth * math.prod(self.filtering.kernels))
        pixels = math.prod(self.outputs)
        leaving = LEAVING_PIXELS // pixels * pixels
        work = self.points * (self.block * self.width + b.lanes)
        work += leaving * self.width + self.width * (leaving + b.lanes) + k_block * b.lanes
        work += self.points * (self.block_sources * self.v_row + b.lanes) if self.parts == 1 else 0
        return dict(
            x=x,
            w=w,
            weight=Operand("weight"),
            b=b.operand("bias"),
            y=b.operand("output"),
            work=b.thread(work),
            work_stride=Operand("thread_stride"),
            images=Operand("images"),
            outputs=self.outputs[1],
            kernel=self.kernel,
            rank=self.filtering.rank,
            x_image=x_image,
            x_group=self.c,
            x_h=steps[1] * self.x_steps[1],
            x_w=steps[2] * self.x_steps[2],
            y_image=y_image,
            y_group=self.o * y_channel,
            y_channel=y_channel,
            y_h=self.y_steps[1] * sum_h.step * steps[1],
            y_w=self.y_steps[2] * sum_w.step * steps[2],
            y_next=y_next,
            groups=p.groups,
            depth=self.c,
            taps=self.taps,
            pieces=self.pieces,
            channels=self.o,
            parts=self.parts,
            sums=b.records("winograd_sum", records),
            sum_count=len(records),
            block=self.block,
            images_per_task=self.images_per_task,
            blocks=self.tile_blocks,
            in_a_row=self.in_a_row,
            ahead=b.writes_far(),
            block_sources=self.block_sources,
            v=0,
            v_row=self.v_row,
            width=self.width,
            w_width=self.w_width,
            w_block=w_block,
            w_point=w_point,
            k_block=k_block,
            activation=b.engines.activation(p),
            columns=b.table(columns),
            weight_group=self.c * self.o * p.taps,
            w_row=self.weight_strides()[0],
        )

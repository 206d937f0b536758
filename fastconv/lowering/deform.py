"""Deformable convolutions: a sampling stage feeds the register tile."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_halo
from .geometry import Axes, Axis, Image, output_strides
from .program import K_BLOCK, Builder, Engines, Operand, Words, round_up

__all__ = [
    "GFLOPS",
    "LINE",
    "MOST_LEFT",
    "MOST_POINTS",
    "PAIRS_TILE",
    "Bordered",
    "channel_blocks",
    "cut_pairs",
    "lower_deform",
]

# Input channels sampled together: two vectors of AVX-512, one cache line or two a corner.
CHANNEL_BLOCK = 32
TILE = 112
# Tiles of an image that are cut into equal shares, and pixels of the least of four.
ENOUGH_TILES = 16
LEAST_PIXELS = 24
# A plane whose weights are read once, and blocks of output channels that make sampling it twice cheap.
FEW_PIXELS = 64
MANY_BLOCKS = 4
# With so few idle lanes, weights that are not packed beforehand are read where they are: packing them took longer than
# idle lanes do. And pixels beyond whole vectors that take no vector of their own (src/native.h).
MOST_IDLE = 1.3
MOST_LEFT = 2
# Elements of a cache line, at most.
LINE = 16
# Samples of a tile are multiplied while they are in L2: so many (tap, channel) pairs a pixel.
MOST_COLUMNS = 512
# Of quarters, so many are summed at once: those of 9 taps of a block of channels.
HALF_DEPTH = CHANNEL_BLOCK * 9 // 2
# Pixels of a tile of pairs: with 96 to 260 of them products took the same time.
PAIRS_TILE = 144
# Bases and corner weights of a tile, for all taps.
MOST_POINTS = 1 << 14
GFLOPS = 30.0
# Channels to which a pixel of fewer than a vector is rounded up.
NARROW = 4


@dataclass(frozen=True)
class Bordered:
    """The input in blocks of channels, channels last in a block, inside a border of zeros."""

    blocks: list[tuple[int, int]]
    axes: Axes
    image: Image
    width: int

    @classmethod
    def of(cls, b: Builder, blocks: list[tuple[int, int]]) -> "Bordered":
        """Cut the channels into blocks: (first, count)."""
        most = max(count for _, count in blocks)
        # A vector may reach into the next pixel: with few channels, whole vectors would multiply the image in memory.
        width = round_up(most, b.lanes if most >= b.lanes else NARROW)
        axes = _bordered_axes(b.problem)
        return cls(blocks, axes, Image.of(axes, width), width)

    @property
    def elements(self) -> int:
        return self.image.size * len(self.blocks)

    @property
    def most_channels(self) -> int:
        return max(count for _, count in self.blocks)

    def add(self, b: Builder) -> Operand:
        """Add the stage that copies the input, and return where it goes."""
        starts = np.array([first for first, _ in self.blocks] + [b.problem.in_channels])
        what = "bordered input in channel blocks"
        return add_halo(
            b,
            "halo_pixels",
            self.axes,
            self.image,
            self.elements,
            self.image.size,
            starts,
            2 * b.lanes,
            what=what,
        )

    def words(self, p: Problem, tile: int) -> dict[str, int]:
        """Return the words about points: where they are, and where their corners lie."""
        before = tuple(pair[0] for pair in p.padding)
        sizes = {"size": p.input_size, "out": p.output_size, "kernel": p.kernel_size}
        steps = {"stride": p.stride, "pad": before, "dil": p.dilation}
        line_d, line_h = self.image.d // self.width, self.image.h // self.width
        outside = (p.input_size[0] + 1) * (1, line_h, line_d)[p.ndim - 1]
        words = dict(ndim=p.ndim, line_d=line_d, line_h=line_h, width=self.width, outside=outside, tile=tile)
        for name, values in (sizes | steps).items():
            default = 0 if name == "pad" else 1
            for axis, value in zip("dhw", [default] * (3 - p.ndim) + list(values), strict=True):
                words[f"{name}_{axis}"] = value
        return words


@dataclass(frozen=True)
class Cut:
    """How the product of samples and weights is cut.

    Attributes
    ----------
    tile, splits : int
        Output pixels of a task, and how many tasks share the output channels of these.
    tap_block : int
        Taps that are sampled together.
    width, blocks : int
        Output channels of a block of weights, and how many blocks of a weight group there are.
    seven : bool
        Whether halves of the blocks are pairs (src/strassen.h).
    vectors : int
        0, or of pixels, where these are in the vectors and weights are read where they are (src/deform_few.h).
    used_once : bool
        Whether weights are packed by who uses them, and never go through memory.
    """

    tile: int
    splits: int
    tap_block: int
    width: int
    blocks: int
    seven: bool = False
    vectors: int = 0
    used_once: bool = False

    @classmethod
    def of(cls, p: Problem, engines: Engines, lanes: int, pixel: int, seven: bool) -> "Cut":
        """Choose; a pixel of a block of input channels has `pixel` elements."""
        outputs, pixels = p.out_channels // p.groups, math.prod(p.output_size)
        rows, vectors = engines.lane_tile
        tap_block = min(p.taps, max(MOST_COLUMNS // pixel, 1))
        widest = min(vectors * lanes, round_up(outputs, lanes))
        if seven:
            width = max(w for w in range(lanes, widest + 1, lanes) if outputs % (2 * w) == 0)
            most = max(min(PAIRS_TILE, MOST_POINTS // p.taps, pixels + 1) // 2, 1)
            tile = 2 * cut_pairs(pixels, most, rows)
            return cls(tile, 1, tap_block, width, outputs // width, seven=True)
        few = 0 if p.prepared or tap_block < p.taps else _few_vectors(p, lanes)
        if few:
            # Output channels are rows of the tile, and those of a split whole tiles.
            blocks = -(-outputs // engines.tile[0])
            return cls(
                pixels, 2 if blocks >= MANY_BLOCKS else 1, tap_block, engines.tile[0], blocks, vectors=few
            )
        blocks = -(-outputs // widest)
        tile, splits = _cut(p, rows, blocks)
        used_once = not p.prepared and tile == pixels and p.batch == 1 and tap_block == p.taps
        return cls(tile, splits, tap_block, widest, blocks, used_once=used_once)

    def rooms(self, columns: int, lanes: int) -> dict[str, int]:
        """Return the elements of a thread's scratch that hold samples, sums and weights; a pixel has so many columns."""
        sums, other, panel, row = self.blocks * self.tile * self.width, 0, 0, columns
        if self.seven:
            # No vector reaches into the next pixel's row: that may have been sampled before.
            row = 4 * self.seven_row(columns, lanes)
            other = 3 * self.blocks * self.tile * self.width // 4
        elif self.vectors:
            panel = columns * self.vectors * lanes
            outputs = self.blocks * self.width
            sums = outputs * (self.vectors + 1) * lanes
            other = MOST_LEFT * (columns + lanes + outputs * lanes)
        elif self.used_once:
            panel = columns * self.width
        turned = self.width * (self.tile + lanes)
        return {"sums": sums, "other": other, "panel": panel, "turned": turned, "columns": self.tile * row}

    def seven_row(self, columns: int, lanes: int) -> int:
        """Return the elements from a row of half the columns to the next."""
        return round_up(-(-(columns + lanes) // 2), lanes) if self.seven else 0


def lower_deform(problem: Problem, engines: Engines, *, seven: bool = False) -> Any:
    """Return a program for any deformable convolution, by seven products in place of eight if asked for."""
    p, b = problem, Builder(problem, engines)
    bordered = Bordered.of(b, channel_blocks(p))
    b.chunked(bordered.elements * b.itemsize)
    x = bordered.add(b)

    cut = Cut.of(p, engines, b.lanes, bordered.width, seven)
    pixels, corners, int64s = math.prod(p.output_size), 1 << p.ndim, 8 // b.itemsize
    columns = cut.tap_block * bordered.most_channels
    rooms = cut.rooms(columns, b.lanes)
    records = _records(b, bordered, cut.width)
    in_place = cut.used_once or cut.vectors
    w = 0 if in_place else _add_weights(b, records, cut)
    work = p.taps * cut.tile * (int64s + corners + 1) + 6 * cut.tile + LINE + b.lanes + sum(rooms.values())
    y_image, y_channel, _, _, y_w = output_strides(p)
    words: Words = dict(
        x=x,
        w=w,
        b=b.operand("bias"),
        offset=b.operand("offset"),
        mask=b.operand("mask"),
        y=b.operand("output"),
        work=b.thread(work),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=bordered.elements,
        offset_image=p.offset_groups * p.taps * p.ndim * pixels,
        mask_image=p.offset_groups * p.taps * pixels,
        y_image=y_image,
        y_channel=y_channel,
        y_w=y_w,
        blocks=b.records("block", records),
        block_count=len(records),
        groups=p.groups,
        channels=p.out_channels // p.groups,
        w_width=cut.width,
        w_blocks=cut.blocks,
        w_block=p.in_channels * p.taps * cut.width,
        given=b.operand("weight") if in_place else 0,
        w_row=p.in_channels // p.groups * p.taps,
        panel=rooms["panel"],
        tiles=-(-pixels // cut.tile),
        splits=cut.splits,
        vectors=cut.vectors,
        seven=_add_seven(b, w, records, cut) if seven else 0,
        seven_row=cut.seven_row(columns, b.lanes),
        tap_block=cut.tap_block,
        k_block=HALF_DEPTH if seven else K_BLOCK,
        activation=b.engines.activation(p),
    )
    words |= bordered.words(p, cut.tile)
    b.stage("deform", -(-pixels // cut.tile) * cut.splits, words)
    work_ns = (p.flops / max(p.batch, 1) + pixels * p.taps * p.in_channels * corners) / GFLOPS
    rows = engines.tile[0] if cut.vectors else engines.lane_tile[0]
    tile = (
        f"{rows} channels x {cut.vectors * b.lanes} pixels"
        if cut.vectors
        else f"{rows} pixels x {cut.width} channels"
    )
    return b.finish(work_ns, f"{cut.tile} points, {tile}")


def _cut(p: Problem, rows: int, w_blocks: int) -> tuple[int, int]:
    """Return the output pixels of a task, and how many tasks share the output channels of these.

    Two threads, or four, get equal shares. Few pixels and many output channels: to sample twice costs less than to read
    the weights twice.
    """
    pixels = math.prod(p.output_size)
    if pixels <= FEW_PIXELS and w_blocks >= MANY_BLOCKS and pixels * p.taps <= MOST_POINTS:
        return pixels, 2
    most = max(min(TILE, MOST_POINTS // p.taps), 1)
    tiles = -(-pixels // most)
    if tiles < ENOUGH_TILES:
        tiles = min(round_up(tiles, 4 if pixels >= 4 * LEAST_PIXELS else 2), max(pixels // rows, 1))
    return -(-pixels // tiles), 1


def _few_vectors(p: Problem, lanes: int) -> int:
    """Return in how many vectors the pixels of a small plane are, 0 if not there: see src/deform_few.h."""
    pixels = math.prod(p.output_size)
    if pixels > min(FEW_PIXELS, MOST_POINTS // p.taps):
        return 0
    pixels -= pixels % lanes if pixels > lanes and pixels % lanes <= MOST_LEFT else 0
    vectors = -(-pixels // lanes)
    return vectors if vectors * lanes <= MOST_IDLE * pixels else 0


def cut_pairs(pixels: int, most: int, rows: int) -> int:
    """Return the pixels of a half of a task, rows of the register tile: few narrow ones, and equal shares."""

    def time(half: int) -> int:
        """Rows of tiles that the threads take, if these are one, two or four; and the weights' way to each tile."""
        tiles = -(-pixels // (2 * half))
        full, last = -(-half // rows), -(-(pixels - 2 * half * (tiles - 1)) // (2 * rows))
        shares = (tiles - 1) * full + last, -(-tiles // 2) * full, -(-tiles // 4) * full
        return sum(shares) + 2 * tiles

    return min([most, *range(most - most % rows, 0, -rows)], key=time)


def channel_blocks(p: Problem, *, by_weights: bool = True, even: bool = False) -> list[tuple[int, int]]:
    """Cut the input channels at the bounds of offset groups, and of weight groups if these count, then into blocks.

    Return (first, count) of each; `even` makes the blocks of a group nearly equal.
    """
    bounds = set(range(0, p.in_channels + 1, p.in_channels // p.offset_groups))
    if by_weights:
        bounds |= set(range(0, p.in_channels + 1, p.in_channels // p.groups))
    blocks = []
    for begin, end in pairwise(sorted(bounds)):
        parts = -(-(end - begin) // CHANNEL_BLOCK)
        step = -(-(end - begin) // parts) if even else CHANNEL_BLOCK
        blocks += [(first, min(step, end - first)) for first in range(begin, end, step)]
    return blocks


def _bordered_axes(p: Problem) -> Axes:
    """A border of one zero line on each side, and a second one behind the slowest axis.

    A base in the first of those two has only zeros for corners.
    """
    unit = Axis(1, 1, 1, np.zeros((1, 1), np.int64), ())
    found = []
    for i, size in enumerate(p.input_size):
        line = np.concatenate(([-1], np.arange(size), [-1] * (2 if i == 0 else 1)))
        found.append(Axis(size, 1, size, line[None], ()))
    d, h, w = [unit] * (3 - p.ndim) + found
    return d, h, w


def _records(b: Builder, bordered: Bordered, w_width: int) -> list[dict[str, int]]:
    """Return a record for each block of channels."""
    p, blocks = b.problem, bordered.blocks
    group_channels, offset_channels = p.in_channels // p.groups, p.in_channels // p.offset_groups
    row, at, records = group_channels * p.taps, 0, []
    tables: dict[int, tuple[int, int]] = {}
    for i, (first, count) in enumerate(blocks):
        if count not in tables:
            source = np.arange(count * p.taps)  # (channel, tap), which become (tap, channel)
            tables[count] = b.table(source), b.table((source % p.taps * count + source // p.taps) * w_width)
        offsets, places = tables[count]
        group = first // group_channels
        last = i + 1 == len(blocks) or blocks[i + 1][0] // group_channels != group
        given = group * (p.out_channels // p.groups) * row + first % group_channels * p.taps
        records.append(
            {"x": i * bordered.image.size, "channels": count, "group": group, "w": at, "last": int(last)}
            | {"offset_group": first // offset_channels, "given": given, "offsets": offsets, "places": places}
        )
        at += count * p.taps * w_width
    return records


def _add_weights(b: Builder, records: list[dict[str, int]], cut: Cut) -> Operand:
    """Add the stage that packs weights as [block of O][block of channels][tap, channel][O], and return where they go."""
    p = b.problem
    offsets, places = [], []
    for record in records:
        tap, channel = np.divmod(np.arange(p.taps * record["channels"]), record["channels"])
        offsets.append(record["given"] + channel * p.taps + tap)
        places.append(record["w"] + np.arange(p.taps * record["channels"]) * cut.width)
    return b.pack(
        np.concatenate(offsets),
        np.concatenate(places),
        p.in_channels * p.taps * cut.width,
        cut.width,
        cut.blocks,
        rows=p.out_channels // p.groups,
        x_row=p.in_channels // p.groups * p.taps,
    )


def _add_seven(b: Builder, w: int | Operand, records: list[dict[str, int]], cut: Cut) -> Operand:
    """Add the stage that makes the sums of quarters of packed weights, piece by piece of what is multiplied at once."""
    p = b.problem
    block = p.in_channels * p.taps * cut.width
    places, sizes = [], []
    for record in records:
        for tap in range(0, p.taps, cut.tap_block):
            places.append(record["w"] + tap * record["channels"] * cut.width)
            sizes.append(min(cut.tap_block, p.taps - tap) * record["channels"] * cut.width)
    y = b.packed(block * cut.blocks)
    words: Words = dict(
        x=w,
        y=y,
        pairs=cut.blocks // 2,
        block=block,
        places=b.table(places),
        sizes=b.table(sizes),
        piece_count=len(places),
    )
    b.stage("strassen_weights", cut.blocks // 2 * len(places), words, weights_only=True)
    return y

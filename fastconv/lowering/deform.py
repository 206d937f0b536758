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


def lower_deform(problem: Problem, engines: Engines, *, seven: bool = False) -> Any:
    """Return a program for any deformable convolution, by seven products in place of eight if asked for."""
    p, b = problem, Builder(problem, engines)
    per_group = p.out_channels // p.groups
    lanes = b.lanes
    rows, vectors = engines.lane_tile
    bordered = Bordered.of(b, channel_blocks(p))
    width = bordered.width
    b.chunked(bordered.elements * b.itemsize)
    x = bordered.add(b)

    w_width = min(vectors * lanes, round_up(per_group, lanes))
    if seven:
        # Blocks of the two halves are pairs.
        w_width = max(width for width in range(lanes, w_width + 1, lanes) if per_group % (2 * width) == 0)
    w_blocks = -(-per_group // w_width)
    pixels = math.prod(p.output_size)
    corners = 1 << p.ndim
    tile, splits = (_cut_pairs(p, rows), 1) if seven else _cut(p, rows, w_blocks)
    tap_block = min(p.taps, max(MOST_COLUMNS // width, 1))
    few = 0 if seven or p.prepared or tap_block < p.taps else _few_vectors(p, lanes)
    if few:
        # Output channels are rows of the tile, and those of a split whole tiles.
        w_width = engines.tile[0]
        w_blocks = -(-per_group // w_width)
        tile, splits = pixels, 2 if w_blocks >= MANY_BLOCKS else 1
    records = _records(b, bordered, w_width)
    # Weights that are used once are packed by who uses them, and never go through memory.
    used_once = not (seven or few or p.prepared) and tile == pixels and p.batch == 1 and tap_block == p.taps
    w = 0 if used_once or few else _add_weights(b, records, w_width, w_blocks)
    panel = p.taps * bordered.most_channels * w_width * used_once
    row, seven_row, sums = tap_block * bordered.most_channels, 0, 0
    if seven:
        # No vector reaches into the next pixel's row: that may have been sampled before.
        seven_row = round_up(-(-(row + lanes) // 2), lanes)
        row = 4 * seven_row
        sums = 3 * w_blocks * tile * w_width // 4
    if few:
        panel = row * few * lanes
        sums = w_blocks * w_width * (few + 1) * lanes + MOST_LEFT * (row + lanes + w_blocks * w_width * lanes)
    int64s = 8 // b.itemsize
    work = (
        p.taps * tile * (int64s + corners + 1)
        + 6 * tile
        + LINE
        + w_width * (tile + lanes)
        + w_blocks * tile * w_width
        + panel
        + sums
        + tile * row
        + lanes
    )
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
        channels=per_group,
        w_width=w_width,
        w_blocks=w_blocks,
        w_block=p.in_channels * p.taps * w_width,
        given=b.operand("weight") if used_once or few else 0,
        w_row=p.in_channels // p.groups * p.taps,
        panel=panel,
        tiles=-(-pixels // tile),
        splits=splits,
        vectors=few,
        seven=_add_seven(b, w, records, tap_block, w_width, w_blocks) if seven else 0,
        seven_row=seven_row,
        tap_block=tap_block,
        k_block=HALF_DEPTH if seven else K_BLOCK,
        activation=b.engines.activation(p),
    )
    words |= bordered.words(p, tile)
    b.stage("deform", -(-pixels // tile) * splits, words)
    work_ns = (p.flops / max(p.batch, 1) + pixels * p.taps * p.in_channels * corners) / GFLOPS
    return b.finish(work_ns, f"{tile} points, {rows} pixels x {w_width} channels")


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


def _cut_pairs(p: Problem, rows: int) -> int:
    """Return the output pixels of a task whose halves are rows of the register tile: few narrow ones, and equal shares."""
    pixels = math.prod(p.output_size)
    most = max(min(PAIRS_TILE, MOST_POINTS // p.taps, pixels + 1) // 2, 1)

    def time(half: int) -> int:
        """Rows of tiles that the threads take, if these are one, two or four; and the weights' way to each tile."""
        tiles = -(-pixels // (2 * half))
        full, last = -(-half // rows), -(-(pixels - 2 * half * (tiles - 1)) // (2 * rows))
        shares = (tiles - 1) * full + last, -(-tiles // 2) * full, -(-tiles // 4) * full
        return sum(shares) + 2 * tiles

    return 2 * min([most, *range(most - most % rows, 0, -rows)], key=time)


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


def _add_weights(b: Builder, records: list[dict[str, int]], w_width: int, w_blocks: int) -> Operand:
    """Add the stage that packs weights as [block of O][block of channels][tap, channel][O], and return where they go."""
    p = b.problem
    offsets, places = [], []
    for record in records:
        tap, channel = np.divmod(np.arange(p.taps * record["channels"]), record["channels"])
        offsets.append(record["given"] + channel * p.taps + tap)
        places.append(record["w"] + np.arange(p.taps * record["channels"]) * w_width)
    return b.pack(
        np.concatenate(offsets),
        np.concatenate(places),
        p.in_channels * p.taps * w_width,
        w_width,
        w_blocks,
        rows=p.out_channels // p.groups,
        x_row=p.in_channels // p.groups * p.taps,
    )


def _add_seven(
    b: Builder, w: int | Operand, records: list[dict[str, int]], tap_block: int, w_width: int, w_blocks: int
) -> Operand:
    """Add the stage that makes the sums of quarters of packed weights, piece by piece of what is multiplied at once."""
    p = b.problem
    block = p.in_channels * p.taps * w_width
    places, sizes = [], []
    for record in records:
        for tap in range(0, p.taps, tap_block):
            places.append(record["w"] + tap * record["channels"] * w_width)
            sizes.append(min(tap_block, p.taps - tap) * record["channels"] * w_width)
    y = b.packed(2 * block * w_blocks // 2)
    words: Words = dict(
        x=w,
        y=y,
        pairs=w_blocks // 2,
        block=block,
        places=b.table(places),
        sizes=b.table(sizes),
        piece_count=len(places),
    )
    b.stage("strassen_weights", w_blocks // 2 * len(places), words, weights_only=True)
    return y

"""Convolutions and transposed convolutions through the register tile."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..problem import Problem
from .geometry import Axes, Axis, Image, Sums, axes_of, input_strides, kernel_index, output_strides, sums_of
from .program import ENOUGH_TASKS, K_BLOCK, WORDS, Builder, Engines, Operand, Words, round_up

__all__ = [
    "DensePlan",
    "add_bias_only",
    "add_halo",
    "fills_vectors",
    "lower_dense",
    "split_axes",
    "unaliased",
]

PIXEL_BLOCK = 192
# Sums of a task that has several K blocks: with its panel and weights they share L2.
SUMS_BYTES = 1 << 18
# Reading vectors in line space computes what lies between rows as well; beyond this, stitching is cheaper. With few
# output channels a panel is not used often enough to pay for that.
MOST_RUBBISH = 1.15
MOST_RUBBISH_OF_FEW = 1.35
# The haloed image of a group, which shares L2 with what it is made of.
GROUP_BYTES = 1 << 18
ENOUGH_GROUPS = 4
# What a block of pixels reads, in L1.
NEAR_BYTES = 24 << 10
# Weights that no L2 holds.
FAR_WEIGHTS = 1 << 20
# Behind a panel there is room for whole tiles: nothing ends there that reading must not pass.
FAR = 1 << 62
# With a smaller share of useful products, outputs at the borders are sums of their own, if those have pixels enough.
MOST_USEFUL = 0.8
LEAST_PIXELS = 64
# Pixels so far apart in a row are brought side by side by whole vectors (src/halo.h).
MOST_STEPS = 3
# Weights used so few times a call are not packed beforehand.
FEW_USES = 2
# The tiles that estimates are made for: those of float32 on AVX-512.
LANES = 16
TILE = (8, 3)
LANE_TILE = (6, 4)
# What a tile of one vector takes longer, for each of its products, than one of two: it waits for its rows. Fitted to 22
# layers on AVX2; the tiles of AVX-512 were measured without.
NARROW_TILE = 0.7
# Rough speed of the tile, for the decision how many threads to use.
GFLOPS = 50.0


def lower_dense(problem: Problem, engines: Engines) -> Any:
    """Return a program for any convolution or transposed convolution."""
    b = Builder(problem, engines)
    axes = split_axes(problem)
    if any(axis.has_gaps for axis in axes):
        add_bias_only(b)
    if not sums_of(axes):
        return b.finish(0, "none: no tap meets the input")
    in_lanes = channels_in_lanes(b, axes)
    plan = DensePlan(b, axes, in_lanes)
    plan.add_image()
    plan.add_weights()
    plan.add_product()
    rows, vectors = engines.lane_tile if in_lanes else engines.tile
    names = ("pixels", "channels") if in_lanes else ("channels", "pixels")
    tile = f"{rows} {names[0]} x {vectors * b.lanes} {names[1]}"
    return b.finish(problem.flops / problem.batch / GFLOPS if problem.batch else 0, tile)


def split_axes(problem: Problem) -> Axes:
    """Return the axes, split where that leaves out many products with padding, as of far dilated taps."""
    d, h, w = axes_of(problem)
    if problem.variant != "conv" or problem.padding_mode != "zeros":
        return d, h, w
    if math.prod(axis.useful() for axis in (d, h, w)) > MOST_USEFUL:
        return d, h, w
    split = d.split(), h.split(), w.split()
    few_pixels = math.prod(problem.output_size) < LEAST_PIXELS * math.prod(len(axis.sums) for axis in split)
    return (d, h, w) if few_pixels else split


def dense_flops(problem: Problem, *, in_lanes: bool = False) -> float:
    """Return the operations that the product takes as long as: its own, and what tiles lose on this problem.

    That is with the better of pixels and output channels in the vectors, or else `in_lanes` with these.
    """
    axes = split_axes(problem)
    if not sums_of(axes):
        return 0
    useful = 1.0
    if any(len(axis.sums) > 1 for axis in axes) and problem.variant == "conv":
        useful = math.prod(axis.useful() for axis in axes_of(problem))
    times = tile_times(problem, axes, LANES, TILE, LANE_TILE)
    return problem.flops * useful * (times[1] if in_lanes else min(times))


def channels_in_lanes(b: Builder, axes: Axes) -> bool:
    """Whether a vector of the tile holds output channels (else pixels)."""
    as_rows, as_lanes = tile_times(b.problem, axes, b.lanes, b.engines.tile, b.engines.lane_tile)
    return as_lanes < as_rows


def tile_times(
    p: Problem, axes: Axes, lanes: int, tile: tuple[int, int], lane_tile: tuple[int, int]
) -> tuple[float, float]:
    """Return how long a product takes with pixels and with output channels in the vectors, about 1 where all goes well.

    With pixels there, few output channels may share the cost of stitching panels. With channels, lanes may be idle, and
    weights that are not constant are packed. Either transposes the image and the result where the layout is the other
    one. The figures are fitted to measurements of 40 layers in both layouts, called and planned, where the better of
    the two is missed by 0.6 % of the time on average.
    """
    c, o = p.in_channels // p.groups, p.out_channels // p.groups
    sums = sums_of(axes)
    pixels = max(math.prod(s.count for s in one) for one in sums)
    taps = p.taps / (len(sums) if p.variant == "conv_transpose" else 1)
    image = Image.of(axes, 1)
    direct = reads_lines(image, sums, o, tile[0])
    computed = max(line_pixels(image, one) for one in sums) if direct else pixels
    vectors = -(-computed // lanes)
    panels = -(-vectors // tile[1])
    as_rows = (vectors + 0.5 * panels) / 1.17 * lanes / pixels * (1 if direct else 1 + 4.5 / o)
    as_lanes = 0.95 * round_up(pixels, lane_tile[0]) / pixels * round_up(o, lanes) / o
    if lane_tile[1] == 2 and -(-o // lanes) % 2:
        as_lanes *= 1 + NARROW_TILE / -(-o // lanes)
    if p.layout == "NHWC":
        stride = math.prod(p.stride) if p.variant == "conv" else 1
        as_rows *= 1 + 8 * (1 / o + stride / c) / taps
    else:
        as_lanes *= 1 + 9 * (1 / o + 1 / c) / taps
    if not p.prepared and p.variant == "conv":
        as_lanes *= 1 + 3 / pixels
    return as_rows, as_lanes


def line_pixels(image: Image, s: Sums) -> int:
    """Return the positions of line space from the first pixel of a sum to its last."""
    return (s[0].count - 1) * image.d + (s[1].count - 1) * image.h + s[2].count


def reads_lines(image: Image, sums: Sequence[Sums], outputs: int, rows: int) -> bool:
    """Whether vectors of pixels read the image as it lies in line space, and not panels stitched from it.

    What is read again for each tile of output channels comes from L2 in time; stitching a panel first, for 8 to 64 such
    tiles, took 2-10 % longer, and up to 60 % where planes are a multiple of 4 kB apart.
    """
    computed = sum(line_pixels(image, s) for s in sums)
    pixels = sum(math.prod(axis.count for axis in s) for s in sums)
    return computed < (MOST_RUBBISH_OF_FEW if outputs <= 2 * rows else MOST_RUBBISH) * pixels


def add_halo(
    b: Builder,
    engine: str,
    axes: Axes,
    image: Image,
    image_elements: int,
    block: int,
    starts: np.ndarray,
    slack: int,
    repeat: int = 1,
    what: str = "haloed input",
    by_bands: bool = False,
    shared: bool = True,
) -> Operand:
    """Add the stage that copies the input into line space, and return where it goes.

    Tasks take turns in the order in which the next stage reads what they write, which is then by the same thread: bands
    of rows of all planes, or planes. Planes of one task each, if threads do not share them: it takes as long to begin with
    one as to copy some of its rows.
    """
    d, h, w = axes
    source = input_strides(b.problem)
    y = b.scratch(image_elements, slack, what)
    rows_d, rows_h = d.map.size, h.map.size
    blocks, h_lines = len(starts) - 1, rows_h // h.phases
    tasks, band = rows_d * rows_h, 1
    if engine == "halo_planes":
        band = -(-h_lines // ENOUGH_TASKS) if shared else h_lines
        tasks = rows_d * -(-h_lines // band)
    words: Words = dict(
        x=b.operand("input"),
        y=y,
        images=Operand("images"),
        x_image=source[0],
        x_channel=source[1],
        x_d=source[2],
        x_h=source[3],
        x_w=source[4],
        y_image=image_elements,
        y_block=block,
        y_d=image.d,
        y_h=image.h,
        y_phase=image.phase,
        y_w=image.w,
        repeat=repeat,
        blocks=blocks,
        starts=b.table(starts),
        rows_d=rows_d,
        rows_h=rows_h,
        h_phases=h.phases,
        w_phases=w.phases,
        w_lines=w.lines,
        band=band,
        by_bands=int(by_bands),
        zeros=int(fills_vectors(w, source[-1], b.lanes)),
        map_d=b.table(d.map),
        map_h=b.table(h.map),
        map_w=b.table(w.map),
        runs=b.table(w.runs()),
    )
    b.stage(engine, blocks * tasks, words)
    return y


def fills_vectors(axis: Axis, pixel: int, lanes: int) -> bool:
    """Whether the lines of an axis can be copied in whole vectors, with zeros in the first one and the last."""
    runs = axis.runs()
    near = (runs[:, 0] <= lanes) & (runs[:, 1] > axis.lines - lanes)
    steps = (runs[:, 3] > 0) & (runs[:, 3] <= MOST_STEPS)
    short = axis.lines <= lanes
    return pixel == 1 and bool(steps.all() and (short or near.all())) and not axis.has_borders


def add_bias_only(b: Builder) -> None:
    """Add the stage that writes what an output without taps is: one dense sum over no taps at all."""
    p = b.problem
    y_image, y_channel, y_d, y_h, y_w = output_strides(p)
    n_d, n_h, n_w = (1,) * (3 - p.ndim) + p.output_size
    rows, vectors = b.engines.tile
    width, pixel_block = vectors * b.lanes, round_up(PIXEL_BLOCK, b.lanes)
    sums = dict(y_d=y_d, y_h=y_h, y_w=y_w, n_d=n_d, n_h=n_h, n_w=n_w)
    tasks = -(-n_d * n_h * n_w // PIXEL_BLOCK)
    words: Words = dict.fromkeys(WORDS["dense"], 0)
    words |= dict(
        b=b.operand("bias"),
        y=b.operand("output"),
        work=b.thread(width + b.lanes + rows * (pixel_block + b.lanes)),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        images_per_task=1,
        tasks=tasks,
        y_image=y_image,
        y_channel=y_channel,
        groups=1,
        channels=p.out_channels,
        chunks=1,
        chunk=p.out_channels,
        w_width=1,
        sums=b.records("sum", [dict.fromkeys(WORDS["sum"], 0) | sums]),
        sum_count=1,
        together=1,
        pixel_block=pixel_block,
        k_block=1,
        by_groups=1,
        activation=b.engines.activation(p),
    )
    b.stage("dense_rows", tasks, words)


def unaliased(elements: int, itemsize: int) -> int:
    """Return a distance at which planes of so many elements do not all fall into the same cache sets."""
    return elements + (16 if elements * itemsize % 4096 == 0 else 0)


class DensePlan:
    """The choices for one dense problem, made in the order image, weights, product."""

    engines = "dense_rows", "dense_lanes"
    # Whether weights are packed, however often a call uses them.
    packs = False

    def __init__(self, b: Builder, axes: Axes, in_lanes: bool) -> None:
        p = b.problem
        self.b, self.p, self.axes, self.in_lanes = b, p, axes, in_lanes
        self.c, self.o = p.in_channels // p.groups, p.out_channels // p.groups
        self.sums = sums_of(axes)
        self.rows, self.vectors = b.engines.lane_tile if in_lanes else b.engines.tile
        self.width = self.vectors * b.lanes
        self.pixels = max(math.prod(axis.count for axis in s) for s in self.sums)
        # Small planes share a task, so that tiles are full; which pixels share one changes no result.
        self.images_per_task = max(PIXEL_BLOCK // 2 // self.pixels, 1)
        self.together = 2 if self.zips_phases() else 1
        self.direct = False
        self.halo: tuple | None = None
        self.seven: int | Operand = 0
        # A K block is a block of channels with all their taps, if that fits.
        whole = max(self.channel_step(taps) * taps for taps in {self.taps_of(s) for s in self.sums})
        self.k_block = whole if in_lanes and K_BLOCK // 2 < whole <= K_BLOCK else K_BLOCK

    def zips_phases(self) -> bool:
        """Whether a task has both phases of rows that a transposed convolution of stride 2 writes.

        They leave zipped, in whole vectors, where each alone writes every second pixel of a row.
        """
        w = self.axes[2]
        both = len(w.sums) == 2 and w.sums[0].step == 2 and w.sums[0].count == w.sums[1].count
        return both and not self.in_lanes and self.p.layout == "NCHW" and self.p.variant == "conv_transpose"

    def taps_of(self, s: Sums) -> int:
        return math.prod(len(axis.taps) for axis in s)

    def add_image(self) -> None:
        """Decide whether the input is read in place, and add the halo stage if not."""
        b, p = self.b, self.p
        pixel = p.in_channels if self.in_lanes else 1
        self.image = Image.of(self.axes, pixel)
        in_place = all(axis.is_identity for axis in self.axes) and (p.layout == "NHWC") == self.in_lanes
        if self.in_lanes:
            self.x_channel = 1
            self.x_image = self.image.size
        else:
            size = self.image.size
            self.x_channel = size if in_place else unaliased(size, b.itemsize)
            self.x_image = self.x_channel * p.in_channels
            self.direct = reads_lines(self.image, self.sums, self.o, self.rows) and not (
                in_place and self.aliases()
            )
        if self.direct:
            self.images_per_task = 1
        if in_place:
            self.x, self.x_end = b.operand("input"), Operand("input_end")
            return
        slack = 2 * self.width
        if self.in_lanes:
            starts, block, engine = np.array([0, p.in_channels]), 0, "halo_pixels"
        else:
            starts = np.append(np.arange(0, p.in_channels, self.halo_step), p.in_channels)
            block, engine = self.x_channel, "halo_planes"
        if self.makes_own_halo():
            self.x, self.x_end, self.x_image = Operand("thread"), Operand("thread", 0, FAR), 0
            add_halo(b, engine, self.axes, self.image, 0, block, starts, 0, what="", shared=False)
            self.halo = b.stages.pop()
            return
        b.chunked(self.x_image * b.itemsize, self.images_per_task)
        by_bands = p.layout == "NHWC" or p.groups == 1
        self.x = add_halo(
            b, engine, self.axes, self.image, self.x_image, block, starts, slack, by_bands=by_bands
        )
        self.x_end = Operand("scratch", 0, b.scratch_bytes)

    def aliases(self) -> bool:
        """Whether the planes of one K block, read in place, push each other out of the cache between rows of tiles.

        With AVX2 a panel of them is stitched once for all rows then (transposed 128 x 64x64 to 64, 2x2: 4.7 and not 7.6 ms).
        With AVX-512 that took up to 60 % longer.
        """
        apart = self.x_channel * self.b.itemsize % 4096 == 0
        return apart and self.b.engines.vec_bytes < 64 and self.c > 64 and self.o > 2 * self.rows

    @property
    def halo_step(self) -> int:
        """Channels of a task of the halo: those that lie side by side are turned by whole vectors."""
        return self.b.lanes if self.p.layout == "NHWC" else 1

    @property
    def sharing(self) -> int:
        """Groups whose halo one task makes: as few as fill such vectors."""
        return self.halo_step // math.gcd(self.halo_step, self.c)

    def makes_own_halo(self) -> bool:
        """Whether a task makes the haloed image of its group in the scratch of its thread.

        With channels last, groups whose channels are turned by the same vectors have one together (256 channels of 28x28 in
        32 groups: 504 and not 526 us, and 267 and not 393 us on two threads). All that share cache lines together took up
        to 1.18 times as long with stride 2, and as long without.
        """
        p = self.p
        small = self.sharing * self.c * self.x_channel * self.b.itemsize <= GROUP_BYTES
        alone = self.images_per_task == len(self.sums) == 1
        bands = -(-p.groups // self.sharing)
        return not self.in_lanes and bands >= ENOUGH_GROUPS and small and alone

    def add_weights(self) -> None:
        """Decide how weights are read, and add the stage that packs them if they are."""
        b, p = self.b, self.p
        transposed = p.variant == "conv_transpose"
        taps = p.taps
        # Strides of the weights over output channels of a group, input channels and groups.
        o_stride, c_stride = (taps, self.o * taps) if transposed else (self.c * taps, taps)
        group_stride = self.c * self.o * taps
        packed = self.in_lanes or transposed or p.prepared
        width = min(self.width, round_up(self.o, b.lanes)) if self.in_lanes else self.rows
        self.w_width = width if packed else 1
        self.w_row = (
            o_stride
            if self.in_lanes and not (transposed or p.prepared or self.packs) and self.uses() <= FEW_USES
            else 0
        )
        blocks = -(-self.o // self.w_width)
        sources, self.records = [], []
        seen: dict[bytes, int] = {}
        for s in self.sums:
            kernel, offsets = kernel_index(self.axes, s), self.image.tap_offsets(s)
            c, t = self.k_order(len(kernel))
            sources.append(c * c_stride + kernel[t])
            x_offsets = c * self.x_channel + offsets[t]
            # Phases of as many taps as the stride read the same, which engines tell by the table.
            key = x_offsets.tobytes()
            if key not in seen:
                seen[key] = b.table(x_offsets)
            where = {"x_offsets": seen[key], "x_most": int(x_offsets.max(initial=0))}
            self.records.append({"taps": len(c), "w": 0, "w_places": 0} | where)
        if self.w_row:
            tables = [self.panels(source) for source in sources]
            strides = {"w_group": group_stride, "w_block": width * o_stride}
        elif packed:
            # Sums of one convolution share weights, those of a transposed one do not.
            offsets, first, inverse = np.unique(
                np.concatenate(sources), return_index=True, return_inverse=True
            )
            places = np.argsort(np.argsort(first)) * width
            ends = np.cumsum([len(source) for source in sources])[:-1]
            tables = [{"w_offsets": b.table(part)} for part in np.split(places[inverse], ends)]
            strides = {"w_group": blocks * len(offsets) * width, "w_block": len(offsets) * width}
        else:
            tables = [{"w_offsets": b.table(source)} for source in sources]
            strides = {"w_group": group_stride, "w_block": o_stride}
        for record, table in zip(self.records, tables, strict=True):
            record |= table | strides
        self.w = b.operand("weight")
        if packed and not self.w_row:
            self.w = b.pack(
                offsets,
                places,
                strides["w_block"],
                width,
                blocks,
                rows=self.o,
                x_row=o_stride,
                groups=p.groups,
                x_group=group_stride,
            )

    def uses(self) -> int:
        """Return how many tasks a call has for each block of output channels."""
        blocks = [
            -(-math.prod(axis.count for axis in s) * self.images_per_task // (PIXEL_BLOCK // 2))
            for s in self.sums
        ]
        return -(-self.p.batch // self.images_per_task) * sum(blocks)

    def panels(self, source: np.ndarray) -> dict[str, int]:
        """Return the tables by which a task packs the panel of each K block."""
        orders = [k + np.argsort(source[k : k + self.k_block]) for k in range(0, len(source), self.k_block)]
        order = np.concatenate(orders)
        return {
            "w_offsets": self.b.table(source[order]),
            "w_places": self.b.table(order % self.k_block * self.w_width),
        }

    def k_order(self, taps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (channel, tap) of each k.

        With channels in lanes, a block of channels runs through all taps, so that a K block touches few cache
        lines of each pixel.
        """
        if not self.in_lanes:
            c, t = np.meshgrid(np.arange(self.c), np.arange(taps), indexing="ij")
            return c.ravel(), t.ravel()
        step = self.channel_step(taps)
        blocks = [np.arange(c, min(c + step, self.c)) for c in range(0, self.c, step)]
        found = [np.meshgrid(np.arange(taps), block, indexing="ij") for block in blocks]
        return np.concatenate([c.ravel() for _, c in found]), np.concatenate([t.ravel() for t, _ in found])

    def channel_step(self, taps: int) -> int:
        return max(min(K_BLOCK // taps, self.c), min(8, self.c))

    def add_product(self) -> None:
        b, p = self.b, self.p
        y_image, y_channel, y_d, y_h, y_w = output_strides(p)
        each = [
            line_pixels(self.image, s) if self.direct else math.prod(axis.count for axis in s)
            for s in self.sums
        ]
        pixel_block = self.pixel_block(max(each) * self.images_per_task)
        blocks = [-(-n * self.images_per_task // pixel_block) for n in each]
        chunk, chunks, scratch = self.shares(pixel_block, sum(blocks) * p.groups // self.together)
        # The phases of a transposed output lie between each other. Of one tap each, whose weights stay in L1, eight
        # products took 1.1 times as long in turn.
        several = self.packs or min(r["taps"] for r in self.records) > self.k_block
        in_turn = several and p.variant == "conv_transpose" and len(set(blocks)) == 1
        tasks = 0
        for i, (s, record, count) in enumerate(zip(self.sums, self.records, blocks, strict=True)):
            d, h, w = s
            record |= {
                "task_begin": tasks,
                "x": 0,
                "x_d": self.image.d,
                "x_h": self.image.h,
                "x_w": self.image.w,
                "y": d.start * y_d + h.start * y_h + w.start * y_w,
                "y_d": d.step * y_d,
                "y_h": h.step * y_h,
                "y_w": w.step * y_w,
                "n_d": d.count,
                "n_h": h.count,
                "n_w": w.count,
            }
            merge_rows(record)
            tasks += count * p.groups * chunks if i % self.together == 0 else 0
        words: Words = dict(
            x=self.x,
            x_end=self.x_end,
            w=self.w,
            b=b.operand("bias"),
            y=b.operand("output"),
            work=b.thread(scratch),
            work_stride=Operand("thread_stride"),
            images=Operand("images"),
            images_per_task=self.images_per_task,
            tasks=tasks,
            x_image=self.x_image,
            x_group=self.c * self.x_channel,
            y_image=y_image,
            y_group=self.o * y_channel,
            y_channel=y_channel,
            groups=p.groups,
            channels=self.o,
            chunks=chunks,
            chunk=chunk,
            w_width=self.w_width,
            w_row=self.w_row,
            sums=b.records("sum", self.records),
            sum_count=len(self.records) // self.together,
            together=self.together,
            pixel_block=pixel_block,
            k_block=self.k_block,
            activation=b.engines.activation(p),
            direct=int(self.direct),
            by_groups=int(p.layout == "NCHW" or self.halo is not None),
            in_turn=int(in_turn),
            ahead=b.writes_far(),
            seven=self.seven,
            depth=self.c,
        )
        b.stage(self.engines[self.in_lanes], tasks, words, self.images_per_task)
        if self.halo:
            self.join(self.halo, b.stages.pop())

    def join(self, halo: tuple, product: tuple) -> None:
        """Add the stage in which a task makes the haloed image of a group, and then its sums."""
        b, size = self.b, self.sharing * self.c * self.x_channel
        made = halo[2] // -(-self.p.in_channels // self.halo_step) * (self.sharing * self.c // self.halo_step)
        summed = product[2] // self.p.groups * self.sharing
        bands = [
            dict(
                first=i * made,
                first_end=min((i + 1) * made, halo[2]),
                second=i * summed,
                second_end=min((i + 1) * summed, product[2]),
                y_bytes=i * size * b.itemsize,
                x_bytes=i * size * b.itemsize,
            )
            for i in range(-(-self.p.groups // self.sharing))
        ]
        b.copies.append(f"haloed group: {size * b.itemsize / 1e3:.3g} kB a thread")
        b.join((*halo, "halo"), (*product, "dense"), size + 2 * self.width, bands)

    def shares(self, pixel_block: int, tasks: int) -> tuple[int, int, int]:
        """Return the output channels of a task, how many tasks share those of a block of pixels, and its scratch."""
        lanes = self.b.lanes
        if self.in_lanes:
            scratch = pixel_block * self.width + self.width * (pixel_block + lanes)
            scratch += self.k_block * self.w_width if self.w_row else 0
            return self.w_width, -(-self.o // self.w_width), scratch
        kept_all = max(r["taps"] for r in self.records) > self.k_block or self.together == 2
        chunk = self.channel_chunk(pixel_block * self.together, tasks, kept_all)
        if self.is_shallow(pixel_block):
            chunk = self.rows
        kept = self.together * round_up(chunk, self.rows) if kept_all else self.rows
        scratch = self.k_block * self.width + lanes + kept * (pixel_block + lanes)
        return chunk, -(-self.o // chunk), scratch

    def is_shallow(self, pixel_block: int) -> bool:
        """Whether what a block of pixels reads stays in L1, beside the weights of a row of tiles.

        Each row of tiles is a task of its own then, so that planes are written by long rows, one after the other and not
        all at once (3 to 40 x 120x120, 3x3, stride 2: 3.2 and not 3.9 ms; 1 to 64 x 255x255, 9x9: 13 and not 18 ms).
        """
        d, h, _ = self.sums[0]
        lines = self.c * len(d.taps) * len(h.taps) * self.axes[2].phases
        one_block = max(r["taps"] for r in self.records) <= self.k_block
        near = lines * pixel_block * self.b.itemsize <= NEAR_BYTES
        return self.direct and self.together == 1 and self.p.layout == "NCHW" and one_block and near

    def pixel_block(self, pixels: int) -> int:
        """Pixels of a task, so that few tiles are narrow and few tasks are small."""
        if self.in_lanes:
            # Weights from beyond L2 are better read once (512 channels of 2x7x7, 3x3x3: 18.6 and not 21 ms).
            weights = max(r["taps"] for r in self.records) * self.o
            once = weights > FAR_WEIGHTS and pixels <= PIXEL_BLOCK
            blocks = 1 if once else -(-pixels // (PIXEL_BLOCK // 2))
            return min(round_up(-(-pixels // blocks), self.rows), round_up(pixels, self.rows))
        vectors = -(-pixels // self.b.lanes)
        most = PIXEL_BLOCK * 4 // 3 // self.b.lanes
        if vectors <= most:
            return vectors * self.b.lanes

        def time(block: int) -> float:
            counts = {block: vectors // block, vectors % block: 1}
            return sum(count * (n + 0.4 * -(-n // self.vectors) + 0.5) for n, count in counts.items() if n)

        return min(range(most // 2, most + 1), key=time) * self.b.lanes

    def channel_chunk(self, pixel_block: int, tasks: int, deep: bool) -> int:
        """Output channels of a task: all, unless the sums would leave L2 or there would be too few tasks."""
        most = SUMS_BYTES // (pixel_block * self.b.itemsize) if deep else self.o
        parts = max(-(-self.o // max(most, self.rows)), min(ENOUGH_TASKS // max(tasks, 1), self.o // 64), 1)
        return round_up(-(-self.o // parts), self.rows)


def merge_rows(record: dict[str, int]) -> None:
    """Treat rows that follow each other without a gap, in the image and in the output, as one."""
    if record["x_h"] == record["n_w"] * record["x_w"] and record["y_h"] == record["n_w"] * record["y_w"]:
        record["n_w"] *= record["n_h"]
        record["n_h"] = 1
        record["x_h"], record["y_h"] = record["x_d"], record["y_d"]
        if record["x_d"] == record["n_w"] * record["x_w"] and record["y_d"] == record["n_w"] * record["y_w"]:
            record["n_w"] *= record["n_d"]
            record["n_d"] = 1
            record["x_d"] = record["x_h"] = record["n_w"] * record["x_w"]  # no pixel lies that far

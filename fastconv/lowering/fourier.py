"""Large depthwise kernels: products in place of sums along W, between transforms to frequencies and back.

A row of the image becomes F complex numbers, and so does a row of a kernel; where the direct sum has KW products for a
pixel, there is one for each frequency, of which rows of W pixels need about (W + KW / 2) / 2. Along H it stays a sum
over taps. 31x31 on planes of 28x28 takes a quarter of the operations.

There is no engine for it. The transforms are matrix products with a table of cosines and sines, and go through the
register tile, dense as they are: for rows as short as an image's that is no slower than a fast Fourier transform. What
lies between is a depthwise sum over (part, tap of H), real and imaginary parts being two rows of a kernel.

The frequencies are odd multiples of pi / (2 F), so that all of them are complex, and all lanes do the same. What wraps
around then changes its sign, but F is so large that no output that exists is met by it.

A NaN or inf would spread over its channel. Channels that hold one are summed anew, directly: see SETTLE_WORDS.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..problem import Problem
from ..registry import Refusal
from .columns import row_step
from .depthwise import lower_planes
from .geometry import Axes, AxisSum, axes_of, convolution_axis, input_strides, output_strides
from .pixels import MIN_PIXELS, STRIP_BYTES, pixel_tiles
from .program import ENOUGH_TASKS, K_BLOCK, WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["FOURIER_TOLERANCE", "fourier_flops", "lower_fourier", "refuse_fourier"]

# In units of the type's rounding of the largest result: what is left of a sum of F cosines.
FOURIER_TOLERANCE = 16.0
# Fewer taps in a row are summed directly.
MIN_TAPS = 7
# Pixels of a task of a product, and its sums if there are several K blocks.
PIXEL_BLOCK = 96
SUMS_BYTES = 1 << 18
# Vectors of frequencies that make a task of the sum in the middle.
BLOCK_VECTORS = 8
GFLOPS = 60.0


@dataclass(frozen=True)
class Spectrum:
    """The frequencies of a problem, and the tables of its transforms.

    Attributes
    ----------
    problem : Problem
    axes : tuple of Axis
    """

    problem: Problem
    axes: Axes

    @property
    def columns(self) -> AxisSum:
        return self.axes[2].sums[0]

    @cached_property
    def shifts(self) -> np.ndarray:
        """How far from an output each tap along W reads."""
        axis = self.axes[2]
        inside = int(np.flatnonzero(axis.map[0] >= 0)[0])
        return self.columns.offsets + int(axis.map[0, inside]) - inside

    @property
    def frequencies(self) -> int:
        """Half the length at which nothing that wraps around meets an output."""
        least = max(self.axes[2].size - int(self.shifts.min()), self.axes[2].out + int(self.shifts.max()))
        return -(-least // 2)

    def waves(self, positions: np.ndarray) -> np.ndarray:
        """Cosine and sine of each frequency at some positions: (2, positions, F)."""
        f = self.frequencies
        steps = np.outer(positions, 2 * np.arange(f) + 1) % (4 * f)  # of pi / (2 F): no angle is large
        angles = np.where(steps > 2 * f, steps - 4 * f, steps) * np.pi / (2 * f)
        return np.stack([np.cos(angles), np.sin(angles)])

    def of_rows(self) -> np.ndarray:
        """Real and imaginary parts of a row: (2, W, F)."""
        cosine, sine = self.waves(np.arange(self.axes[2].size))
        return np.stack([cosine, -sine])

    def of_kernel(self) -> np.ndarray:
        """Real, imaginary and negative imaginary parts of a kernel row: (3, taps, F)."""
        cosine, sine = self.waves(self.shifts)
        return np.stack([cosine, sine, -sine])

    def to_rows(self) -> np.ndarray:
        """From both parts to the outputs of a row: (1, 2 F, OW)."""
        cosine, sine = self.waves(np.arange(self.axes[2].out))
        return np.concatenate([cosine, -sine], 1).T[None] / self.frequencies


def refuse_fourier(problem: Problem) -> str | None:
    """Refuse what is no plain 2-D sum over neighbouring pixels of a row, and kernels of few taps."""
    if problem.groups != problem.in_channels or problem.groups == 1:
        return Refusal.NOT_DEPTHWISE
    if problem.out_channels != problem.in_channels:
        return Refusal.MULTIPLIED
    if problem.padding_mode != "zeros":
        return Refusal.NOT_ZEROS
    if problem.stride[-1] != 1 or problem.dilation[-1] != 1:
        return Refusal.STRIDED
    if problem.kernel_size[-1] < MIN_TAPS:
        return Refusal.FEW_TAPS
    if problem.accuracy == "high":
        return Refusal.HIGH_ACCURACY
    axes = axes_of(problem)
    return None if all(axis.sums for axis in axes) else Refusal.ONLY_PADDING


def fourier_flops(problem: Problem) -> float:
    """Return the operations for one image, and those for the weights if they are not prepared."""
    spectrum = Spectrum(problem, axes_of(problem))
    _, h, w = spectrum.axes
    f, pairs = spectrum.frequencies, np.count_nonzero(h.sources(h.sums[0]) >= 0)
    steps = h.size * w.size * 2 * f + 4 * f * int(pairs) + h.out * 2 * f * w.out
    if not problem.prepared:
        steps += 3 * f * problem.taps
    return 2.0 * problem.in_channels * steps


def lower_fourier(problem: Problem, engines: Engines) -> Any:
    """Return a program for a depthwise convolution with large kernels."""
    b = Builder(problem, engines)
    spectrum = Spectrum(problem, axes_of(problem))
    _, h, w = spectrum.axes
    channels, f = problem.in_channels, spectrum.frequencies
    row = channels * f
    size = 2 * (h.size + h.out) * row
    b.chunked(size * b.itemsize)
    slack = 4 * max(b.engines.tile[1], b.engines.lane_tile[1]) * b.lanes
    x = b.scratch(size, slack, "frequencies")
    y = Operand(x.name, 0, x.offset + 2 * h.size * row * b.itemsize)
    end = Operand("scratch", 0, b.scratch_bytes)
    # Frequencies of a channel lie side by side, or with channels last, channels of a frequency.
    by_channel, by_frequency = (f, 1) if problem.layout == "NCHW" else (1, channels)
    weights = b.packed(3 * h.kernel * row)
    taps = spectrum.columns.taps
    Product(b, spectrum.of_kernel(), True).add(
        x=b.operand("weight"),
        x_end=0,
        x_strides=(0, problem.taps, w.kernel),
        x_offsets=taps,
        y=weights,
        y_strides=(0, h.kernel * row, by_frequency, by_channel, row),
        counts=(channels, h.kernel),
        weights_only=True,
    )
    image, channel, _, height, width = input_strides(problem)
    planes = problem.layout == "NCHW"
    one, other = (channel, height), (by_channel, row)
    counts = channels, h.size
    if not planes:  # vectors are of channels
        one, other, counts = one[::-1], other[::-1], counts[::-1]
    Product(b, spectrum.of_rows(), planes).add(
        x=b.operand("input"),
        x_end=Operand("input_end"),
        x_strides=(image, *one),
        x_offsets=np.arange(w.size) * width,
        y=x,
        y_strides=(size, h.size * row, by_frequency, *other),
        counts=counts,
    )
    _add_sums(b, spectrum, x, weights, y, size, row)
    image, channel, _, height, width = output_strides(problem)
    one, counts = (channel, height), (channels, h.out)
    if not planes:
        one, counts = one[::-1], counts[::-1]
    Product(b, spectrum.to_rows(), planes).add(
        x=y,
        x_end=end,
        x_strides=(size, *other),
        x_offsets=np.add.outer(np.arange(2) * h.out * row, np.arange(f) * by_frequency).ravel(),
        y=b.operand("output"),
        y_strides=(image, 0, width, *one),
        counts=counts,
    )
    _add_settling(b, spectrum.axes)
    tile = f"{f} frequencies of a row"
    return b.finish(fourier_flops(problem) / GFLOPS if problem.batch else 0, tile)


class Product:
    """A product with constant matrices, through the register tile: y[pixel, o] = sum over k of x[pixel, k] m[k, o].

    There are several matrices, whose results lie apart.
    """

    def __init__(self, b: Builder, matrices: np.ndarray, in_lanes: bool):
        self.b, self.in_lanes = b, in_lanes
        self.groups, self.depth, self.outputs = matrices.shape
        self.rows, vectors = b.engines.lane_tile if in_lanes else b.engines.tile
        self.most = vectors * b.lanes
        self.width = min(self.most, round_up(self.outputs, b.lanes)) if in_lanes else self.rows
        self.blocks = -(-self.outputs // self.width)
        padded = np.zeros((self.groups, self.depth, self.blocks * self.width), b.problem.dtype)
        padded[:, :, : self.outputs] = matrices
        blocked = padded.reshape(self.groups, self.depth, self.blocks, self.width).swapaxes(1, 2)
        self.w = b.table(np.ascontiguousarray(blocked).ravel().view(np.int64))

    def add(
        self,
        *,
        x: Operand,
        x_end: Operand | int,
        x_strides: tuple[int, int, int],
        x_offsets: np.ndarray,
        y: Operand,
        y_strides: tuple[int, int, int, int, int],
        counts: tuple[int, int],
        weights_only: bool = False,
    ) -> None:
        """Add the stage.

        Strides of x are those of (image, row, pixel), of y those of (image, matrix, o, row, pixel); counts are rows
        and pixels.
        """
        b = self.b
        pixels = math.prod(counts)
        block = min(round_up(PIXEL_BLOCK, self.rows if self.in_lanes else b.lanes), round_up(pixels, b.lanes))
        deep = self.depth > K_BLOCK
        if self.in_lanes:
            chunk, scratch = self.width, block * self.most + self.most * (block + b.lanes)
        else:
            chunk = round_up(self.outputs, self.rows)
            if deep:
                chunk = min(chunk, max(SUMS_BYTES // (block * b.itemsize) // self.rows, 1) * self.rows)
            kept = round_up(chunk, self.rows) if deep else self.rows
            scratch = K_BLOCK * self.most + b.lanes + kept * (block + b.lanes)
        chunks = -(-self.outputs // chunk)
        record = dict.fromkeys(WORDS["sum"], 0) | dict(
            taps=self.depth,
            x_offsets=b.table(x_offsets),
            w_offsets=b.table(np.arange(self.depth) * self.width),
            w_group=self.blocks * self.depth * self.width,
            w_block=self.depth * self.width,
            x_h=x_strides[1],
            x_w=x_strides[2],
            y_h=y_strides[3],
            y_w=y_strides[4],
            n_d=1,
            n_h=counts[0],
            n_w=counts[1],
        )
        tasks = -(-pixels // block) * self.groups * chunks
        words: Words = dict.fromkeys(WORDS["dense"], 0)
        words |= dict(
            x=x,
            x_end=x_end,
            w=self.w,
            y=y,
            work=b.thread(scratch),
            work_stride=Operand("thread_stride"),
            images=1 if weights_only else Operand("images"),
            images_per_task=1,
            tasks=tasks,
            x_image=x_strides[0],
            y_image=y_strides[0],
            y_group=y_strides[1],
            y_channel=y_strides[2],
            groups=self.groups,
            channels=self.outputs,
            chunks=chunks,
            chunk=chunk,
            w_width=self.width,
            sums=b.records("sum", [record]),
            sum_count=1,
            together=1,
            pixel_block=block,
            k_block=K_BLOCK,
            by_groups=1,
        )
        b.stage("dense_lanes" if self.in_lanes else "dense_rows", tasks, words, weights_only=weights_only)


def _add_sums(
    b: Builder, spectrum: Spectrum, x: Operand, weights: Operand, y: Operand, image: int, row: int
) -> None:
    """Add the sums over the taps of H for each frequency: rows of the image are the pixels of a tile."""
    h = spectrum.axes[1]
    taps = h.sums[0]
    parts = convolution_axis(2, 2, 1, 1, (0, 0), 1, "zeros").sums[0]
    step, tap_step = row_step(taps, taps.count, MIN_PIXELS)
    sources = h.sources(taps)
    places = np.where(sources >= 0, sources * row, -1)
    unit = spectrum.axes[0].sums[0]
    tiles, list_words = pixel_tiles(b, (unit, parts, taps), places, row, (step, tap_step), row)
    plane = h.kernel * row
    # The real part is that of one product less the other's; the imaginary one is the sum of both.
    records = [
        {
            "task_begin": i,
            "taps_d": 1,
            "taps_h": 2,
            "map_d": b.table([0]),
            "map_h": b.table([0, h.size * row]),
            "w_rows": b.table(of),
            "w_step": tap_step * row,
            "tiles": b.records("pixel_tile", tiles),
            "tile_count": len(tiles),
            "strip": len(tiles),
            "y": i * h.out * row,
            "y_d": 0,
            "y_h": 0,
            "y_row": step * row,
            "n_d": 1,
            "n_h": 1,
        }
        for i, of in enumerate(([0, 2 * plane], [plane, 0]))
    ]
    vectors = row // b.lanes
    blocks = max(min(vectors // BLOCK_VECTORS, 4 * ENOUGH_TASKS), 1)
    pieces = max(STRIP_BYTES // ((2 * h.size + 2 * h.kernel) * b.engines.vec_bytes), 1)
    words: Words = dict(
        x=x,
        w=weights,
        b=0,
        y=y,
        work=b.thread(round_up(row, b.lanes) + (5 + list_words) * 8 // b.itemsize),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=image,
        y_image=image,
        channels=row,
        w_stride=round_up(row, b.lanes),
        row_words=5,
        list_words=list_words,
        sums=b.records("pixel_sum", records),
        sum_count=2,
        tasks=2,
        band=1,
        blocks=blocks,
        piece=pieces * b.lanes,
        on_lines=0,
        ahead=0,
        x_row=0,
        k_block=K_BLOCK,
        activation=0,
    )
    b.stage("depthwise_pixels", 2 * blocks, words)


def _add_settling(b: Builder, axes: Axes) -> None:
    """Add bias and activation, and the direct sums for channels with NaN or inf."""
    p = b.problem
    lower_planes(b, axes)
    engine, first, tasks, *_ = b.stages.pop()
    image, channel, _, _, pixel = output_strides(p)
    blocks = p.out_channels if pixel == 1 else -(-p.out_channels // b.lanes)
    words: Words = dict(
        y=b.operand("output"),
        b=b.operand("bias"),
        images=Operand("images"),
        y_image=image,
        y_channel=channel,
        y_pixel=pixel,
        channels=p.out_channels,
        pixels=math.prod(p.output_size),
        tasks=blocks,
        activation=b.engines.activation(p),
        engine=engine,
        engine_words=first - len(b.words),
        engine_tasks=tasks // p.in_channels,
    )
    b.stage("settle", blocks, words)

"""The weight gradient of one input channel a group: taps in tiles, and where each of them meets the image.

Where it can, the image is read in place. Padding modes other than zeros, strides beyond 2 along rows of pixels, and
kernels that meet the image's border at many places are read in line space instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_halo
from .geometry import Axes, Image, axes_of, input_strides, output_strides
from .program import Builder, Engines, Operand, Words

__all__ = ["lower_depthwise_grad_pixels", "lower_depthwise_grad_planes"]

# As in src/depthwise_grad.h: kernel rows of a tile if registers are many, or few; of one whose rows of pixels have
# stride 2; columns of all.
MANY_ROWS = 7
FEW_ROWS = 3
STRIDED_ROWS = 3
TILE_COLUMNS = 3
# Output rows, in tiles, below which those of a dilated kernel are not worth a sequence of their own.
LEAST_ROWS = 2
# Parts of an image that taps meet differently, from which on a halo costs less.
MOST_PARTS = 9
# Vectors of channels of a task, where enough tasks are left.
MOST_VECTORS = 4
ENOUGH_TASKS = 8
GFLOPS = 60.0


@dataclass(frozen=True)
class Tap:
    """Output q of an axis meets source ``q * step + shift``, `base` elements further."""

    index: int
    shift: int
    base: int


@dataclass(frozen=True)
class Reach:
    """One axis of what is read: `size` sources `stride` elements apart, and what reaches them."""

    size: int
    out: int
    step: int
    stride: int
    taps: tuple[Tap, ...]

    def met(self, tap: Tap) -> tuple[int, int]:
        """Return the outputs begin..end at which a tap meets a source."""
        begin = max(-(tap.shift // self.step), 0)
        return begin, min(-((tap.shift - self.size) // self.step), self.out)

    def sequences(self, taps: tuple[Tap, ...], most: int) -> Iterator[tuple[Tap, ...]]:
        """Yield runs of taps that lie whole outputs apart, equally many, at most so many of them in each."""
        of_class: dict[tuple[int, int], list[Tap]] = {}
        for tap in taps:
            of_class.setdefault((tap.base, tap.shift % self.step), []).append(tap)
        for members in of_class.values():
            yield from _evenly(members, most)

    def segments(self) -> list[tuple[int, int, tuple[Tap, ...]]]:
        """Return stretches of outputs (begin, end) that the same taps reach, with these."""
        bounds = sorted({0, self.out} | {bound for tap in self.taps for bound in self.met(tap)})
        found = []
        for begin, end in pairwise(bounds):
            met = [self.met(tap) for tap in self.taps]
            taps = [
                tap
                for tap, (first, last) in zip(self.taps, met, strict=True)
                if first <= begin and end <= last
            ]
            if taps:
                found.append((begin, end, tuple(taps)))
        return found


Reaches = tuple[Reach, Reach, Reach]


def lower_depthwise_grad_planes(problem: Problem, engines: Engines) -> Any:
    """Return a program with pixels in the vectors, a channel at a time."""
    p, b = problem, Builder(problem, engines)
    axes, taps = axes_of(p), p.taps * p.out_channels // p.in_channels
    _, gy_channel, gy_d, gy_h, _ = output_strides(p)
    if p.padding_mode == "zeros" and p.stride[-1] <= 2:
        words, reaches = _in_place(b)
    else:
        line = Image.of(axes, 1)
        starts = np.arange(p.in_channels + 1)
        words, reaches = _in_lines(b, axes, line, "halo_planes", line.size, starts)
        words |= dict(x_channel=line.size)
    d, h, w = reaches
    records = [
        along_d | along_h | along_w
        for along_d in _planes(d, axes, gy_d)
        for along_h in _lines(h, axes[2].kernel, gy_h, _most_rows(b, w.step))
        for along_w in _columns(b, w)
    ]
    for record in records:
        record["x"] = sum(record.pop(f"x_from_{axis}") for axis in "dhw")
        record["gy"] = sum(record.pop(f"gy_from_{axis}") for axis in "dhw")
        record["tap"] = sum(record.pop(f"tap_{axis}") for axis in "dhw")
    words |= dict(
        gy_channel=gy_channel,
        channels=p.in_channels,
        outputs=p.out_channels // p.in_channels,
        parts=b.records("plane_part", records),
        part_count=len(records),
    )
    return _finish(b, "depthwise_plane_grad", p.in_channels, taps * b.lanes, words)


def lower_depthwise_grad_pixels(problem: Problem, engines: Engines) -> Any:
    """Return a program with channels in the vectors."""
    p, b = problem, Builder(problem, engines)
    axes, channels = axes_of(p), p.out_channels
    _, _, *gy_strides = output_strides(p)
    words, reaches = _in_place(b)
    parts = [reach.segments() for reach in reaches]
    if (
        p.padding_mode != "zeros"
        or channels != p.in_channels
        or np.prod([len(s) for s in parts]) > MOST_PARTS
    ):
        # Each channel is repeated for every output it feeds; then output and input channels agree.
        starts, repeat = np.array([0, channels]), channels // p.in_channels
        words, reaches = _in_lines(b, axes, Image.of(axes, channels), "halo_pixels", 0, starts, repeat)
        parts = [reach.segments() for reach in reaches]
    records = [
        record
        for segments in product(*parts)
        for record in _pixel_parts(reaches, segments, axes, gy_strides, _most_rows(b, 1))
    ]
    vectors = -(-channels // b.lanes)
    block = max(min(vectors // ENOUGH_TASKS, MOST_VECTORS), 1)
    words |= dict(
        x_channel=1,
        gy_channel=1,
        channels=channels,
        outputs=block,
        parts=b.records("pixel_part", records),
        part_count=len(records),
    )
    return _finish(b, "depthwise_pixel_grad", -(-vectors // block), block * p.taps * b.lanes, words)


def _finish(b: Builder, engine: str, tasks: int, sums: int, words: Words) -> Any:
    """Add the stage and return the program; a task has so many sums."""
    p = b.problem
    gy_image = output_strides(p)[0]
    # One chunk of images sums in the scratch of the thread.
    shared = 0 if p.batch <= b.images_per_chunk else tasks * sums
    words |= dict(
        gy=Operand("weight", gy_image * b.itemsize),
        gw=Operand("output"),
        sums=b.scratch_of_all_chunks(shared),
        work=b.thread(sums),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        first_image=Operand("first_image"),
        batch=p.batch,
        gy_image=gy_image,
        kernel_taps=p.taps,
    )
    # All images of a chunk belong to each task.
    b.stage(engine, tasks, words, images_per_task=1 << 40)
    return b.finish(p.flops / p.batch / GFLOPS, f"sums of {words['part_count']} parts in registers")


def _in_place(b: Builder) -> tuple[Words, Reaches]:
    """Return the words about the image as it is given, and its axes."""
    p = b.problem
    x_image, x_channel, *strides = input_strides(p)
    found = []
    for size, kernel, out, step, (before, _), dilation, stride in zip(
        p.input_size,
        p.kernel_size,
        p.output_size,
        p.stride,
        p.padding,
        p.dilation,
        strides[3 - p.ndim :],
        strict=True,
    ):
        taps = tuple(Tap(t, t * dilation - before, 0) for t in range(kernel))
        every = Reach(size, out, step, stride, taps)
        met = tuple(tap for tap in taps if every.met(tap)[0] < every.met(tap)[1])
        found.append(Reach(size, out, step, stride, met))
    d, h, w = [Reach(1, 1, 1, 0, (Tap(0, 0, 0),))] * (3 - p.ndim) + found
    return dict(x=b.operand("input"), x_image=x_image, x_channel=x_channel), (d, h, w)


def _in_lines(
    b: Builder, axes: Axes, line: Image, engine: str, block: int, starts: np.ndarray, repeat: int = 1
) -> tuple[Words, Reaches]:
    """Add the stage that makes a haloed image; return the words about it, and its axes."""
    # Pixels of all channels lie in one block, or each channel in one of its own.
    x_image = line.size if block == 0 else block * (len(starts) - 1)
    b.chunked(x_image * b.itemsize)
    x = add_halo(b, engine, axes, line, x_image, block, starts, 0, repeat)
    strides = (line.d, line.h, line.w)
    phases = (line.lines_d * line.d, line.lines_h * line.h, line.phase)
    found = []
    for axis, stride, phase in zip(axes, strides, phases, strict=True):
        taps = [
            Tap(int(t), int(offset), int(one) * phase)
            for s in axis.sums
            for t, one, offset in zip(s.taps, s.phases, s.offsets, strict=True)
        ]
        found.append(Reach(axis.lines, axis.out, 1, stride, tuple(taps)))
    d, h, w = found
    return dict(x=x, x_image=x_image), (d, h, w)


def _most_rows(b: Builder, step: int) -> int:
    """Return the most kernel rows of a tile; registers are many where the register tile is tall."""
    rows = MANY_ROWS if b.engines.tile[0] > FEW_ROWS + 1 else FEW_ROWS
    return rows if step == 1 else STRIDED_ROWS


def _evenly(taps: list[Tap], most: int) -> Iterator[tuple[Tap, ...]]:
    parts = -(-len(taps) // most)
    for i in range(parts):
        yield tuple(taps[len(taps) * i // parts : len(taps) * (i + 1) // parts])


def _planes(d: Reach, axes: Axes, gy_d: int) -> Iterator[dict[str, int]]:
    for tap in d.taps:
        begin, end = d.met(tap)
        yield {
            "tap_d": tap.index * axes[1].kernel * axes[2].kernel,
            "x_from_d": tap.base + (begin * d.step + tap.shift) * d.stride,
            "x_d": d.step * d.stride,
            "gy_from_d": begin * gy_d,
            "gy_d": gy_d,
            "n_d": end - begin,
        }


def _lines(h: Reach, kernel_w: int, gy_h: int, most: int) -> Iterator[dict[str, int]]:
    """Yield sequences of lines that each meet as many rows of the gradient as the tile has kernel rows."""
    for taps in h.sequences(h.taps, most):
        apart = (taps[1].shift - taps[0].shift) // h.step if len(taps) > 1 else 1
        runs: list[tuple[Tap, ...]] = [taps]
        if apart > 1 and h.out // apart < LEAST_ROWS * len(taps):
            runs, apart = [(tap,) for tap in taps], 1
        for run, first in product(runs, range(apart)):
            rows = -(-(h.out - first) // apart)
            source = run[0].shift + (first + apart * np.arange(rows + len(run) - 1)) * h.step
            inside = np.flatnonzero((source >= 0) & (source < h.size))
            if rows > 0 and len(inside):
                yield {
                    "rows": len(run),
                    "tap_h": run[0].index * kernel_w,
                    "tap_row": (run[1].index - run[0].index) * kernel_w if len(run) > 1 else 0,
                    "x_from_h": run[0].base + int(source[0]) * h.stride,
                    "x_row": apart * h.step * h.stride,
                    "gy_from_h": first * gy_h,
                    "gy_row": apart * gy_h,
                    "n_h": rows,
                    "begin": int(inside[0]),
                    "end": int(inside[-1]) + 1,
                }


def _columns(b: Builder, w: Reach) -> Iterator[dict[str, int]]:
    """Yield the columns of a tile, with masks of the lanes that they meet in each vector of outputs."""
    adjacent = w.step == 1 or len(w.taps) < 2 or w.taps[1].shift - w.taps[0].shift == 1
    runs = _runs_of_one_base(w.taps, TILE_COLUMNS if adjacent else 1)
    for run in runs:
        apart = run[1].shift - run[0].shift if len(run) > 1 else 1
        shifts = (
            [tap.shift for tap in run] if w.step == 1 else [run[0].shift + j for j in range(0, len(run), 2)]
        )
        vectors = -(-w.out // b.lanes)
        masks = np.array([_masks(w, shifts, v, b.lanes) for v in range(vectors)])
        met = np.flatnonzero(masks[:, 1:].any(axis=1))
        first, last = int(met[0]), int(met[-1]) + 1
        yield {
            "columns": len(run),
            "stride": w.step,
            "tap_w": run[0].index,
            "tap_column": run[1].index - run[0].index if len(run) > 1 else 0,
            "x_from_w": run[0].base + (first * b.lanes * w.step + run[0].shift) * w.stride,
            "x_column": apart * w.stride,
            "gy_from_w": first * b.lanes,
            "vectors": last - first,
            "masks": b.table(masks[first:last]),
        }


def _masks(w: Reach, shifts: list[int], vector: int, lanes: int) -> list[int]:
    """Return the mask of a vector of outputs, and those of the `step` loads from each shift."""
    outputs = vector * lanes + np.arange(lanes)
    found = [outputs < w.out]
    for shift in shifts:
        elements = vector * lanes * w.step + np.arange(w.step * lanes)
        source = elements + shift
        met = (source >= 0) & (source < w.size) & (elements < w.out * w.step)
        found += np.split(met, w.step)
    return [sum(1 << int(lane) for lane in np.flatnonzero(mask)) for mask in found]


def _runs_of_one_base(taps: tuple[Tap, ...], most: int) -> list[tuple[Tap, ...]]:
    of_base: dict[int, list[Tap]] = {}
    for tap in taps:
        of_base.setdefault(tap.base, []).append(tap)
    return [run for members in of_base.values() for run in _evenly(members, most)]


def _pixel_parts(
    reaches: Reaches, segments: tuple, axes: Axes, gy_strides: list[int], most_rows: int
) -> Iterator[dict[str, int]]:
    """Yield the tiles of taps that meet the image wherever an output of these stretches lies."""
    (_, h, w), kernel_h, kernel_w = reaches, axes[1].kernel, axes[2].kernel
    firsts = [begin for begin, *_ in segments]
    counts = [end - begin for begin, end, _ in segments]
    runs_h, runs_w = (
        _runs_of_one_base(segments[1][2], most_rows),
        _runs_of_one_base(segments[2][2], TILE_COLUMNS),
    )
    for tap_d, run_h, run_w in product(segments[0][2], runs_h, runs_w):
        taps = (tap_d, run_h[0], run_w[0])
        yield {
            "rows": len(run_h),
            "columns": len(run_w),
            "tap": (tap_d.index * kernel_h + run_h[0].index) * kernel_w + run_w[0].index,
            "tap_row": (run_h[1].index - run_h[0].index) * kernel_w if len(run_h) > 1 else 0,
            "tap_column": run_w[1].index - run_w[0].index if len(run_w) > 1 else 0,
            "x": sum(
                tap.base + (first * reach.step + tap.shift) * reach.stride
                for tap, first, reach in zip(taps, firsts, reaches, strict=True)
            ),
            "x_row": (run_h[1].shift - run_h[0].shift) * h.stride if len(run_h) > 1 else 0,
            "x_column": (run_w[1].shift - run_w[0].shift) * w.stride if len(run_w) > 1 else 0,
            "gy": sum(first * stride for first, stride in zip(firsts, gy_strides, strict=True)),
            "together": len(runs_h) * len(runs_w),
        } | {
            f"{name}_{axis}": value
            for axis, reach, stride, count in zip("dhw", reaches, gy_strides, counts, strict=True)
            for name, value in (("x", reach.step * reach.stride), ("gy", stride), ("n", count))
        }

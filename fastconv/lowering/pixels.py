"""Depthwise problems with channels in the vectors: tiles of pixels of one row, see ``depthwise_pixels``."""

import math

import numpy as np

from .columns import row_step, runs_of, tile_rows
from .dense import add_halo
from .geometry import Axes, Image, Sums, convolution_axis, input_strides, output_strides, sums_of
from .program import ENOUGH_TASKS, K_BLOCK, WORDS, Builder, Operand, Words, round_up

__all__ = ["is_small", "lower_pixels"]

# Output pixels of a plane below which its channels go into the vectors: 7x7 x 960 takes 27 us and not 50 with a
# 3x3 kernel; 14x14 x 576 takes 70 us and not 45.
SMALL_PLANE = 64
# A transposition goes by squares of so many.
SHORT_VECTOR = 4
# Pixels of a tile that make it worth while to lie a dilation apart.
MIN_PIXELS = 2


def lower_pixels(b: Builder, axes: Axes, *, joined: bool = False) -> None:
    """Add the stages for one input channel a group, with channels last or put there.

    If `joined`, the last of them writes rows, channels last, for another engine to read.
    """
    p = b.problem
    channels = p.out_channels
    x_image, _, *strides = input_strides(p, "NHWC")
    y_image, _, y_d, y_h, y_w = output_strides(p, "NHWC")
    x, y = b.operand("input"), b.operand("output")
    if joined:
        y_image = 0
    if p.layout == "NCHW":
        x, y = _transposed(b, x_image, y_image)
    if channels != p.in_channels:
        # Each channel is repeated for every output it feeds; then output and input channels agree.
        x, x_image, strides = _repeat(b)
    w_stride = round_up(channels, b.lanes)
    taps = np.arange(p.taps)
    packed = b.pack(taps, taps * w_stride, p.taps * w_stride, w_stride, 1, rows=channels, x_row=p.taps)
    records, tasks, row_words, list_words = [], 0, 0, 0
    for s in sums_of(axes):
        sources = [axis.sources(one) for axis, one in zip(axes, s, strict=True)]
        maps = [np.where(at >= 0, at * stride, -1) for at, stride in zip(sources, strides, strict=True)]
        step, tap_step = row_step(s[2], s[2].count, MIN_PIXELS)
        kernel_rows = s[0].taps[:, None] * axes[1].kernel + s[1].taps
        tiles, words_used = _pixel_tiles(b, s, maps[2], w_stride, (step, tap_step), y_w * s[2].step)
        row_words = max(row_words, 1 + 2 * kernel_rows.size)
        list_words = max(list_words, words_used)
        records.append(
            {
                "task_begin": tasks,
                "taps_d": len(s[0].taps),
                "taps_h": len(s[1].taps),
                "map_d": b.table(maps[0]),
                "map_h": b.table(maps[1]),
                "w_rows": b.table(kernel_rows.ravel() * axes[2].kernel * w_stride),
                "w_step": tap_step * w_stride,
                "tiles": b.records("pixel_tile", tiles),
                "tile_count": len(tiles),
                "y": s[0].start * y_d + s[1].start * y_h + s[2].start * y_w,
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_row": step * s[2].step * y_w,
                "n_d": s[0].count,
                "n_h": s[1].count,
            }
        )
        tasks += s[0].count * s[1].count
    words: Words = dict(
        x=x,
        w=packed,
        b=b.operand("bias"),
        y=y,
        work=b.thread(w_stride + (row_words + list_words) * 8 // b.itemsize),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=x_image,
        y_image=y_image,
        channels=channels,
        w_stride=w_stride,
        row_words=row_words,
        sums=b.records("pixel_sum", records),
        sum_count=len(records),
        tasks=tasks,
        k_block=K_BLOCK,
        activation=b.engines.activation(p),
    )
    b.stage("depthwise_pixels", tasks, words)
    if p.layout == "NCHW" and not joined:
        _add_transpose(b, y, y_image // channels, channels, b.operand("output"))


def is_small(b: Builder, axes: Axes) -> bool:
    """Whether planes are so small, and so many, that it pays to have their channels in the vectors.

    The rows of 7 x 7 pixels fill half a vector, and each plane has as much around it as in it: two transpositions
    cost less.
    """
    p = b.problem
    return (
        p.layout == "NCHW"
        and p.in_channels == p.out_channels >= b.lanes
        and math.prod(p.output_size) <= SMALL_PLANE
        and math.prod(p.input_size) <= 4 * SMALL_PLANE
        and not any(axis.has_gaps for axis in axes)
    )


def _transposed(b: Builder, x_image: int, y_image: int) -> tuple[Operand, Operand]:
    """Add the stage that puts the channels of the input last; return where they go, and where results may."""
    b.chunked((x_image + y_image) * b.itemsize)
    channels = b.problem.in_channels
    x = b.scratch(x_image, 0, "channels last")
    _add_transpose(b, b.operand("input"), channels, x_image // channels, x)
    y = b.scratch(y_image, 0)
    return x, y


def _add_transpose(b: Builder, x: Operand, rows: int, columns: int, y: Operand) -> None:
    """Add the stage that writes the rows of each image as columns, a piece of them at a time."""
    pieces = max(n for n in range(1, ENOUGH_TASKS + 1) if n == 1 or columns % (n * SHORT_VECTOR) == 0)
    piece = columns // pieces
    line = convolution_axis(piece, 1, piece, 1, (0, 0), 1, "zeros")
    words: Words = dict.fromkeys(WORDS["halo"], 0)
    words |= dict(
        x=x,
        y=y,
        images=Operand("images"),
        x_image=rows * columns,
        x_channel=columns,
        x_h=piece,
        x_w=1,
        y_image=rows * columns,
        y_h=piece * rows,
        y_w=rows,
        repeat=1,
        blocks=1,
        starts=b.table([0, rows]),
        rows_d=1,
        rows_h=pieces,
        w_phases=1,
        w_lines=piece,
        map_d=b.table([0]),
        map_h=b.table(range(pieces)),
        map_w=b.table(line.map),
        runs=b.table(line.runs()),
    )
    b.stage("halo_pixels", pieces, words)


def _pixel_tiles(
    b: Builder, sums: Sums, offsets: np.ndarray, w_stride: int, steps: tuple[int, int], y_w: int
) -> tuple[list[dict[str, int]], int]:
    """Return tiles that cover a row of pixels, and the words that the lists of their addresses take.

    `offsets` holds where each (tap, output) reads, -1 in the padding; a tile leaves out what lies only there.
    """
    w, kernel_rows = sums[2], len(sums[0].taps) * len(sums[1].taps)
    one_block = kernel_rows * len(w.taps) <= K_BLOCK
    places = np.where(offsets < 0, -1, offsets * b.itemsize)
    runs = runs_of(w, np.arange(len(w.taps)), *steps)
    tiles, used = [], 0
    for some, first in tile_rows(w.count, steps[0]):
        outputs = first + steps[0] * np.arange(some)
        columns: list[int] = []
        count, padded = 0, False
        for run in runs:
            taps = np.pad(run, (some - 1, 0), mode="edge")
            pixels = places[taps, np.pad(outputs, (0, len(run) - 1), mode="edge")]
            if pixels.max() >= 0:
                columns += [len(run), int(w.taps[run[0]]) * w_stride, *pixels.tolist()]
                count += 1
                padded |= bool(pixels.min() < 0)
        at = -1
        if padded or not one_block:
            at = used
            used += 2 + kernel_rows * (len(columns) + count)  # a 0 behind each column, at most
        tiles.append({"pixels": some, "y": first * y_w, "columns": b.table([*columns, 0]), "list": at})
    return tiles, used


def _repeat(b: Builder) -> tuple[Operand, int, list[int]]:
    """Add the stage that repeats input channels, and return the image it makes, its size and its strides."""
    p = b.problem
    sizes = (1,) * (3 - p.ndim) + p.input_size
    d, h, w = (convolution_axis(size, 1, size, 1, (0, 0), 1, "zeros") for size in sizes)
    image = Image.of((d, h, w), p.out_channels)
    b.chunked(image.size * b.itemsize)
    starts = np.array([0, p.out_channels])
    repeat = p.out_channels // p.in_channels
    x = add_halo(b, "halo_pixels", (d, h, w), image, image.size, 0, starts, 0, repeat, "repeated channels")
    return x, image.size, [image.d, image.h, image.w]

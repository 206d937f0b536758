"""Depthwise problems with channels in the vectors: tiles of pixels of one row, see ``depthwise_pixels``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .columns import HALVED_BYTES, STRIDED, TILE_ROWS, row_step, runs_of, tile_rows
from .dense import add_halo, fills_vectors
from .geometry import (
    Axes,
    Axis,
    Image,
    Sums,
    convolution_axis,
    input_strides,
    output_strides,
    sums_of,
)
from .program import BEYOND_CACHES, ENOUGH_TASKS, K_BLOCK, WORDS, Builder, Operand, Words, round_up

__all__ = ["MIN_PIXELS", "STRIP_BYTES", "lower_pixels", "pays_to_turn", "pixel_tiles"]

# Output pixels of a plane up to which its channels go into the vectors: 960 x 7x7 takes 26 us and not 38 with a 3x3
# kernel; 512 x 8x8 takes 22 us and not 19. Inputs may be so many times as large, unless pixels lie so far apart that they
# share few sets of L1 (14x14 to 7x7: 576 channels 28 and not 42 us, 512 channels 37 and not 31).
SMALL_PLANE = 56
INPUTS, CROWDED_INPUTS = 4, 2
CROWDED_BYTES = 2048
CROWDED_READS = 6
TURNED_BYTES = 5 << 18
# Taps of a single row from which on the same holds, however long it is.
MANY_TAPS = 16
# A transposition goes by squares of so many.
SHORT_VECTOR = 4
# Pixels of a tile that make it worth while to lie a dilation apart.
MIN_PIXELS = 2
# What the tiles of a strip read again in the next rows, weights among it, lies in L1 beside results; vectors of channels of one.
# Tried and lost: each row copied once for a vector or two of channels, with its padding, where tiles find it side by side in
# L1. That takes no lists of addresses and has 2.5 and not 4.3 misses a line with a 7x7 kernel, but the copies wait while
# nothing is summed (192 x 28x28, 3x3: 43 and not 42 us; 5x5: 81 and not 75; 7x7: 145 and not 148; 576 x 14x14: 39 and not 29
# us; 512 x 33x33: 187 and not 175). Tiles of two rows, as the products and not the loads are what takes time (3x3: 38 and not
# 36 us with such copies). Rows a dilation apart one after the other: the same time.
STRIP_BYTES = 18 << 10
STRIP_VECTORS = 8
CACHE_LINE, L1_SETS = 64, 64
# Taps that take as long as a tile to begin and to end.
TILE_BEGIN = 4
# Where no strip is so small, or pixels are pages apart, which are better read once (1024 x 32x32: 570 and not 980 us):
# vectors of channels that all tiles of a row go through together.
PAGE_BYTES = 4096
CACHED_BYTES = 1 << 20
ROW_VECTORS = 64
# Lists of a band, which are read one after the other.
LIST_BYTES = 64 << 10
# Rows of a band that make a task, more if they are not many times what a kernel reaches beyond, and vectors of channels.
BAND_ROWS = 2
BAND_REACHES = 3
BLOCK_VECTORS = 4
# Vectors of pixels beside each other, where channels are few, and how many times that a row has at least.
BESIDE_VECTORS = 4
MIN_BESIDE = 2
# Vectors of a pixel among which one more does not count, if all of them are on lines then.
LINE_VECTORS = 4


def lower_pixels(b: Builder, axes: Axes, joined: int = 0) -> int:
    """Add the stages for one input channel a group, with channels last or put there; return the rows of a task.

    If `joined`, some tasks of the last stage write so many rows, channels last, for another engine to read.
    """
    p = b.problem
    channels = p.out_channels
    x_image, _, *strides = input_strides(p, "NHWC")
    y_image, *_ = output_strides(p, "NHWC")
    x, y = b.operand("input"), b.operand("output")
    if joined:
        y_image = 0
    if p.layout == "NCHW":
        x, y = _transposed(b, x_image, y_image)
    if channels != p.in_channels:
        # Each channel is repeated for every output it feeds; then output and input channels agree.
        x, x_image, strides = _repeat(b)
    elif p.layout == "NHWC" and _is_crowded(b, axes):
        x, x_image, strides = _moved_apart(b)
    band = 0
    for part in _parts(b, axes, bool(joined)):
        band = _add_sums(b, axes, part, (x, y), (x_image, y_image), strides, joined)
    if p.layout == "NCHW" and not joined:
        _add_transpose(b, y, y_image // channels, channels, b.operand("output"))
    return band


@dataclass(frozen=True)
class Part:
    """Sums that one stage makes, each with the sources of (tap, output) along the three axes.

    Attributes
    ----------
    beside : int
        Pixels that lie beside each other in a vector or a few, so that few channels fill them.
    last : int
        Where, in pixels, one more such vector begins in a row, which overlaps the one before it; 0 if there is none.
    """

    sums: list[Sums]
    sources: list[list[np.ndarray]]
    beside: int = 1
    last: int = 0


def _parts(b: Builder, axes: Axes, joined: bool) -> list[Part]:
    """Return the stages that make all sums: where few channels fill no vector, pixels fill it that lie beside each other."""
    sums = sums_of(axes)
    sources = [[axis.sources(one) for axis, one in zip(axes, s, strict=True)] for s in sums]
    begin, end = (0, 0) if joined else _run_of_pixels(sources[0][2])
    beside = _beside(b, end - begin)
    if beside == 1:
        return [Part(sums, sources)]
    ((d, h, w),), ((of_d, of_h, of_w),) = sums, sources
    wide, narrow = Part([], [], beside, (end - begin) % beside and end - begin - beside), Part([], [])
    for part, first, last in ((narrow, 0, begin), (wide, begin, end), (narrow, end, w.count)):
        if first < last:
            count = (last - first) // part.beside
            at = [
                *range(first, first + count * part.beside, part.beside),
                *([first + part.last] if part.last else ()),
            ]
            part.sums.append((d, h, replace(w, start=first, step=part.beside, count=count)))
            part.sources.append([of_d, of_h, of_w[:, at]])
    return [part for part in (wide, narrow) if part.sums]


def _beside(b: Builder, pixels: int) -> int:
    """Return how many of so many pixels beside each other fill vectors, where channels fill too little of one.

    No two taps share what they load then, but 4 x 512x512 takes 560 and not 1450 us, 3 x 512x512 460 and not 1510 us.
    """
    p = b.problem
    one = p.variant == "conv" and p.stride[-1] == 1 and p.layout == "NHWC" and p.in_channels == p.out_channels
    most = 3 * b.lanes // 8 if b.engines.vec_bytes == HALVED_BYTES else b.lanes // 2
    if not one or p.out_channels > most:
        return 1
    whole = b.lanes // math.gcd(b.lanes, p.out_channels)
    several = whole * max(BESIDE_VECTORS * b.lanes // (whole * p.out_channels), 1)
    return next(
        (n for n in (several, whole, b.lanes // p.out_channels) if n > 1 and MIN_BESIDE * n <= pixels), 1
    )


def _run_of_pixels(sources: np.ndarray) -> tuple[int, int]:
    """Return the outputs about the middle one all taps of which meet pixels that follow each other."""
    middle = sources.shape[1] // 2
    steps = sources - sources[:, [middle]] == np.arange(sources.shape[1]) - middle
    inside = ((sources >= 0) & steps).all(axis=0)
    edges = np.flatnonzero(~inside)
    if not inside[middle]:
        return 0, 0
    return int(edges[edges < middle].max(initial=-1)) + 1, int(edges[edges > middle].min(initial=len(inside)))


def _add_sums(
    b: Builder,
    axes: Axes,
    part: Part,
    images: tuple[Operand, Operand],
    image_sizes: tuple[int, int],
    strides: Sequence[int],
    joined: int,
) -> int:
    """Add the stage for some of the sums, from one image to the other; return the rows of a task."""
    p = b.problem
    _, _, y_d, y_h, y_w = output_strides(p, "NHWC")
    channels = p.out_channels * part.beside
    w_stride = round_up(channels, b.lanes)
    taps, pixels = np.arange(p.taps), np.arange(part.beside)
    places = taps[:, None] * w_stride + pixels * p.out_channels
    width = w_stride if part.beside == 1 else p.out_channels
    packed = b.pack(
        np.repeat(taps, part.beside),
        places.ravel(),
        p.taps * w_stride,
        width,
        1,
        rows=p.out_channels,
        x_row=p.taps,
    )
    records, row_words, list_words = [], 0, 0
    piece, strip_pixels = (channels, axes[2].out) if part.beside > 1 else _strip(b, axes)
    for s, sources in zip(part.sums, part.sources, strict=True):
        maps = [np.where(at >= 0, at * stride, -1) for at, stride in zip(sources, strides, strict=True)]
        step, tap_step = (1, 0) if part.beside > 1 else row_step(s[2], s[2].count, MIN_PIXELS)
        kernel_rows = s[0].taps[:, None] * axes[1].kernel + s[1].taps
        steps, count = (step, tap_step), s[2].count
        tiles, words_used = pixel_tiles(b, s, maps[2][:, :count], w_stride, steps, y_w * s[2].step)
        if part.last:
            one = (s[0], s[1], replace(s[2], count=1))
            more, words_more = pixel_tiles(b, one, maps[2][:, count:], w_stride, steps, 0)
            (tile,) = more
            tiles.append(
                tile | {"y": part.last * y_w, "list": tile["list"] + (words_used if words_more else 0)}
            )
            words_used += words_more
        row_words = max(row_words, 1 + 2 * kernel_rows.size)
        list_words = max(list_words, words_used)
        records.append(
            {
                "taps_d": len(s[0].taps),
                "taps_h": len(s[1].taps),
                "map_d": b.table(maps[0]),
                "map_h": b.table(maps[1]),
                "w_rows": b.table(kernel_rows.ravel() * axes[2].kernel * w_stride),
                "w_step": tap_step * w_stride,
                "tiles": b.records("pixel_tile", tiles),
                "tile_count": len(tiles),
                "strip": max(len(tiles) * strip_pixels // s[2].count, 1),
                "y": s[0].start * y_d + s[1].start * y_h + s[2].start * y_w,
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_row": step * s[2].step * y_w,
                "n_d": s[0].count,
                "n_h": s[1].count,
            }
        )
    row_bytes = 8 * (row_words + list_words)
    blocks, band = _tasks(b, part.sums, axes[1], row_bytes)
    if joined:
        parts = (
            n for n in range(1, joined + 1) if joined % n == 0 and (n == 1 or n * row_bytes <= LIST_BYTES)
        )
        blocks, band = 1, max(parts)
    tasks = 0
    for record in records:
        record["task_begin"] = tasks
        tasks += -(-record["n_d"] * record["n_h"] // band)
    words: Words = dict(
        x=images[0],
        w=packed,
        b=_bias_of_pixels(b, part.beside),
        y=images[1],
        work=b.thread(w_stride + band * (row_words + list_words) * 8 // b.itemsize),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=image_sizes[0],
        y_image=image_sizes[1],
        channels=channels,
        w_stride=w_stride,
        row_words=row_words,
        list_words=list_words,
        sums=b.records("pixel_sum", records),
        sum_count=len(records),
        tasks=tasks,
        band=band,
        blocks=blocks,
        piece=piece,
        on_lines=int(_on_lines(b)),
        k_block=K_BLOCK,
        activation=b.engines.activation(p),
        ahead=_new_lines(b, axes) * strides[1] if strip_pixels == axes[2].out else 0,
        x_row=strides[1],
    )
    b.stage("depthwise_pixels", tasks * blocks, words)
    return band


def _new_lines(b: Builder, axes: Axes) -> int:
    """Return how many lines an output row is the first to read, 0 if the image is near or a single row."""
    p = b.problem
    if p.bytes <= BEYOND_CACHES or axes[1].out == 1:
        return 0
    return p.stride[-2] if p.variant == "conv" else 1


def _bias_of_pixels(b: Builder, beside: int) -> Operand:
    """Return the bias of pixels beside each other, which a stage repeats if they are several."""
    p = b.problem
    if beside == 1 or not p.bias:
        return b.operand("bias")
    y = b.scratch_of_all_chunks(beside * p.out_channels)
    words: Words = dict.fromkeys(WORDS["pack"], 0)
    words |= dict(
        x=b.operand("bias"),
        y=y,
        offsets=b.table([0] * beside),
        places=b.table(np.arange(beside) * p.out_channels),
        count=beside,
        groups=1,
        rows=p.out_channels,
        width=p.out_channels,
        blocks=1,
        pieces=1,
        x_row=1,
    )
    b.stage("pack", 1, words, images_per_task=1 << 40)
    return y


def _strip(b: Builder, axes: Axes) -> tuple[int, int]:
    """Return the channels that are summed together, and the output pixels of a row that are.

    What they read in all the rows of a kernel fits L1, if anything does, so that it is read from below once. Wide strips
    share few pixels with the next ones; many channels share the lines of a pixel, and the beginning of a tile.
    """
    p = b.problem
    d, h, w = axes
    rows = d.kernel * (h.reach * h.phases + 1)
    pixel = p.out_channels * b.itemsize
    best = (math.inf, ROW_VECTORS * b.lanes, w.out)
    # Rows a dilation apart come back late, and an image that no L2 holds is best read as it lies (96 x 56x56, 7x7: 276 and
    # not 350 us); one that L2 holds takes the same time either way.
    beyond = math.prod(p.input_shape[1:]) * b.itemsize > CACHED_BYTES
    if beyond or rows == 1 or rows > d.kernel * h.kernel or pixel >= PAGE_BYTES:
        return best[1:]
    # Pixels that are a multiple of lines apart share sets of L1.
    sharing = math.gcd(pixel // CACHE_LINE, L1_SETS) if pixel % CACHE_LINE == 0 else 1
    for vectors in range(1, min(STRIP_VECTORS, max(p.out_channels // b.lanes, 1)) + 1):
        size = vectors * b.engines.vec_bytes
        lines = (size - 1) // CACHE_LINE + (1 if _on_lines(b) else 2)
        room = STRIP_BYTES * min(lines / sharing, 1)
        for pixels in range(TILE_ROWS, round_up(w.out, TILE_ROWS) + 1, TILE_ROWS):
            read = min(pixels * w.phases // len(w.sums) + w.reach * w.phases, w.size)
            again = (-(-w.out // pixels) - 1) * w.reach * w.phases / w.size
            crowded = min(max((rows * read + p.taps) * lines * CACHE_LINE / room, 1), rows)
            cost = (1 + again) * lines * CACHE_LINE / size * crowded + TILE_BEGIN / (vectors * p.taps)
            best = min(best, (cost, vectors * b.lanes, pixels))
    return best[1:]


def _on_lines(b: Builder) -> bool:
    """Whether all pixels can be read by whole cache lines, for one vector more."""
    channels = b.problem.out_channels
    return channels % b.lanes == 0 and channels >= LINE_VECTORS * b.lanes


def _tasks(b: Builder, sums: Sequence[Sums], h: Axis, row_bytes: int) -> tuple[int, int]:
    """Return blocks of channels, and rows of a band, that make tasks enough; each block lists the same addresses."""
    vectors = b.problem.out_channels // b.lanes
    rows = max(s[0].count for s in sums) * max(s[1].count for s in sums)
    enough = -(-ENOUGH_TASKS // len(sums))
    least = max(BAND_ROWS, BAND_REACHES * h.reach if h.reach < h.kernel else 0)
    bands = max(min(enough, rows // least), 1)
    blocks = max(min(enough // bands, vectors // BLOCK_VECTORS), 1)
    if bands * blocks < enough // 2:
        bands = max(min(enough // 2 // blocks, rows // BAND_ROWS), 1)
        blocks = max(min(enough // 2 // bands, vectors // 2), blocks)
    bands = max(bands, -(-rows * row_bytes // LIST_BYTES))
    return blocks, -(-rows // bands)


def pays_to_turn(b: Builder, axes: Axes) -> bool:
    """Whether it pays to put the channels of planes into the vectors, and those of the result back.

    The rows of 7 x 7 pixels fill half a vector, and each plane has as much around it as in it: two transpositions
    cost less. So they do where planes are single rows, in which no two products share what they load, if taps are many,
    and where planes would be copied in phases of a stride that has no tiles (96 x 56x56, stride 3: 55 and not 72 us),
    unless that is as much as no L2 holds (512 x 57x57: 800 and not 480 us). A stride of 2 without tiles (AVX2) is better copied:
    of 11 layers turned, two gained and the others took 1.1 to 2.3 of the time.
    """
    p = b.problem
    inputs = CROWDED_INPUTS if p.in_channels * b.itemsize % CROWDED_BYTES == 0 else INPUTS
    size = math.prod(p.input_size)
    small = math.prod(p.output_size) <= SMALL_PLANE and size <= inputs * SMALL_PLANE
    row = size == p.input_size[-1] and p.kernel_size[-1] >= MANY_TAPS
    strided = (
        p.variant == "conv" and p.stride[-1] > STRIDED and size * p.in_channels * b.itemsize <= TURNED_BYTES
    )
    return (
        (small or row or strided)
        and p.layout == "NCHW"
        and p.in_channels == p.out_channels >= b.lanes
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
        h_phases=1,
        w_phases=1,
        w_lines=piece,
        map_d=b.table([0]),
        map_h=b.table(range(pieces)),
        map_w=b.table(line.map),
        runs=b.table(line.runs()),
    )
    b.stage("halo_pixels", pieces, words)


def pixel_tiles(
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


def _is_crowded(b: Builder, axes: Axes) -> bool:
    """Whether pixels share few sets of L1 and are read so often that a copy, in which they do not, takes less time.

    512 x 14x14 takes 37 us with a 3x3 kernel, and not 34 to 62 as the array happens to lie; 1024 x 32x32 takes 400 and not
    580 to 1120 us. But with stride 2 512 x 14x14 takes 23 and not 20 us.
    """
    p = b.problem
    useful = math.prod(axis.useful() for axis in axes)
    reads = useful * p.taps * math.prod(p.output_size) / math.prod(p.input_size)
    crowded = p.in_channels * b.itemsize % CROWDED_BYTES == 0
    return crowded and p.variant == "conv" and reads >= CROWDED_READS


def _moved_apart(b: Builder) -> tuple[Operand, int, list[int]]:
    """Add the stage that copies pixels a vector further apart, and return the image it makes, its size and its strides."""
    p = b.problem
    d, h, w = (1,) * (3 - p.ndim) + p.input_size
    channels, pixels, pixel = p.in_channels, d * h * w, p.in_channels + b.lanes
    b.chunked(pixels * pixel * b.itemsize)
    x = b.scratch(pixels * pixel, 0, "pixels further apart")
    line = convolution_axis(channels, 1, channels, 1, (0, 0), 1, "zeros")
    band = -(-pixels // ENOUGH_TASKS)
    words: Words = dict.fromkeys(WORDS["halo"], 0)
    words |= dict(
        x=b.operand("input"),
        y=x,
        images=Operand("images"),
        x_image=pixels * channels,
        x_h=channels,
        x_w=1,
        y_image=pixels * pixel,
        y_h=pixel,
        repeat=1,
        blocks=1,
        starts=b.table([0, 1]),
        rows_d=1,
        rows_h=pixels,
        h_phases=1,
        band=band,
        zeros=int(fills_vectors(line, 1, b.lanes)),
        w_phases=1,
        w_lines=channels,
        map_d=b.table([0]),
        map_h=b.table(range(pixels)),
        map_w=b.table(line.map),
        runs=b.table(line.runs()),
    )
    b.stage("halo_planes", -(-pixels // band), words)
    return x, pixels * pixel, [h * w * pixel, w * pixel, pixel]


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

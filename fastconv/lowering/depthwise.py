"""One input channel a group, with any channel multiplier, plain or transposed."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..problem import Problem
from .dense import add_bias_only, add_halo
from .geometry import (
    Axes,
    Axis,
    AxisSum,
    Image,
    Sums,
    axes_of,
    convolution_axis,
    input_strides,
    output_strides,
    sums_of,
)
from .program import K_BLOCK, WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["lower_depthwise"]

# Two bands lie in L1: one is summed while the next is copied.
BAND_BYTES = 12 << 10
ENOUGH_TASKS = 8
# As in src/columns.h: rows of a tile, taps of a column.
TILE_ROWS = 8
MAX_TAPS = 5
# Vectors of a tile (their logarithm) by its rows, and what stands there for half a vector. There are tiles of half
# a vector where vectors are so wide.
MOST_VECTORS = (0, 3, 2, 1, 1, 0, 0, 0, 0)
HALF, HALVED_BYTES = 4, 64
# Rows of a tile, pixels of a tile, that make it worth while to lie a dilation apart.
MIN_ROWS, MIN_PIXELS = 3, 2
GFLOPS = 20.0


def lower_depthwise(problem: Problem, engines: Engines) -> Any:
    """Return a program for a problem with one input channel per group."""
    b = Builder(problem, engines)
    axes = axes_of(problem)
    if any(axis.has_gaps for axis in axes):
        add_bias_only(b)
    if not sums_of(axes):
        return b.finish(0, "none: no tap meets the input")
    if problem.layout == "NHWC":
        _lower_pixels(b, axes)
        tile = f"{TILE_ROWS} pixels x {b.lanes} channels"
    else:
        _lower_planes(b, axes)
        tile = f"{TILE_ROWS} rows x {b.lanes} pixels"
    return b.finish(problem.flops / problem.batch / GFLOPS if problem.batch else 0, tile)


def _lower_planes(b: Builder, axes: Axes) -> None:
    p = b.problem
    d, h, w = axes
    direct = all(axis.is_identity for axis in axes)
    band = _band(b, axes, direct)
    band_lines = min(band + h.reach, h.lines)
    # In scratch, rows begin on a vector.
    image = Image.of(axes, 1, h.lines if direct else band_lines, 1 if direct else b.lanes)
    y_image, y_channel, y_d, y_h, y_w = output_strides(p)
    source = input_strides(p)
    bands = -(-max(s.count for s in h.sums) // band)
    # Phases of the output along W are merged: each row of them is written whole, from results that lie apart.
    merged = len(w.sums) > 1 and [s.start for s in w.sums] == list(range(w.sums[0].step))
    merged_row = round_up(w.sums[0].count, b.lanes)
    records = []
    for s in sums_of(axes):
        columns = Columns(b, axes, s, image, band, whole=bands == 1)
        step = columns.row_step
        x, y = (image.h, 1), (merged_row, 1) if merged else (s[1].step * y_h, s[2].step * y_w)
        lists = [list(_tiles(b, rows, s[2].count, columns, x, y)) for rows in (min(band, s[1].count), s[1].count - (bands - 1) * band)]
        end = dict.fromkeys(WORDS["plane_tile"], 0)
        records.append(
            {
                "x_row": step * image.h,
                "w_step": columns.w_step,
                "tiles": b.records("plane_tile", [*lists[0], end]),
                "last_tiles": b.records("plane_tile", [*lists[1], end]),
                "x_d": image.d,
                "y": s[0].start * y_d + s[1].start * y_h + (0 if merged else s[2].start * y_w),
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_w": y[1],
                "y_row": step * y[0],
                "n_d": s[0].count,
                "n_h": s[1].count,
            }
        )
    copies = 0
    if not any(axis.has_borders for axis in axes):
        copies = b.table([_copies(b, axes, image, source, i * band, bands) for i in range(bands)])
    runs = w.runs()
    before = -int(runs[0, 0]) % b.lanes  # so that the first run begins on a vector
    band_size = round_up(image.size + 2 * b.lanes, b.lanes)
    spare = round_up(2 * band_size, b.lanes)
    spare_sum = band * merged_row
    work = b.thread(before + spare + (len(w.sums) * spare_sum + b.lanes if merged else 0))
    if not direct:
        b.copies.append(f"haloed rows: {2 * image.size * b.itemsize / 1e3:.3g} kB a thread")
    words: Words = dict(
        x=b.operand("input"),
        x_end=Operand("input_end"),
        w=Operand("weight"),
        b=b.operand("bias"),
        y=b.operand("output"),
        work=Operand(work.name, 0, before * b.itemsize),
        work_stride=Operand("thread_stride"),
        images=Operand("images"),
        x_image=source[0],
        x_channel=source[1],
        x_d=source[2],
        x_h=source[3],
        x_w=source[4],
        y_image=y_image,
        y_channel=y_channel,
        channels=p.in_channels,
        multiplier=p.out_channels // p.in_channels,
        bands=bands,
        band=band,
        lines_d=d.map.size,
        h_phases=h.phases,
        h_lines=h.lines,
        band_lines=band_lines,
        w_phases=w.phases,
        w_lines=w.lines,
        map_d=b.table(d.map),
        map_h=b.table(h.map),
        map_w=b.table(w.map),
        runs=b.table(runs),
        copies=copies,
        line_d=image.d,
        line_phase=image.phase,
        line_h=image.h,
        band_size=band_size,
        sums=b.records("plane_sum", records),
        sum_count=len(records),
        kernel_taps=p.taps,
        activation=b.engines.activation(p),
        direct=int(direct),
        w_sums=len(w.sums) if merged else 1,
        spare=spare,
        spare_sum=spare_sum,
        out_w=w.out,
    )
    b.stage("depthwise_planes", p.in_channels * bands, words)


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
        self.row_step, self.tap_step = _row_step(h, min(band, h.count), MIN_ROWS)
        self.w_step = self.tap_step * axes[2].kernel
        self._known: dict[bytes, dict[str, int]] = {}

    def of_rows(self, rows: Sequence[int]) -> dict[str, int]:
        """Return the words `groups` and `blocks` for a tile of these rows of a band.

        Where a band is the whole plane, taps are left out that meet nothing but padding in all of the rows.
        """
        h = self.sums[1]
        used = np.ones(len(h.taps), bool)
        if self.whole:
            lines = np.asarray(rows)[:, None] + h.offsets
            used = (self.axes[1].map[h.phases, lines] >= 0).any(0)
        key = used.tobytes()
        if key not in self._known:
            groups, blocks = self._groups(np.flatnonzero(used))
            self._known[key] = {"groups": self.b.table(groups), "blocks": blocks}
        return self._known[key]

    def _groups(self, used: np.ndarray) -> tuple[list[int], int]:
        d, h, w = self.sums
        along_d = (d.phases * self.image.lines_d + d.offsets) * self.image.d
        along_w = w.phases * self.image.phase + w.offsets
        kh, kw = self.axes[1].kernel, self.axes[2].kernel
        runs = _runs(h, used, self.row_step, self.tap_step)
        groups: list[int] = []
        blocks, in_block = 1, 0
        for taps in sorted({len(run) for run in runs}):
            starts = [run[0] for run in runs if len(run) == taps]
            along_h = (h.phases[starts] * self.image.lines_h + h.offsets[starts]) * self.image.h
            x = (along_d[:, None, None] + along_h[:, None] + along_w).ravel()
            kernel = ((d.taps[:, None, None] * kh + h.taps[starts][:, None]) * kw + w.taps).ravel()
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


def _row_step(h: AxisSum, rows: int, least: int) -> tuple[int, int]:
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


def _runs(h: AxisSum, used: np.ndarray, row_step: int, tap_step: int) -> list[list[int]]:
    """Return the taps in runs that lie row_step lines and tap_step kernel rows apart."""
    runs: list[list[int]] = []
    for i in used[np.lexsort((h.offsets[used], h.phases[used]))].tolist():
        last = runs[-1][-1] if runs else i
        if (
            h.phases[i] == h.phases[last]
            and (h.offsets[i] - h.offsets[last], h.taps[i] - h.taps[last]) == (row_step, tap_step)
        ):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [
        piece.tolist() for run in runs for piece in np.array_split(run, -(-len(run) // MAX_TAPS))
    ]


def _tiles(
    b: Builder, rows: int, width: int, columns: Columns, x: tuple[int, int], y: tuple[int, int]
) -> Iterator[dict[str, int]]:
    """Cover rows x width pixels with tiles; x and y are the strides of (row, pixel)."""
    step, halves = columns.row_step, b.engines.vec_bytes == HALVED_BYTES
    for some, first in _tile_rows(rows, step):
        taps = columns.of_rows(range(first, first + some * step, step))
        for size, at, part in _pieces(width, b.lanes, MOST_VECTORS[some], halves):
            place = {"x": first * x[0] + at * x[1], "y": first * y[0] + at * y[1]}
            yield {"rows": some, "size": size, "part": part} | place | taps


def _tile_rows(rows: int, step: int) -> Iterator[tuple[int, int]]:
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


def _copies(
    b: Builder, axes: Axes, image: Image, source: tuple[int, ...], first_row: int, bands: int
) -> int:
    """Keep the list of copies that make one band of the haloed image, and return its address."""
    d, h, w = axes
    lines = min(image.lines_h, h.lines - first_row)
    pieces = list(_row_pieces(w, image, source[4]))
    records = []
    for line_d, from_d in enumerate(d.map.ravel().tolist()):
        for p, (run_begin, run_end, first, step) in enumerate(h.runs().tolist()):
            if from_d < 0:
                continue
            begin, end = (min(max(edge - first_row, 0), lines) for edge in (run_begin, run_end))
            at = line_d * image.d + p * image.lines_h * image.h
            source_row = first + (first_row + begin - run_begin) * step
            row = from_d * source[2] + source_row * source[3]
            spans = [(begin, end, 1)]
            if bands > 1:  # what another band has written is cleared
                spans += [(0, begin, 0), (end, lines, 0)]
            for top, bottom, copied in spans:
                for piece in pieces if bottom > top else ():
                    to = at + top * image.h
                    places = {"to": to + piece["to"], "odd": to + piece["odd"], "at": row + piece["at"]}
                    rows = {"rows": bottom - top, "to_row": image.h, "at_row": step * source[3]}
                    if copied:
                        records.append(piece | places | rows)
                        continue
                    pair = piece["step"] == -2
                    cleared = {"step": 0, "n": -(-piece["n"] // (1 + pair))}
                    records += [piece | rows | cleared | {"to": places[k]} for k in ("to", "odd")[: 1 + pair]]
    return b.records("copy", [*records, dict.fromkeys(WORDS["copy"], 0)])


def _row_pieces(w: Axis, image: Image, x_w: int) -> Iterator[dict[str, int]]:
    """What is copied of a row: the run of each phase, or those of a pair of phases that alternate in one piece."""
    runs = w.runs().tolist()
    at = [q * image.phase + run[0] for q, run in enumerate(runs)]
    counts = [run[1] - run[0] for run in runs]
    if len(runs) == 2 and x_w == 1 and [run[3] for run in runs] == [2, 2] and abs(runs[0][2] - runs[1][2]) == 1:
        even = int(runs[1][2] < runs[0][2])
        odd = 1 - even
        if counts[even] - counts[odd] in (0, 1):
            yield {"n": sum(counts), "step": -2, "to": at[even], "odd": at[odd], "at": runs[even][2]}
            return
    for q, run in enumerate(runs):
        if counts[q]:
            yield {"n": counts[q], "step": run[3] * x_w, "to": at[q], "odd": 0, "at": run[2] * x_w}


def _band(b: Builder, axes: Axes, direct: bool) -> int:
    """Output rows of a task: all, unless two bands would leave L1 or there would be too few tasks."""
    d, h, w = axes
    rows = max(s.count for s in h.sums)
    if direct and d.lines > 1:
        return rows  # the copy at the end of the array has the strides of the whole image
    line = d.map.size * w.phases * round_up(w.lines, b.lanes) * h.phases * b.itemsize
    most = max(BAND_BYTES // line - h.reach, TILE_ROWS, 2 * h.reach)
    bands = max(-(-rows // most), min(ENOUGH_TASKS // b.problem.in_channels, rows // (8 + 4 * h.reach)), 1)
    # Whole tiles, where that costs no further band.
    band = -(-rows // bands)
    return min(round_up(band, TILE_ROWS), rows)


def _lower_pixels(b: Builder, axes: Axes) -> None:
    p = b.problem
    channels = p.out_channels
    x_image, _, *strides = input_strides(p)
    x = b.operand("input")
    if channels != p.in_channels:
        # Each channel is repeated for every output it feeds; then output and input channels agree.
        x, x_image, strides = _repeat(b)
    w_stride = round_up(channels, b.lanes)
    one = {"source": np.arange(p.taps), "x": 0, "w": 0, "w_group": 0, "w_block": 0}
    packed = b.pack([one], p.taps * w_stride, w_stride, 1, rows=channels, x_row=p.taps)
    y_image, _, y_d, y_h, y_w = output_strides(p)
    records, tasks, row_words, list_words = [], 0, 0, 0
    for s in sums_of(axes):
        sources = [axis.sources(one) for axis, one in zip(axes, s, strict=True)]
        maps = [np.where(at >= 0, at * stride, -1) for at, stride in zip(sources, strides, strict=True)]
        step, tap_step = _row_step(s[2], s[2].count, MIN_PIXELS)
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
        y=b.operand("output"),
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


def _pixel_tiles(
    b: Builder, sums: Sums, offsets: np.ndarray, w_stride: int, steps: tuple[int, int], y_w: int
) -> tuple[list[dict[str, int]], int]:
    """Return tiles that cover a row of pixels, and the words that the lists of their addresses take.

    `offsets` holds where each (tap, output) reads, -1 in the padding; a tile leaves out what lies only there.
    """
    w, kernel_rows = sums[2], len(sums[0].taps) * len(sums[1].taps)
    one_block = kernel_rows * len(w.taps) <= K_BLOCK
    places = np.where(offsets < 0, -1, offsets * b.itemsize)
    runs = _runs(w, np.arange(len(w.taps)), *steps)
    tiles, used = [], 0
    for some, first in _tile_rows(w.count, steps[0]):
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

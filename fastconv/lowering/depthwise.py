"""One input channel a group, with any channel multiplier, plain or transposed; channels first in this file."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..problem import Problem
from .columns import STRIDED, STRIDED_BYTES, TILE_ROWS, AllReads, Columns, PlaneRows, Reads
from .dense import add_bias_only, unaliased
from .geometry import Axes, Axis, Image, Sums, axes_of, input_strides, output_strides, sums_of
from .pixels import lower_pixels, pays_to_turn
from .program import BEYOND_CACHES, ENOUGH_TASKS, WORDS, Builder, Engines, Operand, Words, round_up

__all__ = ["lower_depthwise", "lower_planes"]

# Two bands lie in L1 beside what is read and written: one is summed while the next is copied. From 6 to 16 kB the
# time is the same; at 8 kB a 7x7 layer has 1.3 misses in L1 a line of input and output, at 16 kB 1.8.
BAND_BYTES = 8 << 10
# Vectors so short have no masks.
UNMASKED_BYTES = 16
# Where elements go that take turns, in a record of copies.
TURNS = ("to", "odd", "third")
# Rough speed, for the decision how many threads to use.
GFLOPS, GBYTES = 40.0, 10.0


def lower_depthwise(problem: Problem, engines: Engines) -> Any:
    """Return a program for a problem with one input channel per group."""
    b = Builder(problem, engines)
    axes = axes_of(problem)
    if any(axis.has_gaps for axis in axes):
        add_bias_only(b)
    if not sums_of(axes):
        return b.finish(0, "none: no tap meets the input")
    if problem.layout == "NHWC" or pays_to_turn(b, axes):
        lower_pixels(b, axes)
        tile = f"{TILE_ROWS} pixels x {b.lanes} channels"
    else:
        lower_planes(b, axes)
        tile = f"{TILE_ROWS} rows x {b.lanes} pixels"
    work = problem.flops / GFLOPS + problem.bytes / GBYTES
    return b.finish(work / problem.batch if problem.batch else 0, tile)


def lower_planes(b: Builder, axes: Axes, most_rows: int = 0) -> tuple[int, Image]:
    """Add the stage for planes; return the rows of a band and how the output of a band lies.

    With `most_rows` a task belongs to a band of at most so many rows, all channels of which come one after the
    other and leave side by side; else the output lies as the user has it.
    """
    p = b.problem
    in_place = _reads_in_place(b, axes)
    if in_place:
        axes = (
            axes[0].split(),
            *axes[1:],
        )  # planes of the padding are left out; rows and pixels of it are masked
    d, h, w = axes
    band = _band(b, axes, in_place)
    if most_rows:
        band = min(band, most_rows)
    band_lines = min(band + h.reach, h.lines)
    # In scratch, rows begin on a vector.
    image = Image.of(axes, 1, band_lines, b.lanes)
    y_image, y_channel, y_d, y_h, y_w = output_strides(p)
    if most_rows:
        y_image, y_d = 0, band * y_h
        y_channel = unaliased(d.out * y_d, b.itemsize)
    source = input_strides(p)
    bands = -(-max(s.count for s in h.sums) // band)
    # Phases of the output along W: rows of two leave whole, those of more lie apart until all of them are there.
    whole = [s.start for s in w.sums] == list(range(w.sums[0].step))
    paired, merged = whole and len(w.sums) == 2, whole and len(w.sums) > 2
    merged_row = round_up(w.sums[0].count, b.lanes)
    records, x_band = [], 0
    for phases in _phases(axes) if paired else ([s] for s in sums_of(axes)):
        s = phases[0]
        reads = [_reads(b, axes, one, None if in_place else image) for one in phases]
        columns = Columns(b, axes, phases, reads, band, in_place)
        y = (merged_row, 1) if merged else (s[1].step * y_h, 1 if paired else s[2].step * y_w)
        rows = PlaneRows(b, columns, y)
        lists = [rows.of_band(i * band, min(band, s[1].count - i * band)) for i in range(bands)]
        x_band = band * reads[0][1].step
        ahead = _ahead(b, columns, reads[0][1], source[3]) if in_place else (0, 0, 0)
        records.append(
            {
                "x_row": columns.x_row,
                "w_step": columns.w_step,
                "rows": b.table(lists),
                "x_d": reads[0][0].step,
                "y": s[0].start * y_d + s[1].start * y_h + (0 if merged else s[2].start * y_w),
                "y_d": s[0].step * y_d,
                "y_h": s[1].step * y_h,
                "y_w": y[1],
                "y_row": columns.row_step * y[0],
                "n_d": s[0].count,
                "n_h": s[1].count,
            }
            | dict(zip(("ahead", "ahead_lines", "ahead_line"), ahead, strict=True))
        )
    copies = 0
    if not in_place and not any(axis.has_borders for axis in axes):
        copies = b.table([_copies(b, axes, image, source, i * band, bands) for i in range(bands)])
    runs = w.runs()
    before = -int(runs[0, 0]) % b.lanes  # so that the first run begins on a vector
    band_size = 0 if in_place else round_up(image.size + 2 * b.lanes, b.lanes)
    spare = round_up(2 * band_size, b.lanes)
    spare_sum = band * merged_row
    work = b.thread(before + spare + (len(w.sums) * spare_sum + b.lanes if merged else 0))
    if not in_place:
        b.copies.append(f"haloed rows: {2 * image.size * b.itemsize / 1e3:.3g} kB a thread")
    words: Words = dict(
        x=b.operand("input"),
        w=b.operand("weight"),
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
        by_bands=int(most_rows > 0),
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
        in_place=int(in_place),
        x_band=x_band,
        w_sums=len(w.sums) if merged else 1,
        spare=spare,
        spare_sum=spare_sum,
        out_w=w.out,
    )
    b.stage("depthwise_planes", p.in_channels * bands, words)
    return band, Image(y_d, 0, y_h, y_w, y_channel, d.out, band)


def _ahead(b: Builder, columns: Columns, rows: Reads, line: int) -> tuple[int, int, int]:
    """Return where the lines are that a row of tiles is the first to read, from those of the one before; zeros if all is near.

    Of an image in cache neither these nor the next plane gain from being fetched: 1.1 to 1.2 of the time, dilated or not.
    """
    if b.problem.bytes <= BEYOND_CACHES:
        return 0, 0, 0
    step = columns.row_step * rows.step
    between = line if columns.row_step == 1 else step
    return (TILE_ROWS - 1) * step + int(rows.at.max()) + between, step // between, between


def _phases(axes: Axes) -> Iterator[list[Sums]]:
    """Yield the sums that share output rows."""
    for d in axes[0].sums:
        for h in axes[1].sums:
            yield [(d, h, w) for w in axes[2].sums]


def _reads_in_place(b: Builder, axes: Axes) -> bool:
    """Whether the image is read as it lies: there are tiles for its stride, and masks for zeros about it, or no need of any.

    Single rows are not, unless they have no padding: a vector serves but one product there, and those that lie across two
    cache lines take twice as long (128 x 2000, 9 taps 16 apart: 112 and not 92 us).
    """
    p = b.problem
    strides = p.stride[-2:] if p.variant == "conv" else (1,)
    tiles = strides[-1] == 1 or (strides == (STRIDED, STRIDED) and b.engines.vec_bytes == STRIDED_BYTES)
    plain = all(axis.is_identity for axis in axes)
    if b.engines.vec_bytes > UNMASKED_BYTES:
        masks = plain or axes[1].out > 1
    else:
        masks = plain and p.variant == "conv" and axes[2].out >= b.lanes
    # By its map alone a border may look like a part of the image: reflected, every third row of 0 1 2 is 0 1.
    zeros = p.padding_mode == "zeros" or not any(any(pair) for pair in p.padding)
    # Planes of outputs that no tap reaches are nobody's once the axis is split.
    return p.layout == "NCHW" and tiles and masks and zeros and axes[0].split().has_gaps == axes[0].has_gaps


def _reads(b: Builder, axes: Axes, sums: Sums, image: Image | None) -> AllReads:
    """Return where the taps of the three axes read: in an image in line space, or (None) in the input."""
    d, h, w = sums
    if image is not None:
        at_d = (d.phases * image.lines_d + d.offsets) * image.d
        at_h = (h.offsets * axes[1].phases + h.phases) * image.h
        at_w = w.phases * image.phase + w.offsets
        return (
            Reads.of_lines(axes[0], d, at_d, image.d),
            Reads.of_lines(axes[1], h, at_h, axes[1].phases * image.h),
            Reads.of_lines(axes[2], w, at_w, 1),
        )
    p = b.problem
    strides = (1,) * (3 - p.ndim) + tuple(p.stride if p.variant == "conv" else (1,) * p.ndim)
    elements = input_strides(p)[2:]
    return (
        Reads.in_place(axes[0], d, strides[0], elements[0]),
        Reads.in_place(axes[1], h, strides[1], elements[1]),
        Reads.in_place(axes[2], w, strides[2], elements[2]),
    )


def _copies(b: Builder, axes: Axes, image: Image, source: tuple[int, ...], first_row: int, bands: int) -> int:
    """Keep the list of copies that make one band of the haloed image, and return its address.

    Rows of the image's phases along H take turns, so that the source is read from its first row to its last: a phase
    at a time, as along W, kept the hardware from fetching ahead (96 x 112x112, stride 2: 230 us).
    """
    d, h, w = axes
    lines = min(image.lines_h, h.lines - first_row)
    rows_from = h.map[:, first_row : first_row + lines].T.ravel()
    pieces = list(_row_pieces(w, image, source[4]))
    records = []
    for line_d, from_d in enumerate(d.map.ravel().tolist()):
        if from_d < 0:
            continue
        for top, bottom, step in _stretches(rows_from):
            first = int(rows_from[top])
            if first < 0 and bands == 1:
                continue
            row = from_d * source[2] + first * source[3]
            for piece in pieces:
                to = line_d * image.d + top * image.h
                places = {"at": row + piece["at"]} | {name: to + piece[name] for name in TURNS}
                rows = {"rows": bottom - top, "to_row": image.h, "at_row": step * source[3]}
                if first >= 0:
                    records.append(piece | places | rows)
                    continue
                # What another band has written is cleared.
                turns = max(-piece["step"], 1)
                cleared = places | rows | {"step": 0, "n": -(-piece["n"] // turns)}
                records += [cleared | {"to": places[name]} for name in TURNS[:turns]]
    return b.records("copy", [*records, dict.fromkeys(WORDS["copy"], 0)])


def _stretches(sources: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Cut rows into (begin, end, step): those in the padding (-1), and those that lie in equal steps in the source."""
    begin = 0
    while begin < len(sources):
        steps = np.diff(sources[begin:])
        step = int(steps[0]) if len(steps) and min(sources[begin : begin + 2]) >= 0 else 0
        same = (steps == step) & ((sources[begin + 1 :] < 0) == (sources[begin] < 0))
        end = begin + 1 + (int(np.argmin(same)) if not same.all() else len(same))
        yield begin, end, step
        begin = end


def _row_pieces(w: Axis, image: Image, x_w: int) -> Iterator[dict[str, int]]:
    """What is copied of a row: the run of each phase, or those of two or three phases that take turns in one piece."""
    runs = w.runs().tolist()
    at = [q * image.phase + run[0] for q, run in enumerate(runs)]
    firsts, phases = [run[2] for run in runs], len(runs)
    order = sorted(range(phases), key=firsts.__getitem__)
    total = sum(run[1] - run[0] for run in runs)
    # The k-th phase of those in turn has each element of the source that is k behind a multiple of their number.
    in_turn = phases in (2, 3) and x_w == 1 and all(
        runs[q][3] == phases and firsts[q] == firsts[order[0]] + k and runs[q][1] - runs[q][0] == -(-(total - k) // phases)
        for k, q in enumerate(order)
    )  # fmt: skip
    if in_turn:
        places = dict(zip(TURNS, [at[q] for q in order] + [0] * (3 - phases), strict=True))
        yield {"n": total, "step": -phases, "at": firsts[order[0]]} | places
        return
    for q, run in enumerate(runs):
        if run[1] > run[0]:
            count = {"n": run[1] - run[0], "step": run[3] * x_w, "at": run[2] * x_w}
            yield count | dict(zip(TURNS, (at[q], 0, 0), strict=True))


def _band(b: Builder, axes: Axes, in_place: bool) -> int:
    """Output rows of a task: all, unless two bands would leave L1 or there would be too few tasks."""
    d, h, w = axes
    rows = max(s.count for s in h.sums)
    line = d.map.size * w.phases * round_up(w.lines, b.lanes) * h.phases * b.itemsize
    most = rows if in_place else max(BAND_BYTES // line - h.reach, TILE_ROWS, 2 * h.reach)
    bands = max(-(-rows // most), min(ENOUGH_TASKS // b.problem.in_channels, rows // (8 + 4 * h.reach)), 1)
    # Whole tiles, where that costs no further band.
    band = -(-rows // bands)
    return min(round_up(band, TILE_ROWS), rows)

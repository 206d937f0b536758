"""One axis at a time: padding, stride, dilation and phases become index maps and tap tables.

Everything is a stride-1 sum over taps in *line space*. The padded coordinate ``j`` of an axis is split into a
phase ``j % stride`` and a line ``j // stride``; an image copied in that order lets output ``p`` and tap ``t``
read line ``p + offset[t]`` of phase ``phase[t]``. A transposed convolution is a set of such sums, one for
each output phase, over one image without phases.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..problem import Problem

__all__ = [
    "Axes",
    "Axis",
    "AxisSum",
    "Image",
    "Sums",
    "axes_of",
    "input_strides",
    "kernel_index",
    "output_strides",
    "sums_of",
]


@dataclass(frozen=True)
class AxisSum:
    """The outputs ``start + step*q``, ``q < count``, of one axis, and the taps that reach them.

    Tap ``taps[i]`` of the kernel reads line ``q + offsets[i]`` of phase ``phases[i]``.
    """

    taps: np.ndarray
    phases: np.ndarray
    offsets: np.ndarray
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class Axis:
    """One axis of the haloed image: ``map[phase, line]`` is a source index, or -1 for zero.

    Outputs that no tap reaches (as where the stride of a transposed convolution exceeds its kernel) belong to
    none of the sums.
    """

    size: int
    kernel: int
    out: int
    map: np.ndarray
    sums: tuple[AxisSum, ...]

    @property
    def phases(self) -> int:
        return self.map.shape[0]

    @property
    def lines(self) -> int:
        return self.map.shape[1]

    @property
    def reach(self) -> int:
        """Lines read beyond the one an output has of its own."""
        return max((int(s.offsets.max()) for s in self.sums if len(s.offsets)), default=0)

    @property
    def has_gaps(self) -> bool:
        """Whether some outputs belong to no sum."""
        return sum(s.count for s in self.sums) < self.out

    @property
    def is_identity(self) -> bool:
        """Whether the lines are the source itself."""
        return (
            self.phases == 1 and self.lines == self.size and np.array_equal(self.map[0], np.arange(self.size))
        )

    @property
    def has_borders(self) -> bool:
        """Whether lines outside the runs hold something else than zeros."""
        runs = self.runs()
        return any(
            (np.delete(line, np.s_[run[0] : run[1]]) >= 0).any()
            for line, run in zip(self.map, runs, strict=True)
        )

    def runs(self) -> np.ndarray:
        """For each phase (begin, end, first, step): lines begin..end read the source in equal steps."""
        found = np.zeros((self.phases, 4), np.int64)
        for p, line in enumerate(self.map):
            inside = np.flatnonzero(line >= 0)
            if len(inside) == 0:
                continue
            # The longest stretch of equal positive steps; reflected and repeated borders stay outside it.
            steps = np.diff(line)
            rising = (line[:-1] >= 0) & (steps > 0)
            found_steps, counts = np.unique(steps[rising], return_counts=True)
            step = int(found_steps[counts.argmax()]) if len(counts) else 1
            good = np.concatenate(([False], rising & (steps == step), [False]))
            edges = np.flatnonzero(np.diff(good.astype(np.int8)))
            if len(edges) == 0:
                found[p] = inside[0], inside[0] + 1, line[inside[0]], 1
                continue
            longest = int((edges[1::2] - edges[::2]).argmax())
            begin, end = int(edges[2 * longest]), int(edges[2 * longest + 1]) + 1
            found[p] = begin, end, line[begin], step
        return found

    def useful(self) -> float:
        """Return the share of (tap, output) pairs whose tap meets the image and not its padding."""
        pairs = [self.sources(s) >= 0 for s in self.sums]
        return sum(int(p.sum()) for p in pairs) / max(sum(p.size for p in pairs), 1)

    def split(self) -> "Axis":
        """Return the axis with a sum for each stretch of outputs that the same taps reach."""
        found = []
        for s in self.sums:
            inside = self.sources(s) >= 0
            edges = np.flatnonzero((inside[:, 1:] != inside[:, :-1]).any(axis=0)) + 1
            bounds = [0, *edges.tolist(), s.count]
            for begin, end in pairwise(bounds):
                taps = inside[:, begin]
                if taps.any():
                    start = s.start + s.step * begin
                    found.append(
                        AxisSum(
                            s.taps[taps], s.phases[taps], s.offsets[taps] + begin, start, s.step, end - begin
                        )
                    )
        return replace(self, sums=tuple(found))

    def sources(self, axis_sum: AxisSum) -> np.ndarray:
        """Source index of each (tap, output q) of a sum, -1 in the padding."""
        return self.map[axis_sum.phases[:, None], axis_sum.offsets[:, None] + np.arange(axis_sum.count)]


Axes = tuple[Axis, Axis, Axis]
Sums = tuple[AxisSum, AxisSum, AxisSum]


def padded_source(position: np.ndarray, size: int, after: int, mode: str) -> np.ndarray:
    """Source index of positions that may lie in the padding; -1 means zero (or never read)."""
    if mode == "zeros":
        source = np.where((position >= 0) & (position < size), position, -1)
    elif mode == "replicate":
        source = np.clip(position, 0, size - 1)
    elif mode == "circular":
        source = position % size
    elif mode == "reflect":
        period = max(2 * (size - 1), 1)
        source = np.abs((position + size - 1) % period - (size - 1))
    else:  # symmetric: the border pixel is repeated
        folded = position % (2 * size)
        source = np.minimum(folded, 2 * size - 1 - folded)
    return np.where(position < size + after, source, -1)


def convolution_axis(
    size: int, kernel: int, out: int, stride: int, pad: tuple[int, int], dilation: int, mode: str
) -> Axis:
    before, after = pad
    taps = np.arange(kernel)
    if mode == "zeros":
        # A tap that meets nothing but padding is left out.
        first = np.maximum(-((taps * dilation - before) // stride), 0)  # output past the left border
        taps = taps[(first < out) & (first * stride + taps * dilation - before < size)]
    shift = taps * dilation
    used = np.unique(shift % stride) if len(taps) else np.zeros(1, np.int64)
    low = int((shift // stride).min()) if len(taps) else 0
    offsets = shift // stride - low
    lines = out + (int(offsets.max()) if len(taps) else 0)
    position = (np.arange(lines) + low) * stride + used[:, None] - before
    one = AxisSum(taps, np.searchsorted(used, shift % stride), offsets, 0, 1, out)
    sums = (one,) if len(taps) else ()
    return Axis(size, kernel, out, padded_source(position, size, after, mode), sums)


def transposed_axis(
    size: int, kernel: int, out: int, stride: int, pad: tuple[int, int], dilation: int
) -> Axis:
    # Output o = i*stride + t*dilation - before, so tap t reaches the outputs of one phase r, and reads there
    # input q + (r + before - t*dilation) / stride for o = r + stride*q.
    before = pad[0]
    taps = np.arange(kernel)
    found = []
    for r in np.unique((taps * dilation - before) % stride).tolist():
        count = -(-(out - r) // stride)
        mine = taps[(r + before - taps * dilation) % stride == 0]
        offsets = (r + before - mine * dilation) // stride
        useful = (offsets < size) & (offsets + count > 0)
        if count > 0 and useful.any():
            found.append((r, count, mine[useful], offsets[useful]))
    low = min((int(offsets.min()) for *_, offsets in found), default=0)
    lines = max((count + int(offsets.max()) - low for _, count, _, offsets in found), default=1)
    position = np.arange(lines) + low
    sums = tuple(
        AxisSum(mine, np.zeros(len(mine), np.int64), offsets - low, r, stride, count)
        for r, count, mine, offsets in found
    )
    return Axis(size, kernel, out, np.where((position >= 0) & (position < size), position, -1)[None], sums)


def axes_of(problem: Problem) -> Axes:
    """Return the axes D, H, W of a problem; those it lacks have size 1 and one tap."""
    found = []
    for i in range(problem.ndim):
        size, kernel, out = problem.input_size[i], problem.kernel_size[i], problem.output_size[i]
        stride, pad, dilation = problem.stride[i], problem.padding[i], problem.dilation[i]
        if problem.variant == "conv_transpose":
            found.append(transposed_axis(size, kernel, out, stride, pad, dilation))
        else:
            found.append(convolution_axis(size, kernel, out, stride, pad, dilation, problem.padding_mode))
    unit = convolution_axis(1, 1, 1, 1, (0, 0), 1, "zeros")
    d, h, w = [unit] * (3 - problem.ndim) + found
    return d, h, w


def sums_of(axes: Axes) -> list[Sums]:
    """Return every combination of the sums of three axes."""
    return [(d, h, w) for d in axes[0].sums for h in axes[1].sums for w in axes[2].sums]


@dataclass(frozen=True)
class Image:
    """Where a line of the haloed image lies, in elements.

    The order is ``[d phase][d line][w phase][h phase][h line][w line]``. W phases lie outside H, so that a
    row and the next one are one line length apart, whatever the stride.
    """

    d: int
    phase: int
    h: int
    w: int
    size: int
    lines_d: int
    lines_h: int

    @classmethod
    def of(cls, axes: Axes, pixel: int, lines_h: int | None = None, align: int = 1) -> "Image":
        """Lay out the lines of three axes, `pixel` elements each; `lines_h` if only a band is kept.

        Rows are `align` elements apart, or a multiple of that, and may be written up to the next multiple.
        """
        d, h, w = axes
        lines_h = h.lines if lines_h is None else lines_h
        row = -(-w.lines * pixel // align) * align
        phase = h.phases * lines_h * row + (align if align > 1 else 0)
        return cls(
            w.phases * phase, phase, row, pixel, d.phases * d.lines * w.phases * phase, d.lines, lines_h
        )

    def tap_offsets(self, sums: Sums) -> np.ndarray:
        """Offset of every tap of a sum (D, H, W in the order of the kernel), flat."""
        d, h, w = sums
        along_d = (d.phases * self.lines_d + d.offsets) * self.d
        along_h = (h.phases * self.lines_h + h.offsets) * self.h
        along_w = w.phases * self.phase + w.offsets * self.w
        return (along_d[:, None, None] + along_h[:, None] + along_w).ravel().astype(np.int64)


def kernel_index(axes: Axes, sums: Sums) -> np.ndarray:
    """Flat kernel position of every tap of a sum, in the order of ``Image.tap_offsets``."""
    d, h, w = sums
    kh, kw = axes[1].kernel, axes[2].kernel
    return ((d.taps[:, None, None] * kh + h.taps[:, None]) * kw + w.taps).ravel().astype(np.int64)


def output_strides(problem: Problem, layout: str | None = None) -> tuple[int, int, int, int, int]:
    """Return the strides (image, channel, d, h, w) of the output, in elements, as they are or in another layout."""
    return _strides(layout or problem.layout, problem.out_channels, problem.output_size)


def input_strides(problem: Problem, layout: str | None = None) -> tuple[int, int, int, int, int]:
    """Return the strides (image, channel, d, h, w) of the input, in elements, as they are or in another layout."""
    return _strides(layout or problem.layout, problem.in_channels, problem.input_size)


def _strides(layout: str, channels: int, size: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    d, h, w = (1,) * (3 - len(size)) + size
    pixel, channel = (1, d * h * w) if layout == "NCHW" else (channels, 1)
    return channels * d * h * w, channel, h * w * pixel, w * pixel, pixel

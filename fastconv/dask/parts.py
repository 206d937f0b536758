"""One axis of a chunked convolution: which outputs a chunk has, and which inputs they depend on."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..problem import Problem

__all__ = ["Part", "parts_of"]


@dataclass(frozen=True)
class Part:
    """What one chunk of the result needs along one axis.

    Attributes
    ----------
    first, last : int
        Its outputs, the last one excluded.
    lo, hi : int
        The inputs that they depend on, the last one excluded.
    padding : (int, int)
        Padding of the chunk's own convolution.
    output_padding : int
        Output padding of the chunk's own convolution.
    margin : int
        Outputs computed at each end beyond those of the chunk, whose inputs displacements may reach.
    """

    first: int
    last: int
    lo: int
    hi: int
    padding: tuple[int, int]
    output_padding: int = 0
    margin: int = 0


def parts_of(problem: Problem, axis: int, chunks: Sequence[int], reach: int = 0) -> list[Part]:
    """Return the parts of an axis whose input has these chunks.

    Parameters
    ----------
    problem : Problem
        Of the whole image, padded with zeros.
    axis : int
    chunks : sequence of int
        Sizes of the input's chunks.
    reach : int, optional
        Upper limit of displacements.

    Examples
    --------
    >>> from fastconv import Problem
    >>> from fastconv.dask.parts import parts_of
    >>> halves = Problem.create("conv1d", (1, 1, 8), (1, 1, 3), padding=1, stride=2)
    >>> for part in parts_of(halves, 0, (4, 4)):
    ...     print(part.first, part.last, "from", part.lo, part.hi, part.padding)
    0 2 from 0 4 (1, 0)
    2 4 from 3 8 (0, 0)
    """
    out, stride = problem.output_size[axis], problem.stride[axis]
    before = problem.padding[axis][0]
    span = problem.dilation[axis] * (problem.kernel_size[axis] - 1) + 1
    inner = list(accumulate(chunks))[:-1]
    if problem.variant == "conv_transpose":
        starts = [begin * stride - before for begin in inner]
        make = _transposed
    else:  # the output in whose middle the chunk begins
        starts = [-(-(begin + before - (span - 1) // 2) // stride) for begin in inner]
        make = _plain
    borders = sorted({0, out, *(min(max(start, 0), out) for start in starts)})
    return [make(problem, axis, span, first, last, reach) for first, last in pairwise(borders)]


def _plain(problem: Problem, axis: int, span: int, first: int, last: int, reach: int) -> Part:
    stride, size = problem.stride[axis], problem.input_size[axis]
    margin = -(-reach // stride)
    start = (first - margin) * stride - problem.padding[axis][0]
    end = (last + margin - 1) * stride - problem.padding[axis][0] + span
    lo, hi = min(max(start, 0), size), min(max(end, 0), size)
    padding = (end - start, 0) if lo >= hi else (lo - start, end - hi)
    return Part(first, last, lo, max(lo, hi), padding, 0, margin)


def _transposed(problem: Problem, axis: int, span: int, first: int, last: int, reach: int) -> Part:
    stride, size, before = problem.stride[axis], problem.input_size[axis], problem.padding[axis][0]
    # The first input that reaches the first output, or the last one before it where it lies in a gap.
    lo = max(0, min(-(-(first + before - span + 1) // stride), (first + before) // stride))
    hi = min(size, (last - 1 + before) // stride + 1)
    if hi <= lo:  # beyond everything that the input reaches
        return Part(first, last, lo, lo, (0, 0))
    cut = first + before - lo * stride
    beyond = (hi - lo - 1) * stride + span - cut - (last - first)
    return Part(first, last, lo, hi, (cut, max(beyond, 0)), max(-beyond, 0))

"""Which output pixel reads which input pixel at which tap, straight from the definition."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from ..problem import Problem

__all__ = ["Reads", "deformed_reads", "positions", "reads", "source_pixels", "tap_numbers"]


class Reads(NamedTuple):
    """Output pixel ``rows[i]`` reads input pixel ``columns[i]`` with the factor ``shares[i]``; both are flat indices.

    Read as the entries of a matrix, this is what one tap does to the pixels of one channel.
    """

    rows: np.ndarray
    columns: np.ndarray
    shares: np.ndarray


def source_pixels(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Return which pixel of an axis the padded position `at` holds, -1 where it holds zero.

    Examples
    --------
    >>> from fastconv.analysis.geometry import source_pixels
    >>> source_pixels(np.arange(-2, 6), 4, "reflect")
    array([2, 1, 0, 1, 2, 3, 2, 1])
    """
    inside = (at >= 0) & (at < size)
    if mode == "replicate":
        return np.clip(at, 0, size - 1)
    if mode == "circular":
        return at % size
    if mode == "symmetric":
        return np.where(inside, at, np.where(at < 0, -1 - at, 2 * size - 1 - at))
    if mode == "reflect":
        return np.where(inside, at, np.where(at < 0, -at, 2 * size - 2 - at))
    return np.where(inside, at, -1)


def positions(problem: Problem, axis: int) -> np.ndarray:
    """Return, for each pixel walked along an axis and each tap, the position on the other side of the convolution.

    Outputs walk and meet positions of the padded input; in a transposed convolution inputs do, and meet outputs.
    The grid of DCNv3 and DCNv4 is scaled about its middle.
    """
    walked = problem.input_size if problem.transposed else problem.output_size
    taps: np.ndarray = np.arange(problem.kernel_size[axis]) * problem.dilation[axis]
    if problem.offset_scale != 1:
        middle = problem.dilation[axis] * (problem.kernel_size[axis] - 1) // 2
        taps = middle + problem.offset_scale * (taps - middle)
    return np.arange(walked[axis])[:, None] * problem.stride[axis] - problem.padding[axis][0] + taps


def tap_numbers(problem: Problem) -> list[tuple[int, ...]]:
    """Return the taps in their order, without the one in the middle where that is left out."""
    taps = list(np.ndindex(*problem.kernel_size))
    if problem.remove_center:
        del taps[len(taps) // 2]
    return taps


def reads(problem: Problem, tap: Sequence[int]) -> Reads:
    """Return what one tap of a convolution or transposed convolution reads."""
    transposed = problem.transposed
    met_size = problem.output_size if transposed else problem.input_size
    met = np.zeros((), np.int64)
    exists = np.ones((), bool)
    for axis, size in enumerate(met_size):
        along = source_pixels(positions(problem, axis)[:, tap[axis]], size, problem.padding_mode)
        met = met[..., None] * size + along
        exists = exists[..., None] & (along >= 0)
    walked = np.flatnonzero(exists)
    met = met.ravel()[walked]
    rows, columns = (met, walked) if transposed else (walked, met)
    return Reads(rows, columns, np.ones(len(rows)))


def deformed_reads(
    problem: Problem, tap: Sequence[int], offset: np.ndarray, mask: np.ndarray | None
) -> Reads:
    """Return what one displaced tap reads.

    Parameters
    ----------
    problem : Problem
    tap : sequence of int
    offset : numpy.ndarray, shape (ndim, OD, OH, OW)
        Displacements of this tap, in units of the problem's offset scale; of input pixels in a transposed one.
    mask : numpy.ndarray, shape (OD, OH, OW), optional
        Factors of this tap.

    Notes
    -----
    A point that is no number reads NaN; in a transposed convolution it reaches no output.
    """
    met_size = problem.output_size if problem.transposed else problem.input_size
    grid = np.meshgrid(*(positions(problem, a)[:, t] for a, t in enumerate(tap)), indexing="ij")
    points = (np.stack(grid) + problem.offset_scale * offset).reshape(problem.ndim, -1)
    factor = np.ones(points.shape[1]) if mask is None else mask.ravel()
    size = np.array(met_size)[:, None]
    inside = np.all((points > -1) & (points < size), axis=0)
    unknown = np.isnan(points).any(axis=0) & (not problem.transposed)
    low = np.floor(np.where(inside, points, 0)).astype(np.int64)
    found = [
        Reads(np.flatnonzero(unknown), np.zeros(unknown.sum(), np.int64), points[:, unknown].sum(axis=0))
    ]
    for corner in product((0, 1), repeat=problem.ndim):
        pixel = low + np.array(corner)[:, None]
        exists = inside & np.all((pixel >= 0) & (pixel < size), axis=0)
        rows, pixel = np.flatnonzero(exists), pixel[:, exists]
        shares = np.prod(1 - np.abs(points[:, exists] - pixel), axis=0) * factor[exists]
        found.append(Reads(rows, np.ravel_multi_index(tuple(pixel), met_size), shares))
    walked, met, shares = map(np.concatenate, zip(*found, strict=True))
    return Reads(met, walked, shares) if problem.transposed else Reads(walked, met, shares)

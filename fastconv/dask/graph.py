"""The tasks of a chunked convolution: reading what each chunk of the result depends on, and convolving it."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from .. import config, functional
from ..analysis.arguments import problem_of
from ..call import OPTIONS, as_arrays, result_type, stand_in
from ..problem import CONV_TRANSPOSE, DEFORM_CONV
from .parts import Part, parts_of

__all__ = ["convolve"]

IMAGES = ("input", "offset", "mask")
PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric"}
# What a chunk's own convolution shares with the whole; the rest depends on where it lies.
SHARED = ("stride", "dilation", "groups", "layout", "activation", "accuracy", "backend", "num_threads")


@dataclass(frozen=True)
class Whole:
    """What the convolutions of all chunks have in common."""

    op: str
    spatial: tuple[int, ...]  # axes of the arrays
    options: Mapping[str, Any]
    reach: float


def convolve(op: str, arguments: Mapping[str, Any]) -> da.Array:
    """Return the result of a call of a function of the package, given its arguments by name."""
    images = {name: _as_dask(name, arguments[name]) for name in IMAGES if arguments.get(name) is not None}
    x = images["input"]
    weight, bias = as_arrays(weight=arguments["weight"], bias=arguments["bias"])
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    shapes = {name: stand_in(name, image.shape, image.dtype) for name, image in images.items()}
    problem, unbatched = problem_of(
        op, x.shape, weight, bias, shapes.get("offset"), shapes.get("mask"), **options
    )
    operands = {**images, "weight": weight, "bias": bias}
    dtype = result_type({name: array.dtype for name, array in operands.items() if array is not None})
    first = (not unbatched) + (problem.layout == "NCHW")
    spatial = tuple(range(first, first + problem.ndim))
    if problem.padding_mode != "zeros":
        widths = dict(zip(spatial, problem.padding, strict=True))
        mode: Any = PAD_MODES[problem.padding_mode]
        x = da.pad(x, [widths.get(axis, (0, 0)) for axis in range(x.ndim)], mode=mode)
        images["input"] = x
        plain = {**options, "padding": 0, "padding_mode": "zeros"}
        problem, _ = problem_of(op, x.shape, weight, bias, **plain)
    shared = {name: arguments[name] for name in SHARED if name in arguments}
    # Tasks run in threads and processes that do not know what is chosen here.
    shared["backend"] = shared["backend"] or config.requested_backend()[0]
    shared["accuracy"] = problem.accuracy
    shared["num_threads"] = shared["num_threads"] or 1
    whole = Whole(op, spatial, shared, _as_reach(arguments.get("reach", 0)))
    name = f"{op}-{tokenize(*images.values(), weight, bias, options, shared, whole.reach)}"
    batches = () if unbatched else x.chunks[0]
    parts = [parts_of(problem, i, x.chunks[axis], math.ceil(whole.reach)) for i, axis in enumerate(spatial)]
    graph = _tasks(name, whole, images, weight, bias, batches, parts)
    chunks: list[tuple[int, ...]] = [(problem.out_channels,)] * x.ndim
    if not unbatched:
        chunks[0] = batches
    for axis, along in zip(spatial, parts, strict=True):
        chunks[axis] = tuple(part.last - part.first for part in along)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=list(images.values()))
    return da.Array(layers, name, tuple(chunks), meta=np.empty((0,) * x.ndim, dtype))


def _tasks(
    name: str,
    whole: Whole,
    images: Mapping[str, da.Array],
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    batches: Sequence[int],
    parts: Sequence[Sequence[Part]],
) -> dict[Any, Any]:
    """Return the tasks of all chunks of the result by their keys."""
    graph: dict[Any, Any] = {f"{name}-weight": weight, f"{name}-bias": bias}
    borders = {image: [(0, *accumulate(along)) for along in array.chunks] for image, array in images.items()}
    ends = [0, *accumulate(batches)]
    for batch in range(len(batches) or 1):
        for block in product(*(range(len(along)) for along in parts)):
            own = [along[i] for along, i in zip(parts, block, strict=True)]
            index = [0] * images["input"].ndim
            index[0] = batch
            read = {}
            for image, array in images.items():
                wanted = [(0, size) for size in array.shape]
                if batches:
                    wanted[0] = (ends[batch], ends[batch + 1])
                for axis, i, part in zip(whole.spatial, block, own, strict=True):
                    index[axis] = i
                    wanted[axis] = (part.lo, part.hi) if image == "input" else (part.first, part.last)
                pieces = [_pieces(along, *span) for along, span in zip(borders[image], wanted, strict=True)]
                read[image] = _reading(f"{name}-{image}", array.name, pieces, graph)
            arrays = [read.get(image, []) for image in IMAGES]
            graph[(name, *index)] = (_run, whole, own, *arrays, f"{name}-weight", f"{name}-bias")
    return graph


def _pieces(borders: Sequence[int], lo: int, hi: int) -> list[tuple[int, slice]]:
    """Return which chunks of an axis hold the range, and what of each; an empty range is read from one."""
    found = []
    for i in range(bisect_right(borders, lo) - 1, bisect_left(borders, hi)):
        begin, end = borders[i], borders[i + 1]
        if max(lo, begin) < min(hi, end):
            found.append((i, slice(max(lo, begin) - begin, min(hi, end) - begin)))
    return found or [(0, slice(0, 0))]


def _reading(
    name: str, source: str, pieces: Sequence[Sequence[tuple[int, slice]]], graph: dict[Any, Any]
) -> list:
    """Add the tasks that read pieces of chunks; return their keys, nested as :func:`numpy.block` takes them."""

    def nested(axis: int, index: tuple[int, ...], slices: tuple[slice, ...]) -> Any:
        if axis < len(pieces):
            return [nested(axis + 1, (*index, i), (*slices, piece)) for i, piece in pieces[axis]]
        key = (name, *index, *(bound for piece in slices for bound in (piece.start, piece.stop)))
        graph[key] = (getitem, (source, *index), slices)
        return key

    return nested(0, (), ())


def _run(
    whole: Whole,
    parts: Sequence[Part],
    input: list,
    offset: list,
    mask: list,
    weight: np.ndarray,
    bias: np.ndarray | None,
) -> np.ndarray:
    """Compute one chunk of the result."""
    x = np.block(input)
    options: dict[str, Any] = {**whole.options, "padding": tuple(part.padding for part in parts)}
    operands = {}
    if whole.op in CONV_TRANSPOSE:
        if 0 in x.shape:
            return _unreached(whole, parts, x, weight, bias)
        options["output_padding"] = tuple(part.output_padding for part in parts)
    elif whole.op in DEFORM_CONV:
        operands["offset"] = _widened(whole, parts, _within_reach(np.block(offset), whole.reach))
        if mask:
            operands["mask"] = _widened(whole, parts, np.block(mask))
    if 0 in x.shape:  # the chunk lies in the padding
        widths = {axis: part.padding for axis, part in zip(whole.spatial, parts, strict=True)}
        x = np.pad(x, [widths.get(axis, (0, 0)) for axis in range(x.ndim)])
        options["padding"] = 0
    y = getattr(functional, whole.op)(input=x, weight=weight, bias=bias, **operands, **options)
    kept = [slice(None)] * y.ndim
    for axis, part in zip(whole.spatial, parts, strict=True):
        kept[axis] = slice(part.margin, part.margin + part.last - part.first)
    return y[tuple(kept)]


def _unreached(
    whole: Whole, parts: Sequence[Part], x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """Return a chunk of a transposed convolution that no input reaches: what zeros give, everywhere."""
    shape = [1 if axis in whole.spatial else size for axis, size in enumerate(x.shape)]
    y = getattr(functional, whole.op)(np.zeros(shape, x.dtype), weight, bias, **whole.options)
    first = y[tuple(slice(1) if axis in whole.spatial else slice(None) for axis in range(y.ndim))]
    shape = list(first.shape)
    for axis, part in zip(whole.spatial, parts, strict=True):
        shape[axis] = part.last - part.first
    return np.broadcast_to(first, shape).copy()


def _widened(whole: Whole, parts: Sequence[Part], array: np.ndarray) -> np.ndarray:
    """Return an offset or mask with zeros at the outputs of the margin."""
    margins = {axis: (part.margin,) * 2 for axis, part in zip(whole.spatial, parts, strict=True)}
    return np.pad(array, [margins.get(axis, (0, 0)) for axis in range(array.ndim)])


def _within_reach(offset: np.ndarray, reach: float) -> np.ndarray:
    finite = offset[np.isfinite(offset)]
    largest = float(np.abs(finite).max(initial=0))
    if largest > reach:
        raise ValueError(f"offset has a displacement of {largest:g} pixels, more than reach={reach:g}")
    return offset


def _as_reach(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"reach must be a number of pixels, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"reach must be at least 0 and finite, got {value}")
    return float(value)


def _as_dask(name: str, value: Any) -> da.Array:
    """Return an operand as a dask array; the input has to be one, or this is a call of the wrong function."""
    if not isinstance(value, da.Array):
        if name == "input":
            raise TypeError(f"input must be a dask array, got {type(value).__name__}")
        value = da.from_array(np.asarray(value))
    if any(math.isnan(size) for size in value.shape):
        raise ValueError(f"{name} must have chunks of known sizes, got shape {value.shape}")
    return value

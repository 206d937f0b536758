"""What an output pixel of a stack of layers depends on: walked from the output down to the input, exactly.

Every layer but a deformable one treats the axes alike and apart from each other, so the pixels reached are a product
of one set for each axis. Below a deformable layer they are walked pixel by pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..problem import Ints, as_ints
from .geometry import source_pixels
from .layers import Layer, as_layers, input_sizes, joined
from .points import sampling_points

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["ReceptiveField", "receptive_field"]


def receptive_field(
    layers: Sequence[Any], *, input_size: Any = None, ndim: int | None = None
) -> "ReceptiveField":
    """Return what the output pixels of a stack of layers depend on.

    Parameters
    ----------
    layers : sequence of Layer, mapping, Problem or Plan
        First the layer that reads the input. A mapping holds the arguments of a :class:`fastconv.analysis.Layer`:
        `kernel`, and where they differ from the defaults `stride`, `padding`, `dilation`, `output_padding`, `op`
        (``"conv"``, ``"conv_transpose"``, ``"deform_conv"`` or ``"pool"``), `padding_mode` and `offset`.
    input_size : int or sequence of int, optional
        Spatial size of the input. Without it the input has no borders, and nothing lies in the padding; deformable
        layers need it.
    ndim : int, optional
        Number of spatial axes, where the layers do not show it; 2 if not given.

    Returns
    -------
    ReceptiveField
        Prints as a table.

    Raises
    ------
    ShapeError, ValueError, TypeError
        If a layer is none, or its sizes do not fit; the message names it.

    Examples
    --------
    Three 3x3 layers see 7 x 7 pixels; dilated by 1, 2 and 4 they see 15 x 15 and miss none:

    >>> import fastconv
    >>> plain = fastconv.receptive_field([{"kernel": 3}] * 3)
    >>> dilated = fastconv.receptive_field([{"kernel": 3, "dilation": r} for r in (1, 2, 4)])
    >>> plain.size, dilated.growth, dilated.count(), dilated.is_dense()
    ((7, 7), ((3, 3), (7, 7), (15, 15)), 225, True)

    Dilated by 2 each, they see only every other pixel:

    >>> gridded = fastconv.receptive_field([{"kernel": 3, "dilation": 2}] * 3)
    >>> gridded.size, gridded.count(), len(gridded.untouched())
    ((13, 13), 49, 120)
    """
    found = as_layers(layers, ndim)
    if input_size is None and any(layer.op == "deform_conv" for layer in found):
        raise ValueError("input_size must be given where a layer is deformable: its offsets lie at pixels")
    sizes = None if input_size is None else tuple(input_sizes(found, input_size))
    return ReceptiveField(found, sizes)


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What the output pixels of a stack of layers depend on; made by :func:`receptive_field`.

    Positions are in input pixels: pixel 0 is the first of the input, negative ones lie in the padding. `at` is an
    output pixel; if not given, the middle one (the one at 0 where the input has no borders).

    Attributes
    ----------
    layers : tuple of Layer
        With a tuple for each option.
    sizes : tuple of tuple of int, or None
        Spatial sizes from the input to the output; None if the input has no borders.

    Examples
    --------
    >>> import fastconv
    >>> print(fastconv.receptive_field([{"kernel": 3, "stride": 2}, {"kernel": 3, "dilation": 2}], ndim=1))
    receptive field 11, stride 2, first centre 5.0, pixels reached 9 of 11
    layer                 field  stride
    conv k3 s2 p0:0           3       2
    conv k3 s1 p0:0 l2       11       2
    """

    layers: tuple[Layer, ...]
    sizes: tuple[Ints, ...] | None

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.layers[0].kernel)

    @property
    def size(self) -> Ints:
        """Extent on each axis, without displacements and borders; the largest one of the phases."""
        return self.growth[-1]

    @property
    def growth(self) -> tuple[Ints, ...]:
        """The same after each layer."""
        return tuple(
            tuple(_extent(self.layers[: count + 1], axis) for axis in range(self.ndim))
            for count in range(len(self.layers))
        )

    @property
    def stride(self) -> tuple["Fraction", ...]:
        """Input pixels between neighbouring outputs; less than 1 where transposed layers enlarge."""
        return tuple(self._affine(axis)[0] for axis in range(self.ndim))

    @property
    def centre(self) -> tuple["Fraction", ...]:
        """Position of the middle of output pixel 0's field, without displacements."""
        return tuple(self._affine(axis)[1] for axis in range(self.ndim))

    @property
    def output_size(self) -> Ints | None:
        """Spatial size of the output, if the input has one."""
        return None if self.sizes is None else self.sizes[-1]

    def paths(self, at: Any = None) -> tuple[np.ndarray, Ints]:
        """Return in how many ways each pixel of the field's box is reached, and the position of the box.

        These are the weights of the pixels if all weights of all layers are 1: below a deformable layer a way counts
        by its bilinear share.

        Examples
        --------
        >>> import fastconv
        >>> fastconv.receptive_field([{"kernel": 3}] * 2, ndim=1).paths()
        (array([1, 2, 3, 2, 1]), (0,))
        """
        at = self._output_pixel(at)
        if any(layer.op == "deform_conv" for layer in self.layers):
            return _box(*self._walk(at))
        along = [_line(self.layers, axis, q, self._along(axis)) for axis, q in enumerate(at)]
        counts = [_box(places[:, None], ways) for places, ways in along]
        return reduce(np.multiply.outer, (box for box, _ in counts)), tuple(start[0] for _, start in counts)

    def pixels(self, at: Any = None) -> np.ndarray:
        """Return the input pixels that an output pixel depends on, as rows of positions."""
        box, start = self.paths(at)
        return np.argwhere(box > 0) + np.array(start)

    def count(self, at: Any = None) -> int:
        """Return the number of input pixels that an output pixel depends on."""
        return int(np.count_nonzero(self.paths(at)[0]))

    def untouched(self, at: Any = None) -> np.ndarray:
        """Return the pixels inside the field's box that the output pixel does not depend on (gridding)."""
        box, start = self.paths(at)
        return np.argwhere(box == 0) + np.array(start)

    def is_dense(self, at: Any = None) -> bool:
        """Return whether the output pixel depends on every pixel inside its field's box."""
        return bool((self.paths(at)[0] > 0).all())

    def points(self, at: Any = None, offset_group: int = 0) -> np.ndarray:
        """Return the points that an output pixel samples through all layers: kernel taps to the power of layers.

        Each point of a layer is displaced and samples points of its own in the layer below. The displacements of a
        point between pixels are interpolated as the image is.

        Parameters
        ----------
        at : sequence of int, optional
            The output pixel.
        offset_group : int, optional
            Whose displacements are used.

        Returns
        -------
        numpy.ndarray of float64, shape (points, ndim)

        Examples
        --------
        >>> import numpy as np, fastconv
        >>> offset = np.random.default_rng(0).standard_normal((18, 32, 32))
        >>> layer = {"op": "deform_conv", "kernel": 3, "padding": 1, "offset": offset}
        >>> fastconv.receptive_field([layer] * 3, input_size=32).points().shape
        (729, 2)
        """
        return sampling_points(self.layers, self._output_pixel(at), offset_group)

    def __str__(self) -> str:
        reached, box = self.count(), self.paths()[0].size
        lines = [
            f"receptive field {joined(self.size)}, stride {joined(self.stride)}, "
            f"first centre {joined([float(c) for c in self.centre])}, pixels reached {reached} of {box}"
        ]
        names = [str(layer) for layer in self.layers]
        width = max(len(name) for name in (*names, "layer"))
        lines.append(f"{'layer':<{width}}  {'field':>7}  {'stride':>6}")
        for count, (name, size) in enumerate(zip(names, self.growth, strict=True), 1):
            stride = ReceptiveField(self.layers[:count], None).stride
            lines.append(f"{name:<{width}}  {joined(size):>7}  {joined(stride):>6}")
        return "\n".join(lines)

    def _affine(self, axis: int) -> tuple["Fraction", "Fraction"]:
        """Return (a, b) such that the field of output pixel q is centred at a*q + b."""
        from fractions import Fraction

        a, b = Fraction(1), Fraction(0)
        for layer in reversed(self.layers):
            stride, (before, _) = layer.stride[axis], layer.padding[axis]
            middle = Fraction((layer.kernel[axis] - 1) * layer.dilation[axis], 2) - before
            if layer.op == "conv_transpose":
                a, b = a / stride, (b - middle) / stride
            else:
                a, b = a * stride, b * stride + middle
        return a, b

    def _along(self, axis: int) -> list[int | None]:
        """Return the size of each layer's input along an axis, None where it has no borders."""
        return [None] * len(self.layers) if self.sizes is None else [size[axis] for size in self.sizes[:-1]]

    def _output_pixel(self, at: Any) -> Ints:
        if at is None:
            return (0,) * self.ndim if self.sizes is None else tuple(size // 2 for size in self.sizes[-1])
        at = as_ints("at", at, self.ndim, 0 if self.sizes else -(2**31))
        if self.sizes and any(q >= size for q, size in zip(at, self.sizes[-1], strict=True)):
            raise ShapeError(f"at must lie inside the output of size {self.sizes[-1]}, got {at}")
        return at

    def _walk(self, at: Ints) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels reached and their weights, walked pixel by pixel through displaced layers."""
        assert self.sizes is not None
        places, weights = np.array([at]), np.ones(1)
        for layer, size in zip(reversed(self.layers), reversed(self.sizes[:-1]), strict=True):
            if layer.op == "deform_conv":
                places, weights = _displaced(layer, places, weights, size)
            else:
                for axis in range(self.ndim):
                    places, weights = _step(layer, axis, places, weights, size[axis])
            places, weights = _merged(places, weights)
        return places, weights


def _extent(layers: Sequence[Layer], axis: int) -> int:
    """Return the largest extent of a field on one axis, over the phases of transposed layers."""
    phases = math.prod(layer.stride[axis] for layer in layers if layer.op == "conv_transpose")
    lines = [_line(layers, axis, q, [None] * len(layers))[0] for q in range(phases)]
    return max((int(np.ptp(places)) + 1 for places in lines if len(places)), default=0)


def _line(
    layers: Sequence[Layer], axis: int, q: int, sizes: Sequence[int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions that output `q` reaches on one axis, and in how many ways each."""
    places, ways = np.array([[q]]), np.ones(1, np.int64)
    for layer, size in zip(reversed(layers), reversed(sizes), strict=True):
        places, ways = _merged(*_step(layer, axis, places, ways, size, column=0))
    return places[:, 0], ways


def _step(
    layer: Layer,
    axis: int,
    places: np.ndarray,
    ways: np.ndarray,
    size: int | None,
    column: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace one coordinate of each place by those that the layer's taps read in its input of that size."""
    column = axis if column is None else column
    taps = np.arange(layer.kernel[axis]) * layer.dilation[axis]
    before, stride = layer.padding[axis][0], layer.stride[axis]
    q = places[:, column, None]
    if layer.op == "conv_transpose":
        at = q + before - taps
        exists = at % stride == 0
        at = at // stride
        exists &= (at >= 0) & (at < size) if size is not None else True
    else:
        at = q * stride - before + taps
        at = at if size is None else source_pixels(at, size, layer.padding_mode)
        exists = np.ones(at.shape, bool) if size is None else at >= 0
    index = np.nonzero(exists)
    found = places[index[0]]
    found[:, column] = at[index]
    return found, ways[index[0]]


def _displaced(
    layer: Layer, places: np.ndarray, weights: np.ndarray, size: Ints
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels around the points that a deformable layer samples for each place, with their shares."""
    found, shares = [], []
    for group in layer.offset:
        for tap, moved in zip(np.ndindex(*layer.kernel), group, strict=True):
            regular = [
                places[:, axis] * layer.stride[axis]
                + tap[axis] * layer.dilation[axis]
                - layer.padding[axis][0]
                for axis in range(len(size))
            ]
            point = np.stack(regular, axis=1) + moved[(slice(None), *places.T)].T
            inside = np.all((point > -1) & (point < size), axis=1)
            low = np.floor(np.where(inside[:, None], point, 0)).astype(np.int64)
            for corner in product((0, 1), repeat=len(size)):
                pixel = low + np.array(corner)
                share = np.prod(1 - np.abs(point - pixel), axis=1)
                kept = inside & np.all((pixel >= 0) & (pixel < size), axis=1) & (share > 0)
                found.append(pixel[kept])
                shares.append(weights[kept] * share[kept])
    return np.concatenate(found), np.concatenate(shares)


def _merged(places: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each place once, with its weights added."""
    unique, index = np.unique(places, axis=0, return_inverse=True)
    total = np.zeros(len(unique), weights.dtype)
    np.add.at(total, index.ravel(), weights)
    return unique, total


def _box(places: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, Ints]:
    """Return an array that holds the weights at their places, and the position of its first element."""
    if not len(places):
        return np.zeros((0,) * places.shape[1], weights.dtype), (0,) * places.shape[1]
    start = places.min(axis=0)
    box = np.zeros(places.max(axis=0) - start + 1, weights.dtype)
    box[tuple((places - start).T)] = weights
    return box, tuple(int(first) for first in start)

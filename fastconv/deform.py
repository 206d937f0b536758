"""What goes with deformable convolutions: the order of offsets here and elsewhere, points, and what is wrong with them.

An offset moves one tap of one offset group along one axis at one output pixel. Here and in the libraries of
:data:`CONVENTIONS` these lie in channels; :func:`pack_offsets` makes them from an array with an axis for each, and
:func:`convert_offsets` takes them from one convention to another.

Dai et al., "Deformable convolutional networks", 2017 (arXiv:1703.06211); Zhu et al., "Deformable ConvNets v2", 2019
(arXiv:1811.11168); Wang et al., "InternImage", 2023 (arXiv:2211.05778); Xiong et al., "Efficient deformable ConvNets",
2024 (arXiv:2401.06197).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import ShapeError
from .problem import (
    LAYOUTS,
    MAX_STEP,
    Ints,
    as_choice,
    as_ints,
    as_number,
    as_padding,
    axis_names,
    dims,
    removed_center,
)

__all__ = [
    "CONVENTIONS",
    "Validity",
    "convert_mask",
    "convert_offsets",
    "from_dcnv3",
    "from_dcnv4",
    "from_mmcv",
    "pack_offsets",
    "sampling_points",
    "to_dcnv3",
    "to_dcnv4",
    "unpack_offsets",
    "validity",
]


class Order(NamedTuple):
    """In which order offsets lie in the channels of a group: the last of `taps` and of `axes` varies fastest."""

    taps: str
    axes: str


_ROWS_FIRST, _COLUMNS_FIRST = Order("HW", "HW"), Order("WH", "WH")

#: The order of offsets by who uses it. That of ONNX is of its operator DeformConv, that of OpenVINO of
#: DeformableConvolution, those of dcnv3 and dcnv4 of the CUDA code that their authors published.
CONVENTIONS = {
    "fastconv": _ROWS_FIRST,
    "torchvision": _ROWS_FIRST,
    "onnx": _ROWS_FIRST,
    "openvino": _ROWS_FIRST,
    "mmcv": _ROWS_FIRST,
    "dcnv3": _COLUMNS_FIRST,
    "dcnv4": _COLUMNS_FIRST,
}

# Channels of DCNv4's one array of offsets and masks are rounded up to so many.
DCNV4_CHANNELS = 8


def pack_offsets(offsets: ArrayLike, *, layout: str = "NCHW") -> np.ndarray:
    """Put offsets into the channels of an image, as :func:`fastconv.deform_conv2d` takes them.

    Parameters
    ----------
    offsets : array_like, shape (N, DG, KH, KW, 2, OH, OW) or without N
        For each output pixel, offset group and tap the displacement along H and along W, in input pixels. In 1-D
        (N, DG, KW, 1, OW), in 3-D (N, DG, KD, KH, KW, 3, OD, OH, OW).
    layout : {"NCHW", "NHWC"}, optional
        Where the result has its channels.

    Returns
    -------
    numpy.ndarray, shape (N, DG*KH*KW*2, OH, OW)
        A view where that is possible.

    Raises
    ------
    ShapeError
        If there are not as many spatial axes as taps' axes and displacements.

    Examples
    --------
    Move the middle of 3 x 3 taps one pixel down:

    >>> import numpy as np
    >>> from fastconv import deform
    >>> offsets = np.zeros((1, 1, 3, 3, 2, 5, 5))
    >>> offsets[:, :, 1, 1, 0] = 1
    >>> packed = deform.pack_offsets(offsets)
    >>> packed.shape, np.flatnonzero(packed[0, :, 0, 0])
    ((1, 18, 5, 5), array([8]))
    """
    as_choice("layout", layout, LAYOUTS)
    array = np.asarray(offsets)
    batched, ndim = array.ndim % 2, (array.ndim - 2) // 2
    if not 1 <= ndim <= 3 or array.shape[batched + 1 + ndim] != ndim:
        raise ShapeError(
            f"offsets must have shape (N, DG, KH, KW, 2, OH, OW), its like in 1 or 3 dimensions, or that without N, got {array.shape}"
        )
    channels = math.prod(array.shape[batched : batched + 2 + ndim])
    packed = array.reshape(*array.shape[:batched], channels, *array.shape[-ndim:])
    return packed if layout == "NCHW" else np.moveaxis(packed, batched, -1)


def unpack_offsets(offset: ArrayLike, kernel_size: Sequence[int], *, layout: str = "NCHW") -> np.ndarray:
    """Return offsets with an axis for group, tap and direction: what :func:`pack_offsets` takes.

    Parameters
    ----------
    offset : array_like, shape (N, DG*KH*KW*2, OH, OW) or without N
        As for :func:`fastconv.deform_conv2d`; in 1-D and 3-D likewise.
    kernel_size : sequence of int
        KH and KW: one for each axis.
    layout : {"NCHW", "NHWC"}, optional

    Returns
    -------
    numpy.ndarray, shape (N, DG, KH, KW, 2, OH, OW)
        A view where that is possible.

    Raises
    ------
    ShapeError
        If the channels are no multiple of the taps and axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> deform.unpack_offsets(np.zeros((2, 4 * 18, 5, 5)), (3, 3)).shape
    (2, 4, 3, 3, 2, 5, 5)
    """
    kernel = _kernel(kernel_size)
    array, ndim = np.asarray(offset), len(kernel)
    first, batched = _channels_first("offset", array, ndim, layout)
    _check_channels("offset", array, first.shape[batched], ndim * math.prod(kernel))
    groups = first.shape[batched] // (ndim * math.prod(kernel))
    return first.reshape(*first.shape[:batched], groups, *kernel, ndim, *first.shape[-ndim:])


def convert_offsets(
    offset: ArrayLike,
    kernel_size: Sequence[int],
    *,
    source: str = "fastconv",
    target: str = "fastconv",
    remove_center: bool = False,
    layout: str = "NCHW",
) -> np.ndarray:
    """Reorder the channels of 2-D offsets from one convention to another.

    Parameters
    ----------
    offset : array_like, shape (N, DG*K*2, OH, OW) or without N
        K = KH*KW, or one less without the centre.
    kernel_size : sequence of 2 ints
    source, target : str, optional
        Of :data:`CONVENTIONS`. All but DCNv3 and DCNv4 have one order, for which the array is returned as it is.
    remove_center : bool, optional
        Whether there are no offsets for the tap in the middle.
    layout : {"NCHW", "NHWC"}, optional
        Where the channels are, before and after.

    Returns
    -------
    numpy.ndarray
        Of the same shape.

    Raises
    ------
    ShapeError, ValueError
        If the channels are no multiple of the taps and axes, or a convention is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> ours = np.arange(8).reshape(8, 1, 1)  # taps of 2 x 2 by rows, H before W
    >>> deform.convert_offsets(ours, (2, 2), target="dcnv3")[:, 0, 0]
    array([1, 0, 5, 4, 3, 2, 7, 6])
    """
    return _convert("offset", offset, kernel_size, source, target, remove_center, layout, 2)


def convert_mask(
    mask: ArrayLike,
    kernel_size: Sequence[int],
    *,
    source: str = "fastconv",
    target: str = "fastconv",
    remove_center: bool = False,
    layout: str = "NCHW",
) -> np.ndarray:
    """Reorder the channels of a 2-D mask from one convention to another.

    Parameters
    ----------
    mask : array_like, shape (N, DG*K, OH, OW) or without N
    kernel_size, source, target, remove_center, layout
        As for :func:`convert_offsets`.

    Returns
    -------
    numpy.ndarray
        Of the same shape.

    Raises
    ------
    ShapeError, ValueError
        If the channels are no multiple of the taps, or a convention is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> deform.convert_mask(np.arange(6).reshape(6, 1, 1), (2, 3), target="dcnv4")[:, 0, 0]
    array([0, 3, 1, 4, 2, 5])
    """
    return _convert("mask", mask, kernel_size, source, target, remove_center, layout, 1)


def from_mmcv(offset_mask: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Split what the inner convolution of mmcv's ModulatedDeformConv2dPack gives into offset and mask.

    Parameters
    ----------
    offset_mask : array_like, shape (N, DG*3*KH*KW, OH, OW) or without N
        Two thirds are offsets, in the order used here; the rest are logits of the mask.

    Returns
    -------
    offset, mask : numpy.ndarray
        As for :func:`fastconv.deform_conv2d`; the mask is the logistic function of the logits.

    Raises
    ------
    ShapeError
        If there is no multiple of three channels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> offset, mask = deform.from_mmcv(np.zeros((1, 27, 5, 5)))
    >>> offset.shape, mask.shape, mask[0, 0, 0, 0]
    ((1, 18, 5, 5), (1, 9, 5, 5), np.float64(0.5))
    """
    array = np.asarray(offset_mask)
    first, batched = _channels_first("offset_mask", array, 2, "NCHW")
    channels = first.shape[batched]
    _check_channels("offset_mask", array, channels, 3)
    offset, logits = np.split(first, [channels // 3 * 2], axis=batched)
    with np.errstate(over="ignore"):
        return offset, 1 / (1 + np.exp(-logits))


def from_dcnv3(
    offset: ArrayLike, mask: ArrayLike, kernel_size: Sequence[int] = (3, 3), *, remove_center: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the offset and mask of the published DCNv3 operator for ``layout="NHWC"`` here.

    Parameters
    ----------
    offset : array_like, shape (N, OH, OW, G*K*2)
        Taps by columns, W before H.
    mask : array_like, shape (N, OH, OW, G*K)
        Normalised, as that operator takes it, for :func:`fastconv.dcnv4`; or logits, for :func:`fastconv.dcnv3`.
    kernel_size : sequence of 2 ints, optional
    remove_center : bool, optional

    Returns
    -------
    offset, mask : numpy.ndarray
        Of the same shapes.

    Raises
    ------
    ShapeError
        If the channels are no multiple of the taps.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> offset, mask = deform.from_dcnv3(np.arange(8).reshape(1, 1, 8), np.arange(4).reshape(1, 1, 4), (2, 2))
    >>> offset, mask
    (array([[[1, 0, 5, 4, 3, 2, 7, 6]]]), array([[[0, 2, 1, 3]]]))
    """
    options = {"source": "dcnv3", "remove_center": remove_center, "layout": "NHWC"}
    return convert_offsets(offset, kernel_size, **options), convert_mask(mask, kernel_size, **options)  # type: ignore[arg-type]


def to_dcnv3(
    offset: ArrayLike, mask: ArrayLike, kernel_size: Sequence[int] = (3, 3), *, remove_center: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Undo :func:`from_dcnv3`.

    Parameters
    ----------
    offset, mask : array_like
        As for :func:`fastconv.dcnv3` with ``layout="NHWC"``.
    kernel_size : sequence of 2 ints, optional
    remove_center : bool, optional

    Returns
    -------
    offset, mask : numpy.ndarray
        Of the same shapes.

    Raises
    ------
    ShapeError
        If the channels are no multiple of the taps.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> deform.to_dcnv3(np.arange(8).reshape(1, 1, 8), np.arange(4).reshape(1, 1, 4), (2, 2))[1]
    array([[[0, 2, 1, 3]]])
    """
    options = {"target": "dcnv3", "remove_center": remove_center, "layout": "NHWC"}
    return convert_offsets(offset, kernel_size, **options), convert_mask(mask, kernel_size, **options)  # type: ignore[arg-type]


def from_dcnv4(
    offset_mask: ArrayLike, groups: int, kernel_size: Sequence[int] = (3, 3), *, remove_center: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Split the one array of the published DCNv4 operator into offset and mask for ``layout="NHWC"`` here.

    Parameters
    ----------
    offset_mask : array_like, shape (N, OH, OW, channels)
        For each of the groups 2*K offsets (taps by columns, W before H) and K masks; then filling, which is ignored.
    groups : int
        G.
    kernel_size : sequence of 2 ints, optional
    remove_center : bool, optional

    Returns
    -------
    offset : numpy.ndarray, shape (N, OH, OW, G*2*K)
    mask : numpy.ndarray, shape (N, OH, OW, G*K)

    Raises
    ------
    ShapeError
        If there are too few channels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> offset, mask = deform.from_dcnv4(np.arange(16).reshape(1, 1, 16), 1, (2, 2))
    >>> offset, mask
    (array([[[1, 0, 5, 4, 3, 2, 7, 6]]]), array([[[ 8, 10,  9, 11]]]))
    """
    array = np.asarray(offset_mask)
    kernel = _kernel(kernel_size, 2)
    points = math.prod(kernel) - removed_center(remove_center, kernel)
    if array.ndim not in (3, 4) or array.shape[-1] < 3 * points * groups:
        raise ShapeError(
            f"offset_mask must have shape (N, OH, OW, channels), of channels {groups} * 3 * {points} or more, got {array.shape}"
        )
    each = array[..., : 3 * points * groups].reshape(*array.shape[:-1], groups, 3 * points)
    parts = np.split(each, [2 * points], axis=-1)
    offset, mask = (part.reshape(*array.shape[:-1], groups * part.shape[-1]) for part in parts)
    return from_dcnv3(offset, mask, kernel, remove_center=remove_center)


def to_dcnv4(
    offset: ArrayLike, mask: ArrayLike, kernel_size: Sequence[int] = (3, 3), *, remove_center: bool = False
) -> np.ndarray:
    """Undo :func:`from_dcnv4`: join offset and mask, with zeros up to a multiple of eight channels.

    Parameters
    ----------
    offset, mask : array_like
        As for :func:`fastconv.dcnv4` with ``layout="NHWC"``.
    kernel_size : sequence of 2 ints, optional
    remove_center : bool, optional

    Returns
    -------
    numpy.ndarray, shape (N, OH, OW, channels)

    Raises
    ------
    ShapeError
        If the channels are no multiple of the taps, or not those of equally many groups.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> deform.to_dcnv4(np.zeros((1, 5, 5, 2 * 18)), np.ones((1, 5, 5, 2 * 9))).shape
    (1, 5, 5, 56)
    """
    offset, mask = to_dcnv3(offset, mask, kernel_size, remove_center=remove_center)
    if offset.shape != (*mask.shape[:-1], 2 * mask.shape[-1]):
        raise ShapeError(f"offset must have twice the channels of the mask {mask.shape}, got {offset.shape}")
    points = math.prod(kernel_size) - remove_center
    groups = mask.shape[-1] // points
    each = [part.reshape(*mask.shape[:-1], groups, part.shape[-1] // groups) for part in (offset, mask)]
    joined = np.concatenate(each, axis=-1).reshape(*mask.shape[:-1], 3 * mask.shape[-1])
    missing = -joined.shape[-1] % DCNV4_CHANNELS
    return np.pad(joined, [(0, 0)] * (joined.ndim - 1) + [(0, missing)])


def sampling_points(
    offset: ArrayLike,
    kernel_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[tuple[int, int]] | str = 0,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    layout: str = "NCHW",
) -> np.ndarray:
    """Return where a deformable convolution reads its input.

    The point of tap t for output pixel p is p*stride - padding + t*dilation + offset[t, p], in input pixels: 0 is the
    centre of the first pixel. With an offset scale s and r the middle of the grid, as in :func:`fastconv.dcnv3`, it
    is p*stride - padding + r + s*(t*dilation - r + offset[t, p]).

    Parameters
    ----------
    offset : array_like, shape (N, DG*KH*KW*2, OH, OW) or without N
        As for :func:`fastconv.deform_conv2d`; in 1-D and 3-D likewise.
    kernel_size : sequence of int
        One for each axis.
    stride, padding, dilation, layout : optional
        As for the function.
    offset_scale, remove_center : optional
        As for :func:`fastconv.dcnv3`.

    Returns
    -------
    numpy.ndarray, shape (N, DG, KH, KW, 2, OH, OW)
        Coordinates along H and W, of the offset's type; (N, DG, K, 2, OH, OW) without the centre. Without N if the
        offset is.

    Raises
    ------
    ShapeError, ValueError, TypeError
        If sizes or options do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> deform.sampling_points(np.full((3, 2), 0.25), (3,), padding=1)[0, :, 0]
    array([[-0.75,  0.25],
           [ 0.25,  1.25],
           [ 1.25,  2.25]])
    """
    kernel = _kernel(kernel_size)
    ndim = len(kernel)
    stride, dilation = (
        as_ints("stride", stride, ndim, 1, MAX_STEP),
        as_ints("dilation", dilation, ndim, 1, MAX_STEP),
    )
    pairs = as_padding(padding, "deform_conv", kernel, stride, dilation)
    scale, removed = as_number("offset_scale", offset_scale), removed_center(remove_center, kernel)
    array = np.asarray(offset)
    array = array if array.dtype.kind == "f" else array.astype(np.float64)
    first, batched = _channels_first("offset", array, ndim, layout)
    points = math.prod(kernel) - removed
    _check_channels("offset", array, first.shape[batched], ndim * points)
    size = first.shape[-ndim:]
    groups = first.shape[batched] // (ndim * points)
    found = first.reshape(*first.shape[:batched], groups, points, ndim, *size) * array.dtype.type(scale)
    for axis in range(ndim):
        middle = dilation[axis] * (kernel[axis] - 1) // 2
        taps = np.indices(kernel)[axis].ravel() * dilation[axis]
        taps = np.delete(taps, len(taps) // 2) if removed else taps
        grid = middle + scale * (taps - middle)
        pixels = np.arange(size[axis]) * stride[axis] - pairs[axis][0]
        at = pixels.reshape(-1, *(1,) * (ndim - axis - 1))
        where = (Ellipsis, axis, *(slice(None),) * ndim)
        found[where] += (grid.reshape(-1, *(1,) * ndim) + at).astype(array.dtype)
    return found if removed else found.reshape(*found.shape[: batched + 1], *kernel, ndim, *size)


class Validity(NamedTuple):
    """What :func:`validity` found: shares of all points.

    Attributes
    ----------
    points : int
        How many there are.
    inside : float
        All pixels around the point exist.
    edge : float
        Some of them do not: they count as zero.
    outside : float
        The point reads zero, infinite ones among them.
    nan : float
        A coordinate is NaN, and so is the output.
    inf : float
        A coordinate is infinite (and none NaN).
    """

    points: int
    inside: float
    edge: float
    outside: float
    nan: float
    inf: float

    def __str__(self) -> str:
        shares = ", ".join(
            f"{name} {share:.2%}" for name, share in zip(self._fields[1:], self[1:], strict=True)
        )
        return f"{self.points:,} points: {shares}"


def validity(
    offset: ArrayLike,
    kernel_size: Sequence[int],
    input_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[tuple[int, int]] | str = 0,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    layout: str = "NCHW",
) -> Validity:
    """Tell how many points lie outside the input or nowhere.

    Offsets that training has sent off the image read zeros and get no gradient: a share of them that grows is
    a sign of a learning rate that is too high.

    Parameters
    ----------
    offset, kernel_size, stride, padding, dilation, offset_scale, remove_center, layout
        As for :func:`sampling_points`.
    input_size : sequence of int
        Spatial size of the input, one for each axis.

    Returns
    -------
    Validity

    Raises
    ------
    ShapeError, ValueError, TypeError
        If sizes or options do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import deform
    >>> offset = np.array([[0.0, 0.5, np.inf, np.nan, -9.0]])
    >>> print(deform.validity(offset, (1,), (5,)))
    5 points: inside 40.00%, edge 0.00%, outside 40.00%, nan 20.00%, inf 20.00%
    """
    kernel = _kernel(kernel_size)
    ndim = len(kernel)
    size = _sizes("input_size", input_size, ndim, math.inf)
    points = sampling_points(
        offset,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=offset_scale,
        remove_center=remove_center,
        layout=layout,
    )
    along = np.moveaxis(points, -ndim - 1, 0)
    ends = np.array(size).reshape(-1, *(1,) * (along.ndim - 1))
    nan = np.isnan(along).any(axis=0)
    inf = np.isinf(along).any(axis=0) & ~nan
    whole = ((along >= 0) & (along <= ends - 1)).all(axis=0)
    met = ((along > -1) & (along < ends)).all(axis=0)
    kinds = (whole, met & ~whole, ~met & ~nan, nan, inf)
    return Validity(nan.size, *(float(kind.mean()) if kind.size else 0.0 for kind in kinds))


def _convert(
    name: str,
    value: ArrayLike,
    kernel_size: Sequence[int],
    source: str,
    target: str,
    remove_center: bool,
    layout: str,
    each: int,
) -> np.ndarray:
    kernel = _kernel(kernel_size, 2)
    removed = removed_center(remove_center, kernel)
    orders = [
        CONVENTIONS[as_choice(role, given, tuple(CONVENTIONS))]
        for role, given in (("source", source), ("target", target))
    ]
    array = np.asarray(value)
    first, batched = _channels_first(name, array, 2, layout)
    count = each * (math.prod(kernel) - removed)
    _check_channels(name, array, first.shape[batched], count)
    if orders[0] == orders[1]:
        return array
    have, wanted = (_places(order, kernel, removed, each) for order in orders)
    groups = first.shape[batched] // count
    grouped = first.reshape(*first.shape[:batched], groups, count, *first.shape[-2:])
    moved = np.take(grouped, np.argsort(have)[wanted], axis=batched + 1).reshape(first.shape)
    return moved if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(moved, batched, -1))


def _places(order: Order, kernel: Ints, removed: bool, each: int) -> np.ndarray:
    """Return, channel by channel of a group in one convention, which channel that is here."""
    taps = np.arange(math.prod(kernel)).reshape(kernel)
    if removed:
        middle = taps.size // 2
        taps = np.where(taps == middle, -1, taps - (taps > middle))
    taps = (taps if order.taps == "HW" else taps.T).ravel()
    axes = np.arange(each) if order.axes == "HW" else np.arange(each)[::-1]
    return (taps[taps >= 0][:, None] * each + axes).ravel()


def _kernel(value: Sequence[int], ndim: int | None = None) -> Ints:
    return _sizes("kernel_size", value, ndim, MAX_STEP)


def _sizes(name: str, value: Sequence[int], ndim: int | None, maximum: float) -> Ints:
    """Return one size for each axis, from a sequence that has as many."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(f"{name} must be a sequence of integers, one for each axis, got {value!r}")
    if len(value) not in ((1, 2, 3) if ndim is None else (ndim,)):
        raise ValueError(f"{name} must be {'1, 2 or 3' if ndim is None else ndim} integers, got {value!r}")
    return as_ints(name, value, len(value), 1, maximum)


def _channels_first(name: str, array: np.ndarray, ndim: int, layout: str) -> tuple[np.ndarray, int]:
    """Return the array with its channels before its spatial axes, and the number of axes before the channels."""
    layout = as_choice("layout", layout, LAYOUTS)
    if array.ndim not in (ndim + 1, ndim + 2):
        letters = [f"O{axis}" for axis in axis_names(ndim)]
        letters = ["channels", *letters] if layout == "NCHW" else [*letters, "channels"]
        raise ShapeError(f"{name} must have shape {dims('N', *letters)} or that without N, got {array.shape}")
    batched = array.ndim - ndim - 1
    return (array if layout == "NCHW" else np.moveaxis(array, -1, batched)), batched


def _check_channels(name: str, array: np.ndarray, channels: int, multiple: int) -> None:
    if channels < 1 or channels % multiple:
        raise ShapeError(
            f"{name} must have a multiple of {multiple} channels, got {channels} (shape {array.shape})"
        )

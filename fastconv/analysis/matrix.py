"""A convolution as a sparse matrix: y = A x.

Each tap t maps the pixels of every channel in the same way, by a matrix S[t], and mixes the channels of every
pixel in the same way, by its weights W[t]. So A is a sum of Kronecker products, A = sum over t of W[t] (x) S[t];
with channels last the factors change places. With a displacement of its own in each offset group d, so does S:
A = sum over t, d of (W[t] on the channels of d) (x) S[t, d].
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..call import as_arrays, check_memory
from ..functional import Ints, Layout, Padding, PaddingMode
from ..problem import Problem
from .arguments import as_image_operands, problem_of
from .geometry import Reads, deformed_reads, reads, tap_numbers

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["matrix"]

BYTES_PER_ENTRY = 3 * 8  # row, column and value, while the matrix is put together


def matrix(
    op: str,
    input_shape: Sequence[int],
    weight: Any = None,
    *,
    offset: Any = None,
    mask: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int | None = None,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    kernel_size: Ints | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> "csr_array":
    """Return the matrix of a convolution: ``y.ravel() == A @ x.ravel()``, without bias.

    The transpose ``A.T`` is the transposed convolution with the same options, which is also the gradient with
    respect to the input.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"`` or ``"deform_conv3d"``.
    input_shape : sequence of int
        Shape of x, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    weight : array_like
        As for the function; ``"dcnv3"`` and ``"dcnv4"`` have none.
    offset, mask : array_like, optional
        As for the function (deformable only): A depends on them.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    kernel_size, offset_scale, remove_center : optional
        As for :func:`dcnv3`, where they take the place of a weight.

    Returns
    -------
    scipy.sparse.csr_array, shape (y.size, x.size)
        An entry is stored for each tap on the image and each pair of channels, also where the weight is zero. The
        type is float32 or float64, by NumPy's promotion of the arrays.

    Raises
    ------
    ShapeError, ValueError, TypeError
        As the function does.
    MemoryError
        If the entries do not fit into the memory of this machine.

    See Also
    --------
    linear_operator : the same map without its entries, for images of any size.

    Examples
    --------
    The kernel [x, y, z] with stride 2 is a matrix of constant diagonals:

    >>> import numpy as np, fastconv
    >>> A = fastconv.matrix("conv1d", (1, 7), np.array([[[1, 2, 3]]]), stride=2)
    >>> A.toarray().astype(int)
    array([[1, 2, 3, 0, 0, 0, 0],
           [0, 0, 1, 2, 3, 0, 0],
           [0, 0, 0, 0, 1, 2, 3]])

    Its transpose is the transposed convolution:

    >>> y = np.array([[1.0, 10.0, 100.0]])
    >>> A.T @ y.ravel()
    array([  1.,   2.,  13.,  20., 130., 200., 300.])
    >>> fastconv.conv_transpose1d(y, np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    array([[  1.,   2.,  13.,  20., 130., 200., 300.]])
    """
    from scipy import sparse

    weight, offset, mask = as_arrays(weight=weight, offset=offset, mask=mask)
    problem, unbatched = problem_of(
        op,
        input_shape,
        weight,
        offset=offset,
        mask=mask,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        output_size=output_size,
        padding_mode=padding_mode,
        layout=layout,
        kernel_size=kernel_size,
        offset_scale=offset_scale,
        remove_center=remove_center,
    )
    corners = 2**problem.ndim if problem.offset_groups else 1
    check_memory(
        "the matrix with entries", (problem.flops // 2 * corners, BYTES_PER_ENTRY), np.dtype(np.int8)
    )
    if weight is None:
        weight = np.ones(problem.weight_shape)
    offset, mask = (as_image_operands(problem, unbatched, array) for array in (offset, mask))
    if problem.variant == "dcnv3" and mask is not None:
        mask = _softmax(problem, mask)
    triples: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for image in range(problem.batch):
        for channels, pixels in _factors(problem, np.asarray(weight, np.float64), offset, mask, image):
            triples.append(_kron(problem, channels, pixels, image))
    rows, columns, values = map(np.concatenate, zip(*triples, strict=True))
    shape = (math.prod(problem.output_shape), math.prod(problem.input_shape))
    return sparse.coo_array((values.astype(problem.dtype), (rows, columns)), shape).tocsr()


def _factors(
    problem: Problem, weight: np.ndarray, offset: np.ndarray | None, mask: np.ndarray | None, image: int
) -> Iterator[tuple[Reads, Reads]]:
    """Yield the Kronecker factors of one image: how a tap maps channels, and how it maps pixels."""
    dg, points = problem.offset_groups, problem.points
    displaced = problem.out_channels if problem.transposed else problem.in_channels
    for t, tap in enumerate(tap_numbers(problem)):
        of_tap: Any = (..., *tap)
        channels = _channels(problem, weight[of_tap])
        if offset is None:
            yield channels, reads(problem, tap)
            continue
        moved = offset[image].reshape(dg, points, problem.ndim, *offset.shape[2:])
        factor = None if mask is None else mask[image].reshape(dg, points, *mask.shape[2:])
        for d in range(dg):
            own = (channels.rows if problem.transposed else channels.columns) // (displaced // dg) == d
            yield (
                Reads(*(part[own] for part in channels)),
                deformed_reads(problem, tap, moved[d, t], None if factor is None else factor[d, t]),
            )


def _softmax(problem: Problem, logits: np.ndarray) -> np.ndarray:
    """Return masks that add up to one over the points of each group."""
    by = logits.reshape(len(logits), problem.offset_groups, problem.points, -1)
    powers = np.exp(by - by.max(axis=2, keepdims=True))
    return (powers / powers.sum(axis=2, keepdims=True)).reshape(logits.shape)


def _channels(problem: Problem, weight: np.ndarray) -> Reads:
    """Return how one tap maps channels: output channel, input channel, weight."""
    first, second = np.indices(weight.shape).reshape(2, -1)
    group = first // (weight.shape[0] // problem.groups)
    second = group * weight.shape[1] + second
    rows, columns = (second, first) if problem.transposed else (first, second)  # whose weight is (C, O/G)
    return Reads(rows, columns, weight.ravel())


def _kron(problem: Problem, channels: Reads, pixels: Reads, image: int) -> tuple[np.ndarray, ...]:
    """Return the entries of the Kronecker product, in the place of one image."""

    def index(channel: np.ndarray, pixel: np.ndarray, count: int, size: Sequence[int]) -> np.ndarray:
        area = math.prod(size)
        inner = (
            channel[:, None] * area + pixel if problem.layout == "NCHW" else channel[:, None] + pixel * count
        )
        return (image * count * area + inner).ravel()

    return (
        index(channels.rows, pixels.rows, problem.out_channels, problem.output_size),
        index(channels.columns, pixels.columns, problem.in_channels, problem.input_size),
        (channels.shares[:, None] * pixels.shares).ravel(),
    )

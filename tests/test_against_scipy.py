"""The second oracle: a convolution as a sparse matrix A, written entry by entry from the definition.

The matrix shares no code with the package, not even the output size. A convolution must give A x, a
transposed convolution A.T y, and a deformable one its own A x, each to the bit on small-integer data.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
from helpers import DTYPES, describe, integers, run
from scipy import sparse

from fastconv.testing import assert_exact


@dataclass(frozen=True)
class Geometry:
    """One convolution without its data; a size, stride, padding and dilation for each axis, all different."""

    channels: tuple[int, int, int]  # C, O, G
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str = "zeros"

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def output(self) -> tuple[int, ...]:
        """Number of positions where the whole kernel lies inside the padded input."""
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(len(range(0, i + sum(p) - d * (k - 1), s)) for i, k, s, p, d in axes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        c, o, g = self.channels
        return (o, c // g, *self.kernel)

    @property
    def options(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


GEOMETRIES = [
    Geometry((1, 1, 1), (9,), (3,), (1,), ((0, 0),), (1,)),
    Geometry((3, 4, 1), (17,), (4,), (3,), ((2, 1),), (2,)),
    Geometry((4, 6, 2), (11,), (5,), (2,), ((0, 4),), (1,)),
    Geometry((3, 6, 3), (40,), (2,), (1,), ((3, 3),), (5,)),
    Geometry((2, 3, 1), (5, 8), (3, 2), (1, 1), ((1, 1), (0, 1)), (1, 1)),
    Geometry((3, 5, 1), (9, 7), (2, 3), (2, 1), ((1, 0), (2, 3)), (1, 2)),
    Geometry((4, 2, 2), (6, 11), (1, 4), (1, 3), ((0, 2), (5, 1)), (1, 1)),
    Geometry((6, 6, 6), (8, 10), (3, 3), (2, 1), ((1, 2), (0, 1)), (2, 1)),
    Geometry((3, 9, 3), (7, 6), (3, 1), (1, 4), ((2, 2), (0, 0)), (3, 1)),
    Geometry((2, 2, 1), (4, 5), (4, 5), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    Geometry((1, 3, 1), (2, 3), (3, 5), (2, 3), ((3, 2), (4, 4)), (1, 2)),
    Geometry((2, 3, 1), (3, 4, 5), (2, 1, 3), (1, 2, 1), ((1, 0), (0, 0), (1, 2)), (1, 1, 1)),
    Geometry((4, 4, 2), (5, 4, 6), (3, 2, 1), (2, 1, 3), ((2, 1), (1, 0), (0, 0)), (1, 3, 1)),
    Geometry((3, 3, 3), (4, 3, 5), (1, 3, 2), (1, 2, 1), ((0, 0), (2, 2), (1, 1)), (1, 1, 4)),
]
MODES = ("reflect", "replicate", "circular", "symmetric")
PADDED = [
    Geometry((3, 4, 1), (6,), (4,), (2,), ((5, 3),), (2,)),
    Geometry((2, 4, 2), (4, 6), (2, 3), (1, 2), ((1, 3), (4, 0)), (2, 1)),
    Geometry((2, 2, 2), (3, 4, 2), (2, 3, 2), (1, 2, 1), ((2, 1), (0, 3), (1, 1)), (1, 2, 1)),
]


def source(index: int, size: int, mode: str) -> int | None:
    """Return which pixel of the input a pixel of the padded one holds (None: zero)."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if index < 0 else size - 1
    if mode == "circular":
        return index % size
    if mode == "symmetric":
        return -1 - index if index < 0 else 2 * size - 1 - index
    return -index if index < 0 else 2 * size - 2 - index


def flat(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    position = 0
    for i, n in zip(index, shape, strict=True):
        position = position * n + i
    return position


def matrix(geometry: Geometry, weight: np.ndarray) -> sparse.csr_array:
    """Return A, of shape (O * output pixels, C * input pixels)."""
    rows, columns, values = [], [], []
    c, o, g = geometry.channels
    steps = tuple(zip(geometry.stride, geometry.dilation, geometry.padding, geometry.size, strict=True))
    for tap in np.ndindex(*geometry.kernel):
        for pixel in np.ndindex(*geometry.output):
            read = [
                source(p * s + t * d - before, n, geometry.mode)
                for p, t, (s, d, (before, _), n) in zip(pixel, tap, steps, strict=True)
            ]
            if None in read:
                continue
            for out_channel, k in product(range(o), range(c // g)):
                in_channel = out_channel // (o // g) * (c // g) + k
                rows.append(flat((out_channel, *pixel), (o, *geometry.output)))
                columns.append(flat((in_channel, *read), (c, *geometry.size)))
                values.append(weight[(out_channel, k, *tap)])
    shape = (o * math.prod(geometry.output), c * math.prod(geometry.size))
    return sparse.coo_array((values, (rows, columns)), shape, dtype=np.float64).tocsr()


def deformed_matrix(
    geometry: Geometry, weight: np.ndarray, offset: np.ndarray, mask: np.ndarray
) -> sparse.csr_array:
    """Return A for one image, with offset (DG, taps, ndim, *out) and mask (DG, taps, *out)."""
    rows, columns, values = [], [], []
    c, o, g = geometry.channels
    steps = tuple(zip(geometry.stride, geometry.dilation, geometry.padding, strict=True))
    for (t, tap), pixel, in_channel in product(
        enumerate(np.ndindex(*geometry.kernel)), np.ndindex(*geometry.output), range(c)
    ):
        d = in_channel // (c // len(offset))
        point = [
            p * s + tap_step * dilation - before + float(offset[(d, t, axis, *pixel)])
            for axis, (p, tap_step, (s, dilation, (before, _))) in enumerate(
                zip(pixel, tap, steps, strict=True)
            )
        ]
        if any(p <= -1 or p >= n for p, n in zip(point, geometry.size, strict=True)):
            continue
        for read in product(*((math.floor(p), math.floor(p) + 1) for p in point)):
            if any(i < 0 or i >= n for i, n in zip(read, geometry.size, strict=True)):
                continue
            share = math.prod(1 - abs(p - i) for p, i in zip(point, read, strict=True)) * mask[(d, t, *pixel)]
            group, k = divmod(in_channel, c // g)
            for out_channel in range(group * (o // g), (group + 1) * (o // g)):
                rows.append(flat((out_channel, *pixel), (o, *geometry.output)))
                columns.append(flat((in_channel, *read), (c, *geometry.size)))
                values.append(share * weight[(out_channel, k, *tap)])
    shape = (o * math.prod(geometry.output), c * math.prod(geometry.size))
    return sparse.coo_array((values, (rows, columns)), shape, dtype=np.float64).tocsr()


@cache
def system(geometry: Geometry) -> tuple[np.ndarray, sparse.csr_array]:
    """Return a weight and its matrix; every backend gets the same."""
    weight = integers(np.random.default_rng(math.prod(geometry.size)), geometry.weight_shape)
    return weight, matrix(geometry, weight)


def images(geometry: Geometry, channels: int, size: tuple[int, ...], dtype: str) -> np.ndarray:
    return integers(np.random.default_rng(7), (2, channels, *size), dtype)


def product_of(a: sparse.csr_array, x: np.ndarray, channels: int, size: tuple[int, ...]) -> np.ndarray:
    return (a @ x.reshape(len(x), -1).astype(np.float64).T).T.reshape(len(x), channels, *size).astype(x.dtype)


def ids(geometry: Geometry) -> str:
    sizes = "x".join(map(str, geometry.size))
    return f"{geometry.ndim}d-c{geometry.channels[0]}-o{geometry.channels[1]}-g{geometry.channels[2]}-{sizes}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
def test_convolution_is_the_matrix(backend, geometry, dtype):
    (c, o, g), (weight, a) = geometry.channels, system(geometry)
    x = images(geometry, c, geometry.size, dtype)
    call = (f"conv{geometry.ndim}d", x, weight.astype(dtype))
    actual = run(backend, *call, groups=g, **geometry.options)
    assert_exact(actual, product_of(a, x, o, geometry.output), describe(*call, groups=g, **geometry.options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
def test_transposed_convolution_is_the_transpose(backend, geometry, dtype):
    (c, o, g), (weight, a) = geometry.channels, system(geometry)
    y = images(geometry, o, geometry.output, dtype)
    call = (f"conv_transpose{geometry.ndim}d", y, weight.astype(dtype))
    options = geometry.options | {"groups": g, "output_size": geometry.size}
    assert_exact(
        run(backend, *call, **options), product_of(a.T, y, c, geometry.size), describe(*call, **options)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("geometry", PADDED, ids=ids)
def test_padding_modes_are_other_matrices(backend, geometry, mode):
    limit = [n - 1 if mode == "reflect" else math.inf if mode == "replicate" else n for n in geometry.size]
    padding = tuple((min(b, n), min(a, n)) for (b, a), n in zip(geometry.padding, limit, strict=True))
    geometry = Geometry(
        *(geometry.channels, geometry.size, geometry.kernel, geometry.stride),
        padding,
        geometry.dilation,
        mode,
    )
    (c, o, g), (weight, a) = geometry.channels, system(geometry)
    x = images(geometry, c, geometry.size, "float32")
    call = (f"conv{geometry.ndim}d", x, weight.astype("float32"))
    options = geometry.options | {"groups": g, "padding_mode": mode}
    assert_exact(
        run(backend, *call, **options), product_of(a, x, o, geometry.output), describe(*call, **options)
    )


@cache
def deformed_system(geometry: Geometry, offset_groups: int, masked: bool) -> tuple:
    """Return weight, offset, mask and matrix; offsets reach past every border in steps of a half."""
    rng = np.random.default_rng(11)
    weight = integers(rng, geometry.weight_shape)
    taps = math.prod(geometry.kernel)
    offset = rng.integers(-7, 8, (offset_groups, taps, geometry.ndim, *geometry.output)) / 2
    mask = rng.integers(0, 4, (offset_groups, taps, *geometry.output)).astype(np.float64)
    a = deformed_matrix(geometry, weight, offset, mask if masked else np.ones_like(mask))
    flat_offset = offset.reshape(1, -1, *geometry.output)
    return weight, flat_offset, mask.reshape(1, -1, *geometry.output) if masked else None, a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("geometry", GEOMETRIES[1:], ids=ids)
def test_deformable_convolution_is_its_matrix(backend, geometry, masked, dtype):
    c, o, _ = geometry.channels
    offset_groups = c if c < 4 else 1
    weight, offset, mask, a = deformed_system(geometry, offset_groups, masked)
    x = images(geometry, c, geometry.size, dtype)[:1]
    operands = (x, offset.astype(dtype), weight.astype(dtype))
    options = geometry.options | ({"mask": mask.astype(dtype)} if masked else {})
    call = (f"deform_conv{geometry.ndim}d", *operands)
    assert_exact(
        run(backend, *call, **options), product_of(a, x, o, geometry.output), describe(*call, **options)
    )


def test_the_matrix_itself():
    """A small case by hand: kernel [1, 2, 3], stride 2, one zero before."""
    geometry = Geometry((1, 1, 1), (4,), (3,), (2,), ((1, 0),), (1,))
    expected = [[2, 3, 0, 0], [0, 1, 2, 3]]
    assert matrix(geometry, np.array([[[1.0, 2.0, 3.0]]])).toarray().tolist() == expected

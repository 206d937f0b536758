"""The sparse matrix of a convolution, and the operator that stands for it: right for every variant, each other's twin."""

import numpy as np
import pytest
from helpers import integers
from samples import call, sample
from scipy import sparse
from scipy.sparse.linalg import lsqr
from test_against_scipy import GEOMETRIES, MODES, PADDED, deformed_system, ids, system

import fastconv
from fastconv.problem import CONV, CONV_TRANSPOSE, DCN, DEFORM_CONV, OPS
from fastconv.testing import assert_exact

pytestmark = pytest.mark.usefixtures("exact_kernels")

LAYOUTS = ("NCHW", "NHWC")


def rng():
    return np.random.default_rng(5)


def arranged(arrays, layout):
    """Return the arrays of a call with channels last where the layout says so."""
    images = ("input", "offset", "mask")
    last = layout == "NHWC"
    return {n: np.moveaxis(a, 1, -1) if last and n in images else a for n, a in arrays.items()}


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=ids)
def test_it_is_the_matrix_written_entry_by_entry(geometry):
    (c, o, g), (weight, a) = geometry.channels, system(geometry)
    options = geometry.options | {"groups": g}
    mine = fastconv.matrix(f"conv{geometry.ndim}d", (c, *geometry.size), weight, **options)
    assert isinstance(mine, sparse.csr_array)
    assert abs(mine - a).sum() == 0
    transposed = fastconv.matrix(
        f"conv_transpose{geometry.ndim}d",
        (o, *geometry.output),
        weight,
        **options,
        output_size=geometry.size,
    )
    assert abs(transposed - a.T).sum() == 0


@pytest.mark.parametrize("geometry", GEOMETRIES[1:], ids=ids)
def test_a_deformable_matrix_depends_on_offset_and_mask(geometry):
    c, _, _ = geometry.channels
    weight, offset, mask, a = deformed_system(geometry, c if c < 4 else 1, True)
    op = f"deform_conv{geometry.ndim}d"
    mine = fastconv.matrix(op, (1, c, *geometry.size), weight, offset=offset, mask=mask, **geometry.options)
    assert abs(mine - a).sum() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_y_is_a_x_for_a_batch_in_both_layouts(op, layout):
    arrays = arranged(without(sample(op), "bias"), layout)
    a = fastconv.matrix(op, arrays["input"].shape, **without(arrays, "input"), layout=layout)
    y = call(op, arrays, layout=layout, backend="numpy")
    assert a.dtype == np.float32
    assert_exact((a @ arrays["input"].ravel()).reshape(y.shape), y)


RELATIVES = {
    "deform_conv_transpose2d": dict(stride=(2, 1), padding=1, groups=2, output_padding=(1, 0)),
    "dcnv3": dict(kernel_size=(3, 5), offset_scale=0.5, remove_center=True, padding=(1, 2), dilation=(2, 1), stride=(1, 2)),
    "dcnv4": dict(kernel_size=(2, 3), padding=((0, 1), (1, 1)), offset_scale=2.0),
}  # fmt: skip


def relative(op, layout):
    """Return the arrays of a call of one of the deformable convolution's relatives, with two offset groups or three."""
    options, data = RELATIVES[op], rng()
    groups, weight = (3, integers(data, (4, 3, 3, 2))) if op not in DCN else (2, None)
    problem = fastconv.Problem.create(op, (2, 4, 7, 6), None if weight is None else weight.shape, **options)
    size = problem.input_size if problem.transposed else problem.output_size
    arrays = {
        "input": integers(data, (2, 4, 7, 6)),
        "mask": integers(data, (2, groups * problem.points, *size)),
    }
    arrays["offset"] = data.integers(-8, 9, (2, 2 * groups * problem.points, *size)) / 4
    return arranged(arrays, layout) | ({} if weight is None else {"weight": weight})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", RELATIVES)
def test_relatives_of_the_deformable_convolution(op, layout):
    arrays, options = relative(op, layout), RELATIVES[op] | {"layout": layout}
    a = fastconv.matrix(op, arrays["input"].shape, **without(arrays, "input"), **options)
    operator = fastconv.linear_operator(op, arrays["input"].shape, **without(arrays, "input"), **options)
    y = call(op, arrays, **options)
    gy = integers(rng(), y.size)
    products = (
        (a @ arrays["input"].ravel(), y),
        (operator @ arrays["input"].ravel(), y),
        (operator.T @ gy, a.T @ gy),
    )
    for found, expected in products:
        if op == "dcnv3":  # a softmax is no whole number
            assert np.allclose(found, expected.ravel(), rtol=0, atol=1e-13)
        else:
            assert_exact(found, expected.ravel())


def test_a_transposed_deformable_convolution_is_the_transpose():
    arrays = relative("deform_conv_transpose2d", "NCHW")
    options = {
        name: value
        for name, value in RELATIVES["deform_conv_transpose2d"].items()
        if name != "output_padding"
    }
    moved = {"offset": arrays["offset"], "mask": arrays["mask"]}
    y = call("deform_conv_transpose2d", arrays, **RELATIVES["deform_conv_transpose2d"])
    forward = fastconv.matrix("deform_conv2d", y.shape, arrays["weight"], **moved, **options)
    transposed = fastconv.matrix(
        "deform_conv_transpose2d",
        arrays["input"].shape,
        arrays["weight"],
        **moved,
        **RELATIVES["deform_conv_transpose2d"],
    )
    assert abs(transposed - forward.T).sum() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", PADDED, ids=ids)
def test_padding_that_copies_pixels(geometry, layout, mode):
    c, _, g = geometry.channels
    limits = (n - 1 for n in geometry.size)
    padding = tuple((min(b, n), min(a, n)) for (b, a), n in zip(geometry.padding, limits, strict=True))
    options = {**geometry.options, "padding": padding, "groups": g, "padding_mode": mode, "layout": layout}
    x = integers(rng(), (2, c, *geometry.size))
    x = np.moveaxis(x, 1, -1) if layout == "NHWC" else x
    weight, op = integers(rng(), geometry.weight_shape), f"conv{geometry.ndim}d"
    try:
        y = getattr(fastconv, op)(x, weight, **options, backend="numpy")
    except fastconv.ShapeError:  # the smaller padding leaves no output
        pytest.skip("no output")
    a = fastconv.matrix(op, x.shape, weight, **options)
    operator = fastconv.linear_operator(op, x.shape, weight, **options)
    assert_exact((a @ x.ravel()).reshape(y.shape), y)
    gy = integers(rng(), y.shape)
    assert_exact(operator @ x.ravel(), y.ravel())
    assert_exact(operator.T @ gy.ravel(), a.T @ gy.ravel())


def test_a_transposed_convolution_with_rows_that_no_tap_reaches():
    weight = np.ones((1, 1, 2))
    a = fastconv.matrix("conv_transpose1d", (1, 2), weight, stride=4, output_padding=3)
    assert a.toarray().T.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0, 0]]


def test_zero_weights_are_entries_too():
    a = fastconv.matrix("conv2d", (1, 4, 4), np.zeros((2, 1, 3, 3)), padding=1)
    assert a.nnz == 2 * (4 * 4 + 8 * 6 + 4 * 9)  # 4 corners with 4 taps, 8 edges with 6, 4 inside


def test_offsets_that_are_no_numbers():
    offset = np.array([[np.nan, np.inf, 1.0]])
    a = fastconv.matrix("deform_conv1d", (1, 3), np.ones((1, 1, 1)), offset=offset)
    expected = np.array([[np.nan, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert np.array_equal(a.toarray(), expected, equal_nan=True)


def test_an_empty_batch():
    assert fastconv.matrix("conv1d", (0, 1, 3), np.ones((1, 1, 2))).shape == (0, 0)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(op="conv9d"), ValueError, "op must be one of"),
        (dict(input_shape=(1, 3, 8, 8)), fastconv.ShapeError, "weight has 2 input channels per group"),
        (dict(output_padding=1), ValueError, "output_padding belongs to transposed convolutions"),
        (dict(offset=np.zeros((1, 18, 6, 6))), ValueError, "belong to deformable convolutions"),
        (dict(op="deform_conv2d"), TypeError, "offset must be an array"),
        (dict(op="dcnv4", weight=None, kernel_size=3), TypeError, "offset must be an array"),
        (dict(op="dcnv4"), TypeError, "weight must be None"),
        (dict(weight=None), TypeError, "weight must be an array"),
        (dict(weight=(3, 2, 3, 3)), fastconv.ShapeError, "weight of conv2d must have 4 dimensions"),
        (dict(input_shape=(1, 2, 10**6, 10**6)), MemoryError, "the matrix with entries"),
    ],
)
def test_wrong_arguments_are_told_before_any_work(change, error, text):
    arguments = {"op": "conv2d", "input_shape": (1, 2, 8, 8), "weight": np.ones((3, 2, 3, 3))} | change
    with pytest.raises(error, match=text):
        fastconv.matrix(**arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_the_operator_is_the_matrix(op, layout):
    arrays = arranged(without(sample(op, dtype=np.float64), "bias"), layout)
    shape, constant = arrays["input"].shape, without(arrays, "input")
    a = fastconv.matrix(op, shape, **constant, layout=layout)
    operator = fastconv.linear_operator(op, shape, **constant, layout=layout)
    assert operator.shape == a.shape
    assert operator.dtype == a.dtype == np.float64
    x, y = integers(rng(), a.shape[1]), integers(rng(), a.shape[0])
    assert_exact(operator @ x, a @ x)
    assert_exact(operator.T @ y, a.T @ y)
    assert_exact(operator.H @ np.stack([y, -y], axis=1), a.T @ np.stack([y, -y], axis=1))


@pytest.mark.parametrize("op", CONV + CONV_TRANSPOSE + DEFORM_CONV)
def test_the_operator_keeps_its_type(op):
    arrays = without(sample(op, batch=1), "bias")
    operator = fastconv.linear_operator(op, arrays["input"].shape, **without(arrays, "input"))
    assert (operator @ np.ones(operator.shape[1])).dtype == operator.dtype == np.float32


def test_a_photograph_is_deblurred(photograph):
    x = photograph[:1, 100:228, 100:228].astype(np.float64)
    kernel = np.outer(*[np.exp(-(np.arange(-4, 5) ** 2) / 2)] * 2)[None, None]
    a = fastconv.linear_operator(
        "conv2d", x.shape, kernel / kernel.sum(), padding=4, padding_mode="symmetric"
    )
    blurred = (a @ x.ravel()).reshape(x.shape)
    found, *_ = lsqr(a, blurred.ravel(), iter_lim=60, x0=blurred.ravel())
    before, after = (np.abs(image - x).mean() for image in (blurred, found.reshape(x.shape)))
    assert after < 0.4 * before


def test_the_image_whose_strided_convolution_is_given(photograph):
    # Fewer equations than pixels: the solution of least norm has the given convolution, and no part outside A's rows.
    x = photograph[:, 100:132, 100:132].astype(np.float64)
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3))
    options = {"stride": 2, "padding": 1}
    a = fastconv.linear_operator("conv2d", x.shape, weight, **options)
    given = a @ x.ravel()
    found, *_ = lsqr(a, given, atol=1e-12, btol=1e-12, iter_lim=2000)
    assert np.abs(a @ found - given).max() < 1e-8
    least = np.linalg.lstsq(fastconv.matrix("conv2d", x.shape, weight, **options).toarray(), given)[0]
    assert np.abs(found - least).max() < 1e-6

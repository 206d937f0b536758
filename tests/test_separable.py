"""Separable convolutions are their two parts, one after the other; nothing in between leaves its band."""

import numpy as np
import pytest
from helpers import DTYPES, FLOAT32, integers, normals

import fastconv
from fastconv import ShapeError, UnsupportedError, testing

RNG = np.random.default_rng(5)
# Several bands of rows, odd sizes, more than one vector of channels.
SHAPES = {1: (45,), 2: (37, 29), 3: (6, 9, 11)}


def operands(
    ndim: int, dtype: str, layout: str = "NCHW", make=integers, channels: int = 40, outputs: int = 21
):
    size = SHAPES[ndim]
    shape = (2, channels, *size) if layout == "NCHW" else (2, *size, channels)
    kernel = (3, 2, 3)[:ndim]
    return {
        "input": make(RNG, shape, dtype),
        "depthwise_weight": make(RNG, (channels, 1, *kernel), dtype),
        "pointwise_weight": make(RNG, (outputs, channels, *(1,) * ndim), dtype),
        "depthwise_bias": make(RNG, (channels,), dtype),
        "pointwise_bias": make(RNG, (outputs,), dtype),
    }


def separable(ndim: int, arrays: dict, **options) -> np.ndarray:
    return getattr(fastconv, f"separable_conv{ndim}d")(**arrays, **options)


def two_calls(ndim: int, a: dict, backend: str, first: dict, last: dict) -> np.ndarray:
    conv = getattr(fastconv, f"conv{ndim}d")
    groups = len(a["depthwise_weight"])
    z = conv(a["input"], a["depthwise_weight"], a["depthwise_bias"], groups=groups, backend=backend, **first)
    return conv(z, a["pointwise_weight"], a["pointwise_bias"], backend=backend, **last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_it_is_two_calls(backend, ndim, layout, dtype):
    a = operands(ndim, dtype, layout)
    common = {"padding": 1, "stride": 2}
    actual = separable(
        ndim, a, **common, layout=layout, depthwise_activation="relu6", activation="relu", backend=backend
    )
    first = common | {"layout": layout, "activation": "relu6"}
    expected = two_calls(ndim, a, "numpy", first, {"layout": layout, "activation": "relu"})
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_rounding(backend, layout):
    a = operands(2, "float32", layout, normals, channels=150)
    options = {"padding": 1, "layout": layout, "depthwise_activation": "silu"}
    exact = separable(
        2, {name: array.astype(np.float64) for name, array in a.items()}, **options, backend="numpy"
    )
    testing.assert_close(separable(2, a, **options, backend=backend), exact, FLOAT32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [40, 400])
def test_bits_depend_on_neither_threads_nor_batch(backend, layout, channels):
    a = operands(2, "float32", layout, normals, channels)
    options = {"padding": 1, "layout": layout, "backend": backend}
    whole = separable(2, a, **options, num_threads=1)
    np.testing.assert_array_equal(separable(2, a, **options, num_threads=3), whole)
    for image in range(2):
        one = a | {"input": a["input"][image]}
        np.testing.assert_array_equal(separable(2, one, **options), whole[image])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_what_is_not_finite_stays_in_its_window(backend, layout, value):
    a = operands(2, "float32", layout)
    a["depthwise_weight"] = np.abs(a["depthwise_weight"]) + 1
    a["pointwise_weight"] = np.abs(a["pointwise_weight"]) + 1
    a["input"][(1, 5, 20, 11) if layout == "NCHW" else (1, 20, 11, 5)] = value
    y = separable(2, a, padding=((1, 1), (0, 1)), layout=layout, backend=backend)
    y = y if layout == "NCHW" else np.moveaxis(y, -1, 1)
    spoiled = np.zeros(y.shape, bool)
    spoiled[1, :, 19:22, 10:12] = True
    np.testing.assert_array_equal(np.isfinite(y), ~spoiled)


def test_a_plan_is_the_call_and_tells_what_it_saves(backend):
    a = operands(2, "float32")
    arrays = dict(a)
    x = arrays.pop("input")
    plan = fastconv.plan_separable("separable_conv2d", x.shape, **arrays, padding=1, backend=backend)
    expected = separable(2, a, padding=1, backend=backend)
    for array in arrays.values():
        array[...] = 99  # the plan has copies
    out = np.empty(plan.output_shape, np.float32)
    assert plan(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    if backend != "numpy":
        assert "saved between the two: 0.355 MB an image" in str(plan)
    with pytest.raises(TypeError, match="takes no offset"):
        plan(x, x)


def test_explain_names_the_kernels(backend):
    a = operands(2, "float32")
    told = fastconv.explain("separable_conv2d", *a.values(), backend=backend)
    assert told.backend == backend
    by_shape = fastconv.explain("separable_conv2d", *(array.shape for array in a.values()), backend=backend)
    assert by_shape.kernel == told.kernel
    if backend == "cython":
        assert told.kernel == "separable_conv_bands"
        assert "cython separable_conv_two_calls" in told.refusals


@pytest.mark.parametrize(
    ("shape", "kernel", "reason"),
    [((1, 64, 70_000), 3, "does not stay in cache"), ((1, 64, 3), 1, "no tap")],
)
def test_what_bands_refuse_is_two_calls(shape, kernel, reason):
    options = {"padding": 5, "stride": 20} if kernel == 1 else {}
    told = fastconv.explain(
        "separable_conv1d", shape, (64, 1, kernel), (8, 64, 1), **options, backend="cython"
    )
    assert told.kernel == "separable_conv_two_calls"
    assert reason in told.refusals["cython separable_conv_bands"]
    arrays = [integers(RNG, s, "float32") for s in (shape, (64, 1, kernel), (8, 64, 1))]
    np.testing.assert_array_equal(
        fastconv.separable_conv1d(*arrays, **options, backend="cython"),
        fastconv.separable_conv1d(*arrays, **options, backend="numpy"),
    )


def test_a_backend_without_a_kernel_for_it_makes_two_calls():
    (oracle,) = fastconv.kernels("conv2d", backend="numpy")

    class Plain:
        name = "plain"
        kernels = (
            fastconv.Kernel("conv_plain", name, ("conv2d",), oracle.refuse, oracle.cost, oracle.build),
        )

    fastconv.register_backend(Plain())
    try:
        a = operands(2, "float32")
        assert fastconv.explain("separable_conv2d", *a.values(), backend="plain").backend == "plain"
        np.testing.assert_array_equal(separable(2, a, backend="plain"), separable(2, a, backend="numpy"))
        arrays = dict(a)
        x = arrays.pop("input")
        plan = fastconv.plan_separable("separable_conv2d", x.shape, **arrays, backend="plain")
        np.testing.assert_array_equal(plan(x), separable(2, a, backend="numpy"))
        with pytest.raises(UnsupportedError, match="no kernel for conv1d"):
            separable(1, operands(1, "float32"), backend="plain")
    finally:
        fastconv.unregister_backend("plain")


def test_functions_as_activations():
    pytest.importorskip("numba")
    a = operands(2, "float32")

    def doubled(v):
        return v + v

    y = separable(2, a, depthwise_activation=doubled, backend="numba")
    z = separable(2, a | {"pointwise_bias": a["pointwise_bias"] / 2}, backend="numba")
    np.testing.assert_array_equal(y, 2 * z)
    with pytest.raises(UnsupportedError, match="Python function"):
        separable(2, a, depthwise_activation=doubled, backend="cython")


@pytest.mark.parametrize("dtype", ["int16", "float16", "bool"])
def test_other_types(backend, dtype):
    a = {name: (array > 0).astype(dtype) for name, array in operands(2, "float32", channels=3).items()}
    y = separable(2, a, backend=backend)
    assert y.dtype == (np.float16 if dtype == "float16" else np.float32)
    wide = {name: array.astype(np.float64) for name, array in a.items()}
    np.testing.assert_array_equal(y, separable(2, wide, backend="numpy"))


def test_empty_batch(backend):
    a = operands(2, "float32")
    y = separable(2, a | {"input": a["input"][:0]}, backend=backend)
    assert y.shape == (0, 21, 35, 28)


MISTAKES = [
    (
        {"depthwise_weight": np.ones((40, 2, 3, 3))},
        ShapeError,
        r"depthwise_weight must have a shape \(C\*M, 1, KH, KW\)",
    ),
    ({"depthwise_weight": np.ones((40, 1, 3))}, ShapeError, r"depthwise_weight .* got \(40, 1, 3\)"),
    ({"depthwise_weight": np.ones((40, 1, 0, 3))}, ShapeError, "without empty dimensions"),
    ({"depthwise_weight": np.ones((41, 1, 3, 3))}, ShapeError, "multiple of the input's 40 channels"),
    ({"depthwise_weight": np.ones((40, 1, 99, 3))}, ShapeError, "output would have size"),
    (
        {"pointwise_weight": np.ones((21, 39, 1, 1))},
        ShapeError,
        r"pointwise_weight must have shape \(O, 40, 1, 1\)",
    ),
    ({"pointwise_weight": np.ones((21, 40))}, ShapeError, r"got \(21, 40\)"),
    ({"pointwise_weight": np.ones((21, 40, 1, 3))}, ShapeError, r"got \(21, 40, 1, 3\)"),
    ({"pointwise_weight": np.ones((0, 40, 1, 1))}, ShapeError, r"got \(0, 40, 1, 1\)"),
    ({"depthwise_bias": np.ones(21)}, ShapeError, r"depthwise_bias must have shape \(40,\)"),
    ({"pointwise_bias": np.ones(40)}, ShapeError, r"pointwise_bias must have shape \(21,\)"),
    ({"input": np.ones((40, 37))}, ShapeError, "input of separable_conv2d must have 4 dimensions"),
    ({"input": None}, TypeError, "input must be an array"),
    ({"pointwise_weight": None}, TypeError, "pointwise_weight must be an array"),
    (
        {"depthwise_weight": np.ones((40, 1, 3, 3), complex)},
        TypeError,
        "depthwise_weight must hold real numbers",
    ),
    ({"depthwise_activation": "tanh"}, ValueError, "depthwise_activation must be one of"),
    ({"depthwise_activation": 3}, TypeError, "depthwise_activation must be None"),
    ({"activation": "tanh"}, ValueError, "activation must be one of"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"stride": 1.0}, TypeError, "stride must be an integer"),
    ({"padding": -1}, ValueError, "padding must be at least 0"),
    ({"padding_mode": "wrap"}, ValueError, "padding_mode must be one of"),
    ({"layout": "NCWH"}, ValueError, "layout must be one of"),
    ({"accuracy": "low"}, ValueError, "accuracy must be one of"),
    ({"backend": "nonsense"}, fastconv.BackendError, "unknown backend"),
    ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ({"out": np.empty((2, 21, 3, 3), np.float32)}, ShapeError, "out must have shape"),
    ({"out": np.empty((2, 21, 35, 28))}, TypeError, "out must have dtype float32"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes_are_named_before_any_work(change, error, message):
    a = {name: array.copy() for name, array in operands(2, "float32").items()}
    with pytest.raises(error, match=message):
        fastconv.separable_conv2d(**{**a, **change})


def test_out_must_not_overlap_a_weight():
    a = operands(2, "float32")
    out = np.zeros((2, 21, 35, 28), np.float32)
    a["pointwise_weight"] = out.reshape(-1)[: 21 * 40].reshape(21, 40, 1, 1)
    with pytest.raises(ValueError, match=r"out .* overlaps pointwise_weight"):
        separable(2, a, out=out)

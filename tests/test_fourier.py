"""Large depthwise kernels by way of frequencies: as near as direct sums, and a NaN stays where it was."""

import numpy as np
import pytest

import fastconv
from fastconv import testing

KERNEL = "conv_depthwise_fourier"
CHANNELS, SIDE, TAPS = 19, 28, 31
OPTIONS = {"padding": 15, "groups": CHANNELS, "activation": "relu"}


@pytest.fixture(params=["NCHW", "NHWC"])
def layout(request):
    return request.param


@pytest.fixture
def convolve(backend, layout):
    """The call on a backend that has the kernel, with images as they lie in the layout."""
    if KERNEL not in [kernel.name for kernel in fastconv.kernels("conv2d", backend=backend)]:
        pytest.skip(f"{backend} has no {KERNEL}")

    def call(x, weight, bias, on=backend, **options):
        options = OPTIONS | {"layout": layout} | options
        laid = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
        if on == backend and "accuracy" not in options:
            assert fastconv.explain("conv2d", laid, weight, bias, **options, backend=on).kernel == KERNEL
        y = fastconv.conv2d(laid, weight, bias, **options, backend=on)
        return y if layout == "NCHW" else np.moveaxis(y, -1, 1)

    return call


def operands(dtype, magnitudes=False):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, CHANNELS, SIDE, SIDE))
    weight = rng.standard_normal((CHANNELS, 1, TAPS, TAPS))
    if magnitudes:
        x *= 10.0 ** rng.integers(-3, 4, x.shape)
        weight *= 10.0 ** rng.integers(-3, 4, weight.shape)
    return [array.astype(dtype) for array in (x, weight, rng.standard_normal(CHANNELS))]


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_as_near_as_direct_sums(convolve, dtype, magnitudes):
    given = operands(dtype, magnitudes)
    expected = convolve(*(array.astype(np.float64) for array in given), on="numpy")
    testing.assert_close(convolve(*given), expected, 8 * np.finfo(dtype).eps)


def test_a_value_that_is_not_finite_changes_what_it_meets_alone(convolve):
    x, weight, bias = operands("float32")
    x[0, 1, 3, 4], x[1, 2, 5, 5], x[1, CHANNELS - 1, 0, SIDE - 1] = np.nan, np.inf, -np.inf
    testing.assert_close(convolve(x, weight, bias), convolve(x, weight, bias, on="numpy"), 1e-6)


def test_sums_that_overflow_on_the_way_do_not_in_the_end(convolve):
    x, weight, bias = operands("float32")
    x *= np.float32(2.0) ** 124
    weight *= np.float32(2.0) ** -4
    expected = convolve(x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64), on="numpy")
    expected[expected > np.finfo(np.float32).max] = np.inf
    actual = convolve(x, weight, bias)
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))


def test_same_bits_on_any_number_of_threads(convolve):
    given = operands("float32")
    assert np.array_equal(convolve(*given, num_threads=1), convolve(*given, num_threads=5))


def test_high_accuracy_takes_direct_sums(convolve, backend):
    x, weight, bias = operands("float32")
    found = fastconv.explain("conv2d", x, weight, bias, **OPTIONS, accuracy="high", backend=backend).kernel
    assert found == "conv_depthwise_nchw"

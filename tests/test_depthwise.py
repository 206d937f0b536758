"""One input channel a group: every kind of tile, on each side of any padding, equals the oracle."""

from itertools import product

import numpy as np
import pytest
from helpers import integers, run

import fastconv
from fastconv import config
from fastconv.lowering import depthwise, pixels

pytestmark = pytest.mark.usefixtures("exact_kernels")

CHANNELS = 3

# (kernel, stride, dilation, padding): runs of taps, every second pixel with 1 to 3 columns that share it, strides and
# dilations without tiles of their own, padding beyond the kernel.
GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((7, 6), (1, 1), (1, 1), (3, 0)),
    ((3, 3), (1, 1), (5, 4), (5, 4)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((5, 5), (2, 2), (1, 1), (12, 6)),
    ((7, 2), (2, 2), (1, 1), (3, 1)),
    ((2, 4), (2, 2), (3, 1), (4, 0)),
    ((3, 3), (1, 2), (1, 1), (1, 1)),
    ((3, 5), (3, 3), (1, 1), (0, 2)),
]
# Fewer pixels than a vector, than half of one, and more than several, none a multiple of it; rows of several tiles.
SIZES = [(3, 4), (9, 13), (20, 37), (16, 75)]


@pytest.mark.parametrize("variant", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding"), GEOMETRIES)
def test_tiles_equal_the_oracle(backend, isa, variant, kernel, stride, dilation, padding):
    rng = np.random.default_rng(0)
    for size in SIZES:
        x = integers(rng, (2, CHANNELS, *size), np.float32)
        w = integers(rng, (CHANNELS, 1, *kernel), np.float32)
        b = integers(rng, (CHANNELS,), np.float32)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": CHANNELS}
        for activation in ("relu6", "hardswish"):
            call = (variant, x, w, b)
            try:
                expected = run("numpy", *call, **options, activation=activation)
            except fastconv.ShapeError:  # a kernel that is larger than the image
                continue
            with config.limit_isa(isa) if isa else config.threads(2):
                actual = run(backend, *call, **options, activation=activation)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("groups", [1, 2])
def test_copied_padding_of_every_stride(backend, mode, layout, groups):
    """A border that continues the image in equal steps, as every third row of 0 1 2 1 does, is a border still."""
    rng = np.random.default_rng(1)
    sizes, strides, kernels = [(3, 7), (5, 6)], [(1, 3), (2, 2), (3, 1), (4, 2)], [(1, 1), (3, 2)]
    paddings = [((0, 1), (0, 0)), ((2, 1), (0, 0)), ((0, 0), (0, 1)), ((1, 2), (1, 1))]
    for size, stride, kernel, padding in product(sizes, strides, kernels, paddings):
        x = integers(rng, (2, 2, *size) if layout == "NCHW" else (2, *size, 2), np.float32)
        w = integers(rng, (2, 2 // groups, *kernel), np.float32)
        options = {
            "stride": stride,
            "padding": padding,
            "padding_mode": mode,
            "groups": groups,
            "layout": layout,
        }
        actual = run(backend, "conv2d", x, w, **options)
        np.testing.assert_array_equal(actual, run("numpy", "conv2d", x, w, **options))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_few_channels_that_come_last_equal_the_oracle(backend, isa, channels, padding_mode):
    """Pixels beside each other share vectors: in rows too short for that, just as long, and with some left over."""
    rng = np.random.default_rng(0)
    for width, kernel, dilation in [(7, (3, 3), 1), (40, (3, 4), 1), (101, (5, 5), 3), (135, (13, 13), 1)]:
        x = integers(rng, (2, 20, width, channels), np.float32)
        w = integers(rng, (channels, 1, *kernel), np.float32)
        padding = tuple(min((k - 1) * dilation // 2, 6) for k in kernel)
        options = {"padding": padding, "dilation": dilation, "groups": channels, "layout": "NHWC"}
        options |= {"padding_mode": padding_mode, "stride": (2, 1)}
        for bias in (None, integers(rng, (channels,), np.float32)):
            call = ("conv2d", x, w, bias)
            expected = run("numpy", *call, **options, activation="relu6")
            with config.limit_isa(isa) if isa else config.threads(2):
                actual = run(backend, *call, **options, activation="relu6")
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("variant", ["conv2d", "conv_transpose2d"])
def test_rows_fetched_ahead_change_nothing(backend, variant, layout, monkeypatch):
    """As of images larger than any cache, here of small ones."""
    for module in (depthwise, pixels):
        monkeypatch.setattr(module, "BEYOND_CACHES", 0)
    rng = np.random.default_rng(0)
    for kernel, stride, dilation, padding in GEOMETRIES:
        x = integers(rng, (2, CHANNELS, 23, 41) if layout == "NCHW" else (2, 23, 41, CHANNELS), np.float32)
        w = integers(rng, (CHANNELS, 1, *kernel), np.float32)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": CHANNELS}
        expected = run("numpy", variant, x, w, **options, layout=layout)
        np.testing.assert_array_equal(run(backend, variant, x, w, **options, layout=layout), expected)

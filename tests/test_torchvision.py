"""Deformable convolution against torchvision: the shapes of its own test, and random ones.

torchvision gets no NaN offset: it reads outside of the image at a point that is not a number. What fastconv
does there is a law of its own in test_properties.py.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import DTYPES, FLOAT32, FLOAT64, describe, integers, normals, run

from fastconv.testing import assert_close, assert_exact

torch = pytest.importorskip("torch", reason="torchvision computes with torch")
ops = pytest.importorskip("torchvision.ops", reason="torchvision is the reference for deformable convolution")

TOLERANCE = {"float32": FLOAT32, "float64": FLOAT64}


@dataclass(frozen=True)
class Layer:
    """The sizes of one deformable convolution, in the symbols of the project."""

    n: int
    c: int
    o: int
    g: int
    dg: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def output(self) -> tuple[int, ...]:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in axes)

    @property
    def shapes(self) -> dict:
        taps = self.dg * self.kernel[0] * self.kernel[1]
        return {
            "input": (self.n, self.c, *self.size),
            "offset": (self.n, 2 * taps, *self.output),
            "mask": (self.n, taps, *self.output),
            "weight": (self.o, self.c // self.g, *self.kernel),
            "bias": (self.o,),
        }

    def __str__(self) -> str:
        (h, w), (kh, kw) = self.size, self.kernel
        return f"n{self.n}-c{self.c}-o{self.o}-g{self.g}-dg{self.dg}-{h}x{w}-k{kh}x{kw}"


# Those of torchvision's TestDeformConv: every axis and every count of groups another, batches of 0 and 33.
OWN = [Layer(n, 6, 2, 2, 3, (5, 4), (3, 2), (2, 1), (1, 0), (2, 1)) for n in (0, 33)]
LAYERS = [
    Layer(1, 1, 1, 1, 1, (6, 7), (1, 1)),
    Layer(2, 3, 5, 1, 1, (9, 11), (3, 3), (1, 1), (1, 1)),
    Layer(1, 4, 4, 4, 4, (8, 13), (2, 3), (1, 2), (0, 1)),
    Layer(2, 4, 4, 4, 1, (7, 5), (3, 1), (2, 1), (2, 0), (1, 1)),
    Layer(1, 6, 9, 3, 2, (10, 8), (3, 2), (1, 1), (1, 2), (2, 3)),
    Layer(1, 8, 20, 2, 4, (12, 15), (2, 2), (2, 3), (1, 1), (1, 2)),
    Layer(3, 16, 24, 1, 2, (14, 12), (3, 3), (1, 1), (1, 1)),
    Layer(1, 16, 8, 1, 16, (5, 33), (1, 5), (1, 1), (0, 2)),
    Layer(1, 35, 17, 1, 5, (6, 9), (3, 3), (1, 1), (2, 2), (2, 2)),
    Layer(1, 2, 3, 1, 1, (1, 1), (3, 3), (1, 1), (1, 1)),
    Layer(1, 3, 2, 1, 3, (2, 40), (2, 4), (1, 1), (1, 3)),
    Layer(1, 64, 64, 1, 1, (7, 7), (3, 3), (1, 1), (1, 1)),
]


def torchvision(operands: dict, layer: Layer) -> np.ndarray:
    """Return torchvision's answer for these arrays, which may be of any strides."""
    assert not np.isnan(operands["offset"]).any(), "torchvision must not be given a NaN offset"
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in operands.items()}
    return ops.deform_conv2d(
        **tensors, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
    ).numpy()


def fastconv_run(backend: str, operands: dict, layer: Layer) -> tuple[np.ndarray, str]:
    """Return our answer by the same arguments, and the call as text."""
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    text = describe("deform_conv2d", **operands, **options)
    return run(backend, "deform_conv2d", **operands, **options), text


def random_operands(layer: Layer, dtype: str, *, mask: bool, seed: int = 0) -> dict:
    """Return normal random numbers; displacements are whole multiples of 1/1024.

    So float32 holds every sampled coordinate and every bilinear share exactly, and the tolerance is that of
    the sums: coordinates rounded to float32 are a matter of its own, below.
    """
    rng = np.random.default_rng(seed)
    operands = {
        name: normals(rng, shape, dtype) for name, shape in layer.shapes.items() if mask or name != "mask"
    }
    operands["offset"] = np.round(2 * operands["offset"] * 1024) / 1024
    return operands


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("mask", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("layer", OWN, ids=str)
def test_torchvisions_own_shapes(backend, layer, mask, contiguous, dtype):
    operands = random_operands(layer, dtype, mask=mask)
    expected = torchvision(operands, layer)
    if not contiguous:  # the strides torchvision tests with: axes stored in another order
        orders = {"input": (0, 1, 3, 2), "offset": (1, 3, 0, 2), "mask": (1, 3, 0, 2), "weight": (3, 2, 0, 1)}
        for name in set(orders) & set(operands):
            stored = np.ascontiguousarray(operands[name].transpose(orders[name]))
            operands[name] = stored.transpose(np.argsort(orders[name]))
    actual, text = fastconv_run(backend, operands, layer)
    assert_close(actual, expected, TOLERANCE[dtype], text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_random_numbers(backend, layer, mask, dtype):
    operands = random_operands(layer, dtype, mask=mask)
    expected = torchvision({name: array.astype(np.float64) for name, array in operands.items()}, layer)
    actual, text = fastconv_run(backend, operands, layer)
    assert_close(actual, expected, TOLERANCE[dtype], text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_whole_numbers_and_quarters(backend, layer, mask, dtype):
    """Equal to the bit, borders included: points lie on, between and just outside the pixels."""
    rng = np.random.default_rng(1)
    operands = {
        name: integers(rng, shape, dtype) for name, shape in layer.shapes.items() if mask or name != "mask"
    }
    operands["offset"] = (rng.integers(-12, 13, operands["offset"].shape) / 4).astype(dtype)
    actual, text = fastconv_run(backend, operands, layer)
    assert_exact(actual, torchvision(operands, layer), text)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_coordinates_rounded_to_float32(backend, layer):
    """Any offset in float32. A coordinate of size p is rounded by up to p * 2**-24, and the sample with it.

    Here p stays below 64, which gives 4e-6; the error is that of the sum of many, so half of it is allowed.
    """
    operands = random_operands(layer, "float32", mask=True, seed=3)
    operands["offset"] = normals(np.random.default_rng(4), operands["offset"].shape, "float32")
    expected = torchvision({name: array.astype(np.float64) for name, array in operands.items()}, layer)
    actual, text = fastconv_run(backend, operands, layer)
    assert_close(actual, expected, 2e-6, text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31, 2.0**63])
def test_points_far_outside_read_zero(backend, value, dtype):
    layer = LAYERS[1]
    rng = np.random.default_rng(2)
    operands = {name: integers(rng, shape, dtype) for name, shape in layer.shapes.items()}
    operands["offset"][rng.random(operands["offset"].shape) < 0.3] = value
    actual, text = fastconv_run(backend, operands, layer)
    assert_exact(actual, torchvision(operands, layer), text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(backend, value, dtype):
    """Such a pixel shows wherever it is a corner of a sampled point, even one with no share in it."""
    layer = LAYERS[4]
    rng = np.random.default_rng(2)
    operands = {name: integers(rng, shape, dtype) for name, shape in layer.shapes.items()}
    operands["offset"] = (rng.integers(-12, 13, operands["offset"].shape) / 4).astype(dtype)
    operands["input"][rng.random(operands["input"].shape) < 0.02] = value
    expected = torchvision(operands, layer)
    assert 0 < np.isfinite(expected).mean() < 1, "the case tests nothing"
    actual, text = fastconv_run(backend, operands, layer)
    assert_exact(actual, expected, text)


@pytest.mark.parametrize("inside", [2.0**-10, 2.0**-20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_border(backend, dtype, inside):
    """A point at -1 or at the size reads zero; one just within reads the share left of the border pixel.

    Shares of 2**-10 are exact in float32; those of 2**-20 leave room for two roundings.
    """
    layer = Layer(1, 1, 1, 1, 1, (4, 5), (1, 1))
    x = np.arange(1.0, 21.0).reshape(1, 1, 4, 5).astype(dtype)
    places = np.array(
        [-1 - inside, -1, -1 + inside, 0, 3 - inside, 3, 3 + inside, 4 - inside, 4, 4 + inside, 5 - inside, 5]
    )
    weight = np.ones((1, 1, 1, 1), dtype)
    for axis in (0, 1):
        for place in places:
            offset = np.zeros((1, 2, 4, 5), dtype)
            offset[:, axis] = place - np.arange((4, 5)[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
            operands = {"input": x, "offset": offset, "weight": weight}
            actual, text = fastconv_run(backend, operands, layer)
            expected = torchvision(operands, layer)
            tolerance = 0.0 if inside == 2.0**-10 else 2 * np.finfo(dtype).eps
            assert_close(actual, expected, tolerance, f"{text} at {place} on axis {axis}")


def test_arguments_have_torchvisions_order(backend):
    layer = LAYERS[5]
    o = random_operands(layer, "float64", mask=True)
    arrays = [o[name] for name in ("input", "offset", "weight", "bias")]
    rest = (layer.stride, layer.padding, layer.dilation)
    actual = run(backend, "deform_conv2d", *arrays, *rest, o["mask"])
    expected = ops.deform_conv2d(*map(torch.from_numpy, arrays), *rest, torch.from_numpy(o["mask"])).numpy()
    assert_close(actual, expected, FLOAT64)

"""Every kernel keeps to the accuracy that docs/pages/performance.md states, on layers of known networks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import FLOAT32, FLOAT32_LONG, normals

import fastconv
from fastconv import Problem, testing
from fastconv.benchmark import workloads

# Sums with so many terms are long.
LONG = 4608
# Products of sums: Winograd's with five and six points, and quarters.
ROUNDED, QUARTERS = 4e-6, 2e-6
# Outputs along an axis: several tiles of each algorithm.
OUTPUTS = 14


def small(layer):
    """Return one image of a layer, of which no axis is longer than some outputs want."""
    spatial = layer.input[2:]
    options = [np.broadcast_to(layer.options()[name], len(spatial)) for name in ("dilation", "stride")]
    needed = [(k - 1) * d + 1 + OUTPUTS * s for k, d, s in zip(layer.kernel, *options, strict=True)]
    return replace(layer, input=(1, layer.input[1], *map(min, spatial, needed)))


LAYERS = [small(layer) for layer in workloads.load() if layer.variant in ("conv", "conv_transpose")]


@pytest.mark.parametrize("magnitudes", [False, True], ids=["normal", "of all magnitudes"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_kernels_keep_to_their_accuracy(layer, magnitudes):
    rng = np.random.default_rng(7)
    x, w = normals(rng, layer.input), normals(rng, layer.weight_shape)
    if magnitudes:
        x, w = (array * 10 ** rng.uniform(-3, 3, array.shape) for array in (x, w))
    x, w = x.astype(np.float32), w.astype(np.float32)
    wide = (array.astype(np.float64) for array in (x, w))
    expected = getattr(fastconv, layer.op)(*wide, accuracy="high", **layer.options())
    terms = math.prod(layer.weight_shape[1:])
    problem = Problem.create(layer.op, x.shape, w.shape, **layer.options())
    tolerance = FLOAT32_LONG if terms >= LONG else FLOAT32
    ran = []
    for kernel in fastconv.kernels(layer.op, backend="cython"):
        if kernel.refuse(problem):
            continue
        actual = np.empty(problem.output_shape, np.float32)
        kernel.build(problem)(actual, x, w, None, None, None, 1)
        allowed = ROUNDED if kernel.tolerance else tolerance
        if kernel.name.endswith("strassen"):
            allowed = QUARTERS
        testing.assert_close(actual, expected, allowed, kernel.name)
        ran.append(kernel.name)
    assert ran

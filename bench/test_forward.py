"""Forward passes of layers of known networks, timed by pytest-benchmark.

    pytest bench --benchmark-only                       everything
    pytest bench --benchmark-only -k "rn50 and plan"    ResNet-50 layers, prepared

A result is compared with the float64 oracle before its kernel is timed, so no wrong answer is timed.
"""

import functools
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import registry
from fastconv.testing import max_error

TOLERANCE = 4e-6
WORKLOADS = tomllib.loads(Path(__file__).with_name("workloads.toml").read_text())
BACKENDS = [
    status.name for status in registry.backends() if status.available and status.name != registry.ORACLE
]
OPTIONS = ("stride", "padding", "dilation", "groups", "output_padding")

pytestmark = [
    pytest.mark.parametrize("mode", ["call", "plan"]),
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("workload", WORKLOADS),
]


def test_forward(benchmark, workload, backend, mode):
    layer = WORKLOADS[workload]
    operands, options = arrays(workload), options_of(layer)
    if mode == "call":
        kernel = fastconv.explain(layer["op"], **operands, **options, backend=backend).kernel
        call = functools.partial(getattr(fastconv, layer["op"]), **operands, **options, backend=backend)
    else:
        kernel, call = planned(layer, operands, options, backend)
    error = max_error(call()[:1], first_image(workload))
    assert error <= TOLERANCE
    benchmark.extra_info.update(kernel=kernel, error=error, flop=flop(layer, operands, options))
    benchmark(call)


def options_of(layer):
    """Return the keyword arguments of a layer; a deformable function reads its groups off the shapes."""
    deformable = layer["op"].startswith("deform")
    return {name: layer[name] for name in OPTIONS if name in layer and not (deformable and name == "groups")}


def planned(layer, operands, options, backend):
    """Return the kernel's name and a call of a plan that writes to an array of its own."""
    operands = dict(operands)
    x, weight = operands.pop("input"), operands.pop("weight")
    if "offset" in operands:
        options = {**options, "offset_groups": layer["offset_groups"], "mask": layer["mask"]}
    plan = fastconv.plan(layer["op"], x.shape, weight, **options, backend=backend)
    out = np.empty(plan.output_shape, plan.dtype)
    return plan.kernel.name, functools.partial(plan, x, **operands, out=out)


@functools.lru_cache(maxsize=1)
def arrays(workload):
    """Return the arrays of a layer: normal noise, weights scaled so that results are near 1."""
    layer = WORKLOADS[workload]
    rng = np.random.default_rng(0)
    n, c, *_ = layer["input"]
    kernel, groups = tuple(layer["kernel"]), layer["groups"]
    shape = (layer["out_channels"], c // groups, *kernel)
    if layer["op"].startswith("conv_transpose"):
        shape = (c, layer["out_channels"] // groups, *kernel)
    operands = {
        "input": rng.standard_normal(layer["input"], np.float32),
        "weight": rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:]))),
    }
    if layer["op"].startswith("deform"):
        taps, size = math.prod(kernel), layer["input"][2:]  # stride 1 and "same" padding in all of them
        operands["offset"] = 2 * rng.standard_normal(
            (n, layer["offset_groups"] * 2 * taps, *size), np.float32
        )
        if layer["mask"]:
            operands["mask"] = rng.random((n, layer["offset_groups"] * taps, *size), np.float32)
    return operands


@functools.lru_cache(maxsize=1)
def first_image(workload):
    """Return the oracle's result for the first image of a layer; the others are treated alike."""
    layer = WORKLOADS[workload]
    operands = {
        name: (array if name == "weight" else array[:1]).astype(np.float64)
        for name, array in arrays(workload).items()
    }
    return getattr(fastconv, layer["op"])(**operands, **options_of(layer), backend="numpy")


def flop(layer, operands, options):
    """Return the number of operations, as the problem counts them."""
    shapes = {f"{name}_shape": operands[name].shape for name in ("offset", "mask") if name in operands}
    return fastconv.Problem.create(
        layer["op"], operands["input"].shape, operands["weight"].shape, **shapes, **options
    ).flops

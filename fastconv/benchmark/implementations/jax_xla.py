"""JAX: the compiled convolution of XLA, in both layouts. It takes as many threads as the process has cores."""

import functools
from typing import Any

import numpy as np

from ..case import Case, Inapplicable, Runner
from . import STATELESS, Implementation


def build(case: Case, threads: int, layout: str) -> Runner:
    """Return a compiled call that takes the weights each time, in the order it likes best."""
    if case.workload.variant in ("deform_conv", "separable_conv"):
        raise Inapplicable(f"no {case.workload.variant}")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    problem = case.problem
    weight, padding = case.operands["weight"], list(problem.padding)
    dilated: dict[str, Any] = {}
    if problem.variant == "conv_transpose":
        weight, padding = _turned(weight, problem), _transposed_padding(problem)
        dilated = {"lhs_dilation": problem.stride}
    axes = "DHW"[-problem.ndim :]
    last = layout == "NHWC"
    order = (f"N{axes}C", f"{axes}IO", f"N{axes}C") if last else (f"NC{axes}", f"OI{axes}", f"NC{axes}")
    x = np.moveaxis(case.operands["input"], 1, -1) if last else case.operands["input"]
    weight = np.moveaxis(weight, (0, 1), (-1, -2)) if last else weight
    function = jax.jit(
        functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(1,) * problem.ndim if dilated else problem.stride,
            padding=padding,
            rhs_dilation=problem.dilation,
            feature_group_count=problem.groups,
            dimension_numbers=order,
            **dilated,
        )
    )
    if case.fresh:
        given = np.ascontiguousarray(x), np.ascontiguousarray(weight)
        return Runner(lambda: np.asarray(function(*given)), lambda y: [np.moveaxis(y, -1, 1) if last else y])
    held = jax.device_put(np.ascontiguousarray(x)), jax.device_put(np.ascontiguousarray(weight))
    arrays = lambda y: [np.moveaxis(np.asarray(y), -1, 1) if last else np.asarray(y)]
    return Runner(lambda: function(*held).block_until_ready(), arrays)


def _turned(weight: np.ndarray, problem: Any) -> np.ndarray:
    """Return the weights of the convolution over the spread-out input: groups regrouped, taps reversed."""
    groups, taps = problem.groups, problem.kernel_size
    split = weight.reshape(groups, problem.in_channels // groups, problem.out_channels // groups, *taps)
    joined = np.swapaxes(split, 1, 2).reshape(problem.out_channels, problem.in_channels // groups, *taps)
    return np.flip(joined, tuple(range(2, joined.ndim)))


def _transposed_padding(problem: Any) -> list[tuple[int, int]]:
    reach = [d * (k - 1) for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    return [
        (r - before, r - after + extra)
        for r, (before, after), extra in zip(reach, problem.padding, problem.output_padding, strict=True)
    ]


IMPLEMENTATIONS = [
    Implementation(
        f"jax.{layout.lower()}", "jax", "jax", STATELESS, layout,
        functools.partial(build, layout=layout), "pip install jax",
    )
    for layout in ("NCHW", "NHWC")
]  # fmt: skip

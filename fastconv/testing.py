"""The conformance kit: does a backend give the right answers? Also for plugins.

Inputs and weights are small integers, and displacements multiples of a quarter or half pixel, so that every
sum is exact in float32 whatever its order: a right kernel equals the oracle to the bit. Each case has other
sizes, strides, paddings, dilations and groups on every axis, so that no two can be confused unnoticed.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import config, functional, registry
from .call import Call, prepare
from .plan import Plan
from .problem import (
    ACTIVATIONS,
    DCN,
    FORWARD_OPS,
    GRAD_OPS,
    PADDING_MODES,
    SEPARABLE,
    WEIGHT_GRAD,
    Problem,
    forward_op,
    parse_op,
)
from .separable import OPERANDS as SEPARABLE_OPERANDS
from .separable import SeparableCall, prepare_separable

__all__ = [
    "Case",
    "GradCase",
    "Report",
    "SeparableCase",
    "assert_close",
    "assert_exact",
    "cases",
    "check_backend",
    "fuzz_backend",
    "fuzz_cases",
    "max_error",
]

# (input channels, output channels, groups): one channel, odd counts, more than a register tile, several
# channel blocks, several K blocks, narrow and wide groups, depthwise with and without multiplier. Each engine
# comes within the first ten, which are all that a quick check takes.
CHANNELS = (
    (1, 1, 1), (5, 5, 5), (3, 5, 1), (17, 35, 1), (6, 4, 2), (4, 12, 4), (40, 70, 1), (35, 35, 35), (12, 36, 4),
    (16, 24, 1), (1, 7, 1), (5, 1, 1), (150, 9, 1), (34, 38, 2), (9, 6, 3), (60, 20, 20), (18, 36, 18),
)  # fmt: skip
# Those whose product has quarters, for deformable convolutions on each seventh turn.
QUARTERED, QUARTERED_TURN = ((20, 64, 1), (36, 96, 3), (72, 160, 1)), 7
# The same for convolutions, on turns of both layouts among the first ten; but for conv3d with one tap for each output.
HALVED, HALVED_TURN = ((32, 64, 1), (288, 31, 1), (64, 160, 1)), 6
# (input channels, channels between, output channels) of separable ones.
SEPARABLE_CHANNELS = (
    (1, 1, 5), (16, 16, 24), (5, 5, 3), (35, 35, 17), (6, 18, 40), (150, 150, 9), (40, 40, 70), (3, 3, 35),
)  # fmt: skip
# Taps of a row of a large kernel, and the first case that may have one.
LARGE, LARGE_FROM = 9, 20
EXACT_ACTIVATIONS = (None, "relu", "relu6", "hardswish")
SMOOTH_ACTIVATIONS = tuple(sorted(set(ACTIVATIONS) - set(EXACT_ACTIVATIONS)))
LONGEST = {1: 150, 2: 23, 3: 9}  # of an input axis, by rank
# Of random problems, which are many: small, but with several tasks and blocks of channels among them.
FUZZ_LONGEST = {1: 200, 2: 15, 3: 6}
FUZZ_KERNELS = {1: (1, 2, 3, 5), 2: (1, 2, 3), 3: (1, 2, 3)}
FUZZ_CHANNELS = 40
FUZZ_POINTS = 12  # of a pixel, and images, at most: what the oracle's time depends on
# Displacements to nowhere, and one in so many that is such a one.
NOWHERE = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e9, -1e9)
NOWHERE_SHARE = 40


@dataclass(frozen=True)
class Case:
    """One call on generated integer data; prints as code that reproduces it.

    Attributes
    ----------
    op : str
    input_shape : tuple of int
        Batched, in the layout of the options.
    weight_shape : tuple of int or None
        None where there is no weight.
    options : dict
        Keyword arguments of the function other than arrays.
    bias, mask : bool
    offset_groups : int
        0 unless deformable.
    dtype : str
    seed : int
        Of the data.
    wild : bool
        Whether some displacements are NaN, infinite, or lead far away.
    """

    op: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...] | None
    options: dict[str, Any]
    bias: bool
    offset_groups: int
    mask: bool
    dtype: str
    seed: int
    wild: bool = False

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the call by argument name."""
        rng = np.random.default_rng(self.seed)
        problem = self._geometry()
        steps = 2 if problem.ndim == 3 else 4
        operands = {"input": _integers(rng, self.input_shape, self.dtype)}
        if self.weight_shape is not None:
            operands["weight"] = _integers(rng, self.weight_shape, self.dtype)
        if self.bias:
            operands["bias"] = _integers(rng, (problem.out_channels,), self.dtype)
        if self.offset_groups:
            reach = 3 * steps
            problem = replace(problem, offset_groups=self.offset_groups)
            shape = self._laid_out(problem.offset_shape)
            operands["offset"] = (rng.integers(-reach, reach + 1, shape) / steps).astype(self.dtype)
            if self.wild:
                chosen = rng.random(shape) * NOWHERE_SHARE < 1
                operands["offset"][chosen] = rng.choice(NOWHERE, chosen.sum())
            if problem.variant == "dcnv3":
                operands["mask"] = self._logits(rng, problem)
            elif self.mask:
                operands["mask"] = rng.integers(0, 3, self._laid_out(problem.mask_shape)).astype(self.dtype)
        return operands

    def _logits(self, rng: np.random.Generator, problem: Problem) -> np.ndarray:
        """Return logits whose softmax is exact: one, two or four points of a group share the weight."""
        n, groups, points = problem.batch, problem.offset_groups, problem.points
        order = rng.random((n, groups, points, *problem.output_size)).argsort(axis=2)
        sharing = 1 << rng.integers(0, points.bit_length(), (n, groups, 1, *problem.output_size)).clip(max=2)
        level = rng.integers(-3, 4, sharing.shape)
        logits = np.where(order < sharing, level, level - 10_000).reshape(problem.mask_shape)
        logits = logits if problem.layout == "NCHW" else np.moveaxis(logits, 1, -1)
        return np.ascontiguousarray(logits, self.dtype)

    def run(self, backend: str, num_threads: int | None = None) -> np.ndarray:
        """Return the result of the public function on one backend."""
        return getattr(functional, self.op)(
            **self.arrays(), **self.options, backend=backend, num_threads=num_threads
        )

    def problem(self) -> Problem:
        """Return the problem that the call describes."""
        return self.call("numpy").problem

    def call(self, backend: str, *, prepared: bool = False) -> Call:
        """Return the prepared call on one backend, by its own choice among its kernels."""
        get = self.arrays().get
        options = functional.options_of(self.options)
        return prepare(
            self.op,
            get("input"),
            get("weight"),
            get("bias"),
            get("offset"),
            get("mask"),
            options,
            backend,
            "testing",
            prepared=prepared,
        )

    def _geometry(self) -> Problem:
        """Return the problem without its offset and mask, whose shapes follow from it."""
        return Problem.create(self.op, self.input_shape, self.weight_shape, **self.options)

    def _laid_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.options.get("layout", "NCHW") == "NCHW" else (shape[0], *shape[2:], shape[1])

    def __str__(self) -> str:
        return (
            f"fastconv.testing.Case({self.op!r}, {self.input_shape}, {self.weight_shape}, {self.options}, bias={self.bias}, "
            f"offset_groups={self.offset_groups}, mask={self.mask}, dtype={self.dtype!r}, seed={self.seed}"
            + (", wild=True)" if self.wild else ")")
        )


@dataclass(frozen=True)
class GradCase:
    """One call of a gradient kernel, on the data of a case of the forward operation.

    Attributes
    ----------
    op : str
        Such as ``"conv2d_weight_grad"``.
    case : Case
    """

    op: str
    case: Case

    def problem(self) -> Problem:
        """Return the problem that the kernel is built for."""
        return replace(self.case.problem(), op=self.op, activation=None, bias=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the call by name, as kernels take them."""
        problem, arrays = self.problem(), self.case.arrays()
        arrays.pop("bias", None)
        if problem.layout == "NHWC":
            for name in {"offset", "mask"} & set(arrays):
                arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], -1, 1))
        rng = np.random.default_rng([self.case.seed, 1])
        arrays["grad_output"] = _integers(rng, problem.output_shape, self.case.dtype)
        return arrays

    def run(
        self, kernel: registry.Kernel, arrays: dict[str, np.ndarray], num_threads: int = 1
    ) -> dict[str, np.ndarray]:
        """Return the gradients that a kernel computes, by operand."""
        problem, get = self.problem(), arrays.get
        run: Any = kernel.build(problem)
        if self.op in WEIGHT_GRAD:
            grads = {"weight": np.full(problem.weight_shape, np.nan, problem.dtype)}
            run(grads["weight"], get("input"), get("grad_output"), None, None, None, num_threads)
            return grads
        names = [name for name in ("input", "offset", "weight", "mask") if name in arrays]
        grads = {name: np.full(arrays[name].shape, np.nan, problem.dtype) for name in names}
        run(grads, *map(get, ("grad_output", "input", "weight", "offset", "mask")), num_threads)
        return grads

    def __str__(self) -> str:
        return f"fastconv.testing.GradCase({self.op!r}, {self.case})"


@dataclass(frozen=True)
class SeparableCase:
    """One call of a separable convolution; its depthwise part is on the data of a case of its own.

    Attributes
    ----------
    op : str
    case : Case
        The depthwise part.
    out_channels : int
    pointwise_bias : bool
    activation : str or None
        The one that comes last.
    """

    op: str
    case: Case
    out_channels: int
    pointwise_bias: bool
    activation: str | None

    @property
    def options(self) -> dict[str, Any]:
        options = {name: value for name, value in self.case.options.items() if name != "groups"}
        options |= {"depthwise_activation": options["activation"], "activation": self.activation}
        # Where it runs as two calls, kernels that round might be the cheapest for them.
        return options | {"accuracy": "high"}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the call by argument name."""
        case, rng = self.case, np.random.default_rng([self.case.seed, 2])
        assert case.weight_shape is not None
        arrays, between = case.arrays(), case.weight_shape[0]
        pointwise = (self.out_channels, between, *(1,) * (len(case.weight_shape) - 2))
        found = {
            "input": arrays["input"],
            "depthwise_weight": arrays["weight"],
            "pointwise_weight": _integers(rng, pointwise, case.dtype),
        }
        if case.bias:
            found["depthwise_bias"] = arrays["bias"]
        if self.pointwise_bias:
            found["pointwise_bias"] = _integers(rng, (self.out_channels,), case.dtype)
        return found

    def call(self, backend: str, *, prepared: bool = False) -> SeparableCall:
        """Return the prepared call on one backend, by its own choice among its kernels."""
        operands = {**dict.fromkeys(SEPARABLE_OPERANDS), **self.arrays()}
        return prepare_separable(self.op, operands, self.options, backend, "testing", prepared=prepared)


def cases(op: str, count: int = 40, seed: int = 0) -> Iterator[Any]:
    """Generate cases for one operation: the same ones for the same `count` and `seed`.

    Parameters
    ----------
    op : str
        Name of the function, or of the operation of a gradient.
    count, seed : int, optional

    Yields
    ------
    Case, GradCase or SeparableCase

    Examples
    --------
    >>> from fastconv.testing import cases
    >>> len(list(cases("conv2d", 5)))
    5
    """
    variant, ndim = parse_op(op, registry.ALL_OPS)
    if op in SEPARABLE:
        rng = np.random.default_rng([seed, len(FORWARD_OPS) + ndim])
        for index in range(count):
            yield _separable_case(op, ndim, index, rng)
        return
    if op in GRAD_OPS:
        for case in cases(forward_op(op), count, seed):
            yield GradCase(op, case)
        return
    rng = np.random.default_rng([seed, FORWARD_OPS.index(op)])
    for index in range(count):
        yield _case(op, variant, ndim, index, rng)


def fuzz_cases(ops: Sequence[str], count: int, seed: int = 0) -> Iterator[Any]:
    """Generate small random cases of some operations in turn, wild ones among them.

    Parameters
    ----------
    ops : sequence of str
        Of functions other than separable ones, or of their gradients.
    count, seed : int

    Yields
    ------
    Case or GradCase
        Each depends on `seed` and its place alone.

    Examples
    --------
    >>> from fastconv.testing import fuzz_cases
    >>> [case.op for case in fuzz_cases(["dcnv4", "deform_conv1d_grad"], 3)]
    ['dcnv4', 'deform_conv1d_grad', 'dcnv4']
    """
    for place in range(count):
        op = ops[place % len(ops)]
        forward = forward_op(op) if op in GRAD_OPS else op
        variant, ndim = parse_op(forward)
        rng = np.random.default_rng([seed, place])
        groups, wide, deep = (int(n) for n in rng.integers(1, (6, 9, 9)))
        step = max(FUZZ_CHANNELS // groups // 8, 1)
        channels = (groups * wide * step, groups * deep * step, groups)
        index = int(rng.integers(0, 1 << 16))
        case = _case(forward, variant, ndim, index, rng, channels, FUZZ_LONGEST[ndim], FUZZ_KERNELS[ndim])
        case = replace(case, seed=index, wild=bool(case.offset_groups and rng.integers(0, 2)))
        if case.offset_groups:
            case = _with_fewer_points(case)
        yield GradCase(op, case) if op in GRAD_OPS else case


def _with_fewer_points(case: Case) -> Case:
    """Return the case with so few images and offset groups that the oracle takes milliseconds."""
    problem = case._geometry()
    most = max(FUZZ_POINTS // problem.taps, 1)
    channels = problem.out_channels if problem.transposed else problem.in_channels
    batch = min(problem.batch, most)
    groups = max(
        d for d in range(1, case.offset_groups + 1) if channels % d == 0 and d * batch <= max(most, batch)
    )
    return replace(case, input_shape=(batch, *case.input_shape[1:]), offset_groups=groups)


def _case(
    op: str,
    variant: str,
    ndim: int,
    index: int,
    rng: np.random.Generator,
    channels: tuple[int, int, int] | None = None,
    longest: int | None = None,
    kernels: tuple[int, ...] = (),
) -> Case:
    # The choices that select a kernel take turns; everything else is drawn.
    channels = channels or CHANNELS[index % len(CHANNELS)]
    if variant == "deform_conv" and index % QUARTERED_TURN == QUARTERED_TURN - 1:
        channels = QUARTERED[index // QUARTERED_TURN % len(QUARTERED)]
    halved = index % HALVED_TURN == 2 and index % 5 != 4 and variant in ("conv", "conv_transpose")
    if halved:
        channels = HALVED[index // HALVED_TURN % len(HALVED)]
    c, o, g = channels
    layout = ("NCHW", "NHWC")[(index // 2) % 2]
    longest = longest or (LONGEST[ndim] if max(channels) < 100 else 7)
    kernels = kernels or ((1, 2, 3, 4, 5, 7) if ndim < 3 else (1, 2, 3, 4))
    kernel = tuple(_different(rng, kernels, ndim))
    stride = (1,) * ndim if index % 3 == 0 else tuple(_different(rng, (1, 2, 3, 4), ndim))
    # On other turns than the layout's, so that each layout is dilated.
    dilation = (1,) * ndim if (index + 2) % 8 < 4 else tuple(_different(rng, (1, 2, 3, 4), ndim))
    if halved and (ndim < 3 or variant == "conv_transpose"):
        kernel, dilation = (1,) * ndim if variant == "conv" else stride, (1,) * ndim
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if index % 5 == 4 and variant == "conv":  # what algorithms for few taps take
        side = (3, 3, 5)[index // 5 % 3] if ndim < 3 else 2 + index // 5 % 2
        step = 2 if index // 5 % 4 == 3 else 1
        kernel, stride, longest = (side,) * ndim, (step,) * ndim, 2 * longest if ndim < 3 else longest
        span = [d * (side - 1) + 1 for d in dilation]
    # What frequencies are worth while for, twice in the first forty.
    large = variant == "conv" and ndim == 2 and 1 < c == o == g and index >= LARGE_FROM
    if large:
        kernel, stride, dilation = (kernel[0], LARGE), (stride[0], 1), (dilation[0], 1)
        span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple((int(rng.integers(0, s + 1)), int(rng.integers(0, s + 1))) for s in span)
    size = tuple(
        int(rng.integers(max(1, s - b - a), max(2, s - b - a) + longest))
        for s, (b, a) in zip(span, padding, strict=True)
    )
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "layout": layout}
    offset_groups = 0
    weight_shape: tuple[int, ...] | None = (o, c // g, *kernel)
    if variant == "conv":
        options |= {"groups": g}
        mode = "zeros" if large else PADDING_MODES[index % len(PADDING_MODES)]
        if mode != "zeros":
            padding = tuple((min(b, i - 1), min(a, i - 1)) for (b, a), i in zip(padding, size, strict=True))
            size = tuple(max(i, s - b - a) for i, s, (b, a) in zip(size, span, padding, strict=True))
        options |= {"padding_mode": mode}
    elif variant.endswith("conv_transpose"):
        if variant == "conv_transpose" and index % 5 == 4:  # whose phases are such kernels
            dilation, step = (1,) * ndim, 1 + index % 2
            stride, kernel = (step,) * ndim, ((3, 4)[index % 2],) * ndim
            options |= {"stride": stride, "dilation": dilation}
        weight_shape = (c, o // g, *kernel)
        deformable = variant == "deform_conv_transpose"
        below = stride if deformable else tuple(map(max, stride, dilation))
        extra = tuple(int(rng.integers(0, b)) for b in below)
        size = tuple(min(i, longest) for i in size)
        needed = [
            (i - 1) * s + d * (k - 1) + e
            for i, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
        ]
        padding = tuple(
            (min(b, n // 2), min(a, n - n // 2)) for (b, a), n in zip(padding, needed, strict=True)
        )
        options |= {"groups": g, "output_padding": extra}
        offset_groups = _divisor(rng, o) if deformable else 0
    else:
        offset_groups = _divisor(rng, c)
    if op in DCN:
        weight_shape = None
        removed = max(kernel) > 1 and all(k % 2 for k in kernel) and index % 2 == 1
        options |= {
            "kernel_size": kernel,
            "offset_scale": (1.0, 0.5, 2.0)[index % 3],
            "remove_center": removed,
        }
    else:
        options |= {"activation": EXACT_ACTIVATIONS[index % 7 % len(EXACT_ACTIVATIONS)]}
    options |= {"padding": padding}
    batch = int(rng.integers(1, 4))
    input_shape = (batch, c, *size) if layout == "NCHW" else (batch, *size, c)
    return Case(
        op,
        input_shape,
        weight_shape,
        options,
        bias=bool(rng.integers(0, 2)) and op not in DCN,
        offset_groups=offset_groups,
        mask=op in DCN or bool(offset_groups and rng.integers(0, 2)),
        dtype=("float32", "float32", "float64")[index % 3],
        seed=index,
    )


def _divisor(rng: np.random.Generator, channels: int) -> int:
    return int(rng.choice([d for d in range(1, channels + 1) if channels % d == 0]))


def _separable_case(op: str, ndim: int, index: int, rng: np.random.Generator) -> SeparableCase:
    plain = _case(f"conv{ndim}d", "conv", ndim, index, rng)
    assert plain.weight_shape is not None
    c, between, o = SEPARABLE_CHANNELS[index % len(SEPARABLE_CHANNELS)]
    size = plain.input_shape[2:] if plain.options["layout"] == "NCHW" else plain.input_shape[1:-1]
    n = plain.input_shape[0]
    # Between the two only what does not round, as the sums that follow would add up the roundings.
    activation = (None, "relu", "relu6")[index % 3]
    depthwise = replace(
        plain,
        input_shape=(n, c, *size) if plain.options["layout"] == "NCHW" else (n, *size, c),
        weight_shape=(between, 1, *plain.weight_shape[2:]),
        options=plain.options | {"groups": c, "activation": activation},
    )
    last = EXACT_ACTIVATIONS[index % 7 % len(EXACT_ACTIVATIONS)]
    return SeparableCase(op, depthwise, o, bool(rng.integers(0, 2)), last)


def _different(rng: np.random.Generator, choices: Sequence[int], count: int) -> list[int]:
    return [int(value) for value in rng.permutation(choices)[:count]]


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def max_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return max|actual - expected| / max|expected|; 0 if both are empty, inf where one alone is not finite."""
    if expected.size == 0:
        return 0.0
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(expected)
    if (
        not np.array_equal(actual[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(actual[finite]).all()
    ):
        return math.inf
    scale = np.abs(expected[finite]).max(initial=0.0)
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0.0) / (scale or 1.0))


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: object = "") -> None:
    """Raise AssertionError unless shapes are equal and :func:`max_error` is at most `tolerance`.

    Values that are not finite must be the same in both.
    """
    assert actual.shape == expected.shape, f"shape {actual.shape} is not {expected.shape}\n{what}"
    error = max_error(actual, expected)
    if error > tolerance:
        wrong = ~np.isclose(
            actual, expected, rtol=0, atol=tolerance * (np.abs(expected).max() or 1), equal_nan=True
        )
        raise AssertionError(
            f"error {error:.3g} exceeds {tolerance:.3g}; {_where(actual, expected, wrong)}\n{what}"
        )


def assert_exact(actual: np.ndarray, expected: np.ndarray, what: object = "") -> None:
    """Raise AssertionError unless shape, dtype and every value are equal; NaN equals NaN."""
    assert actual.shape == expected.shape, f"shape {actual.shape} is not {expected.shape}\n{what}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype} is not {expected.dtype}\n{what}"
    wrong = ~((actual == expected) | (np.isnan(actual) & np.isnan(expected)))
    assert not wrong.any(), f"{_where(actual, expected, wrong)}\n{what}"


def _where(actual: np.ndarray, expected: np.ndarray, wrong: np.ndarray) -> str:
    first = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else ()
    return f"{wrong.sum()} of {wrong.size} values differ, first at {first}: {actual[first]} is not {expected[first]}"


@dataclass
class Report:
    """What :func:`check_backend` found.

    Attributes
    ----------
    backend : str
    passed : int
        Number of checks that held.
    failed : list of str
        One text for each that did not, with code that reproduces it.
    refused : dict of str to int
        How many cases were refused, by reason.
    kernels : dict of str to int
        How many cases each kernel ran.
    """

    backend: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"backend {self.backend}: {self.passed} checks passed, {len(self.failed)} failed"]
        lines += [f"  {name}: {count} cases" for name, count in sorted(self.kernels.items())]
        lines += [f"  refused {count} times: {reason}" for reason, count in self.refused.most_common()]
        return "\n".join(lines + self.failed)


def check_backend(
    name: str,
    ops: Sequence[str] = registry.ALL_OPS,
    *,
    count: int = 40,
    seed: int = 0,
    quick: bool = False,
    tolerance: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run every kernel of a backend on generated problems and compare with the oracle.

    Each kernel that accepts a case must give the oracle's result, the same bits on one and three threads, and
    (but for gradients) the same as a plan.

    Parameters
    ----------
    name : str
        The backend.
    ops : sequence of str, optional
        The operations to check; those of gradients too, if not given.
    count, seed : int, optional
        Number of cases for each operation, and the seed of their generator.
    quick : bool, optional
        Take a quarter of the cases.
    tolerance : float, optional
        Largest max|error|/max|reference| that passes; 0 asks for equality, as sums of small integers allow.
        A backend that works by FFT, say, needs more.
    progress : callable, optional
        Called as ``progress(done, total)`` after each case.

    Returns
    -------
    Report

    Raises
    ------
    BackendError
        If the backend is unknown or cannot be used here.

    Examples
    --------
    >>> import fastconv.testing
    >>> report = fastconv.testing.check_backend("numpy", ["conv1d"], count=3)
    >>> report.passed, report.failed
    (9, [])
    """
    entry = registry.find_backend(name)
    entry.ready()
    report = Report(name)
    chosen = [case for op in ops for case in cases(op, max(1, count // 4) if quick else count, seed)]
    for done, case in enumerate(chosen):
        check_case(case, entry, report, tolerance)
        if progress is not None:
            progress(done + 1, len(chosen))
    return report


def fuzz_backend(
    name: str,
    ops: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run every kernel of a backend on small random problems, each on the next of the machine's instruction sets.

    What is compared is that of :func:`check_backend`.

    Parameters
    ----------
    name : str
        The backend.
    ops : sequence of str
        As for :func:`fuzz_cases`.
    count, seed : int
        Number of problems, and the seed of their generator.
    progress : callable, optional
        Called as ``progress(done, total)`` after each problem.

    Returns
    -------
    Report

    Examples
    --------
    >>> import fastconv.testing
    >>> report = fastconv.testing.fuzz_backend("numpy", ["deform_conv1d"], 4)
    >>> report.passed, report.failed
    (12, [])
    """
    entry = registry.find_backend(name)
    entry.ready()
    report = Report(name)
    for done, case in enumerate(fuzz_cases(ops, count, seed)):
        isas = _instruction_sets()
        with config.limit_isa(isas[done % len(isas)]) if isas else nullcontext():
            check_case(case, entry, report, telling=False)
        if progress is not None:
            progress(done + 1, count)
    return report


def _instruction_sets() -> tuple[str, ...]:
    try:
        from . import _native
    except ImportError:
        return ()
    return _native.isas()


def check_case(
    case: Case | GradCase | SeparableCase,
    entry: registry.Entry,
    report: Report,
    tolerance: float = 0.0,
    known: dict[str, Any] | None = None,
    *,
    telling: bool = True,
) -> None:
    """Run one case on every kernel of a backend that accepts it and add what was found to the report.

    `known` keeps the oracle's answers, by case, for whoever asks about several backends. A case that is to be `telling`
    must have a result that could tell a wrong kernel from a right one.
    """
    known = {} if known is None else known
    if isinstance(case, GradCase):
        _check_grad_case(case, entry, report, tolerance, known)
        return
    operands = case.arrays()
    reference = case.call(registry.ORACLE)
    if str(case) not in known:
        known[str(case)] = _run(reference, operands)
    expected = known[str(case)]
    if telling:
        trust(expected, case)
    for kernel, refusal in registry.verdicts(reference.problem, entry):
        if refusal is not None:
            report.refused[refusal] += 1
            continue
        report.kernels[kernel.name] += 1
        allowed = max(tolerance, _own_tolerance(kernel, case, expected))
        for title, check in _checks(case, kernel, operands, expected, allowed).items():
            try:
                check()
                report.passed += 1
            except Exception as error:  # any failure of a kernel is a finding, not the end of the run
                report.failed.append(
                    f"{kernel.backend} {kernel.name}: {title}: {type(error).__name__}: {error}\n  {case}"
                )


def _checks(
    case: Case | SeparableCase,
    kernel: registry.Kernel,
    operands: dict,
    expected: np.ndarray,
    tolerance: float,
) -> dict[str, Callable[[], None]]:
    """Return the checks of one kernel by what they are about; they share one call and its result on one thread."""

    @functools.cache
    def call() -> Call:
        return _forced(case, kernel)

    @functools.cache
    def one() -> np.ndarray:
        return _run(call(), operands)

    return {
        "equals oracle": lambda: _compare(one(), expected, tolerance),
        "same bits on any thread count": lambda: assert_exact(_run(call(), operands, 3), one()),
        "plan equals function": lambda: _compare(_planned(case, kernel, operands), expected, tolerance),
    }


def _own_tolerance(kernel: registry.Kernel, case: Case | SeparableCase, expected: np.ndarray) -> float:
    """Return what a kernel that rounds says of itself, relative to a result that the activation may have cut."""
    if not kernel.tolerance or not expected.size or isinstance(case, SeparableCase):
        return 0.0
    linear = replace(case, options=case.options | {"activation": None}).run(registry.ORACLE)
    gain = float(np.abs(linear).max()) / (float(np.abs(expected).max()) or 1.0)
    return kernel.tolerance * float(np.finfo(expected.dtype).eps) * gain


def _check_grad_case(
    case: GradCase, entry: registry.Entry, report: Report, tolerance: float, known: dict[str, Any]
) -> None:
    problem, arrays = case.problem(), case.arrays()
    accepted = []
    for kernel, refusal in registry.verdicts(problem, entry):
        if refusal is None:
            accepted.append(kernel)
        else:
            report.refused[refusal] += 1
    if not accepted:
        return
    if str(case) not in known:
        (oracle,) = registry.kernels(case.op, backend=registry.ORACLE)
        known[str(case)] = case.run(oracle, arrays)
    expected = known[str(case)]
    for kernel in accepted:
        report.kernels[kernel.name] += 1
        try:
            one, three = case.run(kernel, arrays), case.run(kernel, arrays, 3)
        except Exception as error:  # as above
            report.failed.append(f"{kernel.backend} {kernel.name}: {type(error).__name__}: {error}\n  {case}")
            continue
        rounded = kernel.tolerance * float(np.finfo(problem.dtype).eps)
        for title, actual, wanted, allowed in (
            ("equals oracle", one, expected, max(tolerance, rounded)),
            ("same bits on any thread count", three, one, 0.0),
        ):
            try:
                for name, array in wanted.items():
                    _compare(actual[name], array, allowed)
                report.passed += 1
            except AssertionError as error:
                report.failed.append(f"{kernel.backend} {kernel.name}: {title}: {error}\n  {case}")


def trust(expected: np.ndarray, case: Case | SeparableCase) -> None:
    """Raise AssertionError if the expected result could not tell a wrong kernel from a right one."""
    if expected.size >= 64 and case.options.get("activation") is None:
        assert len(np.unique(expected)) > 3, (
            f"the case tests nothing: its result is nearly constant\n  {case}"
        )


def _run(call: Call, operands: dict[str, np.ndarray], num_threads: int = 1) -> np.ndarray:
    input, weight, bias, third, fourth = (operands.get(name) for name in call.operands)
    assert input is not None
    return call(input, weight, bias, third, fourth, None, num_threads)


def _forced(case: Case | SeparableCase, kernel: registry.Kernel, *, prepared: bool = False) -> Call:
    reference = case.call(registry.ORACLE, prepared=prepared)
    return type(reference)(reference.problem, kernel, "testing", reference.unbatched, reference.result_dtype)


def _planned(case: Case | SeparableCase, kernel: registry.Kernel, operands: dict) -> np.ndarray:
    """Return the result of a plan."""
    call = _forced(case, kernel, prepared=True)
    plan = Plan(call, [operands.get(name) for name in call.constant], None)
    return plan(operands["input"], operands.get("offset"), operands.get("mask"))


def _compare(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if tolerance:
        assert_close(actual, expected, tolerance)
    else:
        assert_exact(actual, expected)

"""Laws of the convolution family, on problems that hypothesis draws.

Data are small integers and displacements multiples of a quarter (half in 3-D), so both sides of a law must be
equal to the bit, whatever the order of their sums. Where only the form of the arrays differs, and not the
arithmetic, the data are random and the bits must still be equal.
"""

import math
from itertools import product

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.special
from helpers import DIMS, DTYPES, integers, normals, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv
from fastconv import testing
from fastconv.problem import ACTIVATIONS, CONV, CONV_TRANSPOSE, DEFORM_CONV, LAYOUTS, OPS, PADDING_MODES
from fastconv.testing import Case, assert_exact


@pytest.fixture(autouse=True)
def exact_kernels():
    """Leave out kernels that round sums of whole numbers: they would break a law by a bit."""
    with fastconv.accuracy("high"):
        yield


LONGEST = {1: 70, 2: 21, 3: 10}  # of the last axis: several vectors and a rest


def examples(count: int):
    """Return the settings for a property tried on `count` problems."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    checks.append(HealthCheck.differing_executors)  # an instance for each backend; they hold nothing
    return settings(max_examples=count, suppress_health_check=checks)


@st.composite
def cases(
    draw,
    ops=OPS,
    *,
    bias=None,
    layouts=LAYOUTS,
    modes=("zeros",),
    dtypes=DTYPES,
    activations=(None,),
    extra=max,
):
    """Draw a call with a size, stride, padding and dilation for each axis.

    The output padding of a transposed convolution is drawn below ``extra(stride, dilation)``.
    """
    op = draw(st.sampled_from(ops))
    variant, ndim = op[:-2], int(op[-2])

    def axes(strategy):
        return tuple(draw(strategy) for _ in range(ndim))

    kernel = axes(st.integers(1, {1: 6, 2: 4, 3: 3}[ndim]))
    stride, dilation = axes(st.integers(1, 4)), axes(st.integers(1, 3))
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padding = tuple((draw(st.integers(0, s)), draw(st.integers(0, s))) for s in span)
    extent = (*(draw(st.integers(0, 5)) for _ in range(ndim - 1)), draw(st.integers(0, LONGEST[ndim])))
    size = tuple(max(1, s - b - a) + e for s, (b, a), e in zip(span, padding, extent, strict=True))
    groups = draw(st.integers(1, 3))
    c, o = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 19))
    weight_shape = (o, c // groups, *kernel)
    options = {
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "layout": draw(st.sampled_from(layouts)),
    }
    offset_groups = 0
    if variant == "conv":
        options["padding_mode"] = mode = draw(st.sampled_from(modes))
        if mode != "zeros":  # a mirror reaches no further than the image
            padding = tuple((min(b, i - 1), min(a, i - 1)) for (b, a), i in zip(padding, size, strict=True))
            size = tuple(max(i, s - b - a) for i, s, (b, a) in zip(size, span, padding, strict=True))
    elif variant == "conv_transpose":
        weight_shape = (c, o // groups, *kernel)
        more = tuple(draw(st.integers(0, extra(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        full = tuple((i - 1) * s + w + e for i, s, w, e in zip(size, stride, span, more, strict=True))
        padding = tuple(
            (min(b, (n - 1) // 2), min(a, (n - 1) // 2)) for (b, a), n in zip(padding, full, strict=True)
        )
        options["output_padding"] = more
    else:
        del options["groups"]  # they follow from the shapes
        offset_groups = draw(st.sampled_from([d for d in range(1, c + 1) if c % d == 0]))
    options |= {"padding": padding, "activation": draw(st.sampled_from(activations))}
    batch = draw(st.integers(1, 3))
    return Case(
        op,
        (batch, c, *size) if options["layout"] == "NCHW" else (batch, *size, c),
        weight_shape,
        options,
        bias=draw(st.booleans()) if bias is None else bias,
        offset_groups=offset_groups,
        mask=bool(offset_groups and draw(st.booleans())),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**16)),
    )


def evaluate(backend, case, operands=None, **changes):
    """Return the result of the case, with other arrays or options than its own where given."""
    arguments = (case.arrays() if operands is None else operands) | case.options | changes
    return run(backend, case.op, **{name: value for name, value in arguments.items() if value is not None})


def random_operands(case):
    """Return arrays as in practice, for laws that hold to the bit whatever the numbers."""
    rng = np.random.default_rng(case.seed)
    return {name: normals(rng, array.shape, case.dtype) for name, array in case.arrays().items()}


def channel_axis(case):
    return 1 if case.options["layout"] == "NCHW" else -1


def channels_first(case, array):
    return np.moveaxis(array, channel_axis(case), 1)


def laid_out(case, array):
    """Return a channels-first array in the layout of the case."""
    return np.ascontiguousarray(np.moveaxis(array, 1, channel_axis(case)))


def column(values, ndim):
    """Return one value a channel, shaped to go with a channels-first image."""
    return values.reshape(-1, *(1,) * ndim)


class TestAlgebra:
    @given(case=cases(CONV, bias=False))
    @examples(40)
    def test_transposed_convolution_is_the_adjoint(self, backend, case):
        """<A x, y> == <x, A' y>."""
        x, weight = case.arrays().values()
        forward = evaluate(backend, case)
        y = integers(np.random.default_rng(case.seed + 1), forward.shape, case.dtype)
        options = {name: case.options[name] for name in ("stride", "padding", "dilation", "groups", "layout")}
        size = channels_first(case, x).shape[2:]
        back = run(backend, case.op.replace("conv", "conv_transpose"), y, weight, **options, output_size=size)
        assert np.vdot(forward.astype(float), y) == np.vdot(x, back.astype(float)), case

    @given(case=cases(CONV_TRANSPOSE, bias=False, layouts=("NCHW",)))
    @examples(40)
    def test_transposed_convolution_is_a_convolution_of_the_stuffed_input(self, backend, case):
        """Zeros between the pixels, the kernel turned around, the channels of each group swapped."""
        x, weight = case.arrays().values()
        o = case.options
        stuffed = stuff(x, o["stride"])
        turned = np.flip(
            weight.reshape(o["groups"], -1, *weight.shape[1:]).swapaxes(1, 2), range(3, weight.ndim + 1)
        )
        turned = np.ascontiguousarray(turned.reshape(-1, *turned.shape[2:]))
        margins = [
            (d * (k - 1) - b, d * (k - 1) - a + e)
            for d, k, (b, a), e in zip(
                o["dilation"], weight.shape[2:], o["padding"], o["output_padding"], strict=True
            )
        ]
        stuffed = np.pad(stuffed, [(0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in margins)])
        inside = tuple(
            slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(margins, stuffed.shape[2:], strict=True)
        )
        stuffed = np.ascontiguousarray(stuffed[(slice(None), slice(None), *inside)])
        conv = case.op.replace("_transpose", "")
        expected = run(backend, conv, stuffed, turned, dilation=o["dilation"], groups=o["groups"])
        assert_exact(evaluate(backend, case), expected, case)

    @given(case=cases(bias=False), factors=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
    @examples(40)
    def test_linear_in_input_weight_and_mask(self, backend, case, factors):
        a, b = (np.dtype(case.dtype).type(factor) for factor in factors)
        first = case.arrays()
        one = evaluate(backend, case, first)
        for name in set(first) - {"offset"}:
            other = integers(np.random.default_rng(case.seed + 1), first[name].shape, case.dtype)
            two = evaluate(backend, case, first | {name: other})
            both = evaluate(backend, case, first | {name: a * first[name] + b * other})
            assert_exact(both, a * one + b * two, f"{name} of {case}")

    @given(case=cases(bias=False, extra=lambda stride, dilation: stride))
    @examples(40)
    def test_dilation_is_a_kernel_stuffed_with_zeros(self, backend, case):
        operands = case.arrays()
        dilation = case.options["dilation"]
        wide = operands | {"weight": stuff(operands["weight"], dilation)}
        if case.offset_groups:  # the taps in between have no weight; their displacement is zero
            kernel = case.weight_shape[2:]
            for name, per_tap in (("offset", len(kernel)), ("mask", 1)):
                if name in operands:
                    planes = channels_first(case, operands[name])
                    planes = planes.reshape(*planes.shape[:1], -1, *kernel, per_tap, *planes.shape[2:])
                    planes = stuff(planes, dilation)
                    size = planes.shape[-len(kernel) :]
                    wide[name] = laid_out(case, planes.reshape(planes.shape[0], -1, *size))
        assert_exact(evaluate(backend, case, wide, dilation=1), evaluate(backend, case, operands), case)

    @given(case=cases())
    @examples(40)
    def test_groups_are_convolutions_side_by_side(self, backend, case):
        operands = case.arrays()
        whole = evaluate(backend, case, operands)
        x = channels_first(case, operands["input"])
        groups = case.options.get("groups", x.shape[1] // case.weight_shape[1])
        if case.offset_groups:  # the same displacements, said once for every channel
            for name, per_tap in (("offset", len(case.weight_shape) - 2), ("mask", 1)):
                if name in operands:
                    planes = channels_first(case, operands[name])
                    each = math.prod(case.weight_shape[2:]) * per_tap
                    planes = planes.reshape(len(planes), case.offset_groups, each, *planes.shape[2:])
                    planes = planes.repeat(x.shape[1] // case.offset_groups, axis=1)
                    operands[name] = laid_out(case, planes.reshape(len(planes), -1, *planes.shape[3:]))
            assert_exact(evaluate(backend, case, operands), whole, case)
        parts = []
        for g in range(groups):
            part = {}
            for name, array in operands.items():
                axis = 0 if name in ("weight", "bias") else channel_axis(case)
                part[name] = np.ascontiguousarray(np.split(array, groups, axis)[g])
            parts.append(evaluate(backend, case, part, **({} if case.offset_groups else {"groups": 1})))
        assert_exact(np.concatenate(parts, channel_axis(case)), whole, case)

    @given(case=cases())
    @examples(30)
    def test_bias_is_added_afterwards(self, backend, case):
        operands = case.arrays()
        bias = operands.pop("bias", None)
        plain = evaluate(backend, case, operands)
        if bias is None:
            bias = integers(
                np.random.default_rng(case.seed), plain.shape[channel_axis(case) :][:1], case.dtype
            )
        expected = laid_out(case, channels_first(case, plain) + column(bias, len(case.weight_shape) - 2))
        assert_exact(evaluate(backend, case, operands | {"bias": bias}), expected, case)

    @given(case=cases(), activation=st.sampled_from(ACTIVATIONS))
    @examples(50)
    def test_activation_is_applied_afterwards(self, backend, case, activation):
        operands = case.arrays()
        operands["weight"] = operands["weight"] / 32  # sums of a few units, where activations bend
        before = evaluate(backend, case, operands).astype(np.float64)
        actual = evaluate(backend, case, operands, activation=activation)
        expected = FORMULAS[activation](before)
        if activation in ("relu", "relu6"):
            assert_exact(actual, expected.astype(case.dtype), case)
        bound = 8 * np.finfo(case.dtype).eps * np.abs(before)
        wrong = np.abs(actual - expected) > bound
        assert not wrong.any(), f"{actual[wrong][:3]} is not {activation} of {before[wrong][:3]} in {case}"

    @given(case=cases(CONV, modes=PADDING_MODES))
    @examples(40)
    def test_padding_is_a_padded_input(self, backend, case):
        operands = case.arrays()
        modes = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}
        mode = case.options["padding_mode"]
        padded = np.pad(
            channels_first(case, operands["input"]),
            ((0, 0), (0, 0), *case.options["padding"]),
            modes.get(mode, mode),
        )
        expected = evaluate(
            backend, case, operands | {"input": laid_out(case, padded)}, padding="valid", padding_mode="zeros"
        )
        assert_exact(evaluate(backend, case, operands), expected, case)

    @given(case=cases((*CONV, *DEFORM_CONV), bias=False, layouts=("NCHW",)))
    @examples(30)
    def test_padding_same_keeps_the_size(self, backend, case):
        operands = case.arrays()
        size, kernel = case.input_shape[2:], case.weight_shape[2:]
        if case.offset_groups:
            operands |= still(case, size)
        same = evaluate(backend, case, operands, stride=1, padding="same")
        assert same.shape[2:] == size, case
        totals = [d * (k - 1) for d, k in zip(case.options["dilation"], kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
        assert_exact(same, evaluate(backend, case, operands, stride=1, padding=pairs), case)


def stuff(array, steps):
    """Return the array with step - 1 zeros between neighbours, on the axes after the first two."""
    steps = tuple(steps) + (1,) * (array.ndim - 2 - len(steps))
    shape = tuple((n - 1) * s + 1 for n, s in zip(array.shape[2:], steps, strict=True))
    wide = np.zeros((*array.shape[:2], *shape), array.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in steps))] = array
    return wide


def still(case, size):
    """Return an offset of zeros, and a mask of ones if the case has one, for an output of this size."""
    taps = case.offset_groups * math.prod(case.weight_shape[2:])
    given = {"offset": np.zeros((case.input_shape[0], taps * len(size), *size), case.dtype)}
    if case.mask:
        given["mask"] = np.ones((case.input_shape[0], taps, *size), case.dtype)
    return {name: laid_out(case, array) for name, array in given.items()}


FORMULAS = {
    "relu": lambda v: np.where(v < 0, 0.0, v),
    "relu6": lambda v: np.minimum(np.where(v < 0, 0.0, v), 6.0),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * scipy.special.erfc(-v / math.sqrt(2)) / 2,
    "hardswish": lambda v: np.where(v < -3, 0.0, np.where(v > 3, v, v * (v + 3) / 6)),
}


class TestActivations:
    VALUES = np.array(
        [-1e4, -100, -20, -6, -3, -1, -1e-3, -0.0, 0, 1e-3, 1, 3, 6, 20, 100, 1e4, np.inf, np.nan]
    )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("op", ["conv1d", "conv_transpose1d"])
    def test_far_from_zero(self, backend, op, activation, dtype):
        """A NaN stays a NaN, and nothing overflows on the way."""
        x = self.VALUES.astype(dtype)[None, None]
        actual = run(backend, op, x, np.ones((1, 1, 1), dtype), activation=activation)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = FORMULAS[activation](x.astype(np.float64))
        np.testing.assert_allclose(
            actual, expected, rtol=4 * np.finfo(dtype).eps, atol=1e-6 if dtype == "float32" else 1e-14
        )

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "deform_conv2d"])
    def test_a_function_of_the_users(self, backend, op, layout):
        rng = np.random.default_rng(3)
        x = integers(rng, (2, 3, 7, 9) if layout == "NCHW" else (2, 7, 9, 3))
        operands = {"input": x, "weight": integers(rng, (3, 3, 1, 1)), "bias": integers(rng, (3,))}
        if op == "deform_conv2d":
            operands["offset"] = np.zeros((2, 2, 7, 9) if layout == "NCHW" else (2, 7, 9, 2))
        if backend == "cython":  # compiled ahead of time: it says so, and names those that can
            with pytest.raises(fastconv.UnsupportedError, match="the activation is a Python function"):
                run(backend, op, **operands, activation=leaky, layout=layout)
            return
        plain = run(backend, op, **operands, layout=layout)
        expected = np.where(plain < 0, plain / 4, plain)
        assert_exact(run(backend, op, **operands, activation=leaky, layout=layout), expected)


def leaky(v):
    return v * 0.25 if v < 0 else v


class TestDeformation:
    @given(case=cases(DEFORM_CONV))
    @examples(40)
    def test_zero_offsets_are_no_deformation(self, backend, case):
        operands = case.arrays()
        operands |= still(case, channels_first(case, operands["offset"]).shape[2:])
        x = channels_first(case, operands["input"])
        plain = {name: operands.get(name) for name in ("input", "weight", "bias") if name in operands}
        expected = run(
            backend,
            case.op.removeprefix("deform_"),
            **plain,
            **case.options,
            groups=x.shape[1] // case.weight_shape[1],
        )
        assert_exact(evaluate(backend, case, operands), expected, case)

    @given(case=cases(DEFORM_CONV, bias=False), far=st.booleans())
    @examples(40)
    def test_whole_offsets_are_shifts(self, backend, case, far):
        """One displacement for each group of channels: a convolution of the shifted group."""
        operands = case.arrays()
        o, ndim = case.options, len(case.weight_shape) - 2
        rng = np.random.default_rng(case.seed)
        reach = 40 if far else 3
        shifts = rng.integers(-reach, reach + 1, (case.offset_groups, ndim))
        offset = channels_first(case, operands["offset"])
        out = offset.shape[2:]
        whole = np.broadcast_to(
            column(np.tile(shifts, math.prod(case.weight_shape[2:])).ravel(), ndim), offset.shape
        )
        operands = {
            "input": operands["input"],
            "weight": operands["weight"],
            "offset": laid_out(case, whole.astype(case.dtype)),
        }

        x = channels_first(case, operands["input"])
        margin = reach + max(max(pair) for pair in o["padding"])
        wide = np.pad(
            x, ((0, 0), (0, 0), *((margin, margin),) * ndim)
        )  # zeros all around, as far as a shift can see
        windows = []
        for group, shift in zip(np.split(wide, case.offset_groups, axis=1), shifts, strict=True):
            first = [margin - b + int(move) for (b, _), move in zip(o["padding"], shift, strict=True)]
            axes = zip(first, out, o["stride"], o["dilation"], case.weight_shape[2:], strict=True)
            ends = [(start, start + (count - 1) * s + d * (k - 1) + 1) for start, count, s, d, k in axes]
            windows.append(group[(slice(None), slice(None), *(slice(*pair) for pair in ends))])
        moved = laid_out(case, np.concatenate(windows, axis=1))
        options = {name: o[name] for name in ("stride", "dilation", "layout")}
        conv = case.op.removeprefix("deform_")
        expected = run(
            backend, conv, moved, operands["weight"], **options, groups=x.shape[1] // case.weight_shape[1]
        )
        assert_exact(evaluate(backend, case, operands), expected, case)

    @given(case=cases(DEFORM_CONV))
    @examples(20)
    def test_a_mask_of_ones_is_none(self, backend, case):
        operands = case.arrays()
        operands.pop("mask", None)
        taps = case.offset_groups * math.prod(case.weight_shape[2:])
        offset = channels_first(case, operands["offset"])
        ones = laid_out(case, np.ones((len(offset), taps, *offset.shape[2:]), case.dtype))
        assert_exact(
            evaluate(backend, case, operands | {"mask": ones}), evaluate(backend, case, operands), case
        )

    @given(case=cases(DEFORM_CONV), value=st.sampled_from([np.nan, np.inf, -np.inf]), data=st.data())
    @examples(40)
    def test_an_offset_that_is_not_finite_stays_where_it_is(self, backend, case, value, data):
        """NaN makes its own pixel NaN, in the weight groups that read its channels; infinity reads zero."""
        operands = case.arrays()
        ndim = len(case.weight_shape) - 2
        offset = channels_first(case, operands["offset"]).copy()
        spot = tuple(data.draw(st.integers(0, n - 1)) for n in offset.shape)
        taps = math.prod(case.weight_shape[2:])
        d, tap = spot[1] // ndim // taps, spot[1] // ndim % taps
        c, o, per_group = (
            channels_first(case, operands["input"]).shape[1],
            case.weight_shape[0],
            case.weight_shape[1],
        )
        group_of = np.arange(c) // per_group
        hit = np.unique(group_of[d * c // case.offset_groups : (d + 1) * c // case.offset_groups])
        rows = np.isin(np.arange(o) // (o // (c // per_group)), hit)

        absent = (spot[0], d * taps + tap, *spot[2:])
        silent = dict(operands)
        taken = channels_first(case, operands["mask"]).copy() if case.mask else None
        if taken is None:
            taken = np.ones((len(offset), case.offset_groups * taps, *offset.shape[2:]), case.dtype)
        taken[absent] = 0
        silent["mask"] = laid_out(case, taken)
        expected = channels_first(case, evaluate(backend, case, silent)).copy()
        if math.isnan(value):
            expected[(spot[0], rows, *spot[2:])] = np.nan

        offset[spot] = value
        actual = evaluate(backend, case, operands | {"offset": laid_out(case, offset)})
        assert_exact(channels_first(case, actual), expected, f"{value} at {spot} of the offset in {case}")

    @pytest.mark.parametrize("ndim", DIMS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_samples_are_scipys(self, backend, ndim, dtype):
        """A kernel of one tap reads the image as scipy.ndimage does, zeros beyond its border."""
        rng = np.random.default_rng(ndim)
        size, out = (9, 7, 11)[:ndim], (9, 7, 11)[:ndim]
        image = integers(rng, size)
        offset = rng.integers(-13, 14, (ndim, *out)) / 4
        points = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")) + offset
        expected = scipy.ndimage.map_coordinates(
            image, points, order=1, mode="grid-constant", cval=0.0, prefilter=False
        )
        actual = run(
            backend,
            f"deform_conv{ndim}d",
            image.astype(dtype)[None],
            offset.astype(dtype),
            np.ones((1, 1, *(1,) * ndim), dtype),
        )
        np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-13)


class TestFormOfArrays:
    """The same numbers in another form give the same bits."""

    @given(case=cases(layouts=("NCHW",), modes=PADDING_MODES, activations=(None, "relu")))
    @examples(50)
    def test_channels_last_equals_channels_first(self, backend, case):
        operands = case.arrays()
        last = {
            name: array if name in ("weight", "bias") else np.ascontiguousarray(np.moveaxis(array, 1, -1))
            for name, array in operands.items()
        }
        actual = evaluate(backend, case, last, layout="NHWC")
        assert_exact(np.moveaxis(actual, -1, 1), evaluate(backend, case, operands), case)

    @given(case=cases(modes=PADDING_MODES, activations=(None, *ACTIVATIONS)))
    @examples(30)
    def test_images_of_a_batch_do_not_matter_to_each_other(self, backend, case):
        operands = random_operands(case)
        whole = evaluate(backend, case, operands)
        for i in range(len(whole)):
            alone = {name: a if name in ("weight", "bias") else a[i : i + 1] for name, a in operands.items()}
            assert_exact(evaluate(backend, case, alone), whole[i : i + 1], f"image {i} of {case}")

    @given(case=cases(modes=PADDING_MODES, activations=(None, *ACTIVATIONS)))
    @examples(20)
    def test_unbatched_equals_a_batch_of_one(self, backend, case):
        operands = random_operands(case)
        first = {name: a if name in ("weight", "bias") else a[0] for name, a in operands.items()}
        assert_exact(evaluate(backend, case, first), evaluate(backend, case, operands)[0], case)

    @given(case=cases())
    @examples(20)
    def test_an_empty_batch_gives_an_empty_result(self, backend, case):
        operands = case.arrays()
        none = {name: a if name in ("weight", "bias") else a[:0] for name, a in operands.items()}
        whole = evaluate(backend, case, operands)
        assert_exact(evaluate(backend, case, none), whole[:0], case)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("op", OPS)
    def test_same_bits_on_any_number_of_threads(self, backend, op, layout):
        ndim = int(op[-2])
        size = {1: (700,), 2: (33, 41), 3: (9, 10, 17)}[ndim]
        kernel = (3, 2, 4)[:ndim]
        rng = np.random.default_rng(ndim)
        for c, o, groups in ((12, 36, 1), (16, 8, 2), (24, 24, 24)):
            shape = (3, c, *size) if layout == "NCHW" else (3, *size, c)
            weight = (c, o // groups) if op in CONV_TRANSPOSE else (o, c // groups)
            operands = [normals(rng, shape, "float32"), normals(rng, (*weight, *kernel), "float32")]
            options = {"stride": 2, "padding": 1, "layout": layout}
            if op in DEFORM_CONV:
                out = tuple((n + 2 - k) // 2 + 1 for n, k in zip(size, kernel, strict=True))
                planes = (3, 2 * ndim * math.prod(kernel), *out)
                offset = normals(rng, planes if layout == "NCHW" else (3, *out, planes[1]), "float32")
                operands.insert(1, offset)
            else:
                options["groups"] = groups
            one = run(backend, op, *operands, **options, num_threads=1)
            for threads in (2, 3, 7):
                again = run(backend, op, *operands, **options, num_threads=threads)
                assert_exact(again, one, f"{threads} threads, {op} c{c} o{o} g{groups} {layout}")

    @given(case=cases(modes=PADDING_MODES), data=st.data())
    @examples(60)
    def test_any_memory_will_do(self, backend, case, data):
        operands = random_operands(case)
        expected = evaluate(backend, case, operands)
        form = data.draw(st.fixed_dictionaries({name: st.sampled_from(sorted(FORMS)) for name in operands}))
        formed = {name: FORMS[form[name]](array) for name, array in operands.items()}
        for name, array in formed.items():
            np.testing.assert_array_equal(array, operands[name])
        assert_exact(evaluate(backend, case, formed), expected, f"{form} in {case}")
        for name, array in formed.items():
            np.testing.assert_array_equal(array, operands[name], err_msg=f"{name} was written to in {case}")

    @given(case=cases())
    @examples(20)
    def test_broadcast_input(self, backend, case):
        """Strides of zero: one pixel, one weight, one bias, read over and over."""
        ones = {name: np.broadcast_to(array.flat[0], array.shape) for name, array in case.arrays().items()}
        copies = {name: np.ascontiguousarray(array) for name, array in ones.items()}
        assert_exact(evaluate(backend, case, ones), evaluate(backend, case, copies), case)

    @pytest.mark.parametrize("op", OPS)
    def test_memory_mapped_input(self, backend, op, tmp_path):
        case = small_case(op)
        operands = random_operands(case)
        mapped = {}
        for name, array in operands.items():
            np.save(tmp_path / f"{name}.npy", array)
            mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
            assert isinstance(mapped[name], np.memmap)
        actual = evaluate(backend, case, mapped)
        assert type(actual) is np.ndarray
        assert_exact(actual, evaluate(backend, case, operands), case)

    @given(
        case=cases(modes=PADDING_MODES),
        form=st.sampled_from(["fortran", "strided", "reversed", "swapped", "unaligned"]),
    )
    @examples(40)
    def test_any_memory_will_do_for_the_result(self, backend, case, form):
        operands = random_operands(case)
        expected = evaluate(backend, case, operands)
        out = FORMS[form](np.full_like(expected, 7))
        assert evaluate(backend, case, operands, out=out) is out
        np.testing.assert_array_equal(out, expected, err_msg=str(case))

    @given(case=cases(modes=PADDING_MODES, activations=(None, "relu")))
    @examples(40)
    def test_nothing_around_the_arrays_is_read_or_written(self, backend, case):
        """The arrays lie in the middle of memory full of NaN; what is read there would show."""
        operands = random_operands(case)
        expected = evaluate(backend, case, operands)
        framed = {name: framed_copy(array)[1] for name, array in operands.items()}
        frame, out = framed_copy(np.full_like(expected, 7))
        evaluate(backend, case, framed, out=out)
        assert_exact(out, expected, case)
        around = np.concatenate([frame[:FRAME], frame[-FRAME:]])
        assert np.isnan(around).all(), f"written outside of out by {case}"

    @given(case=cases())
    @examples(20)
    def test_the_result_is_new_memory(self, backend, case):
        operands = random_operands(case)
        first = evaluate(backend, case, operands)
        kept = first.copy()
        second = evaluate(backend, case, operands)
        assert first.flags.carray
        second[...] = np.nan
        evaluate(backend, case, {name: array + 1 for name, array in operands.items()})
        assert_exact(first, kept, case)
        assert not any(np.shares_memory(first, array) for array in operands.values())


FRAME = 64


def framed_copy(array):
    """Return memory with the array in its middle and NaN on both sides, and the array there."""
    frame = np.full(array.size + 2 * FRAME, np.nan, array.dtype)
    middle = frame[FRAME : FRAME + array.size].reshape(array.shape)
    middle[...] = array
    return frame, middle


def small_case(op):
    """Return a case of the operation, the same each time."""
    return next(testing.cases(op, 1, seed=5))


def _strided(array):
    wide = np.full((*array.shape[:-1], 3 * array.shape[-1] + 1), np.nan, array.dtype)
    wide[..., 1::3] = array
    return wide[..., 1::3]


def _reversed(array):
    backwards = (slice(None, None, -1),) * array.ndim
    return array[backwards].copy()[backwards]


def _unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "as it is": lambda array: array.copy(),
    "read-only": _read_only,
    "fortran": lambda array: np.array(array, order="F"),
    "strided": _strided,
    "reversed": _reversed,
    "swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "unaligned": _unaligned,
    "list": lambda array: (
        array.copy() if array.dtype == np.float32 else array.tolist()
    ),  # a list holds float64
}


class TestPlans:
    @given(case=cases(modes=PADDING_MODES, activations=(None, "relu", "relu6")))
    @examples(50)
    def test_plan_equals_function(self, backend, case):
        operands = case.arrays()
        expected = evaluate(backend, case, operands)
        plan = planned(backend, case, operands)
        inputs = [operands.get(name) for name in ("input", "offset", "mask")]
        assert_exact(plan(*inputs), expected, case)
        out = np.full_like(expected, np.nan)
        assert plan(*inputs, out=out) is out
        assert_exact(out, expected, case)

    @given(case=cases())
    @examples(20)
    def test_plan_keeps_its_own_weights(self, backend, case):
        operands = random_operands(case)
        plan = planned(backend, case, operands)
        inputs = [operands.get(name) for name in ("input", "offset", "mask")]
        before = plan(*inputs)
        operands["weight"][...] = np.nan
        if case.bias:
            operands["bias"][...] = np.nan
        assert_exact(plan(*inputs, num_threads=3), before, case)


def planned(backend, case, operands):
    options = dict(case.options)
    if case.offset_groups:
        options |= {"offset_groups": case.offset_groups, "mask": case.mask}
    plan = fastconv.plan(
        case.op, case.input_shape, operands["weight"], operands.get("bias"), **options, backend=backend
    )
    assert plan.kernel.backend == backend, case
    return plan


class TestLocality:
    """A value that is not a number spoils the outputs that read it, and no others."""

    @given(
        case=cases(bias=False, modes=PADDING_MODES),
        value=st.sampled_from([np.nan, np.inf, -np.inf]),
        data=st.data(),
    )
    @examples(60)
    def test_of_an_input_pixel(self, backend, case, value, data):
        operands = case.arrays()
        clean = evaluate(backend, case, operands)
        x = channels_first(case, operands["input"]).copy()
        spot = tuple(data.draw(st.integers(0, n - 1)) for n in x.shape)
        touched = reach(case, operands, spot)
        x[spot] = value
        spoilt = operands | {"input": laid_out(case, x)}
        actual = channels_first(case, evaluate(backend, case, spoilt))
        what = f"{value} at {spot} of the input in {case}"
        assert_exact(actual[~touched], channels_first(case, clean)[~touched], what)
        assert not np.isfinite(actual[touched]).any(), what
        if math.isnan(value):
            assert np.isnan(actual[touched]).all(), what
        assert_exact(actual, channels_first(case, evaluate("numpy", case, spoilt)), what)

    @given(case=cases((*CONV, *DEFORM_CONV)), value=st.sampled_from([np.nan, np.inf]), data=st.data())
    @examples(30)
    def test_of_a_weight(self, backend, case, value, data):
        operands = case.arrays()
        clean = channels_first(case, evaluate(backend, case, operands))
        channel = data.draw(st.integers(0, case.weight_shape[0] - 1))
        operands["weight"][channel] = value
        actual = channels_first(case, evaluate(backend, case, operands))
        others = np.arange(case.weight_shape[0]) != channel
        assert_exact(actual[:, others], clean[:, others], f"{value} in output channel {channel} of {case}")

    @given(case=cases(DEFORM_CONV), data=st.data())
    @examples(20)
    def test_of_a_mask(self, backend, case, data):
        operands = case.arrays()
        offset = channels_first(case, operands["offset"])
        taps = case.offset_groups * math.prod(case.weight_shape[2:])
        mask = np.ones((len(offset), taps, *offset.shape[2:]), case.dtype)
        clean = channels_first(case, evaluate(backend, case, operands | {"mask": laid_out(case, mask)}))
        spot = tuple(data.draw(st.integers(0, n - 1)) for n in mask.shape)
        mask[spot] = np.nan
        actual = channels_first(case, evaluate(backend, case, operands | {"mask": laid_out(case, mask)}))
        others = np.ones((len(offset), *offset.shape[2:]), bool)
        others[(spot[0], *spot[2:])] = False
        assert_exact(np.moveaxis(actual, 1, -1)[others], np.moveaxis(clean, 1, -1)[others], case)
        assert np.isnan(np.moveaxis(actual, 1, -1)[~others]).any(), case


def reach(case, operands, spot):
    """Return which outputs (channels first) read the input at `spot`, whatever their weights."""
    if case.offset_groups:
        return deformed_reach(case, operands, spot)
    x = np.zeros_like(channels_first(case, operands["input"]))
    x[spot] = 1
    ones = {"input": laid_out(case, x), "weight": np.ones_like(operands["weight"])}
    return channels_first(case, evaluate("numpy", case, ones)) != 0


def deformed_reach(case, operands, spot):
    """Mark an output if one of its points has the pixel at `spot` for a corner, even with no share."""
    x, offset = (channels_first(case, operands[name]) for name in ("input", "offset"))
    ndim, kernel, size, out = x.ndim - 2, case.weight_shape[2:], x.shape[2:], offset.shape[2:]
    c, o = x.shape[1], case.weight_shape[0]
    group = spot[1] // (c // case.offset_groups)
    displaced = offset.reshape(len(x), case.offset_groups, math.prod(kernel), ndim, *out)[spot[0], group]
    touched = np.zeros(out, bool)
    options = case.options
    for tap, moves in zip(product(*map(range, kernel)), displaced, strict=True):
        hit = np.ones(out, bool)
        for axis in range(ndim):
            steps = np.arange(out[axis]) * options["stride"][axis] + tap[axis] * options["dilation"][axis]
            point = (steps - options["padding"][axis][0]).reshape(-1, *(1,) * (ndim - 1 - axis)) + moves[axis]
            low = np.floor(point)
            hit &= (
                (point > -1) & (point < size[axis]) & ((low == spot[2 + axis]) | (low + 1 == spot[2 + axis]))
            )
        touched |= hit
    weight_group = spot[1] // case.weight_shape[1]
    result = np.zeros((len(x), o, *out), bool)
    per_group = o // (c // case.weight_shape[1])
    result[spot[0], weight_group * per_group : (weight_group + 1) * per_group] = touched
    return result


class TestTypes:
    @pytest.mark.parametrize("name", ["float16", "bfloat16"])
    @given(case=cases(dtypes=("float32",), activations=(None, "relu", "silu")))
    @examples(25)
    def test_half_precision_is_float32_rounded_once(self, backend, name, case):
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays come from ml_dtypes")
        half = np.dtype(np.float16 if name == "float16" else ml_dtypes.bfloat16)
        short = {key: array.astype(half) for key, array in random_operands(case).items()}
        long = {key: array.astype(np.float32) for key, array in short.items()}
        actual = evaluate(backend, case, short)
        assert_exact(actual, evaluate(backend, case, long).astype(half), case)
        out = np.zeros_like(actual)
        evaluate(backend, case, short, out=out)
        assert_exact(out, actual, case)

    @pytest.mark.parametrize(
        ("given_type", "result_type"),
        [
            ("bool", "float32"),
            ("int8", "float32"),
            ("uint8", "float32"),
            ("int16", "float32"),
            ("int64", "float64"),
        ],
    )
    @pytest.mark.parametrize("op", OPS)
    def test_integers_become_the_float_that_holds_them(self, backend, op, given_type, result_type):
        case = small_case(op)
        options = case.options | {"activation": None}
        whole = {name: np.abs(np.round(array)) for name, array in case.arrays().items()}
        whole = {name: array.astype(given_type) for name, array in whole.items()}
        actual = run(backend, op, **whole, **options)
        expected = run(
            backend, op, **{name: array.astype(result_type) for name, array in whole.items()}, **options
        )
        assert_exact(actual, expected, case)

    @pytest.mark.parametrize("op", OPS)
    def test_mixed_types_promote_as_numpy_says(self, backend, op):
        case = small_case(op)
        operands = case.arrays()
        operands["input"] = operands["input"].astype(np.float32)
        operands["weight"] = operands["weight"].astype(np.float64)
        wide = {name: array.astype(np.float64) for name, array in operands.items()}
        assert_exact(evaluate(backend, case, operands), evaluate(backend, case, wide), case)


class TestScipy:
    """scipy.ndimage and scipy.signal give the same on one channel, to the bit."""

    # What scipy.ndimage calls our padding modes.
    NDIMAGE = {  # noqa: RUF012
        "zeros": "constant",
        "reflect": "mirror",
        "replicate": "nearest",
        "circular": "wrap",
        "symmetric": "reflect",
    }

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", PADDING_MODES)
    @pytest.mark.parametrize("ndim", DIMS)
    def test_correlate(self, backend, ndim, mode, dtype):
        rng = np.random.default_rng(ndim)
        image, kernel = integers(rng, (23, 9, 12)[-ndim:]), integers(rng, (7, 3, 5)[-ndim:])
        expected = scipy.ndimage.correlate(image, kernel, mode=self.NDIMAGE[mode])
        actual = run(
            backend,
            f"conv{ndim}d",
            image.astype(dtype)[None],
            kernel.astype(dtype)[None, None],
            padding="same",
            padding_mode=mode,
        )
        assert_exact(actual[0], expected.astype(dtype))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ndim", DIMS)
    def test_valid_and_full(self, backend, ndim, dtype):
        rng = np.random.default_rng(ndim)
        image, kernel = integers(rng, (8, 9, 21)[-ndim:], dtype), integers(rng, (2, 5, 4)[-ndim:], dtype)
        call = (image[None], kernel[None, None])
        valid = scipy.signal.correlate(image, kernel, "valid", "direct")
        assert_exact(run(backend, f"conv{ndim}d", *call)[0], valid)
        full = scipy.signal.convolve(image, kernel, "full", "direct")
        assert_exact(run(backend, f"conv_transpose{ndim}d", *call)[0], full)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_upfirdn(self, backend, dtype):
        """Up by 3, filter, down by 2: a transposed convolution and a slice."""
        rng = np.random.default_rng(0)
        signal, taps = integers(rng, 40, dtype), integers(rng, 11, dtype)
        expected = scipy.signal.upfirdn(taps, signal, up=3, down=2)
        actual = run(backend, "conv_transpose1d", signal[None], taps[None, None], stride=3)[0, ::2]
        assert_exact(actual, expected.astype(dtype))

"""DCNv3, DCNv4 and the transposed deformable convolution: their formulas point by point, adjoints, differences, mistakes.

That every kernel equals the oracle is in test_conformance.py and test_grad.py; here the oracle equals the papers.
"""

import itertools
import math

import numpy as np
import pytest
from helpers import integers, normals

import fastconv
from fastconv import ShapeError, config, deform, grad, testing
from fastconv.problem import DCN, DEFORM_TRANSPOSE
from fastconv.testing import assert_close, assert_exact

VARIANTS = DEFORM_TRANSPOSE + DCN
COUNT = 12
STEP = 2.0**-10


@pytest.fixture(autouse=True)
def _has_kernels(request):
    """Leave out a backend that has no kernel for an operation."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "backend" in asked and "op" in asked and not fastconv.kernels(asked["op"], backend=asked["backend"]):
        pytest.skip(f"{asked['backend']} has no kernel for {asked['op']}")


def bilinear(x, h, w):
    """Return x (C, H, W) at one point: what the papers' code computes, corner by corner."""
    height, width = x.shape[1:]
    if not (-1 < h < height and -1 < w < width):
        return np.zeros(len(x))
    total = np.zeros(len(x))
    for i, j in itertools.product((math.floor(h), math.floor(h) + 1), (math.floor(w), math.floor(w) + 1)):
        if 0 <= i < height and 0 <= j < width:
            total += (1 - abs(h - i)) * (1 - abs(w - j)) * x[:, i, j]
    return total


def published(x, offset, mask, kernel, stride, pad, dilation, groups, scale, remove_center):
    """Return what the published operator does, in its own order: channels last, taps by columns, W before H."""
    n, height, width, c = x.shape
    kh, kw = kernel
    out = [
        (i + 2 * p - (d * (k - 1) + 1)) // s + 1
        for i, p, d, k, s in zip((height, width), pad, dilation, kernel, stride, strict=True)
    ]
    y = np.zeros((n, *out, c))
    points = kh * kw - remove_center
    for b, oh, ow, g in np.ndindex(n, *out, groups):
        half_h, half_w = (dilation[0] * (kh - 1)) >> 1, (dilation[1] * (kw - 1)) >> 1
        h0 = half_h - pad[0] + oh * stride[0] - half_h * scale
        w0 = half_w - pad[1] + ow * stride[1] - half_w * scale
        mine, place = slice(g * c // groups, (g + 1) * c // groups), g * points
        for i, j in itertools.product(range(kw), range(kh)):
            if remove_center and (i, j) == (kw // 2, kh // 2):
                continue
            w = w0 + (i * dilation[1] + offset[b, oh, ow, 2 * place]) * scale
            h = h0 + (j * dilation[0] + offset[b, oh, ow, 2 * place + 1]) * scale
            sample = bilinear(np.moveaxis(x[b, ..., mine], -1, 0), h, w)
            y[b, oh, ow, mine] += sample * mask[b, oh, ow, place]
            place += 1
    return y


GEOMETRIES = [
    {"kernel_size": (3, 3), "padding": (1, 1)},
    {
        "kernel_size": (3, 5),
        "padding": (2, 1),
        "stride": (2, 1),
        "dilation": (1, 2),
        "offset_scale": 0.5,
        "remove_center": True,
    },
    {"kernel_size": (2, 4), "padding": (0, 3), "stride": (1, 2), "dilation": (3, 1), "offset_scale": 2.0},
]


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize("op", DCN)
def test_it_is_the_published_operator(op, options, backend):
    rng = np.random.default_rng(0)
    groups, kernel, removed = 3, options["kernel_size"], options.get("remove_center", False)
    stride, dilation = options.get("stride", (1, 1)), options.get("dilation", (1, 1))
    x = normals(rng, (2, 6, 7, 12))
    out = fastconv.Problem.create(op, (2, 12, 6, 7), None, **options).output_size
    points = groups * (kernel[0] * kernel[1] - removed)
    offset, mask = 2 * normals(rng, (2, *out, 2 * points)), normals(rng, (2, *out, points))
    weights = mask
    if op == "dcnv3":
        each = np.exp(mask.reshape(2, *out, groups, -1))
        weights = (each / each.sum(axis=-1, keepdims=True)).reshape(mask.shape)
    expected = published(
        x,
        offset,
        weights,
        kernel,
        stride,
        options["padding"],
        dilation,
        groups,
        options.get("offset_scale", 1.0),
        removed,
    )
    o, m = deform.from_dcnv3(offset, mask, kernel, remove_center=removed)
    actual = getattr(fastconv, op)(x, o, m, **options, layout="NHWC", backend=backend)
    assert_close(actual, expected, 1e-13)


def test_dcnv4_is_a_deformable_convolution_with_weights_of_one(backend):
    case = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    rng = np.random.default_rng(0)
    x = integers(rng, (2, 6, 9, 11))
    out = fastconv.Problem.create("dcnv4", x.shape, None, kernel_size=(3, 2), **case).output_size
    offset, mask = integers(rng, (2, 3 * 12, *out)) / 4, integers(rng, (2, 3 * 6, *out))
    expected = fastconv.deform_conv2d(x, offset, np.ones((6, 1, 3, 2)), mask=mask, **case, backend="numpy")
    assert_exact(fastconv.dcnv4(x, offset, mask, (3, 2), **case, backend=backend), expected)


def test_dcnv3_is_dcnv4_of_the_softmax(backend):
    rng = np.random.default_rng(0)
    x, offset, logits = (
        normals(rng, (2, 8, 9, 9)),
        normals(rng, (2, 36, 9, 9)),
        30 * normals(rng, (2, 18, 9, 9)),
    )
    powers = np.exp(logits.reshape(2, 2, 9, 9, 9) - logits.max())
    mask = (powers / powers.sum(axis=2, keepdims=True)).reshape(logits.shape)
    actual = fastconv.dcnv3(x, offset, logits, padding=1, backend=backend)
    assert_close(actual, fastconv.dcnv4(x, offset, mask, padding=1, backend="numpy"), 1e-13)


def test_equal_logits_give_the_mean_of_what_is_there(backend):
    x = np.ones((1, 2, 8, 8), np.float32)
    offset, logits = np.zeros((1, 18, 8, 8)), np.full((1, 9, 8, 8), 1e4)
    assert_close(
        fastconv.dcnv3(x, offset, logits, padding=1, backend=backend)[:, :, 1:-1, 1:-1],
        np.ones((1, 2, 6, 6)),
        1e-6,
    )


def test_offsets_of_zero_give_the_transposed_convolution(backend):
    rng = np.random.default_rng(0)
    x, w, bias = integers(rng, (2, 6, 5, 4)), integers(rng, (6, 2, 3, 2)), integers(rng, (4,))
    options = {"stride": (2, 3), "padding": (1, 0), "dilation": (1, 2), "output_padding": (1, 2), "groups": 2}
    expected = fastconv.conv_transpose2d(x, w, bias, **options, backend="numpy")
    if not fastconv.kernels("deform_conv_transpose2d", backend=backend):
        pytest.skip(f"{backend} has no kernel for it")
    actual = fastconv.deform_conv_transpose2d(
        x, np.zeros((2, 2 * 12, 5, 4)), w, bias, **options, backend=backend
    )
    assert_exact(actual, expected)


def numbers(case):
    """Return the arrays of a case in float64, with a gradient of the output, and options without activation."""
    options = {name: value for name, value in case.options.items() if name != "activation"}
    arrays = {name: array.astype(np.float64) for name, array in case.arrays().items() if name != "bias"}
    y = getattr(fastconv, case.op)(**arrays, **options, backend="numpy")
    return arrays, options, y, integers(np.random.default_rng([case.seed, 2]), y.shape)


def gradients(op, gy, arrays, options, backend="numpy"):
    return getattr(grad, op)(gy, **arrays, **options, backend=backend)


def test_transposed_is_the_adjoint():
    """<y, A' x> == <A y, x>, exactly on offsets that are multiples of a quarter."""
    for case in testing.cases("deform_conv_transpose2d", 2 * COUNT):
        arrays, options, y, gy = numbers(case)
        x = arrays.pop("input")
        wanted = {name: options[name] for name in ("stride", "padding", "dilation", "layout")}
        there = fastconv.deform_conv2d(gy, **arrays, **wanted, backend="numpy")
        assert there.shape == x.shape
        assert (gy * y).sum() == (there * x).sum(), str(case)


@pytest.mark.parametrize("op", VARIANTS)
def test_gradients_are_adjoint(op, backend):
    """What is linear: the input, the weight, and the mask that is used as it is."""
    for case in testing.cases(op, COUNT):
        arrays, options, y, gy = numbers(case)
        found = gradients(op, gy, arrays, options, backend)._asdict()
        product = (gy * y).sum()
        linear = {"input", "weight"} | ({"mask"} if op != "dcnv3" else set())
        for name in linear & set(arrays):
            assert (found[name] * arrays[name]).sum() == product, f"{name} of {case}"


@pytest.mark.parametrize("op", VARIANTS)
def test_the_gradient_of_the_offset_is_a_finite_difference(op, backend):
    """Between whole coordinates all is linear along each axis, so that the difference is no approximation."""
    for case in testing.cases(op, COUNT):
        arrays, options, _, gy = numbers(case)
        rng = np.random.default_rng(case.seed)
        arrays["offset"] += (
            rng.integers(1, 100, arrays["offset"].shape) / 1024
        )  # off the lines, and a step more, too
        found = gradients(op, gy, arrays, options, backend).offset
        differences(op, arrays, "offset", options, gy, found, rng, STEP, 1e-6, case)


def test_the_gradient_of_the_logits_is_a_finite_difference(backend):
    for case in testing.cases("dcnv3", COUNT):
        arrays, options, _, gy = numbers(case)
        rng = np.random.default_rng(case.seed)
        arrays["mask"] = normals(rng, arrays["mask"].shape)
        found = gradients("dcnv3", gy, arrays, options, backend).mask
        differences("dcnv3", arrays, "mask", options, gy, found, rng, 1e-5, 1e-4, case)


def differences(op, arrays, name, options, gy, found, rng, step, tolerance, case):
    def total(moved):
        y = getattr(fastconv, op)(**{**arrays, name: moved}, **options, backend="numpy")
        return (y * gy).sum()

    for index in rng.integers(0, arrays[name].size, 5):
        up, down = arrays[name].copy(), arrays[name].copy()
        up.flat[index] += step
        down.flat[index] -= 0 if name == "offset" else step
        slope = (total(up) - total(down)) / (up.flat[index] - down.flat[index])
        assert math.isclose(found.flat[index], slope, rel_tol=tolerance, abs_tol=tolerance), str(case)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("op", DCN)
class TestCenterFeatureScale:
    def example(self, layout):
        rng = np.random.default_rng(0)
        arrays = {
            "input": normals(rng, (2, 6, 5, 7)),
            "offset": normals(rng, (2, 3 * 18, 5, 7)),
            "mask": normals(rng, (2, 3 * 9, 5, 7)),
            "center_feature_scale": rng.random((2, 3, 5, 7)),
        }
        if layout == "NHWC":
            arrays = {name: np.moveaxis(array, 1, -1).copy() for name, array in arrays.items()}
        return arrays, {"padding": 1, "layout": layout}

    def test_is_a_share_of_the_input(self, op, layout, backend):
        arrays, options = self.example(layout)
        share = arrays.pop("center_feature_scale")
        y = getattr(fastconv, op)(**arrays, **options, backend="numpy")
        axis = 1 if layout == "NCHW" else -1
        wide = np.repeat(share, 2, axis)
        expected = (1 - wide) * y + wide * arrays["input"]
        for out in (None, np.empty_like(y), np.empty((*y.shape, 2))[..., 0]):
            actual = getattr(fastconv, op)(
                **arrays, **options, center_feature_scale=share, out=out, backend=backend
            )
            assert_close(actual, expected, 1e-13)
            assert out is None or actual is out
        one = {name: array[0] for name, array in arrays.items()}
        single = getattr(fastconv, op)(**one, **options, center_feature_scale=share[0], backend=backend)
        assert_close(single, expected[0], 1e-13)
        halves = {name: array.astype(np.float16) for name, array in arrays.items()}
        rounded = getattr(fastconv, op)(**halves, **options, center_feature_scale=share, backend=backend)
        assert rounded.dtype == np.float16
        assert_close(rounded, expected, 0.02)

    def test_gradients(self, op, layout):
        arrays, options = self.example(layout)
        rng = np.random.default_rng(1)
        gy = normals(rng, arrays["input"].shape)
        found = gradients(op, gy, arrays, options)
        for name in arrays:
            differences(
                op, arrays, name, options, gy, getattr(found, name), rng, 1e-6, 1e-5, (op, layout, name)
            )
        one = gradients(op, gy[0], {name: array[0] for name, array in arrays.items()}, options)
        for name in arrays:
            assert_exact(getattr(one, name), getattr(found, name)[0])

    def test_without_it_there_is_no_gradient_of_it(self, op, layout):
        arrays, options = self.example(layout)
        del arrays["center_feature_scale"]
        found = gradients(op, np.ones_like(arrays["input"]), arrays, options)
        assert found.center_feature_scale is None

    def test_mistakes(self, op, layout):
        arrays, options = self.example(layout)
        share = arrays["center_feature_scale"]
        function = getattr(fastconv, op)
        with pytest.raises(ShapeError, match=r"center_feature_scale must have shape .* got \(1, "):
            function(**{**arrays, "center_feature_scale": share[:1]}, **options)
        with pytest.raises(TypeError, match="center_feature_scale must hold real numbers"):
            function(**{**arrays, "center_feature_scale": share + 1j}, **options)
        memory = np.zeros(share.size + arrays["input"].size)
        held = memory[: share.size].reshape(share.shape)
        out = memory[: arrays["input"].size].reshape(arrays["input"].shape)
        with pytest.raises(ValueError, match=r"out .* overlaps center_feature_scale"):
            function(**{**arrays, "center_feature_scale": held}, **options, out=out)
        smaller = {**options, "padding": 0}
        fewer = {
            name: array[:, :, 1:-1, 1:-1] if layout == "NCHW" else array[:, 1:-1, 1:-1]
            for name, array in arrays.items()
            if name != "input"
        }
        with pytest.raises(ShapeError, match=r"output of the input's size \(5, 7\), got \(3, 5\)"):
            function(**{**arrays, **fewer}, **smaller)


class TestWhatIsNotFinite:
    X, MASK = np.ones((1, 4, 6, 7)), np.ones((1, 18, 6, 7))

    @pytest.mark.parametrize("op", DCN)
    def test_a_nan_offset_makes_its_group_nan_at_its_pixel(self, op, backend):
        offset = np.zeros((1, 36, 6, 7))
        offset[0, 18 + 5, 2, 3] = np.nan  # of the second group
        y = getattr(fastconv, op)(self.X, offset, self.MASK, padding=1, backend=backend)
        assert np.isnan(y[0, 2:, 2, 3]).all()
        assert np.isnan(y).sum() == 2

    @pytest.mark.parametrize("op", DCN)
    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, -1e9])
    def test_a_point_far_away_reads_zero(self, op, value, backend):
        offset = np.zeros((1, 36, 6, 7), np.float32)
        expected = getattr(fastconv, op)(
            self.X.astype(np.float32), offset, self.MASK, padding=1, backend="numpy"
        )
        offset[0, :18, 2, 3] = value
        y = getattr(fastconv, op)(self.X, offset, self.MASK, padding=1, backend=backend)
        expected[0, :2, 2, 3] = 0
        assert_close(y, expected.astype(y.dtype), 1e-6)

    @pytest.mark.parametrize("op", DCN)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_masks_act_as_in_the_oracle(self, op, value, backend):
        rng = np.random.default_rng(0)
        x, offset = normals(rng, (1, 4, 6, 7)), normals(rng, (1, 36, 6, 7))
        mask = normals(rng, (1, 18, 6, 7))
        mask[0, 4, 2, 3] = value
        expected = getattr(fastconv, op)(x, offset, mask, padding=1, backend="numpy")
        assert_close(getattr(fastconv, op)(x, offset, mask, padding=1, backend=backend), expected, 1e-13)
        pixels = np.unique(np.argwhere(~np.isfinite(expected))[:, 1:], axis=0)
        assert np.array_equal(pixels, [[0, 2, 3], [1, 2, 3]]) or (value == -np.inf and op == "dcnv3")

    def test_a_nan_or_infinite_point_gives_nothing_when_transposed(self, backend):
        if not fastconv.kernels("deform_conv_transpose2d", backend=backend):
            pytest.skip(f"{backend} has no kernel for it")
        offset = np.zeros((1, 2, 3, 3))
        offset[0, 0, 0, 0], offset[0, 1, 0, 1], offset[0, 1, 1, 1] = np.nan, np.inf, 1e30
        y = fastconv.deform_conv_transpose2d(
            np.ones((1, 1, 3, 3)), offset, np.ones((1, 1, 1, 1)), backend=backend
        )
        assert y.sum() == 6

    @pytest.mark.parametrize("op", DCN)
    def test_gradients_of_a_nan_offset_stay_where_they_belong(self, op, backend):
        offset = np.zeros((1, 36, 6, 7))
        offset[0, 5, 2, 3] = np.nan
        found = getattr(grad, op)(self.X, self.X, offset, self.MASK, padding=1, backend=backend)
        assert np.isfinite(found.input).all()
        assert np.isnan(found.offset).sum() == 2
        assert np.isnan(found.mask).sum() == (9 if op == "dcnv3" else 1)

    @pytest.mark.parametrize("op", DCN)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e9])
    def test_gradients_of_points_anywhere_are_those_of_the_oracle(self, op, value, backend):
        rng = np.random.default_rng(0)
        x, gy = integers(rng, (1, 10, 12, 13), np.float32), integers(rng, (1, 10, 12, 13), np.float32)
        offset, mask = np.zeros((1, 36, 12, 13), np.float32), np.zeros((1, 18, 12, 13), np.float32)
        offset.reshape(-1)[101::997] = value
        points = {"offset": offset, "mask": mask, "padding": 1}
        expected = getattr(grad, op)(gy, x, **points, backend="numpy")
        for a, e in zip(getattr(grad, op)(gy, x, **points, backend=backend), expected, strict=True):
            if e is not None:
                assert_close(a, e, 1e-6)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_gradients_of_masks_are_those_of_the_oracle(self, value, backend):
        rng = np.random.default_rng(0)
        x, offset = normals(rng, (1, 4, 6, 7)), normals(rng, (1, 36, 6, 7))
        mask = normals(rng, (1, 18, 6, 7))
        mask[0, 4, 2, 3] = value
        for op in DCN:
            expected = getattr(grad, op)(x, x, offset, mask, padding=1, backend="numpy")
            actual = getattr(grad, op)(x, x, offset, mask, padding=1, backend=backend)
            for name in ("input", "offset", "mask"):
                a, e = getattr(actual, name), getattr(expected, name)
                assert np.array_equal(np.isfinite(a), np.isfinite(e)), (op, name)


# Groups of several blocks of channels, of fewer than a vector, and of one; many bands; a grid without its centre.
MANY = (
    (70, 1, (31, 37), {"kernel_size": (3, 3), "padding": 1}),
    (72, 2, (26, 24), {"kernel_size": (3, 5), "padding": 2, "remove_center": True, "offset_scale": 2.0}),
    (24, 6, (40, 23), {"kernel_size": (2, 3), "padding": 1, "dilation": 2, "stride": (1, 2)}),
    (5, 5, (50, 21), {"kernel_size": (5, 5), "padding": 2, "offset_scale": 0.5}),
)


@pytest.mark.parametrize(("channels", "groups", "size", "options"), MANY)
@pytest.mark.parametrize("op", DCN)
class TestManyTasks:
    def arrays(self, op, channels, groups, size, options, dtype, exact=True):
        rng = np.random.default_rng(0)
        problem = fastconv.Problem.create(op, (2, channels, *size), None, **options)
        out, points = problem.output_size, groups * problem.points
        make = integers if exact else normals
        offset = rng.integers(-12, 13, (2, 2 * points, *out)) / 4
        mask = make(rng, (2, points, *out))
        if op == "dcnv3" and exact:  # the softmax is one of its points, exactly
            mask = mask + 1e4 * rng.random(mask.shape).argsort(axis=1)
        found = {"grad_output": make(rng, (2, channels, *out)), "input": make(rng, (2, channels, *size))}
        found |= {"offset": offset, "mask": mask}
        return {name: array.astype(dtype) for name, array in found.items()}

    def test_gradients_equal_the_oracle_on_any_number_of_threads(
        self, op, channels, groups, size, options, backend, isa
    ):
        arrays = self.arrays(op, channels, groups, size, options, np.float32)
        expected = getattr(grad, op)(**arrays, **options, backend="numpy")
        with config.limit_isa(isa) if isa else config.threads(2):
            for threads in (1, 2, 7):
                found = getattr(grad, op)(**arrays, **options, backend=backend, num_threads=threads)
                for name in ("input", "offset", "mask"):
                    assert_exact(getattr(found, name), getattr(expected, name), name)

    def test_same_bits_of_gradients_on_any_number_of_threads(
        self, op, channels, groups, size, options, backend
    ):
        arrays = self.arrays(op, channels, groups, size, options, np.float32, exact=False)
        one, *others = (
            getattr(grad, op)(**arrays, **options, backend=backend, num_threads=n) for n in (1, 2, 3, 8)
        )
        for other in others:
            for name in ("input", "offset", "mask"):
                assert_exact(getattr(other, name), getattr(one, name), name)

    def test_only_what_is_asked_for(self, op, channels, groups, size, options, backend):
        arrays = self.arrays(op, channels, groups, size, options, np.float32)
        for layout in ("NCHW", "NHWC"):
            whole = getattr(grad, op)(**arrays, **options, layout=layout, backend="numpy")
            names = ("input", "offset", "mask")
            for bits in range(1, 2 ** len(names)):
                wrt = [name for i, name in enumerate(names) if bits >> i & 1]
                found = getattr(grad, op)(**arrays, **options, layout=layout, wrt=wrt, backend=backend)
                for name in names:
                    assert (getattr(found, name) is not None) == (name in wrt)
                    if name in wrt:
                        assert_exact(getattr(found, name), getattr(whole, name), f"{name} among {wrt}")
            arrays = {name: np.moveaxis(array, 1, -1) for name, array in arrays.items()}


@pytest.mark.parametrize("op", VARIANTS)
class TestForms:
    def test_layouts_batches_types_and_memory(self, op, backend):
        for case in testing.cases(op, 6):
            arrays, options = case.arrays(), case.options
            expected = getattr(fastconv, op)(**arrays, **options, backend=backend)
            moved = dict(arrays)
            other = "NCHW" if options["layout"] == "NHWC" else "NHWC"
            there, back = ((1, -1), (-1, 1)) if other == "NHWC" else ((-1, 1), (1, -1))
            for name in {"input", "offset", "mask"} & set(arrays):
                moved[name] = np.moveaxis(arrays[name], *there)  # a view: not contiguous
            y = getattr(fastconv, op)(**moved, **options | {"layout": other}, backend=backend)
            assert_exact(np.moveaxis(y, *back), expected)
            single = {
                name: array[0] if name in ("input", "offset", "mask") else array
                for name, array in arrays.items()
            }
            assert_exact(getattr(fastconv, op)(**single, **options, backend=backend), expected[0])
            none = {
                name: array[:0] if name in ("input", "offset", "mask") else array
                for name, array in arrays.items()
            }
            assert getattr(fastconv, op)(**none, **options, backend=backend).shape == (0, *expected.shape[1:])
            out = np.empty_like(expected)
            assert getattr(fastconv, op)(**arrays, **options, out=out, backend=backend) is out
            assert_exact(out, expected)

    def test_same_bits_on_any_number_of_threads(self, op, backend):
        for case in testing.cases(op, 4):
            arrays, options = case.arrays(), case.options
            rng = np.random.default_rng(0)
            arrays = {name: normals(rng, array.shape, case.dtype) for name, array in arrays.items()}
            one = getattr(fastconv, op)(**arrays, **options, backend=backend, num_threads=1)
            for threads in (2, 3, 7):
                again = getattr(fastconv, op)(**arrays, **options, backend=backend, num_threads=threads)
                assert_exact(again, one, str(case))

    def test_rounding(self, op, backend):
        """In float32, against the oracle in float64."""
        for case in testing.cases(op, 8):
            rng = np.random.default_rng(case.seed)
            options = case.options | ({} if op in DCN else {"activation": None})
            exact = {name: normals(rng, array.shape, np.float32) for name, array in case.arrays().items()}
            wide = {name: array.astype(np.float64) for name, array in exact.items()}
            expected = getattr(fastconv, op)(**wide, **options, backend="numpy")
            assert_close(
                getattr(fastconv, op)(**exact, **options, backend=backend), expected, 1e-5, str(case)
            )

    def test_gradients_have_the_forms_of_the_operands(self, op):
        for case in testing.cases(op, 4):
            arrays, options, _, gy = numbers(case)
            found = gradients(op, gy, arrays, options)._asdict()
            single = {name: array if name == "weight" else array[0] for name, array in arrays.items()}
            one = gradients(op, gy[0], single, options)._asdict()
            first = {name: array if name == "weight" else array[:1] for name, array in arrays.items()}
            batch = gradients(op, gy[:1], first, options)._asdict()
            for name, array in arrays.items():
                assert found[name].shape == array.shape
                assert_exact(one[name], batch[name] if name == "weight" else batch[name][0])
            only = getattr(grad, op)(gy, **arrays, **options, wrt="input", backend="numpy")._asdict()
            assert_exact(only.pop("input"), found["input"])
            assert set(only.values()) == {None}

    def test_explain_plan_and_names(self, op, backend):
        case = next(testing.cases(op, 1))
        arrays, options = case.arrays(), case.options
        told = fastconv.explain(op, **arrays, **options, backend=backend)
        assert told.backend == backend
        assert op in str(told)
        get = arrays.get
        more = {"offset_groups": case.offset_groups, "mask": case.mask}
        plan = fastconv.plan(
            op,
            case.input_shape,
            get("weight"),
            get("bias"),
            **options,
            **more,
            dtype=case.dtype,
            backend=backend,
        )
        expected = getattr(fastconv, op)(**arrays, **options, backend=backend)
        assert_exact(plan(arrays["input"], arrays["offset"], get("mask")), expected)
        given = {name: array for name, array in arrays.items() if name != "bias"}
        linear = {name: value for name, value in options.items() if name != "activation"}
        assert "gradient of" in str(fastconv.explain(f"grad.{op}", expected, **given, **linear))


class TestGradPlan:
    def test_transposed(self):
        case = next(testing.cases("deform_conv_transpose2d", 1))
        arrays, options, _, gy = numbers(case)
        plan = fastconv.plan_grad(
            case.op,
            case.input_shape,
            arrays["weight"],
            **options,
            offset_groups=case.offset_groups,
            mask=case.mask,
        )
        found = plan(gy, arrays["input"], arrays["offset"], arrays.get("mask"))
        for actual, expected in zip(found, gradients(case.op, gy, arrays, options), strict=True):
            assert (actual is None) == (expected is None)
            if expected is not None:
                assert_close(actual, expected, 1e-13)

    @pytest.mark.parametrize("op", DCN)
    def test_there_is_none_without_a_weight(self, op):
        with pytest.raises(ValueError, match=f"op must be one of .* got {op!r}"):
            fastconv.plan_grad(op, (1, 4, 8, 8), np.ones((4, 4, 3, 3)))


DCN_MISTAKES = [
    ({"input": np.ones((4, 9))}, ShapeError, "input of OP must have 4 dimensions"),
    ({"offset": None}, TypeError, "offset must be an array, got None"),
    ({"mask": None}, TypeError, "mask must be an array, got None"),
    (
        {"offset": np.ones((1, 35, 8, 9))},
        ShapeError,
        r"offset must have a multiple of 18 channels .* \(1, 35, 8, 9\)",
    ),
    ({"offset": np.ones((1, 36, 8, 8))}, ShapeError, r"offset must have shape .* got \(1, 36, 8, 8\)"),
    (
        {"offset": np.ones((1, 54, 8, 9))},
        ShapeError,
        r"3 offset groups, which do not divide the input's 4 channels",
    ),
    (
        {"mask": np.ones((1, 9, 8, 9))},
        ShapeError,
        r"mask must have shape \(1, 18, 8, 9\) .* got \(1, 9, 8, 9\)",
    ),
    ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
    ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be an integer or 2 integers"),
    ({"kernel_size": 3.0}, TypeError, "kernel_size must be an integer"),
    ({"kernel_size": None}, TypeError, "kernel_size must be an integer"),
    ({"offset_scale": "1"}, TypeError, "offset_scale must be a number"),
    ({"offset_scale": np.inf}, ValueError, "offset_scale must be finite"),
    ({"remove_center": 1}, TypeError, "remove_center must be True or False"),
    ({"remove_center": True, "kernel_size": (3, 2)}, ValueError, "a centre, of odd sizes, got"),
    ({"remove_center": True, "kernel_size": 1}, ValueError, "leaves no tap"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"layout": "NHCW"}, ValueError, "layout must be one of"),
    ({"mask": np.ones((1, 18, 8, 9), complex)}, TypeError, "mask must hold real numbers"),
]


@pytest.mark.parametrize(("change", "error", "says"), DCN_MISTAKES)
@pytest.mark.parametrize("op", DCN)
def test_mistakes(op, change, error, says):
    good = {
        "input": np.ones((1, 4, 8, 9)),
        "offset": np.zeros((1, 36, 8, 9)),
        "mask": np.ones((1, 18, 8, 9)),
        "padding": 1,
    }
    getattr(fastconv, op)(**good)
    with pytest.raises(error, match=says.replace("OP", op)):
        getattr(fastconv, op)(**{**good, **change})
    if "layout" not in change:
        with pytest.raises(error, match=says.replace("OP", op)):
            getattr(grad, op)(np.ones((1, 4, 8, 9)), **{**good, **change})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"weight": None}, TypeError, "weight must be an array, got None"),
        ({"offset": None}, TypeError, "offset must be an array, got None"),
        ({"weight": np.ones((5, 3, 3, 3))}, ShapeError, "weight has 5 input channels, but input has 4"),
        ({"groups": 3}, ShapeError, "groups=3 does not divide the input's 4 channels"),
        ({"offset": np.ones((1, 36, 7, 5))}, ShapeError, r"offset must have shape .*\*input size.* got"),
        (
            {"offset": np.ones((1, 72, 5, 6))},
            ShapeError,
            "4 offset groups, which do not divide the output's 6 channels",
        ),
        ({"mask": np.ones((1, 9, 7, 5))}, ShapeError, r"mask must have shape \(1, 18, 5, 6\)"),
        ({"padding": "same"}, ValueError, "padding of a transposed convolution must be given in numbers"),
        (
            {"output_padding": 2, "dilation": 3},
            ValueError,
            r"less than stride \(at most \(1, 1\)\), got \(2, 2\)",
        ),
        ({"output_size": 99}, ShapeError, "output_size must lie between"),
    ],
)
def test_mistakes_in_a_transposed_one(change, error, says):
    good = {
        "input": np.ones((1, 4, 5, 6)),
        "offset": np.zeros((1, 36, 5, 6)),
        "weight": np.ones((4, 3, 3, 3)),
        "groups": 2,
        "stride": 2,
    }
    fastconv.deform_conv_transpose2d(**good)
    with pytest.raises(error, match=says):
        fastconv.deform_conv_transpose2d(**{**good, **change})


def test_mistakes_in_a_plan():
    with pytest.raises(TypeError, match="weight must be None: dcnv4 has none"):
        fastconv.plan("dcnv4", (1, 4, 8, 8), np.ones((4, 1, 3, 3)), kernel_size=3)
    with pytest.raises(TypeError, match="kernel_size must be given, got None"):
        fastconv.plan("dcnv3", (1, 4, 8, 8))
    with pytest.raises(TypeError, match="weight must be an array, got None"):
        fastconv.plan("conv2d", (1, 4, 8, 8))
    with pytest.raises(TypeError, match="kernel_size must be that of the weight"):
        fastconv.plan("conv2d", (1, 4, 8, 8), np.ones((4, 4, 3, 3)), kernel_size=3)

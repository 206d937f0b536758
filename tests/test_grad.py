"""Gradients: every kernel equals the oracle, the oracle equals the formulas' own consequences and other libraries."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import integers, normals

import fastconv
from fastconv import _native, config, functional, grad, registry, testing
from fastconv.adjoint import adjoint_of
from fastconv.backends.cython import engines
from fastconv.lowering import program, winograd_grad
from fastconv.lowering.deform import lower_deform
from fastconv.lowering.deform_grad import lower_deform_grad
from fastconv.problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, GRAD_OPS, OPS, WEIGHT_GRAD, Problem

COUNT = 40
ANSWERS, PRODUCTS = {}, {}  # of the oracle, for all backends and instruction sets
# Whole numbers in float32: sums of a case's products over all its pixels stay exact in float64 alone.
EXACT = 2.0**53


def call(op, arrays, options, **more):
    """Return the gradients of the public function for the arrays of a case."""
    names = (
        ("grad_output", "input", "offset", "weight", "mask")
        if op in DEFORM_CONV
        else ("grad_output", "input", "weight")
    )
    given = {name: arrays[name] for name in names if name in arrays}
    return getattr(grad, op)(**given, **options, **more)


def linear_case(case):
    """Return a case's arrays in float64, with a gradient of the output, and its options without activation."""
    options = {name: value for name, value in case.options.items() if name != "activation"}
    arrays = {name: array.astype(np.float64) for name, array in case.arrays().items() if name != "bias"}
    arrays["grad_output"] = integers(np.random.default_rng([case.seed, 2]), case.problem().result_shape)
    return arrays, options


def product_of(case, arrays, options):
    """Return <gy, f(x, w)>, which is the same for all backends."""
    if str(case) not in PRODUCTS:
        given = {name: array for name, array in arrays.items() if name != "grad_output"}
        y = getattr(fastconv, case.op)(**given, **options, backend="numpy")
        PRODUCTS[str(case)] = (arrays["grad_output"] * y).sum()
    return PRODUCTS[str(case)]


@pytest.mark.parametrize("op", GRAD_OPS)
def test_kernels_equal_the_oracle(op, backend, isa):
    report = testing.Report(backend)
    entry = registry.find_backend(backend)
    with config.limit_isa(isa) if isa else config.threads(2):
        count = COUNT if op in WEIGHT_GRAD else COUNT // 4
        # Of the oracle against itself forms are tested, not values.
        for case in testing.cases(op, COUNT // 10 if backend == registry.ORACLE else count):
            testing.check_case(case, entry, report, known=ANSWERS)
    assert not report.failed, "\n".join(report.failed[:5])
    unused = {kernel.name for kernel in entry.ready().kernels if op in kernel.ops} - set(report.kernels)
    assert not unused, f"no case reached {unused}"


@pytest.mark.parametrize("op", CONV_TRANSPOSE)
def test_kernels_equal_the_oracle_on_transposed_shapes(op, backend):
    (oracle,) = fastconv.kernels(f"conv{op[-2]}d_weight_grad", backend="numpy")
    for case in testing.cases(op, COUNT // 2):
        adjoint = adjoint_of(dataclasses.replace(case.problem(), activation=None, bias=False))
        if adjoint is None:  # no tap reaches the output
            continue
        problem = adjoint.weight
        rng = np.random.default_rng(case.seed)
        x = integers(rng, problem.input_shape, problem.dtype)
        gy = integers(rng, problem.output_shape, problem.dtype)
        expected = np.empty(problem.weight_shape, problem.dtype)
        oracle.build(problem)(expected, x, gy, None, None, None, 1)
        for kernel in fastconv.kernels(problem.op, backend=backend):
            if kernel.refuse(problem):
                continue
            actual = np.full_like(expected, np.nan)
            kernel.build(problem)(actual, x, gy, None, None, None, 2)
            rounded = kernel.tolerance * np.finfo(problem.dtype).eps
            testing.assert_close(actual, expected, rounded, f"{kernel.name} {problem}")


@pytest.mark.parametrize("op", CONV + CONV_TRANSPOSE)
def test_gradients_are_adjoint_to_the_function(op, backend):
    """<gy, f(x, w)> = <f's gradient in x, x> = <f's gradient in w, w>, exactly on whole numbers."""
    for case in testing.cases(op, COUNT):
        arrays, options = linear_case(case)
        grads = call(op, arrays, options | {"accuracy": "high"}, backend=backend)
        product = product_of(case, arrays, options)
        assert abs(product) < EXACT
        assert (grads.input * arrays["input"]).sum() == product, str(case)
        assert (grads.weight * arrays["weight"]).sum() == product, str(case)
        assert_bias_gradient(grads, arrays, options, case)


def assert_bias_gradient(grads, arrays, options, case):
    """That of the bias, which each output has added, is the sum of the output's."""
    gy = arrays["grad_output"]
    gy = gy if options["layout"] == "NCHW" else np.moveaxis(gy, -1, 1)
    testing.assert_exact(grads.bias, gy.sum(axis=(0, *range(2, gy.ndim))), case)


@pytest.mark.parametrize("op", DEFORM_CONV)
def test_deformable_gradients_are_adjoint_to_the_function(op, backend):
    for case in testing.cases(op, COUNT // 2):
        arrays, options = linear_case(case)
        grads = call(op, arrays, options, backend=backend)
        product = product_of(case, arrays, options)
        assert (grads.input * arrays["input"]).sum() == product, str(case)
        assert (grads.weight * arrays["weight"]).sum() == product, str(case)
        assert_bias_gradient(grads, arrays, options, case)
        if "mask" in arrays:
            assert (grads.mask * arrays["mask"]).sum() == product, str(case)


@pytest.mark.parametrize("op", DEFORM_CONV)
def test_the_gradient_of_the_offset_is_a_finite_difference(op):
    """Between whole coordinates the samples are linear along each axis, so that the difference is no approximation."""
    step = 2.0**-10
    for case in testing.cases(op, 12):
        arrays, options = linear_case(case)
        rng = np.random.default_rng(case.seed)
        arrays["offset"] += (
            rng.integers(1, 200, arrays["offset"].shape) / 1024
        )  # inside an interval, and so is a step more
        grads = call(op, arrays, options, backend="numpy")
        forward = {name: array for name, array in arrays.items() if name != "grad_output"}

        def total(offset, forward=forward, arrays=arrays, options=options):
            y = getattr(fastconv, op)(**{**forward, "offset": offset}, **options, backend="numpy")
            return (y * arrays["grad_output"]).sum()

        for index in rng.integers(0, arrays["offset"].size, 5):
            moved = arrays["offset"].copy()
            moved.flat[index] += step
            difference = (total(moved) - total(arrays["offset"])) / step
            assert math.isclose(grads.offset.flat[index], difference, rel_tol=1e-6, abs_tol=1e-6), str(case)


def torch_output(torch, op, given, options):
    """Return what torch computes; padding is around the input, or cut off the output, as it may differ by side."""
    options = dict(options)
    padding = options.pop("padding")
    around = [width for pair in reversed(padding) for width in pair]
    if op in CONV_TRANSPOSE:
        y = getattr(torch.nn.functional, op)(given["input"], given["weight"], **options)
        inside = (
            slice(before, size - after) for (before, after), size in zip(padding, y.shape[2:], strict=True)
        )
        return y[(slice(None), slice(None), *inside)]
    given = given | {"input": torch.nn.functional.pad(given["input"], around)}
    if op in DEFORM_CONV:
        return pytest.importorskip("torchvision").ops.deform_conv2d(**given, **options)
    return getattr(torch.nn.functional, op)(**given, **options)


@pytest.mark.parametrize("op", [*CONV, *CONV_TRANSPOSE])
def test_gradients_equal_those_of_torch(op):
    equal_those_of_torch(op, "numpy")


def test_deformable_gradients_equal_those_of_torchvision(backend):
    compared = equal_those_of_torch("deform_conv2d", backend)
    for option in ("stride", "dilation"):
        assert any(set(case.options[option]) != {1} for case in compared)
    for property in ("bias", "mask"):
        assert {getattr(case, property) for case in compared} == {False, True}
    assert {case.offset_groups > 1 for case in compared} == {False, True}
    assert {case.problem().groups > 1 for case in compared} == {False, True}


def equal_those_of_torch(op, backend):
    """Compare all gradients in float64, and return the cases."""
    torch, compared = pytest.importorskip("torch"), []
    for case in testing.cases(op, COUNT):
        arrays, options = linear_case(case)
        options.pop("padding_mode", None)  # it has no other than zeros here
        if options.pop("layout") != "NCHW":
            continue
        rng = np.random.default_rng(case.seed)
        gy = normals(rng, arrays.pop("grad_output").shape)
        if case.bias and op in DEFORM_CONV:
            arrays["bias"] = case.arrays()["bias"].astype(np.float64)
        arrays = {name: array + rng.random(array.shape) for name, array in arrays.items()}
        given = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
        torch_output(torch, op, given, options).backward(torch.tensor(gy))
        grads = call(op, arrays | {"grad_output": gy}, options, backend=backend)._asdict()
        for name, tensor in given.items():
            assert testing.max_error(grads[name], tensor.grad.numpy()) <= 1e-12, f"{name} of {case}"
        compared.append(case)
    return compared


@pytest.mark.parametrize("op", CONV + CONV_TRANSPOSE)
def test_rounding(op, backend):
    """In float32 errors stay where sums from zero of K blocks leave them."""
    rng = np.random.default_rng(3)
    size = {1: (3000,), 2: (61, 53), 3: (13, 15, 17)}[int(op[-2])]
    kernel = (3,) * int(op[-2])
    for channels, groups in ((24, 1), (24, 24), (24, 6)):
        x = normals(rng, (3, channels, *size), np.float32)
        w = normals(rng, (channels, channels // groups, *kernel), np.float32)
        gy = normals(rng, functional_shape(op, x, w, groups), np.float32)
        wrt = ("input", "weight", "bias")
        high = {"accuracy": "high", "backend": backend}
        actual = getattr(grad, op)(gy, x, w, padding=1, groups=groups, wrt=wrt, **high)
        exact = getattr(grad, op)(
            *(a.astype(np.float64) for a in (gy, x, w)), padding=1, groups=groups, wrt=wrt
        )
        for name, a, e in zip(wrt, actual, exact, strict=True):
            assert testing.max_error(a, e) <= 1e-6, f"{name} {channels} {groups}"


def functional_shape(op, x, w, groups):
    return getattr(fastconv, op)(x, w, padding=1, groups=groups).shape


class TestForms:
    """What the forward functions take, their gradients take."""

    X = integers(np.random.default_rng(0), (2, 4, 9, 8))
    W = integers(np.random.default_rng(1), (6, 2, 3, 2))
    GY = integers(np.random.default_rng(2), (2, 6, 4, 9))
    OPTIONS = {"groups": 2, "stride": (2, 1), "padding": ((0, 1), (1, 1))}  # noqa: RUF012  (never written to)

    def expected(self):
        return grad.conv2d(self.GY, self.X, self.W, **self.OPTIONS, backend="numpy")

    def check(self, grads, dtype=np.float64):
        for actual, expected in zip(grads, self.expected(), strict=True):
            testing.assert_exact(actual, expected.astype(dtype))
            assert actual.flags.c_contiguous

    def test_any_memory_layout(self, backend):
        strange = []
        for array in (self.GY, self.X, self.W):
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::-2]
            wide[...] = array
            wide.flags.writeable = False
            strange.append(wide)
        self.check(grad.conv2d(*strange, **self.OPTIONS, backend=backend))

    @pytest.mark.parametrize("dtype", [">f8", "<f4", ">f4", "float16"])
    def test_any_type(self, backend, dtype):
        arrays = (array.astype(dtype) for array in (self.GY, self.X, self.W))
        self.check(grad.conv2d(*arrays, **self.OPTIONS, backend=backend), np.dtype(dtype).newbyteorder("="))

    def test_bfloat16(self, backend):
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        arrays = (array.astype(bfloat16) for array in (self.GY, self.X, self.W))
        self.check(grad.conv2d(*arrays, **self.OPTIONS, backend=backend), bfloat16)

    def test_lists(self, backend):
        lists = (array.tolist() for array in (self.GY, self.X, self.W))
        self.check(grad.conv2d(*lists, **self.OPTIONS, backend=backend))

    def test_without_batch(self, backend):
        one = grad.conv2d(self.GY[0], self.X[0], self.W, **self.OPTIONS, backend=backend)
        two = grad.conv2d(self.GY[:1], self.X[:1], self.W, **self.OPTIONS, backend=backend)
        testing.assert_exact(one.input, two.input[0])
        testing.assert_exact(one.weight, two.weight)
        testing.assert_exact(one.bias, two.bias)

    def test_channels_last(self, backend):
        gy, x = (np.moveaxis(array, 1, -1) for array in (self.GY, self.X))
        grads = grad.conv2d(gy, x, self.W, **self.OPTIONS, layout="NHWC", backend=backend)
        self.check(grads._replace(input=np.ascontiguousarray(np.moveaxis(grads.input, -1, 1))))

    def test_an_empty_batch(self, backend):
        grads = grad.conv2d(self.GY[:0], self.X[:0], self.W, **self.OPTIONS, backend=backend)
        assert grads.input.shape == (0, 4, 9, 8)
        assert grads.weight.shape == self.W.shape
        assert not grads.weight.any()
        assert not grads.bias.any()

    def test_many_chunks_of_images(self, backend, monkeypatch):
        monkeypatch.setattr(program, "CHUNK_BYTES", 1)
        x, gy = (np.concatenate([array, array]) for array in (self.X, self.GY))
        grads = grad.conv2d(gy, x, self.W.copy(), **self.OPTIONS, wrt="weight", backend=backend)
        testing.assert_exact(grads.weight, 2 * self.expected().weight)

    def test_only_what_is_asked_for(self, backend):
        for name in ("input", "weight", "bias"):
            grads = grad.conv2d(self.GY, self.X, self.W, **self.OPTIONS, wrt=name, backend=backend)
            for other, value in grads._asdict().items():
                assert (value is None) == (other != name)

    def test_deformable_without_batch_and_channels_last(self):
        rng = np.random.default_rng(4)
        x, w, gy = integers(rng, (5, 6, 4)), integers(rng, (3, 4, 2, 2)), integers(rng, (4, 5, 3))
        offset, mask = rng.integers(-8, 9, (4, 5, 8)) / 4, integers(rng, (4, 5, 4))
        last = grad.deform_conv2d(gy, x, offset, w, mask=mask, layout="NHWC")
        moved = (np.moveaxis(array, -1, 0)[None] for array in (gy, x, offset))
        first = grad.deform_conv2d(*moved, w, mask=np.moveaxis(mask, -1, 0)[None])
        for name in ("input", "offset", "mask"):
            testing.assert_exact(getattr(last, name), np.moveaxis(getattr(first, name)[0], 0, -1).copy())
        testing.assert_exact(last.weight, first.weight)
        testing.assert_exact(last.bias, first.bias)


def test_the_same_bits_for_any_number_of_threads(backend):
    rng = np.random.default_rng(5)
    for channels, groups in ((40, 1), (40, 40), (40, 10)):
        x, gy = (normals(rng, (3, channels, 33, 35), np.float32) for _ in range(2))
        w = normals(rng, (channels, channels // groups, 3, 3), np.float32)
        one, *others = (
            grad.conv2d(gy, x, w, padding=1, groups=groups, backend=backend, num_threads=n) for n in (1, 2, 5)
        )
        for other in others:
            for a, b in zip(one, other, strict=True):
                testing.assert_exact(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_belongs(backend, value):
    """A pixel touches the weights whose taps meet it, and no others."""
    for channels, groups in ((8, 1), (8, 8), (20, 20), (8, 4)):
        x, gy = np.ones((1, channels, 7, 21), np.float32), np.ones((1, channels, 7, 21), np.float32)
        x[0, 2, 0, 20] = value
        w = np.ones((channels, channels // groups, 3, 3), np.float32)
        for layout in ("NCHW", "NHWC"):
            images = (gy, x) if layout == "NCHW" else (np.moveaxis(a, 1, -1) for a in (gy, x))
            options = {"padding": 1, "groups": groups, "layout": layout, "wrt": "weight"}
            images = tuple(images)
            actual = grad.conv2d(*images, w, **options, backend=backend).weight
            expected = grad.conv2d(*images, w, **options, backend="numpy").weight
            np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
            assert 0 < np.isfinite(actual).sum() < actual.size


# Tiles cut by borders, phases of a dilation, the taps of a third axis; several images and blocks of channels.
WINOGRAD = (
    ("conv2d", (3, 17, 33, 41), 35, (3, 3), {"padding": (1, 2)}),
    ("conv2d", (5, 8, 26, 23), 12, (3, 3), {"padding": 2, "dilation": (2, 3), "groups": 2}),
    ("conv2d", (9, 70, 7, 7), 70, (3, 3), {"padding": 1, "padding_mode": "reflect"}),
    ("conv3d", (2, 8, 7, 18, 9), 20, (2, 3, 3), {"padding": 1, "stride": (2, 1, 1), "dilation": (3, 1, 2)}),
)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("op", "size", "o", "kernel", "options"), WINOGRAD)
def test_winograd_weights_in_bands_and_chunks(
    op, size, o, kernel, options, layout, backend, isa, monkeypatch
):
    """What is not finite, or nearly so large, spoils the tiles that hold it, which are summed directly."""
    kernels = fastconv.kernels(f"{op}_weight_grad", backend=backend)
    kernels = [kernel for kernel in kernels if "winograd" in kernel.name]
    if not kernels:
        pytest.skip("the backend has no such kernel")
    (oracle,) = fastconv.kernels(f"{op}_weight_grad", backend="numpy")
    shape = size if layout == "NCHW" else (size[0], *size[2:], size[1])
    weight = (o, size[1] // options.get("groups", 1), *kernel)
    problem = Problem.create(op, shape, weight, **options, layout=layout)
    problem = dataclasses.replace(problem, op=f"{op}_weight_grad")
    rng = np.random.default_rng(3)
    monkeypatch.setattr(winograd_grad, "BAND_BYTES", 1 << 14)
    monkeypatch.setattr(winograd_grad, "LEAST_TILES", 8)
    monkeypatch.setattr(winograd_grad, "TOGETHER", 3)
    for value in (0, np.nan, np.inf, 1e30):
        x, gy = (integers(rng, shape, np.float32) for shape in (problem.input_shape, problem.output_shape))
        if value:
            x[1].flat[rng.integers(0, x[1].size)] = value
            gy[0].flat[rng.integers(0, gy[0].size)] = value
        expected = np.empty(weight, np.float32)
        with np.errstate(invalid="ignore"):
            oracle.build(problem)(expected, x, gy, None, None, None, 1)
        for kernel in kernels:
            with config.limit_isa(isa) if isa else config.threads(2):
                run = kernel.build(problem)
            one, two = np.full_like(expected, np.nan), np.full_like(expected, np.nan)
            run(one, x, gy, None, None, None, 1)
            run(two, x, gy, None, None, None, 2)
            testing.assert_exact(one, two)
            rounded = kernel.tolerance * np.finfo(np.float32).eps if value != 1e30 else 1e-6
            testing.assert_close(one, expected, rounded, kernel.name)
            assert value in (0, 1e30) or 0 < np.isfinite(one).sum() < one.size


@pytest.mark.parametrize("kind", ["normal", "positive", "of all magnitudes", "smooth"])
def test_winograd_weights_keep_to_the_accuracy_promised(kind, backend):
    rng = np.random.default_rng(4)
    for n, c, o, size in ((8, 16, 16, 56), (1, 16, 24, 14), (16, 24, 16, 7)):
        problem = Problem.create("conv2d", (n, c, size, size), (o, c, 3, 3), padding=1)
        problem = dataclasses.replace(problem, op="conv2d_weight_grad")
        x, gy = (normals(rng, shape) for shape in (problem.input_shape, problem.output_shape))
        if kind == "positive":
            x, gy = abs(x), abs(gy)
        elif kind == "of all magnitudes":
            x, gy = (a * 10 ** rng.uniform(-3, 3, a.shape) for a in (x, gy))
        elif kind == "smooth":
            x, gy = np.sin(np.arange(size) / 9) + x / 100, 1 + gy / 100
        x, gy = x.astype(np.float32), gy.astype(np.float32)
        all_kernels_are_within(4e-6, problem, x, gy, backend)


def all_kernels_are_within(tolerance, problem, x, gy, backend):
    """Compare the weight gradients of every kernel that takes a problem with the oracle's in float64."""
    expected = np.empty(problem.weight_shape)
    (oracle,) = fastconv.kernels(problem.op, backend="numpy")
    exact = oracle.build(dataclasses.replace(problem, dtype=np.dtype(np.float64)))
    exact(expected, x.astype(np.float64), gy.astype(np.float64), None, None, None, 1)
    for kernel in fastconv.kernels(problem.op, backend=backend):
        if kernel.refuse(problem) is None:
            actual = np.empty(problem.weight_shape, np.float32)
            kernel.build(problem)(actual, x, gy, None, None, None, 2)
            testing.assert_close(actual, expected, tolerance, kernel.name)


def test_errors_of_weights_do_not_grow_with_pixels(backend):
    """Sums of millions of products are made in several levels."""
    rng = np.random.default_rng(6)
    problem = Problem.create("conv2d", (4, 4, 640, 640), (5, 4, 3, 3), padding=1)
    problem = dataclasses.replace(problem, op="conv2d_weight_grad")
    x, gy = (normals(rng, shape, np.float32) for shape in (problem.input_shape, problem.output_shape))
    all_kernels_are_within(2e-6, problem, x, gy, backend)


# Images in place and in line space, tiles of all shapes, vectors that only masks make whole, rows and columns that one
# sum has too many of, channels that overlap in their last vector, several outputs a channel.
DEPTHWISE = (
    ("conv2d", 5, 5, (19, 35), (3, 3), {"padding": 1}),
    ("conv2d", 37, 37, (14, 14), (7, 7), {"padding": 3}),
    ("conv2d", 20, 40, (31, 18), (5, 5), {"padding": 2, "stride": 2}),
    ("conv2d", 17, 17, (23, 40), (9, 4), {"padding": (4, 3), "stride": (3, 2)}),
    ("conv2d", 16, 16, (40, 21), (3, 3), {"padding": (2, 3), "dilation": (2, 3)}),
    ("conv2d", 18, 18, (9, 33), (3, 3), {"padding": (0, 4), "dilation": (3, 4), "stride": (1, 2)}),
    ("conv2d", 19, 19, (13, 12), (15, 13), {"padding": (7, 6)}),
    ("conv2d", 16, 16, (21, 17), (3, 5), {"padding": (1, 2), "stride": (2, 3), "padding_mode": "reflect"}),
    ("conv2d", 33, 33, (300, 2), (3, 2), {}),
    ("conv1d", 18, 36, (4500,), (31,), {"padding": 15}),
    ("conv3d", 21, 21, (5, 9, 18), (3, 3, 3), {"padding": 1, "stride": (2, 1, 2)}),
)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("op", "c", "o", "size", "kernel", "options"), DEPTHWISE)
def test_depthwise_weights_equal_the_oracle(
    op, c, o, size, kernel, options, layout, backend, isa, monkeypatch
):
    rng = np.random.default_rng(o)
    x, w = integers(rng, (3, c, *size), np.float32), integers(rng, (o, 1, *kernel), np.float32)
    gy = integers(rng, getattr(fastconv, op)(x, w, groups=c, **options).shape, np.float32)
    images = (gy, x) if layout == "NCHW" else tuple(np.moveaxis(array, 1, -1).copy() for array in (gy, x))
    given = {**options, "groups": c, "layout": layout, "wrt": "weight"}
    expected = getattr(grad, op)(*images, w, **given, backend="numpy").weight
    with config.limit_isa(isa) if isa else config.threads(2):
        actual = getattr(grad, op)(*images, w, **given, backend=backend).weight
        testing.assert_exact(actual, expected)
        monkeypatch.setattr(program, "CHUNK_BYTES", 1)
        twice = tuple(
            np.concatenate([array, array]) for array in images
        )  # another shape: nothing is remembered
        in_chunks = getattr(grad, op)(*twice, w, **given, num_threads=2, backend=backend).weight
        testing.assert_exact(in_chunks, 2 * expected)


def deformable(rng, c, o, size, kernel, groups, offset_groups, mask=True, batch=2, dtype=np.float32):
    """Return arrays of a deformable convolution without padding; sums of their products are exact."""
    out = tuple(i - k + 1 for i, k in zip(size, kernel, strict=True))
    points = offset_groups * math.prod(kernel)
    arrays = {
        "grad_output": integers(rng, (batch, o, *out), dtype),
        "input": integers(rng, (batch, c, *size), dtype),
        "offset": (rng.integers(-12, 13, (batch, len(size) * points, *out)) / 4).astype(dtype),
        "weight": integers(rng, (o, c // groups, *kernel), dtype),
    }
    return arrays | ({"mask": integers(rng, (batch, points, *out), dtype)} if mask else {})


# Several bands of pixels, blocks of channels that share offsets, or none that fill a vector, and parts of the taps.
DEFORMABLE = (
    ("deform_conv1d", 40, 6, (700,), (3,), 1, 1),
    ("deform_conv2d", 70, 5, (23, 31), (2, 3), 5, 2),
    ("deform_conv2d", 66, 3, (21, 24), (5, 4), 1, 1),
    ("deform_conv2d", 48, 32, (19, 29), (1, 1), 16, 16),
    ("deform_conv3d", 36, 4, (5, 11, 12), (2, 1, 2), 2, 1),
)


class TestDeformable:
    @pytest.mark.parametrize("case", DEFORMABLE)
    @pytest.mark.parametrize("mask", [True, False])
    def test_many_tasks_equal_the_oracle_on_any_number_of_threads(self, case, mask, backend, isa):
        op, *shapes = case
        arrays = deformable(np.random.default_rng(6), *shapes, mask=mask)
        expected = call(op, arrays, {}, backend="numpy")
        with config.limit_isa(isa) if isa else config.threads(2):
            for threads in (1, 2, 7):
                actual = call(op, arrays, {}, backend=backend, num_threads=threads)
                for name, array in expected._asdict().items():
                    if array is not None:
                        testing.assert_exact(getattr(actual, name), array, name)

    def test_the_same_bits_for_any_number_of_threads(self, backend):
        rng = np.random.default_rng(7)
        arrays = deformable(rng, 72, 20, (40, 37), (3, 3), 1, 1)
        arrays = {name: normals(rng, array.shape, np.float32) for name, array in arrays.items()}
        one, *others = (
            call("deform_conv2d", arrays, {}, backend=backend, num_threads=n) for n in (1, 2, 3, 8)
        )
        for other in others:
            for a, b in zip(one, other, strict=True):
                testing.assert_exact(a, b)

    def test_many_chunks_of_images(self, backend, monkeypatch):
        monkeypatch.setattr(program, "CHUNK_BYTES", 1)
        arrays = deformable(np.random.default_rng(8), 5, 3, (17, 13), (2, 2), 1, 5, batch=4)
        expected = call("deform_conv2d", arrays, {}, backend="numpy")
        for actual, right in zip(call("deform_conv2d", arrays, {}, backend=backend), expected, strict=True):
            testing.assert_exact(actual, right)

    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_only_what_is_asked_for(self, layout, backend):
        arrays = deformable(np.random.default_rng(9), 34, 4, (12, 14), (2, 2), 2, 1)
        if layout == "NHWC":
            arrays |= {name: np.moveaxis(array, 1, -1) for name, array in arrays.items() if name != "weight"}
        names = ("input", "offset", "weight", "bias", "mask")
        whole = call("deform_conv2d", arrays, {"layout": layout}, backend="numpy")
        for bits in range(1, 2 ** len(names)):
            wrt = [name for i, name in enumerate(names) if bits >> i & 1]
            grads = call("deform_conv2d", arrays, {"layout": layout}, wrt=wrt, backend=backend)
            for name, grad_ in grads._asdict().items():
                assert (grad_ is not None) == (name in wrt)
                if grad_ is not None:
                    testing.assert_exact(grad_, getattr(whole, name), f"{name} among {wrt}")

    def test_an_empty_batch(self, backend):
        arrays = deformable(np.random.default_rng(9), 4, 3, (6, 6), (2, 2), 1, 1, batch=0)
        grads = call("deform_conv2d", arrays, {}, backend=backend)
        assert grads.input.shape == arrays["input"].shape
        assert not grads.weight.any()

    def test_the_derivative_at_the_border_is_the_one_to_the_right(self, backend):
        """At -1 a sample is zero, but not its slope; at the size it is neither."""
        x, w, gy = np.full((1, 1, 4), 3.0), np.ones((1, 1, 1)), np.ones((1, 1, 4))
        offset = np.array([[[-1.0, -2.0, 1.0, 1.0]]])  # to -1, -1, 3, 4
        grads = grad.deform_conv1d(gy, x, offset, w, mask=np.ones((1, 1, 4)), backend=backend)
        assert grads.offset.tolist() == [[[3, 3, -3, 0]]]
        assert grads.mask.tolist() == [[[0, 0, 3, 0]]]
        assert grads.input.tolist() == [[[0, 0, 0, 1]]]

    @pytest.mark.parametrize("spread", [0.5, 30.0, 1e9])
    def test_far_points(self, spread, backend):
        rng = np.random.default_rng(10)
        arrays = deformable(rng, 20, 6, (30, 27), (3, 3), 1, 2, dtype=np.float64)
        arrays["offset"] = normals(rng, arrays["offset"].shape) * spread
        expected = call("deform_conv2d", arrays, {}, backend="numpy")
        for actual, right in zip(call("deform_conv2d", arrays, {}, backend=backend), expected, strict=True):
            testing.assert_close(actual, right, 1e-13)

    def test_what_is_not_finite_stays_where_it_belongs(self, backend):
        for channels, offset_groups in ((5, 1), (8, 8), (40, 2), (33, 1)):
            arrays = deformable(np.random.default_rng(11), channels, 4, (24, 18), (2, 2), 1, offset_groups)
            flat = arrays["offset"].reshape(-1)
            for i, value in enumerate((np.nan, np.inf, -np.inf, 1e30, -1e30)):
                flat[101 + 397 * i] = value
            expected = call("deform_conv2d", arrays, {}, backend="numpy")
            actual = call("deform_conv2d", arrays, {}, backend=backend)
            assert np.isfinite(actual.input).all()
            assert 0 < np.isnan(actual.offset).sum() <= 2
            for a, e in zip(actual, expected, strict=True):
                testing.assert_exact(a, e)

    def test_pixels_that_are_not_finite(self, backend):
        for channels in (5, 33):
            arrays = deformable(np.random.default_rng(12), channels, 4, (24, 18), (2, 2), 1, 1)
            arrays["input"][0, 2, 11, 7], arrays["input"][1, 4, 3, 17] = np.inf, np.nan
            expected = call("deform_conv2d", arrays, {}, backend="numpy")
            for a, e in zip(call("deform_conv2d", arrays, {}, backend=backend), expected, strict=True):
                np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e))

    def test_rounding(self, backend):
        rng = np.random.default_rng(13)
        arrays = deformable(rng, 40, 130, (41, 37), (3, 3), 1, 1)
        # Away from whole coordinates, where rounding would change which derivative it is.
        arrays = {
            name: array + np.float32(1 / 8) if name == "offset" else normals(rng, array.shape, np.float32)
            for name, array in arrays.items()
        }
        exact = {name: array.astype(np.float64) for name, array in arrays.items()}
        expected = call("deform_conv2d", exact, {}, backend="numpy")
        actual = call("deform_conv2d", arrays, {}, backend=backend)
        for name, a, e in zip(actual._fields, actual, expected, strict=True):
            assert testing.max_error(a, e) <= 1e-6, name


# Large deformable layers of known networks: (channels, output channels, plane, offset groups).
LARGE = (
    (128, 128, (100, 167), 1),
    (512, 512, (25, 42), 1),
    (128, 128, (56, 56), 4),
    (64, 64, (180, 320), 8),
)
EDVR = LARGE[-1]


def lowered(lower, op, layer, monkeypatch):
    """Return the program of a layer with masks, and the builder that made it."""
    channels, outputs, size, groups = layer
    built = []
    finish = program.Builder.finish
    monkeypatch.setattr(program.Builder, "finish", lambda b, *told: built.append(b) or finish(b, *told))
    points = 9 * groups
    problem = fastconv.Problem.create(
        "deform_conv2d",
        (1, channels, *size),
        (outputs, channels, 3, 3),
        offset_shape=(1, 2 * points, *size),
        mask_shape=(1, points, *size),
        padding=1,
        dtype=np.float32,
    )
    made = lower(dataclasses.replace(problem, op=op), engines(config.best_isa(_native.isas())))
    return made, built[0]


class TestDeformablePrograms:
    THREADS = 64
    # Adding a sum to that of the bands before costs about as much as so many multiply-adds: it goes through memory.
    LEAVING = 4

    @pytest.mark.parametrize("layer", LARGE)
    def test_work_for_64_threads(self, layer, monkeypatch):
        """Bands of pixels keep more threads busy than there are blocks of 32 channels, turns that they take included."""
        channels, outputs, size, _ = layer
        _, b = lowered(lower_deform_grad, "deform_conv2d_grad", layer, monkeypatch)
        _, first, tasks, *_, in_turn = b.stages[-1]
        assert in_turn
        words = dict(zip(program.WORDS["deform_grad"], b.words[first:], strict=False))
        blocks, plane = words["block_count"], math.prod(size)
        assert tasks == blocks * words["bands"]
        free, left, work = [0] * self.THREADS, {}, 0
        for task in range(tasks):  # handed out one by one to whoever is free
            band, block = divmod(task, blocks)
            pixels = min(words["band"], plane - band * words["band"])
            assert pixels > 0
            weights = outputs * 9 * channels // blocks
            thread = free.index(min(free))
            done = max(free[thread] + 2 * pixels * weights, left.get(block, 0)) + self.LEAVING * weights
            free[thread] = left[block] = done
            work += (2 * pixels + self.LEAVING) * weights
        assert work / max(free) > max(2 * channels / 32, self.THREADS / 2)

    def test_scratch(self, monkeypatch):
        """A video network's layer: columns alone would take 132 MB."""
        forward, _ = lowered(lower_deform, "deform_conv2d", EDVR, monkeypatch)
        backward, _ = lowered(lower_deform_grad, "deform_conv2d_grad", EDVR, monkeypatch)
        for threads in (1, 2, 4):
            assert forward.scratch_bytes(threads) <= 32e6
            assert backward.scratch_bytes(threads) <= 96e6


class TestDeformablePoints:
    def test_a_nan_offset_touches_what_depends_on_it(self):
        x, w, gy = np.ones((1, 2, 4, 4)), np.ones((1, 2, 2, 2)), np.ones((1, 1, 3, 3))
        offset = np.full((1, 8, 3, 3), 0.25)
        offset[0, 1, 1, 1] = np.nan
        grads = grad.deform_conv2d(gy, x, offset, w, mask=np.ones((1, 4, 3, 3)))
        assert np.isfinite(grads.input).all()
        assert np.isnan(grads.mask).sum() == 1
        assert np.isnan(grads.offset).sum() == 2
        assert np.isnan(grads.weight[0, :, 0, 0]).all()
        assert np.isfinite(grads.weight[0, :, 1]).all()

    def test_an_infinite_offset_reads_and_gives_nothing(self):
        x, w, gy = np.ones((1, 1, 4)), np.ones((1, 1, 1)), np.ones((1, 1, 4))
        offset = np.array([[[0, np.inf, -np.inf, 0.0]]])
        grads = grad.deform_conv1d(gy, x, offset, w)
        assert grads.input.tolist() == [[[1, 0, 0, 1]]]
        assert grads.weight.tolist() == [[[2]]]
        assert grads.offset[0, 0, 1:3].tolist() == [0, 0]


class TestChoice:
    ARRAYS = (np.ones((1, 6, 6, 6)), np.ones((1, 4, 8, 8)), np.ones((6, 4, 3, 3)))

    def test_a_named_backend_runs_all_of_it(self, backend):
        told = fastconv.explain("grad.conv2d", *self.ARRAYS, backend=backend)
        assert told.backend == backend
        assert "gradient of the input" in str(told)
        assert "gradient of the weight" in str(told)

    def test_the_settings_count(self, backend):
        with fastconv.use_backend(backend):
            assert fastconv.explain("grad.conv2d", *self.ARRAYS).backend == backend

    def test_a_named_backend_refuses_what_it_has_no_kernel_for(self):
        oracle = fastconv.kernels("conv2d", backend="numpy")[0]

        class Forward:
            name = "forward"
            kernels = (fastconv.Kernel("conv_only", name, CONV, oracle.refuse, oracle.cost, oracle.build),)

        gy, x, w = self.ARRAYS
        fastconv.register_backend(Forward())
        try:
            with pytest.raises(
                fastconv.UnsupportedError, match=r"(?s)no kernel for deform_conv2d_grad.*numpy"
            ):
                grad.deform_conv2d(gy, x, np.zeros((1, 18, 6, 6)), w, backend="forward")
        finally:
            fastconv.unregister_backend("forward")

    def test_the_engines_are_chosen(self):
        assert "numpy" not in fastconv.explain("grad.conv2d", *self.ARRAYS).backend

    def test_a_plugin_may_have_gradients(self):
        oracle = fastconv.kernels("conv2d_weight_grad", backend="numpy")[0]

        class Echo:
            name = "echo"
            kernels = (
                fastconv.Kernel("grad_echo", name, WEIGHT_GRAD, oracle.refuse, oracle.cost, oracle.build),
            )

        fastconv.register_backend(Echo())
        try:
            grads = grad.conv2d(*self.ARRAYS, wrt="weight", backend="echo")
            report = testing.check_backend("echo", count=2)
        finally:
            fastconv.unregister_backend("echo")
        testing.assert_exact(grads.weight, np.full((6, 4, 3, 3), 36.0))
        assert report.passed == 12
        assert not report.failed

    def test_a_wrong_kernel_is_caught(self):
        oracle = fastconv.kernels("conv2d_weight_grad", backend="numpy")[0]

        def build(problem):
            right = oracle.build(problem)

            def run(output, *operands):
                right(output, *operands)
                output.flat[-1] += 1

            return run

        class Wrong:
            name = "wrong"
            kernels = (fastconv.Kernel("grad_wrong", name, WEIGHT_GRAD, oracle.refuse, oracle.cost, build),)

        fastconv.register_backend(Wrong())
        try:
            report = testing.check_backend("wrong", ["conv2d_weight_grad"], count=2)
        finally:
            fastconv.unregister_backend("wrong")
        assert len(report.failed) == 2


class TestBadInput:
    GY, X, W = TestChoice.ARRAYS

    @pytest.mark.parametrize(
        ("change", "error", "says"),
        [
            (
                {"grad_output": np.ones((1, 6, 6, 5))},
                fastconv.ShapeError,
                r"grad_output .*\(1, 6, 6, 6\), got \(1, 6, 6, 5\)",
            ),
            ({"grad_output": np.ones((6, 6, 6))}, fastconv.ShapeError, r"grad_output .*got \(6, 6, 6\)"),
            ({"grad_output": None}, TypeError, "grad_output must be an array"),
            ({"weight": np.ones((6, 3, 3, 3))}, fastconv.ShapeError, "weight has 3 input channels"),
            (
                {"wrt": "weights"},
                ValueError,
                "wrt must hold some of 'input', 'weight', 'bias', got 'weights'",
            ),
            ({"wrt": ("input", "mask")}, ValueError, "wrt must hold"),
            ({"wrt": 5}, TypeError, "wrt must be a name or several of 'input', 'weight', 'bias', got 5"),
            ({"stride": 0}, ValueError, "stride must be at least 1"),
            ({"input": np.ones((1, 4, 8, 8), complex)}, TypeError, "input must hold real numbers"),
        ],
    )
    def test_errors_name_the_argument(self, change, error, says):
        arguments = {"grad_output": self.GY, "input": self.X, "weight": self.W, **change}
        with pytest.raises(error, match=says):
            grad.conv2d(**arguments)


class TestPlan:
    @pytest.mark.parametrize("op", OPS)
    @fastconv.accuracy("high")
    def test_a_plan_equals_the_function(self, op, backend):
        for case in testing.cases(op, 8):
            arrays, options = linear_case(case)
            expected = call(op, arrays, options, backend=backend)
            extra = {"offset_groups": case.offset_groups, "mask": case.mask} if op in DEFORM_CONV else {}
            plan = fastconv.plan_grad(
                op, arrays["input"].shape, arrays["weight"], **options, **extra, backend=backend
            )
            given = {
                name: arrays[name] for name in ("grad_output", "input", "offset", "mask") if name in arrays
            }
            for actual, right in zip(plan(**given), expected, strict=True):
                assert (actual is None) == (right is None)
                if right is not None:
                    testing.assert_exact(actual, right, case)

    def test_out_is_filled(self, backend):
        gy, x, w = TestChoice.ARRAYS
        plan = fastconv.plan_grad("conv2d", x.shape, w, backend=backend)
        out = grad.ConvGrads(np.empty_like(x), np.empty(w.shape[::-1]).T, np.empty(6))
        grads = plan(gy, x, out=out)
        for filled, given, expected in zip(grads, out, grad.conv2d(gy, x, w), strict=True):
            assert filled is given
            np.testing.assert_array_equal(filled, expected)

    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_out_without_batch(self, backend, layout):
        gy, x, w = np.ones((6, 6, 6)), np.ones((4, 8, 8)), np.ones((6, 4, 3, 3))
        x = x if layout == "NCHW" else np.moveaxis(x, 0, -1)
        plan = fastconv.plan_grad("conv2d", x.shape, w, layout=layout, wrt="input", backend=backend)
        out = grad.ConvGrads(np.empty(x.shape), None, None)
        assert plan(gy, out=out).input is out.input
        np.testing.assert_array_equal(out.input, grad.conv2d(gy, x, w, layout=layout).input)

    def test_wrong_calls(self):
        gy, x, w = TestChoice.ARRAYS
        plan = fastconv.plan_grad("conv2d", x.shape, w)
        with pytest.raises(TypeError, match="needs input"):
            plan(gy)
        with pytest.raises(fastconv.ShapeError, match="grad_output must have the planned shape"):
            plan(gy[:, :5], x)
        with pytest.raises(TypeError, match="takes no mask"):
            plan(gy, x, mask=gy)
        with pytest.raises(fastconv.ShapeError, match=r"out\.weight must have shape"):
            plan(gy, x, out=grad.ConvGrads(None, np.ones(3), None))
        with pytest.raises(ValueError, match=r"out\.input .* overlaps"):
            plan(gy, x, out=grad.ConvGrads(x, None, None))
        with pytest.raises(TypeError, match="grad_output has masked values"):
            plan(np.ma.masked_equal(gy, 1), x)
        with pytest.raises(ValueError, match="belong to transposed"):
            fastconv.plan_grad("conv2d", x.shape, w, output_padding=1)
        with pytest.raises(TypeError, match="mask must be True or False"):
            fastconv.plan_grad("deform_conv2d", x.shape, w, mask=np.ones((1, 9, 6, 6)))

    def test_later_changes_of_the_weights_have_no_effect(self, backend):
        gy, x, w = (array.copy() for array in TestChoice.ARRAYS)
        plan = fastconv.plan_grad("conv2d", x.shape, w, wrt="input", backend=backend)
        w[...] = 0
        assert plan(gy).input.any()


def test_names_are_those_of_the_functions():
    assert set(functional.__all__) <= set(grad.__all__)


def test_a_transposed_convolution_of_output_padding_alone_has_no_gradient(backend):
    x, w = np.ones((2, 2, 7, 2), np.float32), np.ones((2, 2, 2, 3), np.float32)
    options = dict(
        stride=(1, 3),
        dilation=(2, 2),
        padding=((4, 0), (6, 2)),
        output_padding=(1, 2),
        layout="NHWC",
        backend=backend,
    )
    y = fastconv.conv_transpose2d(x, w, **options)
    assert y.shape[1] == 1
    assert not y.any()
    found = fastconv.grad.conv_transpose2d(np.ones_like(y), x, w, **options)
    assert np.array_equal(found.input, np.zeros_like(x))
    assert np.array_equal(found.weight, np.zeros_like(w))
    assert np.array_equal(found.bias, np.full(2, y[..., 0].size))

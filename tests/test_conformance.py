"""Every kernel of every backend equals the oracle on integer data, on each instruction set of this machine."""

import math

import numpy as np
import pytest

import fastconv
from fastconv import config, registry, testing
from fastconv.problem import FORWARD_OPS, SEPARABLE

COUNT = 40  # cases for each operation
OWN_COUNT = 10  # for the oracle against itself: forms of a call, not values
ANSWERS = {}  # of the oracle, for all backends and instruction sets


@pytest.mark.parametrize("op", FORWARD_OPS + SEPARABLE)
def test_kernels_equal_the_oracle(op, backend, isa):
    report = testing.Report(backend)
    entry = registry.find_backend(backend)
    with config.limit_isa(isa) if isa else config.threads(2):
        for case in testing.cases(op, OWN_COUNT if backend == registry.ORACLE else COUNT):
            testing.check_case(case, entry, report, known=ANSWERS)
    assert not report.failed, "\n".join(report.failed[:5])
    assert report.passed
    unused = {kernel.name for kernel in entry.ready().kernels if op in kernel.ops} - set(report.kernels)
    assert not unused, f"no case reached {unused}"


@pytest.mark.parametrize("op", FORWARD_OPS + SEPARABLE)
def test_a_named_backend_takes_every_case(op, backend):
    for case in testing.cases(op, COUNT):
        assert case.call(backend).kernel.backend == backend, str(case)


@pytest.mark.parametrize("op", FORWARD_OPS)
def test_every_layout_is_dilated(op):
    options = [case.options for case in testing.cases(op, COUNT)]
    assert len({(found["layout"], max(found["dilation"]) > 1) for found in options}) == 4


@pytest.mark.parametrize("activation", testing.SMOOTH_ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_smooth_activations(backend, activation, dtype, layout):
    values = np.concatenate(
        [np.linspace(-30, 30, 2399), np.linspace(-1e-3, 1e-3, 98), [-np.inf, np.inf, np.nan]]
    )
    x = values.astype(dtype).reshape((1, 1, 50, 50) if layout == "NCHW" else (1, 50, 50, 1))
    weight = np.ones((1, 1, 1, 1), dtype)
    options = {"activation": activation, "layout": layout}
    assert fastconv.explain("conv2d", x, weight, **options, backend=backend).backend == backend
    actual = fastconv.conv2d(x, weight, **options, backend=backend)
    expected = fastconv.conv2d(x.astype(np.float64), weight.astype(np.float64), **options, backend="numpy")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=64 * np.finfo(dtype).eps)


# (batch, channels, output channels, size, kernel, groups, offset groups): few pixels and many output channels, which
# tasks share, and weights that are packed as they are used; planes cut into two and four.
DEFORMABLE_PLANES = (
    (1, 70, 260, 5, 3, 1, 2),
    (1, 66, 300, 7, 2, 2, 1),
    (1, 24, 520, 3, 1, 1, 4),
    (2, 40, 256, 8, 3, 1, 1),
    (1, 33, 31, 6, 3, 1, 1),
    (1, 64, 64, 20, 3, 1, 1),
)


@pytest.mark.parametrize("plane", DEFORMABLE_PLANES)
def test_deformable_planes(plane, backend, isa):
    n, c, o, size, k, groups, offset_groups = plane
    rng, out, points = np.random.default_rng(0), size + k // 2 * 2 - k + 1, k * k * offset_groups
    x = rng.integers(-4, 5, (n, c, size, size)).astype(np.float32)
    w = rng.integers(-4, 5, (o, c // groups, k, k)).astype(np.float32)
    offset = (rng.integers(-12, 13, (n, 2 * points, out, out)) / 4).astype(np.float32)
    mask = rng.integers(0, 3, (n, points, out, out)).astype(np.float32)
    for layout in ("NCHW", "NHWC"):
        options = {"padding": k // 2, "layout": layout}
        expected = fastconv.deform_conv2d(x, offset, w, mask=mask, **options, backend="numpy")
        options |= {"backend": backend}
        with config.limit_isa(isa) if isa else config.threads(2):
            for threads in (1, 2, 3):
                y = fastconv.deform_conv2d(x, offset, w, mask=mask, **options, num_threads=threads)
                testing.assert_exact(y, expected)
            plan = fastconv.plan(
                "deform_conv2d", x.shape, w, **options, offset_groups=offset_groups, mask=True
            )
            testing.assert_exact(plan(x, offset, mask), expected)
        x, offset, mask = (np.moveaxis(array, 1, -1) for array in (x, offset, mask))


class TestTheComparer:
    def test_equal_arrays_pass(self):
        a = np.array([1.0, np.nan, np.inf], np.float32)
        testing.assert_exact(a, a.copy())
        testing.assert_close(a, a.copy(), 0.0)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.0 + 1e-6, -1.0])
    def test_one_wrong_value_fails(self, wrong):
        expected = np.ones((3, 4), np.float32)
        actual = expected.copy()
        actual[2, 1] = wrong
        with pytest.raises(AssertionError, match=r"first at \(2, 1\)"):
            testing.assert_exact(actual, expected)
        with pytest.raises(AssertionError, match=r"1 of 12"):
            testing.assert_close(actual, expected, 1e-7)

    def test_a_nan_that_should_be_a_number_fails_and_vice_versa(self):
        number, nan = np.array([1.0, 2.0]), np.array([1.0, np.nan])
        assert math.isinf(testing.max_error(nan, number))
        assert math.isinf(testing.max_error(number, nan))

    def test_shape_and_dtype_count(self):
        with pytest.raises(AssertionError, match="shape"):
            testing.assert_exact(np.ones(3), np.ones((1, 3)))
        with pytest.raises(AssertionError, match="dtype"):
            testing.assert_exact(np.ones(3), np.ones(3, np.float32))

    def test_a_nearly_constant_reference_is_not_trusted(self):
        case = next(testing.cases("conv2d", 1))
        with pytest.raises(AssertionError, match="tests nothing"):
            testing.trust(np.zeros(100), case)

    def test_a_wrong_kernel_is_caught(self):
        oracle = fastconv.kernels("conv2d", backend="numpy")[0]

        def build(problem):
            right = oracle.build(problem)

            def run(output, *operands):
                right(output, *operands)
                output.flat[-1] += 1

            return run

        class OffByOne:
            name = "off_by_one"
            kernels = (fastconv.Kernel("conv_wrong", name, ("conv2d",), oracle.refuse, oracle.cost, build),)

        fastconv.register_backend(OffByOne())
        try:
            report = testing.check_backend("off_by_one", ["conv2d"], count=2)
        finally:
            fastconv.unregister_backend("off_by_one")
        assert len(report.failed) == 4
        assert "1 of" in report.failed[0]

    def test_cases_differ_on_every_axis(self):
        for index, case in enumerate(testing.cases("conv3d", 20)):
            if index % 5 != 4:  # those are for algorithms that take cubes alone
                assert len(set(case.weight_shape[2:])) == 3, str(case)

    def test_a_case_prints_as_code_that_makes_it(self):
        from fastconv.testing import Case  # noqa: F401  (the text names fastconv.testing.Case)

        case = list(testing.cases("deform_conv2d", 3))[-1]
        assert eval(str(case)) == case  # the text is our own

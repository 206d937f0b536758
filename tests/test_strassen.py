"""Seven products of quarters give what eight give on convolutions, also where quarters are uneven or not finite."""

import numpy as np
import pytest
from helpers import integers

import fastconv

SHAPES = {
    "one pixel": dict(c=32, o=32, size=(1, 1)),
    "odd pixels, several blocks of k": dict(c=544, o=64, size=(5, 3)),
    "a channel short, small images": dict(c=64, o=255, size=(7, 7), batch=5),
    "several tasks": dict(c=32, o=96, size=(19, 23)),
    "padded and strided": dict(c=96, o=64, size=(9, 14), padding=1, stride=2),
    "many taps, dilated": dict(c=288, o=64, size=(13, 11), kernel=3, padding=4, dilation=4),
    "taps of each phase": dict(op="conv_transpose2d", c=32, o=32, size=(7, 5), kernel=4, stride=2, padding=1),
    "transposed": dict(op="conv_transpose2d", c=64, o=32, size=(6, 11), kernel=2, stride=2),
}


class TestSevenProducts:
    def run(self, backend, op, x, w, layout, threads, **options):
        """Return what the kernel makes of it, if this backend has it."""
        problem = fastconv.Problem.create(
            op, x.shape, w.shape, dtype=x.dtype, layout=layout, groups=1, **options
        )
        found = [k for k in fastconv.kernels(op, backend=backend) if k.name.endswith("_strassen")]
        if not found:
            assert backend not in ("cython", "numba")
            pytest.skip(f"{backend} multiplies quarters eight times")
        assert found[0].refuse(problem) is None
        y = np.empty(problem.output_shape, x.dtype)
        found[0].build(problem)(y, x, w, None, None, None, threads)
        return y

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    @pytest.mark.parametrize("spoiled", [None, np.nan, np.inf])
    def test_equals_the_oracle(self, backend, isa, shape, layout, spoiled):
        options = dict(shape)
        op, batch, kernel = options.pop("op", "conv2d"), options.pop("batch", 1), options.pop("kernel", 1)
        c, o, size = options.pop("c"), options.pop("o"), options.pop("size")
        rng = np.random.default_rng(0)
        for dtype in (np.float32, np.float64):
            x = integers(rng, (batch, c, *size), dtype)
            if spoiled is not None:
                x[-1, c // 2, -1, size[1] // 2] = spoiled
            x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
            transposed = op == "conv_transpose2d"
            w = integers(rng, (c, o, kernel, kernel) if transposed else (o, c, kernel, kernel), dtype)
            expected = getattr(fastconv, op)(x, w, layout=layout, backend="numpy", **options)
            for threads in (1, 2):
                np.testing.assert_array_equal(
                    self.run(backend, op, x, w, layout, threads, **options), expected
                )

    def test_refused_where_sums_are_asked_for_as_they_are_written(self, backend):
        problem = fastconv.Problem.create("conv2d", (1, 64, 9, 9), (64, 64, 1, 1), accuracy="high", groups=1)
        for kernel in fastconv.kernels("conv2d", backend=backend):
            if kernel.name.endswith("_strassen"):
                assert kernel.refuse(problem)

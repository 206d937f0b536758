"""Helpers for deformable convolutions: orders of offsets, tested on those who use them; points; what is wrong with them."""

import numpy as np
import pytest
from helpers import integers, normals

import fastconv
from fastconv import ShapeError, deform
from fastconv.backends.numpy.deform_conv import interpolate
from fastconv.testing import assert_close, assert_exact

TOLERANCE = 1e-5  # others compute in float32

# Every size another: images, channels, outputs, offset groups, pixels, taps, strides, padding, dilation.
N, C, OC, DG, SIZE, KERNEL = 2, 6, 4, 3, (9, 11), (2, 3)
STRIDE, PADDING, DILATION = (2, 1), (1, 2), (1, 2)
OUT = tuple(
    (i + 2 * p - d * (k - 1) - 1) // s + 1
    for i, k, s, p, d in zip(SIZE, KERNEL, STRIDE, PADDING, DILATION, strict=True)
)
OPTIONS = {"stride": STRIDE, "padding": PADDING, "dilation": DILATION}


def example():
    """Return input, offsets with an axis for each property, mask likewise, and weight."""
    rng = np.random.default_rng(0)
    x, w = normals(rng, (N, C, *SIZE), np.float32), normals(rng, (OC, C, *KERNEL), np.float32)
    return (
        x,
        normals(rng, (N, DG, *KERNEL, 2, *OUT), np.float32),
        rng.random((N, DG, *KERNEL, *OUT), np.float32),
        w,
    )


def by_definition(x, offsets, mask, w):
    """Return the sum over taps, each at its own place in arrays that have an axis for everything."""
    y = np.zeros((N, OC, *OUT))
    rows, columns = np.meshgrid(*map(np.arange, OUT), indexing="ij")
    for n, g, i, j in np.ndindex(N, DG, *KERNEL):
        down = rows * STRIDE[0] - PADDING[0] + i * DILATION[0] + offsets[n, g, i, j, 0]
        along = columns * STRIDE[1] - PADDING[1] + j * DILATION[1] + offsets[n, g, i, j, 1]
        mine = slice(g * C // DG, (g + 1) * C // DG)
        sample = interpolate(x[n, mine].astype(float), np.stack([down, along]).astype(float))
        y[n] += np.einsum("oc,chw->ohw", w[:, mine, i, j], sample * mask[n, g, i, j])
    return y


class TestPacking:
    def test_the_order_is_that_of_the_function(self, backend):
        x, offsets, mask, w = example()
        packed = deform.pack_offsets(offsets)
        y = fastconv.deform_conv2d(x, packed, w, mask=mask.reshape(N, -1, *OUT), **OPTIONS, backend=backend)
        assert_close(y, by_definition(x, offsets, mask, w), TOLERANCE)

    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    @pytest.mark.parametrize("batch", [(), (2,)])
    @pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 3)])
    def test_unpacking_undoes_it(self, kernel, batch, layout):
        out = (4, 5, 6)[: len(kernel)]
        offsets = integers(np.random.default_rng(0), (*batch, 2, *kernel, len(kernel), *out))
        packed = deform.pack_offsets(offsets, layout=layout)
        channels = 2 * len(kernel) * int(np.prod(kernel))
        assert packed.shape == (*batch, channels, *out) if layout == "NCHW" else (*batch, *out, channels)
        assert_exact(deform.unpack_offsets(packed, kernel, layout=layout), offsets)

    def test_errors(self):
        with pytest.raises(ShapeError, match=r"offsets must have shape .* got \(1, 1, 3, 3, 3, 5, 5\)"):
            deform.pack_offsets(np.zeros((1, 1, 3, 3, 3, 5, 5)))
        with pytest.raises(ShapeError, match="multiple of 18 channels, got 17"):
            deform.unpack_offsets(np.zeros((1, 17, 5, 5)), (3, 3))
        with pytest.raises(ShapeError, match=r"offset must have shape \(N, channels, OH, OW\)"):
            deform.unpack_offsets(np.zeros((18, 5)), (3, 3))
        with pytest.raises(TypeError, match="kernel_size must be a sequence"):
            deform.unpack_offsets(np.zeros((1, 18, 5, 5)), 3)


class TestConventions:
    """What a library makes of offsets in its own order is what is made here of ours."""

    def ours(self):
        x, offsets, mask, w = example()
        return deform.pack_offsets(offsets), by_definition(x, offsets, mask, w)

    def given(self, convention):
        x, offsets, mask, w = example()
        offset, mask = deform.pack_offsets(offsets), mask.reshape(N, -1, *OUT)
        converted = deform.convert_offsets(offset, KERNEL, target=convention)
        assert_exact(deform.convert_offsets(converted, KERNEL, source=convention), offset)
        return x, converted, deform.convert_mask(mask, KERNEL, target=convention), w

    def test_torchvision(self):
        torch = pytest.importorskip("torch")
        ops = pytest.importorskip("torchvision.ops")
        x, offset, mask, w = map(torch.from_numpy, self.given("torchvision"))
        y = ops.deform_conv2d(x, offset, w, mask=mask, **OPTIONS)
        assert_close(y.numpy(), self.ours()[1], TOLERANCE)

    def test_onnx(self):
        onnx = pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
        x, offset, mask, w = self.given("onnx")
        node = onnx.helper.make_node(
            "DeformConv", ["x", "w", "offset", "", "mask"], ["y"],
            strides=STRIDE, pads=PADDING * 2, dilations=DILATION, kernel_shape=KERNEL, offset_group=DG,
        )  # fmt: skip
        fed = {"x": x, "w": w, "offset": offset, "mask": mask}
        info = [onnx.helper.make_tensor_value_info(name, 1, array.shape) for name, array in fed.items()]
        graph = onnx.helper.make_graph([node], "g", info, [onnx.helper.make_tensor_value_info("y", 1, None)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
        try:
            session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except runtime.capi.onnxruntime_pybind11_state.NotImplemented:
            pytest.skip("this onnxruntime has no DeformConv")
        assert_close(session.run(None, fed)[0], self.ours()[1], TOLERANCE)

    def test_openvino(self):
        ov = pytest.importorskip("openvino")
        from openvino import opset13 as op

        x, offset, mask, w = self.given("openvino")
        given = [op.parameter(array.shape, np.float32) for array in (x, offset, mask)]
        node = op.deformable_convolution(
            given[0], given[1], op.constant(w), list(STRIDE), list(PADDING), list(PADDING), list(DILATION), given[2],
            "EXPLICIT", 1, DG, True,
        )  # fmt: skip
        compiled = ov.compile_model(ov.Model([node], given), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        y = compiled([x, offset, mask])[0]
        assert_close(y, self.ours()[1], TOLERANCE)

    def test_mmcv(self):
        ops = pytest.importorskip("mmcv.ops")
        torch = pytest.importorskip("torch")
        x, offset, mask, w = map(torch.from_numpy, self.given("mmcv"))
        y = ops.modulated_deform_conv2d(x, offset, mask, w, None, STRIDE, PADDING, DILATION, 1, DG)
        assert_close(y.numpy(), self.ours()[1], TOLERANCE)

    def test_mmcv_splits_by_thirds(self):
        """As its ModulatedDeformConv2dPack does: two thirds are the offset, whatever they are called there."""
        rng = np.random.default_rng(0)
        packed = normals(rng, (2, 27, 4, 5))
        first, second, logits = np.split(packed, 3, axis=1)
        offset, mask = deform.from_mmcv(packed)
        assert_exact(offset, np.concatenate([first, second], 1))
        assert_close(mask, 1 / (1 + np.exp(-logits)), 1e-15)
        with pytest.raises(ShapeError, match="multiple of 3 channels, got 26"):
            deform.from_mmcv(packed[:, :26])

    @pytest.mark.parametrize("removed", [False, True])
    @pytest.mark.parametrize("kernel", [(3, 5), (2, 4)])
    def test_dcnv3_and_dcnv4_go_by_columns_and_w_before_h(self, kernel, removed):
        if removed and kernel[0] % 2 == 0:
            pytest.skip("an even kernel has no centre")
        kh, kw = kernel
        taps = [(i, j) for i in range(kh) for j in range(kw) if not removed or (i, j) != (kh // 2, kw // 2)]
        theirs = sorted(taps, key=lambda tap: (tap[1], tap[0]))
        rng = np.random.default_rng(0)
        offset, mask = normals(rng, (2, 3, 4, 5 * 2 * len(taps))), normals(rng, (2, 3, 4, 5 * len(taps)))
        by_tap = offset.reshape(2, 3, 4, 5, len(taps), 2)
        moved, weighed = deform.to_dcnv3(offset, mask, kernel, remove_center=removed)
        packed = deform.to_dcnv4(offset, mask, kernel, remove_center=removed)
        assert packed.shape[-1] % 8 == 0
        for place, tap in enumerate(theirs):
            ours = taps.index(tap)
            found = moved.reshape(2, 3, 4, 5, len(taps), 2)[..., place, :]
            np.testing.assert_array_equal(found, by_tap[..., ours, ::-1])
            np.testing.assert_array_equal(
                weighed.reshape(2, 3, 4, 5, -1)[..., place], mask.reshape(2, 3, 4, 5, -1)[..., ours]
            )
        for group in range(5):
            start = group * 3 * len(taps)
            each = packed[..., start : start + 3 * len(taps)]
            np.testing.assert_array_equal(
                each[..., : 2 * len(taps)], moved.reshape(2, 3, 4, 5, -1)[..., group, :]
            )
            np.testing.assert_array_equal(
                each[..., 2 * len(taps) :], weighed.reshape(2, 3, 4, 5, -1)[..., group, :]
            )
        for back in (
            deform.from_dcnv3(moved, weighed, kernel, remove_center=removed),
            deform.from_dcnv4(packed, 5, kernel, remove_center=removed),
        ):
            assert_exact(back[0], offset)
            assert_exact(back[1], mask)

    def test_errors(self):
        with pytest.raises(ValueError, match="target must be one of 'fastconv', 'torchvision'"):
            deform.convert_offsets(np.zeros((18, 5, 5)), (3, 3), target="caffe")
        with pytest.raises(ShapeError, match="mask must have a multiple of 9 channels, got 8"):
            deform.convert_mask(np.zeros((8, 5, 5)), (3, 3))
        with pytest.raises(ValueError, match="remove_center needs a kernel with a centre"):
            deform.from_dcnv3(np.zeros((5, 5, 6)), np.zeros((5, 5, 3)), (2, 2), remove_center=True)
        with pytest.raises(ShapeError, match=r"offset_mask must have shape .* 2 \* 3 \* 9 or more"):
            deform.from_dcnv4(np.zeros((5, 5, 53)), 2)
        with pytest.raises(ShapeError, match="twice the channels of the mask"):
            deform.to_dcnv4(np.zeros((5, 5, 36)), np.zeros((5, 5, 9)))


class TestSamplingPoints:
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    @pytest.mark.parametrize("ndim", [1, 2, 3])
    def test_the_input_at_the_points_is_what_is_summed(self, ndim, layout):
        """A ramp along each axis reads its own coordinate."""
        size, kernel = (40, 50, 60)[:ndim], (2, 3, 1)[:ndim]
        stride, dilation, padding = (2, 1, 3)[:ndim], (1, 2, 1)[:ndim], (0, 1, 0)[:ndim]
        options = {"stride": stride, "dilation": dilation, "padding": padding, "layout": layout}
        out = tuple(
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
        )
        rng = np.random.default_rng(0)
        offset = rng.random((2, 2 * ndim * int(np.prod(kernel)), *out)) * 5 + 3
        offset = offset if layout == "NCHW" else np.moveaxis(offset, 1, -1)
        points = deform.sampling_points(offset, kernel, **options)
        assert points.shape == (2, 2, *kernel, ndim, *out)
        inside = (points < np.reshape(size, (-1, *(1,) * ndim)) - 1).all(axis=2 + ndim)
        ramp = np.stack([np.indices(size)[axis] for axis in range(ndim)] * 2)[None].repeat(2, 0).astype(float)
        ramp = ramp if layout == "NCHW" else np.moveaxis(ramp, 1, -1)
        for tap in np.ndindex(*kernel):
            w = np.zeros((2 * ndim, 1, *kernel))
            w[(slice(None), 0, *tap)] = 1
            y = getattr(fastconv, f"deform_conv{ndim}d")(ramp, offset, w, **options)
            y = y if layout == "NCHW" else np.moveaxis(y, -1, 1)
            mine = points[(slice(None), slice(None), *tap)].reshape(y.shape)
            here = np.repeat(inside[(slice(None), slice(None), *tap)], ndim, axis=1)
            assert here.mean() > 0.3
            np.testing.assert_allclose(y[here], mine[here], rtol=1e-12)

    def test_a_scaled_grid_without_its_centre(self):
        offset = np.zeros((2 * 8, 2, 1))
        offset[0] = 1.0
        points = deform.sampling_points(
            offset, (3, 3), stride=2, padding=1, dilation=3, offset_scale=0.5, remove_center=True
        )
        assert points.shape == (1, 8, 2, 2, 1)
        # The middle lies at 2 and 4 along H, at 2 along W; taps 1.5 pixels around it, the first half a pixel lower.
        assert points[0, :, 0, 0, 0].tolist() == [1.0, 0.5, 0.5, 2, 2, 3.5, 3.5, 3.5]
        assert points[0, :, 1, 0, 0].tolist() == [0.5, 2, 3.5, 0.5, 3.5, 0.5, 2, 3.5]
        assert points[0, 3, 0, :, 0].tolist() == [2, 4]

    def test_the_type_stays(self):
        assert deform.sampling_points(np.zeros((2, 3, 3), np.float32), (1, 1)).dtype == np.float32
        assert deform.sampling_points(np.zeros((2, 3, 3), int), (1, 1)).dtype == np.float64


class TestValidity:
    def test_every_kind(self):
        offset = np.zeros((2, 1, 8))
        # Along W the points are 0..7; along H they lie at 0.
        offset[1, 0] = [0, 0.5, -2.5, 9, np.nan, np.inf, -np.inf, 0.5]
        offset[0, 0, 7] = np.nan
        found = deform.validity(offset, (1, 1), (1, 8))
        assert found == deform.Validity(8, 2 / 8, 1 / 8, 3 / 8, 2 / 8, 2 / 8)
        assert str(found).startswith("8 points: inside 25.00%")

    def test_edges_count_as_what_they_read(self):
        offset = np.array([[-1.0, -1.5, 0.5, 0.75, 1.0]]) - np.arange(
            5
        )  # of points at 0..4 in an input of 2 pixels
        found = deform.validity(offset, (1,), (2,))
        assert (found.inside, found.edge, found.outside) == (3 / 5, 0, 2 / 5)
        assert deform.validity(np.array([[-0.5, 0.25]]), (1,), (2,)).edge == 1.0
        assert deform.validity(np.array([[np.nan, np.inf]]), (1,), (2,)).outside == 0.5

    def test_an_input_size_for_each_axis(self):
        with pytest.raises(ValueError, match=r"input_size must be 2 integers, got \(9,\)"):
            deform.validity(np.zeros((2, 3, 3)), (1, 1), (9,))

    def test_no_points(self):
        assert deform.validity(np.zeros((0, 2, 3, 3)), (1, 1), (3, 3)).points == 0


class TestSevenProducts:
    """Seven products of quarters give what eight give, also where quarters are uneven or not finite."""

    def run(self, backend, arrays, padding, groups=1, threads=1):
        """Return what the kernel makes of (input, weight, offset, mask), if this backend has it."""
        x, w, offset, mask = arrays
        problem = fastconv.Problem.create(
            "deform_conv2d", x.shape, w.shape, dtype=x.dtype, padding=padding,
            offset_shape=offset.shape, mask_shape=mask.shape,
        )  # fmt: skip
        (kernel,) = [
            k for k in fastconv.kernels("deform_conv2d", backend=backend) if "strassen" in k.name
        ] or [None]
        if kernel is None:
            assert backend not in ("cython", "numba")
            pytest.skip(f"{backend} multiplies quarters eight times")
        assert kernel.refuse(problem) is None
        y = np.empty(problem.output_shape, x.dtype)
        kernel.build(problem)(y, x, w, None, offset, mask, threads)
        return y

    def arrays(self, c, o, size, kernel, groups=1, offset_groups=1, batch=1, dtype=np.float32):
        rng, taps = np.random.default_rng(0), kernel**2 * offset_groups
        return [
            integers(rng, (batch, c, *size), dtype),
            integers(rng, (o, c // groups, kernel, kernel), dtype),
            (rng.integers(-12, 13, (batch, 2 * taps, *size)) / 4).astype(dtype),
            integers(rng, (batch, taps, *size), dtype),
        ]

    def oracle(self, arrays, padding):
        x, w, offset, mask = arrays
        return fastconv.deform_conv2d(x, offset, w, padding=padding, mask=mask, backend="numpy")

    @pytest.mark.parametrize(
        "shape",
        [
            dict(c=4, o=32, size=(1, 1), kernel=1),
            dict(c=34, o=96, size=(3, 5), kernel=3),
            dict(c=40, o=64, size=(17, 13), kernel=3, groups=2, offset_groups=4, batch=2),
            dict(c=66, o=160, size=(9, 23), kernel=5, dtype=np.float64),
        ],
    )
    def test_exact_on_quarters_of_pixels(self, shape, backend):
        arrays, padding = self.arrays(**shape), shape["kernel"] // 2
        expected = self.oracle(arrays, padding)
        for threads in (1, 2, 3):
            assert_exact(self.run(backend, arrays, padding, threads=threads), expected)

    @pytest.mark.parametrize("spoiled", range(4))
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
    def test_what_is_not_finite_stays_where_it_belongs(self, spoiled, value, backend):
        arrays = self.arrays(c=32, o=64, size=(12, 13), kernel=3)
        arrays[spoiled].flat[arrays[spoiled].size // 3] = value
        expected = self.oracle(arrays, 1)
        if value != 1e30:
            assert spoiled == 2 or 0 < np.isfinite(expected).mean() < 1
        actual = self.run(backend, arrays, 1)
        if value == 1e30 and spoiled != 2:  # it is the largest result that sums round against
            assert_close(actual, expected, TOLERANCE)
        else:
            assert_exact(actual, expected)

    def test_rounding(self, backend):
        rng = np.random.default_rng(1)
        arrays = self.arrays(c=128, o=128, size=(28, 28), kernel=3)
        arrays[:2] = (normals(rng, array.shape, np.float32) for array in arrays[:2])
        exact = self.oracle([array.astype(np.float64) for array in arrays], 1)
        assert_close(self.run(backend, arrays, 1), exact, 1e-6)

    def test_high_accuracy_goes_without(self):
        told = fastconv.explain(
            "deform_conv2d", (1, 128, 28, 28), (1, 18, 28, 28), (128, 128, 3, 3), padding=1, accuracy="high",
            backend="cython",
        )  # fmt: skip
        assert told.kernel.endswith("deform_conv_tile")

"""What the cuda backend does in numba's simulator, which must be asked for before numba is imported.

``tests/test_cuda.py`` runs these functions in processes of their own:
``NUMBA_ENABLE_CUDASIM=1 python tests/simulated_cuda.py forward``.
"""

import re
import sys
import warnings
from itertools import islice
from unittest import mock

import cuda_simulator
import numpy as np
import pytest
from numba import cuda, njit
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

import fastconv
from fastconv import registry, testing
from fastconv.backends.cuda import compiled, launch, launch_grad, tiles
from fastconv.backends.cuda import dense as dense_engine
from fastconv.problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, DEFORM_GRAD, WEIGHT_GRAD

# A simulated thread takes some microseconds for each multiply-add, and more for each position.
FLOPS_MOST = 2000
COUNT = 16
DRAWN = 2000


def small_cases(op, count):
    """Return the first cases of the conformance kit that have few operations, but tell a right kernel from a wrong one."""
    return islice(filter(small_and_telling, testing.cases(op, DRAWN)), count)


def small_and_telling(case):
    if isinstance(case, testing.GradCase):
        return small_and_telling(case.case)
    if case._geometry().flops > FLOPS_MOST:
        return False
    return len(np.unique(case.run("numpy"))) > 3


def check_kernels(ops, count=COUNT):
    """Hold every kernel to the oracle, to the bit."""
    entry = registry.find_backend("cuda")
    for op in ops:
        report = testing.Report("cuda")
        for case in small_cases(op, count):
            testing.check_case(case, entry, report)
        assert not report.failed, "\n".join(report.failed[:3])
        unused = {kernel.name for kernel in fastconv.kernels(op, backend="cuda")} - set(report.kernels)
        assert not unused, f"no case of {op} reached {unused}"


def conv():
    check_kernels(CONV)


def conv_transpose():
    check_kernels(CONV_TRANSPOSE)


def deform_conv():
    check_kernels(DEFORM_CONV, 12)


def gradients():
    check_kernels(WEIGHT_GRAD, 12)
    check_kernels(DEFORM_GRAD, 6)


def full_tiles():
    """The tiles of real devices, with all of their threads, over borders of the tile in every direction."""
    rng = np.random.default_rng(0)
    for layout in ("NCHW", "NHWC"):
        x = integers(rng, (1, 3, 11, 13) if layout == "NCHW" else (1, 11, 13, 3))
        weight = integers(rng, (17, 3, 2, 3))
        options = {"padding": (1, 0), "stride": (1, 2), "layout": layout}
        expected = fastconv.conv2d(x, weight, **options, backend="numpy")
        problem = fastconv.Problem.create("conv2d", x.shape, weight.shape, **options)
        for tile in tiles.DENSE[np.dtype(np.float32)]:
            kernel = dense_engine.dense(problem.dtype, tile, 1, layout == "NHWC", None)
            run = launch.Forward(problem, kernel, tile, -(-17 // tile.channels), 0, launch.build_dense)
            actual = np.full_like(expected, np.nan)
            run(actual, x, weight, None, None, None, 1)
            testing.assert_exact(actual, expected, tile)


def full_gradient_tiles():
    """The same of gradients: channels and pixels that fill no tile, and the tile of cubes in doubles."""
    launch_grad.sample_grad_tile = lambda problem, simulated: tiles.sample_grad_tile(problem, False)
    launch_grad.weight_grad_tile = lambda simulated: tiles.weight_grad_tile(False)
    rng = np.random.default_rng(4)
    for layout, dtype, size in (("NHWC", np.float32, (10, 9)), ("NCHW", np.float64, (3, 4, 4))):
        ndim, channels, outs = len(size), 18, 9
        shapes = [(1, channels, *size), (1, 2 * ndim * 2, *size), (outs, channels, *(1,) * (ndim - 1), 2)]
        moved = (0, *range(2, ndim + 2), 1) if layout == "NHWC" else tuple(range(ndim + 2))
        x, offset, gy = (
            np.ascontiguousarray(rng.integers(-4, 5, shape).transpose(moved), dtype)
            for shape in (shapes[0], shapes[1], (1, outs, *size))
        )
        weight = rng.integers(-4, 5, shapes[2]).astype(dtype)
        options = {"padding": (*((0, 0),) * (ndim - 1), (0, 1)), "layout": layout}
        gradient = getattr(fastconv.grad, f"deform_conv{ndim}d")
        wanted = gradient(gy, x, offset / 2, weight, **options, backend="numpy")
        found = gradient(gy, x, offset / 2, weight, **options, backend="cuda")
        for name in ("input", "offset", "weight"):
            testing.assert_exact(getattr(found, name), getattr(wanted, name), (name, dtype))


def activations():
    """Smooth ones as close as their formulas, a function of the user's like the same formula."""
    values = np.concatenate([np.linspace(-12, 12, 24), [-np.inf, np.inf, np.nan, 0]])
    for dtype in ("float32", "float64"):
        x, weight = values.astype(dtype).reshape(1, 1, -1), np.ones((1, 1, 1), dtype)
        for activation in testing.SMOOTH_ACTIVATIONS:
            actual = fastconv.conv1d(x, weight, activation=activation, backend="cuda")
            expected = fastconv.conv1d(x, weight, activation=activation, backend="numpy")
            np.testing.assert_allclose(actual, expected, rtol=0, atol=64 * np.finfo(dtype).eps)
        for function in (lambda v: v if v > 0 else v / 2, njit(lambda v: v * v), abs, np.tanh):
            mine = fastconv.conv1d(x, weight, activation=function, backend="cuda")
            expected = fastconv.conv1d(
                x, weight, activation=getattr(function, "py_func", function), backend="numpy"
            )
            np.testing.assert_allclose(mine, expected, rtol=0, atol=4 * np.finfo(dtype).eps)


def special_offsets():
    """NaN moves one pixel to NaN, infinity to zero, -1 exactly to zero with a slope, as the oracle says."""
    rng = np.random.default_rng(1)
    x, weight, gy = (integers(rng, shape) for shape in ((1, 2, 4, 5), (3, 2, 2, 2), (1, 3, 3, 4)))
    offset = (rng.integers(-8, 9, (1, 8, 3, 4)) / 4).astype(np.float32)
    mask = rng.integers(0, 3, (1, 4, 3, 4)).astype(np.float32)
    offset[0, 0, 0, 0], offset[0, 3, 1, 1], offset[0, 2, 2, 2] = np.nan, np.inf, -np.inf
    offset[0, 0, 0, 1], mask[0, 1, 2, 3] = -1, np.inf
    expected = fastconv.deform_conv2d(x, offset, weight, mask=mask, backend="numpy")
    actual = fastconv.deform_conv2d(x, offset, weight, mask=mask, backend="cuda")
    testing.assert_exact(actual, expected)
    mask[0, 1, 2, 3] = 1
    wanted = fastconv.grad.deform_conv2d(gy, x, offset, weight, mask=mask, backend="numpy")
    found = fastconv.grad.deform_conv2d(gy, x, offset, weight, mask=mask, backend="cuda")
    for name in wanted._fields:
        testing.assert_exact(getattr(found, name), getattr(wanted, name), name)


def forms():
    """Batches of none, images without a batch, gradients of a convolution, a warning for small problems, once."""
    rng = np.random.default_rng(2)
    x, weight, gy = (integers(rng, shape) for shape in ((2, 5, 4), (3, 2, 2, 1), (3, 4, 4)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = fastconv.conv2d(x, weight, backend="cuda")
        fastconv.conv2d(x, weight, stride=2, backend="cuda")
    assert [str(w.message)[:25] for w in caught] == ["backend 'cuda' copies NumP"[:25]]
    testing.assert_exact(y, fastconv.conv2d(x, weight, backend="numpy"))
    assert fastconv.conv2d(np.zeros((0, 2, 5, 4)), weight, backend="cuda").shape == (0, 3, 4, 4)
    wanted = fastconv.grad.conv2d(gy, x, weight, backend="numpy")
    found = fastconv.grad.conv2d(gy, x, weight, backend="cuda")
    for name in wanted._fields:
        testing.assert_exact(getattr(found, name), getattr(wanted, name), name)
    told = str(fastconv.explain("conv2d", x, weight, backend="cuda"))
    assert "blocks of 4 threads" in told
    assert "B shared memory each" in told
    registers = next(line for line in told.splitlines() if line.startswith("registers:"))
    if compiled.find_ptxas():
        # Of the kernel of a device, which is not the one of the simulator.
        assert (
            re.fullmatch(
                r"registers: +on a device, by its compiler: sm_75 \d+ a thread, \d+ blocks on a multiprocessor, occupancy \d+%, "
                r"sm_80 .*, sm_90 .*",
                registers,
            )
            or "NVVM" in registers
        ), registers
    else:
        assert "the simulator compiles nothing: ptxas is neither" in registers
    assert fastconv.explain("conv2d", x, weight).backend != "cuda"


def device_arrays():
    """Arrays of the device stay there; those that do not go together are refused before any work."""
    rng = np.random.default_rng(3)
    arrays = [integers(rng, shape) for shape in ((1, 4, 3, 2), (3, 2, 2, 2), (3,))]
    x, weight, bias = map(cuda.to_device, arrays)
    options = {"layout": "NHWC", "padding": 1, "activation": "relu"}
    expected = fastconv.conv2d(*arrays, **options, backend="numpy")
    y = fastconv.conv2d(x, weight, bias, **options)
    testing.assert_exact(y.copy_to_host(), expected)
    plan = fastconv.plan("conv2d", arrays[0].shape, *arrays[1:], **options, backend="cuda")
    out = cuda.device_array(expected.shape, np.float32)
    assert plan(x, out=out) is out
    testing.assert_exact(out.copy_to_host(), expected)
    testing.assert_exact(plan(arrays[0]), expected)

    offset = (rng.integers(-4, 5, (1, 3, 3, 4)) / 2).astype(np.float32)
    operands, mask = (arrays[0], offset, integers(rng, (3, 2, 2, 1))), integers(rng, (1, 3, 3, 2))
    wanted = fastconv.deform_conv2d(*operands, mask=mask, layout="NHWC", backend="numpy")
    there = [cuda.to_device(np.ascontiguousarray(array)) for array in (*operands, mask)]
    found = fastconv.deform_conv2d(*there[:3], mask=there[3], layout="NHWC")
    testing.assert_exact(found.copy_to_host(), wanted)

    y = fastconv.conv2d(x, weight, layout="NHWC", backend=["numpy", "cuda"])
    assert isinstance(y, type(x))
    with mock.patch.object(launch, "without_a_device", return_value="told elsewhere"):
        told = fastconv.explain("conv2d", x, weight, bias, **options)
    assert (told.backend, told.source) == ("cuda", "arrays on a CUDA device")

    double = cuda.to_device(arrays[1].astype(np.float64))
    elsewhere, later = cuda.to_device(arrays[1]), cuda.to_device(arrays[0])
    for array in (elsewhere, later):
        array.__dlpack_device__ = lambda: (2, 1)
    shifted = np.zeros(arrays[0].nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    crooked, frozen = FakeCUDAArray(shifted), cuda.device_array(expected.shape, np.float32)
    frozen.__cuda_array_interface__ = {"data": (0, True)}
    across = cuda.to_device(arrays[0]).transpose((0, 2, 1, 3))
    for error, said, call in (
        (TypeError, "weight is in host memory, but input is on", lambda: fastconv.conv2d(x, arrays[1])),
        (TypeError, "all be float32 or all float64", lambda: fastconv.conv2d(x, double, layout="NHWC")),
        (ValueError, "input must be C-contiguous", lambda: fastconv.conv2d(across, weight, layout="NHWC")),
        (ValueError, "input must be aligned", lambda: fastconv.conv2d(crooked, weight, layout="NHWC")),
        (
            ValueError,
            "all arrays must be on one CUDA device, got {'input': 0, 'weight': 1}",
            lambda: fastconv.conv2d(x, elsewhere, layout="NHWC"),
        ),
        (
            ValueError,
            "{'input': 0, 'weight': 0, 'out': 1}",
            lambda: fastconv.conv2d(x, weight, layout="NHWC", out=later),
        ),
        (ValueError, "on CUDA device 1, but the plan keeps its weight on device 0", lambda: plan(later)),
        (ValueError, "is read-only", lambda: fastconv.conv2d(x, weight, bias, **options, out=frozen)),
        (
            fastconv.BackendError,
            "only backend 'cuda' runs, but backend= asks for 'numpy'",
            lambda: fastconv.conv2d(x, weight, layout="NHWC", backend="numpy"),
        ),
        (
            fastconv.ShapeError,
            "out must have shape",
            lambda: fastconv.conv2d(x, weight, layout="NHWC", out=cuda.device_array((1, 1), np.float32)),
        ),
        (TypeError, "out must be on the", lambda: fastconv.conv2d(x, weight, layout="NHWC", out=expected)),
        (ValueError, "out (shape (1, 1, 2, 2)) overlaps", written_to_its_input),
        (fastconv.ShapeError, "the planned shape", lambda: plan(weight)),
        (fastconv.BackendError, "prepared for backend", lambda: host_plan(arrays)(x)),
        (TypeError, "grad_output is on a CUDA device", lambda: fastconv.grad.conv2d(x, x, weight)),
    ):
        with pytest.raises(error, match=re.escape(said)):
            call()


def written_to_its_input():
    square = cuda.to_device(np.ones((1, 1, 2, 2), np.float32))
    return fastconv.conv2d(square, cuda.to_device(np.ones((1, 1, 1, 1), np.float32)), out=square)


def host_plan(arrays):
    return fastconv.plan("conv2d", arrays[0].shape, arrays[1], layout="NHWC", backend="numpy")


def integers(rng, shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


if __name__ == "__main__":
    cuda_simulator.install()
    for name in sys.argv[1:]:
        globals()[name]()
    print("done")

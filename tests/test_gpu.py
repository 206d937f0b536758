"""The cuda backend on a GPU: the whole conformance kit, arrays of other libraries, and times beside PyTorch's.

``make gpu`` runs these where there is one; elsewhere they are skipped.
"""

import numpy as np
import pytest

import fastconv
from fastconv import registry, testing
from fastconv.benchmark import workloads
from fastconv.problem import DEFORM_GRAD, OPS, WEIGHT_GRAD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        registry.find_backend("cuda").reason() is not None, reason="the cuda backend cannot be used here"
    ),
]

SUITE = [layer for layer in workloads.load() if not layer.pointwise]  # two calls on this backend
PLAIN, DEFORMABLE = (workloads.select(SUITE, [name])[0] for name in ("rn50_c2_3x3", "dcn1_rn50_c3"))


@pytest.mark.parametrize("op", OPS + WEIGHT_GRAD + DEFORM_GRAD)
@pytest.mark.timeout(600)
def test_kernels_equal_the_oracle(op):
    report = testing.check_backend("cuda", [op])
    assert not report.failed, "\n".join(report.failed[:5])
    assert report.passed
    unused = {kernel.name for kernel in fastconv.kernels(op, backend="cuda")} - set(report.kernels)
    assert not unused


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_of_other_libraries_stay_on_the_device(library):
    x, weight = PLAIN.operands().values()
    expected = fastconv.conv2d(x, weight, padding=1)
    there = pytest.importorskip(library)
    if library == "torch":
        if not there.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        with there.cuda.stream(there.cuda.Stream()):
            y = fastconv.conv2d(there.as_tensor(x).cuda(), there.as_tensor(weight).cuda(), padding=1)
            found = y.cpu().numpy()
    else:
        found = there.asnumpy(fastconv.conv2d(there.asarray(x), there.asarray(weight), padding=1))
    testing.assert_close(found, expected, 4e-6)


def test_the_ordered_gradient_has_the_same_bits_each_time():
    operands = DEFORMABLE.operands()
    x, weight, offset = (operands[name] for name in ("input", "weight", "offset"))
    case = fastconv.Problem.create(
        "deform_conv2d_grad", x.shape, weight.shape, offset_shape=offset.shape, padding=1
    )
    gy = np.random.default_rng(1).standard_normal(case.output_shape, np.float32)
    (kernel,) = (k for k in fastconv.kernels(case.op, backend="cuda") if k.name.endswith("ordered"))
    first, second = np.empty_like(x), np.empty_like(x)
    for grad in (first, second):
        kernel.build(case)({"input": grad}, gy, x, weight, offset, None, 1)
    testing.assert_exact(first, second)


@pytest.mark.parametrize("layer", [PLAIN, DEFORMABLE], ids=lambda layer: layer.name)
def test_registers_and_occupancy_are_told_and_the_drivers(layer):
    from numba import cuda

    problem = layer.problem()
    (kernel,) = (k for k in fastconv.kernels(layer.op, backend="cuda") if k.refuse(problem) is None)
    (entry,) = kernel.build(problem).entries
    told = str(
        fastconv.explain(layer.op, *(array.shape for array in ordered(layer)), padding=1, backend="cuda")
    )
    signature = entry.arguments.signature(problem.dtype)
    registers = entry.kernel.get_regs_per_thread(signature)
    assert f"registers:    {registers} a thread and 0 B of local memory; " in told
    at_once = entry.kernel.overloads[signature.args].max_cooperative_grid_blocks(entry.threads)
    blocks = at_once // cuda.get_current_device().MULTIPROCESSOR_COUNT
    assert f"{blocks} blocks on a multiprocessor" in told


def ordered(layer):
    """Return the arrays of a layer in the order of its function."""
    operands = layer.operands()
    names = ("input", "offset", "weight") if layer.offset_groups else ("input", "weight")
    return [operands[name] for name in names]


@pytest.mark.parametrize("layer", SUITE, ids=lambda layer: layer.name)
@pytest.mark.timeout(600)
def test_times_of_the_bench_suite_beside_pytorch(layer, capsys):
    """Print the median time of a plan and of cuDNN or torchvision, on device arrays; only results are asserted."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    operands = layer.operands()
    there = {name: torch.as_tensor(array).cuda() for name, array in operands.items()}
    points = {"offset_groups": layer.offset_groups, "mask": layer.mask} if layer.offset_groups else {}
    plan = fastconv.plan(
        layer.op, layer.input, operands["weight"], **points, **layer.options(), backend="cuda"
    )
    ours = lambda: plan(there["input"], there.get("offset"), there.get("mask"))
    theirs = peer(torch, layer, there)
    if theirs is None:
        expected = getattr(fastconv, layer.op)(**operands, **layer.options())
    else:
        expected = theirs().cpu().numpy()
    testing.assert_close(ours().cpu().numpy(), expected, 1e-5)
    with capsys.disabled():
        mine = milliseconds(torch, ours)
        told = "PyTorch has nothing for it"
        if theirs is not None:
            peers = milliseconds(torch, theirs)
            told = f"PyTorch {peers:.3f} ms, ratio {mine / peers:.2f}"
        print(f"\n{layer.name}: {mine:.3f} ms, {told}")


def peer(torch, layer, there):
    """Return the call of PyTorch or torchvision that computes a layer; None if they have none."""
    options = layer.options()
    if layer.variant != "deform_conv":
        function = getattr(torch.nn.functional, layer.op)
        return lambda: function(there["input"], there["weight"], **options)
    if layer.op != "deform_conv2d":
        return None
    function = pytest.importorskip("torchvision").ops.deform_conv2d
    return lambda: function(
        there["input"], there["offset"], there["weight"], mask=there.get("mask"), **options
    )


def milliseconds(torch, run, repeats=30):
    """Return the median time of a call, by events of the device."""
    times = []
    for _ in range(repeats + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(np.median(times[5:]))

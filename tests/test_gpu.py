"""The cuda backend on a GPU: the whole conformance kit, arrays of other libraries, and times beside PyTorch's.

``make gpu`` runs these where there is one; elsewhere they are skipped.
"""

import numpy as np
import pytest

import fastconv
from fastconv import registry, testing
from fastconv.problem import DEFORM_GRAD, OPS, WEIGHT_GRAD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        registry.find_backend("cuda").reason() is not None, reason="the cuda backend cannot be used here"
    ),
]

# (op, N, C, size, O, kernel, options, offset groups)
LAYERS = (
    ("conv2d", 32, 64, 56, 64, 3, {"padding": 1}, 0),
    ("conv2d", 32, 256, 14, 256, 3, {"padding": 1}, 0),
    ("conv2d", 32, 96, 56, 96, 3, {"padding": 1, "groups": 96}, 0),
    ("conv_transpose2d", 8, 64, 56, 32, 4, {"stride": 2, "padding": 1}, 0),
    ("deform_conv2d", 8, 64, 56, 64, 3, {"padding": 1}, 1),
)


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
    x, weight = layer_arrays(LAYERS[0])[:2]
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
    x, weight, offset = layer_arrays(LAYERS[-1])
    x, offset = x[:1], offset[:1]
    gy = np.random.default_rng(1).standard_normal((1, 64, 56, 56), np.float32)
    case = fastconv.Problem.create(
        "deform_conv2d_grad", x.shape, weight.shape, offset_shape=offset.shape, padding=1
    )
    (kernel,) = (k for k in fastconv.kernels(case.op, backend="cuda") if k.name.endswith("ordered"))
    first, second = np.empty_like(x), np.empty_like(x)
    for grad in (first, second):
        kernel.build(case)({"input": grad}, gy, x, weight, offset, None, 1)
    testing.assert_exact(first, second)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer[0]}-c{layer[2]}-h{layer[3]}")
def test_times_beside_pytorch(layer, capsys):
    """Print the median time of a plan and of cuDNN or torchvision, on device arrays; only results are asserted."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    op, options = layer[0], layer[6]
    x, weight, *rest = (torch.as_tensor(array).cuda() for array in layer_arrays(layer))
    plan = fastconv.plan(op, tuple(x.shape), weight.cpu().numpy(), **options, backend="cuda")
    if rest:
        peer = pytest.importorskip("torchvision").ops.deform_conv2d
        theirs = lambda: peer(x, rest[0], weight, **options)
    else:
        theirs = lambda: getattr(torch.nn.functional, op)(x, weight, **options)
    ours = lambda: plan(x, *rest)
    testing.assert_close(ours().cpu().numpy(), theirs().cpu().numpy(), 1e-5)
    with capsys.disabled():
        mine, peers = milliseconds(torch, ours), milliseconds(torch, theirs)
        print(f"\n{plan.problem}: {mine:.3f} ms, PyTorch {peers:.3f} ms, ratio {mine / peers:.2f}")


def layer_arrays(layer):
    """Return input and weight, and the offset of a deformable convolution."""
    op, n, c, size, o, k, options, offset_groups = layer
    rng = np.random.default_rng(0)
    pair = (c, o) if op.startswith("conv_transpose") else (o, c // options.get("groups", 1))
    shapes = [(n, c, size, size), (*pair, k, k)]
    if offset_groups:
        shapes.append((n, 2 * offset_groups * k * k, size, size))
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


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

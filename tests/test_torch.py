"""fastconv.torch: derivatives of all orders, compilers and transforms, layers, and swapping them in a model."""

import copy
import pickle
import warnings
from pathlib import Path

import pytest
from samples import python

import fastconv
from fastconv import config

torch = pytest.importorskip("torch", reason="fastconv.torch is for those who have PyTorch")

import fastconv.torch as ours  # noqa: E402
from fastconv.torch import functional  # noqa: E402
from fastconv.torch.convolution import convolution, input_grad, weight_grad  # noqa: E402
from fastconv.torch.deformable import deform_convolution, deform_grads  # noqa: E402
from fastconv.torch.threads import share_threads  # noqa: E402

F = torch.nn.functional
CHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]

# name: (function, input, weight, options); sizes, strides, paddings and dilations differ along the axes
LINEAR = {
    "conv1d": ("conv1d", (2, 4, 9), (6, 2, 3), dict(stride=2, padding=2, dilation=2, groups=2)),
    "conv2d": (
        "conv2d",
        (2, 4, 6, 7),
        (6, 2, 3, 2),
        dict(stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2),
    ),
    "conv2d-same": ("conv2d", (1, 2, 5, 6), (3, 2, 2, 3), dict(padding="same", dilation=(3, 1))),
    "conv2d-depthwise": ("conv2d", (2, 3, 5, 6), (3, 1, 3, 3), dict(padding=1, groups=3)),
    "conv3d": (
        "conv3d",
        (1, 2, 4, 3, 5),
        (2, 1, 2, 3, 2),
        dict(stride=(2, 1, 1), padding=(0, 1, 1), groups=2),
    ),
    "conv_transpose1d": (
        "conv_transpose1d",
        (2, 4, 5),
        (4, 3, 3),
        dict(stride=3, padding=1, output_padding=2, groups=2),
    ),
    "conv_transpose2d": (
        "conv_transpose2d",
        (2, 4, 4, 3),
        (4, 1, 3, 2),
        dict(stride=(3, 2), padding=(1, 2), output_padding=(2, 1), groups=2, dilation=(2, 1)),
    ),
    "conv_transpose3d": ("conv_transpose3d", (1, 2, 2, 3, 2), (2, 2, 2, 1, 2), dict(stride=(2, 1, 2))),
}
DEFORMABLE = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2))
# In the order of the operator's arguments after the tensors.
OPTIONS = ((1, 2), (1, 1, 2, 2), (2, 1), False, (0, 0), 2, "zeros")


def normal(*shape, seed=0, dtype=torch.float64, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


def whole(*shape, seed=0, dtype=torch.float32, grad=True):
    """Return small whole numbers: sums of their products are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(dtype).requires_grad_(grad)


def deformable(dtype=torch.float64, mask=True, grad=True):
    """Return input, offset, weight, bias and mask; no offset is near a kink."""
    out = (3, 4)
    offset = torch.randint(-2, 3, (2, 2 * 2 * 4, *out), generator=torch.Generator().manual_seed(1))
    offset = offset + 0.2 + 0.6 * torch.rand(offset.shape, generator=torch.Generator().manual_seed(2))
    return (
        normal(2, 4, 5, 6, seed=3, dtype=dtype, grad=grad),
        offset.to(dtype).requires_grad_(grad),
        normal(6, 2, 2, 2, seed=4, dtype=dtype, grad=grad),
        normal(6, seed=5, dtype=dtype, grad=grad),
        normal(2, 2 * 4, *out, seed=6, dtype=dtype, grad=grad) if mask else None,
    )


def in_layout(x, layout):
    """Return a leaf of the same values that lies in memory with its channels first or last."""
    if layout == "first":
        return x
    return x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_(x.requires_grad)


def out_channels(op, weight, options):
    return weight[1] * options.get("groups", 1) if "transpose" in op else weight[0]


def gradients(y, inputs, seed=9):
    """Return the gradients of `inputs` for a gradient of whole numbers."""
    return torch.autograd.grad(y, inputs, whole(*y.shape, seed=seed, dtype=y.dtype, grad=False))


@pytest.mark.parametrize("name", LINEAR)
class TestConvolutions:
    @pytest.mark.filterwarnings("ignore:Using padding='same'")
    def test_results_and_gradients_are_torchs(self, name):
        op, x, w, options = LINEAR[name]
        x, w, b = whole(*x), whole(*w, seed=1), whole(out_channels(op, w, options), seed=2)
        actual, expected = (getattr(library, op)(x, w, b, **options) for library in (ours, F))
        assert torch.equal(actual, expected)
        for a, e in zip(gradients(actual, (x, w, b)), gradients(expected, (x, w, b)), strict=True):
            assert torch.equal(a, e)

    def test_unbatched_and_empty(self, name):
        op, x, w, options = LINEAR[name]
        x, w = whole(*x), whole(*w, seed=1)
        y = getattr(ours, op)(x, w, **options)
        assert torch.equal(getattr(ours, op)(x[0], w, **options), y[0])
        empty = getattr(ours, op)(x[:0], w, **options)
        assert empty.shape == (0, *y.shape[1:])
        assert all(not g.any() for g in torch.autograd.grad(empty.sum(), (x, w)))


MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
EVERY_OPTION = [
    (name, mode, layout)
    for name in LINEAR
    for mode in (MODES if "transpose" not in name else MODES[:1])
    for layout in ("first", "last")
]


@pytest.mark.parametrize(("name", "mode", "layout"), EVERY_OPTION)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_option(name, mode, layout):
    """Derivatives of any order, and what PyTorch asks of an operator, for each function in each form."""
    op, x, w, options = LINEAR[name]
    options = options if mode == "zeros" else options | {"padding_mode": mode}
    x, w, b = normal(*x), normal(*w, seed=1), normal(out_channels(op, w, options), seed=2)
    x = in_layout(x, layout)
    seen = []

    def call(*tensors):
        return getattr(ours, op)(*tensors, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            functional, "convolution", lambda *arguments: seen.append(arguments) or convolution(*arguments)
        )
        y = call(x, w, b)
    assert fastconv.torch.arrays.channels_last(y) == (layout == "last")
    (_, _, _, *rest) = seen[0]
    gy = in_layout(normal(*y.shape, seed=3), layout)
    for made, arguments in (
        (convolution, (x, w, b, *rest)),
        (input_grad, (gy, w, tuple(x.shape), *rest)),
        (weight_grad, (gy, x, tuple(w.shape), *rest)),
    ):
        torch.library.opcheck(made.dispatched, arguments, test_utils=CHECKS)
    for tensors in ((x, w), (x, w, b)):
        assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_every_option_of_deformable_ones(mask, bias, layout):
    x, o, w, b, m = deformable(mask=mask)
    x, o, m = (None if tensor is None else in_layout(tensor, layout) for tensor in (x, o, m))
    tensors = [tensor for tensor in (x, o, w, b if bias else None, m) if tensor is not None]

    def call(x, o, w, *rest):
        b, m = rest[0] if bias else None, rest[-1] if mask else None
        return ours.deform_conv2d(x, o, w, b, **DEFORMABLE, mask=m)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)
    operator = (x, w, o, m, b if bias else None, (2, 1), (1, 1, 0, 0), (1, 2))
    torch.library.opcheck(deform_convolution.dispatched, operator, test_utils=CHECKS)
    gy = in_layout(normal(*call(*tensors).shape), layout)
    wanted = [True, True, True, mask]
    torch.library.opcheck(
        deform_grads.dispatched, (gy, x, w, o, m, (2, 1), (1, 1, 0, 0), (1, 2), wanted), test_utils=CHECKS
    )


@pytest.mark.parametrize("name", ["cython", "numpy"])
def test_the_chosen_backend_runs_forward_and_backward(name, monkeypatch):
    chosen = []
    choose = fastconv.registry.choose

    def watched(problem, request):
        kernel = choose(problem, request)
        chosen.append(kernel.backend)
        return kernel

    monkeypatch.setattr(fastconv.registry, "choose", watched)
    x, w = whole(1, 3, 7, 6), whole(2, 3, 2, 3)
    with fastconv.use_backend(name), config.limit_isa("baseline"):
        ours.conv2d(x, w).sum().backward()
    assert set(chosen) <= {name}


def test_threads_are_torchs_and_ours(monkeypatch):
    from fastconv.torch import arrays

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with fastconv.threads(2):
        assert arrays.thread_count() == 2
    with fastconv.threads(5):
        assert arrays.thread_count() == 3


SHARED = """
import os
import numpy as np, torch, fastconv, fastconv.torch

count = lambda: len(os.listdir("/proc/self/task"))
x, w = torch.arange(8.0 * 32 * 40 * 40).reshape(8, 32, 40, 40) % 7, torch.arange(32.0 * 32 * 9).reshape(32, 32, 3, 3) % 5
torch.set_num_threads(2)
fastconv.threads(2).__enter__()
(torch.rand(1 << 22) * 2).sum()  # PyTorch's threads begin
before, expected = count(), fastconv.conv2d(x.numpy(), w.numpy(), num_threads=1)
assert np.array_equal(fastconv.torch.conv2d(x, w).numpy(), expected)
assert count() == before, "threads of our own began"
assert np.array_equal(fastconv.conv2d(x.numpy(), w.numpy(), num_threads=3), expected)
assert count() == before + 2, "a call on more threads than PyTorch's has its own"
child = os.fork()  # which has none of those threads
if child == 0:
    os._exit(not np.array_equal(fastconv.conv2d(x.numpy(), w.numpy()), expected))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("shared")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.skipif(not share_threads(), reason="PyTorch has no OpenMP library")
def test_programs_run_on_the_threads_that_pytorch_has():
    assert "shared" in python(SHARED)


class TestDeformable:
    def call(self, x, o, w, b, m=None):
        return ours.deform_conv2d(x, o, w, b, **DEFORMABLE, mask=m)

    def test_derivatives_of_third_order(self):
        x, o, w, b, m = deformable()

        def second(*tensors):
            y = self.call(*tensors[:3], b, tensors[3])
            firsts = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in firsts), tensors, create_graph=True)

        assert torch.autograd.gradcheck(second, (x, o, w, m), fast_mode=True, rtol=1e-2)

    def test_an_operand_computed_from_another(self):
        """The chain rule is autograd's business: an offset that depends on the input counts once."""
        x, o, w, b, m = deformable()

        def call(x, w):
            offset = o.detach() + 0.05 * torch.tanh(x.sum())
            return self.call(x, offset, w, b.detach(), m.detach())

        assert torch.autograd.gradcheck(call, (x, w), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x, w), fast_mode=True)

    def test_the_composition_is_the_kernel(self):
        from fastconv.torch import sampler

        x, o, w, _, m = deformable()
        # Also far outside, infinite, at whole coordinates, at the border.
        with torch.no_grad():
            o[0, 0, 0, :3] = torch.tensor([30.0, torch.inf, -torch.inf])
            o[1] = o[1].round()
        options = (2, 1), (1, 1, 0, 0), (1, 2)
        kernel = deform_convolution(x, w, o, m, None, *options)
        composed = sampler.deform_conv(x, w, o, m, *options)
        torch.testing.assert_close(composed, kernel)
        for a, e in zip(gradients(composed, (x, o, w, m)), gradients(kernel, (x, o, w, m)), strict=True):
            torch.testing.assert_close(a, e)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_results_and_gradients_are_torchvisions(self, dtype):
        vision = pytest.importorskip("torchvision", reason="the reference is torchvision's")
        tensors = deformable(dtype)
        x, o, w, b, m = tensors
        actual = self.call(*tensors)
        expected = vision.ops.deform_conv2d(x, o, w, b, **DEFORMABLE, mask=m)
        tolerance = dict(rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual, expected, **tolerance)
        for a, e in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
            torch.testing.assert_close(a, e, **tolerance)

    def test_only_what_is_asked_for(self):
        x, o, w, b, m = deformable(grad=False)
        y = self.call(x, o.requires_grad_(), w, b, m)
        assert not hasattr(x, "grad") or x.grad is None
        y.sum().backward()
        assert o.grad is not None
        assert torch.equal(self.call(x[0], o[0], w, b, m[0]), y[0])


OPCHECKS = {
    "convolution": lambda: (convolution, (normal(2, 4, 6, 7), normal(6, 2, 3, 2), normal(6), *OPTIONS)),
    "input_grad": lambda: (input_grad, (normal(2, 6, 4, 5), normal(6, 2, 3, 2), (2, 4, 6, 7), *OPTIONS)),
    "weight_grad": lambda: (weight_grad, (normal(2, 6, 4, 5), normal(2, 4, 6, 7), (6, 2, 3, 2), *OPTIONS)),
    "channels_last": lambda: (
        convolution,
        (last(normal(2, 4, 6, 7)), normal(6, 2, 3, 2), None, *OPTIONS),
    ),
    "deform_convolution": lambda: (deform_convolution, in_order(deformable(), bias=True)),
    "deform_grads": lambda: (
        deform_grads,
        (normal(2, 6, 3, 4), *in_order(deformable(), bias=False), [True] * 4),
    ),
}


def last(x):
    return x.detach().to(memory_format=torch.channels_last).requires_grad_(x.requires_grad)


def in_order(tensors, bias):
    x, o, w, b, m = tensors
    return (x, w, o, m, *([b] if bias else []), (2, 1), (1, 1, 0, 0), (1, 2))


@pytest.mark.parametrize("name", OPCHECKS)
def test_operators_are_what_torch_expects(name):
    made, arguments = OPCHECKS[name]()
    # The derivative of deform_grads is a hundred operators, and takes minutes to trace with symbols.
    traced = ["test_aot_dispatch_dynamic"] if made is not deform_grads else []
    torch.library.opcheck(made.dispatched, arguments, test_utils=[*CHECKS, *traced])


@pytest.mark.parametrize("name", OPCHECKS)
def test_both_doors_give_the_same(name):
    made, arguments = OPCHECKS[name]()
    results = [door(*arguments) for door in (made, made.dispatched)]
    results = [result if isinstance(result, tuple) else (result,) for result in results]
    inputs = [x for x in arguments if isinstance(x, torch.Tensor)]
    sums = [sum(y.sin().sum() for y in ys) for ys in results]
    for a, e in zip(*results, strict=True):
        assert torch.equal(a, e)
        assert a.stride() == e.stride()
    direct, dispatched = (torch.autograd.grad(total, inputs) for total in sums)
    assert all(map(torch.equal, direct, dispatched))


class TestMemory:
    def test_nothing_is_copied(self, monkeypatch):
        seen = []
        find = fastconv.torch.convolution.find_call

        def watched(op, input, weight, *rest):
            seen.extend((input, weight))
            return find(op, input, weight, *rest)

        monkeypatch.setattr(fastconv.torch.convolution, "find_call", watched)
        w = normal(6, 4, 3, 3, dtype=torch.float32, grad=False)
        for x in (normal(2, 4, 6, 7, dtype=torch.float32, grad=False), last(normal(2, 4, 6, 7, grad=False))):
            ours.conv2d(x.float(), w) if x.dtype == torch.float32 else ours.conv2d(x, w.double())
            assert seen[-2].ctypes.data == x.data_ptr()
        assert seen[1].ctypes.data == w.data_ptr()
        assert seen[-2].shape == (2, 6, 7, 4)

    @pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
    def test_channels_last_stay_so(self, op):
        w = whole(4, 4, 3, 3)
        first = whole(2, 4, 6, 7)
        x = last(first)
        expected, actual = (getattr(ours, op)(image, w, stride=2) for image in (first, x))
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(actual, expected)
        a, e = gradients(actual, (x, w)), gradients(expected, (first, w))
        assert torch.equal(a[0], e[0])
        assert torch.equal(a[1], e[1])
        gx = torch.autograd.grad(getattr(ours, op)(x, w).sum(), x)[0]
        assert torch.equal(gx, torch.autograd.grad(getattr(F, op)(first, w).sum(), first)[0])

    def test_deformable_channels_last(self):
        x, o, w, b, m = deformable()
        expected = ours.deform_conv2d(x, o, w, b, **DEFORMABLE, mask=m)
        lasts = [last(x), last(o), w, b, last(m)]
        actual = ours.deform_conv2d(*lasts[:4], **DEFORMABLE, mask=lasts[4])
        assert actual.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(actual, expected)
        for a, e in zip(gradients(actual, lasts), gradients(expected, (x, o, w, b, m)), strict=True):
            torch.testing.assert_close(a, e)

    def test_any_strides(self):
        w = whole(6, 4, 3, 3, grad=False)
        base = whole(4, 9, 8, 5, grad=False)
        for x in (base.permute(3, 0, 2, 1), base[:1, :, :, :1].expand(4, 9, 8, 5).permute(3, 0, 1, 2)):
            y = ours.conv2d(x, w)
            assert torch.equal(y, F.conv2d(x, w))
            assert ours.conv2d(x, w.transpose(2, 3)).is_contiguous()

    def test_an_expanded_gradient(self):
        x, w = whole(2, 4, 6, 7), whole(6, 4, 3, 3)
        actual = torch.autograd.grad(ours.conv2d(x, w).sum(), (x, w))
        assert all(map(torch.equal, actual, torch.autograd.grad(F.conv2d(x, w).sum(), (x, w))))

    def test_negative_views(self):
        x = torch.complex(whole(1, 1, 5, 5, grad=False), whole(1, 1, 5, 5, grad=False)).conj().imag
        w = whole(2, 1, 3, 3, grad=False)
        assert x.is_neg()
        assert torch.equal(ours.conv2d(x, w), F.conv2d(x, w))

    def test_results_are_not_arguments(self):
        x, w = whole(1, 1, 1, 1, grad=False), torch.ones(1, 1, 1, 1)
        assert ours.conv2d(x, w).data_ptr() != x.data_ptr()


class TestTypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_halves_are_computed_in_float32(self, dtype):
        x, w, b = (normal(*shape, dtype=dtype) for shape in ((2, 4, 6, 7), (6, 4, 3, 3), (6,)))
        y = ours.conv2d(x, w, b)
        assert torch.equal(y, ours.conv2d(x.float(), w.float(), b.float()).to(dtype))
        for g, operand in zip(gradients(y, (x, w, b)), (x, w, b), strict=True):
            assert g.dtype == dtype
            assert g.shape == operand.shape
        tensors = deformable(dtype, grad=False)
        y = ours.deform_conv2d(*tensors[:4], **DEFORMABLE, mask=tensors[4])
        assert y.dtype == dtype

    def test_autocast(self):
        x, w = normal(2, 4, 6, 7, dtype=torch.float32), normal(6, 4, 3, 3, dtype=torch.float32)
        tensors = deformable(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours.conv2d(x, w), F.conv2d(x, w)
            assert ours.conv2d(y, w[:, :1].expand(6, 6, 3, 3)).dtype == torch.bfloat16
            up = ours.conv_transpose2d(x, w.transpose(0, 1))
            deformed = ours.deform_conv2d(*tensors[:4], **DEFORMABLE, mask=tensors[4].bfloat16())
        assert y.dtype == up.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
        assert deformed.dtype == torch.float32
        y.float().sum().backward()
        assert x.grad.dtype == w.grad.dtype == torch.float32

    def test_no_grad(self):
        x, w = whole(1, 2, 5, 5), whole(3, 2, 3, 3)
        with torch.no_grad():
            assert not ours.conv2d(x, w).requires_grad
        with torch.inference_mode():
            assert ours.conv2d(x, w).is_inference()
        assert not ours.conv2d(x.detach(), w.detach()).requires_grad
        assert ours.conv2d(x.detach(), w).requires_grad


class TestErrors:
    X, W = torch.ones(1, 4, 6, 6), torch.ones(6, 4, 3, 3)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((X, W.double()), TypeError, "one dtype: input has torch.float32, weight has torch.float64"),
            ((X.numpy(), W), TypeError, "input must be a tensor, got ndarray"),
            ((X, [[1.0]]), TypeError, "weight must be a tensor, got list"),
            ((X, W, [0.0] * 6), TypeError, "bias must be a tensor, got list"),
            ((X.int(), W.int()), TypeError, "input must be float16, .* got torch.int32"),
            ((X.to_sparse(), W), TypeError, "input must be a strided tensor, got torch.sparse_coo"),
            ((X, W.to("meta")), TypeError, "one device: input is on cpu, weight on meta"),
            ((X, W[:, :3]), fastconv.ShapeError, "weight has 3 input channels per group, but input has 4"),
            ((X[0, 0], W), fastconv.ShapeError, "input of conv2d must have 4 dimensions"),
            ((X, W[0]), fastconv.ShapeError, "weight of conv2d must have 4 dimensions"),
            ((X, W, torch.ones(4)), fastconv.ShapeError, r"bias must have shape \(6,\)"),
            ((X, W, None, 0), ValueError, "stride must be at least 1"),
            ((X, W, None, (1, 1.0)), TypeError, "stride must be an integer, got 1.0"),
            ((X, W, None, 1, -1), ValueError, "padding must (be at least 0|not be negative)"),
            ((X, W, None, 2, "same"), ValueError, "padding='same' keeps the size only where stride is 1"),
            ((X[:, :, :2], W), fastconv.ShapeError, "the output would have size"),
        ],
    )
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_conv2d(self, arguments, error, message, device):
        if device == "meta":
            kept = [x for x in arguments if isinstance(x, torch.Tensor) and (x.is_meta or x.is_sparse)]
            arguments = [x.to("meta") if isinstance(x, torch.Tensor) and not kept else x for x in arguments]
        with pytest.raises(error, match=message):
            ours.conv2d(*arguments)

    def test_other_devices(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with (
            FakeTensorMode(),
            pytest.raises(TypeError, match="input must be on the CPU, got a tensor on cuda"),
        ):
            ours.conv2d(torch.empty(1, 4, 6, 6, device="cuda"), torch.empty(6, 4, 3, 3, device="cuda"))

    def test_layers(self):
        with pytest.raises(ValueError, match="groups=3 must divide in_channels=4"):
            ours.DeformConv2d(4, 6, 3, groups=3)
        with pytest.raises(ValueError, match="offset_groups=3 must divide in_channels=4"):
            ours.DeformConv2dPack(4, 6, 3, offset_groups=3)

    def test_without_torch(self):
        code = """
import sys
sys.modules["torch"] = None
try:
    import fastconv.torch
except ImportError as error:
    print(error, error.name)
"""
        assert "pip install 'fastconv[torch]' torch" in python(code)


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 6, 3, stride=2, groups=2, padding="valid"),
        torch.nn.ConvTranspose2d(6, 3, 3, stride=2, output_padding=1, bias=False),
    )


@pytest.mark.filterwarnings("ignore")  # torch's own, of what its compilers use
class TestCompilers:
    X = normal(2, 1, 12, 11, dtype=torch.float32, grad=False)
    OTHER = normal(3, 1, 14, 9, dtype=torch.float32, grad=False)

    def test_compile(self):
        model = small_model()
        ours.replace(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        y = compiled(self.X)
        assert torch.equal(y, model(self.X))
        y.sum().backward()
        actual = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(self.X).sum().backward()
        for a, p in zip(actual, model.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad)
        assert torch.equal(compiled(self.OTHER), model(self.OTHER))  # sizes are symbols now

    def test_compile_deformable(self):
        torch._dynamo.reset()
        layer = ours.DeformConv2dPack(4, 6, 3, padding=1)
        x = normal(1, 4, 5, 6, dtype=torch.float32, grad=False)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        assert torch.equal(compiled(x), layer(x))
        compiled(x).sum().backward()
        assert layer.conv_offset.weight.grad.abs().sum() > 0

    def test_export(self):
        model = small_model().eval()
        ours.replace(model)
        auto = torch.export.Dim.AUTO
        program = torch.export.export(model, (self.X,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count("fastconv.convolution.default") == 3
        assert torch.equal(program.module()(self.OTHER), model(self.OTHER))

    def test_meta(self):
        model = small_model().to("meta")
        ours.replace(model)
        assert model(self.X.to("meta")).shape == small_model()(self.X).shape

    def test_modes_and_tracers_see_the_operators(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen.append(str(func))
                return func(*args, **(kwargs or {}))

        seen = []
        model = small_model()
        ours.replace(model)
        with Watch():
            model(self.X).sum().backward()
        for name in ("convolution", "convolution_input_grad", "convolution_weight_grad"):
            assert f"fastconv.{name}.default" in seen
        assert torch.equal(torch.jit.trace(model, self.X)(self.X), model(self.X))
        assert torch.equal(torch.fx.symbolic_trace(model)(self.X), model(self.X))

    def test_transforms(self):
        from torch.func import functional_call, grad, jacrev, vmap

        model = small_model()
        ours.replace(model)
        parameters = dict(model.named_parameters())

        def loss(parameters, x):
            return functional_call(model, parameters, (x,)).square().sum()

        each = vmap(grad(loss), in_dims=(None, 0))(parameters, self.X)
        together = grad(loss)(parameters, self.X)
        loss(parameters, self.X).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name], parameter.grad)
            torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)
        w = normal(2, 1, 2, 2, grad=False)
        x = self.X.double()
        hessians = [jacrev(jacrev(lambda w: f(x, w).square().sum()))(w) for f in (ours.conv2d, F.conv2d)]  # noqa: B023
        torch.testing.assert_close(*hessians)
        tensors = deformable(grad=False)
        found = vmap(lambda o: ours.deform_conv2d(tensors[0], o, *tensors[2:4], **DEFORMABLE))(
            torch.stack([tensors[1], 2 * tensors[1]])
        )
        assert torch.equal(
            found[1], ours.deform_conv2d(tensors[0], 2 * tensors[1], *tensors[2:4], **DEFORMABLE)
        )


class TestLayers:
    @pytest.mark.parametrize(
        "name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
    )
    def test_are_torchs(self, name):
        ndim = int(name[-2])
        layers = []
        for library in (torch.nn, ours):
            torch.manual_seed(0)
            layers.append(getattr(library, name)(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64))
        theirs, own = layers
        assert isinstance(own, type(theirs))
        assert repr(own) == repr(theirs)
        assert all(map(torch.equal, own.state_dict().values(), theirs.state_dict().values()))
        x = normal(2, 4, *(7, 9, 5)[:ndim])
        torch.testing.assert_close(own(x), theirs(x))
        if "Transpose" in name:
            size = own(x).shape[2:]
            size = (size[0] + 1, *size[1:])
            torch.testing.assert_close(own(x, output_size=size), theirs(x, output_size=size))
        assert torch.equal(pickle.loads(pickle.dumps(own))(x), own(x))

    def test_deformable_is_torchvisions(self):
        vision = pytest.importorskip("torchvision", reason="the reference is torchvision's")
        layers = []
        for library in (vision.ops, ours):
            torch.manual_seed(0)
            layers.append(library.DeformConv2d(4, 6, (2, 3), stride=2, padding=(1, 0), groups=2))
        theirs, own = layers
        assert repr(own) == repr(theirs)
        assert list(own.state_dict()) == list(theirs.state_dict())
        assert all(map(torch.equal, own.state_dict().values(), theirs.state_dict().values()))
        x, o, m = (
            normal(*shape, dtype=torch.float32) for shape in ((2, 4, 7, 9), (2, 12, 4, 4), (2, 6, 4, 4))
        )
        torch.testing.assert_close(own(x, o, m), theirs(x, o, m))

    @pytest.mark.parametrize("modulated", [True, False])
    def test_pack_starts_as_a_convolution(self, modulated):
        layer = ours.DeformConv2dPack(
            4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, offset_groups=2, modulated=modulated
        )
        x = normal(2, 4, 7, 8, dtype=torch.float32, grad=False)
        offset, mask = layer.sampling(x)
        assert offset.shape == (2, 2 * 2 * 6, 7, 5)
        assert not offset.any()
        plain = F.conv2d(x, layer.weight, None, (1, 2), 1, groups=2)
        bias = layer.bias[:, None, None]
        torch.testing.assert_close(layer(x), (plain / 2 if modulated else plain) + bias)
        assert mask is None or (mask.shape == (2, 2 * 6, 7, 5) and (mask == 0.5).all())
        layer(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
        assert layer(x[0]).shape == layer(x)[0].shape


class TestReplace:
    def test_in_place_and_back(self):
        model = small_model()
        x = TestCompilers.X
        expected, layers, state = model(x), list(model), copy.deepcopy(model.state_dict())
        calls = []
        model[0].register_forward_hook(lambda *_: calls.append("hook"))
        model[2].eval()
        replacement = ours.replace(model)
        assert len(replacement) == 3
        assert "0, 2, 3" in repr(replacement)
        assert [type(layer).__module__ for layer in replacement.layers.values()] == [
            "fastconv.torch.modules"
        ] * 3
        torch.testing.assert_close(model(x), expected)
        assert calls == ["hook"]
        assert [a is b for a, b in zip(model, layers, strict=True)] == [True] * 4
        assert not model[2].training
        assert model[0].training
        assert len(ours.replace(model)) == 0  # nothing is left to change
        replacement.undo()
        replacement.undo()
        assert torch.equal(model(x), expected)
        assert [type(layer) for layer in model] == [type(layer) for layer in small_model()]
        assert all(map(torch.equal, model.state_dict().values(), state.values()))
        with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got list"):
            ours.replace(layers)
        with ours.replace(model[0]) as alone:
            assert type(model[0]) is ours.Conv2d
            assert list(alone) == [""]
        assert type(model[0]) is torch.nn.Conv2d

    def test_what_computes_something_else_is_left_alone(self):
        class Own(torch.nn.Conv2d):
            def forward(self, x):
                return super().forward(x) + 1

        class Named(torch.nn.Conv2d):
            pass

        model = torch.nn.Sequential(
            Own(1, 1, 1), Named(1, 1, 1), torch.nn.LazyConv2d(1, 1), ours.Conv2d(1, 1, 1)
        )
        kinds = list(map(type, model))
        replacement = ours.replace(model)
        assert list(replacement) == ["1"]
        assert isinstance(model[1], Named)
        assert isinstance(model[1], ours.Conv2d)
        replacement.undo()
        assert list(map(type, model)) == kinds

    def test_parametrized_layers(self):
        layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 3, 3))
        x = normal(1, 2, 5, 5, dtype=torch.float32)
        expected = layer(x)
        with ours.replace(layer):
            assert isinstance(layer, ours.Conv2d)
            y = layer(x)
            torch.testing.assert_close(y, expected)
            y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())

    def test_deformable_layers_of_torchvision(self):
        vision = pytest.importorskip("torchvision", reason="the layer is torchvision's").ops
        layer = vision.DeformConv2d(4, 6, 3, padding=1, groups=2)
        x, offset = normal(2, 4, 5, 6, dtype=torch.float32), normal(2, 18, 5, 6, dtype=torch.float32)
        expected = layer(x, offset)
        with ours.replace(layer):
            assert type(layer) is ours.DeformConv2d
            torch.testing.assert_close(layer(x, offset), expected, rtol=1e-4, atol=1e-5)
        assert type(layer) is vision.DeformConv2d

    def test_a_model_of_torchvision(self):
        models = pytest.importorskip("torchvision", reason="torchvision brings the model").models
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = models.segmentation.deeplabv3_mobilenet_v3_large(
                weights=None, weights_backbone=None, num_classes=5
            ).eval()
        x = normal(1, 3, 65, 65, dtype=torch.float32, grad=False)

        def run():
            model.zero_grad()
            y = model(x)["out"]
            y.square().sum().backward()
            return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

        expected, expected_grads = run()
        count = sum(isinstance(layer, torch.nn.Conv2d) for layer in model.modules())
        replacement = ours.replace(model)
        assert len(replacement) == count > 60
        y, grads = run()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        for name, grad in grads.items():
            size = expected_grads[name].abs().max().item()
            torch.testing.assert_close(grad, expected_grads[name], rtol=1e-3, atol=1e-4 * size + 1e-12)
        replacement.undo()
        y, grads = run()
        assert torch.equal(y, expected)
        assert all(torch.equal(grads[name], expected_grads[name]) for name in grads)

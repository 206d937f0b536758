"""PyTorch: eager in both layouts, oneDNN with packed weights, and torchvision's deformable convolution.

Tensors share the memory of NumPy arrays and are made beforehand, which is to PyTorch's favour; only where a case
is `fresh` (the overhead of a call) each call converts, as a user with NumPy arrays has to. Gradients are the
operators that autograd would call, without its bookkeeping.
"""

import functools
from collections.abc import Callable
from typing import Any

from ...problem import Problem
from ..case import Case, Inapplicable, Runner
from . import PREPARED, STATELESS, Implementation

INSTALL = "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"


def build(case: Case, threads: int, layout: str, packed: bool = False) -> Runner:
    """Return a convolution in one layout; `packed` with its weights in oneDNN's own order."""
    if case.workload.variant == "deform_conv":
        raise Inapplicable("no deformable convolution")
    if case.workload.pointwise:
        return build_separable(case, threads, layout, packed)
    torch = prepared_torch(threads)
    x, weight = (torch.from_numpy(case.operands[name]) for name in ("input", "weight"))
    geometry = Geometry(case)
    if case.backward:
        grad = torch.from_numpy(case.grad_output)
        arrange = arranged(torch, case, layout)
        x, weight, grad = arrange(x), arrange(weight), arrange(grad)
        call = lambda: geometry.backward(torch, grad, x, weight)
        return Runner(call, lambda found: [unlifted(a, case).numpy() for a in found], "convolution_backward")
    arrange = arranged(torch, case, layout)
    x, weight = arrange(x), arrange(weight)
    if packed:
        packed_weight = geometry.pack(torch, weight, x)
        run = lambda: geometry.run_packed(torch, x, packed_weight)
        kernel = "mkldnn._convolution_pointwise"
    else:
        run, kernel = geometry.forward(torch, x, weight), f"{case.workload.op}, {layout}"
    if case.fresh and not packed:
        given = (case.operands["input"], case.operands["weight"])
        function = functools.partial(geometry.function(torch), **geometry.keywords)
        run = lambda: function(torch.from_numpy(given[0]), torch.from_numpy(given[1])).numpy()
        return Runner(inference(torch, run), lambda y: [y], kernel)
    return Runner(inference(torch, run), lambda y: [unlifted(y, case).numpy()], kernel)


def build_separable(case: Case, threads: int, layout: str, packed: bool) -> Runner:
    """Return two convolutions, the second of what the first returns."""
    torch = prepared_torch(threads)
    arrange = arranged(torch, case, layout)
    names = ("input", "depthwise_weight", "pointwise_weight")
    x, depthwise, pointwise = (arrange(torch.from_numpy(case.operands[name])) for name in names)
    first, last = (Geometry(case, part) for part in case.problem.parts())  # type: ignore[attr-defined]
    if packed:
        between = first.forward(torch, x, depthwise)()
        depthwise, pointwise = first.pack(torch, depthwise, x), last.pack(torch, pointwise, between)
        run = lambda: last.run_packed(torch, first.run_packed(torch, x, depthwise), pointwise)
        kernel = "mkldnn._convolution_pointwise, twice"
    else:
        run = lambda: last.forward(torch, first.forward(torch, x, depthwise)(), pointwise)()
        kernel = f"two convolutions, {layout}"
    return Runner(inference(torch, run), lambda y: [unlifted(y, case).numpy()], kernel)


def build_deformable(case: Case, threads: int) -> Runner:
    """Return torchvision's deformable convolution or its gradients."""
    if case.workload.op != "deform_conv2d":
        raise Inapplicable("only deformable convolution in 2-D")
    torch = prepared_torch(threads)
    from torchvision.ops import deform_conv2d

    operands = {name: torch.from_numpy(array) for name, array in case.operands.items()}
    if case.backward:
        call = lambda: deformable_gradients(torch, case, torch.from_numpy(case.grad_output), operands)
        return Runner(call, lambda found: [a.numpy() for a in found], "_deform_conv2d_backward")
    run = functools.partial(deform_conv2d, **operands, **case.options)
    return Runner(inference(torch, run), lambda y: [y.numpy()], "deform_conv2d")


def deformable_gradients(torch: Any, case: Case, grad: Any, operands: dict[str, Any]) -> list[Any]:
    """Return the gradients of `case.wanted`."""
    import torchvision  # noqa: F401  (registers the operators)

    problem, x = case.problem, operands["input"]
    mask = operands.get("mask", x.new_zeros(()))
    geometry = (*problem.stride, *(before for before, _ in problem.padding), *problem.dilation)
    found = torch.ops.torchvision._deform_conv2d_backward(
        grad, x, operands["weight"], operands["offset"], mask if problem.mask else x.new_zeros((len(x), 1)),
        x.new_zeros(problem.out_channels), *geometry, problem.groups, problem.offset_groups, problem.mask,
    )  # fmt: skip
    named = dict(zip(("input", "weight", "offset", "mask", "bias"), found, strict=True))
    return [named[name] for name in case.wanted]


class Geometry:
    """The numbers of a convolution as torch's operators take them.

    oneDNN's operators and channels-last exist from two axes on: a sound becomes a picture one pixel high.
    """

    def __init__(self, case: Case, part: Problem | None = None):
        problem = part or case.problem
        lift = lambda values, one: ([one] if problem.ndim == 1 else []) + list(values)
        self.ndim = max(2, problem.ndim)
        self.transposed = problem.variant == "conv_transpose"
        self.stride, self.dilation = lift(problem.stride, 1), lift(problem.dilation, 1)
        self.padding = lift([before for before, _ in problem.padding], 0)
        self.extra = lift(problem.output_padding, 0)
        self.groups = problem.groups
        self.keywords = case.options

    def function(self, torch: Any) -> Callable[..., Any]:
        name = f"conv_transpose{self.ndim}d" if self.transposed else f"conv{self.ndim}d"
        return getattr(torch.nn.functional, name)

    def forward(self, torch: Any, x: Any, weight: Any) -> Callable[[], Any]:
        options = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if self.transposed:
            options["output_padding"] = self.extra
        return functools.partial(self.function(torch), x, weight, **options)

    def backward(self, torch: Any, grad: Any, x: Any, weight: Any) -> tuple[Any, Any]:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, self.transposed, self.extra,
            self.groups, [True, True, False],
        )[:2]  # fmt: skip

    def pack(self, torch: Any, weight: Any, x: Any) -> Any:
        if self.transposed:
            return torch.ops.mkldnn._reorder_convolution_transpose_weight(
                weight, self.padding, self.extra, self.stride, self.dilation, self.groups, list(x.shape)
            )
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups, list(x.shape)
        )

    def run_packed(self, torch: Any, x: Any, weight: Any) -> Any:
        # The result lies channels last, also for an input that does not: no time is added for turning it back.
        if self.transposed:
            return torch.ops.mkldnn._convolution_transpose_pointwise(
                x,
                weight,
                None,
                self.padding,
                self.extra,
                self.stride,
                self.dilation,
                self.groups,
                "none",
                [],
                "",
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, None, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )


def arranged(torch: Any, case: Case, layout: str) -> Callable[[Any], Any]:
    """Return a function that brings a tensor to at least two axes and into a layout."""
    lift = case.problem.ndim == 1
    last = torch.channels_last_3d if case.problem.ndim == 3 else torch.channels_last

    def arrange(tensor: Any) -> Any:
        tensor = tensor.unsqueeze(2) if lift else tensor
        return tensor.contiguous(memory_format=last) if layout == "NHWC" else tensor

    return arrange


def unlifted(tensor: Any, case: Case) -> Any:
    return tensor.squeeze(2) if case.problem.ndim == 1 and tensor.ndim == 4 else tensor


def inference(torch: Any, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return `run` without autograd: switched off for this thread, so that calls do not pay for a context."""
    torch.set_grad_enabled(False)
    return run


def prepared_torch(threads: int) -> Any:
    """Import torch; its number of threads is set after numba's pool has started, which would reset it."""
    import torch

    torch.set_num_threads(threads)
    return torch


def _entries() -> list[Implementation]:
    found = []
    for name, column, layout, packed in (
        ("torch.nchw", STATELESS, "NCHW", False),
        ("torch.channels_last", STATELESS, "NHWC", False),
        ("onednn.packed_nchw", PREPARED, "NCHW", True),
        ("onednn.packed_channels_last", PREPARED, "NHWC", True),
    ):
        make = functools.partial(build, layout=layout, packed=packed)
        found.append(Implementation(name, "torch", "torch", column, layout, make, INSTALL, True, not packed))
    found.append(
        Implementation(
            "torchvision",
            "torchvision",
            "torchvision",
            STATELESS,
            "NCHW",
            build_deformable,
            INSTALL,
            True,
            True,
        )
    )
    return found


IMPLEMENTATIONS = _entries()

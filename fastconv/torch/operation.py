"""An operator with two doors: PyTorch's dispatcher, and a direct call where the dispatcher has nothing to add.

Compilers, exporters, modes and transforms see every operator through ``torch.ops.fastconv``. In plain eager code the
dispatcher and the autograd function that it generates in Python only cost time, as much again as a small
convolution, so plain tensors go to the kernel directly. Formulas are written once and serve both doors.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operation"]

LIBRARY = torch.library.Library("fastconv", "DEF")
PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operation:
    """One operator with its gradient.

    Parameters
    ----------
    schema : str
        Name, arguments and results, such as ``"scale(Tensor x, float factor) -> Tensor"``.
    kernel : callable
        Computes the result from CPU tensors, whose gradients it need not care for.
    fake : callable
        Makes tensors of the result's shape, type and strides.
    setup_context, backward : callable
        As those of :class:`torch.autograd.Function`.
    """

    def __init__(
        self, schema: str, kernel: Callable, fake: Callable, setup_context: Callable, backward: Callable
    ):
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(f"fastconv::{name}", fake, lib=LIBRARY)
        torch.library.register_autograd(
            f"fastconv::{name}", backward, setup_context=setup_context, lib=LIBRARY
        )
        self.dispatched = getattr(torch.ops.fastconv, name).default
        self.kernel = kernel
        methods = {"forward": kernel, "setup_context": setup_context, "backward": backward}
        self.recorded = type(
            name,
            (torch.autograd.Function,),
            {key: staticmethod(method) for key, method in methods.items()},
        ).apply

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or watched():
            return self.dispatched(*arguments)
        differentiable = False
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                if type(argument) not in PLAIN or not argument.is_cpu or argument.is_neg():
                    return self.dispatched(*arguments)
                differentiable = differentiable or argument.requires_grad
        if differentiable and torch.is_grad_enabled():
            return self.recorded(*arguments)
        return self.kernel(*arguments)


def watched() -> bool:
    """Return whether something wants to see the operators that run: a mode, a transform, a tracer or a profiler."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    )

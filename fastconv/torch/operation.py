"""An operator with two doors: PyTorch's dispatcher, and a direct call where the dispatcher has nothing to add.

Compilers, exporters, modes and tracers see every operator through ``torch.ops.fastconv``. In plain eager code the
dispatcher and the autograd function that it generates in Python only cost time, as much again as a small
convolution, so plain tensors go to the kernel directly. Formulas are written once and serve both doors.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operation", "unobserved"]

LIBRARY = torch.library.Library("fastconv", "DEF")
PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operation:
    """One operator with its gradient.

    Parameters
    ----------
    schema : str
        Name, arguments and results, such as ``"scale(Tensor x, float factor) -> Tensor"``; tensors come first.
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
        qualified = f"fastconv::{name}"
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        LIBRARY.impl(name, kernel, "CPU")
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
        torch.library.register_vmap(qualified, self._vmap, lib=LIBRARY)
        dispatched = getattr(torch.ops.fastconv, name).default

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = kernel(*arguments)
            setup_context(ctx, arguments, output)
            return output

        self.kernel = kernel
        self.dispatched = dispatched
        self.operands = schema.partition(")")[0].count("Tensor")
        # A class with a setup_context of its own has each call's arguments bound by name, which takes 20 us, but
        # the transforms of torch.func accept no other.
        self.recorded = _function(name, forward=forward, backward=backward)
        self.transformed = _function(
            name,
            forward=lambda *arguments: dispatched(*arguments),
            setup_context=setup_context,
            backward=backward,
            generate_vmap_rule=True,
        )

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.dispatched(*arguments)
        if torch._C._are_functorch_transforms_active():
            return self.transformed(*arguments)
        if watched():
            return self.dispatched(*arguments)
        differentiable = False
        for x in arguments[: self.operands]:
            if x is not None:
                if type(x) not in PLAIN or not x.is_cpu or x.is_neg():
                    return self.dispatched(*arguments)
                differentiable = differentiable or x.requires_grad
        if differentiable and torch.is_grad_enabled():
            return self.recorded(*arguments)
        return self.kernel(*arguments)

    def _vmap(self, info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        """Run the operator on one slice after the other."""
        slices = [
            self.dispatched(
                *(
                    x.select(axis, i) if isinstance(axis, int) else x
                    for x, axis in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(slices[0], torch.Tensor):
            return torch.stack(slices), 0
        return tuple(map(torch.stack, zip(*slices, strict=True))), (0,) * len(slices[0])


def _function(name: str, **members: Any) -> Callable:
    methods = {key: staticmethod(member) if callable(member) else member for key, member in members.items()}
    return type(name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]


def unobserved(*tensors: torch.Tensor) -> bool:
    """Return whether kernels may be called on tensors with neither autograd nor the dispatcher knowing."""
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or watched()
    ):
        return False
    return all(type(x) in PLAIN and x.is_cpu and not x.is_neg() for x in tensors)


def watched() -> bool:
    """Return whether something wants to see the operators that run: a mode, a tracer or a profiler."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    )

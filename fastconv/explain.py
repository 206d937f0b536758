"""Why a call runs as it does."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import config, device, registry
from .call import Call, array_or_stand_in, as_arrays, prepare
from .describe import bytes_text, describe
from .problem import SEPARABLE, parse_op

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; prints as a small report.

    Attributes
    ----------
    backend, kernel : str
        Names of what would run.
    source : str
        Who asked for the backend: ``"automatic"``, ``"backend="``, ``"use_backend"``, ...
    refusals : dict of str to str
        For each ``"<backend> <kernel>"`` that would not run, the reason.
    text : str
        The whole report.
    """

    backend: str
    kernel: str
    source: str
    refusals: dict[str, str]
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Tell which kernel a call would run, and why no other.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"``, or of its gradients, such as ``"grad.conv2d"``.
    *args, **kwargs
        The arguments of that function. Where it takes an array, a shape (a tuple of integers, taken as
        float32) will do.

    Returns
    -------
    Explanation
        Prints the kernel, who asked for it, instruction set, tile, threads, scratch, copies, operations,
        bytes and intensity, and the reason why every other kernel was passed over. For gradients, which
        several kernels compute, of each; `backend` and `kernel` list them by commas.

    Raises
    ------
    ValueError, TypeError
        As the function itself.

    Examples
    --------
    >>> import fastconv
    >>> told = fastconv.explain("conv2d", (1, 3, 8, 8), (4, 3, 3, 3), padding=1, backend="numpy")
    >>> told.backend, told.kernel, told.source
    ('numpy', 'conv_direct', 'backend=')
    """
    import inspect

    from . import functional

    if isinstance(op, str) and op.startswith("grad."):
        return _explain_grad(op.removeprefix("grad."), args, kwargs)
    if op in SEPARABLE:
        return _explain_separable(op, args, kwargs)
    parse_op(op)
    given = inspect.signature(getattr(functional, op)).bind(*args, **kwargs)
    given.apply_defaults()
    arguments = given.arguments
    names = ("input", "weight", "bias", "offset", "mask")
    given_arrays = [arguments.get(name) for name in names]
    options = functional.options_of(arguments)
    backend = arguments["backend"]
    if device.any_on_device(*given_arrays):
        operands, request = device.stand_ins(given_arrays, backend)
        source = "arrays on a CUDA device"
    else:
        operands = as_arrays(**dict(zip(names, map(array_or_stand_in, names, given_arrays), strict=True)))
        request, source = config.as_requested(backend)
    input, weight, bias, offset, mask = operands
    call = prepare(
        op, input, weight, bias, offset, mask, options, request, source, fresh=arguments["out"] is None
    )
    return _explanation(call, dict(zip(names, operands, strict=True)), arguments["num_threads"])


def _explain_separable(op: str, args: tuple, kwargs: dict[str, Any]) -> Explanation:
    import inspect

    from . import separable

    given = inspect.signature(getattr(separable, op)).bind(*args, **kwargs)
    given.apply_defaults()
    arguments = {name: array_or_stand_in(name, value) for name, value in given.arguments.items()}
    operands = separable.separable_operands(arguments)
    options = {name: given.arguments[name] for name in separable.OPTIONS}
    request, source = config.as_requested(arguments["backend"])
    fresh = arguments["out"] is None
    call = separable.prepare_separable(op, operands, options, request, source, fresh=fresh)
    return _explanation(call, operands, arguments["num_threads"])


def _explanation(call: Call, operands: dict[str, Any], num_threads: int | None) -> Explanation:
    refusals = _refusals(call)
    text = describe(call, config.thread_count(num_threads), _copies(operands, call))
    if refusals:
        text += "\nnot taken:\n" + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items())
    return Explanation(call.kernel.backend, call.kernel.name, call.source, refusals, text)


def _explain_grad(op: str, args: tuple, kwargs: dict[str, Any]) -> Explanation:
    import inspect

    from . import functional, grad
    from .gradcall import as_wrt, fields_of, prepare_grad

    parse_op(op)
    given = inspect.signature(getattr(grad, op)).bind(*args, **kwargs)
    given.apply_defaults()
    arguments = given.arguments
    names = ("grad_output", "input", "weight", "offset", "mask")
    arrays = as_arrays(
        **{name: array_or_stand_in(name, arguments.get(name)) for name in names if name in arguments}
    )
    operands = dict(zip((name for name in names if name in arguments), arrays, strict=True))
    request, source = config.as_requested(arguments["backend"])
    wrt = as_wrt(arguments["wrt"], fields_of(op))
    whole = prepare_grad(op, operands, functional.options_of(arguments), wrt, request, source)
    texts: list[str] = []
    refusals: dict[str, str] = {}
    for name, call in whole.parts.items():
        told = _refusals(call)
        refusals |= {f"{name}: {kernel}": reason for kernel, reason in told.items()}
        text = f"gradient of the {name}\n{describe(call, config.thread_count(arguments['num_threads']))}"
        if told:
            text += "\nnot taken:\n" + "\n".join(f"  {kernel}: {reason}" for kernel, reason in told.items())
        texts.append(text)
    if "bias" in wrt:
        texts.append("gradient of the bias\nsum over images and pixels")
    kernels = [call.kernel for call in whole.parts.values()]
    backends = ", ".join(dict.fromkeys(kernel.backend for kernel in kernels))
    return Explanation(
        backends, ", ".join(kernel.name for kernel in kernels), source, refusals, "\n\n".join(texts)
    )


def _copies(operands: dict[str, np.ndarray | None], call: Call) -> tuple[str, ...]:
    """Return the conversions that happen before the kernel sees the arrays."""
    told = []
    for name, array in operands.items():
        if array is None or 0 in array.strides:  # a stand-in for a shape
            continue
        moved = (
            name in ("offset", "mask") and call.problem.layout == "NHWC" and not call.kernel.points_as_given
        )
        if moved or array.dtype != call.dtype or not array.flags.c_contiguous or not array.flags.aligned:
            told.append(f"{name} converted: {bytes_text(math.prod(array.shape) * call.dtype.itemsize)}")
    if call.result_dtype != call.dtype:
        told.append(f"result rounded to {call.result_dtype}")
    return tuple(told)


def _refusals(call: Call) -> dict[str, str]:
    """Return why every kernel but the chosen one, and every backend without a kernel, was not taken."""
    told = {}
    for status in registry.backends():
        for name, reason in registry.explain_backend(call.problem, status.name):
            told[f"{status.name} {name}".strip()] = reason
        if not status.available:
            continue
        for kernel, refusal in registry.verdicts(call.problem, registry.find_backend(status.name)):
            if refusal is None and kernel != call.kernel:
                told[f"{status.name} {kernel.name}"] = _why_not(kernel, call)
    return told


def _why_not(kernel: registry.Kernel, call: Call) -> str:
    if call.source != "automatic" and kernel.backend != call.kernel.backend:
        return f"another backend was asked for ({call.source})"
    if kernel.backend == registry.ORACLE:
        return "the oracle is the last resort"
    if not registry.find_backend(kernel.backend).automatic:
        return f"{'cuda' if kernel.backend == 'cuda' else 'a plugin'} runs only where it is named"
    mine, chosen = registry.cost(kernel, call.problem), registry.cost(call.kernel, call.problem)
    return f"estimated at {mine * 1e3:.3g} ms, the chosen kernel at {chosen * 1e3:.3g} ms"

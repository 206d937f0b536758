"""Depthwise-separable convolutions in one call: a depthwise one, an activation, a pointwise one, an activation.

What lies between the two never has to leave the cache. The gradients are those of the two parts, one after the other:
:mod:`fastconv.grad` has them.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import config, registry
from .call import Call, as_arrays, as_operand, check_memory, remember, result_type, stand_in
from .functional import Accuracy, Activation, BackendName, Ints, Layout, Padding, PaddingMode
from .plan import Plan, as_shape
from .problem import SEPARABLE, parse_op
from .separable_problem import SeparableProblem

__all__ = ["plan_separable", "separable_conv1d", "separable_conv2d", "separable_conv3d"]

OPERANDS = ("input", "depthwise_weight", "depthwise_bias", "pointwise_weight", "pointwise_bias")
OPTIONS = (
    "stride",
    "padding",
    "dilation",
    "padding_mode",
    "layout",
    "depthwise_activation",
    "activation",
    "accuracy",
)

_calls: dict[Hashable, "SeparableCall"] = {}


class SeparableCall(Call):
    """A separable problem bound to a kernel; pointwise weight and bias go where others have offset and mask."""

    __slots__ = ()

    operands = OPERANDS
    constant = OPERANDS[1:]

    def _points(self, array: np.ndarray) -> np.ndarray:
        return as_operand(array, self.dtype)


def _run(op: str, arguments: dict[str, Any]) -> np.ndarray:
    operands = separable_operands(arguments)
    options = {name: arguments[name] for name in OPTIONS}
    out = arguments["out"]
    call = find_separable_call(op, operands, options, arguments["backend"], out is None)
    x, *others = operands.values()
    d, a, w, b = others
    assert x is not None
    return call(x, d, a, w, b, out, arguments["num_threads"])


def separable_operands(arguments: dict[str, Any]) -> dict[str, np.ndarray | None]:
    """Return the arrays of a call, given its arguments by name."""
    return dict(zip(OPERANDS, as_arrays(**{name: arguments[name] for name in OPERANDS}), strict=True))


def find_separable_call(
    op: str, operands: dict[str, Any], options: dict[str, Any], backend: Any, fresh: bool
) -> SeparableCall:
    """Return the remembered call for these shapes, types, options and settings, or make it."""
    request, source = config.as_requested(backend)
    forms = tuple(None if array is None else (array.shape, array.dtype) for array in operands.values())
    # Activations that are functions are told apart by themselves, and all else by its text: 1.0 and 1 are equal keys.
    activations = options["depthwise_activation"], options["activation"]
    settings = request, config.max_isa(), config.requested_accuracy(), registry.generation
    try:
        key = op, forms, repr(options), activations, settings
        call = _calls.get(key)
    except TypeError:  # an activation that cannot be a key is none at all
        return prepare_separable(op, operands, options, request, source, fresh=fresh)
    if call is None:
        call = prepare_separable(op, operands, options, request, source, fresh=fresh)
        remember(_calls, key, call)
    return call


def prepare_separable(
    op: str,
    operands: dict[str, Any],
    options: dict[str, Any],
    request: config.Request,
    source: str,
    *,
    prepared: bool = False,
    dtype: Any = None,
    fresh: bool = False,
) -> SeparableCall:
    """Validate the arguments, choose a kernel and build it. Only shapes and types of the arrays are looked at."""
    config.check_environment()
    kind = result_type({name: array.dtype for name, array in operands.items() if array is not None}, dtype)
    shape = {name: array.shape for name, array in operands.items() if array is not None}
    unbatched = len(shape["input"]) == parse_op(op, SEPARABLE)[1] + 1
    options = {**options, "accuracy": options["accuracy"] or config.requested_accuracy()}
    problem = SeparableProblem.of(
        op,
        (1, *shape["input"]) if unbatched else shape["input"],
        shape["depthwise_weight"],
        shape["pointwise_weight"],
        depthwise_bias_shape=shape.get("depthwise_bias"),
        pointwise_bias_shape=shape.get("pointwise_bias"),
        dtype=np.float64 if kind == np.float64 else np.float32,
        prepared=prepared,
        **options,
    )
    if fresh:  # before a kernel is built, whose tables may grow with the output
        check_memory("the output", problem.output_shape, problem.dtype)
    return SeparableCall(problem, registry.choose(problem, request), source, unbatched, kind)


def separable_conv1d(
    input: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    depthwise_activation: Activation = None,
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve each channel of a 1-D input by itself, then mix the channels of each pixel.

    z[m, p] = f(sum over t of d[m, t] x[m // M, p*stride + t*dilation - padding] + a[m])
    y[o, p] = g(sum over m of w[o, m] z[m, p] + b[o])

    Parameters
    ----------
    input : array_like, shape (N, C, W) or (C, W)
        Channels last with ``layout="NHWC"``: (N, W, C) or (W, C).
    depthwise_weight : array_like, shape (C*M, 1, KW)
        d; M outputs for each input channel.
    pointwise_weight : array_like, shape (O, C*M, 1)
        w
    depthwise_bias : array_like, shape (C*M,), optional
        a
    pointwise_bias : array_like, shape (O,), optional
        b
    stride, padding, dilation, padding_mode : optional
        Of the depthwise part, as for :func:`conv1d`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    depthwise_activation, activation : str or callable, optional
        f, between the two, and g, applied to the result; as for :func:`conv1d`.
    accuracy, out, backend, num_threads : optional
        As for :func:`conv1d`.

    Returns
    -------
    numpy.ndarray, shape (N, O, OW) or (O, OW)
        What :func:`conv1d` called twice returns, but z is never a whole array.

    Raises
    ------
    ShapeError, ValueError
        If sizes or options do not fit; the message names the argument, the shapes and the rule.
    TypeError
        If an array does not hold real numbers, or `out` has another type.
    UnsupportedError, BackendError
        If the backend asked for cannot run this, or is unknown or absent.

    Notes
    -----
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018 (arXiv:1801.04381).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, d, w = np.ones((1, 2, 6)), np.ones((2, 1, 3)), np.ones((3, 2, 1))
    >>> fastconv.separable_conv1d(x, d, w).shape
    (1, 3, 4)
    """
    return _run("separable_conv1d", locals())


def separable_conv2d(
    input: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    depthwise_activation: Activation = None,
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve each channel of a 2-D input by itself, then mix the channels of each pixel.

    z[m, p] = f(sum over t of d[m, t] x[m // M, p*stride + t*dilation - padding] + a[m])
    y[o, p] = g(sum over m of w[o, m] z[m, p] + b[o])

    Parameters
    ----------
    input : array_like, shape (N, C, H, W) or (C, H, W)
        Channels last with ``layout="NHWC"``: (N, H, W, C) or (H, W, C).
    depthwise_weight : array_like, shape (C*M, 1, KH, KW)
        d; M outputs for each input channel.
    pointwise_weight : array_like, shape (O, C*M, 1, 1)
        w
    depthwise_bias : array_like, shape (C*M,), optional
        a
    pointwise_bias : array_like, shape (O,), optional
        b
    stride, padding, dilation, padding_mode : optional
        Of the depthwise part, as for :func:`conv2d`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    depthwise_activation, activation : str or callable, optional
        f, between the two, and g, applied to the result; as for :func:`conv2d`.
    accuracy, out, backend, num_threads : optional
        As for :func:`conv2d`.

    Returns
    -------
    numpy.ndarray, shape (N, O, OH, OW) or (O, OH, OW)
        What :func:`conv2d` called twice returns, but z is never a whole array.

    Raises
    ------
    ShapeError, ValueError
        If sizes or options do not fit; the message names the argument, the shapes and the rule.
    TypeError
        If an array does not hold real numbers, or `out` has another type.
    UnsupportedError, BackendError
        If the backend asked for cannot run this, or is unknown or absent.

    Notes
    -----
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018 (arXiv:1801.04381).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, d, w = np.ones((1, 2, 6, 6)), np.ones((2, 1, 3, 3)), np.ones((3, 2, 1, 1))
    >>> fastconv.separable_conv2d(x, d, w).shape
    (1, 3, 4, 4)
    """
    return _run("separable_conv2d", locals())


def separable_conv3d(
    input: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    depthwise_activation: Activation = None,
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve each channel of a 3-D input by itself, then mix the channels of each pixel.

    z[m, p] = f(sum over t of d[m, t] x[m // M, p*stride + t*dilation - padding] + a[m])
    y[o, p] = g(sum over m of w[o, m] z[m, p] + b[o])

    Parameters
    ----------
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
        Channels last with ``layout="NHWC"``: (N, D, H, W, C) or (D, H, W, C).
    depthwise_weight : array_like, shape (C*M, 1, KD, KH, KW)
        d; M outputs for each input channel.
    pointwise_weight : array_like, shape (O, C*M, 1, 1, 1)
        w
    depthwise_bias : array_like, shape (C*M,), optional
        a
    pointwise_bias : array_like, shape (O,), optional
        b
    stride, padding, dilation, padding_mode : optional
        Of the depthwise part, as for :func:`conv3d`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    depthwise_activation, activation : str or callable, optional
        f, between the two, and g, applied to the result; as for :func:`conv3d`.
    accuracy, out, backend, num_threads : optional
        As for :func:`conv3d`.

    Returns
    -------
    numpy.ndarray, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        What :func:`conv3d` called twice returns, but z is never a whole array.

    Raises
    ------
    ShapeError, ValueError
        If sizes or options do not fit; the message names the argument, the shapes and the rule.
    TypeError
        If an array does not hold real numbers, or `out` has another type.
    UnsupportedError, BackendError
        If the backend asked for cannot run this, or is unknown or absent.

    Notes
    -----
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018 (arXiv:1801.04381).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, d, w = np.ones((1, 2, 6, 6, 6)), np.ones((2, 1, 3, 3, 3)), np.ones((3, 2, 1, 1, 1))
    >>> fastconv.separable_conv3d(x, d, w).shape
    (1, 3, 4, 4, 4)
    """
    return _run("separable_conv3d", locals())


def plan_separable(
    op: str,
    input_shape: Sequence[int],
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    depthwise_activation: Activation = None,
    activation: Activation = None,
    accuracy: Accuracy = None,
    dtype: Any = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> Plan:
    """Prepare a separable convolution whose weights and shapes stay the same.

    Parameters
    ----------
    op : {"separable_conv1d", "separable_conv2d", "separable_conv3d"}
    input_shape : sequence of int
        Shape of the input, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias : array_like
        As for the function; they are copied.
    stride, padding, dilation, padding_mode, layout, depthwise_activation, activation, accuracy
        As for the function.
    dtype : dtype, optional
        Type of input and result; the weights' if not given.
    backend : str or sequence of str, optional
        As in :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads for the plan's calls.

    Returns
    -------
    Plan
        Printed, it tells how many bytes did not have to be written and read between the two parts.

    Raises
    ------
    ValueError, TypeError
        As the function does, before any work.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> p = fastconv.plan_separable("separable_conv2d", (1, 2, 8, 8), np.ones((2, 1, 3, 3)), np.ones((4, 2, 1, 1)))
    >>> p(np.ones((1, 2, 8, 8)))[0, :, 0, 0]
    array([18., 18., 18., 18.])
    """
    parse_op(op, SEPARABLE)
    arguments = {**locals(), "input": 0.0}
    operands = separable_operands(arguments)
    del operands["input"]
    constant = {name: array.dtype for name, array in operands.items() if array is not None}
    given = stand_in("input_shape", as_shape(input_shape), result_type(constant, dtype))
    request, source = config.as_requested(backend)
    options = {name: arguments[name] for name in OPTIONS}
    call = prepare_separable(
        op, {"input": given, **operands}, options, request, source, prepared=True, dtype=dtype, fresh=True
    )
    threads = None if num_threads is None else config.as_thread_count(num_threads)
    return Plan(call, tuple(operands.values()), threads)

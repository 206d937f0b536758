"""The functions users call: conv, conv_transpose and deform_conv in 1, 2 and 3 dimensions.

Names, order and meaning of the leading arguments are those of ``torch.nn.functional`` and
``torchvision.ops``, so that code moves over unchanged. Each function collects its options in the order of
``call.OPTIONS`` and hands over: finding the kernel is the business of :mod:`fastconv.call`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .call import OPTIONS, as_arrays, find_call

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
]

Ints = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | str
PaddingMode = Literal["zeros", "reflect", "replicate", "circular", "symmetric"]
Layout = Literal["NCHW", "NHWC"]
Accuracy = Literal["default", "high"] | None
Activation = Literal["none", "relu", "relu6", "silu", "gelu", "hardswish"] | Callable[[float], float] | None
BackendName = str | Sequence[str] | None


def _run(
    op: str,
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    offset: ArrayLike | None,
    mask: ArrayLike | None,
    options: tuple,
    out: np.ndarray | None,
    backend: BackendName,
    num_threads: int | None,
) -> np.ndarray:
    if not (type(input) is type(weight) is np.ndarray) or bias is not None or offset is not None:
        arrays: Any = as_arrays(input=input, weight=weight, bias=bias, offset=offset, mask=mask)
        input, weight, bias, offset, mask = arrays
    call = find_call(op, input, weight, bias, offset, mask, options, backend, out is None)
    return call(input, weight, bias, offset, mask, out, num_threads)  # type: ignore[arg-type]


def options_of(arguments: Mapping[str, Any]) -> tuple:
    """Return the options of a call, given its arguments by name, in the order of ``call.OPTIONS``."""
    return tuple(arguments.get(name, default) for name, default in OPTIONS.items())


def conv1d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve (cross-correlate) a 1-D input.

    y[o, p] = sum over c, t of w[o, c, t] x[c, p*stride + t*dilation - padding]

    Parameters
    ----------
    input : array_like, shape (N, C, W) or (C, W)
        Channels last with ``layout="NHWC"``: (N, W, C) or (W, C).
    weight : array_like, shape (O, C/G, KW)
    bias : array_like, shape (O,), optional
    stride : int or 1 ints, optional
        Step between output positions, in input pixels.
    padding : int, 1 ints, 1 (before, after) pairs, "same" or "valid", optional
        Pixels added around the input. ``"same"`` keeps the size (stride 1 only; the odd one goes after).
    dilation : int or 1 ints, optional
        Distance between kernel taps, in input pixels; 1 is dense.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix. G = C is depthwise.
    padding_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}, optional
        What the added pixels hold.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OW) or (O, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    >>> import fastconv
    >>> fastconv.conv1d([[1.0, 2.0, 4.0, 8.0]], [[[1.0, 1.0]]])
    array([[ 3.,  6., 12.]])
    """
    options = (stride, padding, dilation, groups, 0, None, padding_mode, layout, activation, accuracy)
    return _run("conv1d", input, weight, bias, None, None, options, out, backend, num_threads)


def conv2d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve (cross-correlate) a 2-D input.

    y[o, p] = sum over c, t of w[o, c, t] x[c, p*stride + t*dilation - padding]

    Parameters
    ----------
    input : array_like, shape (N, C, H, W) or (C, H, W)
        Channels last with ``layout="NHWC"``: (N, H, W, C) or (H, W, C).
    weight : array_like, shape (O, C/G, KH, KW)
    bias : array_like, shape (O,), optional
    stride : int or 2 ints, optional
        Step between output positions, in input pixels.
    padding : int, 2 ints, 2 (before, after) pairs, "same" or "valid", optional
        Pixels added around the input. ``"same"`` keeps the size (stride 1 only; the odd one goes after).
    dilation : int or 2 ints, optional
        Distance between kernel taps, in input pixels; 1 is dense.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix. G = C is depthwise.
    padding_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}, optional
        What the added pixels hold.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OH, OW) or (O, OH, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> edges = np.array([[[[-1.0, 0.0, 1.0]]]])
    >>> fastconv.conv2d(x, edges)[0, 0]
    array([[2., 2.],
           [2., 2.],
           [2., 2.],
           [2., 2.]])
    """
    options = (stride, padding, dilation, groups, 0, None, padding_mode, layout, activation, accuracy)
    return _run("conv2d", input, weight, bias, None, None, options, out, backend, num_threads)


def conv3d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve (cross-correlate) a 3-D input.

    y[o, p] = sum over c, t of w[o, c, t] x[c, p*stride + t*dilation - padding]

    Parameters
    ----------
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
        Channels last with ``layout="NHWC"``: (N, D, H, W, C) or (D, H, W, C).
    weight : array_like, shape (O, C/G, KD, KH, KW)
    bias : array_like, shape (O,), optional
    stride : int or 3 ints, optional
        Step between output positions, in input pixels.
    padding : int, 3 ints, 3 (before, after) pairs, "same" or "valid", optional
        Pixels added around the input. ``"same"`` keeps the size (stride 1 only; the odd one goes after).
    dilation : int or 3 ints, optional
        Distance between kernel taps, in input pixels; 1 is dense.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix. G = C is depthwise.
    padding_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}, optional
        What the added pixels hold.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 2, 4, 4, 4)), np.ones((3, 2, 2, 2, 2))
    >>> fastconv.conv3d(x, w, stride=2).shape
    (1, 3, 2, 2, 2)
    """
    options = (stride, padding, dilation, groups, 0, None, padding_mode, layout, activation, accuracy)
    return _run("conv3d", input, weight, bias, None, None, options, out, backend, num_threads)


def conv_transpose1d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Ints | Sequence[tuple[int, int]] = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Transpose a 1-D convolution.

    y[o, p*stride + t*dilation - padding] += w[c, o, t] x[c, p] over all c, t, p

    It is the adjoint of :func:`conv1d` with the same weight and options, and so maps sizes the other way.

    Parameters
    ----------
    input : array_like, shape (N, C, W) or (C, W)
        Channels last with ``layout="NHWC"``: (N, W, C) or (W, C).
    weight : array_like, shape (C, O/G, KW)
    bias : array_like, shape (O,), optional
    stride : int or 1 ints, optional
        Distance between the places two neighbouring input pixels are spread around, in output pixels.
    padding : int, 1 ints or 1 (before, after) pairs, optional
        Output pixels cut off at each end.
    output_padding : int or 1 ints, optional
        Output pixels added at the end of each axis; less than stride or dilation.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix.
    dilation : int or 1 ints, optional
        Distance between kernel taps, in output pixels; 1 is dense.
    output_size : int or 1 ints, optional
        The size wanted, in place of `output_padding`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OW) or (O, OW)
        Each size is (size - 1)*stride - padding + dilation*(kernel - 1) + output_padding + 1. The type is
        NumPy's promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    The transpose of the convolution with kernel [1, 2, 3] and stride 2:

    >>> import fastconv
    >>> fastconv.conv_transpose1d([[1.0, 10.0]], [[[1.0, 2.0, 3.0]]], stride=2)
    array([[ 1.,  2., 13., 20., 30.]])
    """
    options = (
        stride,
        padding,
        dilation,
        groups,
        output_padding,
        output_size,
        "zeros",
        layout,
        activation,
        accuracy,
    )
    return _run("conv_transpose1d", input, weight, bias, None, None, options, out, backend, num_threads)


def conv_transpose2d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Ints | Sequence[tuple[int, int]] = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Transpose a 2-D convolution.

    y[o, p*stride + t*dilation - padding] += w[c, o, t] x[c, p] over all c, t, p

    It is the adjoint of :func:`conv2d` with the same weight and options, and so maps sizes the other way.

    Parameters
    ----------
    input : array_like, shape (N, C, H, W) or (C, H, W)
        Channels last with ``layout="NHWC"``: (N, H, W, C) or (H, W, C).
    weight : array_like, shape (C, O/G, KH, KW)
    bias : array_like, shape (O,), optional
    stride : int or 2 ints, optional
        Distance between the places two neighbouring input pixels are spread around, in output pixels.
    padding : int, 2 ints or 2 (before, after) pairs, optional
        Output pixels cut off at each end.
    output_padding : int or 2 ints, optional
        Output pixels added at the end of each axis; less than stride or dilation.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix.
    dilation : int or 2 ints, optional
        Distance between kernel taps, in output pixels; 1 is dense.
    output_size : int or 2 ints, optional
        The size wanted, in place of `output_padding`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OH, OW) or (O, OH, OW)
        Each size is (size - 1)*stride - padding + dilation*(kernel - 1) + output_padding + 1. The type is
        NumPy's promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    Twice the size, each pixel spread over a 2 x 2 block:

    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, 2.0]]]])
    >>> fastconv.conv_transpose2d(x, np.ones((1, 1, 2, 2)), stride=2)[0, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    options = (
        stride,
        padding,
        dilation,
        groups,
        output_padding,
        output_size,
        "zeros",
        layout,
        activation,
        accuracy,
    )
    return _run("conv_transpose2d", input, weight, bias, None, None, options, out, backend, num_threads)


def conv_transpose3d(
    input: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Ints | Sequence[tuple[int, int]] = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Transpose a 3-D convolution.

    y[o, p*stride + t*dilation - padding] += w[c, o, t] x[c, p] over all c, t, p

    It is the adjoint of :func:`conv3d` with the same weight and options, and so maps sizes the other way.

    Parameters
    ----------
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
        Channels last with ``layout="NHWC"``: (N, D, H, W, C) or (D, H, W, C).
    weight : array_like, shape (C, O/G, KD, KH, KW)
    bias : array_like, shape (O,), optional
    stride : int or 3 ints, optional
        Distance between the places two neighbouring input pixels are spread around, in output pixels.
    padding : int, 3 ints or 3 (before, after) pairs, optional
        Output pixels cut off at each end.
    output_padding : int or 3 ints, optional
        Output pixels added at the end of each axis; less than stride or dilation.
    groups : int, optional
        G: input and output channels are split into G groups that do not mix.
    dilation : int or 3 ints, optional
        Distance between kernel taps, in output pixels; 1 is dense.
    output_size : int or 3 ints, optional
        The size wanted, in place of `output_padding`.
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Each size is (size - 1)*stride - padding + dilation*(kernel - 1) + output_padding + 1. The type is
        NumPy's promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv:1603.07285).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 4, 3, 3, 3)), np.ones((4, 2, 2, 2, 2))
    >>> fastconv.conv_transpose3d(x, w, stride=2).shape
    (1, 2, 6, 6, 6)
    """
    options = (
        stride,
        padding,
        dilation,
        groups,
        output_padding,
        output_size,
        "zeros",
        layout,
        activation,
        accuracy,
    )
    return _run("conv_transpose3d", input, weight, bias, None, None, options, out, backend, num_threads)


def deform_conv1d(
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: ArrayLike | None = None,
    *,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve a 1-D input at displaced points.

    y[o, p] = sum over c, t of w[o, c, t] m[t, p] x[c, p*stride + t*dilation - padding + offset[t, p]]

    Between pixels x is interpolated linearly along each axis. A point outside (-1, size) on any axis reads
    zero, as does an infinite one; a NaN offset makes the outputs at its own pixel NaN and no others.

    Parameters
    ----------
    input : array_like, shape (N, C, W) or (C, W)
        Channels last with ``layout="NHWC"``: (N, W, C) or (W, C).
    offset : array_like, shape (N, DG*KW, OW) or without N
        Displacements in input pixels. In offset group g, that of tap t is channel g*KW + t. DG, the number of
        groups of channels with offsets of their own, follows from the shape.
    weight : array_like, shape (O, C/G, KW)
        G, the number of weight groups, follows from the shape.
    bias : array_like, shape (O,), optional
    stride : int or 1 ints, optional
        Step between output positions, in input pixels.
    padding : int, 1 ints, 1 (before, after) pairs, "same" or "valid", optional
        Zeros around the input.
    dilation : int or 1 ints, optional
        Distance between undisplaced kernel taps, in input pixels; 1 is dense.
    mask : array_like, shape (N, DG*KW, OW) or without N, optional
        Factor m for each sampled value (v2); without it 1 (v1).
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input, offset, mask and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OW) or (O, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    v1: Dai et al., "Deformable convolutional networks", 2017 (arXiv:1703.06211). v2: Zhu et al., "Deformable
    ConvNets v2", 2019 (arXiv:1811.11168). The border is that of ``torchvision.ops.deform_conv2d``.

    Examples
    --------
    Every point moved by half a pixel reads the mean of two neighbours:

    >>> import numpy as np, fastconv
    >>> x = np.array([[1.0, 3.0, 5.0]])
    >>> fastconv.deform_conv1d(x, np.full((1, 2), 0.5), np.ones((1, 1, 1)), stride=2)
    array([[2. , 2.5]])
    """
    options = (stride, padding, dilation, None, 0, None, "zeros", layout, activation, accuracy)
    return _run("deform_conv1d", input, weight, bias, offset, mask, options, out, backend, num_threads)


def deform_conv2d(
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: ArrayLike | None = None,
    *,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve a 2-D input at displaced points.

    y[o, p] = sum over c, t of w[o, c, t] m[t, p] x[c, p*stride + t*dilation - padding + offset[t, p]]

    Between pixels x is interpolated linearly along each axis. A point outside (-1, size) on any axis reads
    zero, as does an infinite one; a NaN offset makes the outputs at its own pixel NaN and no others.

    Parameters
    ----------
    input : array_like, shape (N, C, H, W) or (C, H, W)
        Channels last with ``layout="NHWC"``: (N, H, W, C) or (H, W, C).
    offset : array_like, shape (N, DG*2*KH*KW, OH, OW) or without N
        Displacements in input pixels, row before column. In offset group g, channel 2*((g*KH + i)*KW + j) moves
        tap (i, j) along H, the next channel along W. DG, the number of groups of channels with offsets of
        their own, follows from the shape.
    weight : array_like, shape (O, C/G, KH, KW)
        G, the number of weight groups, follows from the shape.
    bias : array_like, shape (O,), optional
    stride : int or 2 ints, optional
        Step between output positions, in input pixels.
    padding : int, 2 ints, 2 (before, after) pairs, "same" or "valid", optional
        Zeros around the input.
    dilation : int or 2 ints, optional
        Distance between undisplaced kernel taps, in input pixels; 1 is dense.
    mask : array_like, shape (N, DG*KH*KW, OH, OW) or without N, optional
        Factor m for each sampled value (v2); without it 1 (v1).
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input, offset, mask and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OH, OW) or (O, OH, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    v1: Dai et al., "Deformable convolutional networks", 2017 (arXiv:1703.06211). v2: Zhu et al., "Deformable
    ConvNets v2", 2019 (arXiv:1811.11168). The border is that of ``torchvision.ops.deform_conv2d``.

    Examples
    --------
    Every point moved one pixel to the right reads its neighbour; outside lies zero:

    >>> import numpy as np, fastconv
    >>> x = np.arange(6.0).reshape(1, 1, 2, 3)
    >>> offset = np.zeros((1, 2, 2, 3))
    >>> offset[:, 1] = 1
    >>> fastconv.deform_conv2d(x, offset, np.ones((1, 1, 1, 1)))[0, 0]
    array([[1., 2., 0.],
           [4., 5., 0.]])
    """
    options = (stride, padding, dilation, None, 0, None, "zeros", layout, activation, accuracy)
    return _run("deform_conv2d", input, weight, bias, offset, mask, options, out, backend, num_threads)


def deform_conv3d(
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: ArrayLike | None = None,
    *,
    layout: Layout = "NCHW",
    activation: Activation = None,
    accuracy: Accuracy = None,
    out: np.ndarray | None = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Convolve a 3-D input at displaced points.

    y[o, p] = sum over c, t of w[o, c, t] m[t, p] x[c, p*stride + t*dilation - padding + offset[t, p]]

    Between pixels x is interpolated linearly along each axis. A point outside (-1, size) on any axis reads
    zero, as does an infinite one; a NaN offset makes the outputs at its own pixel NaN and no others.

    Parameters
    ----------
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
        Channels last with ``layout="NHWC"``: (N, D, H, W, C) or (D, H, W, C).
    offset : array_like, shape (N, DG*3*KD*KH*KW, OD, OH, OW) or without N
        Displacements in input pixels, slowest axis first. In offset group g, channel
        3*(((g*KD + h)*KH + i)*KW + j) moves tap (h, i, j) along D, the next two along H and W. DG, the number
        of groups of channels with offsets of their own, follows from the shape.
    weight : array_like, shape (O, C/G, KD, KH, KW)
        G, the number of weight groups, follows from the shape.
    bias : array_like, shape (O,), optional
    stride : int or 3 ints, optional
        Step between output positions, in input pixels.
    padding : int, 3 ints, 3 (before, after) pairs, "same" or "valid", optional
        Zeros around the input.
    dilation : int or 3 ints, optional
        Distance between undisplaced kernel taps, in input pixels; 1 is dense.
    mask : array_like, shape (N, DG*KD*KH*KW, OD, OH, OW) or without N, optional
        Factor m for each sampled value (v2); without it 1 (v1).
    layout : {"NCHW", "NHWC"}, optional
        Channels first or last, in input, offset, mask and result. Weights are the same in both.
    activation : str or callable, optional
        Applied to the result: ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"`` (exact form) or
        ``"hardswish"``; or a function of one number that numba can compile (numba backend).
    accuracy : {"default", "high"}, optional
        ``"high"`` keeps to kernels with max|err|/max|ref| within 1e-6 in float32; otherwise 4e-6.
    out : numpy.ndarray, optional
        Array of the result's shape and type to write to; must not overlap an input.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.

    Returns
    -------
    numpy.ndarray, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Each size is floor((size + padding - dilation*(kernel - 1) - 1)/stride) + 1. The type is NumPy's
        promotion of the arguments; float16 and bfloat16 are accumulated in float32.

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
    v1: Dai et al., "Deformable convolutional networks", 2017 (arXiv:1703.06211). v2: Zhu et al., "Deformable
    ConvNets v2", 2019 (arXiv:1811.11168). The border is that of ``torchvision.ops.deform_conv2d``.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 2, 4, 4, 4)), np.ones((3, 2, 2, 2, 2))
    >>> fastconv.deform_conv3d(x, np.zeros((1, 24, 3, 3, 3)), w)[0, 0, 0, 0]
    array([16., 16., 16.])
    """
    options = (stride, padding, dilation, None, 0, None, "zeros", layout, activation, accuracy)
    return _run("deform_conv3d", input, weight, bias, offset, mask, options, out, backend, num_threads)

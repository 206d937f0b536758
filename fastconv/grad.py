"""Gradients of the convolution family: the vector-Jacobian products that training needs.

Each function takes the gradient of some scalar L with respect to the output and returns dL/dinput, dL/dweight,
dL/dbias, or those of them that `wrt` names. They take the arguments of the forward functions; names and meaning
are those of :mod:`torch.nn.grad`.

A convolution is linear in its input x and in its weight w. So its gradients are adjoints, and second derivatives
need nothing new: each gradient is again one of these maps, with arguments in other places. With y = conv(x, w),
gx = conv_transpose(gy, w) and gw = weight_grad(gy, x),

==================  =================================  =================================
the gradient of     with respect to its first          with respect to its second
==================  =================================  =================================
y = conv(x, w)      gx, for x                          gw, for w
gx(gy, w)           conv(., w), for gy                 weight_grad(gy, .), for w
gw(gy, x)           conv(x, .), for gy                 conv_transpose(gy, .), for x
==================  =================================  =================================

where the dot stands for the gradient that is handed down. A deformable convolution is linear in input, weight and
mask, but not in the offset, along which it is piecewise linear; at a kink the derivative is the one to the right.

The input's gradient runs on the kernels of the adjoint function, the weight's on kernels of its own
(``fastconv.kernels("conv2d_weight_grad")``), and those of a deformable convolution's operands together on
another (``"deform_conv2d_grad"``). A backend asked for by name runs all of them or refuses; the bias's gradient
is a plain sum. Results are the same bits for any number of threads.
"""

from numpy.typing import ArrayLike

from .call import OPTIONS, as_arrays
from .functional import Accuracy, BackendName, Ints, Layout, Padding, PaddingMode
from .gradcall import ConvGrads, DeformGrads, as_wrt, find_grad_call

__all__ = [
    "ConvGrads",
    "DeformGrads",
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

Wrt = str | tuple[str, ...] | list[str]


def _conv(
    op: str,
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    options: dict,
    wrt: Wrt,
    backend: BackendName,
    num_threads: int | None,
) -> ConvGrads:
    gy, x, w = as_arrays(grad_output=grad_output, input=input, weight=weight)
    ordered = tuple(options.get(name, default) for name, default in OPTIONS.items())
    operands = {"grad_output": gy, "input": x, "weight": w}
    call = find_grad_call(op, operands, ordered, as_wrt(wrt, ConvGrads._fields), backend)
    return call(gy, x, w, num_threads=num_threads)


def _deform(
    op: str,
    grad_output: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    mask: ArrayLike | None,
    options: dict,
    wrt: Wrt,
    backend: BackendName,
    num_threads: int | None,
) -> DeformGrads:
    gy, x, o, w, m = as_arrays(grad_output=grad_output, input=input, offset=offset, weight=weight, mask=mask)
    ordered = tuple(options.get(name, default) for name, default in OPTIONS.items())
    operands = {"grad_output": gy, "input": x, "weight": w, "offset": o, "mask": m}
    call = find_grad_call(op, operands, ordered, as_wrt(wrt, DeformGrads._fields), backend)
    return call(gy, x, o, w, m, num_threads=num_threads)


def conv1d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv1d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OW) or (O, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, W) or (C, W)
    weight : array_like, shape (O, C/G, KW)
    stride, padding, dilation, groups, padding_mode, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> grads = grad.conv1d([[1.0, 10.0]], [[1.0, 2.0, 3.0]], [[[5.0, 7.0]]])
    >>> grads.input, grads.weight, grads.bias
    (array([[ 5., 57., 70.]]), array([[[21., 32.]]]), array([11.]))
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv1d", grad_output, input, weight, options, wrt, backend, num_threads)


def conv2d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv2d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OH, OW) or (O, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, H, W) or (C, H, W)
    weight : array_like, shape (O, C/G, KH, KW)
    stride, padding, dilation, groups, padding_mode, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w = np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3))
    >>> grads = grad.conv2d(np.ones((1, 3, 4, 4)), x, w, padding=1, wrt=("weight", "bias"))
    >>> grads.input is None, grads.weight[0, 0], grads.bias
    (True, array([[ 9., 12.,  9.],
           [12., 16., 12.],
           [ 9., 12.,  9.]]), array([16., 16., 16.]))
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv2d", grad_output, input, weight, options, wrt, backend, num_threads)


def conv3d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv3d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
    weight : array_like, shape (O, C/G, KD, KH, KW)
    stride, padding, dilation, groups, padding_mode, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w = np.ones((1, 2, 4, 4, 4)), np.ones((3, 2, 2, 2, 2))
    >>> grad.conv3d(np.ones((1, 3, 2, 2, 2)), x, w, stride=2, wrt="input").input.shape
    (1, 2, 4, 4, 4)
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv3d", grad_output, input, weight, options, wrt, backend, num_threads)


def conv_transpose1d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv_transpose1d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OW) or (O, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, W) or (C, W)
    weight : array_like, shape (C, O/G, KW)
    stride, padding, output_padding, groups, dilation, output_size, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> grads = grad.conv_transpose1d([[1.0, 10.0, 100.0]], [[1.0, 2.0]], [[[5.0, 7.0]]])
    >>> grads.input, grads.weight, grads.bias
    (array([[ 75., 750.]]), array([[[ 21., 210.]]]), array([111.]))
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
        "output_size": output_size,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv_transpose1d", grad_output, input, weight, options, wrt, backend, num_threads)


def conv_transpose2d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv_transpose2d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OH, OW) or (O, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, H, W) or (C, H, W)
    weight : array_like, shape (C, O/G, KH, KW)
    stride, padding, output_padding, groups, dilation, output_size, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w = np.ones((1, 2, 4, 4)), np.ones((2, 3, 2, 2))
    >>> grads = grad.conv_transpose2d(np.ones((1, 3, 8, 8)), x, w, stride=2, wrt="weight")
    >>> grads.weight[0, 0]
    array([[16., 16.],
           [16., 16.]])
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
        "output_size": output_size,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv_transpose2d", grad_output, input, weight, options, wrt, backend, num_threads)


def conv_transpose3d(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: ArrayLike,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    output_size: Ints | None = None,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "weight", "bias"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> ConvGrads:
    """Return the gradients of :func:`fastconv.conv_transpose3d`.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
    weight : array_like, shape (C, O/G, KD, KH, KW)
    stride, padding, output_padding, groups, dilation, output_size, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"weight"``, ``"bias"``. Of an operand that no wanted gradient
        depends on, only the shape is looked at.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    ConvGrads
        A named tuple of arrays, None for what was not asked for. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w = np.ones((1, 2, 2, 2, 2)), np.ones((2, 3, 2, 2, 2))
    >>> grad.conv_transpose3d(np.ones((1, 3, 4, 4, 4)), x, w, stride=2, wrt="input").input.shape
    (1, 2, 2, 2, 2)
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
        "output_size": output_size,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _conv("conv_transpose3d", grad_output, input, weight, options, wrt, backend, num_threads)


def deform_conv1d(
    grad_output: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "offset", "weight", "bias", "mask"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> DeformGrads:
    """Return the gradients of :func:`fastconv.deform_conv1d`.

    Where the input has a kink, at whole coordinates, the derivative along the offset is the one to the right. A
    NaN offset makes the gradients of its own offsets, of its own mask and of the weight NaN, and gives nothing to
    the input's.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OW) or (O, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, W) or (C, W)
    offset : array_like, shape (N, DG*KW, OW) or without N
    weight : array_like, shape (O, C/G, KW)
    mask : array_like, shape (N, DG*KW, OW) or without N, optional
    stride, padding, dilation, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"offset"``, ``"weight"``, ``"bias"``, ``"mask"``.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    DeformGrads
        A named tuple of arrays, None for what was not asked for or given. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> grads = grad.deform_conv1d([[1.0, 1.0]], [[0.0, 10.0, 30.0]], [[0.5, 0.0]], [[[2.0]]], stride=2)
    >>> grads.input, grads.offset
    (array([[1., 1., 2.]]), array([[ 20., -60.]]))
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _deform(
        "deform_conv1d", grad_output, input, offset, weight, mask, options, wrt, backend, num_threads
    )


def deform_conv2d(
    grad_output: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "offset", "weight", "bias", "mask"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> DeformGrads:
    """Return the gradients of :func:`fastconv.deform_conv2d`.

    Where the input has a kink, at whole coordinates, the derivative along the offset is the one to the right. A
    NaN offset makes the gradients of its own offsets, of its own mask and of the weight NaN, and gives nothing to
    the input's.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OH, OW) or (O, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, H, W) or (C, H, W)
    offset : array_like, shape (N, DG*2*KH*KW, OH, OW) or without N
    weight : array_like, shape (O, C/G, KH, KW)
    mask : array_like, shape (N, DG*KH*KW, OH, OW) or without N, optional
    stride, padding, dilation, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"offset"``, ``"weight"``, ``"bias"``, ``"mask"``.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    DeformGrads
        A named tuple of arrays, None for what was not asked for or given. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w = np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3))
    >>> offset, mask = np.zeros((1, 18, 2, 2)), np.ones((1, 9, 2, 2))
    >>> grads = grad.deform_conv2d(np.ones((1, 3, 2, 2)), x, offset, w, mask=mask, wrt=("weight", "mask"))
    >>> grads.weight.shape, grads.mask[0, 0, 0]
    ((3, 2, 3, 3), array([6., 6.]))
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _deform(
        "deform_conv2d", grad_output, input, offset, weight, mask, options, wrt, backend, num_threads
    )


def deform_conv3d(
    grad_output: ArrayLike,
    input: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: Layout = "NCHW",
    wrt: Wrt = ("input", "offset", "weight", "bias", "mask"),
    backend: BackendName = None,
    num_threads: int | None = None,
    accuracy: Accuracy = None,
) -> DeformGrads:
    """Return the gradients of :func:`fastconv.deform_conv3d`.

    Where the input has a kink, at whole coordinates, the derivative along the offset is the one to the right. A
    NaN offset makes the gradients of its own offsets, of its own mask and of the weight NaN, and gives nothing to
    the input's.

    Parameters
    ----------
    grad_output : array_like, shape (N, O, OD, OH, OW) or (O, OD, OH, OW)
        Gradient with respect to the output. Channels last with ``layout="NHWC"``, as the input.
    input : array_like, shape (N, C, D, H, W) or (C, D, H, W)
    offset : array_like, shape (N, DG*3*KD*KH*KW, OD, OH, OW) or without N
    weight : array_like, shape (O, C/G, KD, KH, KW)
    mask : array_like, shape (N, DG*KD*KH*KW, OD, OH, OW) or without N, optional
    stride, padding, dilation, layout
        As for the function.
    wrt : str or sequence of str, optional
        What to compute: some of ``"input"``, ``"offset"``, ``"weight"``, ``"bias"``, ``"mask"``.
    backend : str or sequence of str, optional
        The backend to run on: a name is strict, a sequence is tried in order. See :func:`fastconv.use_backend`.
    num_threads : int, optional
        Upper limit of threads. Results are the same bits for any number.
    accuracy : {"default", "high"}, optional
        As for the function.

    Returns
    -------
    DeformGrads
        A named tuple of arrays, None for what was not asked for or given. The type is NumPy's promotion of the arguments;
        float16 and bfloat16 are accumulated in float32.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does, before any work.

    Examples
    --------
    >>> from fastconv import grad
    >>> import numpy as np
    >>> x, w, offset = np.ones((1, 1, 3, 3, 3)), np.ones((1, 1, 2, 2, 2)), np.zeros((1, 24, 2, 2, 2))
    >>> grad.deform_conv3d(np.ones((1, 1, 2, 2, 2)), x, offset, w).offset.shape
    (1, 24, 2, 2, 2)
    """
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "layout": layout,
        "accuracy": accuracy,
    }
    return _deform(
        "deform_conv3d", grad_output, input, offset, weight, mask, options, wrt, backend, num_threads
    )

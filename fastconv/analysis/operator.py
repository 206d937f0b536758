"""A convolution as a linear operator of SciPy: products with A and its transpose run on the kernels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..call import as_arrays
from ..grad_plan import plan_grad
from ..plan import plan
from .arguments import problem_of

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["linear_operator"]


def linear_operator(
    op: str,
    input_shape: Sequence[int],
    weight: Any,
    *,
    offset: Any = None,
    mask: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int | None = None,
    output_padding: Any = 0,
    output_size: Any = None,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    accuracy: str | None = None,
    backend: Any = None,
    num_threads: int | None = None,
) -> "LinearOperator":
    """Return a convolution as an operator for the iterative solvers of :mod:`scipy.sparse.linalg`.

    Products with A run a plan of the convolution, products with its transpose a plan of the gradient with respect
    to the input; no matrix is stored.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"`` or ``"deform_conv3d"``.
    input_shape : sequence of int
        Shape of x, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    weight : array_like
        As for the function; copied.
    offset, mask : array_like, optional
        As for the function (deformable only); copied.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout, accuracy
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    backend : str or sequence of str, optional
        As in :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (y.size, x.size)
        Its `dtype` is float32 or float64, by NumPy's promotion of the arrays; vectors are converted to it.

    Raises
    ------
    ShapeError, ValueError, TypeError, UnsupportedError, BackendError
        As the function does.

    See Also
    --------
    matrix : the same map with its entries.

    Examples
    --------
    Find the signal that was blurred:

    >>> import numpy as np, fastconv
    >>> from scipy.sparse.linalg import lsqr
    >>> signal = np.array([0.0, 3.0, 1.0, 4.0, 1.0, 5.0, 0.0])
    >>> A = fastconv.linear_operator("conv1d", (1, 7), np.array([[[0.25, 0.5, 0.2]]]), padding=1)
    >>> found, *_ = lsqr(A, A @ signal, atol=1e-12, btol=1e-12)
    >>> np.round(found, 6) + 0.0
    array([0., 3., 1., 4., 1., 5., 0.])
    """
    from scipy.sparse.linalg import LinearOperator

    options: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "output_padding": output_padding,
        "output_size": output_size,
        "padding_mode": padding_mode,
        "layout": layout,
        "accuracy": accuracy,
    }
    problem, _ = problem_of(op, input_shape, weight, offset=offset, mask=mask, **options)
    dtype = problem.dtype
    if problem.variant == "deform_conv":
        options |= {"offset_groups": problem.offset_groups, "mask": problem.mask}
    (weight,) = as_arrays(weight=weight)
    running = {"dtype": dtype, "backend": backend, "num_threads": num_threads}
    forward = plan(op, input_shape, weight, **options, **running)
    backward = plan_grad(op, input_shape, weight, **options, **running, wrt="input")
    moved = {
        name: np.array(array, dtype)
        for name, array in (("offset", offset), ("mask", mask))
        if array is not None
    }

    def matvec(x: np.ndarray) -> np.ndarray:
        image = np.asarray(x, dtype).reshape(forward.input_shape)
        return forward(image, moved.get("offset"), moved.get("mask")).ravel()

    def rmatvec(y: np.ndarray) -> np.ndarray:
        # A deformable gradient asks for the input, though that with respect to the input does not depend on it.
        input = np.zeros(backward.input_shape, dtype) if moved else None
        gy = np.asarray(y, dtype).reshape(backward.output_shape)
        found = backward(gy, input, moved.get("offset"), moved.get("mask")).input
        assert found is not None
        return found.ravel()

    shape = (int(np.prod(forward.output_shape)), int(np.prod(forward.input_shape)))
    return LinearOperator(shape, matvec=matvec, rmatvec=rmatvec, dtype=dtype)

"""A convolution as a linear operator of SciPy: products with A and its transpose run on the kernels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import grad
from ..call import as_arrays
from ..functional import Accuracy, BackendName, Ints, Layout, Padding, PaddingMode
from ..grad_plan import plan_grad
from ..plan import plan
from ..problem import DCN
from .arguments import problem_of

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["linear_operator"]


def linear_operator(
    op: str,
    input_shape: Sequence[int],
    weight: Any = None,
    *,
    offset: Any = None,
    mask: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int | None = None,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    accuracy: Accuracy = None,
    kernel_size: Ints | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: BackendName = None,
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
        As for the function; copied. ``"dcnv3"`` and ``"dcnv4"`` have none.
    offset, mask : array_like, optional
        As for the function (deformable only); copied.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout, accuracy
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    kernel_size, offset_scale, remove_center : optional
        As for :func:`dcnv3`, where they take the place of a weight.
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
    sampling: dict[str, Any] = {
        "kernel_size": kernel_size,
        "offset_scale": offset_scale,
        "remove_center": remove_center,
    }
    problem, _ = problem_of(op, input_shape, weight, offset=offset, mask=mask, **options, **sampling)
    dtype = problem.dtype
    (weight,) = as_arrays(weight=weight)
    running: dict[str, Any] = {"dtype": dtype, "backend": backend, "num_threads": num_threads}
    points: dict[str, Any] = {"offset_groups": problem.offset_groups} if problem.offset_groups else {}
    forward = plan(op, input_shape, weight, **options, **sampling, **running, **points, mask=problem.mask)
    moved = {
        name: np.array(array, dtype)
        for name, array in (("offset", offset), ("mask", mask))
        if array is not None
    }

    def matvec(x: np.ndarray) -> np.ndarray:
        image = np.asarray(x, dtype).reshape(forward.input_shape)
        return forward(image, moved.get("offset"), moved.get("mask")).ravel()

    # A deformable gradient asks for the input, though that with respect to the input does not depend on it.
    unused = np.zeros(forward.input_shape, dtype) if moved else None
    if op in DCN:
        given = {name: options[name] for name in ("stride", "padding", "dilation", "layout")}

        def gradient(gy: np.ndarray) -> Any:
            function = getattr(grad, op)
            return function(
                gy,
                unused,
                moved["offset"],
                moved["mask"],
                **given,
                **sampling,
                wrt="input",
                backend=backend,
                num_threads=num_threads,
            )
    else:
        planned = plan_grad(
            op, input_shape, weight, **options, **running, **points, mask=problem.mask, wrt="input"
        )

        def gradient(gy: np.ndarray) -> Any:
            return planned(gy, unused, moved.get("offset"), moved.get("mask"))

    def rmatvec(y: np.ndarray) -> np.ndarray:
        gy = np.asarray(y, dtype).reshape(forward.output_shape)
        return gradient(gy).input.ravel()

    shape = (int(np.prod(forward.output_shape)), int(np.prod(forward.input_shape)))
    return LinearOperator(shape, matvec=matvec, rmatvec=rmatvec, dtype=dtype)

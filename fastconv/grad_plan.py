"""Plans for gradients: checks, choice, tables and packed weights made once, for many calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import config
from .call import as_arrays, options_by_name, result_type, stand_in
from .errors import ShapeError
from .functional import Accuracy, BackendName, Ints, Layout, Padding, PaddingMode
from .grad import Wrt
from .gradcall import ConvGrads, DeformGrads, as_wrt, fields_of, prepare_grad
from .plan import Prepared, as_shape, check_applicable, check_weight, deformable_operands
from .problem import DEFORM_CONV, DEFORM_TRANSPOSE, OPS, Problem, as_int, parse_op

__all__ = ["GradPlan", "plan_grad"]


def plan_grad(
    op: str,
    input_shape: Sequence[int],
    weight: Any,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int | None = None,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    offset_groups: int = 1,
    mask: bool = False,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    accuracy: Accuracy = None,
    wrt: Wrt | None = None,
    dtype: Any = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> "GradPlan":
    """Prepare the gradients of a convolution whose weights and shapes stay the same.

    As :func:`plan` does for the forward pass: the checks are done, the tables built and the weights packed now.
    It serves where one set of weights meets many gradients, as in searching an input or in sensitivity maps. In
    training, where weights change, the functions of :mod:`fastconv.grad` remember tables by shape.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"`` or ``"conv_transpose3d"``.
    input_shape : sequence of int
        Shape of the input, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    weight : array_like
        As for the function; copied.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout, accuracy
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    offset_groups : int, optional
        Number of channel groups with offsets of their own (deformable only).
    mask : bool, optional
        Whether calls bring a mask (deformable only).
    wrt : str or sequence of str, optional
        Which gradients calls return; all if not given.
    dtype : dtype, optional
        Type of gradients and input; the weight's if not given.
    backend : str or sequence of str, optional
        As in :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads for the plan's calls.

    Returns
    -------
    GradPlan

    Raises
    ------
    ValueError, TypeError
        As the function does, before any work.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> back = fastconv.plan_grad("conv2d", (1, 1, 4, 4), np.ones((1, 1, 3, 3)), padding=1, wrt="input")
    >>> back(np.ones((1, 1, 4, 4))).input[0, 0, 0]
    array([4., 6., 6., 4.])
    """
    parse_op(op, OPS + DEFORM_TRANSPOSE)
    (weight,) = as_arrays(weight=weight)
    check_weight(op, weight, None)
    deformable = check_applicable(op, output_padding, output_size, offset_groups, mask)
    groups = 1 if groups is None and op not in DEFORM_CONV else groups
    shape = as_shape(input_shape)
    options = (
        *(stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout),
        *(None, accuracy),
    )
    given = stand_in("input_shape", shape, result_type({"weight": weight.dtype}, dtype))
    operands = {"input": given, "weight": weight}
    if deformable:
        pair = deformable_operands(op, given, weight, options, as_int("offset_groups", offset_groups), mask)
        operands |= dict(zip(("offset", "mask"), pair, strict=True))
    output = _output_shape(op, shape, weight.shape, options)
    operands["grad_output"] = stand_in("grad_output", output, given.dtype)
    request, source = config.as_requested(backend)
    wanted = as_wrt(wrt, fields_of(op))
    call = prepare_grad(op, operands, options, wanted, request, source, prepared=True, dtype=dtype)
    return GradPlan(call, operands, None if num_threads is None else config.as_thread_count(num_threads))


def _output_shape(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], options: tuple
) -> tuple[int, ...]:
    unbatched = len(shape) == parse_op(op)[1] + 1
    named = options_by_name(options)
    problem = Problem.create(op, (1, *shape) if unbatched else shape, weight, **named)
    return problem.output_shape[1:] if unbatched else problem.output_shape


class GradPlan(Prepared):
    """Gradients bound to their kernels, packed weights and scratch; made by :func:`plan_grad`.

    Attributes
    ----------
    problem : Problem
        Of the forward operation.
    kernels : tuple of Kernel
    wrt : tuple of str
        The gradients that calls return.
    input_shape, output_shape : tuple of int
        As the user sees them; `output_shape` is that of the gradient the calls take.
    dtype : numpy.dtype

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> back = fastconv.plan_grad("conv1d", (1, 1, 4), np.ones((1, 1, 2)), wrt=("weight", "bias"))
    >>> back(np.ones((1, 1, 3)), np.arange(4.0).reshape(1, 1, 4)).weight
    array([[[3., 6.]]])
    """

    def __init__(self, call: Any, operands: dict[str, np.ndarray], num_threads: int | None):
        self.problem: Problem = call.problem
        self.kernels = tuple(part.kernel for part in call.parts.values())
        self.wrt = tuple(sorted(call.wrt))
        self.dtype = call.result_dtype
        self.input_shape, self.output_shape = operands["input"].shape, operands["grad_output"].shape
        self._call = call
        self._num_threads = num_threads
        self._shapes = {name: array.shape for name, array in operands.items() if array is not None}
        self._weight: np.ndarray | None = np.array(operands["weight"], self.problem.dtype, order="C")
        part = call.parts.get("input")
        alone = "samples" not in call.parts  # else the weight is needed as it is, too
        if part is not None and alone and self.problem.batch and hasattr(part.executable, "bind"):
            part.executable = part.executable.bind(self._weight, None)
            self._weight = None  # packed: no second copy is kept

    def __call__(
        self,
        grad_output: Any,
        input: Any = None,
        offset: Any = None,
        mask: Any = None,
        *,
        out: Any = None,
        num_threads: int | None = None,
    ) -> ConvGrads | DeformGrads:
        """Return the gradients for one gradient of the output.

        Parameters
        ----------
        grad_output : array_like
            Of the planned output's shape, of the planned type or one that converts to it without loss.
        input : array_like, optional
            May be left out where only the gradients of the input and the bias are wanted.
        offset, mask : array_like, optional
            For a deformable convolution, as for the function.
        out : ConvGrads, optional
            Arrays to write gradients to, None where a new one will do; not for a deformable convolution.
        num_threads : int, optional
            Upper limit of threads for this call.

        Returns
        -------
        ConvGrads or DeformGrads
        """
        deformable = self.problem.offset_groups > 0
        given = {"grad_output": grad_output, "input": input, "offset": offset, "mask": mask}
        needed = {"grad_output", *(self._shapes if deformable else ())} - {"weight"}
        needed |= {"input"} if deformable or "weight" in self.wrt else set()
        arrays = {name: self._check(name, given[name], name in needed) for name in given}
        threads = self._num_threads if num_threads is None else num_threads
        if deformable:
            if out is not None:
                raise TypeError("the gradients of a deformable convolution take no out")
            x, o, m = (arrays[name] for name in ("input", "offset", "mask"))
            return self._call(arrays["grad_output"], x, o, self._weight, m, num_threads=threads)
        return self._call(arrays["grad_output"], arrays["input"], self._weight, out, threads)

    def _check(self, name: str, value: Any, needed: bool) -> np.ndarray | None:
        if value is None:
            if needed:
                raise TypeError(f"this plan needs {name} ({self.problem})")
            return None
        if name not in self._shapes:
            raise TypeError(f"this plan takes no {name} ({self.problem})")
        (array,) = as_arrays(**{name: value})
        assert array is not None
        if array.shape != self._shapes[name]:
            raise ShapeError(
                f"{name} must have the planned shape {self._shapes[name]}, got {array.shape} (plan for {self.problem})"
            )
        if not np.can_cast(array.dtype, self.dtype, "safe"):
            raise TypeError(
                f"{name} must have the planned dtype {self.dtype} or convert to it without loss, got {array.dtype}"
            )
        return array

    def __repr__(self) -> str:
        kernels = ", ".join(f"{kernel.backend} {kernel.name}" for kernel in self.kernels)
        return f"<fastconv.GradPlan {self.problem} with respect to {', '.join(self.wrt)} on {kernels or 'no kernel'}>"

"""Plans: a convolution prepared once and run many times."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Self

import numpy as np

from . import config, device
from .call import Call, as_arrays, options_by_name, prepare, required, result_type, stand_in
from .describe import describe
from .errors import ShapeError
from .functional import Accuracy, Activation, BackendName, Ints, Layout, Padding, PaddingMode
from .problem import CONV_TRANSPOSE, DCN, DEFORM_CONV, DEFORM_TRANSPOSE, Problem, as_int, parse_op

__all__ = ["Plan", "Prepared", "as_shape", "check_applicable", "check_weight", "deformable_operands", "plan"]


def plan(
    op: str,
    input_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
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
    activation: Activation = None,
    accuracy: Accuracy = None,
    kernel_size: Ints | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    dtype: Any = None,
    backend: BackendName = None,
    num_threads: int | None = None,
) -> "Plan":
    """Prepare a convolution whose weights and shapes stay the same.

    The checks are done, the tables built and the weights packed now; a call of the plan only computes. With
    ``out=`` it allocates nothing.

    Parameters
    ----------
    op : str
        Name of the function, such as ``"conv2d"`` or ``"deform_conv3d"``.
    input_shape : sequence of int
        Shape of the input, (N, C, *spatial) or (C, *spatial), or channels last with ``layout="NHWC"``.
    weight, bias : array_like
        As for the function. Both are copied: later changes to the arrays have no effect on the plan. None for
        ``"dcnv3"`` and ``"dcnv4"``, which have none.
    stride, padding, dilation, groups, output_padding, output_size, padding_mode, layout, activation, accuracy
        As for the function. `groups` is 1 if not given (for a deformable convolution: as the shapes say).
    offset_groups : int, optional
        Number of channel groups with offsets of their own (deformable only).
    mask : bool, optional
        Whether calls bring a mask (deformable only; ``"dcnv3"`` and ``"dcnv4"`` always have one).
    kernel_size, offset_scale, remove_center : optional
        As for :func:`dcnv3`, where they take the place of a weight. Its `center_feature_scale` is left to the caller.
    dtype : dtype, optional
        Type of input and result; the weight's if not given, float32 if there is none.
    backend : str or sequence of str, optional
        As in :func:`use_backend`.
    num_threads : int, optional
        Upper limit of threads for the plan's calls.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        As the function does, before any work.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> blur = fastconv.plan("conv2d", (1, 1, 4, 4), np.ones((1, 1, 3, 3)), padding=1)
    >>> blur(np.ones((1, 1, 4, 4)))[0, 0, 0]
    array([4., 6., 6., 4.])
    """
    parse_op(op)
    weight, bias = as_arrays(weight=weight, bias=bias)
    check_weight(op, weight, kernel_size)
    shape = as_shape(input_shape)
    deformable = check_applicable(op, output_padding, output_size, offset_groups, mask)
    if groups is None and op not in DEFORM_CONV:
        groups = 1
    options = (
        stride,
        padding,
        dilation,
        groups,
        output_padding,
        output_size,
        padding_mode,
        layout,
        activation,
        accuracy,
        kernel_size,
        offset_scale,
        remove_center,
    )
    request, source = config.as_requested(backend)
    constant = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    constant = {
        name: np.dtype(np.float32) if array is None else array.dtype for name, array in constant.items()
    }
    given = stand_in("input_shape", shape, result_type(constant, dtype))
    offset = modulation = None
    if deformable:
        offset, modulation = deformable_operands(
            op, given, weight, options, as_int("offset_groups", offset_groups), mask or op in DCN
        )
    call = prepare(
        op,
        given,
        weight,
        bias,
        offset,
        modulation,
        options,
        request,
        source,
        prepared=True,
        dtype=dtype,
        fresh=True,
    )
    return Plan(call, (weight, bias), None if num_threads is None else config.as_thread_count(num_threads))


def check_applicable(op: str, output_padding: Any, output_size: Any, offset_groups: Any, mask: Any) -> bool:
    """Raise if an option belongs to other operations; return whether this one is deformable."""
    if not isinstance(mask, (bool, np.bool_)):
        raise TypeError(
            f"mask must be True or False (the mask itself goes to the plan's calls), got {type(mask).__name__}"
        )
    sized = np.any(np.asarray(output_padding) != 0) or output_size is not None
    if sized and op not in CONV_TRANSPOSE + DEFORM_TRANSPOSE:
        raise ValueError(f"output_padding and output_size belong to transposed convolutions, not to {op}")
    deformable = op in DEFORM_CONV + DEFORM_TRANSPOSE + DCN
    if (mask or offset_groups != 1) and not deformable:
        raise ValueError(f"mask and offset_groups belong to deformable convolutions, not to {op}")
    return deformable


def check_weight(op: str, weight: np.ndarray | None, kernel_size: Any) -> None:
    """Raise TypeError unless there is a weight, or a kernel size where that takes its place."""
    if (weight is None) == ("weight" in required(op)):
        wanted = "an array" if weight is None else f"None: {op} has none"
        raise TypeError(f"weight must be {wanted}, got {'None' if weight is None else weight.shape}")
    if (kernel_size is None) == (weight is None):
        wanted = "given" if weight is None else f"that of the weight {weight.shape}, which {op} has"
        raise TypeError(f"kernel_size must be {wanted}, got {kernel_size!r}")


def as_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of the input as a tuple of integers."""
    if getattr(value, "ndim", 1) != 1:
        raise TypeError(
            f"input_shape must be a sequence of integers, got an array of shape {np.shape(value)}"
        )
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"input_shape must be a sequence of integers, got {value!r}")
    return tuple(as_int("input_shape", size) for size in value)


def deformable_operands(
    op: str, input: np.ndarray, weight: np.ndarray | None, options: tuple, offset_groups: int, mask: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return arrays without memory that have the shapes of the offset and the mask to come."""
    if offset_groups < 1:
        raise ValueError(f"offset_groups must be at least 1, got {offset_groups}")
    unbatched = input.ndim == parse_op(op)[1] + 1
    batched = (1, *input.shape) if unbatched else input.shape
    # Made for its output size.
    weight_shape = None if weight is None else weight.shape
    problem = Problem.create(op, batched, weight_shape, **options_by_name(options))
    size = problem.input_size if problem.transposed else problem.output_size
    shapes = []
    for channels in (offset_groups * problem.points * problem.ndim, offset_groups * problem.points):
        shape = (channels, *size) if problem.layout == "NCHW" else (*size, channels)
        shapes.append(shape if unbatched else (problem.batch, *shape))
    offset = stand_in("offset", shapes[0], input.dtype)
    return offset, stand_in("mask", shapes[1], input.dtype) if mask else None


class Prepared:
    """What is prepared once: it never changes, so a copy of it is itself; it belongs to the process that made it."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled: its weights are packed for this machine; "
            "make it in the process that runs it"
        )


class Plan(Prepared):
    """A convolution bound to its kernel, packed weights and scratch; made by :func:`plan` or :func:`plan_separable`.

    Attributes
    ----------
    problem : Problem
    kernel : Kernel
    input_shape, output_shape : tuple of int
        As the user sees them.
    dtype : numpy.dtype
        Type of the input and the result.

    Notes
    -----
    Any number of threads may call one plan at once. It never changes, so ``copy.deepcopy`` returns the plan itself;
    it cannot be pickled.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> p = fastconv.plan("conv1d", (1, 1, 4), np.ones((1, 1, 2), np.float32))
    >>> out = np.empty(p.output_shape, np.float32)
    >>> p(np.ones((1, 1, 4), np.float32), out=out) is out
    True
    """

    def __init__(self, call: Call, constant: Sequence[np.ndarray | None], num_threads: int | None):
        self.problem: Problem = call.problem
        self.kernel = call.kernel
        self.dtype = call.result_dtype
        self.input_shape = self.problem.input_shape[1:] if call.unbatched else self.problem.input_shape
        self.output_shape = self.problem.output_shape[1:] if call.unbatched else self.problem.output_shape
        self._num_threads = num_threads
        self._call = call
        self._deformable = self.problem.offset_groups > 0
        kept = [
            None if array is None else np.array(array, self.problem.dtype, order="C") for array in constant
        ]
        if kept[0] is not None and self.problem.batch and hasattr(call.executable, "bind"):
            call.executable = call.executable.bind(*kept)
            kept = [None] * len(kept)  # packed: no second copy is kept
        self._weight, self._bias, *self._pointwise = kept

    def __call__(
        self,
        input: Any,
        offset: Any = None,
        mask: Any = None,
        *,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> np.ndarray:
        """Run the convolution on one input.

        Parameters
        ----------
        input : array_like
            Of the planned shape; of the planned type or one that converts to it without loss.
        offset, mask : array_like, optional
            For a deformable convolution, as for the function.
        out : numpy.ndarray, optional
            Array for the result; must not overlap an input.
        num_threads : int, optional
            Upper limit of threads for this call.

        Returns
        -------
        numpy.ndarray
            `out` if given.
        """
        call = self._call
        if type(input) is not np.ndarray:
            if device.on_device(input):
                return self._run_on_device(input, offset, mask, out)
            (input,) = as_arrays(input=input)
        if input.shape != self.input_shape or input.dtype != self.dtype:
            self._check("input", input, self.input_shape)
        if self._deformable or offset is not None or mask is not None:
            offset, mask = self._check_deformable(offset, mask)
        elif self._pointwise:
            offset, mask = self._pointwise
        return call(
            input,
            self._weight,
            self._bias,
            offset,
            mask,
            out,
            self._num_threads if num_threads is None else num_threads,
        )

    def _run_on_device(self, input: Any, offset: Any, mask: Any, out: Any) -> Any:
        if tuple(input.shape) != self.input_shape:
            raise ShapeError(
                f"input must have the planned shape {self.input_shape}, got {tuple(input.shape)} (plan for {self.problem})"
            )
        if (offset is not None) != self._deformable or (mask is not None) != self.problem.mask:
            raise TypeError(
                f"a call of this plan takes an offset and a mask as it was planned ({self.problem})"
            )
        return device.run_call(self._call, (input, self._weight, self._bias, offset, mask), out)

    def _check(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise ShapeError(
                f"{name} must have the planned shape {shape}, got {array.shape} (plan for {self.problem})"
            )
        if not np.can_cast(array.dtype, self.dtype, "safe"):
            raise TypeError(
                f"{name} must have the planned dtype {self.dtype} or convert to it without loss, got {array.dtype}"
            )

    def _check_deformable(self, offset: Any, mask: Any) -> list[np.ndarray | None]:
        problem = self.problem
        if not self._deformable:
            raise TypeError(f"a plan for {problem.op} takes no offset and no mask")
        if offset is None or (mask is None) == problem.mask:
            wanted = "an offset and a mask" if problem.mask else "an offset and no mask"
            raise TypeError(f"this plan takes {wanted} ({problem})")
        arrays = as_arrays(offset=offset, mask=mask)
        for name, array, shape in zip(
            ("offset", "mask"), arrays, (problem.offset_shape, problem.mask_shape), strict=True
        ):
            if array is not None:
                shape = shape if problem.layout == "NCHW" else (shape[0], *shape[2:], shape[1])
                self._check(name, array, shape[1:] if self._call.unbatched else shape)
        return arrays

    def __str__(self) -> str:
        return describe(self._call, config.thread_count(self._num_threads))

    def __repr__(self) -> str:
        return f"<fastconv.Plan {self.problem} on {self.kernel.backend} {self.kernel.name}>"

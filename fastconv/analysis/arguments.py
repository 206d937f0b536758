"""From the arguments of a convolution, as far as they are there before its data, to the problem they describe."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..call import OPTIONS, array_or_stand_in, as_arrays, create_problem, required, result_type, stand_in
from ..plan import as_shape, check_weight, deformable_operands
from ..problem import CONV_TRANSPOSE, DCN, DEFORM_CONV, DEFORM_TRANSPOSE, Problem, as_int, parse_op

__all__ = ["as_image_operands", "problem_of"]


def problem_of(
    op: str,
    input_shape: Sequence[int],
    weight: Any,
    bias: Any = None,
    offset: Any = None,
    mask: Any = None,
    *,
    offset_groups: int | None = None,
    dtype: Any = None,
    **options: Any,
) -> tuple[Problem, bool]:
    """Return the problem of a call, and whether its input comes without a batch.

    Weight, bias, offset and mask may be shapes in place of arrays; they are then taken as float32. A deformable
    convolution whose offset is not there yet is described by `offset_groups`.
    """
    _, ndim = parse_op(op)
    for name in ("output_padding", "output_size"):
        if op not in CONV_TRANSPOSE + DEFORM_TRANSPOSE and np.any(
            np.asarray(options.get(name, OPTIONS[name]) or 0) != 0
        ):
            raise ValueError(f"{name} belongs to transposed convolutions, not to {op}")
    deformable = op in DEFORM_CONV + DEFORM_TRANSPOSE + DCN
    if not deformable and (offset is not None or mask is not None or offset_groups is not None):
        raise ValueError(f"offset and mask belong to deformable convolutions, not to {op}")
    given = {"weight": weight, "bias": bias, "offset": offset, "mask": mask}
    names, values = zip(*((n, array_or_stand_in(n, v)) for n, v in given.items()), strict=True)
    operands: dict[str, Any] = dict(
        zip(names, as_arrays(**dict(zip(names, values, strict=True))), strict=True)
    )
    kinds = {name: array.dtype for name, array in operands.items() if array is not None}
    kind = result_type(kinds or {"input": np.dtype(np.float32)}, dtype)
    operands["input"] = stand_in("input_shape", as_shape(input_shape), kind)
    named = OPTIONS | options
    check_weight(op, operands["weight"], named["kernel_size"])
    if named["groups"] is None and op not in DEFORM_CONV:
        named["groups"] = 1
    if deformable and offset_groups is None:
        for name in required(op):
            if operands[name] is None:
                raise TypeError(f"{name} must be an array, got None")
    if deformable and offset is None:
        ordered = tuple(named[name] for name in OPTIONS)
        count = as_int("offset_groups", offset_groups)
        operands["offset"], masked = deformable_operands(
            op, operands["input"], operands["weight"], ordered, count, mask=op in DCN
        )
        operands["mask"] = masked if operands["mask"] is None else operands["mask"]
    unbatched = operands["input"].ndim == ndim + 1
    return create_problem(op, operands, unbatched, kind, named, prepared=True), unbatched


def as_image_operands(problem: Problem, unbatched: bool, array: Any) -> np.ndarray | None:
    """Return an offset or a mask batched, channels first, in float64."""
    if array is None:
        return None
    array = np.asarray(array, np.float64)
    array = array[None] if unbatched else array
    return array if problem.layout == "NCHW" else np.moveaxis(array, -1, 1)

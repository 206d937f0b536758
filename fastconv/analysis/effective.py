"""How much each input pixel matters to an output pixel, with the weights that a network has."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..problem import as_ints

__all__ = ["effective_field"]


def effective_field(plans: Sequence[Any], at: Any = None) -> np.ndarray:
    """Return the size of the gradient of one output pixel with respect to each input pixel.

    Parameters
    ----------
    plans : sequence of GradPlan
        From :func:`fastconv.plan_grad` with ``wrt="input"``, first that of the layer that reads the input. No
        deformable ones: their gradients need the data.
    at : sequence of int, optional
        The output pixel; the middle one if not given.

    Returns
    -------
    numpy.ndarray, shape (D, H, W), (H, W) or (W,)
        Absolute values of the gradient of the sum of the pixel's output channels, summed over input channels (of
        the first image).

    Notes
    -----
    Luo et al., "Understanding the effective receptive field in deep convolutional neural networks", 2016.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.analysis import effective_field
    >>> layer = fastconv.plan_grad("conv1d", (1, 7), np.ones((1, 1, 3)), padding=1, wrt="input")
    >>> effective_field([layer, layer])
    array([0., 1., 2., 3., 2., 1., 0.])
    """
    last = plans[-1].problem
    size = last.output_size
    at = as_ints("at", tuple(n // 2 for n in size) if at is None else at, last.ndim, 0)
    if any(q >= n for q, n in zip(at, size, strict=True)):
        raise ShapeError(f"at must lie inside the output of size {size}, got {at}")
    grad = np.zeros(last.output_shape, plans[-1].dtype)
    grad[(0, slice(None), *at) if last.layout == "NCHW" else (0, *at, slice(None))] = 1
    for plan in reversed(plans):
        if plan.problem.variant == "deform_conv":
            raise TypeError(f"plans must not be deformable: their gradients need the data ({plan.problem})")
        if plan.problem.output_shape != grad.shape:
            raise ShapeError(
                f"a plan with output {plan.problem.output_shape} is followed by one with input {grad.shape}"
            )
        grad = plan(grad.reshape(plan.output_shape)).input.reshape(plan.problem.input_shape)
    return np.abs(grad[0]).sum(axis=0 if plans[0].problem.layout == "NCHW" else -1)

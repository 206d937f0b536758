"""y = g(w z + b) at each pixel, where z = f(conv(x, d) + a) has the channels one by one."""

import numpy as np

from ...activation import apply
from ...separable_problem import SeparableProblem
from .conv import conv


def separable_conv(
    problem: SeparableProblem, x: np.ndarray, d: np.ndarray, a: np.ndarray | None, w: np.ndarray
) -> np.ndarray:
    """Return the convolution of x (N, C, *size) with d (C*M, 1, *kernel) and w (O, C*M, 1, ...), without b and g."""
    depthwise, _ = problem.parts()
    z = conv(depthwise, x, d)
    if a is not None:
        z += a.reshape(-1, *(1,) * problem.ndim)
    z = apply(problem.depthwise_activation, z)
    return np.einsum("om,nm...->no...", w.reshape(w.shape[:2]), z)

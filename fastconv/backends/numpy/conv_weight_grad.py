"""dW[t] = sum over images and p of gy[p] x[p*stride + t*dilation - padding]: what each weight multiplied."""

import numpy as np

from ...problem import Problem
from .conv import channels, pad, window


def conv_weight_grad(problem: Problem, x: np.ndarray, grad_output: np.ndarray) -> np.ndarray:
    """Return the gradient (O, C/G, *kernel) from x (N, C, *size) and grad_output (N, O, *output size)."""
    x = pad(problem, x)
    grad_weight = np.zeros(problem.weight_shape)
    summed = [0, *range(2, x.ndim)]  # images and pixels
    for tap in np.ndindex(*problem.kernel_size):
        for g in range(problem.groups):
            inputs, outputs = (
                channels(problem.in_channels, problem.groups, g),
                channels(problem.out_channels, problem.groups, g),
            )
            grad_weight[(outputs, slice(None), *tap)] = np.tensordot(
                grad_output[:, outputs],
                x[(slice(None), inputs, *window(problem, tap))],
                axes=(summed, summed),
            )
    return grad_weight

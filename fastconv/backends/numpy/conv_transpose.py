"""The adjoint of a convolution: y[p*stride + t*dilation - padding] += W[t]^T x[p]."""

import numpy as np

from ...problem import Problem
from .conv import channels


def conv_transpose(problem: Problem, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the transposed convolution of x (N, C, *size) with weight (C, O/G, *kernel), without bias."""
    padded = tuple(
        before + out + after
        for (before, after), out in zip(problem.padding, problem.output_size, strict=True)
    )
    y = np.zeros((problem.batch, problem.out_channels, *padded))
    for tap in np.ndindex(*problem.kernel_size):
        window = tuple(
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, d, s, size in zip(tap, problem.dilation, problem.stride, problem.input_size, strict=True)
        )
        for g in range(problem.groups):
            inputs, outputs = (
                channels(problem.in_channels, problem.groups, g),
                channels(problem.out_channels, problem.groups, g),
            )
            y[(slice(None), outputs, *window)] += np.einsum(
                "co,nc...->no...", weight[(inputs, slice(None), *tap)], x[:, inputs]
            )
    inside = tuple(
        slice(before, before + out)
        for (before, _), out in zip(problem.padding, problem.output_size, strict=True)
    )
    return y[(slice(None), slice(None), *inside)]

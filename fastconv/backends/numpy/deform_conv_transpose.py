"""The adjoint of a deformable convolution: y[q] += share(q, P) m[t, p] W[t]^T x[p] over all taps t and pixels p.

P = p*stride + t*dilation - padding + offset[t, p], and share(q, P) is what linear interpolation at P takes of pixel
q. A NaN point gives nothing to any pixel.
"""

from dataclasses import replace
from itertools import product

import numpy as np

from ...problem import Problem
from .conv import channels
from .deform_conv import regular_points
from .deform_conv_grad import corners


def deform_conv_transpose(
    problem: Problem, x: np.ndarray, weight: np.ndarray, offset: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Return the transposed deformable convolution of x (N, C, *size) with weight (C, O/G, *kernel), without bias."""
    n, dg, taps, size = problem.batch, problem.offset_groups, problem.taps, problem.input_size
    offset = offset.reshape(n, dg, taps, problem.ndim, *size)
    mask = np.ones((n, dg, taps, *size)) if mask is None else mask.reshape(n, dg, taps, *size)
    mirrored = replace(problem, output_size=size)  # its points belong to the pixels of the input
    y = np.zeros((n, problem.out_channels, *problem.output_size))
    spread = np.empty((problem.out_channels, *size))
    for i, (t, tap) in product(range(n), enumerate(np.ndindex(*problem.kernel_size))):
        for g in range(problem.groups):
            inputs, outputs = (
                channels(problem.in_channels, problem.groups, g),
                channels(problem.out_channels, problem.groups, g),
            )
            spread[outputs] = np.einsum("co,c...->o...", weight[(inputs, slice(None), *tap)], x[i, inputs])
        for d in range(dg):
            outputs = channels(problem.out_channels, dg, d)
            channel = np.arange(outputs.start, outputs.stop).reshape(-1, *(1,) * problem.ndim)
            points = regular_points(mirrored, tap) + offset[i, d, t]
            for q, exists, share, _ in corners(points, problem.output_size):
                part = np.where(exists, share * mask[i, d, t] * spread[outputs], 0.0)
                np.add.at(y[i], (channel, *q), part)
    return y

"""y[p] = sum over taps t of W[t] x[p*stride + t*dilation - padding]."""

import numpy as np

from ...problem import Problem

_PAD_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


def conv(problem: Problem, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the convolution of x (N, C, *size) with weight (O, C/G, *kernel), without bias."""
    x = pad(problem, x)
    y = np.zeros((problem.batch, problem.out_channels, *problem.output_size))
    for tap in np.ndindex(*problem.kernel_size):
        for g in range(problem.groups):
            inputs, outputs = (
                channels(problem.in_channels, problem.groups, g),
                channels(problem.out_channels, problem.groups, g),
            )
            y[:, outputs] += np.einsum(
                "oc,nc...->no...",
                weight[(outputs, slice(None), *tap)],
                x[(slice(None), inputs, *window(problem, tap))],
            )
    return y


def channels(count: int, groups: int, g: int) -> slice:
    """Return the channels of group g when `count` of them are split into equal groups."""
    return slice(g * count // groups, (g + 1) * count // groups)


def pad(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Return x with its padding around it."""
    return np.pad(x, ((0, 0), (0, 0), *problem.padding), mode=_PAD_MODES[problem.padding_mode])  # type: ignore[call-overload]


def window(problem: Problem, tap: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the pixels of the padded input that one tap meets."""
    return tuple(
        slice(t * d, t * d + (out - 1) * s + 1, s)
        for t, d, s, out in zip(tap, problem.dilation, problem.stride, problem.output_size, strict=True)
    )

"""SciPy: one channel a group by fast Fourier transform, which is all it has for stacks of pictures."""

import numpy as np

from ..case import Case, Inapplicable, Runner
from . import STATELESS, Implementation


def build(case: Case, threads: int) -> Runner:
    """Return a call of `scipy.signal.fftconvolve` over all channels at once."""
    from scipy import fft, signal

    problem = case.problem
    same = all(
        before == after == (k - 1) / 2
        for (before, after), k in zip(problem.padding, problem.kernel_size, strict=True)
    )
    depthwise = problem.in_channels == problem.out_channels == problem.groups
    if problem.variant != "conv" or not (depthwise and same) or max(*problem.stride, *problem.dilation) > 1:
        raise Inapplicable(
            "only one channel a group, stride and dilation 1, the output as large as the input"
        )
    axes = tuple(range(2, 2 + problem.ndim))
    x, weight = case.operands["input"], case.operands["weight"]
    turned = np.ascontiguousarray(np.flip(weight[:, 0], tuple(range(1, weight.ndim - 1))))[None]

    def call() -> np.ndarray:
        with fft.set_workers(threads):
            return signal.fftconvolve(x, turned, mode="same", axes=axes)

    return Runner(call, lambda y: [y])


IMPLEMENTATIONS = [
    Implementation("scipy.fftconvolve", "scipy", "scipy", STATELESS, "NCHW", build, "pip install scipy")
]

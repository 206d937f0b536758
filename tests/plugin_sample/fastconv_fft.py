"""A backend of another distribution: conv2d with stride 1 as a product of Fourier transforms.

It takes what fits the one formula below and refuses everything else with a reason, as any backend does.
"""

from collections.abc import Callable

import numpy as np
from scipy import fft

from fastconv import Kernel, Problem

NANOSECONDS_PER_VALUE = 20  # of a transform, on one core


def refuse(problem: Problem) -> str | None:
    if max(problem.stride) > 1:
        return "the stride is not 1"
    if max(problem.dilation) > 1:
        return "the kernel is dilated"
    if problem.groups > 1:
        return "there are groups"
    if problem.padding_mode != "zeros":
        return "the padding is not of zeros"
    if problem.layout != "NCHW":
        return "the layout is not NCHW"
    if problem.activation not in (None, "relu"):
        return "the activation is neither absent nor relu"
    return None


def cost(problem: Problem) -> float:
    planes = problem.in_channels * problem.out_channels * problem.batch
    return planes * np.prod(transform_size(problem)) * NANOSECONDS_PER_VALUE * 1e-9


def transform_size(problem: Problem) -> tuple[int, ...]:
    """Return a fast size that the padded input fits in, so that the circular convolution does not wrap."""
    return tuple(
        fft.next_fast_len(size + before + after, real=True)
        for size, (before, after) in zip(problem.input_size, problem.padding, strict=True)
    )


def build(problem: Problem) -> Callable[..., None]:
    size = transform_size(problem)
    inside = tuple(slice(0, out) for out in problem.output_size)
    padding = ((0, 0), (0, 0), *problem.padding)

    def run(output, input, weight, bias, offset, mask, threads):
        x = fft.rfft2(np.pad(input, padding), size, workers=threads)
        w = fft.rfft2(weight, size, workers=threads).conj()  # the conjugate correlates
        y = fft.irfft2(np.einsum("nchw,ochw->nohw", x, w), size, workers=threads)
        y = y[(slice(None), slice(None), *inside)]
        if bias is not None:
            y = y + bias[:, None, None]
        output[...] = np.maximum(y, 0) if problem.activation == "relu" else y

    return run


class FFT:
    name = "fft"
    kernels = (Kernel("conv_fft", "fft", ("conv2d",), refuse, cost, build),)

    def unavailable(self) -> str | None:
        return None


backend = FFT()

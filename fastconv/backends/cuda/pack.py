"""What prepares arrays: weights in the order they are staged, [group][tap][input channel][output channel]; zeros."""

from functools import cache
from typing import Any

from numba import cuda

from ...problem import Problem

__all__ = ["clear", "pack", "pack_form"]


@cache
def pack() -> Any:
    """Return the kernel ``(packed, weight, taps, cg, og, step_group, step_in, step_out)``."""

    @cuda.jit
    def kernel(packed, weight, taps, cg, og, step_group, step_in, step_out):
        for to in range(cuda.grid(1), packed.shape[0], cuda.gridsize(1)):
            o, rest = to % og, to // og
            c, rest = rest % cg, rest // cg
            tap, group = rest % taps, rest // taps
            packed[to] = weight[group * step_group + c * step_in + o * step_out + tap]

    return kernel


@cache
def clear() -> Any:
    """Return the kernel ``(array)`` that fills a flat array with zeros."""

    @cuda.jit
    def kernel(array):
        for i in range(cuda.grid(1), array.shape[0], cuda.gridsize(1)):
            array[i] = 0

    return kernel


def pack_form(problem: Problem) -> tuple[int, ...]:
    """Return what follows the arrays in the kernel's arguments."""
    taps = problem.taps
    cg, og = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    if problem.variant == "conv_transpose":
        return taps, cg, og, cg * og * taps, og * taps, taps
    return taps, cg, og, cg * og * taps, taps, cg * taps

"""The problems whose solutions are the gradients of a convolution.

A convolution is linear in its input and in its weight, so its gradients are its adjoints. With respect to the
input, that of a convolution is the transposed convolution with the same weight, and that of a transposed
convolution is the convolution; both run on the kernels of the forward functions. With respect to the weight both
are one operation, ``convNd_weight_grad``, in which a transposed convolution's input and output change places.
"""

from dataclasses import dataclass, replace

import numpy as np

from .problem import Ints, Pairs, Problem

__all__ = ["Adjoint", "adjoint_of", "adjoint_of_deformable", "fold"]


@dataclass(frozen=True)
class Adjoint:
    """The problems of the two gradients, and what is done around them.

    Attributes
    ----------
    input, weight : Problem
        `input` maps the gradient of the output to that of the input (of the padded input, if `folded`).
    folded : bool
        Whether the padding holds copies of pixels, to which its gradient has to be brought back.
    kept : tuple of int
        The spatial size to which the gradient of the output is cut at the end: what lies beyond was reached by
        no weight.
    """

    input: Problem
    weight: Problem
    folded: bool
    kept: Ints


def adjoint_of(problem: Problem) -> Adjoint | None:
    """Return the problems of the gradients of a convolution or transposed convolution; None if all of them are zero."""
    return _of_transposed(problem) if problem.variant == "conv_transpose" else _of_convolution(problem)


def _of_convolution(p: Problem) -> Adjoint:
    folded = p.padding_mode != "zeros"
    padded = tuple(b + size + a for size, (b, a) in zip(p.input_size, p.padding, strict=True))
    adjoint = Problem.create(
        f"conv_transpose{p.ndim}d",
        p.output_shape,
        p.weight_shape,
        padding=0 if folded else p.padding,
        output_size=padded if folded else p.input_size,
        **_options(p),
    )
    return Adjoint(adjoint, replace(p, op=f"{p.op}_weight_grad"), folded, p.output_size)


def _of_transposed(p: Problem) -> Adjoint | None:
    # Output padding of a stride or more adds pixels that a convolution would answer with more outputs.
    beyond = tuple(e - e % s for e, s in zip(p.output_padding, p.stride, strict=True))
    padding: Pairs = tuple((b, max(a - e, 0)) for (b, a), e in zip(p.padding, beyond, strict=True))
    kept = tuple(
        size - max(e - a, 0) for size, (_, a), e in zip(p.output_size, p.padding, beyond, strict=True)
    )
    if 0 in kept:  # all of the output is output padding
        return None
    shape = (p.batch, p.out_channels, *kept) if p.layout == "NCHW" else (p.batch, *kept, p.out_channels)
    adjoint = Problem.create(f"conv{p.ndim}d", shape, p.weight_shape, padding=padding, **_options(p))
    return Adjoint(adjoint, replace(adjoint, op=f"{adjoint.op}_weight_grad"), False, kept)


def adjoint_of_deformable(p: Problem) -> Problem:
    """Return the deformable convolution that a transposed one is the adjoint of: it takes outputs to inputs."""
    options = _options(p) | {"groups": None, "padding": p.padding}
    return Problem.create(
        f"deform_conv{p.ndim}d",
        p.output_shape,
        p.weight_shape,
        offset_shape=p.offset_shape,
        mask_shape=p.mask_shape if p.mask else None,
        **options,
    )


def _options(p: Problem) -> dict:
    return {
        "stride": p.stride,
        "dilation": p.dilation,
        "groups": p.groups,
        "layout": p.layout,
        "accuracy": p.accuracy,
        "dtype": p.dtype,
        "prepared": p.prepared,
    }


def fold(problem: Problem, padded: np.ndarray) -> np.ndarray:
    """Return the gradient of the input from that of the padded input: each copy's part goes to its original."""
    from .lowering.geometry import padded_source  # not before it is needed: few use these modes

    first = 2 if problem.layout == "NCHW" else 1
    for axis, (size, (before, after)) in enumerate(
        zip(problem.input_size, problem.padding, strict=True), first
    ):
        lines = np.moveaxis(padded, axis, 0)
        folded = lines[before : before + size].copy()
        outside = [*range(-before, 0), *range(size, size + after)]
        sources = padded_source(np.array(outside, np.int64), size, after, problem.padding_mode)
        for position, source in zip(outside, sources, strict=True):
            folded[source] += lines[position + before]
        padded = np.moveaxis(folded, 0, axis)
    return padded

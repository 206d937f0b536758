"""The kernels of every backend that runs programs: what each takes, what it costs, how its program is made.

=========================  ===========================================================================
conv_depthwise_nchw        tiles of rows, in place with masks for the padding, or of copies with a halo
conv_depthwise_nhwc        channels in vectors, no halo: padding is a pixel of zeros
conv_depthwise_fourier     large kernels: products of frequencies along W, between transforms by the register tile
conv_winograd_4, _5, _6    few taps of stride 1: fewer products, between transforms to 4 ... 6 points on an axis or two
conv_transpose_winograd_*  the same on the phases of the output
conv_dense_*               register tile, pixels or channels in the vectors, whichever wastes less
conv_transpose_*           the same on the phases of the output
deform_conv_tile           bilinear samples of a tile of pixels, then the register tile
deform_conv_transpose_tile the gradient of that in its input, without the others
dcn_sum                    the same samples, summed over taps for each channel
deform_conv_grad_tile      register tile, the samples' gradients, register tile
dcn_grad_sum               the samples' gradients without the products
separable_conv_bands       depthwise and pointwise in turn on bands of rows, what is between them in cache
conv_weight_grad_dense     register tile, output channels in the vectors, pixels summed over
conv_weight_grad_planes    dot products of rows, pixels in the vectors, for groups of a few channels
conv_weight_grad_depthwise_nchw  a channel at a time, its sums in registers, pixels in the vectors
conv_weight_grad_depthwise_nhwc  the same with channels in the vectors
=========================  ===========================================================================
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import config
from ..problem import (
    CONV,
    CONV_TRANSPOSE,
    DCN,
    DCN_GRAD,
    DEFORM_CONV,
    DEFORM_GRAD,
    DEFORM_TRANSPOSE,
    SEPARABLE,
    WEIGHT_GRAD,
    Problem,
)
from ..registry import Kernel, Refusal
from ..separable_problem import SeparableProblem
from .dcn import lower_dcn
from .dcn_grad import lower_dcn_grad
from .deform import lower_deform
from .deform_grad import lower_deform_grad
from .deform_transpose import lower_deform_transpose
from .dense import dense_flops, lower_dense
from .depthwise import lower_depthwise
from .depthwise_grad import lower_depthwise_grad_pixels, lower_depthwise_grad_planes
from .fourier import FOURIER_TOLERANCE, fourier_flops, lower_fourier, refuse_fourier
from .narrow_grad import lower_plane_grad
from .program import Engines, round_up
from .separable import lower_separable, refuse_separable
from .weight_grad import lower_weight_grad
from .winograd import EXACT_POINTS, Filtering, filtering_of, lower_winograd, refuse_winograd

__all__ = ["program_kernels"]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Rough speeds of one core, only there to rank kernels: operations and bytes a second.
FLOPS = 100e9
DEPTHWISE_FLOPS = 45e9
MANY_TAPS = 7
MANY_TAPS_FLOPS = 90e9
FOURIER_FLOPS = 70e9
FOURIER_OVERHEAD = 10e-6
SAMPLE_BYTES = 20e9
MEMORY_BYTES = 10e9
GATHERING = 2.0
OVERHEAD = 2e-6

# The same for dense and Winograd kernels, fitted to what each of them took on 33 layers, called and planned, in both
# layouts: the choice loses 0.5 % of the time on average against the best one.
DENSE_FLOPS = 120e9
DENSE_OVERHEAD = 0.8e-6
DENSE_STEPS = 6.8
PACK_BYTES = 58e9
WINOGRAD_FLOPS = 140e9
WINOGRAD_OVERHEAD = 1.4e-6
WINOGRAD_STEPS = 3.0
OVERLAP = 0.29  # of the products and of streaming their weights, what the shorter adds to the longer
STREAM_BYTES = 53e9
TRANSFORM_BYTES = 17.5e9
WEIGHT_BYTES = 70e9
ARRAY_BYTES = 30e9
CACHE = 8e6  # weights beyond it are written and read again at
BEYOND_BYTES = 16e9
FAR_BYTES = 28e9  # those that are ready are read at
LANES = 16
# In float32 4e-6, about what the direct kernels of other libraries have.
WINOGRAD_TOLERANCE = 32.0

Lower = Callable[[Any, Engines], Any]


def program_kernels(
    backend: str,
    engines: Callable[[str], Engines],
    *,
    functions: bool,
    handicap: float = 1.0,
) -> tuple[Kernel, ...]:
    """Return the kernels of a backend whose engines read the tables of this folder.

    Parameters
    ----------
    backend : str
        Name of the backend.
    engines : callable
        ``engines(isa)`` returns the engines for an instruction set; called when a kernel is built.
    functions : bool
        Whether the engines take a Python function as activation.
    handicap : float, optional
        How many times as long as the quickest engines these take.
    """

    def kernel(
        name: str,
        ops: tuple[str, ...],
        refuse: Callable,
        cost: Callable,
        lower: Lower,
        tolerance: float = 0.0,
        points_as_given: bool = False,
    ) -> Kernel:
        def refuse_all(problem: Problem) -> str | None:
            if problem.dtype not in DTYPES:
                return Refusal.DTYPE
            activations = problem.activation, getattr(problem, "depthwise_activation", None)
            if any(map(callable, activations)) and not functions:
                return Refusal.CALLABLE_ACTIVATION
            return refuse(problem)

        def build(problem: Problem) -> Any:
            from .. import _native

            return lower(problem, engines(config.best_isa(_native.isas())))

        def rank(problem: Problem) -> float:
            return handicap * cost(problem)

        return Kernel(name, backend, ops, refuse_all, rank, build, tolerance, points_as_given)

    table = []
    for points in (4, 5, 6):
        refuse, cost, lower = refuse_winograd(points), cost_winograd(points), lower_winograd(points)
        tolerance = 0.0 if points <= EXACT_POINTS else WINOGRAD_TOLERANCE
        table += [
            kernel(f"{op}_winograd_{points}", ops, refuse, cost, lower, tolerance)
            for op, ops in (("conv", CONV), ("conv_transpose", CONV_TRANSPOSE))
        ]
    for op, ops in (("conv", CONV), ("conv_transpose", CONV_TRANSPOSE)):
        for layout in ("NCHW", "NHWC"):
            case = layout.lower()
            only = refuse_other(layout, depthwise=True)
            table.append(kernel(f"{op}_depthwise_{case}", ops, only, cost_depthwise, lower_depthwise))
            only = refuse_other(layout, depthwise=False)
            table.append(kernel(f"{op}_dense_{case}", ops, only, cost_dense, lower_dense))
    name = "conv_depthwise_fourier"
    table.append(kernel(name, ("conv2d",), refuse_fourier, cost_fourier, lower_fourier, FOURIER_TOLERANCE))
    table.append(kernel("deform_conv_tile", DEFORM_CONV, lambda problem: None, cost_deform, lower_deform))
    name, lower = "deform_conv_transpose_tile", lower_deform_transpose
    table.append(kernel(name, DEFORM_TRANSPOSE, lambda problem: None, cost_deform_grad, lower))
    table.append(kernel("dcn_sum", DCN, lambda problem: None, cost_dcn, lower_dcn, points_as_given=True))
    table.append(kernel("separable_conv_bands", SEPARABLE, refuse_separable, cost_separable, lower_separable))
    anything, narrow = (lambda problem: None), refuse_one_channel
    for name, refuse, cost, lower in (
        ("dense", anything, cost_weight_grad, lower_weight_grad),
        ("planes", narrow, cost_plane_grad, lower_plane_grad),
        ("depthwise_nchw", refuse_depthwise_grad("NCHW"), cost_depthwise_grad, lower_depthwise_grad_planes),
        ("depthwise_nhwc", refuse_depthwise_grad("NHWC"), cost_depthwise_grad, lower_depthwise_grad_pixels),
    ):
        table.append(kernel(f"conv_weight_grad_{name}", WEIGHT_GRAD, refuse, cost, lower))
    table.append(
        kernel(
            "deform_conv_grad_tile", DEFORM_GRAD, lambda problem: None, cost_deform_grad, lower_deform_grad
        )
    )
    table.append(kernel("dcn_grad_sum", DCN_GRAD, lambda problem: None, cost_dcn_grad, lower_dcn_grad))
    return tuple(table)


def refuse_other(layout: str, *, depthwise: bool) -> Callable[[Problem], str | None]:
    """Return a check that refuses all but one layout, and all but (or just) one channel per group."""

    def refuse(problem: Problem) -> str | None:
        if (problem.groups == problem.in_channels and problem.groups > 1) != depthwise:
            return Refusal.NOT_DEPTHWISE if depthwise else Refusal.DEPTHWISE
        if problem.layout != layout:
            return Refusal.NOT_NCHW if layout == "NCHW" else Refusal.NOT_NHWC
        return None

    return refuse


def refuse_one_channel(problem: Problem) -> str | None:
    return Refusal.DEPTHWISE if problem.in_channels == problem.groups else None


def refuse_depthwise_grad(layout: str) -> Callable[[Problem], str | None]:
    """Return a check that refuses all but one layout and one channel per group, and channels that fill no vector."""

    def refuse(problem: Problem) -> str | None:
        if problem.in_channels != problem.groups:
            return Refusal.NOT_DEPTHWISE
        if problem.layout != layout:
            return Refusal.NOT_NCHW if layout == "NCHW" else Refusal.NOT_NHWC
        if layout == "NHWC" and problem.out_channels < LANES:
            return Refusal.FEW_CHANNELS
        return None

    return refuse


def cost_flops(problem: Problem, speed: float = FLOPS) -> float:
    """Time to compute and to move memory once, in seconds; vectors hold half as many doubles."""
    return OVERHEAD + problem.flops / speed * problem.dtype.itemsize / 4 + problem.bytes / MEMORY_BYTES


def cost_dense(problem: Problem) -> float:
    """Return the time of the product, with some steps for a tile to begin and to end, and of packing the weights."""
    size = problem.dtype.itemsize
    depth = problem.in_channels // problem.groups * problem.taps
    seconds = dense_flops(problem) / DENSE_FLOPS * size / 4 * (1 + DENSE_STEPS / depth)
    if not problem.prepared:
        seconds += depth * problem.out_channels * size / PACK_BYTES
    return DENSE_OVERHEAD + seconds + problem.bytes / ARRAY_BYTES


def cost_winograd(points: int) -> Callable[[Problem], float]:
    """Return the time of the products, of streaming their weights, and of the transforms."""

    def cost(problem: Problem) -> float:
        filtering = filtering_of(problem, points)
        if not isinstance(filtering, Filtering):
            return math.inf
        size, products = problem.dtype.itemsize, filtering.products(points)
        c, o = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        pairs = c * problem.out_channels
        # A tile takes some steps to begin and to end, and whole vectors of output channels.
        idle = (1 + WINOGRAD_STEPS / c) * round_up(o, LANES) / o
        weights = points**filtering.rank * filtering.taps * pairs * len(filtering.sums) * size
        multiply, stream = 2 * products * pairs * idle / WINOGRAD_FLOPS * size / 4, weights / STREAM_BYTES
        seconds = max(multiply, stream) + OVERLAP * min(multiply, stream)
        transformed = products // filtering.taps * (problem.in_channels + problem.out_channels) * size
        seconds += transformed / TRANSFORM_BYTES
        if problem.prepared:
            seconds += max(weights - CACHE, 0) / FAR_BYTES
        else:
            given = pairs * problem.taps * size
            seconds += weights / WEIGHT_BYTES + max(weights + given - CACHE, 0) / BEYOND_BYTES
        return WINOGRAD_OVERHEAD + seconds + problem.bytes / ARRAY_BYTES

    return cost


def cost_depthwise(problem: Problem) -> float:
    few = problem.kernel_size[-1] < MANY_TAPS
    return cost_flops(problem, DEPTHWISE_FLOPS if few else MANY_TAPS_FLOPS)


def cost_fourier(problem: Problem) -> float:
    """Return the time of the products; what lies between them is written and read in L2 or L3."""
    seconds = fourier_flops(problem) / FOURIER_FLOPS * problem.dtype.itemsize / 4
    return FOURIER_OVERHEAD + seconds + problem.bytes / MEMORY_BYTES


def cost_separable(problem: SeparableProblem) -> float:
    depthwise, pointwise = problem.parts()
    return cost_depthwise(depthwise) + cost_dense(pointwise) - problem.saved_bytes / MEMORY_BYTES


def cost_deform(problem: Problem) -> float:
    pixels = problem.flops / 2 / (problem.out_channels * problem.in_channels / problem.groups)
    samples = pixels * problem.in_channels * 2**problem.ndim * problem.dtype.itemsize
    return cost_flops(problem) + samples / SAMPLE_BYTES


def cost_dcn(problem: Problem) -> float:
    samples = problem.flops / 2 * 2**problem.ndim * problem.dtype.itemsize
    return OVERHEAD + samples / SAMPLE_BYTES + problem.bytes / MEMORY_BYTES


def cost_dcn_grad(problem: Problem) -> float:
    """Three passes over the samples, one of which writes, too."""
    return 4 * cost_dcn(problem)


def cost_deform_grad(problem: Problem) -> float:
    """Two products, and three passes over the samples."""
    return 3 * cost_deform(problem)


def cost_weight_grad(problem: Problem) -> float:
    """A tile is slow where output channels do not fill its vectors, or input channels its rows.

    Few channels of a group also leave it with too few sums to hide how long a product takes.
    """
    o, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    idle = 0.6 * 16 * -(-o // 16) / o * max(1, 5 / (c * problem.taps))
    if c > 1:
        idle *= max(1, 8 / c)
    return cost_flops(problem, FLOPS / idle)


def cost_plane_grad(problem: Problem) -> float:
    """Pixels of a row fill the vectors or do not, and a tile of few output channels loads more than it computes.

    Channels last, pixels are gathered one by one.
    """
    o, vectors = problem.out_channels // problem.groups, problem.output_size[-1] / LANES
    idle = 0.62 * (math.ceil(vectors) + 0.6) / vectors * (1 + 1 / o)
    if problem.layout == "NHWC":
        idle *= GATHERING
    return cost_flops(problem, FLOPS / idle)


def cost_depthwise_grad(problem: Problem) -> float:
    """Channels fill the vectors, or pixels of a row do or do not."""
    vectors = problem.output_size[-1] / LANES if problem.layout == "NCHW" else problem.out_channels / LANES
    return cost_flops(problem, DEPTHWISE_FLOPS * vectors / math.ceil(vectors))

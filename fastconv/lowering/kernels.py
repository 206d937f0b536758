"""The kernels of every backend that runs programs: what each takes, what it costs, how its program is made.

=========================  ===========================================================================
conv_depthwise_nchw        tiles of rows, in place with masks for the padding, or of copies with a halo
conv_depthwise_nhwc        channels in vectors, no halo: padding is a pixel of zeros
conv_depthwise_fourier     large kernels: products of frequencies along W, between transforms by the register tile
conv_winograd_4, _5, _6    a few taps at a time: fewer products, between transforms to 4 ... 6 points on an axis or two
conv_transpose_winograd_*  the same on the phases of the output
conv_dense_*               register tile, pixels or channels in the vectors, whichever wastes less
conv_transpose_*           the same on the phases of the output
conv_strassen              seven products of quarters in place of eight, channels in the vectors
deform_conv_tile           bilinear samples of a tile of pixels, then the register tile
deform_conv_strassen       the same with seven products of quarters in place of eight
deform_conv_transpose_tile the gradient of that in its input, without the others
dcn_sum                    the same samples, summed over taps for each channel
deform_conv_grad_tile      register tile, the samples' gradients, register tile
dcn_grad_sum               the samples' gradients without the products
separable_conv_bands       depthwise and pointwise in turn on bands of rows, what is between them in cache
conv_weight_grad_dense     register tile, output channels in the vectors, pixels summed over
conv_weight_grad_winograd_4, _6  stride 1 and 3x3 taps: products at 4x4 or 6x6 points, turned into taps at the end
conv_weight_grad_planes    dot products of rows, pixels in the vectors, for groups of a few channels
conv_weight_grad_depthwise_nchw  a channel at a time, its sums in registers, pixels in the vectors
conv_weight_grad_depthwise_nhwc  the same with channels in the vectors
=========================  ===========================================================================
"""

import functools
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
from .deform import PAIRS_TILE, channel_blocks, lower_deform
from .deform_grad import lower_deform_grad
from .deform_transpose import lower_deform_transpose
from .dense import LANE_TILE, LANES, TILE, dense_flops, lower_dense, split_axes
from .depthwise import lower_depthwise
from .depthwise_grad import lower_depthwise_grad_pixels, lower_depthwise_grad_planes
from .fourier import FOURIER_TOLERANCE, fourier_flops, lower_fourier, refuse_fourier
from .geometry import sums_of
from .narrow_grad import lower_plane_grad
from .program import BEYOND_CACHES, Engines, round_up
from .separable import lower_separable, refuse_separable
from .strassen import K_BLOCK as SEVEN_BLOCK
from .strassen import lower_strassen, refuse_strassen, strassen_blocks
from .weight_grad import lower_weight_grad
from .winograd import EXACT_POINTS, Filtering, filtering_of, lower_winograd, refuse_winograd
from .winograd_grad import lower_winograd_grad, refuse_winograd_grad, winograd_grad_tiles

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
# Seven products in place of eight: steps that a tile takes to begin and to end, what tiles of half the width lose, and
# how fast the quarters of samples are summed.
SEVEN_STEPS = 3.0
HALF_TILE = 0.1
QUARTER_BYTES = 50e9
L2_BYTES = 1 << 20
MEMORY_BYTES = 10e9
GATHERING = 1.5
VECTOR_SUM = 5e-9
OVERHEAD = 2e-6

# The same for dense and Winograd kernels, fitted to what each of them took on 61 layers, called and planned, in both
# layouts: the choice loses 1.1 % of the time on average against the best one.
DENSE_FLOPS = 115e9
DENSE_OVERHEAD = 0.8e-6
DENSE_STEPS = 4.8
# What sums of quarters take, in outputs; what products of theirs take to be put together; and their shorter tiles.
SUMMED_ROWS, JOINED_PRODUCTS, HALF_STEPS = 5.0, 5.0, 8.0
PACK_BYTES = 22e9
WINOGRAD_FLOPS = 130e9
WINOGRAD_OVERHEAD = 1.4e-6
WINOGRAD_STEPS = 2.0
OVERLAP = 0.17  # of the products and of streaming their weights, what the shorter adds to the longer
STREAM_BYTES = 53e9
TRANSFORM_BYTES = 17.5e9
OUTPUT_SHARE = {1: 0.6, 2: 0.69}  # of products and outputs together, what their transform takes as long as
SOURCE_CHANNELS = 2.5  # what it takes to begin with a source, in channels
WEIGHT_BYTES = 55e9
ARRAY_BYTES = 36e9
CACHE = 8.5e6  # weights beyond it are written and read again at
BEYOND_BYTES = 14e9
FAR_BYTES = 45e9  # those that are ready are read at
L3_BYTES = 32e6  # and what is beyond it from memory, at BEYOND_BYTES: 512 channels of 2x7x7, 3x3x3, four points 20.4, six 23.8 ms
TURNED_BYTES = 7e9  # planes beyond the caches are turned at: 3 to 64 x 16x112x112, 3x3x3, 43 ms directly, 61 by six points
# The same for weight gradients, fitted to 168 of them: the choice loses 2 %.
WEIGHT_GRAD_FLOPS = 120e9
WEIGHT_GRAD_TRANSFORM_BYTES = 20e9
TILE_STEPS = 110  # to begin and to end a tile, after so many products at most
TILE_BLOCK = 128
LATENCY = 4  # of a product
FEW_CHANNELS = 4  # and their taps share tiles
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
        table.append(kernel(f"{op}_strassen", ops, refuse_strassen, cost_strassen, lower_strassen))
    name = "conv_depthwise_fourier"
    table.append(kernel(name, ("conv2d",), refuse_fourier, cost_fourier, lower_fourier, FOURIER_TOLERANCE))
    table.append(kernel("deform_conv_tile", DEFORM_CONV, lambda problem: None, cost_deform, lower_deform))
    name, lower = "deform_conv_strassen", functools.partial(lower_deform, seven=True)
    table.append(kernel(name, DEFORM_CONV, refuse_seven, cost_seven, lower))
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
    for points in (4, 6):
        refuse, cost = refuse_winograd_grad(points), cost_winograd_grad(points)
        tolerance = 0.0 if points <= EXACT_POINTS else WINOGRAD_TOLERANCE
        name, lower = f"conv_weight_grad_winograd_{points}", lower_winograd_grad(points)
        table.append(kernel(name, WEIGHT_GRAD[1:], refuse, cost, lower, tolerance))
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


def cost_strassen(problem: Problem) -> float:
    """Return the time of seven products, of sums of quarters, and of streaming those of the weights."""
    size, c, o = problem.dtype.itemsize, problem.in_channels, problem.out_channels
    weights, sums = math.prod(problem.weight_shape) * size, sums_of(split_axes(problem))
    pixels, taps = math.prod(s.count for s in sums[0]), math.prod(len(s.taps) for s in sums[0])
    steps = 1 + SUMMED_ROWS / o + JOINED_PRODUCTS / (c * taps) + HALF_STEPS / min(c, SEVEN_BLOCK)
    seconds = 7 / 8 * dense_flops(problem, in_lanes=True) / DENSE_FLOPS * size / 4 * steps
    if not problem.prepared:
        seconds += weights / PACK_BYTES + 2 * weights / WEIGHT_BYTES
    if 2 * weights > L2_BYTES:
        again = problem.batch * strassen_blocks(pixels, LANE_TILE[0]) * 3 / 4 * weights
        seconds += again / (FAR_BYTES if 2 * weights > CACHE else WEIGHT_BYTES)
    return DENSE_OVERHEAD + seconds + problem.bytes / ARRAY_BYTES


def cost_winograd(points: int) -> Callable[[Problem], float]:
    """Return the time of the products, of streaming their weights, and of the transforms."""

    def cost(problem: Problem) -> float:
        filtering = filtering_of(problem, points)
        if not isinstance(filtering, Filtering):
            return math.inf
        size, products, pieces = problem.dtype.itemsize, filtering.products(points), filtering.most_pieces
        c, o = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        pairs = c * problem.out_channels
        # A tile takes some steps to begin and to end, and whole vectors of output channels.
        idle = (1 + WINOGRAD_STEPS / (pieces * c)) * round_up(o, LANES) / o
        weights = sum(filtering.weights(points)) * pairs * size
        multiply, stream = 2 * products * pairs * idle / WINOGRAD_FLOPS * size / 4, weights / STREAM_BYTES
        seconds = max(multiply, stream) + OVERLAP * min(multiply, stream)
        # Vectors that are not full take less than full ones, but more than their share.
        sources = pieces // filtering.shared(points)
        lanes = LANES if c > LANES // 2 else LANES // 2
        source = SOURCE_CHANNELS + (c + round_up(c, lanes)) / 2
        into, out = points**filtering.rank * sources * source, (o + round_up(o, LANES)) / 2
        out *= OUTPUT_SHARE[filtering.rank] * (points**filtering.rank + math.prod(filtering.outputs(points)))
        transformed = sum(filtering.tiles(points)) * problem.groups * (into + out) * size
        seconds += transformed / TRANSFORM_BYTES
        if problem.prepared:
            seconds += max(weights - CACHE, 0) / FAR_BYTES + max(weights - L3_BYTES, 0) / BEYOND_BYTES
        else:
            given = pairs * problem.taps * size
            seconds += weights / WEIGHT_BYTES + max(weights + given - CACHE, 0) / BEYOND_BYTES
        if problem.layout == "NCHW":
            seconds += max(problem.bytes - BEYOND_CACHES, 0) / TURNED_BYTES
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


def refuse_seven(problem: Problem) -> str | None:
    """Quarters of the product have whole vectors of output channels, and the same depth."""
    if problem.accuracy == "high":
        return Refusal.HIGH_ACCURACY
    if problem.out_channels // problem.groups % (2 * LANES):
        return Refusal.FEW_CHANNELS
    return Refusal.ODD_CHANNELS if any(count % 2 for _, count in channel_blocks(problem)) else None


def cost_seven(problem: Problem) -> float:
    """Of eight products one is saved; sums of quarters are made of samples and weights, and these read twice as far."""
    size, product = problem.dtype.itemsize, problem.flops / FLOPS * problem.dtype.itemsize / 4
    depth = max(count for _, count in channel_blocks(problem)) * problem.taps / 2
    saved = product - 7 / 8 * product * (1 + SEVEN_STEPS / depth)
    if problem.out_channels // problem.groups < 4 * LANES:
        saved -= HALF_TILE * product
    pixels = problem.batch * math.prod(problem.output_size)
    added = pixels * problem.in_channels * problem.taps * size / QUARTER_BYTES
    weights = problem.in_channels // problem.groups * problem.taps * problem.out_channels * size
    if not problem.prepared:
        added += 2 * weights / PACK_BYTES
    if weights > L2_BYTES:
        again = -(-pixels // PAIRS_TILE) * 3 / 4 * weights
        added += again / (FAR_BYTES if 2 * weights > CACHE else WEIGHT_BYTES)
    return cost_deform(problem) - saved + added


def cost_dcn(problem: Problem) -> float:
    samples = problem.flops / 2 * 2**problem.ndim * problem.dtype.itemsize
    return OVERHEAD + samples / SAMPLE_BYTES + problem.bytes / MEMORY_BYTES


def cost_dcn_grad(problem: Problem) -> float:
    """Three passes over the samples, one of which writes, too."""
    return 4 * cost_dcn(problem)


def cost_deform_grad(problem: Problem) -> float:
    """Two products, and three passes over the samples."""
    return 3 * cost_deform(problem)


def tile_flops(inputs: int, outputs: int, count: int) -> float:
    """Return the operations that a sum of `count` outer products takes as long as.

    A tile takes no less than loading its rows and vectors, nor than one product after the other, and some time to begin
    and to end.
    """
    blocks = -(-outputs // (LANE_TILE[1] * LANES))
    vectors = -(-outputs // blocks // LANES)
    rows = LANE_TILE[0] if vectors > TILE[1] else TILE[0]
    tiles = [rows] * (inputs // rows) + [inputs % rows] * (inputs % rows > 0)
    begun = TILE_STEPS * -(-count // TILE_BLOCK)
    steps = sum(max(r * vectors, r + vectors, LATENCY) * count + begun for r in tiles)
    return 2.0 * LANES * blocks * steps


def cost_weight_grad(problem: Problem) -> float:
    """Return the time of the product; few input channels share tiles with the taps."""
    o, c, taps = problem.out_channels // problem.groups, problem.in_channels // problem.groups, problem.taps
    pixels = math.prod(problem.output_size)
    flops = taps * tile_flops(c, o, pixels) if c >= FEW_CHANNELS else tile_flops(c * taps, o, pixels)
    seconds = problem.groups * flops / WEIGHT_GRAD_FLOPS * problem.dtype.itemsize / 4
    return DENSE_OVERHEAD + seconds + problem.bytes / ARRAY_BYTES


def cost_winograd_grad(points: int) -> Callable[[Problem], float]:
    """Return the time of the products and of the transforms of tiles.

    With few tiles, as of 7x7 pixels, it takes about as long as the direct product on one image, and half as long on 8.
    """

    def cost(problem: Problem) -> float:
        size, tiles = problem.dtype.itemsize, winograd_grad_tiles(problem, points)
        o, c = problem.out_channels // problem.groups, problem.in_channels // problem.groups
        taps = problem.kernel_size[0] if problem.ndim == 3 else 1
        flops = points**2 * taps * problem.groups * tile_flops(c, o, tiles)
        # To begin with a block of output channels takes half as long as another vector of them.
        channels = round_up(problem.in_channels, LANES) + problem.groups * (round_up(o, LANES) + LANES // 2)
        transformed = points**2 * tiles * channels * size
        seconds = flops / WEIGHT_GRAD_FLOPS * size / 4 + transformed / WEIGHT_GRAD_TRANSFORM_BYTES
        return WINOGRAD_OVERHEAD + seconds + problem.bytes / ARRAY_BYTES

    return cost


def cost_plane_grad(problem: Problem) -> float:
    """Pixels of a row fill the vectors or do not, and a tile of few output channels loads more than it computes.

    Each weight is the sum of a vector at the end. Channels last, pixels are gathered one by one.
    """
    o, vectors = problem.out_channels // problem.groups, problem.output_size[-1] / LANES
    idle = 0.62 * (math.ceil(vectors) + 0.6) / vectors * (1 + 1 / o)
    if problem.layout == "NHWC":
        idle *= GATHERING
    return cost_flops(problem, FLOPS / idle) + math.prod(problem.weight_shape) * VECTOR_SUM


def cost_depthwise_grad(problem: Problem) -> float:
    """Channels fill the vectors, or pixels of a row do or do not."""
    vectors = problem.output_size[-1] / LANES if problem.layout == "NCHW" else problem.out_channels / LANES
    return cost_flops(problem, DEPTHWISE_FLOPS * vectors / math.ceil(vectors))

"""The shapes of thread blocks: how many pixels and channels each computes, and what that costs of a multiprocessor.

A thread holds `rows` pixels x `columns` channels in registers, interleaved with those of its neighbours, so that
neighbours read and write neighbours. Eight rows and columns make 64 multiply-adds of 16 loads from shared
memory, the four to one that a multiprocessor can feed; doubles take twice the registers and get half of each.
"""

from dataclasses import dataclass

import numpy as np

from ...problem import Problem

__all__ = [
    "DENSE",
    "DEPTHWISE",
    "SAMPLE_GRAD",
    "SAMPLE_GRAD_CUBES",
    "WEIGHT_GRAD",
    "Tile",
    "dense_tile",
    "depthwise_tile",
    "sample_grad_tile",
    "weight_grad_tile",
]


@dataclass(frozen=True)
class Tile:
    """One shape of a thread block.

    Attributes
    ----------
    pixels, channels : int
        What a block computes.
    rows, columns : int
        The part of a thread, of each.
    depth : int
        Products (taps x input channels) staged in shared memory at a time; a power of two.
    """

    pixels: int
    channels: int
    rows: int
    columns: int
    depth: int

    @property
    def pixel_lanes(self) -> int:
        return self.pixels // self.rows

    @property
    def channel_lanes(self) -> int:
        return self.channels // self.columns

    @property
    def threads(self) -> int:
        return self.pixel_lanes * self.channel_lanes

    def __str__(self) -> str:
        return f"{self.pixels} pixels x {self.channels} channels, {self.rows} x {self.columns} a thread"


F32: np.dtype = np.dtype(np.float32)
F64: np.dtype = np.dtype(np.float64)

# Widest first; the narrow ones are for groups of few channels. 128 threads each.
DENSE = {
    F32: (Tile(128, 64, 8, 8, 8), Tile(128, 16, 4, 4, 8), Tile(128, 4, 4, 1, 8)),
    F64: (Tile(64, 32, 4, 4, 8), Tile(64, 16, 4, 2, 8), Tile(128, 4, 4, 1, 8)),
}
# One input channel a group, by layout: lanes lie along what lies side by side in memory.
DEPTHWISE = {"NCHW": Tile(128, 4, 1, 4, 8), "NHWC": Tile(16, 32, 4, 1, 8)}
# Gradients with respect to the weight: its "pixels" are output channels, and pixels are what is summed.
WEIGHT_GRAD = Tile(64, 32, 4, 4, 32)
# Gradients of samples: pixels x input channels, summed over output channels. In 3-D a sample has 8 corners with
# three slopes each, of which the shared memory of a block (48 KiB) holds half as many doubles.
SAMPLE_GRAD = {F32: Tile(64, 32, 4, 4, 8), F64: Tile(64, 16, 4, 2, 8)}
SAMPLE_GRAD_CUBES = {F32: SAMPLE_GRAD[F32], F64: Tile(32, 16, 2, 2, 8)}

# In the simulator a thread of the device is a thread of Python: few of them, with parts of more than one.
SIMULATED = Tile(8, 4, 4, 2, 4)


def dense_tile(problem: Problem, simulated: bool) -> Tile:
    """Return the tile that the output channels of a group fill best; the wider of equals."""
    if simulated:
        return SIMULATED
    channels = problem.out_channels // problem.groups
    return min(DENSE[problem.dtype], key=lambda tile: -(-channels // tile.channels) * tile.channels)


def depthwise_tile(problem: Problem, simulated: bool) -> Tile:
    """Return the tile for one input channel a group."""
    return SIMULATED if simulated else DEPTHWISE[problem.layout]


def weight_grad_tile(simulated: bool) -> Tile:
    """Return the tile of gradients with respect to the weight."""
    return SIMULATED if simulated else WEIGHT_GRAD


def sample_grad_tile(problem: Problem, simulated: bool) -> Tile:
    """Return the tile of gradients with respect to samples."""
    if simulated:
        return SIMULATED
    return (SAMPLE_GRAD_CUBES if problem.ndim == 3 else SAMPLE_GRAD)[problem.dtype]

"""Reasoning about convolutions: what they are as matrices, what they reach, what they cost.

The way through the files of this package::

    arguments.py   the arguments of a convolution without its data -> Problem
    geometry.py    Problem -> for each tap, which output pixel reads which input pixel, and with what share
    matrix.py      these, with the weights: the sparse matrix A of y = A x
    operator.py    the same A without its entries: products with A and its transpose on the kernels
    layers.py      the layers of a stack, as far as geometry goes
    receptive.py   a stack of layers -> the input pixels that an output pixel depends on
    points.py      a stack of deformable layers -> the points that it samples
    effective.py   gradients -> how much each of these pixels matters
    cost.py        Problem -> parameters, multiply-adds, bytes, intensity

Nothing here runs when a convolution does. The matrix is built from the definition and shares no code with the
kernels, so that each can be held against the other.
"""

from .cost import Cost, cost
from .effective import effective_field
from .layers import Layer
from .matrix import matrix
from .operator import linear_operator
from .points import affine_offset
from .receptive import ReceptiveField, receptive_field

__all__ = [
    "Cost",
    "Layer",
    "ReceptiveField",
    "affine_offset",
    "cost",
    "effective_field",
    "linear_operator",
    "matrix",
    "receptive_field",
]

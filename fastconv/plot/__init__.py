"""Pictures of convolutions: each function draws on a matplotlib Axes, and has a twin in :mod:`fastconv.plot.text`.

===================  =========================================================================
`matrix`             the matrix A of y = A x, or its transpose
`receptive_field`    the pixels that an output depends on, and those that a dilation skips
`effective_field`    how much each of them matters
`phases`             which taps of a transposed convolution make which outputs
`sampling_points`    what a deformable layer samples, over the image
`roofline`           how near a plan is to what the machine can do
`intensity`          what grouping saves in work, and what in time
===================  =========================================================================

Every function takes ``ax=``, draws in a new figure if it is not given, and returns the Axes. The twins take the same
arguments but for ``ax`` and return a string for the terminal. Needs ``pip install 'fastconv[plot]'``; matplotlib
is imported by the first picture.
"""

from . import text
from .fields import effective_field, receptive_field
from .matrices import matrix
from .rooflines import intensity, roofline
from .sampled import sampling_points
from .transposed import phases

__all__ = [
    "effective_field",
    "intensity",
    "matrix",
    "phases",
    "receptive_field",
    "roofline",
    "sampling_points",
    "text",
]

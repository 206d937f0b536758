"""Standard, transposed and deformable convolution of dask arrays, a chunk at a time.

For images and volumes larger than memory, or than one machine. Each chunk of the result reads the part of the input
that it depends on, across the borders of chunks, and nothing else; its own borders follow those of the input by the
stride, so that each chunk makes about one. Weights are NumPy arrays. Needs ``pip install 'fastconv[dask]'``.

The way of a call through the files of this package::

    parts.py   one axis: which outputs a chunk has, which inputs they depend on
    graph.py   all axes: the tasks that read those inputs and convolve them

A kernel is chosen for the shape of each chunk, so floating-point results may differ from those of the whole image by
rounding. Chunks run at the same time, so each on one thread unless `num_threads` says otherwise.

Examples
--------
>>> import dask.array as da, numpy as np
>>> import fastconv.dask
>>> image = da.ones((1, 100_000, 100_000), chunks=(1, 5000, 5000))  # 80 GB, if it were all there
>>> blurred = fastconv.dask.conv2d(image, np.full((1, 1, 3, 3), 1 / 9), padding=1, stride=2)
>>> blurred.shape, blurred.chunksize
((1, 50000, 50000), (1, 2500, 2500))
>>> blurred[0, 0, 4999:5002].compute().round(2)
array([0.67, 0.67, 0.67])
"""

import inspect
from collections.abc import Callable
from typing import Any

from .. import functional
from ..problem import OPS, parse_op

try:
    from .graph import convolve
except ImportError as error:
    raise ImportError(f"fastconv.dask needs dask ({error}): pip install 'fastconv[dask]'") from error

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
]

DOCUMENTATION = """Return :func:`fastconv.{op}` of a dask array.

Parameters
----------
input : dask.array.Array
    Of the shape that the function takes, chunked in any way.
{arrays}
weight, bias : array_like
    As for the function.
{options}
    As for the function.
{reach}num_threads : int, optional
    Upper limit of threads of each chunk; 1 if not given, because chunks run at the same time.

Returns
-------
dask.array.Array
    Its chunks follow those of the input; the output channels are all in one.

Raises
------
ShapeError, ValueError, TypeError
    As the function does, before any work.
"""
ARRAYS = """offset, mask : dask.array.Array or array_like
    Of the shapes that the function takes, chunked in any way."""
REACH = """reach : float
    Upper limit of the displacements' sizes, in input pixels: how far beyond its border a chunk has to look. A
    chunk with a larger finite one raises ValueError.
"""


def _function(op: str) -> Callable[..., Any]:
    """Make the function of one operation: that of the package without `out`, and with `reach` where it deforms."""
    deformable = parse_op(op)[0] == "deform_conv"
    whole = inspect.signature(getattr(functional, op))
    parameters = [p for name, p in whole.parameters.items() if name != "out"]
    if deformable:
        parameters.append(inspect.Parameter("reach", inspect.Parameter.KEYWORD_ONLY))
    signature = whole.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in parameters],
        return_annotation=inspect.Signature.empty,
    )

    def function(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return convolve(op, given.arguments)

    own = {"input", "offset", "mask", "weight", "bias", "reach", "num_threads"}
    function.__name__ = function.__qualname__ = op
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = DOCUMENTATION.format(
        op=op,
        arrays=ARRAYS if deformable else "",
        options=", ".join(name for name in signature.parameters if name not in own),
        reach=REACH if deformable else "",
    ).replace("\n\nweight", "\nweight")
    return function


conv1d, conv2d, conv3d = (_function(op) for op in OPS[:3])
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_function(op) for op in OPS[3:6])
deform_conv1d, deform_conv2d, deform_conv3d = (_function(op) for op in OPS[6:])

"""fastconv for PyTorch: its convolutions as differentiable operators, functions and layers on CPU tensors.

Memory is shared with NumPy, never copied where it lies densely; channels last is computed on as it lies. There are
gradients of any order, and fake kernels for ``torch.compile`` and ``torch.export``. :func:`replace` makes a model
that is there run on fastconv::

    convolution.py, deformable.py    the operators: kernels, shapes, derivatives
    sampler.py                       second derivatives of deformable convolutions
    operation.py, arrays.py          what all operators share
    functional.py, modules.py        torch's functions and layers on top
    swap.py                          replace
    threads.py                       one team of threads for both libraries
"""

try:
    import torch
except ImportError as error:
    raise ImportError(
        "fastconv.torch needs PyTorch, which is not installed: pip install 'fastconv[torch]'", name="torch"
    ) from error

if not hasattr(torch.library, "register_vmap"):
    raise ImportError(f"fastconv.torch needs PyTorch 2.5 or newer, found {torch.__version__}", name="torch")

from .functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    deform_conv2d,
)
from .modules import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    DeformConv2d,
    DeformConv2dPack,
)
from .swap import Replacement, replace
from .threads import share_threads

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DeformConv2d",
    "DeformConv2dPack",
    "Replacement",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv2d",
    "replace",
]

share_threads()

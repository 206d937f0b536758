"""fastconv: the convolution family for NumPy arrays, at the speed of the machine.

Standard, grouped, transposed, dilated and deformable convolution in 1, 2 and 3 dimensions, on interchangeable
backends. Start with :func:`conv2d`; ask :func:`explain` what ran and why; :func:`plan` prepares a convolution
that runs many times.
"""

# The folder first: importing it later would set the name `backends` to it, over the function.
from . import backends as _backends  # noqa: F401
from . import grad as grad
from .config import accuracy, set_default_backend, threads, use_backend
from .errors import BackendError, ShapeError, UnsupportedError
from .explain import Explanation, explain, show_config
from .functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
)
from .grad_plan import GradPlan, plan_grad
from .plan import Plan, plan
from .problem import Problem
from .registry import Backend, BackendStatus, Kernel, backends, kernels, register_backend, unregister_backend
from .separable import plan_separable, separable_conv1d, separable_conv2d, separable_conv3d

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendStatus",
    "Explanation",
    "GradPlan",
    "Kernel",
    "Plan",
    "Problem",
    "ShapeError",
    "UnsupportedError",
    "accuracy",
    "backends",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "explain",
    "kernels",
    "plan",
    "plan_grad",
    "plan_separable",
    "register_backend",
    "separable_conv1d",
    "separable_conv2d",
    "separable_conv3d",
    "set_default_backend",
    "show_config",
    "threads",
    "unregister_backend",
    "use_backend",
]

"""fastconv: the convolution family for NumPy arrays, at the speed of the machine.

Standard, grouped, transposed, dilated and deformable convolution in 1, 2 and 3 dimensions, on interchangeable
backends. Start with :func:`conv2d`; ask :func:`explain` what ran and why; :func:`plan` prepares a convolution
that runs many times.
"""

from typing import TYPE_CHECKING, Any

# The folder first: importing it later would set the name `backends` to it, over the function.
from . import backends as _backends  # noqa: F401
from . import deform as deform
from . import grad as grad
from .about import show_config
from .config import accuracy, set_default_backend, threads, use_backend
from .errors import BackendError, ShapeError, UnsupportedError
from .explain import Explanation, explain
from .functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    dcnv3,
    dcnv4,
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
    deform_conv_transpose2d,
)
from .grad_plan import GradPlan, plan_grad
from .plan import Plan, plan
from .problem import Problem
from .registry import Backend, BackendStatus, Kernel, backends, kernels, register_backend, unregister_backend
from .separable import plan_separable, separable_conv1d, separable_conv2d, separable_conv3d

if TYPE_CHECKING:
    from .analysis.cost import cost
    from .analysis.matrix import matrix
    from .analysis.operator import linear_operator
    from .analysis.receptive import receptive_field

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
    "cost",
    "dcnv3",
    "dcnv4",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "deform_conv_transpose2d",
    "explain",
    "kernels",
    "linear_operator",
    "matrix",
    "plan",
    "plan_grad",
    "plan_separable",
    "receptive_field",
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

# Reasoning is not part of running: its modules are imported with the first of these that is used.
_REASONING = ("cost", "linear_operator", "matrix", "receptive_field")


def __getattr__(name: str) -> Any:
    if name not in _REASONING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import analysis

    globals()[name] = getattr(analysis, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""From a problem to a program: what is computed where becomes tables, and engines only follow them.

- ``geometry``: one axis at a time, padding, strides and phases become index maps and tap tables.
- ``program``: the words an engine is told, and the builder that collects stages.
- ``dense``, ``strassen``, ``depthwise``, ``deform``: a problem for each family of engines.
- ``weight_grad``, ``depthwise_grad``, ``narrow_grad``: the same for gradients with respect to the weight.
- ``kernels``: the kernel list that these make for any backend with such engines.

Nothing here knows how an engine is compiled. A backend hands in its :class:`Engines` and gets a program back,
so all backends with the same engines share every table.
"""

from .deform import lower_deform
from .dense import lower_dense
from .depthwise import lower_depthwise
from .kernels import program_kernels
from .program import ACTIVATION_CODES, Engines

__all__ = ["ACTIVATION_CODES", "Engines", "lower_deform", "lower_dense", "lower_depthwise", "program_kernels"]

"""The backend compiled by numba: its kernels, in order.

They are those of the cython backend, and so are the programs: engines have the same names, take the same
tables and run in the same threads as those in src/. Only that they are compiled here, when they are first
needed, which lets an activation be any function that numba can compile. Numba is imported when a kernel is
built, and not before.

- ``halo``, ``pack``, ``tile``, ``dense``, ``depthwise``, ``deform``, ``epilogue``: the engines, as in src/
- ``simd``: vectors, pointers and records for numba; ``moves``: copies and transposes
- ``activation``: silu, gelu, and the functions of users
- ``engines``: compiling and caching
"""

from collections.abc import Callable
from typing import Any

from ...problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, Problem
from ...registry import Kernel, Refusal
from ..cython import DTYPES, chosen_isa, cost_deform, cost_dense, cost_depthwise, is_depthwise

__all__ = ["backend"]

NAME = "numba"
# The same programs run a little slower here, so where both can, the automatic choice takes the other.
HANDICAP = 1.1


def conv_kernel(name: str, ops: tuple[str, ...], layout: str, depthwise: bool) -> Kernel:
    cost = cost_depthwise if depthwise else cost_dense

    def refuse(problem: Problem) -> str | None:
        if is_depthwise(problem) != depthwise:
            return Refusal.NOT_DEPTHWISE if depthwise else Refusal.DEPTHWISE
        if problem.layout != layout:
            return Refusal.NOT_NCHW if layout == "NCHW" else Refusal.NOT_NHWC
        return refuse_dtype(problem)

    def build(problem: Problem) -> Any:
        from ...lowering import lower_dense, lower_depthwise
        from .engines import engines

        return (lower_depthwise if depthwise else lower_dense)(problem, engines(chosen_isa()))

    return Kernel(name, NAME, ops, refuse, slower(cost), build)


def slower(cost: Callable[[Problem], float]) -> Callable[[Problem], float]:
    return lambda problem: HANDICAP * cost(problem)


def refuse_dtype(problem: Problem) -> str | None:
    return None if problem.dtype in DTYPES else Refusal.DTYPE


def build_deform(problem: Problem) -> Any:
    from ...lowering import lower_deform
    from .engines import engines

    return lower_deform(problem, engines(chosen_isa()))


class NumbaBackend:
    """Kernels compiled by numba when they are first needed, and kept in its disk cache."""

    name = NAME
    kernels = (
        conv_kernel("conv_depthwise_nchw", CONV, "NCHW", True),
        conv_kernel("conv_depthwise_nhwc", CONV, "NHWC", True),
        conv_kernel("conv_dense_nchw", CONV, "NCHW", False),
        conv_kernel("conv_dense_nhwc", CONV, "NHWC", False),
        conv_kernel("conv_transpose_depthwise_nchw", CONV_TRANSPOSE, "NCHW", True),
        conv_kernel("conv_transpose_depthwise_nhwc", CONV_TRANSPOSE, "NHWC", True),
        conv_kernel("conv_transpose_dense_nchw", CONV_TRANSPOSE, "NCHW", False),
        conv_kernel("conv_transpose_dense_nhwc", CONV_TRANSPOSE, "NHWC", False),
        Kernel("deform_conv_tile", NAME, DEFORM_CONV, refuse_dtype, slower(cost_deform), build_deform),
    )

    def unavailable(self) -> str | None:
        """Return why nothing can be compiled here, or None."""
        try:
            from ... import _native  # noqa: F401
        except ImportError as error:
            return f"the compiled module, which runs the programs, cannot be imported: {error}"
        try:
            import numba
        except Exception as error:  # ImportError, or whatever a NumPy it was not made for provokes
            return f"numba cannot be imported: {error}; pip install numba"
        if getattr(numba.config, "DISABLE_JIT", False):
            return "compiling is switched off: the environment variable NUMBA_DISABLE_JIT is set"
        try:
            from . import engines  # noqa: F401
        except (ImportError, AttributeError) as error:
            return f"numba {numba.__version__} lacks what the engines are written with: {error}"
        return None


backend = NumbaBackend()

"""The backend compiled by numba: its kernels, in order.

They are those of the cython backend, and so are the programs: engines have the same names, take the same
tables and run in the same threads as those in src/. Only that they are compiled here, when they are first
needed, which lets an activation be any function that numba can compile. What was compiled stays on disk, so
numba is imported only where something is compiled for the first time on a machine.

- ``halo``, ``pack``, ``tile``, ``dense``, ``winograd``, ``depthwise``, ``deform``, ``weight_grad``, ``winograd_grad``,
  ``depthwise_grad``, ``narrow_grad``, ``epilogue``: the engines, as in src/
- ``simd``: vectors, pointers and records for numba; ``moves``: copies and transposes
- ``transforms``: the formulas of ``winograd``
- ``activation``: silu, gelu, and the functions of users
- ``engines``: what programs ask; ``objects``: compiled code on disk; ``compiling``: numba; ``shapes``: sizes
"""

from typing import Any

from ...lowering import program_kernels

__all__ = ["backend"]

# The same programs run a little slower here, so where both can, the automatic choice takes the other.
HANDICAP = 1.1


def load_engines(isa: str) -> Any:
    """Return the engines for an instruction set."""
    from .engines import engines

    return engines(isa)


class NumbaBackend:
    """Kernels compiled by numba when they are first needed, and kept on disk."""

    name = "numba"
    kernels = program_kernels("numba", load_engines, functions=True, handicap=HANDICAP)

    def unavailable(self) -> str | None:
        """Return why nothing can be compiled here, or None."""
        try:
            from ... import _native  # noqa: F401
        except ImportError as error:
            return f"the compiled module, which runs the programs, cannot be imported: {error}"
        from . import objects

        if objects.used_before():  # importing numba would take longer than all the rest
            return None
        try:
            import numba
        except Exception as error:  # ImportError, or whatever a NumPy it was not made for provokes
            return f"numba cannot be imported: {error}; pip install numba"
        if getattr(numba.config, "DISABLE_JIT", False):
            return "compiling is switched off: the environment variable NUMBA_DISABLE_JIT is set"
        try:
            from . import compiling  # noqa: F401
        except (ImportError, AttributeError) as error:
            return f"numba {numba.__version__} lacks what the engines are written with: {error}"
        return None


backend = NumbaBackend()

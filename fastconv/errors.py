"""Errors a user of fastconv can meet.

All of them are also ``ValueError``, so code that guards against bad arguments needs no import from here.
``TypeError`` is raised for arguments of the wrong kind and ``MemoryError`` for results that cannot exist.
"""

__all__ = ["BackendError", "ShapeError", "UnsupportedError"]


class ShapeError(ValueError):
    """Sizes do not fit together. The message holds every shape involved and the arithmetic that failed."""


class UnsupportedError(ValueError):
    """A backend was named, and it cannot run this problem. The message says why and which backends can."""


class BackendError(ValueError):
    """A backend (or a setting that selects one) is unknown, broken or not available on this machine."""

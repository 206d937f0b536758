"""What is chosen now: backend, threads, instruction set and logging.

Each setting has a call argument, a ``with`` block, a process-wide default and an environment variable, and
the narrower one wins. Environment variables are read once, at first use, and never at import.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal

from .errors import BackendError
from .problem import as_int

__all__ = ["accuracy", "set_default_backend", "threads", "use_backend"]

ACCURACIES = ("default", "high")
ISAS = ("baseline", "avx2", "avx512")
LOG_LEVELS = {"off": None, "choices": "INFO", "refusals": "DEBUG"}

# More are never of use.
MAX_THREADS = max(64, 2 * (os.cpu_count() or 1))

# A request is the name of one backend or a tuple of names, in the order they are to be tried.
Request = str | tuple[str, ...] | None

_backend: ContextVar[Request] = ContextVar("fastconv_backend", default=None)
_threads: ContextVar[int | None] = ContextVar("fastconv_threads", default=None)
_isa: ContextVar[str | None] = ContextVar("fastconv_isa", default=None)
_accuracy: ContextVar[str | None] = ContextVar("fastconv_accuracy", default=None)
_default_backend: Request = None


def as_requested(backend: Any) -> tuple[Request, str]:
    """Return which backend a call asks for by `backend`, or else what was asked for before, and who asks."""
    return requested_backend() if backend is None else (as_request(backend), "backend=")


def as_request(value: Any, source: str = "backend") -> Request:
    """Normalise what a user gave as a backend: None, a name, or a list of names."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise TypeError(f"{source} must be the name of a backend, a list of names, or None, got {value!r}")


def _check_known(request: Request) -> Request:
    from . import registry

    for name in (request,) if isinstance(request, str) else request or ():
        registry.find_backend(name)
    return request


@contextmanager
def use_backend(backend: str | Sequence[str] | None) -> Iterator[None]:
    """Run the calls inside the block on one backend.

    Parameters
    ----------
    backend : str, sequence of str or None
        A name is strict: a call that the backend cannot take raises :class:`UnsupportedError`. A sequence is
        tried in its order. None goes back to the automatic choice. The ``backend=`` argument of a call
        overrides the block, and the innermost block counts. The setting is local to the thread or task.

    Raises
    ------
    BackendError
        If a name is unknown.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> with fastconv.use_backend("numpy"):
    ...     fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
    array([[[2., 2., 2.]]])
    """
    token = _backend.set(_check_known(as_request(backend)) or ())
    try:
        yield
    finally:
        _backend.reset(token)


def set_default_backend(backend: str | Sequence[str] | None) -> None:
    """Set the backend of this process where neither the call nor a :func:`use_backend` block names one.

    Parameters
    ----------
    backend : str, sequence of str or None
        As in :func:`use_backend`; None gives way to ``FASTCONV_BACKEND`` and then to the automatic choice.

    Raises
    ------
    BackendError
        If a name is unknown.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.set_default_backend("cython")
    >>> fastconv.set_default_backend(None)
    """
    global _default_backend
    _default_backend = _check_known(as_request(backend))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the calls inside the block on at most `count` threads.

    Results are the same bits for any number of threads.

    Parameters
    ----------
    count : int
        Upper limit, at least 1. A small problem runs on fewer.

    Raises
    ------
    ValueError
        If `count` is less than 1.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> with fastconv.threads(1):
    ...     fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
    array([[[2., 2., 2.]]])
    """
    token = _threads.set(as_thread_count(count, "count"))
    try:
        yield
    finally:
        _threads.reset(token)


@contextmanager
def accuracy(level: Literal["default", "high"]) -> Iterator[None]:
    """Hold the calls inside the block to an accuracy.

    Parameters
    ----------
    level : {"default", "high"}
        What ``accuracy=`` is for a call that does not give it: ``"high"`` keeps to kernels with max|err|/max|ref|
        within 1e-6 in float32, ``"default"`` within 4e-6. Outside of all blocks ``FASTCONV_ACCURACY`` counts.

    Raises
    ------
    ValueError
        If there is no such level.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> with fastconv.accuracy("high"):
    ...     fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
    array([[[2., 2., 2.]]])
    """
    token = _accuracy.set(_checked("level", level, ACCURACIES))
    try:
        yield
    finally:
        _accuracy.reset(token)


@contextmanager
def limit_isa(isa: str) -> Iterator[None]:
    """Build the kernels asked for inside the block for an instruction set no newer than `isa`."""
    token = _isa.set(_checked("isa", isa, ISAS))
    try:
        yield
    finally:
        _isa.reset(token)


def requested_backend() -> tuple[Request, str]:
    """Return the backend asked for outside the call, and by what; ``(None, "automatic")`` if by nothing."""
    request = _backend.get()
    if request is not None:
        return request or None, "use_backend" if request else "automatic"
    if _default_backend is not None:
        return _default_backend, "set_default_backend"
    request = environment_backend()
    return request, "automatic" if request is None else "FASTCONV_BACKEND"


def as_thread_count(value: Any, name: str = "num_threads") -> int:
    count = as_int(name, value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return min(count, MAX_THREADS)


def thread_count(requested: Any = None) -> int:
    """Return the number of threads a call may use."""
    if requested is not None:
        return as_thread_count(requested)
    return _threads.get() or environment_threads()


def max_isa() -> str | None:
    """Return the newest instruction set that kernels may use; None for the newest this machine has."""
    return _isa.get() or environment_isa()


def requested_accuracy() -> str:
    """Return the accuracy asked for outside the call."""
    return _accuracy.get() or environment_accuracy()


def best_isa(usable: Sequence[str]) -> str:
    """Return the newest of the instruction sets of this machine that kernels may use."""
    limit = max_isa() or ISAS[-1]
    return [isa for isa in usable if ISAS.index(isa) <= ISAS.index(limit)][-1]


@cache
def environment_backend() -> Request:
    text = os.environ.get("FASTCONV_BACKEND", "").strip()
    if not text:
        return None
    names = tuple(name.strip() for name in text.split(","))
    try:
        _check_known(names)
    except BackendError as error:
        raise BackendError(f"environment variable FASTCONV_BACKEND={text!r}: {error}") from None
    return names[0] if len(names) == 1 else names


@cache
def environment_threads() -> int:
    text = os.environ.get("FASTCONV_NUM_THREADS", "").strip()
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"environment variable FASTCONV_NUM_THREADS must be an integer of at least 1, got {text!r}"
        )
    return min(int(text), MAX_THREADS)


@cache
def environment_isa() -> str | None:
    text = os.environ.get("FASTCONV_MAX_ISA", "").strip()
    return _checked("environment variable FASTCONV_MAX_ISA", text, ISAS) if text else None


@cache
def environment_accuracy() -> str:
    text = os.environ.get("FASTCONV_ACCURACY", "").strip() or "default"
    return _checked("environment variable FASTCONV_ACCURACY", text, ACCURACIES)


@cache
def environment_deterministic() -> bool:
    """Return whether kernels that sum in any order are refused; there are some for GPUs only."""
    text = os.environ.get("FASTCONV_DETERMINISTIC", "").strip() or "0"
    return _checked("environment variable FASTCONV_DETERMINISTIC", text, ("0", "1")) == "1"


@cache
def environment_log() -> str:
    """Apply ``FASTCONV_LOG`` (off, choices or refusals, written to stderr) and return its value."""
    text = os.environ.get("FASTCONV_LOG", "").strip() or "off"
    level = LOG_LEVELS[_checked("environment variable FASTCONV_LOG", text, tuple(LOG_LEVELS))]
    if level is not None:
        import logging

        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("fastconv: %(message)s"))
        logger = logging.getLogger("fastconv")
        logger.addHandler(handler)
        logger.setLevel(level)
    return text


def check_environment() -> None:
    """Read what a call may have no use for, so that a wrong value of any variable is told by the first call."""
    environment_log()
    environment_deterministic()


def log(level: str, message: str, *args: object) -> None:
    """Log to the logger ``fastconv``, at level INFO (kernels chosen) or DEBUG (kernels refused).

    The logging module takes longer to import than all of this package, so only those load it who listen.
    """
    if environment_log() == "off" and "logging" not in sys.modules:
        return
    import logging

    logging.getLogger("fastconv").log(getattr(logging, level), message, *args)


def _checked(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value

"""What this process runs on: versions, the processor, settings and backends."""

import platform
import sys
from pathlib import Path

import numpy as np

from . import config, registry

__all__ = ["config_text", "cpu_model", "show_config"]


def show_config() -> None:
    """Print versions, CPU, instruction set, threads, settings and backends.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.show_config()  # doctest: +ELLIPSIS
    fastconv ...
    """
    print(config_text())


def config_text() -> str:
    """Return what :func:`show_config` prints."""
    from . import __version__

    request, source = config.requested_backend()
    lines = [
        f"fastconv {__version__}, NumPy {np.__version__}, Python {platform.python_version()} on {sys.platform} {platform.machine()}",
        f"CPU: {cpu_model()}",
        f"instruction set: {_isa()}",
        f"threads: {config.thread_count()}",
        f"backend: {'automatic' if request is None else request} ({source})",
        f"accuracy: {config.requested_accuracy()}",
        f"deterministic: {'1' if config.environment_deterministic() else '0'}",
        f"log: {config.environment_log()}",
        "backends:",
        *(f"  {status}" for status in registry.backends()),
    ]
    return "\n".join(lines)


def _isa() -> str:
    try:
        from . import _native
    except ImportError as error:
        return f"none (the compiled module cannot be loaded: {error})"
    usable = _native.isas()
    return f"{config.best_isa(usable)} (this machine has {', '.join(usable)})"


def cpu_model() -> str:
    """Return the name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return names.get("model name") or platform.processor() or platform.machine() or "unknown"

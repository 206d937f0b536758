"""Who is timed: our backends and what users would take instead, one file a library.

Each has a name, the library it needs, and ``build(case, threads)``, which returns a
:class:`~fastconv.benchmark.case.Runner` or raises :class:`~fastconv.benchmark.case.Inapplicable`. Everything that a user
would do once (building a session, packing weights, arranging the input in the layout that is measured) is done
there, outside of what is timed. Libraries are imported in ``build``, so that listing costs nothing.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata

from ..case import Case, Runner

__all__ = ["Implementation", "catalogue", "choose", "known", "missing", "version"]

STATELESS, PREPARED = "stateless", "prepared"


@dataclass(frozen=True)
class Implementation:
    """One way to run a case.

    Attributes
    ----------
    name : str
    distribution, module : str
        What has to be installed, and the module that tells whether it is.
    column : str
        ``"stateless"`` (nothing kept between calls but tables and code) or ``"prepared"``.
    layout : str
        ``"NCHW"`` or ``"NHWC"``: of the input and the output as they are measured.
    build : callable
    install : str
        How to get it.
    forward, backward : bool
        Whether it computes outputs, and gradients.
    """

    name: str
    distribution: str
    module: str
    column: str
    layout: str
    build: Callable[[Case, int], Runner]
    install: str = ""
    forward: bool = True
    backward: bool = False

    @property
    def own(self) -> bool:
        return self.distribution == "fastconv"

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def catalogue() -> list[Implementation]:
    """Return all implementations, installed or not: ours first, then the peers.

    Examples
    --------
    >>> from fastconv.benchmark import implementations
    >>> [entry.name for entry in implementations.catalogue() if entry.own][:3]
    ['cython.call', 'cython.plan', 'cython.plan_nhwc']
    """
    from . import jax_xla, onnx_runtime, open_vino, opencv, ours, pytorch, scipy_fft

    files = (ours, pytorch, onnx_runtime, open_vino, jax_xla, opencv, scipy_fft)
    return [entry for file in files for entry in file.IMPLEMENTATIONS]


def choose(
    patterns: Sequence[str] = (),
    peers: Sequence[str] = ("all",),
    layout: str | None = None,
    backward: bool = False,
    entries: Iterable[Implementation] | None = None,
) -> list[Implementation]:
    """Return the installed implementations that were asked for.

    Parameters
    ----------
    patterns : sequence of str
        Names with wildcards, or parts of names; all if empty.
    peers : sequence of str
        Parts of the names of peers, or ``"all"`` or ``"none"``; ours are always taken.
    layout : str, optional
        Only this layout.
    backward : bool
        Those with gradients, instead of those with outputs.
    """
    found = []
    for entry in catalogue() if entries is None else entries:
        named = not patterns or any(_matches(entry.name, pattern) for pattern in patterns)
        peer = entry.own or "all" in peers or any(_matches(entry.name, pattern) for pattern in peers)
        able = entry.backward if backward else entry.forward
        if named and peer and able and layout in (None, entry.layout) and entry.installed:
            found.append(entry)
    return found


def known(pattern: str) -> bool:
    """Return whether a pattern is of an implementation's name, installed or not."""
    return any(_matches(entry.name, pattern) for entry in catalogue())


def missing() -> dict[str, str]:
    """Return how to get each peer that is not installed."""
    return {entry.name: entry.install for entry in catalogue() if not entry.own and not entry.installed}


def version(distribution: str) -> str:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        if distribution == "fastconv":
            from fastconv import __version__

            return __version__
        return "unknown"


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")

"""Backends and their kernels: registration, plugin discovery, choice, and the reasons for it.

A backend is any object with

- ``name``: a str,
- ``kernels``: an ordered sequence of :class:`Kernel`, and optionally
- ``unavailable()``: None, or one sentence that says why the backend cannot run here.

Backends come from this package, from :func:`register_backend`, or from the entry-point group
``fastconv.backends`` of any installed distribution. Nothing is imported before it is needed: a plugin when an
unknown name is asked for or backends are listed, numba when one of its kernels is built.
"""

import functools
import importlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from .config import Request, log
from .errors import BackendError, UnsupportedError
from .problem import FORWARD_OPS, GRAD_OPS, SEPARABLE, Problem, parse_op
from .two_calls import TwoCalls

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Backend", "BackendStatus", "Kernel", "Refusal", "backends", "kernels", "register_backend"]

ALL_OPS = FORWARD_OPS + SEPARABLE + GRAD_OPS

ENTRY_POINT_GROUP = "fastconv.backends"


class Refusal:
    """The closed vocabulary of reasons why a kernel of this package refuses a problem."""

    NOT_NCHW = "the layout is not NCHW"
    NOT_NHWC = "the layout is not NHWC"
    NOT_DEPTHWISE = "there is more than one input channel per group"
    DEPTHWISE = "there is one input channel per group, which has a kernel of its own"
    FEW_CHANNELS = "the channels fill no vector"
    ODD_CHANNELS = "an odd number of input channels has no halves"
    NO_QUARTERS = "the channels, or those of a group, have no quarters of whole vectors"
    STRIDED = "the stride is not 1"
    NOT_ZEROS = "the padding is not zeros"
    FEW_TAPS = "a row of the kernel has few taps"
    MULTIPLIED = "a channel makes several outputs"
    NO_SMALL_KERNEL = "no axis of the kernel has a size that it knows"
    UNEVEN_TAPS = "the taps that meet the image are unevenly spaced, or not the same for every output"
    HIGH_ACCURACY = "accuracy='high' was asked for"
    CALLABLE_ACTIVATION = "the activation is a Python function"
    LONG_ROWS = "a row of pixels between the two parts does not stay in cache"
    ONLY_PADDING = "no tap of the kernel meets the image"
    DTYPE = "the type is neither float32 nor float64"
    NOT_DETERMINISTIC = "sums come in any order, and FASTCONV_DETERMINISTIC asks for the same bits"
    LARGE_IMAGE = "an image has more than 2**29 pixels"
    LARGE_TABLES = "an axis has more than 2**26 pairs of a tap and an output, which it keeps a table of"


class Executable(Protocol):
    """What :attr:`Kernel.build` returns: a call that fills `output`.

    All arrays are C-contiguous, aligned, in native byte order, of the problem's dtype and shapes, and batched;
    `offset` and `mask` are channels first in both layouts unless the kernel says otherwise; absent ones are
    None. Only `output` may be written to. Calls may come from several threads at once.

    Optional attributes: ``bind(weight, bias)`` returns an executable with the weights packed, which ignores
    the weight and bias it is called with; ``scratch_bytes(threads)``, ``copies``, ``tile`` and ``isa`` are
    what :func:`fastconv.explain` prints.

    One for ``separable_convNd`` is called, and bound, with the pointwise weight and bias in the places of `offset`
    and `mask`; ``problem.parts()`` are the two convolutions. A backend without one runs these one after the other.

    A kernel for ``convNd_weight_grad`` is called in the same way, with the gradient of the output in the place
    of `weight`, and fills `output`, which has the weight's shape. One for ``deform_convNd_grad`` is called as
    ``(grads, grad_output, input, weight, offset, mask, threads)`` and fills the arrays in the dict `grads`:
    some of ``input``, ``offset``, ``weight`` and ``mask``, each of the operand's shape.
    """

    def __call__(
        self,
        output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        offset: np.ndarray | None,
        mask: np.ndarray | None,
        threads: int,
    ) -> None: ...


@dataclass(frozen=True)
class Kernel:
    """One way to run some operations.

    Attributes
    ----------
    name : str
        ``<op>_<engine>[_<case>]``, such as ``conv_dense_nchw``; unique within the backend.
    backend : str
        Name of the backend it belongs to.
    ops : tuple of str
        The operations it can take.
    refuse : callable
        ``refuse(problem)`` returns None, or one reason why this kernel cannot take the problem.
    cost : callable
        ``cost(problem)`` returns the estimated time in seconds; the automatic choice takes the cheapest. It is asked
        for problems of one image.
    build : callable
        ``build(problem)`` returns an :class:`Executable`.
    tolerance : float
        Largest max|error| / max|reference| where the direct sum would be exact, as on small integers, in units of the
        type's machine epsilon. 0, as nearly all have it, asks for equality.
    points_as_given : bool
        Whether it takes `offset` and `mask` in the problem's layout, and not always channels first.
    """

    name: str
    backend: str
    ops: tuple[str, ...]
    refuse: Callable[[Problem], str | None] = field(repr=False)
    cost: Callable[[Problem], float] = field(repr=False)
    build: Callable[[Problem], Executable] = field(repr=False)
    tolerance: float = 0.0
    points_as_given: bool = False


@runtime_checkable
class Backend(Protocol):
    """The interface of a backend; ``unavailable`` is optional."""

    name: str
    kernels: Sequence[Kernel]


@dataclass(frozen=True)
class BackendStatus:
    """One line of :func:`backends`.

    Attributes
    ----------
    name : str
    origin : str
        Where it comes from: this package, a registration or a distribution.
    reason : str or None
        Why it cannot be used here; None if it can.
    ops : tuple of str
        The operations it has kernels for.
    """

    name: str
    origin: str
    reason: str | None
    ops: tuple[str, ...]

    @property
    def available(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.name} ({self.origin}): " + (self.reason or f"available, {len(self.ops)} operations")


@dataclass(eq=False)
class Entry:
    """A registered backend, loaded when first needed."""

    name: str
    origin: str
    load: Callable[[], Any]
    # A plugin runs only where it is named: it is known from the first scan on, and what runs must not depend on
    # whether somebody has listed the backends before. So does cuda: to copy arrays there and back is seldom worth it.
    automatic: bool = True
    backend: Any = None
    error: str | None = None

    def ready(self) -> Any:
        """Return the backend object, or raise BackendError with the reason."""
        if self.backend is None and self.error is None:
            try:
                backend = self.load()
                if isinstance(backend, type) or (callable(backend) and not hasattr(backend, "kernels")):
                    backend = backend()
                check_backend_object(backend, self.name)
                self.backend = backend
            except Exception as error:  # a broken plugin is shown with its error and breaks nothing else
                self.error = f"it failed to load: {type(error).__name__}: {error}"
        if self.error is not None:
            raise BackendError(f"backend {self.name!r} ({self.origin}) cannot be used: {self.error}")
        return self.backend

    def reason(self) -> str | None:
        """Return why the backend cannot be used here, or None."""
        try:
            backend = self.ready()
        except BackendError:
            return self.error
        try:
            return backend.unavailable() if hasattr(backend, "unavailable") else None
        except Exception as error:  # as above: a plugin's own check may fail in any way
            return f"its availability check failed: {type(error).__name__}: {error}"


# In the order they are tried where estimated costs are equal. The oracle comes last, always.
_BUILTIN = ("cython", "numba", "cuda", "numpy")
ORACLE = "numpy"

_lock = threading.RLock()
_entries: dict[str, Entry] = {}
_scanned = False
generation = 0  # grows with each registration, so that remembered choices are forgotten


def _load_builtin(name: str) -> Any:
    return importlib.import_module(f".backends.{name}", __package__).backend


def _builtin(name: str) -> Entry:
    return Entry(name, "fastconv", lambda: _load_builtin(name), automatic=name != "cuda")


for _name in _BUILTIN:
    _entries[_name] = _builtin(_name)


def _unlock() -> None:
    """Replace the lock in a forked child: the thread that held it may not exist there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def check_backend_object(backend: Any, name: str | None = None) -> None:
    """Raise TypeError or ValueError if `backend` does not have the interface of a backend."""
    if not isinstance(getattr(backend, "name", None), str) or not backend.name.isidentifier():
        raise TypeError(
            f"a backend needs a `name`, a str that is an identifier, got {getattr(backend, 'name', None)!r}"
        )
    if name is not None and backend.name != name:
        raise ValueError(f"the backend is registered as {name!r} but calls itself {backend.name!r}")
    found = getattr(backend, "kernels", None)
    if not isinstance(found, Sequence) or not found:
        raise TypeError(
            f"backend {backend.name!r} needs `kernels`, a sequence of fastconv.Kernel objects, got {found!r}"
        )
    for kernel in found:
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"`kernels` of backend {backend.name!r} must hold fastconv.Kernel objects, got {kernel!r}"
            )
        if kernel.backend != backend.name:
            raise ValueError(
                f"kernel {kernel.name!r} of backend {backend.name!r} says that it belongs to backend {kernel.backend!r}"
            )
        if isinstance(kernel.ops, str) or not kernel.ops or set(kernel.ops) - set(ALL_OPS):
            raise ValueError(
                f"ops of kernel {kernel.name!r} must be a tuple of names among {', '.join(ALL_OPS)}, got {kernel.ops!r}"
            )


def register_backend(backend: Backend, *, replace: bool = False) -> None:
    """Make a backend known to this process.

    Parameters
    ----------
    backend : Backend
        An object with ``name``, ``kernels`` and, if it may be absent on some machines, ``unavailable()``.
    replace : bool, optional
        Whether a backend of the same name may be replaced.

    Raises
    ------
    TypeError, ValueError
        If the object lacks the interface, or the name is taken.

    Examples
    --------
    >>> import fastconv
    >>> oracle = fastconv.kernels("conv1d", backend="numpy")[0]
    >>> class Echo:
    ...     name = "echo"
    ...     kernels = [fastconv.Kernel("conv_echo", "echo", ("conv1d",), oracle.refuse, oracle.cost, oracle.build)]
    >>> fastconv.register_backend(Echo())
    >>> fastconv.conv1d([[1.0, 2.0, 3.0]], [[[1.0, 1.0]]], backend="echo")
    array([[3., 5.]])
    >>> fastconv.unregister_backend("echo")
    """
    global generation
    check_backend_object(backend)
    with _lock:
        if backend.name in _entries and not replace:
            raise ValueError(
                f"a backend {backend.name!r} is registered already; pass replace=True to replace it"
            )
        _entries[backend.name] = Entry(backend.name, "registered", lambda: backend, backend=backend)
        generation += 1


def unregister_backend(name: str) -> None:
    """Forget a backend that was registered; those of this package stay, or come back if they were replaced.

    Parameters
    ----------
    name : str

    Raises
    ------
    BackendError
        If the name is unknown.
    ValueError
        If the backend belongs to this package.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.unregister_backend("nonsense")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    fastconv.errors.BackendError: unknown backend 'nonsense'; known are ...
    """
    global generation
    with _lock:
        if find_backend(name).origin == "fastconv":
            raise ValueError(f"backend {name!r} belongs to fastconv and cannot be unregistered")
        if name in _BUILTIN:  # it stood in for one of this package
            _entries[name] = _builtin(name)
        else:
            del _entries[name]
        generation += 1


def _scan_plugins() -> None:
    """Add the backends that installed distributions announce; a name already taken is left alone."""
    global _scanned, generation
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    with _lock:
        if _scanned:
            return
        _scanned = True
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name not in _entries:
                _entries[point.name] = Entry(point.name, _distribution(point), point.load, automatic=False)
        generation += 1


def _distribution(point: "EntryPoint") -> str:
    return f"plugin {point.dist.name} {point.dist.version}" if point.dist else "plugin"


def find_backend(name: str) -> Entry:
    """Return the entry of a backend, looking among installed plugins if the name is new."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a backend must be a str, got {name!r}")
    if name not in _entries:
        _scan_plugins()
    if name not in _entries:
        raise BackendError(f"unknown backend {name!r}; known are {', '.join(map(repr, _entries))}")
    return _entries[name]


def backends() -> list[BackendStatus]:
    """List every known backend, and why one cannot be used here.

    Returns
    -------
    list of BackendStatus
        In the order of preference; a broken plugin is listed with its error.

    Examples
    --------
    >>> import fastconv
    >>> [status.name for status in fastconv.backends() if status.origin == "fastconv"]
    ['cython', 'numba', 'cuda', 'numpy']
    """
    _scan_plugins()
    return [status(entry) for entry in list(_entries.values())]


def status(entry: Entry) -> BackendStatus:
    reason = entry.reason()
    ops = {op for kernel in entry.backend.kernels for op in kernel.ops} if entry.backend else set()
    return BackendStatus(entry.name, entry.origin, reason, tuple(op for op in ALL_OPS if op in ops))


def kernels(op: str | None = None, *, backend: str | None = None) -> list[Kernel]:
    """List the kernels of the backends that can be used here.

    Parameters
    ----------
    op : str, optional
        Only the kernels for this operation, such as ``"conv2d"`` or ``"conv2d_weight_grad"``.
    backend : str, optional
        Only those of this backend.

    Returns
    -------
    list of Kernel

    Raises
    ------
    ValueError
        If `op` is no operation, or the backend is unknown or cannot be used.

    Examples
    --------
    >>> import fastconv
    >>> [kernel.name for kernel in fastconv.kernels("conv2d", backend="numpy")]
    ['conv_direct']
    """
    if op is not None:
        parse_op(op, ALL_OPS)
    if backend is not None:
        found = find_backend(backend).ready().kernels
    else:
        found = [
            kernel
            for status in backends()
            if status.available
            for kernel in _entries[status.name].backend.kernels
        ]
    return [kernel for kernel in found if op is None or op in kernel.ops]


def verdicts(problem: Problem, entry: Entry) -> list[tuple[Kernel, str | None]]:
    """Return every kernel a backend has for the operation, with its refusal or None."""
    found = [kernel for kernel in entry.ready().kernels if problem.op in kernel.ops]
    if problem.op in SEPARABLE and entry.name != ORACLE:
        found.append(two_calls(entry))
    return [(kernel, _refusal(kernel, problem)) for kernel in found]


@functools.cache
def two_calls(entry: Entry) -> Kernel:
    """Return the kernel that runs a separable convolution as two, by a backend's kernels for these."""

    def chosen(problem: Any) -> list[tuple[Problem, Kernel | None]]:
        return [
            (part, min(_accepting(part, entry), key=functools.partial(cost, problem=part), default=None))
            for part in problem.parts()
        ]

    def refuse(problem: Any) -> str | None:
        missing = [str(part) for part, kernel in chosen(problem) if kernel is None]
        return f"the backend has no kernel for {missing[0]}" if missing else None

    def seconds(problem: Any) -> float:
        return sum(cost(kernel, part) for part, kernel in chosen(problem) if kernel is not None)

    def build(problem: Any) -> Any:
        runs = [kernel.build(part) for part, kernel in chosen(problem) if kernel is not None]
        return TwoCalls(problem, runs)

    return Kernel("separable_conv_two_calls", entry.name, SEPARABLE, refuse, seconds, build)


def _refusal(kernel: Kernel, problem: Problem) -> str | None:
    try:
        return kernel.refuse(problem)
    except Exception as error:  # a plugin's check that fails speaks for that kernel only
        return f"its check failed: {type(error).__name__}: {error}"


def cost(kernel: Kernel, problem: Problem) -> float:
    """Return the estimated seconds of a kernel; inf if it cannot tell.

    They are those of one image: which kernel runs, and so how a result is rounded, must not depend on the batch.
    """
    try:
        seconds = float(kernel.cost(replace(problem, batch=1)))
    except Exception as error:  # as above
        log("DEBUG", "%s: the cost of %s %s cannot be told: %s", problem, kernel.backend, kernel.name, error)
        return math.inf
    return math.inf if math.isnan(seconds) else seconds


def choose(problem: Problem, request: Request) -> Kernel:
    """Return the kernel that runs `problem`: of the backend asked for, or the cheapest of all.

    Raises
    ------
    BackendError
        If a backend asked for is unknown or cannot be used here.
    UnsupportedError
        If it refuses the problem; the message holds each kernel's reason and the backends that would take it.
    """
    if request is None:
        kernel = _cheapest_of_all(problem)
    elif isinstance(request, str):
        kernel = _of_backend(problem, request)
    else:
        kernel = _first_of(problem, request)
    log(
        "INFO",
        "%s -> %s %s (%s)",
        problem,
        kernel.backend,
        kernel.name,
        "automatic" if request is None else request,
    )
    return kernel


def _cheapest_of_all(problem: Problem) -> Kernel:
    # Whether a backend can be used is asked of the cheapest first: numba is not imported to be passed over.
    accepted = []
    for name, entry in list(_entries.items()):
        if not entry.automatic:
            continue
        try:
            accepted += [
                (name == ORACLE, cost(kernel, problem), kernel, entry)
                for kernel in _accepting(problem, entry)
            ]
        except BackendError as error:  # one that fails to load must not stop the others
            log("DEBUG", "backend %s passed over: %s", name, error)
    for *_, kernel, entry in sorted(accepted, key=lambda item: item[:2]):
        if entry.reason() is None:
            return kernel
    raise UnsupportedError(f"no backend can run {problem}\n{_refusals(problem, list(_entries))}")


def _of_backend(problem: Problem, name: str) -> Kernel:
    entry = find_backend(name)
    reason = entry.reason()
    if reason is not None:
        raise BackendError(f"backend {name!r} ({entry.origin}) cannot be used: {reason}")
    accepted = _accepting(problem, entry)
    if not accepted:
        takers = [
            other.name for other in list(_entries.values()) if other is not entry and _takes(problem, other)
        ]
        raise UnsupportedError(
            f"backend {name!r} cannot run {problem}\n{_refusals(problem, [name])}\nbackends that can: {', '.join(takers) or 'none'}"
        )
    return min(accepted, key=lambda kernel: cost(kernel, problem))


def _first_of(problem: Problem, names: Sequence[str]) -> Kernel:
    errors = []
    for name in names:
        find_backend(name)  # an unknown name is an error wherever it stands in the list
    for name in names:
        try:
            return _of_backend(problem, name)
        except (BackendError, UnsupportedError) as error:
            errors.append(str(error))
    raise UnsupportedError("none of the backends asked for can run this\n" + "\n".join(errors))


def _accepting(problem: Problem, entry: Entry) -> list[Kernel]:
    found = []
    for kernel, refusal in verdicts(problem, entry):
        if refusal is None:
            found.append(kernel)
        else:
            log("DEBUG", "%s refused by %s %s: %s", problem, kernel.backend, kernel.name, refusal)
    return found


def _takes(problem: Problem, entry: Entry) -> bool:
    return entry.reason() is None and any(refusal is None for _, refusal in verdicts(problem, entry))


def _refusals(problem: Problem, names: Any) -> str:
    return "\n".join(
        f"  {kernel or name}: {reason}" for name in names for kernel, reason in explain_backend(problem, name)
    )


def explain_backend(problem: Problem, name: str) -> list[tuple[str, str]]:
    """Return (kernel name, reason) for every kernel of a backend that cannot take the problem."""
    entry = find_backend(name)
    reason = entry.reason()
    if reason is not None:
        return [("", reason)]
    found = verdicts(problem, entry)
    if not found:
        return [("", f"it has no kernel for {problem.op}")]
    return [(kernel.name, refusal) for kernel, refusal in found if refusal is not None]

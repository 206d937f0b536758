"""What an implementation is given to do, and what it is held to."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import functional, grad, separable
from ..analysis.cost import inbounds_flops
from ..testing import max_error
from .workloads import Workload

__all__ = ["Case", "Inapplicable", "Refused", "Runner", "check"]

# Ours are held to the accuracy that the library promises. A peer is refused only if it is wrong, not if it rounds
# in another way, which would be a cheap way to look better than it.
OWN_TOLERANCE = {"float32": 4e-6, "float64": 1e-13}
PEER_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
# The gradients of weights are sums over all pixels of all images.
OWN_GRADIENT_TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

# Arrays begin where NumPy's do in a line, behind 16 bytes, but in the middle of a page and not at its begin.
PAGE_BYTES = 4096
DISPLACEMENT = 2048 + 16


class Refused(Exception):
    """The answer of an implementation is wrong; the message tells how."""


class Inapplicable(Exception):
    """A library has nothing for this case; the message tells what it lacks."""


@dataclass(frozen=True)
class Runner:
    """An implementation bound to a case. It must outlive its calls: libraries write to buffers that it owns.

    Attributes
    ----------
    call : callable
        What is timed.
    arrays : callable
        Turns what `call` returned into NumPy arrays, channels first: the output, or the gradients in the order of
        `Case.wanted`.
    kernel, isa : str or None
        What runs, where the library tells.
    scratch_bytes : int or None
        Scratch memory that it holds.
    """

    call: Callable[[], Any]
    arrays: Callable[[Any], Any]
    kernel: str | None = None
    isa: str | None = None
    scratch_bytes: int | None = None


class Case:
    """A workload with its data, in one type and one direction.

    Attributes
    ----------
    workload : Workload
    dtype : str
    backward : bool
        Whether the gradients are wanted instead of the output.
    fresh : bool
        Whether each call starts from NumPy arrays and ends in one, conversions included.
    """

    def __init__(
        self,
        workload: Workload,
        dtype: str = "float32",
        *,
        backward: bool = False,
        fresh: bool = False,
        memory: Path | None = None,
    ):
        self.workload, self.dtype, self.backward, self.fresh = workload, dtype, backward, fresh
        self.problem = workload.problem(dtype)
        self.options = workload.options()
        self._memory = memory

    @cached_property
    def operands(self) -> dict[str, np.ndarray]:
        """The arrays, channels first."""
        return self.workload.operands(self.dtype)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the operands whose gradients are wanted: all that were given."""
        names = ("input", "offset", "weight", "mask")
        return tuple(name for name in names if name in self.operands)

    @cached_property
    def grad_output(self) -> np.ndarray:
        noise = np.random.default_rng(1).standard_normal(self.problem.output_shape)
        return noise.astype(self.dtype)

    def displaced(self) -> "Case":
        """Return the same case with arrays elsewhere, also within a page."""
        other = copy.copy(self)
        other.operands = {name: _elsewhere(array) for name, array in self.operands.items()}
        if self.backward:
            other.grad_output = _elsewhere(self.grad_output)
        return other

    @property
    def flops(self) -> int:
        """Operations that every implementation must do, so that none looks fast for work it need not do.

        The taps on the image, without interpolation; each of the two gradients takes as many as the output.
        """
        return inbounds_flops(self.problem, self.operands.get("offset")) * (2 if self.backward else 1)

    @property
    def bytes(self) -> int:
        """Compulsory traffic: everything that is read or written, once."""
        if not self.backward:
            return self.problem.bytes
        return self.grad_output.nbytes + 2 * sum(array.nbytes for array in self.operands.values())

    @cached_property
    def reference(self) -> list[np.ndarray]:
        """The answer in float64: of the first and last image, or the gradients.

        Kept in the folder `memory`, so that the processes of one run compute it once.
        """
        kind = "backward" if self.backward else "forward"
        path = (
            None if self._memory is None else self._memory / f"{self.workload.name}-{self.dtype}-{kind}.npz"
        )
        if path is not None and path.exists():
            with np.load(path) as stored:
                return list(stored.values())
        found = self._gradients() if self.backward else [self._output()]
        if path is not None:
            np.savez(path, *found)
        return found

    def compared(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return of the results what the reference has."""
        return arrays if self.backward else [arrays[0][self._ends]]

    @property
    def _ends(self) -> Any:
        return [0, -1] if self.workload.input[0] > 1 else slice(None)

    def _output(self) -> np.ndarray:
        operands = {
            name: (array if "weight" in name else array[self._ends]).astype(np.float64)
            for name, array in self.operands.items()
        }
        module = separable if self.workload.pointwise else functional
        return getattr(module, self.workload.op)(**operands, **self.options, backend="numpy")

    def _gradients(self) -> list[np.ndarray]:
        wide = {name: array.astype(np.float64) for name, array in self.operands.items()}
        function = getattr(grad, self.workload.op)
        found = function(
            self.grad_output.astype(np.float64), **wide, **self.options, wrt=self.wanted, backend="numpy"
        )
        return [getattr(found, name) for name in self.wanted]


def check(case: Case, arrays: list[np.ndarray], *, own: bool) -> float:
    """Return max|error|/max|result| against float64; raise Refused where it says that the answer is wrong."""
    tolerances = PEER_TOLERANCE
    # Subnormal inputs have few digits: what the promise of accuracy is about is lost before anything is computed.
    if own and case.workload.scale >= np.finfo(case.dtype).tiny:
        tolerances = OWN_GRADIENT_TOLERANCE if case.backward else OWN_TOLERANCE
    worst = 0.0
    expected = case.reference
    given = case.compared(arrays)
    if len(given) != len(expected):
        raise Refused(f"wrong: {len(given)} arrays where {len(expected)} are expected")
    for actual, right in zip(given, expected, strict=True):
        if actual.shape != right.shape:
            raise Refused(f"wrong: shape {actual.shape} where {right.shape} is expected")
        worst = max(worst, float(max_error(actual, right)))
    if not worst <= tolerances[case.dtype]:
        raise Refused(
            f"wrong: max|error|/max|result| is {worst:.2g}, allowed are {tolerances[case.dtype]:.0e}"
        )
    return worst


def _elsewhere(array: np.ndarray) -> np.ndarray:
    room = np.empty(array.nbytes + PAGE_BYTES, np.uint8)
    begin = (DISPLACEMENT - room.ctypes.data) % PAGE_BYTES
    found = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found

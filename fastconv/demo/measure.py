"""Each step on each backend: is it right, by which kernel, and how long does it take?"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastconv import registry
from fastconv.testing import max_error

from .steps import Step

__all__ = ["TOLERANCE", "Measurement", "Progress", "measure_all"]

TOLERANCE = 4e-6  # max|error| / max|reference| that float32 kernels keep to by default
SECONDS = 0.3  # spent on timing one step on one backend, after the warm-up
REPEATS = 100


class Progress(Protocol):
    """What is told while the measurements run."""

    def start(self, total: int) -> None: ...
    def advance(self, doing: str) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True)
class Measurement:
    """One step on one backend.

    Attributes
    ----------
    step : Step
    backend, kernel : str
    seconds : float
        Shortest time of one call, after a first one that is not counted.
    error : float
        max|error| / max|reference| against the oracle in float64.
    """

    step: Step
    backend: str
    kernel: str
    seconds: float
    error: float

    @property
    def agrees(self) -> bool:
        return self.error <= TOLERANCE


def measure_all(steps: Mapping[str, Step], backends: Sequence[str], progress: Progress) -> list[Measurement]:
    """Measure every step on every backend named, or on all that can be used here if none is.

    Raises
    ------
    BackendError, UnsupportedError
        If a backend is unknown, cannot be used here, or cannot run a step.
    """
    chosen = list(backends) or [
        status.name for status in registry.backends() if status.origin == "fastconv" and status.available
    ]
    kernels = {(name, backend): step.kernel(backend) for name, step in steps.items() for backend in chosen}
    measurements = []
    progress.start(len(kernels))
    try:
        for name, step in steps.items():
            reference = step.reference()
            for backend in chosen:
                progress.advance(f"{step.variant} {step.title} on {backend}")
                measurements.append(_measure(step, backend, kernels[name, backend], reference))
    finally:
        progress.finish()
    return measurements


def _measure(step: Step, backend: str, kernel: str, reference: np.ndarray) -> Measurement:
    result = step.run(backend)  # also the warm-up: code is compiled, tables and scratch are made
    seconds = _shortest(lambda: step.run(backend))
    return Measurement(step, backend, kernel, seconds, max_error(result, reference))


def _shortest(call: Callable[[], object]) -> float:
    best, started = float("inf"), time.perf_counter()
    for _ in range(REPEATS):
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - before)
        if now - started > SECONDS:
            break
    return best

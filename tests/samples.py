"""One small call for each operation, every size of it different, and programs run in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastconv

ROOT = Path(fastconv.__file__).parent.parent
SIZES = {1: (9,), 2: (6, 7), 3: (5, 6, 7)}
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 3, 1)}
ARRAYS = ("input", "offset", "weight", "bias", "mask")


def rank(op: str) -> int:
    """Return the number of spatial axes of an operation."""
    return int(op[-2])


def variant(op: str) -> str:
    """Return the operation without its rank: conv, conv_transpose or deform_conv."""
    return op[:-2]


def sample(op: str, *, dtype: Any = np.float32, batch: int = 2) -> dict[str, Any]:
    """Return the arrays of one call by argument name: integers, so that the result is exact in any order.

    Input channels 4, output channels 6. Displacements are multiples of a quarter.
    """
    rng = np.random.default_rng([len(op), rank(op)])
    size, kernel = SIZES[rank(op)], KERNELS[rank(op)]
    transposed = variant(op) == "conv_transpose"
    arrays = {
        "input": rng.integers(-4, 5, (batch, 4, *size)),
        "weight": rng.integers(-4, 5, (4, 6, *kernel) if transposed else (6, 4, *kernel)),
        "bias": rng.integers(-4, 5, 6),
    }
    if variant(op) == "deform_conv":
        out = tuple(i - k + 1 for i, k in zip(size, kernel, strict=True))
        taps = int(np.prod(kernel))
        arrays["offset"] = rng.integers(-8, 9, (batch, rank(op) * taps, *out)) / 4
        arrays["mask"] = rng.integers(0, 3, (batch, taps, *out))
    return {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}


def call(op: str, arguments: dict[str, Any], **options: Any) -> np.ndarray:
    """Return the result of the public function."""
    return getattr(fastconv, op)(**{**arguments, **options})


def call_on(backend: str, op: str, arguments: dict[str, Any], **options: Any) -> np.ndarray:
    """Return the result on one backend, after checking that the kernel chosen belongs to it."""
    asked = {**arguments, **options, "backend": backend}
    assert fastconv.explain(op, **asked).backend == backend
    return call(op, asked)


def plan_of(op: str, arguments: dict[str, Any], **options: Any) -> fastconv.Plan:
    """Return the plan for the same call: the shape of the input, the constant arrays and the options."""
    given = {**arguments, **options}
    for name in ("input", "offset", "mask", "out"):
        given.pop(name, None)
    if variant(op) == "deform_conv":
        given["mask"] = "mask" in arguments
    return fastconv.plan(op, np.shape(arguments["input"]), **given)


def run_plan(plan: fastconv.Plan, arguments: dict[str, Any], **options: Any) -> np.ndarray:
    """Return the result of a plan for the arrays that change from call to call."""
    changing = {name: arguments[name] for name in ("input", "offset", "mask") if name in arguments}
    return plan(**changing, **options)


def python(
    program: str | Path, *arguments: str, timeout: float = 100, path: Path | None = None, **environment: str
) -> str:
    """Run a program, or a file that holds one, in a fresh interpreter and return what it prints.

    `environment` sets variables; `path` is searched before this package. Anything but success is an
    AssertionError with the program's output; a program that hangs is killed and fails.
    """
    places = [str(place) for place in (path, ROOT, Path(__file__).parent) if place is not None]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTCONV_")}
    start = [str(program)] if isinstance(program, Path) else ["-c", program]
    result = subprocess.run(
        [sys.executable, *start, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(places), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr

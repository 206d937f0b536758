"""What several test files share: a call that proves which backend ran it, and data whose sums are exact."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional
from fastconv.call import find_call

# Largest max|error| / max|reference| of a direct sum on random data. Rounding errors grow with the square
# root of the number of terms; 4608 terms (512 channels, 3 x 3 taps) are the longest sums tested.
FLOAT32 = 1e-6
FLOAT32_LONG = 2e-6
FLOAT64 = 1e-14

DIMS = (1, 2, 3)
DTYPES = ("float32", "float64")


def run(backend: str, op: str, *args: Any, **kwargs: Any) -> np.ndarray:
    """Return what a function of fastconv gives on `backend`, and check that it was a kernel of that backend.

    The call is watched on its way, so not from several threads at once.
    """
    ran = []

    def watched(*arguments: Any) -> Any:
        call = find_call(*arguments)
        ran.append(call.kernel.backend)
        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "find_call", watched)
        result = getattr(fastconv, op)(*args, backend=backend, **kwargs)
    assert ran == [backend], f"{ran} ran {describe(op, *args, backend=backend, **kwargs)}"
    return result


def describe(op: str, *args: Any, **kwargs: Any) -> str:
    """Return the call as text, arrays by type and shape."""
    texts = [_text(value) for value in args] + [f"{name}={_text(value)}" for name, value in kwargs.items()]
    return f"fastconv.{op}({', '.join(texts)})"


def _text(value: Any) -> str:
    return f"<{value.dtype} {value.shape}>" if isinstance(value, np.ndarray) else repr(value)


def integers(rng: np.random.Generator, shape: Sequence[int], dtype: Any = np.float64) -> np.ndarray:
    """Return small whole numbers: their products and sums are exact in float32, in any order."""
    return rng.integers(-4, 5, shape).astype(dtype)


def normals(rng: np.random.Generator, shape: Sequence[int], dtype: Any = np.float64) -> np.ndarray:
    """Return random numbers as found in practice."""
    return rng.standard_normal(shape).astype(dtype)

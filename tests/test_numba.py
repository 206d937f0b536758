"""What only the numba backend has: compiling on demand, its disk cache, and activations of the user's own."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import config

numba = pytest.importorskip("numba")

X = np.random.default_rng(0).standard_normal((2, 3, 9, 20))
W = np.random.default_rng(1).standard_normal((5, 3, 3, 3))


def run_python(code, **environment):
    """Run code in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def engines():
    from fastconv.backends.numba import engines

    return engines


# ---- One engine, one contract with the tables --------------------------------------------------------------


def test_tiles_are_those_of_the_compiled_backend(engines):
    from fastconv import _native

    for isa in _native.isas():
        compiled, own = _native.engines(isa), engines.engines(isa)
        expected = (compiled["vec_bytes"], compiled["tile"], compiled["lane_tile"])
        assert (own.vec_bytes, own.tile, own.lane_tile) == expected


def test_frames_have_room_for_what_the_lowering_plans():
    from fastconv import _native
    from fastconv.backends.numba import columns, tile
    from fastconv.lowering import columns as lowered

    own = {"k_block": tile.MAX_K_BLOCK, "pixel_block": tile.MAX_PIXEL_BLOCK}
    own |= {"column_rows": columns.MAX_ROWS, "column_taps": columns.MAX_TAPS}
    assert own == _native.limits()
    assert (lowered.TILE_ROWS, lowered.MAX_TAPS) == (columns.MAX_ROWS, columns.MAX_TAPS)


def test_shapes_and_options_are_data(engines):
    """However many problems: no engine is compiled twice for one type."""
    for stride, dilation, groups, padding in ((1, 1, 1, 0), (2, 1, 3, 1), (1, 3, 1, 5), (3, 2, 3, (2, 1))):
        fastconv.conv2d(
            X, W[:, : 3 // groups].repeat(3, 0), None, stride, padding, dilation, groups, backend="numba"
        )
    info = engines.compiled_engine.cache_info()
    assert info.currsize <= 2 * len(engines.ENGINES) * len(engines.VECTOR_BYTES)


# ---- Activations -------------------------------------------------------------------------------------------


def leaky(v):
    return v if v > 0 else v / 10


@numba.njit
def softsign(v):
    return v / (1 + abs(v))


FUNCTIONS = [leaky, softsign, lambda v: v * v - 1, math.tanh, np.tanh, abs]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: getattr(f, "__name__", str(f)))
def test_any_function_that_numba_compiles(function, dtype):
    x, w, bias = X.astype(dtype), W.astype(dtype), np.arange(5, dtype=dtype)
    expected = getattr(function, "py_func", function)
    expected = fastconv.conv2d(x, w, bias, padding=1, activation=expected, backend="numpy")
    for layout in ("NCHW", "NHWC"):
        moved = x if layout == "NCHW" else np.moveaxis(x, 1, -1)
        y = fastconv.conv2d(moved, w, bias, padding=1, layout=layout, activation=function, backend="numba")
        y = y if layout == "NCHW" else np.moveaxis(y, -1, 1)
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_silu_and_gelu_over_their_whole_range(name, dtype, isa):
    special = [0.0, -0.0, np.inf, np.nan, 88.8, -88.8, 104, -104, 709.9, -709.9, 746, -746, 1e30, -1e30]
    x = np.concatenate([np.linspace(-15, 15, 4001), np.geomspace(1e-30, 1e3, 999), special]).astype(dtype)
    with config.limit_isa(isa):
        y = fastconv.conv1d(x[None], np.ones((1, 1, 1), dtype), activation=name, backend="numba")[0]
    expected = fastconv.conv1d(x[None], np.ones((1, 1, 1), dtype), activation=name, backend="numpy")[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


def test_a_function_selects_this_backend():
    problem = fastconv.explain("conv2d", X, W, activation=leaky)
    assert "numba" in str(problem)


def test_division_by_zero_is_that_of_arrays():
    y = fastconv.conv1d(np.zeros((1, 1, 3)), np.ones((1, 1, 1)), activation=lambda v: 1 / v, backend="numba")
    assert np.all(y == np.inf)


def raises(v):
    if v > 0:
        raise ValueError("no")
    return v


def unknown_name(v):
    return nowhere(v)  # noqa: F821


class Callable:
    def __call__(self, v):
        return v


class Unhashable(Callable):
    __hash__ = None


BAD = [
    raises,
    unknown_name,
    Callable(),
    Unhashable(),
    lambda: 1,
    lambda v: "text",
    lambda v: (v, v),
    lambda v: 1j * v,
    str,
]


@pytest.mark.parametrize("function", BAD, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_what_cannot_be_compiled_is_a_type_error(function):
    with pytest.raises(TypeError, match=r"^activation .* cannot be compiled") as caught:
        fastconv.conv2d(X, W, activation=function, backend="numba")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert getattr(function, "__qualname__", repr(function)) in str(caught.value)
    assert "nopython" not in str(caught.value)


# ---- Importing and compiling -------------------------------------------------------------------------------


def test_numba_is_imported_only_to_build():
    code = """
import sys, numpy as np, fastconv
from fastconv.backends.numba import backend
x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
fastconv.conv1d(x, w)
assert len(backend.kernels) and "numba" not in sys.modules
fastconv.conv1d(x, w, backend="numba")
assert "numba" in sys.modules
"""
    run_python(code)


LIST_AND_RUN = """
import sys, numpy as np, fastconv
{}
reason = [status.reason for status in fastconv.backends() if status.name == "numba"][0]
fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
try:
    fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)), backend="numba")
except fastconv.BackendError as error:
    assert reason in str(error)
    print(reason)
"""


def test_without_numba_the_reason_is_told_and_the_rest_works():
    reason = run_python(LIST_AND_RUN.format('sys.modules["numba"] = None'))
    assert reason.startswith("numba cannot be imported: ")
    assert reason.endswith("pip install numba")


def test_with_jit_disabled_the_reason_is_told_and_the_rest_works():
    assert "NUMBA_DISABLE_JIT" in run_python(LIST_AND_RUN.format(""), NUMBA_DISABLE_JIT="1")


COUNT_HITS = """
import numpy as np, fastconv
from numba import types
from fastconv.backends.numba import engines
fastconv.conv1d(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 2), "f4"), activation="silu", backend="numba")
silu = engines.compiled_activation("silu", types.float32, 4)
rows = engines.compiled_engine("dense_rows", types.float32, 4)
print(engines.compiled_engine.cache_info().misses, silu.cache_hits + rows.cache_hits)
"""


def test_a_fresh_process_finds_compiled_code_on_disk(tmp_path):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path), "FASTCONV_MAX_ISA": "baseline"}
    assert [run_python(COUNT_HITS, **settings) for _ in range(2)] == ["1 0", "1 2"]


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    code = """
import numpy as np, fastconv
print(fastconv.conv1d(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 2), "f4"), backend="numba").sum())
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(not_a_folder), FASTCONV_MAX_ISA="baseline") == "6.0"


def test_an_edit_to_any_source_is_another_edition(engines, monkeypatch, tmp_path):
    from fastconv.lowering import program

    changed = tmp_path / "program.py"
    changed.write_text(Path(program.__file__).read_text() + "\n")
    before = engines.edition.__wrapped__()
    monkeypatch.setattr(engines.program, "__file__", str(changed))
    assert engines.edition.__wrapped__() != before

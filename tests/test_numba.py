"""What only the numba backend has: compiling on demand, its disk cache, and activations of the user's own."""

import math
import os
import shutil
import subprocess
import sys
import zlib
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
    from fastconv.backends.numba import columns, deform_grad, tile, winograd
    from fastconv.lowering import columns as lowered

    own = {"k_block": tile.MAX_K_BLOCK, "pixel_block": tile.MAX_PIXEL_BLOCK}
    own |= {"leaving_pixels": winograd.LEAVING_PIXELS, "winograd_tiles": winograd.MAX_TILES}
    own |= {"winograd_width": winograd.WIDTH_BYTES}
    own |= {"column_rows": columns.MAX_ROWS, "column_taps": columns.MAX_TAPS}
    own |= {"progress_step": deform_grad.PROGRESS_STEP}
    assert own == _native.limits()
    assert (lowered.TILE_ROWS, lowered.MAX_TAPS) == (columns.MAX_ROWS, columns.MAX_TAPS)
    for name in ("MOST_VECTORS", "HALF", "SECOND", "PAIRED", "SECOND_ROWS", "PAIRED_ROWS", "MAX_COLUMNS"):
        assert getattr(lowered, name) == getattr(columns, name)


def test_winograd_has_the_algorithms_that_the_lowering_plans():
    from fastconv.backends.numba import transforms, winograd
    from fastconv.lowering import winograd as lowering

    planned = {(m, r) for r, outputs in lowering.OUTPUTS.items() for m in outputs}
    assert planned == set(transforms.ALGORITHMS)
    assert {m + r - 1 for m, r in planned} == set(transforms.POINTS)
    assert winograd.LEAVING_PIXELS == lowering.LEAVING_PIXELS
    assert winograd.WIDTH_BYTES == lowering.WIDTH_BYTES
    assert max(lowering.MOST_TILES.values()) <= winograd.MAX_TILES


def test_shapes_and_options_are_data(engines):
    """However many problems: no engine is compiled twice for one type."""
    for stride, dilation, groups, padding in ((1, 1, 1, 0), (2, 1, 3, 1), (1, 3, 1, 5), (3, 2, 3, (2, 1))):
        fastconv.conv2d(
            X, W[:, : 3 // groups].repeat(3, 0), None, stride, padding, dilation, groups, backend="numba"
        )
    from fastconv.backends.numba import compiling

    most = 2 * (len(compiling.ENGINES) + len(compiling.ACTIVATIONS)) * len(engines.VECTOR_BYTES)
    assert engines.address.cache_info().currsize <= most


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


CALL = """
import sys, numpy as np, fastconv
x, w = np.arange(4, dtype="f4")[None, None], np.ones((1, 1, 2), "f4")
y = fastconv.conv1d(x, w, activation="silu", backend="numba")
print(np.round(y.sum(), 3), "numba" in sys.modules)
"""
COMPILED, LOADED = "8.555 True", "8.555 False"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where a fresh process has kept the engines of CALL."""
    folder = tmp_path_factory.mktemp("compiled")
    assert run_python(CALL, NUMBA_CACHE_DIR=str(folder), FASTCONV_MAX_ISA="baseline") == COMPILED
    return folder


@pytest.fixture
def cache(compiled, tmp_path):
    """A folder with the engines of CALL, and the settings with which a fresh process finds it."""
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    return tmp_path / "fastconv", {"NUMBA_CACHE_DIR": str(tmp_path), "FASTCONV_MAX_ISA": "baseline"}


def test_numba_is_imported_only_to_compile(cache):
    folder, settings = cache
    code = """
import sys, numpy as np, fastconv
from fastconv.backends.numba import backend
fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
assert len(backend.kernels) and "numba" not in sys.modules
"""
    run_python(code, **settings)
    assert run_python(CALL, **settings) == LOADED
    next(folder.iterdir()).unlink()
    assert [run_python(CALL, **settings) for _ in range(2)] == [COMPILED, LOADED]


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


def damage(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def for_another_processor(content):
    """With a checksum that is right, as if it had been stored there by mistake."""
    body = content[9:].replace(b"x86", b"y86").replace(b"aarch64", b"baarch64")
    return b"%08x\n" % zlib.crc32(body) + body


WRONG = [damage, for_another_processor, lambda content: content[:-9], lambda content: b""]


@pytest.mark.parametrize("spoil", WRONG, ids=["damaged", "for another processor", "cut off", "empty"])
def test_code_that_is_not_what_was_stored_does_not_exist(cache, spoil):
    from fastconv.backends.numba import objects

    folder, _ = cache
    for path in folder.iterdir():
        content = path.read_bytes()
        assert objects.read(content)
        assert objects.read(spoil(content)) is None


def test_damaged_code_is_compiled_again(cache):
    folder, settings = cache
    path = next(folder.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert [run_python(CALL, **settings) for _ in range(2)] == [COMPILED, LOADED]


def test_other_settings_of_numba_are_other_code(cache):
    folder, settings = cache
    stored = len(list(folder.iterdir()))
    assert run_python(CALL, **settings, NUMBA_OPT="1") == COMPILED
    assert len(list(folder.iterdir())) == 2 * stored


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are those of POSIX")
def test_code_that_others_could_have_put_there_is_neither_run_nor_written(cache):
    from fastconv.backends.numba import objects

    folder, settings = cache
    for mode, trusted in ((0o755, True), (0o777, False), (0o775, False)):
        folder.chmod(mode)
        assert objects.trusted(folder) == trusted
    before = sorted(path.stat().st_mtime_ns for path in folder.iterdir())
    assert run_python(CALL, **settings) == COMPILED
    assert sorted(path.stat().st_mtime_ns for path in folder.iterdir()) == before


def test_code_in_a_folder_that_cannot_be_written_is_used(cache):
    folder, settings = cache
    folder.chmod(0o555)
    assert run_python(CALL, **settings) == LOADED


def test_processes_that_start_at_once_find_whole_code_or_none(cache):
    folder, settings = cache
    shutil.rmtree(folder)
    start = [sys.executable, "-c", CALL]
    together = [
        subprocess.Popen(start, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert {process.communicate(timeout=120)[0].strip() for process in together} <= {COMPILED, LOADED}
    assert all(path.suffix == ".o" and path.name[0] != "." for path in folder.iterdir())
    assert run_python(CALL, **settings) == LOADED


def test_what_was_made_for_other_versions_does_not_pile_up(monkeypatch, tmp_path):
    from fastconv.backends.numba import objects

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "fastconv"
    folder.mkdir()
    for version in range(2 * objects.KEPT):
        (folder / f"pack-{version}.o").touch()
    objects.store("pack", "function", [], b"code")
    assert len(list(folder.iterdir())) == objects.KEPT
    assert objects.read((folder / objects.file_name("pack")).read_bytes()) == ("function", [], b"code")


def test_numba_works_as_ever_after_engines_were_loaded_without_it(cache):
    _, settings = cache
    code = """
import numba, math
fastconv.conv1d(x, w, activation=math.tanh, backend="numba")

@numba.njit
def invert(v):
    if v == 0:
        raise ValueError("no")
    return 1 / v

try:
    invert(0)
except ValueError as error:
    print(error)
"""
    assert run_python(CALL + code, **settings) == LOADED + "\nno"


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    code = """
import numpy as np, fastconv
print(fastconv.conv1d(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 2), "f4"), backend="numba").sum())
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(not_a_folder), FASTCONV_MAX_ISA="baseline") == "6.0"


def test_an_edit_to_any_source_is_another_edition(monkeypatch, tmp_path):
    from fastconv.backends.numba import objects

    changed = tmp_path / "program.py"
    changed.write_text(Path(objects.program.__file__).read_text() + "\n")
    before = objects.edition.__wrapped__()
    monkeypatch.setattr(objects.program, "__file__", str(changed))
    assert objects.edition.__wrapped__() != before

"""What the library says about itself: explain, plan, show_config, backends, kernels and the log."""

import logging
import re

import numpy as np
import pytest
from samples import call, call_on, plan_of, python, sample

import fastconv
from fastconv.problem import OPS
from fastconv.registry import ALL_OPS, Refusal


@pytest.mark.parametrize("op", OPS)
def test_explain_tells_what_runs(op, backend):
    told = fastconv.explain(op, **sample(op), backend=backend)
    assert (told.backend, told.source) == (backend, "backend=")
    assert told.kernel in [kernel.name for kernel in fastconv.kernels(op, backend=backend)]
    assert str(told) == repr(told) == told.text
    for label in ("problem:", "kernel:", "asked for by:", "threads:", "copies:", "operations:", "traffic:"):
        assert label in told.text
    for needle in (f"{op} n2 c4", "o6", f"{backend} {told.kernel}", "FLOP", "FLOP/byte"):
        assert needle in told.text
    if backend != "numpy":
        for label in ("ISA:", "tile:", "scratch:"):
            assert label in told.text


@pytest.mark.parametrize("op", OPS)
def test_explain_has_a_reason_for_every_other_kernel(op, backend):
    told = fastconv.explain(op, **sample(op), backend=backend)
    for status in fastconv.backends():
        if not status.available:
            assert told.refusals[status.name] == status.reason
            continue
        for kernel in fastconv.kernels(op, backend=status.name):
            name = f"{status.name} {kernel.name}"
            assert (name in told.refusals) == (name != f"{told.backend} {told.kernel}")
    for name, reason in told.refusals.items():
        assert reason
        assert f"{name}: {reason}" in told.text


def test_refusals_come_from_a_closed_vocabulary(backend):
    known = {value for name, value in vars(Refusal).items() if name.isupper()}
    assert len(known) > 3
    for op in OPS:
        for activation in (None, lambda v: v):
            for layout in ("NCHW", "NHWC"):
                given = sample(op)
                if layout == "NHWC":
                    given |= {
                        key: np.moveaxis(given[key], 1, -1)
                        for key in ("input", "offset", "mask")
                        if key in given
                    }
                told = fastconv.explain(op, **given, activation=activation, layout=layout, backend=["numpy"])
                mine = {reason for name, reason in told.refusals.items() if name.startswith(f"{backend} ")}
                assert all(reason in known or "another backend was asked for" in reason for reason in mine), (
                    mine
                )


def test_explain_takes_shapes_for_arrays(backend):
    given = sample("deform_conv2d")
    shapes = {name: array.shape for name, array in given.items()}
    assert str(fastconv.explain("deform_conv2d", **shapes, backend=backend)) == str(
        fastconv.explain("deform_conv2d", **given, backend=backend)
    )
    numpy_sizes = {name: tuple(np.array(array.shape)) for name, array in given.items()}
    assert fastconv.explain("deform_conv2d", **numpy_sizes, backend=backend).backend == backend


def test_explain_of_a_large_problem_allocates_nothing_large(backend):
    told = fastconv.explain("conv2d", (1, 4, 20000, 20000), (8, 4, 3, 3), backend=backend)
    assert told.backend == backend


def test_explain_tells_the_copies(backend):
    given = sample("conv2d")
    assert "copies:       none" in str(fastconv.explain("conv2d", **given, backend="numpy"))
    reversed_input = {
        **given,
        "input": given["input"][..., ::-1],
        "weight": given["weight"].astype(np.float16),
    }
    text = str(fastconv.explain("conv2d", **reversed_input, backend=backend))
    assert f"input converted: {given['input'].nbytes / 1024:.4g} KiB" in text
    assert f"weight converted: {given['weight'].nbytes} B" in text
    halves = {name: array.astype(np.float16) for name, array in given.items()}
    assert "result rounded to float16" in str(fastconv.explain("conv2d", **halves, backend=backend))


def test_explain_counts(backend):
    text = str(fastconv.explain("conv2d", (1, 3, 10, 10), (8, 3, 3, 3), backend=backend))
    assert f"{2 * 8 * 8 * 8 * 3 * 9:,} FLOP" in text
    compulsory = 4 * (300 + 216 + 512)
    assert f"{compulsory / 1024:.4g} KiB compulsory" in text
    assert f"{2 * 8 * 8 * 8 * 27 / compulsory:.3g} FLOP/byte" in text


def test_explain_tells_who_asked(backend):
    shapes = ((1, 4, 8, 8), (8, 4, 3, 3))
    assert fastconv.explain("conv2d", *shapes, backend=[backend, "numpy"]).backend == backend
    with fastconv.use_backend(backend):
        assert fastconv.explain("conv2d", *shapes).source == "use_backend"
        assert fastconv.explain("conv2d", *shapes, backend="numpy").source == "backend="
    fastconv.set_default_backend(backend)
    assert fastconv.explain("conv2d", *shapes).source == "set_default_backend"
    fastconv.set_default_backend(None)
    code = "import fastconv; print(fastconv.explain('conv2d', (1, 4, 8, 8), (8, 4, 3, 3)).source)"
    assert python(code, FASTCONV_BACKEND=backend).strip() == "FASTCONV_BACKEND"
    assert python(code).strip() == "automatic"


def test_explain_says_what_the_function_would_run(backend):
    for op in OPS:
        told = fastconv.explain(op, **sample(op))
        ran = plan_of(op, sample(op)).kernel
        assert told.backend == ran.backend
        assert told.backend in [status.name for status in fastconv.backends() if status.available]
        call_on(backend, op, sample(op))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((), TypeError, "input"),
        (((1, 1, 4, 4),), TypeError, "weight"),
        (((1, 1, 4, 4), (1, 2, 3, 3)), ValueError, "channels"),
        (((1, 1, 4, -4), (1, 1, 3, 3)), ValueError, "input must not be negative"),
        (((1, 1, 2**62, 2**62), (1, 1, 3, 3)), MemoryError, "input"),
        (([1, 1, 4, 4], (1, 1, 3, 3)), ValueError, r"\(4,\)"),
    ],
)
def test_explain_of_a_wrong_call(arguments, error, text):
    with pytest.raises(error, match=text):
        fastconv.explain("conv2d", *arguments)


def test_explain_with_a_wrong_option():
    with pytest.raises(TypeError, match="strides"):
        fastconv.explain("conv2d", (1, 1, 4, 4), (1, 1, 3, 3), strides=2)


def test_backends():
    found = {status.name: status for status in fastconv.backends()}
    assert set(found) >= {"cython", "numba", "cuda", "numpy"}
    assert found["numpy"].available
    assert found["numpy"].reason is None
    for name in ("cython", "numba", "cuda", "numpy"):
        assert found[name].origin == "fastconv"
        assert found[name].name == name
        assert (found[name].ops[: len(OPS)] == OPS) or not found[name].available
        assert set(found[name].ops) <= set(ALL_OPS)
        assert name in str(found[name])
        assert (
            ("available" in str(found[name]))
            if found[name].available
            else (found[name].reason in str(found[name]))
        )
    assert list(found)[:4] == ["cython", "numba", "cuda", "numpy"]


def test_kernels(backend):
    everything = fastconv.kernels(backend=backend)
    names = [kernel.name for kernel in everything]
    assert len(set(names)) == len(names)
    for kernel in everything:
        assert kernel.backend == backend
        assert re.fullmatch(
            r"(conv|conv_transpose|deform_conv|separable_conv|dcn(v[34])?)(_[a-z0-9]+)+", kernel.name
        )
        assert set(kernel.ops) <= set(ALL_OPS)
        assert "function" not in repr(kernel)
    for op in OPS:
        mine = fastconv.kernels(op, backend=backend)
        assert mine == [kernel for kernel in everything if op in kernel.ops]
        assert mine
        assert set(mine) <= set(fastconv.kernels(op))
    assert set(everything) <= set(fastconv.kernels())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (("conv9d",), {}, ValueError, "conv9d"),
        ((), {"backend": "nonsense"}, ValueError, "unknown backend 'nonsense'"),
        ((), {"backend": ["numpy"]}, TypeError, "name of a backend"),
        ((), {"backend": 3}, TypeError, "name of a backend"),
    ],
)
def test_kernels_of_what_does_not_exist(arguments, options, error, text):
    with pytest.raises(error, match=text):
        fastconv.kernels(*arguments, **options)


def test_show_config(capsys):
    assert fastconv.show_config() is None
    text = capsys.readouterr().out
    assert text.startswith(f"fastconv {fastconv.__version__}, NumPy {np.__version__}, Python")
    for label in (
        "instruction set:",
        "threads:",
        "backend: automatic",
        "deterministic: 0",
        "log: off",
        "backends:",
    ):
        assert label in text
    for status in fastconv.backends():
        assert f"  {status}" in text


def test_show_config_tells_settings(capsys):
    with fastconv.threads(5), fastconv.use_backend("numpy"):
        fastconv.show_config()
    text = capsys.readouterr().out
    assert "threads: 5" in text
    assert "backend: numpy (use_backend)" in text


def test_show_config_tells_the_environment():
    text = python(
        "import fastconv; fastconv.show_config()",
        FASTCONV_BACKEND="numpy",
        FASTCONV_NUM_THREADS="3",
        FASTCONV_LOG="choices",
        FASTCONV_MAX_ISA="baseline",
        FASTCONV_ACCURACY="high",
    )
    for needle in (
        "backend: numpy (FASTCONV_BACKEND)",
        "threads: 3",
        "log: choices",
        "instruction set: baseline",
        "accuracy: high",
    ):
        assert needle in text


class TestAccuracy:
    """Of the call, of the innermost block, of the environment: the narrower counts."""

    SHAPES = ((1, 64, 56, 56), (64, 64, 3, 3))  # the default is Winograd with six points

    def kernel(self, **accuracy):
        return fastconv.explain("conv2d", *self.SHAPES, padding=1, **accuracy).kernel

    def test_a_block_counts_where_the_call_says_nothing(self):
        usual, high = self.kernel(accuracy="default"), self.kernel(accuracy="high")
        assert usual != high
        assert self.kernel() == usual
        with fastconv.accuracy("high"):
            assert self.kernel() == high
            assert self.kernel(accuracy="default") == usual
            with fastconv.accuracy("default"):
                assert self.kernel() == usual
            assert self.kernel() == high
        assert self.kernel() == usual

    def test_a_remembered_call_is_not_taken_for_another_accuracy(self):
        rng = np.random.default_rng(0)
        x, w = (rng.standard_normal(shape, np.float32) for shape in self.SHAPES)
        usual = fastconv.conv2d(x, w, padding=1)
        with fastconv.accuracy("high"):
            high = fastconv.conv2d(x, w, padding=1)
        assert np.array_equal(high, fastconv.conv2d(x, w, padding=1, accuracy="high"))
        assert np.array_equal(usual, fastconv.conv2d(x, w, padding=1, accuracy="default"))
        assert not np.array_equal(usual, high)

    def test_an_unknown_level_is_refused(self):
        with pytest.raises(ValueError, match="level must be one of default, high, got 'low'"):
            fastconv.accuracy("low").__enter__()


class TestLog:
    CODE = """
import fastconv
for _ in range(2):
    fastconv.conv1d([[1.0, 2.0, 3.0]], [[[1.0, 1.0]]], backend="numpy")
"""

    def test_off_by_default(self):
        assert python(self.CODE).strip() == ""
        assert python(self.CODE, FASTCONV_LOG="off").strip() == ""

    def test_choices(self):
        lines = python(self.CODE, FASTCONV_LOG="choices").splitlines()
        assert lines == ["fastconv: conv1d n1 c1 w3 o1 k2 s1 p0 g1 float64 -> numpy conv_direct (numpy)"]

    def test_refusals(self):
        code = self.CODE.replace("backend=", "activation=lambda v: v, backend=[")
        code = code.replace('"numpy")', '"cython", "numpy"])')
        lines = python(code, FASTCONV_LOG="refusals").splitlines()
        assert any("-> numpy conv_direct" in line for line in lines)
        if any(status.name == "cython" and status.available for status in fastconv.backends()):
            assert any("refused by cython" in line and Refusal.CALLABLE_ACTIVATION in line for line in lines)

    def test_goes_through_the_logging_module(self, caplog):
        x = np.ones((1, 1, 11))
        with caplog.at_level(logging.INFO, logger="fastconv"):
            call("conv1d", {"input": x, "weight": np.ones((1, 1, 7))}, backend="numpy", num_threads=1)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "conv1d n1 c1 w11 o1 k7" in caplog.text
        assert "numpy conv_direct" in caplog.text

    def test_a_library_adds_no_handler_of_its_own(self):
        code = "import fastconv, logging; fastconv.conv1d([[1.0]], [[[1.0]]]); print(logging.root.handlers)"
        assert python(code).strip() == "[]"

"""Who decides what runs: precedence, strict names, lists, refusals, registration and plugins."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import call, plan_of, python, sample

import fastconv
from fastconv import BackendError, Kernel, UnsupportedError, registry
from fastconv.testing import assert_exact

X, W = np.ones((1, 1, 4)), np.ones((1, 1, 2))


class Fake:
    """A backend that marks its results and refuses, costs or fails as told."""

    def __init__(self, name, mark=0.0, refusal=None, cost=1e9, reason=None, ops=("conv1d",), kernels=1):
        self.name = name
        self.reason = reason
        self.built = 0
        oracle = fastconv.kernels("conv1d", backend="numpy")[0]

        def build(problem):
            self.built += 1
            right = oracle.build(problem)

            def run(output, *operands):
                right(output, *operands)
                output += mark

            return run

        def refuse(problem):
            return refusal(problem) if callable(refusal) else refusal

        def estimate(problem):
            return cost(problem) if callable(cost) else cost

        self.kernels = [
            Kernel(f"conv_fake{n or ''}", name, ops, refuse, estimate, build) for n in range(kernels)
        ]

    def unavailable(self):
        return self.reason() if callable(self.reason) else self.reason


@pytest.fixture
def register():
    """Register backends for one test."""
    names = []

    def add(backend, **options):
        fastconv.register_backend(backend, **options)
        names.append(backend.name)
        return backend

    yield add
    for name in set(names):
        fastconv.unregister_backend(name)


def value(**options):
    """Return what conv1d gives: 2 plus the mark of the backend that ran."""
    result = fastconv.conv1d(X, W, **options)
    assert (result == result.flat[0]).all()
    return result.flat[0]


def fail(problem):
    raise ZeroDivisionError("division by zero in a plugin")


class TestPrecedence:
    @pytest.fixture(autouse=True)
    def four(self, register):
        for mark, name in enumerate(("first", "second", "third", "fourth")):
            register(Fake(name, mark + 1.0))

    def test_the_call_before_the_block_before_the_default(self):
        assert value() == 2
        fastconv.set_default_backend("first")
        assert value() == 3
        with fastconv.use_backend("second"):
            assert value() == 4
            with fastconv.use_backend("third"):
                assert value() == 5
                assert value(backend="fourth") == 6
            assert value() == 4
        assert value() == 3
        fastconv.set_default_backend(None)
        assert value() == 2

    def test_a_plan_is_bound_when_it_is_made(self):
        with fastconv.use_backend("second"):
            plan = fastconv.plan("conv1d", X.shape, W)
        assert plan(X).flat[0] == 4
        with fastconv.use_backend("third"):
            assert plan(X).flat[0] == 4

    def test_none_goes_back_to_automatic(self):
        fastconv.set_default_backend("first")
        with fastconv.use_backend("second"), fastconv.use_backend(None):
            assert value() == 2
            assert fastconv.explain("conv1d", X, W).source == "automatic"
            with fastconv.use_backend("third"):
                assert value() == 5

    def test_a_remembered_call_does_not_outlive_the_setting(self):
        for _ in range(2):
            assert value(backend="first") == 3
            assert value(backend="second") == 4
            assert value(backend=["third", "first"]) == 5
            assert value(backend=("first", "third")) == 3
            assert value() == 2

    def test_environment_is_the_last_before_automatic(self):
        code = """
import numpy as np, fastconv
from test_registry import Fake
for mark, name in enumerate(("first", "second", "third")):
    fastconv.register_backend(Fake(name, mark + 1.0))
x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
told = lambda: (fastconv.conv1d(x, w).flat[0], fastconv.explain("conv1d", x, w).source)
print(told())
fastconv.set_default_backend("second")
print(told())
with fastconv.use_backend("third"):
    print(told())
with fastconv.use_backend(None):
    print(told()[1])
fastconv.set_default_backend(None)
print(told())
"""
        assert python(code, FASTCONV_BACKEND="first").splitlines() == [
            "(np.float64(3.0), 'FASTCONV_BACKEND')",
            "(np.float64(4.0), 'set_default_backend')",
            "(np.float64(5.0), 'use_backend')",
            "automatic",
            "(np.float64(3.0), 'FASTCONV_BACKEND')",
        ]

    def test_environment_may_hold_a_list(self):
        code = "import fastconv; print(fastconv.explain('conv2d', (1, 1, 4, 4), (1, 1, 3, 3)).backend)"
        assert python(code, FASTCONV_BACKEND="numpy, cython").strip() == "numpy"


class TestStrictNames:
    def test_refused_with_a_reason_for_each_kernel_and_who_can(self, register):
        register(Fake("picky", refusal="it is Tuesday", kernels=3))
        register(Fake("willing"))
        register(Fake("absent", reason="the driver is missing"))
        with pytest.raises(UnsupportedError) as caught:
            value(backend="picky")
        first, *reasons, last = str(caught.value).splitlines()
        assert first == "backend 'picky' cannot run conv1d n1 c1 w4 o1 k2 s1 p0 g1 float64"
        assert reasons == [f"  conv_fake{n}: it is Tuesday" for n in ("", 1, 2)]
        assert last.startswith("backends that can: ")
        able = last.removeprefix("backends that can: ").split(", ")
        assert {"numpy", "willing"} <= set(able)
        assert not {"picky", "absent"} & set(able)

    def test_a_backend_without_a_kernel_for_the_operation(self, register):
        register(Fake("narrow", ops=("conv3d",)))
        with pytest.raises(UnsupportedError, match="narrow: it has no kernel for conv1d"):
            value(backend="narrow")

    def test_built_in_backends_name_every_kernel(self, backend):
        if backend in ("numpy", "numba"):
            pytest.skip(f"{backend} takes every operation and activation")
        with pytest.raises(UnsupportedError) as caught:
            call("conv2d", sample("conv2d"), activation=lambda v: v, backend=backend)
        for kernel in fastconv.kernels("conv2d", backend=backend):
            assert f"  {kernel.name}: " in str(caught.value)
        assert "numpy" in str(caught.value).splitlines()[-1]

    def test_a_refusal_is_no_reason_to_run_elsewhere(self, register):
        register(Fake("picky", refusal="no"))
        for setting in (
            lambda: value(backend="picky"),
            lambda: in_block("picky"),
            lambda: by_default("picky"),
        ):
            with pytest.raises(UnsupportedError):
                setting()

    def test_an_absent_backend(self, register):
        register(Fake("absent", reason="the driver is missing"))
        with pytest.raises(
            BackendError, match=r"'absent' \(registered\) cannot be used: the driver is missing"
        ):
            value(backend="absent")
        with fastconv.use_backend("absent"), pytest.raises(BackendError, match="the driver is missing"):
            value()

    def test_an_unknown_name_is_told_at_once(self):
        for setting in (fastconv.set_default_backend, lambda name: fastconv.use_backend(name).__enter__()):
            with pytest.raises(
                BackendError, match="unknown backend 'nonsense'; known are 'cython', 'numba', 'cuda', 'numpy'"
            ):
                setting("nonsense")
            with pytest.raises(BackendError, match="unknown backend 'nonsense'"):
                setting(["numpy", "nonsense"])
            with pytest.raises(TypeError, match="name of a backend"):
                setting(3)
            with pytest.raises(TypeError, match="name of a backend"):
                setting([])


def in_block(name):
    with fastconv.use_backend(name):
        return value()


def by_default(name):
    fastconv.set_default_backend(name)
    try:
        return value()
    finally:
        fastconv.set_default_backend(None)


class TestLists:
    def test_the_first_that_takes_it_runs(self, register):
        register(Fake("picky", 1.0, refusal="no"))
        register(Fake("absent", 2.0, reason="gone"))
        register(Fake("willing", 3.0))
        for names in (["picky", "absent", "willing"], ("willing", "picky"), ["absent", "willing", "numpy"]):
            assert value(backend=names) == 5
            assert in_block(names) == 5
            assert by_default(names) == 5
            assert fastconv.explain("conv1d", X, W, backend=names).backend == "willing"
        assert value(backend=["willing"]) == 5

    def test_none_of_them(self, register):
        register(Fake("picky", refusal="it is Tuesday"))
        register(Fake("absent", reason="the driver is missing"))
        with pytest.raises(UnsupportedError) as caught:
            value(backend=["picky", "absent"])
        for needle in ("none of the backends", "it is Tuesday", "the driver is missing", "picky", "absent"):
            assert needle in str(caught.value)

    def test_an_unknown_name_is_an_error_wherever_it_stands(self):
        for names in (["nonsense", "numpy"], ["numpy", "nonsense"]):
            with pytest.raises(BackendError, match="unknown backend 'nonsense'"):
                value(backend=names)

    def test_the_callers_list_is_not_kept(self, register):
        register(Fake("willing", 3.0))
        names = ["numpy"]
        with fastconv.use_backend(names):
            names[0] = "willing"
            assert value() == 2


class TestAutomatic:
    def test_the_cheapest_runs(self, register):
        register(Fake("cheap", 1.0, cost=0.0))
        register(Fake("cheaper", 2.0, cost=-1.0))
        register(
            Fake("cheapest", 3.0, cost=-2.0, refusal=lambda problem: "odd" if problem.batch > 1 else None)
        )
        assert value() == 5
        assert (fastconv.conv1d(np.ones((2, 1, 4)), W) == 4).all()

    def test_the_oracle_is_the_last_resort_whatever_it_costs(self, register):
        register(Fake("dear", 1.0, cost=1e30))
        everyone_else = [name for name in ("cython", "numba") if registry.find_backend(name).reason() is None]
        told = fastconv.explain("conv1d", X, W)
        assert told.backend != "numpy"
        assert told.refusals["numpy conv_direct"] == "the oracle is the last resort"
        if not everyone_else:
            assert told.backend == "dear"

    def test_equal_bits_do_not_depend_on_batch_or_threads(self):
        def chosen(batch, threads):
            with fastconv.threads(threads):
                told = fastconv.explain("conv2d", (batch, 8, 20, 20), (16, 8, 3, 3))
            return told.backend, told.kernel

        assert len({chosen(batch, threads) for batch in (1, 2, 7, 64) for threads in (1, 2, 8)}) == 1

    @pytest.mark.parametrize("cost", [fail, lambda problem: None, lambda problem: "cheap", float("nan")])
    def test_a_cost_that_cannot_be_told_counts_as_infinite(self, cost, register):
        register(Fake("vague", 1.0, cost=cost))
        register(Fake("cheap", 2.0, cost=-1.0))
        assert value() == 4
        assert value(backend="vague") == 3
        assert fastconv.explain("conv1d", X, W).backend == "cheap"

    def test_the_report_compares_the_estimates(self, register):
        register(Fake("cheap", cost=0.001))
        register(Fake("cheaper", cost=0.0))
        told = fastconv.explain("conv1d", X, W)
        if told.backend == "cheaper":
            assert told.refusals["cheap conv_fake"] == "estimated at 1 ms, the chosen kernel at 0 ms"

    @pytest.mark.parametrize(
        ("channels", "size"), [(12, 20), (16, 16), (16, 20), (24, 14), (32, 10), (64, 28)]
    )
    def test_an_image_has_the_same_bits_in_any_batch(self, channels, size):
        rng = np.random.default_rng(channels)
        x = rng.standard_normal((9, channels, size, size), np.float32)
        w = rng.standard_normal((channels, channels, 3, 3), np.float32)
        together = fastconv.conv2d(x, w, padding=1)
        for image, expected in zip(x, together, strict=True):
            assert_exact(fastconv.conv2d(image, w, padding=1), expected)


class TestRegistration:
    def test_register_replace_and_unregister(self):
        fastconv.register_backend(Fake("mine", 1.0))
        assert value(backend="mine") == 3
        with pytest.raises(ValueError, match="'mine' is registered already; pass replace=True"):
            fastconv.register_backend(Fake("mine", 2.0))
        assert value(backend="mine") == 3
        fastconv.register_backend(Fake("mine", 2.0), replace=True)
        assert value(backend="mine") == 4
        fastconv.unregister_backend("mine")
        with pytest.raises(BackendError, match="unknown backend 'mine'"):
            value(backend="mine")
        with pytest.raises(BackendError, match="unknown backend 'mine'"):
            fastconv.unregister_backend("mine")

    def test_a_remembered_automatic_choice_is_made_anew(self, register):
        assert value() == 2
        register(Fake("cheap", 1.0, cost=-1.0))
        assert value() == 3

    def test_backends_of_this_package_stay(self):
        for name in ("cython", "numba", "cuda", "numpy"):
            with pytest.raises(ValueError, match=f"{name}.*belongs to fastconv"):
                fastconv.unregister_backend(name)
            with pytest.raises(ValueError, match=f"'{name}' is registered already"):
                fastconv.register_backend(Fake(name))

    def test_a_replaced_one_comes_back(self):
        fastconv.register_backend(Fake("numpy", 1.0), replace=True)
        assert value(backend="numpy") == 3
        fastconv.unregister_backend("numpy")
        assert value(backend="numpy") == 2
        assert {status.name: status.origin for status in fastconv.backends()}["numpy"] == "fastconv"

    def test_a_class_of_a_backend_object_and_unnamed_extras(self, register):
        class Minimal:
            name = "minimal"
            kernels = tuple(Fake("minimal", 5.0).kernels)

        register(Minimal())
        assert value(backend="minimal") == 7
        assert isinstance(Minimal(), fastconv.Backend)
        [status] = [status for status in fastconv.backends() if status.name == "minimal"]
        assert (status.available, status.origin, status.ops) == (True, "registered", ("conv1d",))

    def test_a_registered_backend_gets_what_the_contract_promises(self, register):
        seen = []

        def build(problem):
            def run(output, input, weight, bias, offset, mask, threads):
                for array in (output, input, weight, bias, offset, mask):
                    if array is not None:
                        assert type(array) is np.ndarray
                        assert array.flags.c_contiguous
                        assert array.flags.aligned
                        assert array.dtype == problem.dtype
                        assert array.dtype.isnative
                assert output.flags.writeable
                assert output.shape == problem.output_shape
                assert input.shape == problem.input_shape
                assert weight.shape == problem.weight_shape
                assert offset.shape == problem.offset_shape
                assert mask.shape == problem.mask_shape
                assert threads == 3
                seen.append(problem)
                output[...] = 0

            return run

        class Strict:
            name = "strict"
            kernels = (
                Kernel("deform_conv_strict", name, ("deform_conv2d",), lambda p: None, lambda p: 1.0, build),
            )

        register(Strict())
        given = sample("deform_conv2d")
        last = {name: np.moveaxis(given[name], 1, -1) for name in ("input", "offset", "mask")}
        halves = {name: array.astype(np.float16) for name, array in given.items()}
        swapped = {name: array.astype(">f8") for name, array in given.items()}
        single = {
            name: array[0] if array.ndim == 4 and name != "weight" else array for name, array in given.items()
        }
        for arguments in (given, {**given, **last, "layout": "NHWC"}, halves, swapped, single):
            call("deform_conv2d", arguments, backend="strict", num_threads=3)
        assert len(seen) == 5
        call("deform_conv2d", {**given, **{k: given[k][:0] for k in last}}, backend="strict")
        assert len(seen) == 5, "an empty batch has nothing to run"

    def test_a_plan_without_bind_passes_the_weights(self, register):
        register(Fake("plain", 1.0))
        assert plan_of("conv1d", {"input": X, "weight": W}, backend="plain")(X).flat[0] == 3

    @pytest.mark.parametrize(
        ("attributes", "error", "text"),
        [
            ({"name": "good"}, TypeError, "needs `kernels`"),
            ({"name": "good", "kernels": []}, TypeError, "needs `kernels`"),
            ({"name": "good", "kernels": 5}, TypeError, "needs `kernels`"),
            ({"name": "good", "kernels": [1]}, TypeError, "fastconv.Kernel objects, got 1"),
            ({"kernels": Fake("good").kernels}, TypeError, "needs a `name`"),
            ({"name": 3, "kernels": Fake("good").kernels}, TypeError, "needs a `name`"),
            ({"name": "", "kernels": Fake("good").kernels}, TypeError, "needs a `name`"),
            ({"name": "two words", "kernels": Fake("good").kernels}, TypeError, "needs a `name`"),
            ({"name": "a,b", "kernels": Fake("good").kernels}, TypeError, "needs a `name`"),
            ({"name": "other", "kernels": Fake("good").kernels}, ValueError, "belongs to backend 'good'"),
            ({"name": "good", "kernels": Fake("good", ops=("conv9d",)).kernels}, ValueError, "conv9d"),
            ({"name": "good", "kernels": Fake("good", ops="conv1d").kernels}, ValueError, "tuple of names"),
            ({"name": "good", "kernels": Fake("good", ops=()).kernels}, ValueError, "tuple of names"),
        ],
    )
    def test_what_is_no_backend(self, attributes, error, text):
        with pytest.raises(error, match=re.escape(text)):
            fastconv.register_backend(type("Candidate", (), attributes)())
        assert "good" not in [status.name for status in fastconv.backends()]

    @pytest.mark.parametrize("thing", [None, "numpy", 3, [], {}])
    def test_what_is_no_object_of_the_kind(self, thing):
        with pytest.raises(TypeError, match="needs a `name`"):
            fastconv.register_backend(thing)

    @pytest.mark.parametrize("name", [None, 3, [], b"numpy"])
    def test_names_are_text(self, name):
        with pytest.raises(TypeError, match="name of a backend must be a str"):
            fastconv.unregister_backend(name)


class TestBroken:
    """A broken backend is shown with its error, and breaks nothing else."""

    def test_a_check_that_fails(self, register):
        register(Fake("broken", refusal=fail))
        assert value() == 2
        assert "ZeroDivisionError: division by zero in a plugin" in fastconv.explain("conv1d", X, W).text
        with pytest.raises(UnsupportedError, match="conv_fake: its check failed: ZeroDivisionError"):
            value(backend="broken")
        assert value(backend=["broken", "numpy"]) == 2

    def test_an_availability_check_that_fails(self, register):
        register(Fake("broken", reason=lambda: fail(None)))
        assert value() == 2
        with pytest.raises(BackendError, match="availability check failed: ZeroDivisionError"):
            value(backend="broken")
        assert value(backend=["broken", "numpy"]) == 2
        [status] = [status for status in fastconv.backends() if status.name == "broken"]
        assert not status.available
        assert "ZeroDivisionError" in str(status)

    def test_others_name_it_not_among_those_who_can(self, register):
        register(Fake("broken", refusal=fail))
        register(Fake("picky", refusal="no"))
        with pytest.raises(UnsupportedError) as caught:
            value(backend="picky")
        assert "broken" not in str(caught.value)

    def test_an_error_while_running_is_the_callers_to_see(self, register):
        class Failing(Fake):
            pass

        failing = Failing("failing")
        failing.kernels = [
            Kernel("conv_fake", "failing", ("conv1d",), lambda p: None, lambda p: 1.0, lambda p: fail)
        ]
        register(failing)
        with pytest.raises(TypeError, match="fail"):
            value(backend="failing")
        assert value() == 2


@pytest.fixture(scope="session")
def plugin(tmp_path_factory) -> Path:
    """Install the sample plugin as a user would, but into a folder of its own, and return the folder."""
    source = tmp_path_factory.mktemp("source") / "plugin_sample"  # a build leaves files beside the source
    shutil.copytree(Path(__file__).parent / "plugin_sample", source)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    pip += ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(target.glob("fastconv_fft-1.2.3.dist-info/entry_points.txt"))
    return target


class TestPlugin:
    def test_used_when_named(self, plugin):
        code = """
import numpy as np
from samples import call, sample
import fastconv
given = sample("conv2d", dtype=np.float64)
options = {"padding": ((2, 1), (0, 3)), "activation": "relu"}
expected = call("conv2d", given, backend="numpy", **options)
def check(**backend):
    np.testing.assert_allclose(call("conv2d", given, **options, **backend), expected, atol=1e-9)
    told = fastconv.explain("conv2d", **given, **options, **backend)
    assert (told.backend, told.kernel) == ("fft", "conv_fft"), told
check(backend="fft")
check(backend=["fft", "numpy"])
with fastconv.use_backend("fft"):
    check()
    plan = fastconv.plan("conv2d", given["input"].shape, given["weight"], given["bias"], **options)
    np.testing.assert_allclose(plan(given["input"]), expected, atol=1e-9)
    assert "fft conv_fft" in str(plan)
fastconv.set_default_backend("fft")
check()
"""
        python(code, path=plugin)

    def test_used_by_the_environment(self, plugin):
        code = "import fastconv; print(fastconv.explain('conv2d', (1, 1, 9, 9), (1, 1, 3, 3)).source)"
        assert python(code, path=plugin, FASTCONV_BACKEND="fft").strip() == "FASTCONV_BACKEND"

    def test_refuses_with_its_reason(self, plugin):
        code = """
import fastconv
for op, options in (
    ("conv2d", {"stride": 2}),
    ("conv2d", {"dilation": 2}),
    ("conv2d", {"groups": 2}),
    ("conv2d", {"layout": "NHWC"}),
    ("conv2d", {"padding": 1, "padding_mode": "reflect"}),
    ("conv2d", {"activation": "gelu"}),
    ("conv_transpose2d", {}),
):
    shapes = (1, 8, 9, 8), (8, 8 // options.get("groups", 1), 3, 3)  # for both layouts
    try:
        fastconv.explain(op, *shapes, **options, backend="fft")
    except fastconv.UnsupportedError as error:
        print(" ".join(str(error).splitlines()))
    print(fastconv.explain(op, *shapes, **options, backend=["fft", "numpy"]).backend)
"""
        lines = python(code, path=plugin).splitlines()
        reasons = [
            "conv_fft: the stride is not 1",
            "conv_fft: the kernel is dilated",
            "conv_fft: there are groups",
            "conv_fft: the layout is not NCHW",
            "conv_fft: the padding is not of zeros",
            "conv_fft: the activation is neither absent nor relu",
            "fft: it has no kernel for conv_transpose2d",
        ]
        assert lines[1::2] == ["numpy"] * len(reasons)
        for line, reason in zip(lines[::2], reasons, strict=True):
            assert reason in line
            assert re.search(r"backends that can: .*numpy", line)

    def test_listed_and_the_broken_one_with_its_error(self, plugin):
        code = """
import fastconv
for status in fastconv.backends():
    print(status)
told = fastconv.explain("conv2d", (1, 1, 9, 9), (1, 1, 3, 3))
print(told.refusals["fft conv_fft"])
print(told.refusals["fft_gpu"])
try:
    fastconv.explain("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), backend="fft_gpu")
except fastconv.BackendError as error:
    print(error)
assert fastconv.explain("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), backend=["fft_gpu", "fft"]).backend == "fft"
assert [kernel.name for kernel in fastconv.kernels("conv2d", backend="fft")] == ["conv_fft"]
assert [kernel.name for kernel in fastconv.kernels("conv2d")].count("conv_fft") == 1
fastconv.show_config()
"""
        text = python(code, path=plugin)
        lines = text.splitlines()
        broken = "it failed to load: AttributeError: module 'fastconv_fft' has no attribute 'gpu_backend'"
        for expected in (
            "fft (plugin fastconv-fft 1.2.3): available, 1 operations",
            f"fft_gpu (plugin fastconv-fft 1.2.3): {broken}",
            "a plugin runs only where it is named",
            broken,
            f"backend 'fft_gpu' (plugin fastconv-fft 1.2.3) cannot be used: {broken}",
            "  fft (plugin fastconv-fft 1.2.3): available, 1 operations",
        ):
            assert expected in lines
        assert [line.split()[0] for line in lines[:4]] == ["cython", "numba", "cuda", "numpy"]

    def test_listing_the_backends_does_not_change_what_runs(self, plugin):
        code = """
import fastconv
chosen = lambda: fastconv.plan("conv2d", (1, 1, 9, 9), [[[[1.0]]]]).kernel.backend
before = chosen()
fastconv.backends()
assert chosen() == before != "fft"
"""
        python(code, path=plugin)

    def test_nothing_is_loaded_before_it_is_needed(self, plugin):
        code = """
import sys, numpy as np, fastconv
fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))
fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)), backend="numpy")
assert "fastconv_fft" not in sys.modules
try:
    fastconv.set_default_backend("nonsense")
except fastconv.BackendError as error:
    assert "'fft'" in str(error) and "'fft_gpu'" in str(error)
assert "fastconv_fft" not in sys.modules
fastconv.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), backend="fft")
assert "fastconv_fft" in sys.modules
"""
        python(code, path=plugin)

    def test_a_registered_backend_keeps_its_name(self, plugin):
        code = """
import numpy as np, fastconv
from test_registry import Fake
fastconv.register_backend(Fake("fft", 5.0))
fastconv.backends()
print(fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)), backend="fft").flat[0])
"""
        assert python(code, path=plugin).strip() == "7.0"

    def test_conforms(self, plugin):
        code = """
import fastconv.testing
report = fastconv.testing.check_backend("fft", ["conv2d"], count=20, tolerance=1e-5)
assert report.passed and not report.failed, report
assert set(report.kernels) == {"conv_fft"} and "the stride is not 1" in report.refused
"""
        python(code, path=plugin)

    def test_the_suite_runs_on_it(self, plugin):
        """``pytest --backend=NAME`` takes any backend there is."""
        tests = Path(__file__).parent / "test_plan.py"
        code = """
import sys, pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--backend=fft", sys.argv[1]]))
"""
        text = python(code, f"{tests}::test_input_that_converts_without_loss", path=plugin)
        assert re.search(r"[1-9] passed", text)
        assert "skipped" not in text

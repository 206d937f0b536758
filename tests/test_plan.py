"""A plan gives what the function gives, holds what it was made from, and computes without allocating."""

import copy
import gc
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from samples import call, call_on, plan_of, python, rank, run_plan, sample, variant

import fastconv
from fastconv.problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, OPS

OPTIONS = {
    "conv": [
        {},
        {"stride": 2, "padding": 1, "activation": "relu"},
        {"padding": 2, "dilation": 2, "padding_mode": "circular", "bias": None},
        {"padding": "same"},
    ],
    "conv_transpose": [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1, "activation": "relu"},
        {"stride": 3, "dilation": 2, "bias": None},
    ],
    "deform_conv": [{}, {"activation": "relu"}, {"bias": None}],
}
CASES = [(op, options) for op in OPS for options in OPTIONS[variant(op)]]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("op", "options"), CASES)
def test_a_plan_gives_what_the_function_gives(op, options, layout, backend):
    given = {**sample(op), **options, "layout": layout, "backend": backend}
    if layout == "NHWC":
        given |= {
            name: np.moveaxis(given[name], 1, -1).copy()
            for name in ("input", "offset", "mask")
            if name in given
        }
    expected = call_on(backend, op, {name: value for name, value in given.items() if name != "backend"})
    plan = plan_of(op, given)
    assert plan.kernel.backend == backend
    assert plan.input_shape == given["input"].shape
    assert plan.output_shape == expected.shape
    assert plan.dtype == expected.dtype
    for _ in range(2):
        np.testing.assert_array_equal(run_plan(plan, given), expected)
    out = np.full_like(expected, np.nan)
    assert run_plan(plan, given, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("make", [fastconv.plan, fastconv.plan_grad])
def test_a_copy_is_the_plan_itself_and_none_goes_to_another_process(make):
    plan = make("conv2d", (1, 1, 4, 4), np.ones((1, 1, 3, 3)))
    assert copy.copy(plan) is plan
    assert copy.deepcopy({"layer": plan})["layer"] is plan
    with pytest.raises(TypeError, match=f"a {type(plan).__name__} cannot be pickled"):
        pickle.dumps(plan)


@pytest.mark.parametrize("op", OPS)
def test_unbatched(op, backend):
    given = sample(op, batch=1)
    single = {
        name: array[0] if name in ("input", "offset", "mask") else array for name, array in given.items()
    }
    expected = call(op, given, backend=backend)[0]
    plan = plan_of(op, single, backend=backend)
    assert plan.kernel.backend == backend
    assert (plan.input_shape, plan.output_shape) == (single["input"].shape, expected.shape)
    np.testing.assert_array_equal(run_plan(plan, single), expected)
    out = np.empty_like(expected)
    assert run_plan(plan, single, out=out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="planned shape"):
        run_plan(plan, given)


@pytest.mark.parametrize("op", OPS)
def test_zero_batch(op, backend):
    given = {
        name: array[:0] if name in ("input", "offset", "mask") else array
        for name, array in sample(op).items()
    }
    expected = call_on(backend, op, given)
    assert expected.shape[0] == 0
    assert expected.size == 0
    plan = plan_of(op, given, backend=backend)
    assert plan.kernel.backend == backend
    assert run_plan(plan, given).shape == expected.shape
    out = np.empty_like(expected)
    assert run_plan(plan, given, out=out) is out
    assert str(plan)


@pytest.mark.parametrize("op", OPS)
def test_weights_are_copied_when_the_plan_is_made(op, backend):
    given = sample(op)
    expected = call(op, given, backend=backend)
    plan = plan_of(op, given, backend=backend)
    given["weight"][...] = np.nan
    given["bias"][...] = np.nan
    np.testing.assert_array_equal(run_plan(plan, given), expected)


@pytest.mark.parametrize("op", OPS)
def test_a_plan_outlives_its_arguments(op, backend):
    given = sample(op)
    expected = call(op, given, backend=backend)
    plan = fastconv.plan(
        op,
        given["input"].shape,
        given.pop("weight").copy(),
        given.pop("bias").copy(),
        **({"mask": True} if op in DEFORM_CONV else {}),
        backend=backend,
    )
    gc.collect()
    rubbish = [np.full(size, np.nan, np.float32) for size in range(1, 100)]  # over memory that was let go
    np.testing.assert_array_equal(run_plan(plan, given), expected)
    assert rubbish


@pytest.mark.parametrize("op", OPS)
def test_results_of_a_plan_are_independent(op, backend):
    given = sample(op)
    plan = plan_of(op, given, backend=backend)
    first = run_plan(plan, given)
    kept = first.copy()
    other = {**given, "input": given["input"] * 2}
    second = run_plan(plan, other)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("op", OPS)
def test_nan_in_one_call_does_not_leak_into_the_next(op, backend):
    given = sample(op)
    plan = plan_of(op, given, backend=backend)
    expected = run_plan(plan, given)
    poisoned = {**given, "input": np.full_like(given["input"], np.nan)}
    assert np.isnan(run_plan(plan, poisoned)).all() or op in DEFORM_CONV
    np.testing.assert_array_equal(run_plan(plan, given), expected)


@pytest.mark.parametrize("op", OPS)
def test_number_of_threads(op, backend):
    given = sample(op)
    expected = call(op, given, backend=backend, num_threads=1)
    for planned in (None, 1, 2, 5):
        plan = plan_of(op, given, backend=backend, num_threads=planned)
        for called in (None, 1, 3):
            np.testing.assert_array_equal(run_plan(plan, given, num_threads=called), expected)
    assert "at most 5" in str(plan)
    assert "at most 7" in str(plan_of(op, given, backend=backend, num_threads=7))
    with fastconv.threads(6):
        assert "at most 6" in str(plan_of(op, given, backend=backend))


@pytest.mark.parametrize("op", OPS)
def test_input_must_be_as_planned(op, backend):
    given = sample(op)
    plan = plan_of(op, given, backend=backend)
    x, shape = given["input"], given["input"].shape
    for wrong in (x[:1], x[:, :3], x[..., 1:], x[None], x[0], np.float32(1), []):
        with pytest.raises(fastconv.ShapeError) as caught:
            run_plan(plan, {**given, "input": wrong})
        for needle in ("input", "planned", str(shape), str(np.shape(wrong))):
            assert needle in str(caught.value)
    for dtype in ("float64", "int32", "int64", "uint64", "complex64", "object"):
        with pytest.raises(TypeError) as caught:
            run_plan(plan, {**given, "input": x.astype(dtype)})
        for needle in ("input", "planned", "float32", dtype):
            assert needle in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int16", "uint16", "bool", ">f4"])
def test_input_that_converts_without_loss(dtype, backend):
    given = sample("conv2d")
    plan = plan_of("conv2d", given, backend=backend)
    x = (given["input"] > 0).astype(dtype)
    expected = fastconv.conv2d(**{**given, "input": x.astype(np.float32)}, backend=backend)
    np.testing.assert_array_equal(plan(x), expected)


@pytest.mark.parametrize("op", DEFORM_CONV)
def test_offset_and_mask_must_be_as_planned(op, backend):
    given = sample(op)
    x, offset, mask = given["input"], given["offset"], given["mask"]
    plan = plan_of(op, given, backend=backend)
    unmasked = plan_of(op, {name: array for name, array in given.items() if name != "mask"}, backend=backend)
    for run, wanted in (
        (lambda: plan(x), "offset and a mask"),
        (lambda: plan(x, offset), "offset and a mask"),
        (lambda: plan(x, mask=mask), "offset and a mask"),
        (lambda: unmasked(x), "offset and no mask"),
        (lambda: unmasked(x, offset, mask), "offset and no mask"),
        (lambda: unmasked(x, mask=mask), "offset and no mask"),
    ):
        with pytest.raises(TypeError, match=wanted):
            run()
    with pytest.raises(TypeError, match=r"offset must have the planned dtype float32.*float64"):
        plan(x, offset.astype(np.float64), mask)
    with pytest.raises(fastconv.ShapeError, match="mask must have the planned shape"):
        plan(x, offset, mask[:, :-1])
    np.testing.assert_array_equal(
        unmasked(x, offset), call(op, {**given, "mask": np.ones_like(mask)}, backend=backend)
    )


@pytest.mark.parametrize("op", CONV + CONV_TRANSPOSE)
def test_a_plan_without_displacements_takes_none(op, backend):
    given = sample(op)
    plan = plan_of(op, given, backend=backend)
    for extra in ({"offset": given["input"]}, {"mask": given["input"]}):
        with pytest.raises(TypeError, match=f"plan for {op} takes no offset and no mask"):
            plan(given["input"], **extra)


@pytest.mark.parametrize("op", DEFORM_CONV)
def test_offset_groups(op, backend):
    given = sample(op)
    groups = 2
    doubled = {**given, **{name: np.concatenate([given[name]] * groups, 1) for name in ("offset", "mask")}}
    plan = plan_of(op, doubled, offset_groups=groups, backend=backend)
    assert plan.problem.offset_groups == groups
    np.testing.assert_array_equal(run_plan(plan, doubled), call(op, given, backend=backend))
    with pytest.raises(fastconv.ShapeError, match="offset must have the planned shape"):
        run_plan(plan, given)


@pytest.mark.parametrize("op", OPS)
def test_a_plan_prints_what_it_is(op, backend):
    given = sample(op)
    plan = plan_of(op, given, backend=backend)
    text = str(plan)
    for needle in (str(plan.problem), f"{backend} {plan.kernel.name}", "backend=", "threads", "FLOP"):
        assert needle in text
    assert repr(plan) == f"<fastconv.Plan {plan.problem} on {backend} {plan.kernel.name}>"
    assert plan.problem.prepared


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


LARGER = {1: (2, 8, 9000), 2: (2, 8, 70, 80), 3: (2, 8, 12, 20, 24)}


def larger(op: str) -> dict[str, np.ndarray]:
    """Return a call whose result takes half a megabyte or so, so that a buffer lost in a call is seen."""
    rng = np.random.default_rng(1)
    shape = LARGER[rank(op)]
    given = {
        "input": rng.random(shape, np.float32),
        "weight": rng.random((8, 8) + (3,) * rank(op), np.float32),
    }
    if op in DEFORM_CONV:
        out = tuple(size - 2 for size in shape[2:])
        given["offset"] = rng.random((2, rank(op) * 3 ** rank(op), *out), np.float32)
    return given


@pytest.mark.parametrize("op", OPS)
def test_a_call_into_out_allocates_nothing(op, backend):
    if backend == "numpy":
        pytest.skip("the oracle follows the formula and allocates at every step")
    given = larger(op)
    plan = plan_of(op, given, backend=backend)
    assert plan.kernel.backend == backend
    out = np.empty(plan.output_shape, np.float32)
    changing = [given[name] for name in ("input", "offset") if name in given]
    for _ in range(3):
        plan(*changing, out=out)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(5):
            plan(*changing, out=out)
        before, peak = tracemalloc.get_traced_memory()
        for _ in range(5):
            plan(*changing, out=out)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Tuples of the call itself come and go; NumPy's arrays are traced, too.
    assert peak < 8192
    assert after - before < 512


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("op", OPS)
def test_calls_do_not_lose_memory(op, backend):
    given = sample(op) if backend == "numpy" else larger(op)
    calls, allowed = (3, 4 << 20) if backend == "numpy" else (8, given["input"].nbytes * 3)
    plan = plan_of(op, given, backend=backend)
    out = np.empty(plan.output_shape, np.float32)

    def work() -> None:
        run_plan(plan, given, out=out)
        run_plan(plan, given)
        call(op, given, backend=backend)
        plan_of(op, given, backend=backend)

    work()
    work()
    gc.collect()
    before = resident_bytes()
    for _ in range(calls):
        work()
    gc.collect()
    assert resident_bytes() - before < allowed


# In a process of its own: one that has run many tests gives memory back when it likes.
LONG_SOUNDS = """
import os, sys
import numpy as np
import fastconv

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

weight = np.ones((1, 1, 3), np.float32)
for extra in range(25):
    x = np.zeros((1, 1, 1_000_000 + extra), np.float32)
    out = np.empty_like(x)
    fastconv.conv1d(x, weight, padding=1, out=out, backend=sys.argv[1])
    if extra == 8:
        before = resident_bytes()
print(resident_bytes() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_remembered_calls_do_not_fill_the_memory(backend):
    """Sounds are long, and no two of one length; the tables of a call take eight bytes or more a sample."""
    assert int(python(LONG_SOUNDS, backend)) < 50 << 20


@pytest.mark.parametrize("op", OPS)
def test_scratch_is_told_and_stays_the_same(op, backend):
    given = larger(op)
    plan = plan_of(op, given, backend=backend)
    before = str(plan)
    assert ("scratch" in before) == (backend != "numpy")
    if backend != "numpy":
        out = np.empty(plan.output_shape, np.float32)
        run_plan(plan, given, out=out)
    assert str(plan) == before


def test_a_plan_of_integers_is_refused():
    with pytest.raises(TypeError, match="the result would be int8, but must be float16"):
        fastconv.plan("conv1d", (1, 1, 4), np.ones((1, 1, 2), np.float32), dtype="int8")
    assert fastconv.plan("conv1d", (1, 1, 4), np.ones((1, 1, 2), np.int8)).dtype == np.float32

"""What is wrong with a call is found before any work; messages name the argument, the shapes and the rule.

Each row of the tables below is one mistake: the operations it fits, what it changes in a good call, the error
it must raise, and what the message must hold (separated by bars; ``{input}`` stands for the input's shape,
and so on). Every row is tried on each of its operations, on each backend, as a function and as a plan.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from samples import ARRAYS, call, plan_of, python, run_plan, sample

import fastconv
from fastconv import ShapeError
from fastconv.call import find_call
from fastconv.functional import options_of
from fastconv.problem import CONV, CONV_TRANSPOSE, DEFORM_CONV, OPS

as_strided = np.lib.stride_tricks.as_strided

PLAIN = CONV + CONV_TRANSPOSE  # groups are an argument
FORWARD = CONV + DEFORM_CONV  # weights are (O, C/G, *kernel)

# Text of NumPy, Cython, Numba or C that a user can make nothing of.
INTERNAL = re.compile(
    r"object has no attribute|not supported between|not subscriptable|not iterable|memoryview of|[Bb]uffer|"
    r"__pyx|nopython|TypingError|LoweringError|llvm|numba\.|pad_width|is too big|iterator is too large|"
    r"int too large|dimension exceeded|could not be broadcast|einsum|invalid literal|_native|ambiguous|DType|"
    r"unhashable"
)


def check(error: Any, needles: str, run: Callable[[], Any], what: str = "") -> None:
    """Check the type of the error that `run` raises and that its text holds the needles and no jargon."""
    try:
        run()
    except error as caught:
        text = str(caught)
    except Exception as caught:
        raise AssertionError(f"{what}: {type(caught).__name__} in place of {error}: {caught}") from caught
    else:
        raise AssertionError(f"{what}: no error")
    missing = [needle for needle in needles.split("|") if needle not in text]
    assert not missing, f"{what}: the message lacks {missing}: {text}"
    assert not INTERNAL.search(text), f"{what}: internal text reached the user: {text}"


@dataclass(frozen=True)
class Mistake:
    name: str
    ops: tuple[str, ...]
    change: Any  # a dict of arguments, or a function that makes one from the good arguments
    error: type[Exception]
    needles: str

    def apply(self, good: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Return the bad arguments and what the message must hold."""
        bad = {**good, **(self.change(good) if callable(self.change) else self.change)}
        shapes = {name: np.shape(bad[name]) for name in ARRAYS if bad.get(name) is not None}
        return bad, self.needles.format(**shapes, out=getattr(bad.get("out"), "shape", None))


def fewer(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the array without the last entry of one axis."""
    return np.delete(array, -1, axis)


def axes(a: dict[str, Any]) -> int:
    return a["input"].ndim - 2


SHAPES = [
    Mistake("input misses two axes", OPS, lambda a: {"input": a["input"][0, 0]}, ShapeError, "input|{input}"),
    Mistake(
        "input has an axis more", OPS, lambda a: {"input": a["input"][None]}, ShapeError, "input|{input}"
    ),
    Mistake("input is a number", OPS, {"input": np.float32(1)}, ShapeError, "input|()"),
    Mistake("input is empty", OPS, {"input": []}, ShapeError, "input|(0,)"),
    Mistake(
        "input without channels", OPS, lambda a: {"input": a["input"][:, :0]}, ShapeError, "input|{input}"
    ),
    Mistake(
        "input without pixels", OPS, lambda a: {"input": a["input"][..., :0]}, ShapeError, "input|{input}"
    ),
    Mistake(
        "weight misses an axis", OPS, lambda a: {"weight": a["weight"][0]}, ShapeError, "weight|{weight}"
    ),
    Mistake(
        "weight has an axis more", OPS, lambda a: {"weight": a["weight"][None]}, ShapeError, "weight|{weight}"
    ),
    Mistake(
        "weight without taps", OPS, lambda a: {"weight": a["weight"][..., :0]}, ShapeError, "weight|{weight}"
    ),
    Mistake(
        "weight without outputs",
        FORWARD,
        lambda a: {"weight": a["weight"][:0]},
        ShapeError,
        "weight|{weight}",
    ),
    Mistake(
        "weight without inputs", OPS, lambda a: {"weight": a["weight"][:, :0]}, ShapeError, "weight|{weight}"
    ),
    Mistake(
        "weight for fewer channels",
        FORWARD,
        lambda a: {"weight": fewer(a["weight"], 1)},
        ShapeError,
        "input|{input}|weight|{weight}|3|4",
    ),
    Mistake(
        "weight for fewer channels, transposed",
        CONV_TRANSPOSE,
        lambda a: {"weight": fewer(a["weight"], 0)},
        ShapeError,
        "input|{input}|weight|{weight}|3|4",
    ),
    Mistake(
        "input with fewer channels",
        OPS,
        lambda a: {"input": fewer(a["input"], 1)},
        ShapeError,
        "input|{input}|weight|{weight}|3|4",
    ),
    Mistake("groups do not divide", PLAIN, {"groups": 3}, ShapeError, "groups=3|4 channels|{input}|{weight}"),
    Mistake("groups do not match", CONV, {"groups": 2}, ShapeError, "groups=2|2 are needed|{input}|{weight}"),
    Mistake(
        "groups do not divide the outputs",
        CONV,
        lambda a: {"groups": 4, "weight": a["weight"][:, :1]},
        ShapeError,
        "groups=4|6 output channels|{input}|{weight}",
    ),
    Mistake(
        "weight groups do not divide the outputs",
        DEFORM_CONV,
        lambda a: {"weight": a["weight"][:5, :2]},
        ShapeError,
        "groups=2|5 output channels|{input}|{weight}",
    ),
    Mistake("bias is short", OPS, lambda a: {"bias": a["bias"][:5]}, ShapeError, "bias|(6,)|(5,)"),
    Mistake("bias has two axes", OPS, lambda a: {"bias": a["bias"][:, None]}, ShapeError, "bias|(6,)|(6, 1)"),
    Mistake("bias is a number", OPS, {"bias": 1.0}, ShapeError, "bias|(6,)|()"),
    Mistake("bias is empty", OPS, {"bias": []}, ShapeError, "bias|(6,)|(0,)"),
    Mistake(
        "the kernel is larger than the input",
        FORWARD,
        {"dilation": 20},
        ShapeError,
        "output would have size|dilation (20|kernel|input size",
    ),
    Mistake(
        "the padding cuts off everything",
        CONV_TRANSPOSE,
        {"padding": 10},
        ShapeError,
        "output would have size|padding ((10, 10)|kernel|input size",
    ),
]


def table(
    name: str, ops: tuple[str, ...], error: type[Exception], needles: str, values: Any
) -> list[Mistake]:
    """Return one mistake for each wrong value of an option."""
    return [Mistake(f"{name}={value!r:.30}", ops, {name: value}, error, needles) for value in values]


NOT_WHOLE = (1.0, 1.5, np.float32(1), 1 + 0j, None, {1: 1}, {1}, object(), float("nan"), iter([1]), b"1")

OPTIONS = [
    *(
        row
        for name in ("stride", "dilation", "padding")
        for row in table(name, OPS, TypeError, name, NOT_WHOLE)
    ),
    *(
        row
        for name in ("stride", "dilation")
        for row in table(name, OPS, ValueError, f"{name}|at least 1", (0, -1))
    ),
    *(
        row
        for name in ("stride", "dilation")
        for row in table(name, OPS, ValueError, f"{name}|integers", ((), (1,) * 4))
    ),
    *(
        row
        for name in ("stride", "dilation")
        for row in table(name, OPS, ValueError, f"{name}|at most", (2**31, 10**30))
    ),
    *(
        row
        for name in ("stride", "dilation")
        for row in table(name, OPS, TypeError, f"{name}|integer|'1'", ("1",))
    ),
    Mistake(
        "last stride",
        OPS,
        lambda a: {"stride": (1,) * (axes(a) - 1) + (0,)},
        ValueError,
        "stride|at least 1|0",
    ),
    Mistake(
        "last dilation",
        OPS,
        lambda a: {"dilation": (1,) * (axes(a) - 1) + (0,)},
        ValueError,
        "dilation|at least 1",
    ),
    Mistake(
        "last padding", OPS, lambda a: {"padding": (0,) * (axes(a) - 1) + (-1,)}, ValueError, "padding|-1"
    ),
    Mistake("padding below 0", OPS, {"padding": -1}, ValueError, "padding|-1|at least 0"),
    Mistake(
        "negative pair", OPS, lambda a: {"padding": ((0, -1),) * axes(a)}, ValueError, "padding|-1|negative"
    ),
    Mistake(
        "pair not whole", OPS, lambda a: {"padding": ((0, 1.0),) * axes(a)}, TypeError, "padding|integer|1.0"
    ),
    Mistake(
        "padding triples",
        OPS,
        lambda a: {"padding": ((0,) * 3,) * axes(a)},
        ValueError,
        "padding|(before, after)",
    ),
    Mistake(
        "padding of strings",
        OPS,
        lambda a: {"padding": ("ab",) * axes(a)},
        ValueError,
        "padding|(before, after)",
    ),
    *table("padding", OPS, ValueError, "padding|pair", (((0, 0),) * 4, (1, (1, 1)))),
    *table("padding", FORWARD, ValueError, "padding|'same'|'valid'", ("SAME", "", "reflect")),
    *table("padding", CONV_TRANSPOSE, ValueError, "padding|transposed|numbers", ("same", "valid", "")),
    Mistake(
        "same, strided", FORWARD, {"padding": "same", "stride": 2}, ValueError, "padding='same'|stride|2"
    ),
    *table("groups", PLAIN, ValueError, "groups|at least 1", (0, -1)),
    *table("groups", PLAIN, TypeError, "groups|integer", (1.0, "1", (1,), np.ones(2))),
    *table(
        "output_padding",
        CONV_TRANSPOSE,
        ValueError,
        "output_padding|less than stride or dilation",
        (1, 10**30),
    ),
    *table("output_padding", CONV_TRANSPOSE, ValueError, "output_padding|at least 0", (-1,)),
    *table("output_padding", CONV_TRANSPOSE, ValueError, "output_padding|integers", ((0,) * 4,)),
    *table("output_padding", CONV_TRANSPOSE, TypeError, "output_padding|integer", (0.0, "0", {}, None)),
    *table("output_size", CONV_TRANSPOSE, ShapeError, "output_size|between|input size", (3, 10**12, 10**30)),
    *table("output_size", CONV_TRANSPOSE, ValueError, "output_size", (0, -3, (9,) * 4, ())),
    *table("output_size", CONV_TRANSPOSE, TypeError, "output_size|integer", (9.0, "9", (9.0,), {})),
    Mistake(
        "output_padding and output_size",
        CONV_TRANSPOSE,
        {"output_padding": 1, "output_size": 9, "stride": 2},
        ValueError,
        "output_padding|output_size|not both",
    ),
    *table(
        "padding_mode",
        CONV,
        ValueError,
        "padding_mode|'reflect'",
        ("Reflect", "", None, 1, ["zeros"], b"zeros"),
    ),
    *(
        Mistake(
            f"too wide for {mode}",
            CONV,
            {"padding_mode": mode, "padding": 50},
            ShapeError,
            "padding|at most|50",
        )
        for mode in ("reflect", "circular", "symmetric")
    ),
    *table("layout", OPS, ValueError, "layout|'NCHW'|'NHWC'", ("nchw", "NCL", "", None, 1, ["NCHW"])),
    *table("activation", OPS, ValueError, "activation|relu6|hardswish", ("Relu", "", "tanh")),
    *table("activation", OPS, TypeError, "activation|relu6|function", (1, ["relu"], b"relu", True)),
    *table("accuracy", OPS, ValueError, "accuracy|'default'|'high'", ("low", "", 1e-6, True, ["high"])),
    *table("num_threads", OPS, ValueError, "num_threads|at least 1", (0, -1, -(2**70))),
    *table("num_threads", OPS, TypeError, "num_threads|integer", (1.0, "2", [2], np.ones(2))),
    *table(
        "backend",
        OPS,
        ValueError,
        "unknown backend|'numpy'",
        ("", "nonsense", "numpy ", "NumPy", "numpy,cython"),
    ),
    *table(
        "backend",
        OPS,
        ValueError,
        "unknown backend 'nonsense'",
        (["numpy", "nonsense"], ("nonsense", "numpy")),
    ),
    *table(
        "backend",
        OPS,
        TypeError,
        "backend|name",
        ([], (), 3, b"numpy", {"numpy"}, ["numpy", 3], [None], True),
    ),
]

DISPLACEMENTS = [
    Mistake(name, DEFORM_CONV, change, ShapeError, needles)
    for name, change, needles in (
        ("offset for another batch", lambda a: {"offset": a["offset"][:1]}, "offset|{offset}|(2, "),
        ("offset for another size", lambda a: {"offset": fewer(a["offset"], -1)}, "offset|{offset}|(2, "),
        ("offset misses a channel", lambda a: {"offset": fewer(a["offset"], 1)}, "offset|{offset}"),
        ("offset has no channels", lambda a: {"offset": a["offset"][:, :0]}, "offset|{offset}"),
        (
            "three offset groups",
            lambda a: {"offset": np.tile(a["offset"], (1, 3, *(1,) * axes(a)))},
            "offset|{offset}",
        ),
        ("offset without the batch", lambda a: {"offset": a["offset"][0]}, "offset|{offset}"),
        ("offset with an axis more", lambda a: {"offset": a["offset"][..., None]}, "offset|{offset}"),
        ("offset is a number", lambda a: {"offset": 0.0}, "offset|()"),
        ("offset is channels last", lambda a: {"offset": np.moveaxis(a["offset"], 1, -1)}, "offset|{offset}"),
        ("mask for another batch", lambda a: {"mask": a["mask"][:1]}, "mask|{mask}|(2, "),
        ("mask for another size", lambda a: {"mask": fewer(a["mask"], -1)}, "mask|{mask}|(2, "),
        ("mask misses a channel", lambda a: {"mask": fewer(a["mask"], 1)}, "mask|{mask}|(2, "),
        ("mask for two groups", lambda a: {"mask": np.concatenate([a["mask"]] * 2, 1)}, "mask|{mask}|(2, "),
        ("mask without the batch", lambda a: {"mask": a["mask"][0]}, "mask|{mask}"),
        ("mask is a number", lambda a: {"mask": 1.0}, "mask|()"),
    )
]


def result_of(a: dict[str, Any]) -> np.ndarray:
    """Return the result of the good call, computed by the oracle."""
    op = f"{'deform_conv' if 'offset' in a else 'conv'}{axes(a)}d"
    if "offset" not in a and a["weight"].shape[0] == 4:
        op = f"conv_transpose{axes(a)}d"
    return call(op, {name: a[name] for name in ARRAYS if name in a}, backend="numpy")


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def repeated(array: np.ndarray) -> np.ndarray:
    return as_strided(np.zeros(1, np.float32), array.shape, (0,) * array.ndim)


def sliding(array: np.ndarray) -> np.ndarray:
    return as_strided(np.zeros(array.size, np.float32), array.shape, tuple(range(4, 4 * array.ndim + 4, 4)))


OUT = [
    *table("out", OPS, TypeError, "out|array", (1, [1.0], "abc", {}, np.float32(1), memoryview(b"ab"), True)),
    *(
        Mistake(name, OPS, change, ShapeError, "out|{out}|(2, 6, ")
        for name, change in (
            ("out has another size", lambda a: {"out": fewer(result_of(a), -1)}),
            ("out has no batch", lambda a: {"out": result_of(a)[0]}),
            ("out has another batch", lambda a: {"out": result_of(a)[:1]}),
            ("out has an axis more", lambda a: {"out": result_of(a)[None]}),
            ("out is channels last", lambda a: {"out": np.moveaxis(result_of(a), 1, -1)}),
            ("out is a zero-dimensional array", {"out": np.zeros((), np.float32)}),
        )
    ),
    *(
        Mistake(
            f"out is {dtype}",
            OPS,
            lambda a, d=dtype: {"out": result_of(a).astype(d)},
            TypeError,
            f"out|float32|{dtype}",
        )
        for dtype in ("float64", "float16", "int32", "bool", "complex64", "object")
    ),
    Mistake(
        "out is read-only", OPS, lambda a: {"out": read_only(result_of(a))}, ValueError, "out|read-only|{out}"
    ),
    Mistake(
        "out repeats one number",
        OPS,
        lambda a: {"out": repeated(result_of(a))},
        ValueError,
        "out|share|{out}",
    ),
    Mistake(
        "out is a sliding window",
        OPS,
        lambda a: {"out": sliding(result_of(a))},
        ValueError,
        "out|share|{out}",
    ),
    Mistake("out is masked", OPS, lambda a: {"out": np.ma.array(result_of(a))}, TypeError, "out|MaskedArray"),
]


def names(mistakes: list[Mistake]) -> Any:
    # Addresses differ from process to process, and the processes that share the tests must agree on names.
    names = [re.sub(" at 0x[0-9a-f]*", "", mistake.name) for mistake in mistakes]
    return pytest.mark.parametrize("mistake", mistakes, ids=names)


@names(SHAPES + OPTIONS)
def test_mistakes_in_what_a_plan_is_made_from(mistake, backend):
    for op in mistake.ops:
        good = {**sample(op), "backend": backend}
        call(op, good)  # a remembered good call must not let through a bad one that compares equal to it
        bad, needles = mistake.apply(good)
        check(mistake.error, needles, lambda op=op, bad=bad: call(op, bad), op)
        check(mistake.error, needles, lambda op=op, bad=bad: plan_of(op, bad), f"plan {op}")


@names(DISPLACEMENTS + OUT)
def test_mistakes_in_what_a_plan_is_called_with(mistake, backend):
    for op in mistake.ops:
        good = {**sample(op), "backend": backend}
        bad, needles = mistake.apply(good)
        check(mistake.error, needles, lambda op=op, bad=bad: call(op, bad), op)
        plan, out = plan_of(op, good), bad.get("out")
        check(
            mistake.error,
            needles,
            lambda plan=plan, bad=bad, out=out: run_plan(plan, bad, out=out),
            f"plan {op}",
        )


NOT_NUMBERS = {
    "object": lambda array: array.astype(object),
    "str": lambda array: array.astype(str),
    "bytes": lambda array: array.astype("S5"),
    "complex64": lambda array: array.astype(np.complex64),
    "complex128": lambda array: array.astype(np.complex128),
    "datetime64": lambda array: array.astype(np.int64).astype("M8[s]"),
    "timedelta64": lambda array: array.astype(np.int64).astype("m8[s]"),
    "structured": lambda array: array.astype([("field", np.float32)]),
    "void": lambda array: np.zeros(array.shape, "V4"),
    "dict": lambda array: {1: 2},
    "set": lambda array: {1, 2},
    "generator": lambda array: (value for value in array),
    "text": lambda array: "abc",
    "ragged list": lambda array: [[1.0, 2.0], [3.0]],
    "list of None": lambda array: [None, None],
    "class": lambda array: float,
    "zero-dimensional object": lambda array: np.array(None),
}


@pytest.mark.parametrize("op", OPS)
def test_arrays_that_hold_no_real_numbers(op, backend):
    good = {**sample(op), "backend": backend}
    plan = plan_of(op, good)
    for name in [name for name in ARRAYS if name in good]:
        for kind, make in NOT_NUMBERS.items():
            bad = {**good, name: make(good[name])}
            check(TypeError, name, lambda bad=bad: call(op, bad), f"{name} {kind}")
            if name in ("weight", "bias"):
                check(TypeError, name, lambda bad=bad: plan_of(op, bad), f"plan, {name} {kind}")
            else:
                check(
                    (TypeError, ShapeError), name, lambda bad=bad: run_plan(plan, bad), f"plan, {name} {kind}"
                )


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="long double is double on this machine")
@pytest.mark.parametrize("op", OPS)
def test_long_double_is_refused(op, backend):
    good = {**sample(op), "backend": backend}
    for name in [name for name in ARRAYS if name in good]:
        bad = {**good, name: good[name].astype(np.longdouble)}
        check(
            TypeError, f"{name} {np.dtype(np.longdouble)}|float32 or float64", lambda bad=bad: call(op, bad)
        )


@pytest.mark.parametrize("op", OPS)
def test_required_arrays_are_not_none(op, backend):
    good = {**sample(op), "backend": backend}
    plan = plan_of(op, good)
    for name in {"input", "weight", "offset"} & good.keys():
        check(TypeError, f"{name}|None", lambda name=name: call(op, {**good, name: None}))
    check(TypeError, "weight|None", lambda: plan_of(op, {**good, "weight": None}))
    check(TypeError, "input|None", lambda: run_plan(plan, {**good, "input": None}))


@pytest.mark.parametrize("op", OPS)
def test_masked_values_are_refused_rather_than_used(op, backend):
    good = {**sample(op), "backend": backend}
    plan = plan_of(op, good)
    for name in [name for name in ARRAYS if name in good]:
        masked = np.ma.array(good[name], mask=good[name] == good[name].flat[0])
        bad = {**good, name: masked}
        check(TypeError, f"{name}|masked", lambda bad=bad: call(op, bad))
        again = (plan_of, op) if name in ("weight", "bias") else (run_plan, plan)
        check(TypeError, f"{name}|masked", lambda bad=bad, again=again: again[0](again[1], bad))


@pytest.mark.parametrize("op", OPS)
def test_out_must_not_overlap_an_argument(op, backend):
    """Each argument in turn lies in the memory of `out`: at its start, one further on, and at its end."""
    good = sample(op)
    result = call(op, good, backend="numpy")
    plan = plan_of(op, good, backend=backend)
    for name, array in good.items():
        for start in (0, 1, array.size - 1):
            memory = np.zeros(start + result.size + array.size, np.float32)
            shared = memory[: array.size].reshape(array.shape)
            shared[...] = array
            straight = memory[start : start + result.size].reshape(result.shape)
            bad = {**good, name: shared}
            needles = f"out|{result.shape}|overlaps|{name}|{array.shape}"
            for out in (straight, straight[:, ::-1], straight[..., ::-1]):
                check(ValueError, needles, lambda bad=bad, out=out: call(op, bad, out=out, backend=backend))
                if name in ("input", "offset", "mask"):
                    check(ValueError, needles, lambda bad=bad, out=out: run_plan(plan, bad, out=out))
            np.testing.assert_array_equal(shared, array)


def test_out_may_lie_between_the_elements_of_an_input(backend):
    memory = np.arange(128, dtype=np.float32).reshape(1, 1, 8, 16)
    x, out = memory[..., ::2], memory[..., 1::2]
    before, weight = x.copy(), np.ones((1, 1, 3, 3), np.float32)
    expected = fastconv.conv2d(before, weight, padding=1, backend="numpy")
    assert fastconv.conv2d(x, weight, padding=1, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_written_when_a_call_is_wrong(op, backend):
    good = sample(op)
    out = np.full_like(call(op, good, backend="numpy"), 7)
    for wrong in ({"num_threads": 0}, {"stride": 0}, {"backend": "nonsense"}, {"bias": good["bias"][:1]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            call(op, good, **{"out": out, "backend": backend, **wrong})
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("value", "error", "needles"),
    [
        (5, TypeError, "input_shape|sequence of integers|5"),
        (None, TypeError, "input_shape|None"),
        ("abc", TypeError, "input_shape|'abc'"),
        ((2, 4, 6.0, 7), TypeError, "input_shape|integer|6.0"),
        ((2, 4, "6", 7), TypeError, "input_shape|integer|'6'"),
        (np.ones((2, 2), int), TypeError, "input_shape|sequence of integers|an array of shape (2, 2)"),
        ((2, 4, 6, -7), ShapeError, "input_shape|negative|(2, 4, 6, -7)"),
        ((-2, 4, 6, 7), ShapeError, "input_shape|negative|(-2, 4, 6, 7)"),
        ((), ShapeError, "input|4 dimensions|()"),
        ((2, 4, 6, 7, 8), ShapeError, "input|4 dimensions|(2, 4, 6, 7, 8)"),
        ((4, 6), ShapeError, "input|4 dimensions|(4, 6)"),
        ((2, 0, 6, 7), ShapeError, "input|(2, 0, 6, 7)"),
        ((2, 5, 6, 7), ShapeError, "(2, 5, 6, 7)|(6, 4, 3, 2)|channels"),
        ((2**63, 4, 6, 7), MemoryError, f"input|{2**63}"),
        ((2**40, 4, 2**40, 2**40), MemoryError, f"input|{2**40}"),
        ((2**40, 4, 6, 7), MemoryError, f"output|{2**40}"),
    ],
)
def test_wrong_input_shape_of_a_plan(value, error, needles, backend):
    check(error, needles, lambda: fastconv.plan("conv2d", value, sample("conv2d")["weight"], backend=backend))


@pytest.mark.parametrize("op", ["conv4d", "conv", "", "Conv2d", None, 2, ["conv2d"]])
@pytest.mark.parametrize("function", [fastconv.plan, fastconv.explain])
def test_unknown_operation(function, op):
    check(
        ValueError,
        f"op|conv2d|deform_conv3d|{op!r}",
        lambda: function(op, (1, 1, 4, 4), np.ones((1, 1, 3, 3))),
    )


NOT_DTYPES = ("nonsense", 3, complex, object, "U3", "M8[s]", np.void)


@pytest.mark.parametrize(
    ("op", "options", "error", "needles"),
    [
        ("conv2d", {"mask": True}, ValueError, "mask|deformable|conv2d"),
        ("conv2d", {"offset_groups": 2}, ValueError, "offset_groups|deformable|conv2d"),
        ("conv2d", {"output_padding": 1}, ValueError, "output_padding|transposed|conv2d"),
        ("conv2d", {"output_padding": np.array([0, 1])}, ValueError, "output_padding|transposed|conv2d"),
        ("conv2d", {"output_size": 5}, ValueError, "output_size|transposed|conv2d"),
        ("conv_transpose2d", {"padding_mode": "reflect"}, ValueError, "padding_mode|'zeros'|'reflect'"),
        ("deform_conv2d", {"padding_mode": "circular"}, ValueError, "padding_mode|'zeros'|'circular'"),
        ("deform_conv2d", {"offset_groups": 0}, ValueError, "offset_groups|at least 1|0"),
        ("deform_conv2d", {"offset_groups": 3}, ShapeError, "3 offset groups|4 channels"),
        ("deform_conv2d", {"offset_groups": 1.0}, TypeError, "offset_groups|integer"),
        ("deform_conv2d", {"offset_groups": 2**70}, MemoryError, "offset"),
        ("deform_conv2d", {"mask": np.ones((2, 6, 4, 6))}, TypeError, "mask|True or False"),
        ("deform_conv2d", {"mask": None}, TypeError, "mask|True or False"),
        ("deform_conv2d", {"groups": 2}, ShapeError, "groups=2|(6, 4, 3, 2)"),
        *(("conv2d", {"dtype": value}, TypeError, "float32") for value in NOT_DTYPES),
    ],
)
def test_wrong_options_of_a_plan(op, options, error, needles, backend):
    weight = sample(op)["weight"]
    if op == "conv_transpose2d":
        assert weight.shape[0] == 4
    check(error, needles, lambda: fastconv.plan(op, (2, 4, 6, 7), weight, **options, backend=backend))


def test_messages_show_channels_last_shapes_as_the_user_wrote_them(backend):
    good = sample("deform_conv2d")
    last = {name: np.moveaxis(good[name], 1, -1) for name in ("input", "offset", "mask")}
    arguments = {**good, **last, "layout": "NHWC", "backend": backend}
    call("deform_conv2d", arguments)
    for name in ("offset", "mask"):
        first = {**arguments, name: good[name]}
        check(ShapeError, f"{name}|{good[name].shape}", lambda first=first: call("deform_conv2d", first))
    check(
        ShapeError,
        f"mask|{last['mask'].shape}",
        lambda: call("deform_conv2d", {**arguments, "mask": good["mask"]}),
    )


# Sizes that no machine has the memory for. The program may use little of the address space, so that
# an attempt to allocate fails, and reports (row, error, message) for each call.
HUGE = """
import json, resource, sys
import numpy as np
import fastconv
from samples import call, plan_of, rank, sample, variant

backend = sys.argv[1]
for op in fastconv.problem.OPS:  # whatever is compiled or started is so before the limit is set
    call(op, sample(op), backend=backend)
limit = 6 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def spread(array, axis, size):
    # The same values as often as asked for, without the memory.
    array = np.moveaxis(array, axis, 0)[:1]
    return np.moveaxis(np.broadcast_to(array, (size, *array.shape[1:])), 0, axis)

report = []
def attempt(name, run):
    try:
        result = run()
        outcome = ["ok", str(result.shape)]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    report.append([name, *outcome])

for op in fastconv.problem.OPS:
    good = {**sample(op), "backend": backend}
    changes = {
        "padding 10**12": {"padding": 10**12},
        "padding 2**62": {"padding": 2**62},
        "padding 10**30": {"padding": 10**30},
        "padding pair": {"padding": ((0, 10**12),) * rank(op)},
        "huge batch": {"input": spread(good["input"], 0, 2**45)},
        "huge rows": {"input": spread(good["input"], 2, 2**45)},
        "huge product": {"input": spread(spread(good["input"], 2, 2**28), 0, 2**22)},
    }
    if variant(op) == "conv_transpose":
        changes |= {
            "stride": {"stride": 2**31 - 1},
            "stride and size": {"stride": 10**6, "input": spread(good["input"], 2, 2**30)},
            "dilation": {"dilation": 2**31 - 1, "input": spread(good["input"], 0, 2**31)},
            "output_padding": {"dilation": 2**31 - 1, "output_padding": 2**31 - 2, "padding": 1},
            "output channels": {"weight": spread(good["weight"], 1, 2**40), "bias": None},
        }
    else:
        changes |= {
            "output channels": {"weight": spread(good["weight"], 0, 2**40), "bias": None},
            "dilation and padding": {"dilation": 2**31 - 1, "padding": 2**40},
            "kernel": {"weight": spread(good["weight"], 2, 2**40), "padding": 2**41},
        }
    if variant(op) == "conv":
        rows = spread(good["input"], 2, 2**40)
        changes |= {"huge input, small result": {"input": rows, "stride": 2**31 - 1}}
    for name, change in changes.items():
        attempt(f"{op} {name}", lambda: call(op, {**good, **change}))
        attempt(f"plan {op} {name}", lambda: plan_of(op, {**good, **change})(good["input"]))
print(json.dumps(report))
"""


def test_sizes_that_cannot_exist_are_refused_at_once(backend):
    report = json.loads(python(HUGE, backend))
    assert len(report) > 150
    for name, error, message in report:
        # A deformable convolution of another size needs another offset, and says so first; the padding of a
        # transposed one makes the output smaller; a plan for a huge input is called here with a small one.
        allowed = ("MemoryError", "ShapeError") if re.match("deform|conv_t|plan", name) else ("MemoryError",)
        assert error in allowed, (name, error, message)
        assert not INTERNAL.search(message), (name, message)
        assert re.search(r"output|input|offset|argument|weight|planned", message), (name, message)
        assert re.search(r"\d{8}|planned", message), f"{name}: the message shows no shape: {message}"


@pytest.mark.parametrize("value", [10**4, 2**31 - 1])
def test_steps_that_are_never_taken_may_be_long(value, backend):
    """One output pixel along an axis takes no step; nothing may be tabulated for the steps in between."""
    x, pixel = np.ones((1, 2, 5, 6), np.float32), np.ones((1, 2, 1, 1), np.float32)
    w, point = np.ones((2, 2, 3, 3), np.float32), np.ones((2, 2, 1, 1), np.float32)
    offset = np.zeros((1, 18, 1, 1), np.float32)
    assert (fastconv.conv2d(x, w, stride=value, backend=backend) == 18).all()
    assert (fastconv.conv2d(x, point, dilation=value, backend=backend) == 2).all()
    assert (fastconv.conv_transpose2d(pixel, w, stride=value, backend=backend) == 2).all()
    assert (fastconv.conv_transpose2d(x, point, dilation=value, backend=backend) == 2).all()
    assert (fastconv.deform_conv2d(x, offset, w, stride=value, backend=backend) == 18).all()


def test_long_steps_between_few_pixels(backend):
    """Most outputs of the transposed convolution have no tap, and most of the padding is read by none."""
    x, w = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5), np.ones((1, 1, 3), np.float32)
    result = fastconv.conv_transpose1d(x, w, [0.5], stride=10**5, backend=backend)
    expected = np.full((1, 1, 4 * 10**5 + 3), 0.5)
    for tap in range(3):
        expected[0, 0, tap :: 10**5] += x[0, 0]
    np.testing.assert_array_equal(result, expected)
    result = fastconv.conv1d(x, w, padding=10**6, stride=10**6, backend=backend)
    np.testing.assert_array_equal(result, [[[0, 6, 0]]])


@pytest.mark.parametrize("op", OPS)
def test_any_number_of_threads_is_a_limit_only(op, backend):
    """A million threads must not be started: the system would refuse, and OpenMP end the process."""
    arguments = sample(op)
    expected = call(op, arguments, backend="numpy")
    for threads in (1, 2, 3, 10**6, 2**31, 2**70, np.int8(3), True):
        np.testing.assert_array_equal(call(op, arguments, num_threads=threads, backend=backend), expected)


def test_options_of_integer_kinds_are_the_same_as_int(backend):
    arguments = sample("conv2d")
    expected = fastconv.conv2d(**arguments, stride=(2, 1), padding=((1, 0), (0, 1)), backend=backend)
    forms = [
        {"stride": [2, 1], "padding": [[1, 0], [0, 1]]},
        {"stride": np.array([2, 1]), "padding": np.array([[1, 0], [0, 1]], np.uint8)},
        {"stride": (np.int16(2), True), "padding": ((True, False), (np.uint8(0), np.array(1)))},
        {"stride": range(2, 0, -1), "padding": ([1, 0], np.array([0, 1]))},
    ]
    for form in forms:
        np.testing.assert_array_equal(fastconv.conv2d(**arguments, **form, backend=backend), expected)


def test_lists_and_arrays_find_what_tuples_left():
    x, w = np.ones((1, 2, 6, 7)), np.ones((3, 2, 3, 3))
    forms = [
        {"stride": (2, 1), "padding": ((1, 0), (0, 1))},
        {"stride": [2, 1], "padding": [[1, 0], [0, 1]]},
        {"stride": np.array([2, 1]), "padding": [(1, 0), (0, 1)]},
    ]
    calls = [find_call("conv2d", x, w, None, None, None, options_of(form), "numpy") for form in forms]
    assert calls[1] is calls[0]
    assert calls[2] is calls[0]


WRONG_VALUES = {
    "FASTCONV_BACKEND": {
        "nonsense": "'nonsense'|unknown backend|'numpy'",
        "numpy, nonsense": "numpy, nonsense|unknown backend 'nonsense'|'numpy'",
        "numpy,,": "numpy,,|unknown backend ''",
        "numpy cython": "numpy cython|unknown backend",
    },
    "FASTCONV_NUM_THREADS": {
        "0": "'0'|at least 1",
        "-2": "'-2'|at least 1",
        "two": "'two'|integer",
        "2.5": "'2.5'|integer",
        "1 2": "'1 2'|integer",
    },
    "FASTCONV_MAX_ISA": {"sse9": "'sse9'|baseline|avx2|avx512", "AVX2": "'AVX2'|baseline|avx2|avx512"},
    "FASTCONV_ACCURACY": {"highest": "'highest'|default|high"},
    "FASTCONV_DETERMINISTIC": {"yes": "'yes'|0, 1", "2": "'2'|0, 1"},
    "FASTCONV_LOG": {"debug": "'debug'|off|choices|refusals", "1": "'1'|off|choices|refusals"},
}


@pytest.mark.parametrize("variable", WRONG_VALUES)
def test_wrong_environment_values(variable):
    code = """
import os, sys
import fastconv
variable, *values = sys.argv[1:]
for value in values:
    if value != values[0]:  # the first comes with the process
        os.environ[variable] = value
    for _ in range(2):  # an error is not remembered as a value
        try:
            fastconv.conv1d([[1.0, 2.0]], [[[1.0]]])
        except ValueError as error:
            print(error)
"""
    wrong = WRONG_VALUES[variable]
    lines = python(code, variable, *wrong, **{variable: next(iter(wrong))}).splitlines()
    assert lines[::2] == lines[1::2]
    for line, needles in zip(lines[::2], wrong.values(), strict=True):
        for needle in (variable, *needles.split("|")):
            assert needle in line
        assert not INTERNAL.search(line)


@pytest.mark.parametrize(
    ("chosen", "threads", "newest", "log", "shown"),
    [
        (
            " numpy ",
            " 3 ",
            "baseline ",
            " off",
            ("backend: numpy (FASTCONV_BACKEND)", "threads: 3", "log: off"),
        ),
        ("", " ", "", "", ("backend: automatic", "threads: ", "log: off")),
        ("numpy , numpy", "9" * 30, " baseline", "off ", ("numpy", "threads: ", "instruction set: ")),
    ],
)
def test_right_environment_values_with_spaces(chosen, threads, newest, log, shown):
    code = "import fastconv; fastconv.conv1d([[1.0, 2.0]], [[[1.0]]]); fastconv.show_config()"
    text = python(
        code,
        FASTCONV_BACKEND=chosen,
        FASTCONV_NUM_THREADS=threads,
        FASTCONV_MAX_ISA=newest,
        FASTCONV_LOG=log,
    )
    for needle in shown:
        assert needle in text


class TestArrayLikes:
    """What NumPy makes an array of is taken, and nothing else."""

    def test_a_tensor_that_records_gradients(self):
        torch = pytest.importorskip("torch")
        x = torch.ones(1, 1, 4, 4, requires_grad=True)
        check(
            TypeError,
            "input cannot be made an array|detach",
            lambda: fastconv.conv2d(x, np.ones((1, 1, 3, 3))),
        )

    def test_an_object_that_fails_to_become_an_array(self, backend):
        class Broken:
            __array_interface__ = {"shape": (1,), "typestr": "zz", "version": 3}  # noqa: RUF012 (NumPy's protocol)

        check(TypeError, "weight", lambda: fastconv.conv1d(np.ones((1, 1, 4)), Broken(), backend=backend))

    def test_subclasses_are_taken_as_plain_arrays(self, backend, tmp_path):
        class Sub(np.ndarray):
            pass

        arguments = sample("conv2d")
        expected = fastconv.conv2d(**arguments, backend=backend)
        mapped = np.memmap(tmp_path / "input", np.float32, "w+", shape=arguments["input"].shape)
        mapped[...] = arguments["input"]
        for x in (arguments["input"].view(Sub), mapped, np.ma.array(arguments["input"])):
            result = fastconv.conv2d(**{**arguments, "input": x}, backend=backend)
            assert type(result) is np.ndarray
            np.testing.assert_array_equal(result, expected)
        out = np.empty_like(expected).view(Sub)
        assert fastconv.conv2d(**arguments, out=out, backend=backend) is out
        np.testing.assert_array_equal(np.asarray(out), expected)

    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_a_matrix_has_two_axes(self, backend):
        check(
            ShapeError,
            "weight|(1, 1)",
            lambda: fastconv.conv1d(np.ones((1, 1, 4)), np.asmatrix([[1.0]]), backend=backend),
        )


class TestActivations:
    """A Python function is the user's own; what it does wrong is told in the user's terms."""

    @staticmethod
    def run(backend, activation):
        return fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)), activation=activation, backend=backend)

    def test_a_backend_that_takes_no_functions_says_so(self, backend):
        accepting = {"numpy", "numba"}
        if backend in accepting:
            np.testing.assert_array_equal(self.run(backend, lambda v: v + 1), np.full((1, 1, 3), 3.0))
        else:
            check(
                fastconv.UnsupportedError,
                f"{backend}|function|numpy",
                lambda: self.run(backend, lambda v: v + 1),
            )

    @pytest.mark.parametrize(
        "activation",
        [
            pytest.param(lambda: 1.0, id="takes no argument"),
            pytest.param(lambda v: "text", id="returns text"),
            pytest.param(lambda v: v.no_such_thing, id="asks for what a number lacks"),
        ],
    )
    def test_a_function_that_does_not_work(self, activation, backend):
        with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
            self.run(backend, activation)
        assert not re.search(r"nopython|llvm|LoweringError|TypingError|numba\.|__pyx", str(caught.value))

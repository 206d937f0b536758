"""The type of a result is NumPy's promotion of the arguments; what is stored in 16 bits is summed in 32."""

import numpy as np
import pytest
from samples import ARRAYS, call, call_on, plan_of, run_plan, sample

import fastconv
from fastconv.problem import OPS

F2, F4, F8 = "float16", "float32", "float64"

# (input, weight, bias) -> result. Integers and bools become the float that holds them.
PROMOTIONS = [
    (F4, F4, None, F4),
    (F8, F8, None, F8),
    (F2, F2, None, F2),
    (F4, F8, None, F8),
    (F8, F4, None, F8),
    (F2, F4, None, F4),
    (F4, F2, F2, F4),
    (F2, F8, None, F8),
    (F4, F4, F8, F8),
    (F2, F2, F4, F4),
    ("bool", "bool", None, F4),
    ("int8", "int8", None, F4),
    ("uint8", "int16", None, F4),
    ("int32", "int32", None, F8),
    ("uint8", "uint64", "int8", F8),
    ("int64", "bool", None, F8),
    ("uint8", F4, None, F4),
    ("uint8", F2, None, F2),
    ("int16", F2, None, F4),
    ("int32", F4, None, F8),
    ("int64", F2, None, F8),
    (F4, "int8", "bool", F4),
    (F4, F4, "int64", F8),
    ("uint16", F4, "int16", F4),
]


@pytest.mark.parametrize(("x", "w", "b", "expected"), PROMOTIONS)
def test_promotion(x, w, b, expected, backend):
    for op in OPS:
        given = sample(op)
        types = {"input": x, "weight": w, "bias": b}
        arguments = {name: np.abs(given[name]).astype(types[name]) for name in types if types[name]}
        # Displacements of a quarter need a float; they take part in the promotion, so they are of its result.
        arguments |= {name: given[name].astype(expected) for name in ("offset", "mask") if name in given}
        result = call_on(backend, op, arguments)
        assert result.dtype == expected
        assert result.dtype.isnative
        reference = call(
            op, {name: array.astype(np.float64) for name, array in arguments.items()}, backend="numpy"
        )
        np.testing.assert_array_equal(result, reference.astype(expected))
        plan = plan_of(op, {**arguments, "backend": backend}, dtype=expected)
        assert plan.dtype == expected
        if np.can_cast(x, expected):
            np.testing.assert_array_equal(run_plan(plan, arguments), result)


@pytest.mark.parametrize(
    ("offset", "mask", "expected"), [(F8, F4, F8), (F4, F8, F8), (F2, F4, F4), (F4, "bool", F4)]
)
def test_offset_and_mask_take_part_in_the_promotion(offset, mask, expected, backend):
    for op in ("deform_conv1d", "deform_conv2d", "deform_conv3d"):
        given = sample(op)
        given |= {"offset": given["offset"].astype(offset), "mask": (given["mask"] > 0).astype(mask)}
        result = call_on(backend, op, given)
        assert result.dtype == expected
        wide = {name: array.astype(np.float64) for name, array in given.items()}
        np.testing.assert_array_equal(result, call(op, wide, backend="numpy").astype(expected))


def test_long_integers_are_not_truncated(backend):
    x = np.array([[[2**31 + 1, 2**40 + 1, -(2**52)]]])
    w = np.ones((1, 1, 1), np.int8)
    np.testing.assert_array_equal(fastconv.conv1d(x, w, backend=backend), x.astype(np.float64))


def test_float16_is_summed_in_float32(backend):
    # In float16, 2048 + 1 is 2048 again.
    x = np.ones((1, 1, 2100), np.float16)
    result = fastconv.conv1d(x, x, backend=backend)
    assert result.dtype == np.float16
    assert result.item() == 2100
    assert fastconv.conv1d(x, x, backend=backend, bias=np.float16([-2098])).item() == 2


def test_float16_overflows_to_inf_in_the_result_only(backend):
    x = np.full((1, 1, 2), 300, np.float16)
    with np.errstate(over="ignore"):
        large = fastconv.conv1d(x, x, backend=backend)
    assert np.isposinf(large.item())
    assert fastconv.conv1d(x, x, backend=backend, activation="relu6").item() == 6


class TestBfloat16:
    """Stored in bfloat16, summed in float32, where the package ml_dtypes is installed."""

    @pytest.fixture
    def bfloat16(self):
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)

    @pytest.mark.parametrize("op", OPS)
    def test_equals_the_rounded_float32_result(self, op, bfloat16, backend):
        arguments = {name: array.astype(bfloat16) for name, array in sample(op).items()}
        wide = {name: array.astype(np.float32) for name, array in arguments.items()}
        expected = call(op, wide, backend="numpy").astype(bfloat16)
        result = call_on(backend, op, arguments)
        assert result.dtype == bfloat16
        np.testing.assert_array_equal(result.astype(np.float32), expected.astype(np.float32))
        out = np.zeros_like(result)
        assert call(op, arguments, out=out, backend=backend) is out
        np.testing.assert_array_equal(out.astype(np.float32), expected.astype(np.float32))
        plan = plan_of(op, arguments, backend=backend)
        assert plan.dtype == bfloat16
        np.testing.assert_array_equal(
            run_plan(plan, arguments).astype(np.float32), expected.astype(np.float32)
        )

    @pytest.mark.parametrize(
        ("other", "expected"),
        [(F4, F4), (F8, F8), ("bool", "bfloat16"), ("int8", "bfloat16"), ("uint8", "bfloat16")],
    )
    def test_promotion(self, other, expected, bfloat16, backend):
        x, w = np.ones((1, 2, 5), bfloat16), np.ones((3, 2, 2), other)
        for a, b in ((x, w), (x.astype(other), w.astype(bfloat16))):
            result = fastconv.conv1d(a, b, backend=backend)
            assert result.dtype == expected
            assert (result == 4).all()

    @pytest.mark.parametrize("other", [F2, "int32", "int64", "uint64"])
    def test_where_numpy_has_no_common_type_it_is_an_error(self, other, bfloat16, backend):
        x, w = np.ones((1, 2, 5), bfloat16), np.ones((3, 2, 2), other)
        with pytest.raises(TypeError, match=f"promotion.*input bfloat16, weight {other}"):
            fastconv.conv1d(x, w, backend=backend)

    def test_sums_are_not_rounded_to_eight_bits(self, bfloat16, backend):
        x = np.ones((1, 1, 1000), bfloat16)
        assert fastconv.conv1d(x, x, backend=backend).item() == 1000

    @pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2", "int4"])
    def test_smaller_types_are_refused(self, name, backend):
        small = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
        with pytest.raises(TypeError, match=name):
            fastconv.conv1d(
                np.ones((1, 1, 4)).astype(small), np.ones((1, 1, 2)).astype(small), backend=backend
            )


class TestForms:
    """The same numbers in any memory give the same bits."""

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("dtype", [F2, F4, F8])
    def test_byte_order(self, op, dtype, backend):
        given = sample(op, dtype=dtype)
        expected = call(op, given, backend=backend)
        for name in [name for name in ARRAYS if name in given]:
            swapped = {**given, name: given[name].astype(np.dtype(dtype).newbyteorder(">"))}
            assert not swapped[name].dtype.isnative
            result = call_on(backend, op, swapped)
            assert result.dtype.isnative
            np.testing.assert_array_equal(result, expected)
        every = {name: array.astype(np.dtype(dtype).newbyteorder(">")) for name, array in given.items()}
        out = np.zeros(expected.shape, np.dtype(dtype).newbyteorder(">"))
        assert call(op, every, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(run_plan(plan_of(op, every, backend=backend), every), expected)

    @pytest.mark.parametrize("op", OPS)
    def test_lists(self, op, backend):
        given = sample(op, dtype=F8)
        expected = call(op, given, backend=backend)
        lists = {name: array.tolist() for name, array in given.items()}
        np.testing.assert_array_equal(call_on(backend, op, lists), expected)
        np.testing.assert_array_equal(run_plan(plan_of(op, lists, backend=backend), lists), expected)

    @pytest.mark.parametrize("op", OPS)
    def test_memory_order_and_alignment(self, op, backend):
        given = sample(op)
        expected = call(op, given, backend=backend)
        forms = {
            "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
            "transposed": lambda a: np.ascontiguousarray(a.T).T,
            "every second": lambda a: np.repeat(a, 2, -1)[..., ::2],
            "unaligned": unaligned,
            "read-only": read_only,
            "Fortran": np.asfortranarray,
        }
        plan = plan_of(op, given, backend=backend)
        for change in forms.values():
            changed = {name: change(array) for name, array in given.items()}
            before = {name: array.copy() for name, array in changed.items()}
            np.testing.assert_array_equal(call_on(backend, op, changed), expected)
            np.testing.assert_array_equal(run_plan(plan, changed), expected)
            for name, array in changed.items():
                np.testing.assert_array_equal(array, before[name])

    @pytest.mark.parametrize("op", OPS)
    def test_out_in_any_form(self, op, backend):
        given = sample(op)
        expected = call(op, given, backend=backend)
        plan = plan_of(op, given, backend=backend)
        for out in (
            np.full_like(expected, np.nan),
            np.asfortranarray(np.full_like(expected, np.nan)),
            np.full((*expected.shape, 2), np.nan, F4)[..., 0],
            np.full_like(expected, np.nan)[:, ::-1],
            unaligned(np.full_like(expected, np.nan)),
        ):
            assert call(op, given, out=out, backend=backend) is out
            np.testing.assert_array_equal(out, expected)
            out[...] = np.nan
            assert run_plan(plan, given, out=out) is out
            np.testing.assert_array_equal(out, expected)

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("dtype", [F2, F4, F8])
    def test_out_is_of_the_result_type_alone(self, op, dtype, backend):
        given = sample(op, dtype=dtype)
        expected = call(op, given, backend="numpy")
        for other in (F2, F4, F8, "int64"):
            out = np.zeros(expected.shape, other)
            if other == dtype:
                assert call(op, given, out=out, backend=backend) is out
                np.testing.assert_array_equal(out, expected)
            else:
                with pytest.raises(TypeError, match=f"out must have dtype {dtype}, got {other}"):
                    call(op, given, out=out, backend=backend)

    def test_a_result_never_aliases_an_input(self, backend):
        x, identity = np.ones((1, 1, 5), F4), np.ones((1, 1, 1), F4)
        for form in (x, x[0]):
            result = fastconv.conv1d(form, identity, backend=backend)
            assert not np.shares_memory(result, x)
            assert result.flags.writeable
            assert result.flags.c_contiguous


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array

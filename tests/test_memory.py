"""No kernel touches memory outside its arrays: each array lies against a page that must not be touched.

A violation ends the process, so the kernels run in one of their own, which says before each case what it is about
to do.
"""

import sys

import pytest
from samples import python

from fastconv import _native

PROGRAM = """
import ctypes, mmap
import numpy as np
import fastconv
from fastconv import config, testing
from fastconv.problem import DCN, DEFORM_GRAD, FORWARD_OPS, SEPARABLE, WEIGHT_GRAD

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, NO_ACCESS = mmap.PAGESIZE, 0
held = []


def fenced(array, side):
    '''Return a copy that ends (or begins) where a protected page begins (or ends).'''
    pages = -(-array.nbytes // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for fence in (first, first + (pages + 1) * PAGE):
        assert libc.mprotect(fence, PAGE, NO_ACCESS) == 0
    held.append(area)
    start = PAGE + (pages * PAGE - array.nbytes if side == "end" else 0)
    copy = np.frombuffer(area, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy


for op in FORWARD_OPS:
    for number, case in enumerate(testing.cases(op, COUNT, seed=7)):
        expected, operands = case.run("numpy"), case.arrays()
        isa = ISAS[number % len(ISAS)]
        deformable = {"offset_groups": case.offset_groups, "mask": case.mask} if case.offset_groups else {}
        for side in ("begin", "end"):
            print(isa, side, case, flush=True)
            placed = {name: fenced(array, side) for name, array in operands.items()}
            out = fenced(np.zeros_like(expected), side)
            exact = case.options | ({} if op in DCN else {"accuracy": "high"})
            with config.limit_isa(isa):
                getattr(fastconv, op)(**placed, **case.options, out=out, backend=BACKEND)
                getattr(fastconv, op)(**placed, **exact, out=out, backend=BACKEND)
                testing.assert_exact(out, expected, case)
                out[...] = 0
                plan = fastconv.plan(op, case.input_shape, placed.get("weight"), placed.get("bias"),
                                     **exact, **deformable, dtype=case.dtype, backend=BACKEND)
                plan(placed["input"], placed.get("offset"), placed.get("mask"), out=out)
                testing.assert_exact(out, expected, case)

for op in SEPARABLE:
    for number, case in enumerate(testing.cases(op, COUNT, seed=7)):
        operands = case.arrays()
        expected = getattr(fastconv, op)(**operands, **case.options, backend="numpy")
        isa = ISAS[number % len(ISAS)]
        for side in ("begin", "end"):
            print(isa, side, case, flush=True)
            placed = {name: fenced(array, side) for name, array in operands.items()}
            out = fenced(np.zeros_like(expected), side)
            with config.limit_isa(isa):
                getattr(fastconv, op)(**placed, **case.options, out=out, backend=BACKEND)
                testing.assert_exact(out, expected, case)
                out[...] = 0
                x = placed.pop("input")
                fastconv.plan_separable(op, x.shape, **placed, **case.options, backend=BACKEND)(x, out=out)
                testing.assert_exact(out, expected, case)

for op in WEIGHT_GRAD:
    for number, case in enumerate(testing.cases(op, COUNT, seed=7)):
        problem, operands = case.problem(), case.arrays()
        (oracle,) = fastconv.kernels(op, backend="numpy")
        expected = case.run(oracle, operands)["weight"]
        isa = ISAS[number % len(ISAS)]
        for side in ("begin", "end"):
            for kernel in fastconv.kernels(op, backend=BACKEND):
                if kernel.refuse(problem):
                    continue
                print(isa, side, kernel.name, case, flush=True)
                x, gy = (fenced(operands[name], side) for name in ("input", "grad_output"))
                out = fenced(np.zeros_like(expected), side)
                with config.limit_isa(isa):
                    kernel.build(problem)(out, x, gy, None, None, None, 1)
                testing.assert_close(out, expected, kernel.tolerance * np.finfo(out.dtype).eps, case)

for op in DEFORM_GRAD:
    for number, case in enumerate(testing.cases(op, COUNT, seed=7)):
        problem, operands = case.problem(), case.arrays()
        (oracle,) = fastconv.kernels(op, backend="numpy")
        expected = case.run(oracle, operands)
        isa = ISAS[number % len(ISAS)]
        for side in ("begin", "end"):
            for kernel in fastconv.kernels(op, backend=BACKEND):
                print(isa, side, kernel.name, case, flush=True)
                names = ("grad_output", "input", "weight", "offset", "mask")
                placed = [fenced(operands[name], side) if name in operands else None for name in names]
                out = {name: fenced(np.zeros_like(array), side) for name, array in expected.items()}
                with config.limit_isa(isa):
                    kernel.build(problem)(out, *placed, 1)
                for name, array in expected.items():
                    testing.assert_exact(out[name], array, case)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protected pages are made by Linux calls")
def test_nothing_outside_the_arrays_is_touched(backend):
    if backend == "numpy":
        pytest.skip("NumPy looks at its own indices")
    settings = f"COUNT, BACKEND, ISAS = 17, {backend!r}, {list(_native.isas())!r}\n"
    said = python(settings + PROGRAM, timeout=110)
    assert said.rstrip().endswith("done"), said[-2000:]

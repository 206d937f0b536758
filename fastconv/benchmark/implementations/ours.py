"""Our backends: called, and prepared in both layouts."""

import functools
from typing import Any

import numpy as np

import fastconv

from ... import config, separable
from ...call import OPERANDS, OPTIONS, Call, find_call
from ...gradcall import find_grad_call
from ..case import Case, Runner
from . import PREPARED, STATELESS, Implementation

BACKENDS = ("cython", "numba")


def build_call(case: Case, threads: int, backend: str) -> Runner:
    """Return an ordinary call; the number of threads is the process's, from FASTCONV_NUM_THREADS."""
    function = getattr(fastconv, case.workload.op)
    if case.workload.pointwise:
        made: Call = _separable(case, backend)
    else:
        arguments = (*map(case.operands.get, OPERANDS), tuple({**OPTIONS, **case.options}.values()), backend)
        made = find_call(case.workload.op, *arguments)  # type: ignore[arg-type]
    call = functools.partial(function, **case.operands, **case.options, backend=backend)
    return Runner(call, lambda y: [y], made.kernel.name, _isa(), _scratch(made, threads))


def build_plan(case: Case, threads: int, backend: str, layout: str) -> Runner:
    """Return a call of a plan, with an array of its own for the result."""
    workload = case.workload
    x, *sampling = (arranged(case.operands[name], layout) for name in case.wanted if "weight" not in name)
    options = {**case.options, "layout": layout}
    if workload.offset_groups:
        options |= {"offset_groups": workload.offset_groups, "mask": workload.mask}
    weights = [array for name, array in case.operands.items() if "weight" in name]
    make: Any = fastconv.plan_separable if workload.pointwise else fastconv.plan
    plan = make(workload.op, x.shape, *weights, **options, backend=backend)
    out = np.empty(plan.output_shape, plan.dtype)
    call = functools.partial(plan, x, *sampling, out=out)
    arrays = lambda y: [channels_first(y, layout)]
    return Runner(call, arrays, plan.kernel.name, _isa(), _scratch(plan._call, threads))


def _separable(case: Case, backend: str) -> Call:
    operands = {**dict.fromkeys(separable.OPERANDS), **case.operands}
    options = {"padding_mode": "zeros", "layout": "NCHW"} | dict.fromkeys(separable.OPTIONS[5:])
    return separable.find_separable_call(case.workload.op, operands, options | case.options, backend, True)


def build_gradient(case: Case, threads: int, backend: str, layout: str) -> Runner:
    """Return a call that gives the gradients of all operands."""
    given = {
        name: array if name == "weight" else arranged(array, layout) for name, array in case.operands.items()
    }
    grad_output = arranged(case.grad_output, layout)
    function = getattr(fastconv.grad, case.workload.op)
    call = functools.partial(
        function, grad_output, **given, **case.options, wrt=case.wanted, backend=backend, layout=layout
    )

    def arrays(found: Any) -> list[np.ndarray]:
        gradients = {name: getattr(found, name) for name in case.wanted}
        return [a if name == "weight" else channels_first(a, layout) for name, a in gradients.items()]

    operands = {**dict.fromkeys(OPERANDS), "grad_output": grad_output, **given}
    ordered = tuple({**OPTIONS, **case.options, "layout": layout}.values())
    made = find_grad_call(case.workload.op, operands, ordered, case.wanted, backend)
    kernels = dict.fromkeys(part.kernel.name for part in made.parts.values())
    return Runner(call, arrays, " + ".join(kernels), _isa())


def arranged(array: np.ndarray, layout: str) -> np.ndarray:
    """Return a channels-first array in `layout`."""
    return array if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(array, 1, -1))


def channels_first(array: np.ndarray, layout: str) -> np.ndarray:
    """Return the channels-first view of an array that lies in `layout`."""
    return array if layout == "NCHW" else np.moveaxis(array, -1, 1)


def _scratch(call: Call, threads: int) -> int | None:
    scratch = getattr(call.executable, "scratch_bytes", None)
    return None if scratch is None else scratch(threads)


def _isa() -> str:
    from ... import _native

    return config.best_isa(_native.isas())


def _entries() -> list[Implementation]:
    found = []

    def add(name: str, column: str, layout: str, build: Any, backward: bool = False) -> None:
        entry = Implementation(
            name, "fastconv", "fastconv", column, layout, build, "", not backward, backward
        )
        found.append(entry)

    for backend in BACKENDS:
        add(f"{backend}.call", STATELESS, "NCHW", functools.partial(build_call, backend=backend))
        for suffix, layout in (("", "NCHW"), ("_nhwc", "NHWC")):
            plan = functools.partial(build_plan, backend=backend, layout=layout)
            add(f"{backend}.plan{suffix}", PREPARED, layout, plan)
    for backend in BACKENDS:
        for suffix, layout in (("", "NCHW"), ("_nhwc", "NHWC")):
            gradient = functools.partial(build_gradient, backend=backend, layout=layout)
            add(f"{backend}.grad{suffix}", STATELESS, layout, gradient, backward=True)
    return found


IMPLEMENTATIONS = _entries()
# Entered twice: how far two times of one thing lie apart in a run.
CONTROLLED = next(entry for entry in IMPLEMENTATIONS if entry.name == "cython.plan")

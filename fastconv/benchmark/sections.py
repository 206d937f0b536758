"""What is measured, section by section: each function takes a job and yields rows of the results.

All of this runs in a process of its own (see :mod:`fastconv.benchmark.worker`) that has as many cores as threads.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import implementations
from .case import Case, Inapplicable, Runner, check
from .implementations import Implementation
from .implementations.ours import CONTROLLED
from .measure import QuietCheck, Samples, interleave
from .workloads import Workload

__all__ = ["HANDLERS"]

Job = dict[str, Any]
Row = dict[str, Any]
# What is built faster than that is built twice, with arrays in other places.
SHORT_BUILD_SECONDS = 1.0
MIXED_SIZES = [(height, width) for height in range(41, 60, 3) for width in range(40, 64, 4)]


def layers(job: Job) -> Iterator[Row]:
    """Time one workload on every implementation, interleaved; each is checked first."""
    case = _case(job)
    if job["check"]:
        _ = case.reference  # its memory must not count as an implementation's
    rows: dict[str, Row] = {}
    elsewhere = case.displaced()
    ready: dict[str, list[Runner]] = {}  # they own buffers that their calls write to
    for entry in _entries(job):
        row = rows[entry.name] = _row(case, entry, job)
        try:
            started = time.perf_counter()
            ready[entry.name] = [_prepare(case, entry, job, row)]
            if time.perf_counter() - started < SHORT_BUILD_SECONDS:
                ready[entry.name].append(entry.build(elsewhere, job["threads"]))
        except Inapplicable:
            del rows[entry.name]
        except Exception as error:
            row["refused"] = _reason(error)
    controlled = job["control"] and CONTROLLED.name in ready
    if controlled:
        ready["control"] = [CONTROLLED.build(again, job["threads"]) for again in (case, elsewhere)]
    calls = {name: [runner.call for runner in runners] for name, runners in ready.items()}
    times = interleave(calls, rounds=job["rounds"], block=job["block"], is_quiet=QuietCheck())
    for name, row in rows.items():
        yield {"row": row | _timing(times[name]) if name in times else row}
    if controlled:
        control, first = times["control"], times[CONTROLLED.name]
        yield {
            "control": {
                "workload": case.workload.name,
                "implementation": CONTROLLED.name,
                "threads": job["threads"],
                "ratio": control.minimum / first.minimum,
                "disturbed": first.disturbed,
                "process": "the same",
            }
        }


def creation(job: Job) -> Iterator[Row]:
    """Time what a user pays once for each layer: plans, sessions, packed weights."""
    case = _case(job)
    rows, calls = {}, {}
    for entry in _entries(job):
        if entry.column != implementations.PREPARED:
            continue
        build = lambda entry=entry: entry.build(case, job["threads"])
        try:
            build()
        except Exception:  # told in the rows of the calls
            continue
        rows[entry.name], calls[entry.name] = _row(case, entry, job), build
    times = interleave(calls, rounds=job["rounds"], block=job["block"] / 4, is_quiet=QuietCheck())
    for name, row in rows.items():
        yield {"row": row | _timing(times[name])}


def first_call(job: Job) -> Iterator[Row]:
    """Time the first call of a process, from importing the library to the result, and then the second."""
    case = _case(job)
    _ = case.operands
    for entry in _entries(job):
        started = time.perf_counter()
        try:
            __import__(entry.module)
            runner = entry.build(case, job["threads"])
            runner.call()
        except Inapplicable:
            continue
        first = time.perf_counter() - started + (job["import_seconds"] if entry.own else 0.0)
        started = time.perf_counter()
        runner.call()
        for phase, seconds in ((job["phase"], first), ("second", time.perf_counter() - started)):
            timing = _timing(Samples([seconds], [seconds]))
            yield {"row": _row(case, entry, job) | {"phase": phase} | timing}


def mixed_sizes(job: Job) -> Iterator[Row]:
    """Time the first call for each of many sizes in a row: nothing may be compiled anew for a size."""
    for entry in _entries(job):
        seconds = []
        for size in MIXED_SIZES[:: job["step"]]:
            fields = {**job["workload"], "input": [*job["workload"]["input"][:2], *size]}
            case = Case(Workload.from_dict(fields), job["dtype"])
            _ = case.operands
            started = time.perf_counter()
            try:
                runner = entry.build(case, job["threads"])
                runner.call()
            except Inapplicable:
                break
            seconds.append(time.perf_counter() - started)
        if seconds:
            later = seconds[1:]  # the first is the first of the process
            yield {"row": _row(case, entry, job) | _timing(Samples(later, later))}


def limits(job: Job) -> Iterator[Row]:
    """Measure what the machine can do at best."""
    from .machine import measure_limits

    yield {"limits": measure_limits(job["threads"])}


HANDLERS: dict[str, Callable[[Job], Iterator[Row]]] = {
    function.__name__: function for function in (layers, creation, first_call, mixed_sizes, limits)
}


def _case(job: Job) -> Case:
    memory = job.get("memory")
    return Case(
        Workload.from_dict(job["workload"]),
        job["dtype"],
        backward=job["section"] == "backward",
        fresh=job["section"] == "overhead",
        memory=None if memory is None else Path(memory),
    )


def _entries(job: Job) -> list[Implementation]:
    return [entry for entry in implementations.catalogue() if entry.name in job["implementations"]]


def _row(case: Case, entry: Implementation, job: Job) -> Row:
    workload = case.workload
    return {
        "section": job["section"],
        "phase": job.get("phase", ""),
        "workload": workload.name,
        "family": workload.family,
        "list": workload.list,
        "axis": workload.axis,
        "value": workload.value,
        "op": workload.op,
        "problem": str(case.problem),
        "implementation": entry.name,
        "library": entry.distribution,
        "version": implementations.version(entry.distribution),
        "column": entry.column,
        "layout": entry.layout,
        "dtype": case.dtype,
        "threads": job["threads"],
        "error": None,
        "refused": None,
        "kernel": None,
        "isa": None,
        "flops": case.flops,
        "bytes": case.bytes,
        "intensity": case.flops / case.bytes,
        "scratch_bytes": None,
        "peak_extra_bytes": None,
    }


def _prepare(case: Case, entry: Implementation, job: Job, row: Row) -> Runner:
    """Build and run an implementation once, check the answer, and note what it told and took."""
    __import__(entry.module)
    before = _reset_peak()
    runner = entry.build(case, job["threads"])
    result = runner.call()
    row["peak_extra_bytes"] = None if before is None else max(0, _status("VmHWM") - before)
    row |= {"kernel": runner.kernel, "isa": runner.isa, "scratch_bytes": runner.scratch_bytes}
    if job["check"]:
        row["error"] = check(case, list(runner.arrays(result)), own=entry.own)
    return runner


def _timing(samples: Samples) -> Row:
    return {
        "seconds_min": samples.minimum,
        "seconds_median": samples.median,
        "samples": samples.minima,
        "disturbed": samples.disturbed,
    }


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        text[:200]
        if type(error).__module__ == "fastconv.benchmark.case"
        else f"{type(error).__name__}: {text[:200]}"
    )


def _reset_peak() -> int | None:
    """Begin to watch this process's memory; return what it takes now, None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    """Return an entry of the process's status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text())
    return int(found[1]) * 1024 if found else 0

"""The suite: in which processes the jobs are done, and what comes of them."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import implementations, machine, measure
from .implementations import STATELESS
from .jobs import Job, Settings, jobs_of
from .worker import Worker, WorkerDied, cores

__all__ = ["Crew", "complete", "measure_limits", "run", "usable_threads"]

SCHEMA = 1
# OpenVINO may run twice as slow in a process that has seen many layers and libraries.
LAYERS_A_PROCESS = 6
QUICK_SECONDS = 270.0  # what is not begun by then is left out, and listed
IMPORT_ROUNDS = 5


class Crew:
    """Runs jobs one after another, on worker processes that are replaced after a few layers.

    Parameters
    ----------
    log : file
        Takes what the libraries print.

    Examples
    --------
    >>> from fastconv.benchmark.suite import Crew
    >>> Crew().close()
    """

    def __init__(self, log: IO[Any] | int = subprocess.DEVNULL):
        self._log = log
        self._worker: Worker | None = None
        self._done = 0
        self._folder = tempfile.TemporaryDirectory(prefix="fastconv-bench-")
        self._memory = Path(self._folder.name)

    def run(self, job: Job) -> list[dict[str, Any]]:
        """Return the answers to a job; that a worker died is an answer too."""
        if job["kind"] == "imports":
            return list(_imports(job))
        try:
            return self._ready(job).run({**job, "memory": str(self._memory)})
        except WorkerDied as error:
            self._dismiss()
            return [{"failed": str(error)}]
        finally:
            if job["alone"]:
                self._dismiss()

    def close(self) -> None:
        """End the worker and forget the references."""
        self._dismiss()
        self._folder.cleanup()

    def _ready(self, job: Job) -> Worker:
        worker, threads = self._worker, job["threads"]
        threads = max(threads) if isinstance(threads, list) else threads
        if worker is None or worker.threads != threads or job["alone"] or self._done >= LAYERS_A_PROCESS:
            self._dismiss()
            environment = {}
            if job["kind"] == "first_call":
                environment["NUMBA_CACHE_DIR"] = str(self._memory / job["workload"]["name"])
            worker = self._worker = Worker(threads, self._log, environment)
        self._done += 1
        return worker

    def _dismiss(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker, self._done = None, 0


def run(
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
    command: Sequence[str] = (),
    log: IO[Any] | int = subprocess.DEVNULL,
) -> dict[str, Any]:
    """Measure and return the results.

    Parameters
    ----------
    settings : Settings
    progress : callable, optional
        Called with the number of jobs done, the number of all, and what comes next.
    command : sequence of str, optional
        How this was started, for the record.
    log : file, optional
        Takes what the libraries print.

    Returns
    -------
    dict
        ``results`` has a row for each workload, implementation and number of threads; ``machine``, ``missing``
        (peers that are not installed), ``noise`` (implementations timed against themselves, in one process and in
        two) ``failed`` (jobs whose process died) and ``skipped`` (those a quick run had no time for) belong to all.
    """
    started = time.monotonic()
    todo = jobs_of(settings)
    skipped: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    crew = Crew(log)
    try:
        limits = measure_limits(crew, settings.threads)
        for index, job in enumerate(todo):
            if settings.quick and time.monotonic() - started > QUICK_SECONDS:
                skipped.append(_where(job))
                continue
            if progress is not None:
                progress(
                    index, len(todo), f"{job['section']} {job['workload']['name']}, {job['threads']} threads"
                )
            for answer in crew.run(job):
                if "row" in answer and job["again"]:
                    controls.extend(_again(answer["row"], rows))
                elif "row" in answer:
                    rows.append(answer["row"])
                elif "control" in answer:
                    controls.append(answer["control"])
                elif "failed" in answer:
                    failed.append(_where(job) | {"reason": answer["failed"]})
        limits = machine.best_limits(limits, measure_limits(crew, settings.threads))
        if progress is not None:
            progress(len(todo), len(todo), "")
    finally:
        crew.close()
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "machine": machine.describe_machine(limits),
        "missing": implementations.missing() if "none" not in settings.peers else {},
        "noise": {"aa": controls, "worst": _worst(controls)},
        "failed": failed,
        "skipped": skipped,
        "results": [complete(row, limits) for row in rows],
    }


def _where(job: Job) -> dict[str, Any]:
    """Return what a job was to measure, for the record."""
    named = {name: job[name] for name in ("section", "threads", "implementations")}
    return named | {"workload": job["workload"]["name"]}


def _again(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield how a time taken in another process compares with the first, if both are there."""
    names = ("section", "workload", "implementation", "threads")
    for first in rows:
        if all(first[name] == row[name] for name in names) and not (first["refused"] or row["refused"]):
            yield {
                "workload": row["workload"],
                "implementation": row["implementation"],
                "threads": row["threads"],
                "ratio": row["seconds_min"] / first["seconds_min"],
                "disturbed": first["disturbed"] or row["disturbed"],
                "process": "another",
            }


def _worst(controls: Sequence[dict[str, Any]]) -> float | None:
    """Return the largest ratio of two times of one thing, of the undisturbed ones if there are any."""
    calm = [control for control in controls if not control["disturbed"]] or controls
    return max((max(control["ratio"], 1 / control["ratio"]) for control in calm), default=None)


def complete(row: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Return a row with what follows from its time and the machine's limits."""
    derived: dict[str, float | None] = dict.fromkeys(
        ("gflops", "share_of_peak", "share_of_roofline", "roofline_seconds")
    )
    seconds = row.get("seconds_min")
    if row["section"] in ("forward", "backward", "scaling") and seconds:
        isa = list(limits["peak_gflops"])[-1]  # the newest, whatever an implementation makes of it
        dtype, threads, flops = row["dtype"], row["threads"], row["flops"]
        roof = machine.roofline_seconds(limits, flops, row["bytes"], dtype, isa, threads)
        gflops = flops / seconds / 1e9
        derived = {
            "gflops": gflops,
            "share_of_peak": gflops / machine.peak_gflops(limits, dtype, isa, threads),
            "share_of_roofline": roof / seconds,
            "roofline_seconds": roof,
        }
    empty: dict[str, Any] = {"seconds_min": None, "seconds_median": None, "samples": [], "disturbed": False}
    return empty | row | derived


def measure_limits(crew: Crew, threads: Sequence[int]) -> dict[str, Any]:
    """Return what the machine can do at best on each number of threads, measured by a worker."""
    counts = sorted({1, *threads})
    (answer,) = crew.run({"kind": "limits", "threads": counts, "alone": True})
    if "failed" in answer:
        raise RuntimeError(f"the limits of the machine could not be measured: {answer['failed']}")
    return answer["limits"]


def _imports(job: Job) -> Iterator[dict[str, Any]]:
    """Time importing each library in fresh interpreters, in turn."""
    entries = {
        entry.distribution: entry
        for entry in implementations.catalogue()
        if entry.name in job["implementations"]
    }
    modules = {"numpy": "numpy"} | {entry.module: name for name, entry in entries.items()}
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    code = "import sys, time; started = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - started)"
    for _ in range(min(IMPORT_ROUNDS, job["rounds"])):
        for module in modules:
            ended = subprocess.run(
                [sys.executable, "-c", code, module], capture_output=True, text=True, check=True
            )
            seconds[module].append(float(ended.stdout.split()[-1]))
    for module, library in modules.items():
        samples = measure.Samples(seconds[module], seconds[module])
        timing = {"seconds_min": samples.minimum, "seconds_median": samples.median, "samples": samples.minima}
        yield {"row": _imports_row(module, library, job) | timing}


def _imports_row(module: str, library: str, job: Job) -> dict[str, Any]:
    """Return a row of the results without its time: what is imported is no layer."""
    return {
        "section": "overhead",
        "phase": "import",
        "workload": "import",
        "family": "overhead",
        "list": "overhead",
        "op": "",
        "problem": f"import {module}",
        "implementation": library,
        "library": library,
        "version": implementations.version(library),
        "column": STATELESS,
        "layout": "NCHW",
        "dtype": job["dtype"],
        "threads": job["threads"],
        "error": None,
        "refused": None,
    }


def usable_threads() -> int:
    """Return the number of cores that may be used."""
    return len(cores())

"""The process that measures, and the handle by which it is told what.

A worker is a fresh interpreter that is bound to as many cores as it may use threads before it imports anything:
libraries size their pools when they are loaded. It reads jobs from its standard input, a line of JSON each, and
answers with lines of JSON; whatever a library prints goes elsewhere.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

__all__ = ["Worker", "WorkerDied", "main"]

# NumPy first, whose time everybody pays; then ours is timed before anything else of it is loaded.
START = """
import time, numpy
started = time.perf_counter()
import fastconv
seconds = time.perf_counter() - started
from fastconv.benchmark.worker import main
main(seconds)
"""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "FASTCONV_NUM_THREADS")


class WorkerDied(Exception):
    """A worker ended before it had answered; the message tells how."""


class Worker:
    """A process that measures on a number of threads, on cores of its own.

    Parameters
    ----------
    threads : int
    log : file
        Takes what the libraries print.
    environment : mapping, optional
        Environment variables besides those of this process.

    Examples
    --------
    >>> from fastconv.benchmark.worker import Worker
    >>> with Worker(1) as worker:
    ...     [answer.keys() for answer in worker.run({"kind": "nothing"})]
    [dict_keys(['failed'])]
    """

    def __init__(
        self,
        threads: int,
        log: IO[Any] | int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ):
        self.threads = threads
        counts = dict.fromkeys(THREAD_VARIABLES, str(threads))
        # The same fastconv as here, also where it was found by a changed search path.
        search = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **search, **counts, **(environment or {})},
            preexec_fn=lambda: bind(threads),
        )

    def run(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Hand over a job and return its answers; raise WorkerDied if the process ends before the last one."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(f"the process ended with {process.wait()}") from None
        answers: list[dict[str, Any]] = []
        for line in process.stdout:
            answer = json.loads(line)
            if "done" in answer:
                return answers
            answers.append(answer)
        raise WorkerDied(f"the process ended with {process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cores() -> list[int]:
    """Return the cores this process may use."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def bind(threads: int) -> None:
    """Confine this process to its first cores, one for each thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:threads])


def main(import_seconds: float) -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from .sections import HANDLERS

    for line in sys.stdin:
        job = json.loads(line) | {"import_seconds": import_seconds}
        try:
            for answer in HANDLERS[job["kind"]](job):
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
        except Exception as error:
            answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
        answers.write('{"done": true}\n')
        answers.flush()

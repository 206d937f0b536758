"""Threads, forks, pools and tasks: the same bits, no hanging, and settings that stay where they were made.

What forks, or must start cold, runs in a program of its own with a time limit: a child that hangs fails its
test and not the whole run.
"""

import asyncio
import contextvars
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from samples import call, call_on, plan_of, python, run_plan, sample

import fastconv
from fastconv.problem import OPS

THREADS = 8


def at_once(*works):
    """Run every function in a thread of its own, all starting together, and return what they return."""
    barrier = threading.Barrier(len(works))

    def run(work):
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def test_eight_threads_and_all_operations(backend):
    """Every thread runs every operation, each starting with another, on 1 to 3 threads of its own."""
    given = {op: sample(op) for op in OPS}
    expected = {op: call_on(backend, op, given[op], num_threads=1) for op in OPS}

    def work(first):
        for _ in range(3):
            for index in range(len(OPS)):
                op = OPS[(first + index) % len(OPS)]
                result = call(op, given[op], backend=backend, num_threads=1 + (first + index) % 3)
                np.testing.assert_array_equal(result, expected[op])
        return True

    assert all(at_once(*(lambda first=first: work(first) for first in range(THREADS))))


def test_one_plan_shared_by_eight_threads(backend):
    for op in OPS:
        given = sample(op)
        inputs = [given["input"] * factor for factor in range(THREADS)]
        expected = [call(op, {**given, "input": x}, backend=backend, num_threads=1) for x in inputs]
        plan = plan_of(op, given, backend=backend)

        def work(index, op=op, plan=plan, given=given, inputs=inputs, expected=expected):
            out = np.empty_like(expected[index])
            for turn in range(6):
                mine = {**given, "input": inputs[index]}
                result = run_plan(plan, mine, num_threads=1 + turn % 2, out=out if turn % 3 else None)
                np.testing.assert_array_equal(result, expected[index])
            return True

        assert all(at_once(*(lambda index=index, work=work: work(index) for index in range(THREADS))))


def test_threads_on_parts_of_one_output(backend):
    given = sample("conv2d", batch=THREADS)
    expected = call("conv2d", given, backend=backend)
    out = np.empty_like(expected)

    def work(index):
        one = slice(index, index + 1)
        call("conv2d", {**given, "input": given["input"][one]}, out=out[one], backend=backend)

    at_once(*(lambda index=index: work(index) for index in range(THREADS)))
    np.testing.assert_array_equal(out, expected)


def test_backends_come_and_go_while_others_call(backend):
    oracle = fastconv.kernels("conv1d", backend="numpy")[0]
    refuse, never = (lambda problem: "it never does"), (lambda problem: 1e9)

    class Passing:
        name = "passing"
        kernels = (fastconv.Kernel("conv_passing", name, ("conv1d",), refuse, never, oracle.build),)

    x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
    stop = threading.Event()

    def come_and_go():
        for _ in range(1500):
            fastconv.register_backend(Passing())
            fastconv.unregister_backend("passing")
        stop.set()

    def use():
        while not stop.is_set():
            assert (fastconv.conv1d(x, w, backend=backend) == 2).all()
            assert (fastconv.conv1d(x, w) == 2).all()
            assert fastconv.backends()
            with pytest.raises((fastconv.UnsupportedError, fastconv.BackendError), match="passing"):
                fastconv.conv1d(x, w, backend="passing")

    at_once(come_and_go, use, use, use)


COLD = """
import sys, threading
import numpy as np
from samples import call, sample
import fastconv
from fastconv.problem import OPS

backend = sys.argv[1]
given = {op: sample(op) for op in OPS}
barrier = threading.Barrier(8)
found, failed = [{} for _ in range(8)], []

def work(index):
    barrier.wait()
    try:
        for turn in range(len(OPS)):
            # Four threads race for the same operation, the others for different ones.
            op = OPS[turn if index < 4 else (turn + index) % len(OPS)]
            found[index][op] = call(op, given[op], backend=backend, num_threads=2)
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
for op in OPS:
    expected = call(op, given[op], backend="numpy")
    for results in found:
        np.testing.assert_array_equal(results[op], expected)
print("equal")
"""


def test_cold_first_calls_racing(backend):
    assert python(COLD, backend).strip() == "equal"


def test_cold_automatic_choice_and_listing_racing():
    code = """
import threading
import numpy as np
import fastconv
barrier = threading.Barrier(8)
failed = []
def work(index):
    barrier.wait()
    try:
        if index % 2:
            fastconv.backends()
        assert (fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2))) == 2).all()
        assert fastconv.explain("conv2d", (1, 1, 4, 4), (1, 1, 3, 3)).backend
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failed)
"""
    assert python(code).strip() == "[]"


# The parent computes on several threads, forks, and both go on. A child reports by its exit status; one that
# does not end within the limit is killed and counts as hanging.
FORK = """
import os, signal, sys, threading, time
import numpy as np
from samples import call, plan_of, run_plan, sample
import fastconv
from fastconv.problem import OPS

backend, mode = sys.argv[1:]
given = {op: sample(op) for op in OPS}
expected = {op: call(op, given[op], backend="numpy") for op in OPS}
x = np.ones((2, 16, 64, 64), np.float32)  # enough work for several threads
w = np.ones((32, 16, 3, 3), np.float32)

def check(threads):
    for op in OPS:
        np.testing.assert_array_equal(call(op, given[op], backend=backend, num_threads=threads), expected[op])
    if backend != "numpy":
        y = fastconv.conv2d(x, w, backend=backend, num_threads=threads, accuracy="high")
        assert (y == 144).all()

def child():
    np.testing.assert_array_equal(run_plan(plan, given["conv2d"], num_threads=4), expected["conv2d"])
    check(4)
    assert len(fastconv.backends()) >= 3

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work() or 0)
        except BaseException as error:
            sys.stderr.write(f"in the child: {type(error).__name__}: {error}\\n")
            sys.stderr.flush()
        finally:
            os._exit(1)
    return pid

def wait(pid, limit=40.0):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

plan = plan_of("conv2d", given["conv2d"], backend=backend)
if mode != "before":
    check(4)
    run_plan(plan, given["conv2d"], num_threads=4)
stop = threading.Event()
def busy():
    while not stop.is_set():
        call("conv2d", given["conv2d"], backend=backend, num_threads=2)
        if backend != "numpy":
            fastconv.conv2d(x, w, backend=backend, num_threads=2)
threads = [threading.Thread(target=busy) for _ in range(2 if mode == "during" else 0)]
for thread in threads:
    thread.start()
work = child
if mode == "nested":  # a child of a child, after the parent has used threads
    def work():
        child()
        return wait(fork(child)) != 0
results = [wait(fork(work)) for _ in range(2)]
stop.set()
for thread in threads:
    thread.join()
check(4)  # the parent goes on with its threads
assert results == [0, 0], results
print("equal")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("mode", ["before", "during", "nested"])
def test_fork(mode, backend):
    assert python(FORK, backend, mode).strip() == "equal"


POOL = """
import multiprocessing, sys
import numpy as np

def work(arguments):
    import fastconv
    from samples import call, sample
    op, backend = arguments
    return call(op, sample(op), backend=backend, num_threads=2)

if __name__ == "__main__":
    from samples import call, sample
    from fastconv.problem import OPS
    backend, method = sys.argv[1:]
    jobs = [(op, backend) for op in OPS]
    here = [work(job) for job in jobs]
    with multiprocessing.get_context(method).Pool(2) as pool:
        there = pool.map_async(work, jobs).get(timeout=80)
    for a, b in zip(here, there):
        np.testing.assert_array_equal(a, b)
    print("equal")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_process_pools(method, backend, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    program = tmp_path / "pool_program.py"  # spawned processes import the main program, so it must be a file
    program.write_text(POOL)
    assert python(program, backend, method).strip() == "equal"


class TestSettings:
    """A block's settings hold for the thread or task that entered it, and for no other."""

    X, W = np.ones((1, 1, 4)), np.ones((1, 1, 2))

    def source(self):
        return fastconv.explain("conv1d", self.X, self.W).source

    def limit(self):
        text = str(fastconv.explain("conv1d", self.X, self.W))
        return int(text.split("threads:")[1].split()[2])

    def test_a_limit_of_no_threads(self):
        with pytest.raises(ValueError, match="count must be at least 1, got 0"), fastconv.threads(0):
            pass

    def test_a_new_thread_starts_without_the_block(self):
        with fastconv.use_backend("numpy"), fastconv.threads(37):
            assert (self.source(), self.limit()) == ("use_backend", 37)
            [(source, limit)] = at_once(lambda: (self.source(), self.limit()))
        assert source == "automatic"
        assert limit != 37

    def test_a_copied_context_carries_the_block(self):
        with fastconv.use_backend("numpy"), fastconv.threads(37):
            context = contextvars.copy_context()
        [found] = at_once(lambda: context.run(lambda: (self.source(), self.limit())))
        assert found == ("use_backend", 37)
        assert self.source() == "automatic"

    def test_threads_in_different_blocks(self, backend):
        barrier = threading.Barrier(THREADS)

        def work(index):
            name = backend if index % 2 else "numpy"
            for turn in range(20):
                with fastconv.use_backend(name), fastconv.threads(index + 1):
                    barrier.wait()
                    told = fastconv.explain("conv1d", self.X, self.W)
                    assert (told.backend, self.limit()) == (name, index + 1), turn
                    assert (fastconv.conv1d(self.X, self.W) == 2).all()
                    barrier.wait()
            return self.source()

        found = at_once(*(lambda index=index: work(index) for index in range(THREADS)))
        assert set(found) == {"automatic"}

    def test_default_backend_is_seen_by_every_thread(self, backend):
        fastconv.set_default_backend(backend)
        assert at_once(*[self.source] * 3) == ["set_default_backend"] * 3
        fastconv.set_default_backend(None)
        assert at_once(*[self.source] * 3) == ["automatic"] * 3

    def test_tasks(self, backend):
        async def work(index):
            name = backend if index % 2 else "numpy"
            for _ in range(10):
                with fastconv.use_backend(name), fastconv.threads(index + 1):
                    await asyncio.sleep(0)
                    told = fastconv.explain("conv1d", self.X, self.W)
                    assert (told.backend, told.source, self.limit()) == (name, "use_backend", index + 1)
                    result = await asyncio.to_thread(fastconv.conv1d, self.X, self.W)
                    assert (result == 2).all()
                    told = await asyncio.to_thread(fastconv.explain, "conv1d", self.X, self.W)
                    assert told.backend == name, "to_thread carries the context along"
                await asyncio.sleep(0)
                assert self.source() == "automatic"

        async def main():
            await asyncio.gather(*(work(index) for index in range(6)))

        asyncio.run(main())
        assert self.source() == "automatic"

    def test_blocks_nest_and_end_with_an_exception(self):
        with fastconv.threads(3):
            try:
                with fastconv.threads(5), fastconv.use_backend("numpy"):
                    assert (self.limit(), self.source()) == (5, "use_backend")
                    raise KeyError("leaves both blocks")
            except KeyError:
                pass
            assert (self.limit(), self.source()) == (3, "automatic")

    def test_a_generator_does_not_keep_its_callers_block(self):
        def results():
            yield self.source()
            yield self.source()

        steps = results()
        with fastconv.use_backend("numpy"):
            assert next(steps) == "use_backend"
        assert next(steps) == "automatic"


def test_nothing_global_of_the_process_is_changed(backend):
    code = """
import os, signal, sys, threading
import numpy as np
from samples import call, sample
from fastconv.problem import OPS

def state():
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return dict(os.environ), affinity, signal.getsignal(signal.SIGINT), np.geterr(), threading.active_count()

before = state()
for op in OPS:
    call(op, sample(op), backend=sys.argv[1], num_threads=3)
assert before == state(), (before, state())
"""
    python(code, backend)

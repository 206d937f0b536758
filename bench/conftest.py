"""Benchmarks of the suite under pytest-benchmark: one test for each layer, implementation and number of threads.

pytest-benchmark runs one benchmark to its end and then the next, so a disturbance hits one implementation alone.
Therefore none of the tests times anything itself: the first test of a layer has a worker process measure *all*
selected implementations of that layer in turn (`fastconv.benchmark`), and each test hands the samples of its own
implementation, one a block, to pytest-benchmark's statistics.
"""

import pytest

from fastconv.benchmark import implementations, jobs, machine, suite

INFO = (
    "kernel", "isa", "version", "problem", "column", "layout", "dtype", "phase", "gflops", "flops", "bytes", "intensity",
    "share_of_peak", "share_of_roofline", "scratch_bytes", "peak_extra_bytes", "error", "disturbed",
)  # fmt: skip


def pytest_addoption(parser):
    options = parser.getgroup("fastconv")
    several = {"action": "append", "default": [], "metavar": "NAME"}
    options.addoption("--section", **several, help=f"of {', '.join(jobs.SECTIONS)}; forward by default")
    options.addoption(
        "--impl", **several, help="only these implementations (wildcards, or a part of the name)"
    )
    options.addoption("--peers", **several, help="only these peers beside ours; 'none' for none")
    options.addoption("--threads", **several, help="numbers of threads, such as 1,2; 1 by default")
    options.addoption("--dtype", default="float32", choices=jobs.DTYPES)
    options.addoption("--layout", choices=("NCHW", "NHWC"), help="only implementations of this layout")


def pytest_configure(config):
    names = split(config.getoption("--section")) or ["forward"]
    unknown = set(names) - set(jobs.SECTIONS)
    if unknown:
        raise pytest.UsageError(f"--section must be of {', '.join(jobs.SECTIONS)}, got {', '.join(unknown)}")
    threads = [int(count) for count in split(config.getoption("--threads"))] or [1]
    if not 1 <= min(threads) <= max(threads) <= suite.usable_threads():
        raise pytest.UsageError(f"--threads must be from 1 to {suite.usable_threads()} here, got {threads}")
    config.bench = jobs.Settings(
        sections=names,
        threads=threads,
        implementations=split(config.getoption("--impl")),
        peers=split(config.getoption("--peers")) or ["all"],
        dtype=config.getoption("--dtype"),
        layout=config.getoption("--layout"),
    )


def split(values):
    return [name for value in values for name in value.split(",")]


def pytest_generate_tests(metafunc):
    section = metafunc.function.__name__.removeprefix("test_").replace("_", "-")
    settings = metafunc.config.bench
    found = [job for job in jobs.jobs_of(settings) if job["section"] == section]
    found = [job for job in found if job["kind"] != "imports" and not job["again"]]
    pairs = [(job, name) for job in found for name in job["implementations"]]
    metafunc.parametrize("job, implementation", pairs, ids=[test_id(job, name) for job, name in pairs])


def test_id(job, implementation):
    """Return `<workload>[-<phase>]-<implementation>-<threads>t`."""
    parts = (
        job["workload"]["name"],
        job.get("phase", "").replace(" ", "_"),
        implementation,
        f"{job['threads']}t",
    )
    return "-".join(filter(None, parts))


@pytest.fixture(scope="session")
def crew():
    made = suite.Crew()
    yield made
    made.close()


@pytest.fixture(scope="session")
def limits(crew, pytestconfig):
    return suite.measure_limits(crew, pytestconfig.bench.threads)


@pytest.fixture(scope="session")
def measured(crew, limits, request):
    """Return a function that gives the rows of a job, by implementation, measuring all that are selected at once."""
    known = {}

    def rows(job):
        key = (job["section"], job["workload"]["name"], job["threads"], job.get("phase"), *sole(job))
        if key not in known:
            chosen = [
                item.callspec.params["implementation"]
                for item in request.session.items
                if hasattr(item, "callspec") and item.callspec.params.get("job") is job
            ]
            answers = crew.run({**job, "implementations": chosen})
            failed = [answer["failed"] for answer in answers if "failed" in answer]
            own = [answer["row"] for answer in answers if "row" in answer]
            found = {row["implementation"]: row for row in own if row["phase"] == job.get("phase", "")}
            known[key] = {name: suite.complete(row, limits) for name, row in found.items()}, failed
        return known[key]

    return rows


def sole(job):
    return job["implementations"] if job["alone"] else ()


@pytest.fixture
def timed(benchmark, measured, job, implementation):
    """Return the row of this test's implementation, its samples handed to pytest-benchmark."""
    benchmark.group = f"{job['section']} {job['workload']['name']} {job.get('phase', '')} {job['threads']}t"
    rows, failed = measured(job)
    row = rows.get(implementation)
    if row is None or row["refused"]:
        benchmark.skipped = True
        if row is None and not failed:
            pytest.skip("the library has nothing for this case")
        pytest.fail(row["refused"] if row else failed[0])
    # What `benchmark.pedantic` does with the times it takes; ours were taken by the worker.
    benchmark._mode = "measured in turn"
    stats = benchmark._make_stats(1)
    for seconds in row["samples"]:
        stats.update(seconds)
    benchmark.extra_info.update({name: row.get(name) for name in INFO})
    return row


def pytest_report_header(config):
    lacking = implementations.missing()
    return [f"peer {name} is missing: {how}" for name, how in lacking.items()]


def pytest_benchmark_update_machine_info(machine_info):
    machine_info.update(machine.describe_machine())

"""The benchmark suite: counts, selection, refusals and the clock's logic, with injected times; nothing is fast here."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli
from fastconv.analysis.cost import inbounds_flops
from fastconv.benchmark import implementations, jobs, measure, sections, suite, worker, workloads
from fastconv.benchmark.case import Case, Refused, Runner, check
from fastconv.benchmark.implementations import Implementation
from fastconv.benchmark.workloads import Workload

BENCH = Path(__file__).parents[1] / "bench"
FAMILIES = (
    "dense",
    "grouped",
    "depthwise",
    "separable",
    "dilated",
    "transposed",
    "deformable",
    "conv1d",
    "conv3d",
)
SMALL = Workload("small", "dense", "known", "conv2d", (3, 4, 9, 7), 6, (3, 2), stride=(2, 1), padding=(1, 0))


class Clock:
    """A clock that stands still until someone works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, *seconds):
        """Return a callable that takes these times in turn."""
        turns = itertools.cycle(seconds)

        def call():
            self.now += next(turns)

        return call


class TestWorkloads:
    def test_there_are_layers_of_each_family(self):
        known = [layer.family for layer in workloads.load() if layer.list == "known"]
        assert set(known) == set(FAMILIES)
        assert {layer.family for layer in workloads.load() if layer.list == "other"} == set(FAMILIES)
        assert {layer.family for layer in workloads.load() if layer.quick} == set(FAMILIES)

    def test_there_are_layers_nobody_tuned_for(self):
        other = [layer for layer in workloads.load() if layer.list == "other"]
        assert len(other) >= 20
        assert any(layer.input[0] > 1 for layer in other)
        assert any(layer.input[1] % 8 for layer in other)
        assert any(len(set(layer.input[2:])) > 1 for layer in other)

    @pytest.mark.parametrize("layer", [*workloads.load(), *workloads.scaling()], ids=lambda layer: layer.name)
    def test_it_is_a_problem(self, layer):
        problem = layer.problem()
        assert problem.groups == layer.groups
        assert 0 < 2 * problem.batch <= problem.flops
        assert Workload.from_dict(json.loads(json.dumps(layer.as_dict()))) == layer

    def test_names_are_unique(self):
        names = [layer.name for layer in (*workloads.load(), *workloads.scaling())]
        assert len(set(names)) == len(names)

    def test_a_layer_is_chosen_by_name_family_or_list(self):
        layers = workloads.load()
        assert [layer.name for layer in workloads.select(layers, ["rn50_c2_3x3"])] == ["rn50_c2_3x3"]
        assert {layer.family for layer in workloads.select(layers, ["deformable"])} == {"deformable"}
        assert {layer.list for layer in workloads.select(layers, ["other"])} == {"other"}
        assert len(workloads.select(layers, ["wavenet_d*"])) == 10


class TestCounting:
    @pytest.mark.parametrize(
        ("op", "changes"),
        [
            ("conv2d", {}),
            ("conv2d", dict(padding=(4, 5), dilation=(2, 3), stride=1)),
            ("conv2d", dict(groups=2)),
            ("conv1d", dict(input=(2, 4, 11), kernel=(4,), stride=3, padding=2)),
            ("conv3d", dict(input=(1, 2, 4, 5, 3), kernel=(3, 1, 2), stride=(1, 2, 1), padding=(2, 0, 1))),
            ("conv_transpose2d", dict(padding=(1, 0), output_padding=(1, 0))),
            ("conv_transpose2d", dict(padding=(2, 1), dilation=(3, 2), groups=2)),
            ("conv_transpose1d", dict(input=(2, 4, 5), kernel=(6,), stride=3, padding=4)),
        ],
    )
    def test_taps_on_the_image_are_those_that_ones_add_up(self, op, changes):
        layer = Workload.from_dict({**SMALL.as_dict(), "op": op, **changes})
        ones = {name: np.ones_like(array) for name, array in layer.operands(np.float64).items()}
        total = getattr(fastconv, op)(**ones, **layer.options(), backend="numpy").sum()
        assert inbounds_flops(layer.problem()) == 2 * total

    @pytest.mark.parametrize("stride", [1, (2, 1)])
    def test_sampled_points_on_the_image_are_counted_one_by_one(self, stride):
        layer = Workload(
            "d", "deformable", "known", "deform_conv2d", (2, 6, 5, 4), 4, (3, 2), stride, (1, 2), (1, 2), 2,
            offset_groups=3,
        )  # fmt: skip
        problem, offset = layer.problem(), layer.operands()["offset"]
        points = 0
        for n, group, (tap, (i, j)), (y, x) in itertools.product(
            range(2),
            range(3),
            enumerate(itertools.product(range(3), range(2))),
            np.ndindex(*problem.output_size),
        ):
            dy, dx = offset[n, 2 * (6 * group + tap) : 2 * (6 * group + tap) + 2, y, x]
            at = (y * problem.stride[0] - 1 + i + dy, x * problem.stride[1] - 2 + 2 * j + dx)
            points += -1 < at[0] < 5 and -1 < at[1] < 4
        # Each point is read in the two channels of its offset group, for the two outputs of a group.
        assert 0 < points < offset.size // 2
        assert inbounds_flops(problem, offset) == 2 * points * 2 * 2

    def test_offsets_are_exact_and_between_pixels(self):
        offset = workloads.select(workloads.load(), ["dcn2_rn50_c5"])[0].operands()["offset"]
        steps = offset.astype(np.float64) * workloads.OFFSET_STEPS
        assert np.array_equal(steps - np.floor(steps), np.full(steps.shape, 0.5))


class TestClock:
    def test_a_slower_copy_is_slower_by_what_it_is(self):
        clock = Clock()
        calls = {"one": clock.work(0.010), "copy": clock.work(0.012), "again": clock.work(0.010)}
        times = measure.interleave(calls, rounds=5, gap=0, clock=clock)
        assert times["copy"].minimum / times["one"].minimum == pytest.approx(1.2)
        assert times["again"].minimum / times["one"].minimum == pytest.approx(1)
        assert [len(samples.minima) for samples in times.values()] == [5, 5, 5]

    def test_minimum_and_median_are_kept(self):
        clock = Clock()
        times = measure.interleave({"a": clock.work(0.002, 0.001, 0.004)}, rounds=3, gap=0, clock=clock)["a"]
        assert times.minimum == pytest.approx(0.001)
        assert times.median == pytest.approx(0.002)

    def test_the_order_is_rotated(self):
        clock, order = Clock(), []

        def logged(name):
            work = clock.work(1.0)
            return lambda: (order.append(name), work())

        measure.interleave({name: logged(name) for name in "abc"}, rounds=3, gap=0, clock=clock)
        runs = "".join(name for name, _ in itertools.groupby(order))
        assert "abcbca" in runs  # the first and the second round

    def test_copies_take_turns(self):
        clock = Clock()
        calls = {"a": (clock.work(0.003), clock.work(0.002)), "b": clock.work(0.002)}
        times = measure.interleave(calls, rounds=5, gap=0, clock=clock)
        assert times["a"].minima == pytest.approx([0.003, 0.002, 0.003, 0.002, 0.003])
        assert times["a"].minimum == pytest.approx(times["b"].minimum)

    def test_short_calls_are_timed_several_at_once(self):
        clock, count = Clock(), itertools.count()
        work = clock.work(1e-6)
        times = measure.interleave({"a": lambda: (next(count), work())}, rounds=2, gap=0, clock=clock)
        assert times["a"].minimum == pytest.approx(1e-6)

    def test_noisy_rounds_are_repeated_and_left_out(self):
        clock = Clock()
        quiet = itertools.chain(
            [True], [False, False], itertools.repeat(True)
        )  # the first answer is before any
        times = measure.interleave(
            {"a": clock.work(0.01)}, rounds=4, gap=0, clock=clock, is_quiet=lambda: next(quiet)
        )
        assert len(times["a"].minima) == 4
        assert not times["a"].disturbed

    def test_what_stays_noisy_is_marked(self):
        clock = Clock()
        times = measure.interleave(
            {"a": clock.work(0.01)}, rounds=4, gap=0, clock=clock, is_quiet=lambda: False
        )
        assert times["a"].disturbed
        assert len(times["a"].minima) == 6

    def test_slow_calls_get_fewer_rounds(self):
        clock = Clock()
        calls = {"slow": clock.work(2.0), "fast": clock.work(0.01)}
        times = measure.interleave(calls, rounds=6, gap=0, clock=clock)
        assert [len(times[name].minima) for name in calls] == [measure.LEAST_ROUNDS, 6]


class TestQuietCheck:
    @pytest.mark.parametrize(("share", "alone"), [(0.0, True), (0.5, False)])
    def test_others_on_our_cores_are_noticed(self, monkeypatch, share, alone):
        own, now = Clock(), Clock()
        monkeypatch.setattr(measure.time, "process_time", own)
        monkeypatch.setattr(measure, "_busy_seconds", lambda cores: own.now + share * now.now)
        monkeypatch.setattr(measure.QuietCheck, "_calm", lambda check: True)
        check = measure.QuietCheck()
        monkeypatch.setattr(measure.time, "perf_counter", now)
        check._seen = check._times()
        own.now += 1.0
        now.now += 1.0
        assert check() == alone

    def test_a_longer_loop_is_noticed(self, monkeypatch):
        check = measure.QuietCheck()
        monkeypatch.setattr(measure.QuietCheck, "_times", lambda check: (0.0, 0.0))
        monkeypatch.setattr(measure, "_spin", lambda: 1e-4)
        check._best, check._seen = 1e-4, (0.0, 0.0)
        assert check()
        monkeypatch.setattr(measure, "_spin", lambda: 1.6e-4)
        assert not check()


class TestCompare:
    """From blocks to the verdict, on a clock with 2 % of noise."""

    def results(self, folder, name, seconds):
        """Measure one implementation twice, as the control does, and write what the suite would."""
        rng, clock = np.random.default_rng(len(name)), Clock()

        def call():
            clock.now += seconds * (1 + 0.02 * rng.random())

        times = measure.interleave({"ours": call, "control": call}, rounds=7, gap=0, clock=clock)
        row = suite._imports_row("ours", "fastconv", jobs.make_job(jobs.Settings(), 1, "forward", SMALL))
        ratio = times["control"].minimum / times["ours"].minimum
        written = {
            "noise": {
                "aa": [{"workload": "small", "threads": 1, "ratio": ratio}],
                "worst": max(ratio, 1 / ratio),
            },
            "results": [suite.complete(row | sections._timing(times["ours"]), {})],
        }
        path = folder / f"{name}.json"
        machine = {"cpu": "a", "isa": "b", "libraries": {}}
        path.write_text(
            json.dumps(written | {"machine": machine, "schema": 1, "failed": [], "missing": {}, "date": ""})
        )
        return str(path)

    def test_a_copy_that_is_a_fifth_slower_is_caught(self, tmp_path, capsys):
        before, slower = self.results(tmp_path, "before", 0.0010), self.results(tmp_path, "slow", 0.0012)
        assert cli.main(["bench", "--compare", before, slower]) == cli.FAILED
        assert "slower" in capsys.readouterr().out

    def test_the_same_again_is_not(self, tmp_path):
        before, again = self.results(tmp_path, "before", 0.0010), self.results(tmp_path, "again", 0.0010)
        assert cli.main(["bench", "--compare", before, again]) == cli.OK


class TestRefusals:
    def entry(self, change, name="wrong"):
        def build(case, threads):
            y = getattr(fastconv, case.workload.op)(**case.operands, **case.options, backend="numpy")
            return Runner(lambda: change(y), lambda y: [y])

        return Implementation(name, "numpy", "numpy", "stateless", "NCHW", build)

    def layers(self, monkeypatch, *entries):
        monkeypatch.setattr(implementations, "catalogue", lambda: list(entries))
        names = [entry.name for entry in entries]
        job = jobs.make_job(jobs.Settings(rounds=1), 1, "forward", SMALL, implementations=names, block=1e-4)
        return {answer["row"]["implementation"]: answer["row"] for answer in sections.layers(job)}

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda y: y + 0.01 * np.abs(y).max(), "max|error|/max|result| is 0.01"),
            (lambda y: y[:, :, ::-1], "max|error|"),
            (lambda y: np.concatenate([y[:-1], y[-1:] * 2]), "max|error|"),  # only the last image
            (lambda y: y * np.nan, "inf"),
            (lambda y: y[:, :-1], "shape"),
        ],
        ids=["offset", "turned", "last image", "nan", "shape"],
    )
    def test_a_wrong_answer_is_not_timed(self, monkeypatch, change, told):
        rows = self.layers(monkeypatch, self.entry(change), self.entry(lambda y: y, "right"))
        assert told in rows["wrong"]["refused"]
        assert "seconds_min" not in rows["wrong"]
        assert rows["right"]["refused"] is None
        assert rows["right"]["seconds_min"] > 0

    def test_a_failing_library_does_not_stop_the_others(self, monkeypatch):
        def fail(y):
            raise RuntimeError("no such\n kernel")

        rows = self.layers(monkeypatch, self.entry(fail), self.entry(lambda y: y, "right"))
        assert rows["wrong"]["refused"] == "RuntimeError: no such kernel"
        assert rows["right"]["seconds_min"] > 0

    def test_ours_are_held_to_what_is_promised(self):
        case = Case(SMALL)
        near = case.reference[0].repeat(2, axis=0)[:3] * (1 + 1e-5)
        near[-1] = case.reference[0][-1] * (1 + 1e-5)
        assert check(case, [near], own=False) == pytest.approx(1e-5)
        with pytest.raises(Refused, match="1e-05, allowed are 4e-06"):
            check(case, [near], own=True)

    def test_references_are_computed_once_a_run(self, tmp_path, monkeypatch):
        first = Case(SMALL, memory=tmp_path).reference
        monkeypatch.setattr(Case, "_output", lambda case: pytest.fail("computed again"))
        assert np.array_equal(Case(SMALL, memory=tmp_path).reference[0], first[0])


class TestSelection:
    def test_peers_and_names(self):
        entries = implementations.catalogue()
        ours = [entry.name for entry in entries if entry.own and entry.forward]
        assert [entry.name for entry in implementations.choose(peers=["none"])] == ours
        assert [entry.name for entry in implementations.choose(["numba.plan"], ["none"], "NHWC")] == [
            "numba.plan_nhwc"
        ]
        assert all(entry.backward for entry in implementations.choose(backward=True))

    def test_missing_peers_are_named_with_how_to_get_them(self, monkeypatch):
        monkeypatch.setattr(Implementation, "installed", property(lambda entry: entry.own))
        missing = implementations.missing()
        assert {"torch.nchw", "torchvision", "onnxruntime", "openvino", "jax.nchw"} <= set(missing)
        assert all(how.startswith("pip install") for how in missing.values())
        assert all(entry.own for entry in implementations.choose())

    def test_it_runs_without_any_peer(self, monkeypatch, tmp_path, capsys):
        pytest.importorskip("rich")
        monkeypatch.setattr(Implementation, "installed", property(lambda entry: entry.own))
        unlimited = {
            "peak_gflops": {"baseline": {"float32": {"1": 1e3}}},
            "bandwidth_gbs": {"1": {"L1": 1e3, "L2": 1e3, "L3": 1e3, "DRAM": 1e3}},
            "caches": {"L1": 1 << 15, "L2": 1 << 20, "L3": 1 << 25},
        }
        monkeypatch.setattr(suite, "measure_limits", lambda crew, threads: unlimited)
        arguments = "bench --section overhead,forward --workloads tiny,mbv2_dw3_14 --impl cython --threads 1 --rounds 1"
        assert cli.main([*arguments.split(), "--output", str(tmp_path)]) == cli.OK
        results = json.loads((tmp_path / "results.json").read_text())
        timed = {(row["phase"], row["implementation"]) for row in results["results"] if row["seconds_min"]}
        assert {
            ("call", "cython.call"),
            ("create", "cython.plan"),
            ("import", "fastconv"),
            ("", "cython.plan"),
        } <= timed
        assert all(row["share_of_peak"] > 0 for row in results["results"] if row["section"] == "forward")
        controls = {(control["process"], control["implementation"]) for control in results["noise"]["aa"]}
        assert {
            ("the same", "cython.plan"),
            ("another", "cython.plan"),
            ("another", "cython.call"),
        } <= controls
        assert "missing: onnxruntime: pip install onnxruntime onnx" in capsys.readouterr().out
        for name in ("results.md", "report.html"):
            assert (tmp_path / name).stat().st_size > 0

    @pytest.mark.parametrize(
        ("argv", "told"),
        [
            (["--section", "nonesuch"], "--section must be of forward, backward"),
            (["--threads", "0"], "--threads must be from 1 to"),
            (["--threads", "many"], "--threads must be from 1 to"),
            (["--rounds", "0"], "--rounds must be at least 1"),
            (["--workloads", "rn50,nonesuch"], "--workloads nonesuch matches no layer"),
            (["--impl", "cython,nonesuch"], "--impl nonesuch matches none of cython.call,"),
            (["--peers", "nonesuch"], "--peers nonesuch matches none of"),
            (["--impl", "scipy", "--layout", "NHWC"], "nothing to time"),
        ],
    )
    def test_mistakes_are_told_before_any_work(self, argv, told, capsys, tmp_path):
        pytest.importorskip("rich")
        assert cli.main(["bench", "--output", str(tmp_path / "new"), *argv]) == cli.UNUSABLE
        assert told in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    @pytest.mark.skipif(not BENCH.exists(), reason="the folder bench is not beside the tests")
    def test_pytest_selects_by_workload_implementation_and_threads(self):
        pytest.importorskip("pytest_benchmark")
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(BENCH),
            "--benchmark-only",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        options = ["-k", "dcn2 and cython", "--peers", "none"]
        # pytest-benchmark measures nothing in a process that tests are handed out to.
        environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
        ended = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=100, env=environment
        )
        ids = re.findall(r"::(\w+)\[(.*)\]", ended.stdout)
        assert ids, ended.stdout + ended.stderr
        assert {name for name, _ in ids} == {"test_forward"}
        assert all(re.fullmatch(r"dcn2_\w+-cython\.\w+-1t", id) for _, id in ids)
        layers = [layer for layer in workloads.load() if "dcn2" in layer.name]
        assert len(ids) == 3 * len(layers)


class TestWorker:
    def test_it_has_as_many_cores_as_threads(self):
        with worker.Worker(1) as made:
            cores = Path(f"/proc/{made._process.pid}/status")
            answers = made.run({"kind": "nothing"})  # it has answered: its cores are set
            assert answers == [{"failed": "KeyError: 'nothing'"}]
            if cores.exists():
                allowed = re.search(r"Cpus_allowed_list:\s+(\S+)", cores.read_text())[1]
                assert allowed.isdecimal()

    def test_one_that_dies_is_told(self):
        crew = suite.Crew()
        try:
            job = jobs.make_job(jobs.Settings(), 1, "forward", SMALL, kind="nothing")
            crew.run(job)
            crew._worker._process.kill()
            (answer,) = crew.run(job)
            assert "the process ended with -9" in answer["failed"]
            assert "KeyError" in crew.run(job)[0]["failed"]  # by a new one
        finally:
            crew.close()


def test_subnormal_inputs_are_timed_with_what_they_have_left_of_accuracy():
    scaled = Case(Workload.from_dict({**SMALL.as_dict(), "scale": workloads.DENORMAL}))
    answer = scaled.reference[0][[0, 1, 1]] * (1 + 1e-5)
    assert check(scaled, [answer], own=True) == pytest.approx(1e-5)


def test_gradients_take_twice_the_operations():
    assert Case(SMALL, backward=True).flops == 2 * Case(SMALL).flops
    assert Case(SMALL, backward=True).bytes > Case(SMALL).bytes


def test_a_displaced_case_is_the_same_case_elsewhere_in_a_page():
    case = Case(SMALL, backward=True)
    other = case.displaced()
    assert other.grad_output.ctypes.data % 4096 == 2064
    for name, array in case.operands.items():
        assert np.array_equal(other.operands[name], array)
        assert other.operands[name].ctypes.data % 4096 == 2064
        assert not np.shares_memory(other.operands[name], array)


def test_rows_of_gradients_name_their_kernels():
    entry = next(e for e in implementations.catalogue() if e.name == "cython.grad")
    kernel = entry.build(Case(SMALL, backward=True), 1).kernel
    assert kernel.startswith("conv_transpose_")
    assert "grad" in kernel.split(" + ")[1]


def test_the_reference_covers_the_first_and_the_last_image():
    assert Case(SMALL).reference[0].shape[0] == 2
    assert math.isfinite(np.abs(Case(SMALL).reference[0]).max())

"""The benchmark's reports say what the results say, and a comparison claims no more than the noise allows."""

import copy
import html.parser
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import fastconv
from fastconv import _native
from fastconv.benchmark import cachegrind, compare, machine, page, ratios, report

ROOT = Path(__file__).parents[1]
LIMITS = {
    "peak_gflops": {"avx2": {"float32": {"1": 100.0, "2": 200.0}, "float64": {"1": 50.0, "2": 100.0}}},
    "bandwidth_gbs": {count: {"L1": 200.0, "L2": 100.0, "L3": 50.0, "DRAM": 20.0} for count in ("1", "2")},
    "caches": {"L1": 32768, "L2": 1 << 20, "L3": 1 << 25},
}
# (implementation, library, column, layout, milliseconds of the dense layer on one thread)
TIMED = (
    ("cython.call", "fastconv", "stateless", "NCHW", 3.0),
    ("cython.plan", "fastconv", "prepared", "NCHW", 2.0),
    ("cython.plan_nhwc", "fastconv", "prepared", "NHWC", 1.5),
    ("numba.call", "fastconv", "stateless", "NCHW", 3.3),
    ("torch.nchw", "torch", "stateless", "NCHW", 4.0),
    ("torch.channels_last", "torch", "stateless", "NHWC", 2.5),
    ("onnxruntime", "onnxruntime", "prepared", "NCHW", 2.2),
)


def row(workload, family, entry, threads=1, factor=1.0, section="forward"):
    name, library, column, layout, milliseconds = entry
    seconds = milliseconds * factor / threads / 1000
    flops, bytes = 200_000_000, 1_000_000
    return {
        "section": section, "phase": "", "workload": workload, "family": family, "list": "known", "axis": "", "value": 0,
        "op": "conv2d", "problem": f"conv2d {workload} <&>", "implementation": name, "library": library, "version": "1",
        "column": column, "layout": layout, "dtype": "float32", "threads": threads, "seconds_min": seconds,
        "seconds_median": seconds * 1.01, "samples": [seconds, seconds * 1.01, seconds * 1.02], "disturbed": False,
        "error": 3e-7, "refused": None, "kernel": "conv_dense_nchw", "isa": "avx2", "flops": flops, "bytes": bytes,
        "intensity": flops / bytes, "gflops": flops / seconds / 1e9, "share_of_peak": 0.5, "share_of_roofline": 0.5,
        "roofline_seconds": seconds / 2, "scratch_bytes": 4096, "peak_extra_bytes": 8192,
    }  # fmt: skip


@pytest.fixture
def results():
    rows = []
    for threads in (1, 2):
        for entry in TIMED:
            rows.append(row("plain", "dense", entry, threads))
            rows.append(row("thin", "depthwise", entry, threads, 0.1 if entry[1] == "fastconv" else 0.05))
    rows.append(
        row("plain", "dense", ("cython.grad", "fastconv", "stateless", "NCHW", 6.0), section="backward")
    )
    rows.append(row("plain", "dense", ("torch.nchw", "torch", "stateless", "NCHW", 8.0), section="backward"))
    rows += [
        row(f"size_{value}", "scaling", TIMED[0], section="scaling") | {"axis": "size", "value": value}
        for value in (7, 14, 28)
    ]
    empty = dict.fromkeys(("gflops", "share_of_peak", "share_of_roofline", "roofline_seconds"))
    rows.append(
        row("tiny", "overhead", TIMED[0], factor=1e-3, section="overhead") | {"phase": "call"} | empty
    )
    refused = row("plain", "dense", ("opencv.dnn", "opencv", "prepared", "NCHW", 1.0))
    rows.append(refused | empty | {"seconds_min": None, "samples": [], "refused": "no <groups>"})
    return {
        "schema": 1, "date": "2026-01-02T03:04:05+0000", "command": ["python", "-m", "fastconv", "bench"], "failed": [],
        "machine": {"cpu": "A CPU", "cores": 2, "isa": "avx2", "caches": LIMITS["caches"], "python": "3.11", "limits": LIMITS,
                    "libraries": {"torch": "1", "onnxruntime": "1"}},
        "missing": {"openvino": "pip install openvino"},
        "noise": {"aa": [{"workload": "plain", "threads": count, "ratio": 1.02} for count in (1, 2)], "worst": 1.02},
        "results": rows,
    }  # fmt: skip


class Page(html.parser.HTMLParser):
    """Collects the cells and what the page would load; checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.values, self.loads, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "input"):  # which have no end; <line/> and the like come to handle_startendtag
            self.open.append(tag)
        if "data-v" in attributes:
            self.values.append(float(attributes["data-v"]))
        if tag == "link" or "src" in attributes:
            self.loads.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in ("line", "path", "rect", "circle")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_ratios_are_against_the_fastest_peer_under_the_same_terms(results):
    found = {
        (r.comparison, r.backend): (r.value, r.peer["implementation"])
        for r in ratios.ratios(results)
        if r.ours["workload"] == "plain" and r.ours["threads"] == 1
    }
    assert found == {
        ("stateless", "cython"): (pytest.approx(3.0 / 4.0), "torch.nchw"),
        ("stateless", "numba"): (pytest.approx(3.3 / 4.0), "torch.nchw"),
        ("prepared", "cython"): (pytest.approx(2.0 / 2.2), "onnxruntime"),
        ("any layout", "cython"): (pytest.approx(1.5 / 2.2), "onnxruntime"),
        ("backward", "cython"): (pytest.approx(6.0 / 8.0), "torch.nchw"),
    }


def test_a_summary_is_the_geometric_mean_and_the_worst(results):
    found = [r for r in ratios.ratios(results) if r.ours["threads"] == 1]
    summary = ratios.summaries(found)["all layers"]["stateless", "cython"]
    assert summary.mean == pytest.approx((0.75 * 1.5) ** 0.5)
    assert (summary.worst, summary.worst_layer) == (pytest.approx(1.5), "thin")
    assert (summary.faster, summary.count) == (1, 2)


def test_the_markdown_holds_the_numbers_of_the_results(results):
    text = report.write_markdown(results)
    assert "| plain | 4.000 torch.nchw | 0.75 (50%) | 0.82 (50%) | 2.200 onnxruntime | 0.91 (50%) |" in text
    assert "| plain | 2.000 torch.nchw | 0.75 (50%) |" in text  # on two threads
    assert "| all layers | 1.06 (1.50) |" in text
    assert "differed by at most 2.0%" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_holds_every_time_of_the_results(results):
    parsed = Page(page.write_html(results))
    seconds = [r["seconds_min"] for r in results["results"] if r["seconds_min"]]
    assert set(seconds) <= set(parsed.values)
    words = " ".join(parsed.words)
    for r in results["results"]:
        if r["seconds_min"]:
            assert ratios.milliseconds(r) in words
    for count in LIMITS["peak_gflops"]["avx2"]["float32"].values():
        assert count in parsed.values


def test_the_page_needs_no_network_and_escapes_what_it_is_given(results):
    text = page.write_html(results)
    assert not Page(text).loads
    assert "http" not in text
    assert "url(" not in text
    assert "<groups>" not in text
    assert "no &lt;groups&gt;" in text


def test_the_page_tells_what_was_missing_and_how_to_measure_again(results):
    text = page.write_html(results)
    assert "pip install openvino" in text
    assert "python -m fastconv bench" in text
    assert "A CPU" in text
    assert 'data-v="1.02"' in text


@pytest.mark.parametrize("section", ["forward", "scaling", "overhead"])
def test_a_part_of_the_sections_makes_a_page(results, section):
    results["results"] = [r for r in results["results"] if r["section"] == section]
    Page(page.write_html(results))
    report.write_markdown(results)


def test_the_report_command_writes_both(results, tmp_path, capsys):
    source, target = tmp_path / "results.json", tmp_path / "report.html"
    source.write_text(json.dumps(results))
    assert report.main([str(source)]) == 0
    assert capsys.readouterr().out == report.write_markdown(results)
    assert report.main([str(source), "--html", str(target)]) == 0
    assert target.read_text() == page.write_html(results)
    assert report.main([str(tmp_path / "absent.json")]) == 2


def slowed(results, factor, **where):
    """Return a copy in which some rows take `factor` times as long."""
    after = copy.deepcopy(results)
    for r in after["results"]:
        if r["seconds_min"] and all(r[name] == value for name, value in where.items()):
            r["seconds_min"] *= factor
            r["samples"] = [sample * factor for sample in r["samples"]]
    return after


def run_compare(before, after, tmp_path):
    files = []
    for name, content in (("before", before), ("after", after)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    return compare.main([str(file) for file in files])


def verdicts(changes):
    return {
        (c.after["workload"], c.after["implementation"], c.verdict) for c in changes if c.verdict != "same"
    }


def test_identical_results_show_no_change(results, tmp_path, capsys):
    assert not verdicts(compare.compare(results, copy.deepcopy(results)))
    assert run_compare(results, results, tmp_path) == 0
    assert "0 of our times slower beyond the noise" in capsys.readouterr().out


def test_a_fifth_slower_is_caught(results, tmp_path, capsys):
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan", threads=1)
    assert verdicts(compare.compare(results, after)) == {("plain", "cython.plan", "slower")}
    assert verdicts(compare.compare(after, results)) == {("plain", "cython.plan", "faster")}
    assert run_compare(results, after, tmp_path) == 1
    assert re.search(r"plain +cython\.plan .*\+20\.0%", capsys.readouterr().out)
    assert run_compare(after, results, tmp_path) == 0


def test_a_change_within_the_control_is_not_claimed(results):
    results["noise"]["aa"][0]["ratio"] = 1 / 1.3
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan", threads=1)
    assert not verdicts(compare.compare(results, after))
    after = slowed(
        results, 1.2, workload="plain", implementation="cython.plan", threads=2
    )  # has its own control
    assert verdicts(compare.compare(results, after)) == {("plain", "cython.plan", "slower")}


def test_a_disturbed_control_is_left_out(results):
    results["noise"]["aa"].append({"workload": "thin", "threads": 1, "ratio": 1.5, "disturbed": True})
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan", threads=1)
    assert verdicts(compare.compare(results, after)) == {("plain", "cython.plan", "slower")}


def test_a_change_within_the_spread_of_the_blocks_is_not_claimed(results):
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan")
    for r in after["results"]:
        if r["implementation"] == "cython.plan":
            r["samples"] = [r["seconds_min"], r["seconds_min"] * 1.25, r["seconds_min"] * 1.3]
    assert not verdicts(compare.compare(results, after))


def test_what_the_same_peers_lost_too_is_not_claimed(results):
    after = slowed(results, 1.2, workload="plain", threads=1)
    assert not [
        c for c in compare.compare(results, after) if c.verdict != "same" and c.after["library"] == "fastconv"
    ]


def test_how_far_the_same_peers_move_from_run_to_run_is_noise(results):
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan")
    after = slowed(after, 1.3, workload="thin", library="torch")  # another layer
    assert not verdicts(compare.compare(results, after)) & {("plain", "cython.plan", "slower")}
    for r in after["results"]:
        r["version"] = "2"  # now it may be the peers that changed
    assert ("plain", "cython.plan", "slower") in verdicts(compare.compare(results, after))


def test_a_disturbed_time_is_not_claimed(results):
    after = slowed(results, 2, implementation="cython.plan")
    for r in after["results"]:
        r["disturbed"] = True
    assert not verdicts(compare.compare(results, after))


def test_a_run_disturbed_throughout_is_no_comparison(results, tmp_path, capsys):
    after = copy.deepcopy(results)
    for r in after["results"]:
        r["disturbed"] = True
    assert run_compare(results, after, tmp_path) == 2
    assert "quieter machine" in capsys.readouterr().err


def test_a_slower_copy_is_no_noise(results):
    after = slowed(results, 1.2, workload="plain", implementation="cython.plan")
    for r in after["results"]:  # every second block has its arrays elsewhere
        if r["seconds_min"]:
            r["samples"] = [r["seconds_min"] * slower for slower in (1, 1.3, 1.01, 1.3, 1.01, 1.3, 1.02)]
    assert ("plain", "cython.plan", "slower") in verdicts(compare.compare(results, after))


def test_a_layer_no_longer_taken_fails(results, tmp_path, capsys):
    after = copy.deepcopy(results)
    after["results"][0] |= {"seconds_min": None, "samples": [], "refused": "no kernel"}
    assert run_compare(results, after, tmp_path) == 1
    assert "no longer taken: plain by cython.call: no kernel" in capsys.readouterr().out


def test_noise_is_never_assumed(results, tmp_path, capsys):
    without = copy.deepcopy(results)
    without["noise"] = {"aa": [], "worst": None}
    with pytest.raises(ValueError, match="no control"):
        compare.compare(results, without)
    assert run_compare(results, without, tmp_path) == 2
    assert run_compare(results, {"some": "thing"}, tmp_path) == 2
    assert "no results of the benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", machine.DTYPES)
@pytest.mark.parametrize("limit", ["peak", "read"])
def test_a_limit_takes_time_on_every_instruction_set(dtype, limit):
    for name in _native.isas():
        for threads in (1, 2):
            assert _native.limit_seconds(name, limit, dtype, 4096, 1000, 2, threads) > 0


@pytest.mark.parametrize(
    ("name", "limit", "dtype", "size", "count"),
    [
        ("mmx", "peak", "float32", 512, 1),
        ("baseline", "write", "float32", 512, 1),
        ("baseline", "read", "float16", 512, 1),
        ("baseline", "read", "float32", 100, 1),
        ("baseline", "read", "float32", 512, 0),
    ],
)
def test_a_limit_that_is_not_there_is_an_error(name, limit, dtype, size, count):
    with pytest.raises(ValueError):  # noqa: PT011  (each has its own message)
        _native.limit_seconds(name, limit, dtype, size, count, 1, 1)


def test_limits_are_complete_and_sane(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.05)
    limits = machine.measure_limits([2])
    assert set(limits["peak_gflops"]) == set(_native.isas())
    for of in limits["peak_gflops"].values():
        for dtype in machine.DTYPES:
            assert set(of[dtype]) == {"1", "2"}
            assert all(0.1 < gflops < 1e5 for gflops in of[dtype].values())
    for of in limits["bandwidth_gbs"].values():
        assert {"L1", "L2", "DRAM"} <= set(of)
        assert all(0.1 < speed < 1e5 for speed in of.values())
    sizes = list(machine.cache_sizes().values())
    assert sizes == sorted(sizes)
    json.dumps(machine.describe_machine(limits))


def test_the_roofline_is_the_later_of_work_and_traffic():
    roof = lambda *args: machine.roofline_seconds(LIMITS, *args)
    assert roof(1e9, 1000, "float32", "avx2", 1) == pytest.approx(1e9 / 100e9)
    assert roof(1e9, 1000, "float64", "avx2", 2) == pytest.approx(1e9 / 100e9)
    for bytes, speed in ((32768, 200e9), (32769, 100e9), (1 << 20, 100e9), (1 << 25, 50e9), (1 << 26, 20e9)):
        assert roof(0, bytes, "float32", "avx2", 1) == pytest.approx(bytes / speed)
    assert roof(0, 65536, "float32", "avx2", 2) == pytest.approx(
        65536 / 200e9
    )  # two cores have two first levels


def test_an_instruction_set_can_do_what_the_older_ones_can():
    limits = {"peak_gflops": {"avx2": {"float32": {"1": 100.0}}, "avx512": {"float32": {"1": 90.0}}}}
    assert machine.peak_gflops(limits, "float32", "avx512", 1) == 100.0
    assert machine.peak_gflops(limits, "float32", "avx2", 1) == 100.0


COUNTED = cachegrind.Counted(
    "conv_dense_nchw", "conv2d", [1, 1, 9, 9], [1, 1, 1, 1], {"padding": 1}, 1000, 50_000, 1100, 1000
)


def test_a_table_of_counts_survives_writing(tmp_path):
    table = {"one": COUNTED, "new": replace(COUNTED, lines=0, options={"layout": "NHWC"})}
    path = tmp_path / "table.toml"
    path.write_text(cachegrind.table_text(table))
    assert cachegrind.read_table(path) == table


def test_worse_counts_are_told_and_equal_ones_are_not():
    assert cachegrind.changes({"one": COUNTED}, {"one": COUNTED}) == ([], [])
    worse, better = cachegrind.changes(
        {"one": COUNTED}, {"one": replace(COUNTED, last_level=1100, instructions=40_000)}
    )
    assert worse == ["one: last-level misses a line 1.000 -> 1.100"]
    assert better == ["one: million instructions 0.050 -> 0.040"]
    assert cachegrind.changes({"one": replace(COUNTED, lines=0)}, {"one": COUNTED}) == ([], [])


@pytest.mark.skipif(not (ROOT / cachegrind.TABLE).exists(), reason="the table is not beside the tests")
def test_every_compiled_kernel_is_counted():
    compiled = {kernel.name for kernel in fastconv.kernels(backend="cython")}
    table = cachegrind.read_table(ROOT / cachegrind.TABLE)
    assert {entry.kernel for entry in table.values()} == compiled
    assert all(entry.lines for entry in table.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("valgrind") is None or not hasattr(os, "fork"), reason="needs valgrind")
def test_two_counts_agree_to_the_digit():
    problem = cachegrind.Counted(
        "conv_depthwise_nchw", "conv2d", [1, 32, 20, 20], [32, 1, 3, 3], {"groups": 32}
    )
    first = cachegrind.count({"small": problem})
    assert first["small"].first_level >= 0.5 * first["small"].lines
    assert cachegrind.count({"small": problem}) == first

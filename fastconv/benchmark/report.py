"""Results for people: Markdown tables for the README, and one page with charts for the browser.

python -m fastconv.benchmark.report results.json > tables.md
python -m fastconv.benchmark.report results.json --html report.html
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import write_html
from .ratios import COMPARISONS, Ratio, Summary, milliseconds, ratios, summaries, threads_of

__all__ = ["main", "write_html", "write_markdown"]

MEANINGS = {
    "stateless": "a function call against the fastest stateless peer, channels first",
    "prepared": "a plan against the fastest peer that takes and gives channels first, prepared ones included",
    "any layout": "a plan, channels last, against the fastest of all peers",
    "backward": "gradients against the fastest of all peers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report on a file of results.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        0; 2 if the file cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="report", description="Write tables, or a page, of benchmark results."
    )
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the page there instead of the tables"
    )
    arguments = parser.parse_args(argv)
    try:
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if arguments.html:
        arguments.html.write_text(write_html(results), encoding="utf-8")
    else:
        print(write_markdown(results), end="")
    return 0


def write_markdown(results: Mapping[str, Any]) -> str:
    """Return the ratios as Markdown: a table of families and one of layers for each number of threads.

    Parameters
    ----------
    results : dict
        What ``python -m fastconv bench`` writes.

    Examples
    --------
    >>> from fastconv.benchmark.report import write_markdown
    >>> machine = {"cpu": "a CPU", "isa": "avx2", "libraries": {"torch": "2.14"}}
    >>> layer = dict(section="forward", workload="l", family="dense", list="known", dtype="float32", threads=1,
    ...              column="stateless", layout="NCHW")
    >>> ours = dict(layer, implementation="cython.call", library="fastconv", seconds_min=0.001)
    >>> peer = dict(layer, implementation="torch.nchw", library="torch", seconds_min=0.002)
    >>> text = write_markdown({"machine": machine, "noise": {"worst": 1.02}, "results": [ours, peer]})
    >>> "| l | 2.000 torch.nchw | 0.50 |" in text
    True
    """
    found = ratios(results)
    parts = [_conditions(results)]
    for threads in threads_of(ratio.ours for ratio in found):
        of = [ratio for ratio in found if ratio.ours["threads"] == threads]
        parts.append(
            f"### {threads} thread{'s' * (threads > 1)}\n\n{_family_table(of)}\n\n{_layer_table(of)}"
        )
    return "\n\n".join(parts) + "\n"


def _conditions(results: Mapping[str, Any]) -> str:
    machine, noise = results["machine"], results["noise"]["worst"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    told = f"{machine['cpu']}, {machine['isa']}; {libraries}."
    if noise:
        told += f" One implementation timed against itself differed by at most {noise - 1:.1%}."
    meanings = "; ".join(f"*{name}*: {meaning}" for name, meaning in MEANINGS.items())
    roof = "Behind the ratio of a layer is our share of the roofline, in brackets."
    return (
        f"Ratios are our time over that of the fastest peer, below 1 is faster. {roof}\n{meanings}.\n\n{told}"
    )


def _columns(found: Iterable[Ratio]) -> list[tuple[str, str]]:
    """Return the (comparison, backend) pairs that occur, in the order of the comparisons."""
    occurring = {(ratio.comparison, ratio.backend) for ratio in found}
    order = list(COMPARISONS)
    return sorted(occurring, key=lambda column: (order.index(column[0]), column[1]))


def _family_table(found: Sequence[Ratio]) -> str:
    columns = _columns(found)
    rows = [["geometric mean (worst)", *(f"{comparison}, {backend}" for comparison, backend in columns)]]
    for family, of in summaries(found).items():
        rows.append([family, *(_summary(of.get(column)) for column in columns)])
    return _table(rows)


def _summary(summary: Summary | None) -> str:
    return "" if summary is None else f"{summary.mean:.2f} ({summary.worst:.2f})"


def _layer_table(found: Sequence[Ratio]) -> str:
    columns = _columns(found)
    header = ["layer"]
    for comparison in dict.fromkeys(comparison for comparison, _ in columns):
        header.append(f"{comparison}: fastest peer, ms")
        header += [backend for name, backend in columns if name == comparison]
    best: dict[tuple[str, str, str], Ratio] = {}
    for ratio in found:  # of two gradients, the one in the better layout
        key = (ratio.ours["workload"], ratio.comparison, ratio.backend)
        if key not in best or ratio.value < best[key].value:
            best[key] = ratio
    rows = [header]
    for layer in dict.fromkeys(ratio.ours["workload"] for ratio in found):
        row = [layer]
        for comparison in dict.fromkeys(comparison for comparison, _ in columns):
            mine = [best.get((layer, name, backend)) for name, backend in columns if name == comparison]
            peer = next((ratio.peer for ratio in mine if ratio), None)
            row.append(f"{milliseconds(peer)} {peer['implementation']}" if peer else "")
            row += [_cell(ratio) for ratio in mine]
        rows.append(row)
    return _table(rows)


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    share = ratio.ours.get("share_of_roofline")
    return f"{ratio.value:.2f}" + (f" ({share:.0%})" if share else "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())

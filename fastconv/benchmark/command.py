"""``python -m fastconv bench``: from arguments to files."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import implementations, jobs, measure, suite, workloads

__all__ = ["run", "settings_of"]


def run(arguments: argparse.Namespace) -> bool:
    """Measure, write ``results.json``, ``results.md`` and ``report.html``, and return whether nothing of ours was wrong.

    Raises
    ------
    ValueError
        If an argument asks for what is not there.
    OSError
        If the results cannot be written; found out before anything is measured.
    """
    settings = settings_of(arguments)
    if not jobs.jobs_of(settings):
        raise ValueError("nothing to time: no layer or no implementation has such a name")
    from . import report

    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "libraries.log").open("w") as log, _progress() as progress:
        results = suite.run(settings, progress, ["python", "-m", "fastconv", *sys.argv[1:]], log)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    (folder / "results.md").write_text(report.write_markdown(results))
    (folder / "report.html").write_text(report.write_html(results))
    return _summary(results, folder)


def settings_of(arguments: argparse.Namespace) -> jobs.Settings:
    """Return what the arguments ask for.

    Examples
    --------
    >>> from fastconv.cli import _parser
    >>> from fastconv.benchmark.command import settings_of
    >>> settings_of(_parser().parse_args(["bench", "--section", "forward,overhead", "--threads", "1"])).sections
    ['forward', 'overhead']
    """
    sections = _split(arguments.section) or list(jobs.SECTIONS)
    for name in sections:
        if name not in jobs.SECTIONS:
            raise ValueError(f"--section must be of {', '.join(jobs.SECTIONS)}, got {name}")
    most = suite.usable_threads()
    texts = _split(arguments.threads) or sorted({"1", str(most)})
    for text in texts:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise ValueError(
                f"--threads must be from 1 to {most}, the cores that may be used here, got {text}"
            )
    rounds = measure.ROUNDS if arguments.rounds is None else arguments.rounds
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    named, peers, layers = (_split(given) for given in (arguments.impl, arguments.peers, arguments.workloads))
    _check_known(named, peers, layers)
    if arguments.quick:
        sections = [name for name in sections if name != "scaling" or arguments.section]
    return jobs.Settings(
        sections=sections,
        threads=[int(text) for text in texts],
        implementations=named,
        peers=peers or ["all"],
        workloads=layers,
        dtype=arguments.dtype,
        layout=arguments.layout,
        quick=arguments.quick,
        rounds=rounds,
    )


def _check_known(named: Sequence[str], peers: Sequence[str], layers: Sequence[str]) -> None:
    """Raise if a name is none, so that a slip of the pen does not leave out half of a long run."""
    for option, patterns in (("--impl", named), ("--peers", set(peers) - {"all", "none"})):
        for pattern in patterns:
            if not implementations.known(pattern):
                names = ", ".join(entry.name for entry in implementations.catalogue())
                raise ValueError(f"{option} {pattern} matches none of {names}")
    every = [*workloads.load(), *workloads.scaling(), workloads.TINY]
    for pattern in layers:
        if not workloads.select(every, [pattern]):
            raise ValueError(f"--workloads {pattern} matches no layer, family or list")


def _split(values: Sequence[str]) -> list[str]:
    return [name for value in values for name in value.split(",") if name]


@contextmanager
def _progress() -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("limits of this machine", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _summary(results: dict[str, Any], folder: Path) -> bool:
    rows = results["results"]
    refused = [row for row in rows if row["refused"]]
    print(f"{len(rows)} times in {folder}: results.json, results.md, report.html")
    worst = results["noise"]["worst"]
    if worst is not None:
        print(f"noise: one implementation timed against itself differs by up to {100 * (worst - 1):.1f} %")
    disturbed = sum(row["disturbed"] for row in rows)
    if disturbed:
        print(f"disturbed although repeated: {disturbed}")
    for row in refused:
        print(f"refused: {row['implementation']} on {row['workload']}, {row['section']}: {row['refused']}")
    for entry in results["failed"]:
        print(f"failed: {entry['section']} {entry['workload']}: {entry['reason']}")
    if results["skipped"]:
        print(f"no time was left for {len(results['skipped'])} layers; --section and --threads ask for less")
    for name, how in results["missing"].items():
        print(f"missing: {name}: {how}")
    wrong = [row for row in refused if row["library"] == "fastconv" and row["refused"].startswith("wrong")]
    return not wrong and not results["failed"]

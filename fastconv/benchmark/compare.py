"""What changed between two runs of the benchmark, beyond their noise.

    python -m fastconv bench --compare before.json after.json

Nothing about the noise is assumed. It is the largest of what was measured: the controls of both runs, which timed one
implementation against itself; how far the blocks of each of the two times lie apart; and how far peers whose version
is the same moved from run to run, on the same layer and, but for the odd one, on any. What slows them, such as where
the system put a process's memory, is no change of ours.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Change", "compare", "main"]

OURS = "fastconv"
KEY = ("section", "phase", "workload", "implementation", "dtype", "layout", "threads")
ODD_SHARE = (
    0.05  # of the controls and of the peers' changes: one far off by chance must not hide a real change
)
SAME, SLOWER, FASTER = "same", "slower", "faster"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One time in two runs.

    Attributes
    ----------
    before, after : dict
        The rows.
    noise : float
        The ratio of two times that means nothing yet: 1.05 is 5 %.
    """

    before: Row
    after: Row
    noise: float

    @property
    def ratio(self) -> float:
        return self.after["seconds_min"] / self.before["seconds_min"]

    @property
    def disturbed(self) -> bool:
        return self.before["disturbed"] or self.after["disturbed"]

    @property
    def verdict(self) -> str:
        """``"slower"`` or ``"faster"`` beyond the noise, or ``"same"``."""
        if self.disturbed:
            return SAME
        if self.ratio > self.noise:
            return SLOWER
        return FASTER if self.ratio < 1 / self.noise else SAME


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files of results and print what changed.

    Parameters
    ----------
    argv : sequence of str, optional
        The two files; the arguments of the process if not given.

    Returns
    -------
    int
        1 if something of ours got slower beyond the noise, or is no longer taken; 2 if the files cannot be compared, or
        more than half of our times were disturbed.
    """
    parser = argparse.ArgumentParser(prog="compare", description="Compare two results of the benchmark.")
    parser.add_argument("before", type=Path, metavar="BEFORE.json")
    parser.add_argument("after", type=Path, metavar="AFTER.json")
    arguments = parser.parse_args(argv)
    try:
        before, after = _load(arguments.before), _load(arguments.after)
        changes = compare(before, after)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    lost = _lost(before, after)
    _print(before, after, changes, lost)
    ours = [change for change in changes if _is_ours(change.after)]
    if 2 * sum(change.disturbed for change in ours) > len(ours):
        print(
            "compare: more than half of our times were disturbed; measure on a quieter machine",
            file=sys.stderr,
        )
        return 2
    worse = [change for change in changes if change.verdict == SLOWER and _is_ours(change.after)]
    return 1 if worse or lost else 0


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Pair the times of two runs and tell the noise of each pair.

    Parameters
    ----------
    before, after : dict
        Results of ``python -m fastconv bench``.

    Returns
    -------
    list of Change
        One for each time that both runs have, in the order of `after`.

    Raises
    ------
    ValueError
        If a run has no control, so that its noise is not known.
    """
    old = {_key(row): row for row in before["results"] if row["seconds_min"]}
    pairs = [(old[_key(row)], row) for row in after["results"] if row["seconds_min"] and _key(row) in old]
    controls = [_controls(results, name) for results, name in ((before, "before"), (after, "after"))]
    moves = _moves(pairs)
    usual = {
        threads: _quantile([abs(move) for move in found]) for threads, found in _by_threads(moves).items()
    }
    changes = []
    for was, now in pairs:
        logs = [_control(of, now["threads"]) for of in controls]
        logs += [_spread(was), _spread(now)]
        if _is_ours(now):
            logs += [usual.get(now["threads"], 0.0), abs(statistics.median(moves.get(_layer(now), [0.0])))]
        changes.append(Change(was, now, math.exp(max(logs))))
    return changes


def _key(row: Row) -> tuple:
    return tuple(row.get(name, "") for name in KEY)


def _layer(row: Row) -> tuple:
    return row["section"], row.get("phase", ""), row["workload"], row["dtype"], row["threads"]


def _is_ours(row: Row) -> bool:
    return row["library"] == OURS


def _controls(results: Mapping[str, Any], name: str) -> dict[int, float]:
    """Return the |log ratio| that implementations against themselves stay below, by number of threads."""
    found: dict[int, list[float]] = {}
    controls = results["noise"]["aa"]
    for control in [control for control in controls if not control.get("disturbed")] or controls:
        found.setdefault(control["threads"], []).append(abs(math.log(control["ratio"])))
    if not found:
        raise ValueError(f"the run {name} has no control (noise.aa is empty), so its noise is not known")
    return {threads: _quantile(distances) for threads, distances in found.items()}


def _control(controls: Mapping[int, float], threads: int) -> float:
    """Return the noise of a thread count; the worst there is, if that count had no control."""
    return controls.get(threads, max(controls.values()))


def _spread(row: Row) -> float:
    """Return how far a middling block lies above the best one, as a logarithm.

    In the middle of the better half: copies with arrays elsewhere take turns, and one may be the slower.
    """
    samples = sorted(row.get("samples") or [row["seconds_min"]])
    return math.log(samples[(len(samples) + 1) // 4] / samples[0])


def _moves(pairs: Sequence[tuple[Row, Row]]) -> dict[tuple, list[float]]:
    """Return the changes of the peers whose version is the same, as logarithms, layer by layer."""
    moves: dict[tuple, list[float]] = {}
    for was, now in pairs:
        if not _is_ours(now) and was["version"] == now["version"]:
            moves.setdefault(_layer(now), []).append(math.log(now["seconds_min"] / was["seconds_min"]))
    return moves


def _by_threads(moves: Mapping[tuple, Sequence[float]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for (*_, threads), changes in moves.items():
        found.setdefault(threads, []).extend(changes)
    return found


def _quantile(values: Sequence[float]) -> float:
    """Return what all but `ODD_SHARE` of the values stay below."""
    return sorted(values)[math.ceil((1 - ODD_SHARE) * len(values)) - 1]


def _lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """Return our rows that had a time before and are refused now."""
    old = {_key(row) for row in before["results"] if row["seconds_min"]}
    return [row for row in after["results"] if row["refused"] and _is_ours(row) and _key(row) in old]


def _load(path: Path) -> dict[str, Any]:
    results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("schema") != 1:
        raise ValueError(f"{path} holds no results of the benchmark (schema 1)")
    return results


def _print(
    before: Mapping[str, Any], after: Mapping[str, Any], changes: Sequence[Change], lost: Sequence[Row]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for fact in ("cpu", "isa", "libraries"):
        if before["machine"][fact] != after["machine"][fact]:
            console.print(
                f"not the same {fact}: {before['machine'][fact]} -> {after['machine'][fact]}", style="yellow"
            )
    shown = sorted((c for c in changes if c.verdict != SAME), key=lambda change: -change.ratio)
    if shown:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title in ("section", "layer", "implementation", "type"):
            table.add_column(title, no_wrap=True)
        for title in ("threads", "before, ms", "after, ms", "change", "noise"):
            table.add_column(title, justify="right", no_wrap=True)
        for change in shown:
            row, colour = change.after, "red" if change.verdict == SLOWER else "green"
            table.add_row(
                " ".join(filter(None, (row["section"], row.get("phase")))), row["workload"], row["implementation"],
                row["dtype"], str(row["threads"]), f"{change.before['seconds_min'] * 1e3:.4g}",
                f"{row['seconds_min'] * 1e3:.4g}", Text(f"{change.ratio - 1:+.1%}", colour), f"{change.noise - 1:.1%}",
            )  # fmt: skip
        Console(highlight=False, width=max(console.width, 132)).print(table)
    for row in lost:
        console.print(
            f"no longer taken: {row['workload']} by {row['implementation']}: {row['refused']}", style="red"
        )
    for verdict in (SLOWER, FASTER):
        of = [change for change in shown if change.verdict == verdict]
        ours = sum(_is_ours(change.after) for change in of)
        console.print(f"{ours} of our times {verdict} beyond the noise, {len(of) - ours} of the peers'")
    alone = len({_key(r) for r in before["results"]} ^ {_key(r) for r in after["results"]})
    disturbed = sum(change.disturbed for change in changes)
    console.print(
        f"{len(changes) - len(shown)} times within it, {disturbed} of them disturbed; {alone} in one run only"
    )


if __name__ == "__main__":
    sys.exit(main())

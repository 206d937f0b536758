"""How the times compare: ours over those of the fastest peer that does the same work under the same terms.

=============  ==========================================  ====================================================
name           ours                                        peers
=============  ==========================================  ====================================================
stateless      a function call, channels first             stateless ones, channels first
prepared       a plan, channels first                      all that take and give channels first
any layout     a plan, channels last                       all
backward       gradients, channels first or last           all
=============  ==========================================  ====================================================
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COMPARISONS", "Ratio", "Summary", "geometric_mean", "milliseconds", "ratios", "summaries", "threads_of",
]  # fmt: skip

Row = Mapping[str, Any]
OURS = "fastconv"
ALL = "all layers"

# Which of our implementations, by what follows the backend in its name, and which peers.
COMPARISONS: dict[str, tuple[tuple[str, ...], Callable[[Row], bool]]] = {
    "stateless": (("call",), lambda peer: peer["column"] == "stateless" and peer["layout"] == "NCHW"),
    "prepared": (("plan",), lambda peer: peer["layout"] == "NCHW"),
    "any layout": (("plan_nhwc",), lambda peer: True),
    "backward": (("grad", "grad_nhwc"), lambda peer: True),
}


@dataclass(frozen=True)
class Ratio:
    """One of our times against the fastest peer's; below 1 ours is the shorter one."""

    comparison: str
    backend: str
    ours: Row
    peer: Row

    @property
    def value(self) -> float:
        return self.ours["seconds_min"] / self.peer["seconds_min"]


@dataclass(frozen=True)
class Summary:
    """The ratios of several layers: their geometric mean, and the worst with its layer."""

    count: int
    mean: float
    worst: float
    worst_layer: str
    faster: int

    @classmethod
    def of(cls, found: Sequence[Ratio]) -> "Summary":
        """Summarise at least one ratio."""
        worst = max(found, key=lambda ratio: ratio.value)
        return cls(
            len(found),
            geometric_mean(ratio.value for ratio in found),
            worst.value,
            worst.ours["workload"],
            sum(ratio.value < 1 for ratio in found),
        )


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of at least one positive number.

    Examples
    --------
    >>> from fastconv.benchmark.ratios import geometric_mean
    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))


def ratios(results: Mapping[str, Any]) -> list[Ratio]:
    """Compare each of our times with the fastest peer, in the order of the results.

    Where no peer took part in a comparison there is no ratio.

    Parameters
    ----------
    results : dict
        What ``python -m fastconv bench`` writes.

    Examples
    --------
    >>> from fastconv.benchmark.ratios import ratios
    >>> layer = dict(section="forward", workload="l", dtype="float32", threads=1, column="stateless", layout="NCHW")
    >>> ours = dict(layer, implementation="cython.call", library="fastconv", seconds_min=1.0)
    >>> peer = dict(layer, implementation="torch.nchw", library="torch", seconds_min=2.0)
    >>> [(ratio.comparison, ratio.backend, ratio.value) for ratio in ratios({"results": [ours, peer]})]
    [('stateless', 'cython', 0.5)]
    """
    timed = [
        row for row in results["results"] if row["section"] in ("forward", "backward") and row["seconds_min"]
    ]
    peers: dict[tuple, list[Row]] = {}
    for row in timed:
        if row["library"] != OURS:
            peers.setdefault(_layer(row), []).append(row)
    found = []
    for row in timed:
        backend, _, kind = row["implementation"].partition(".")
        if row["library"] != OURS:
            continue
        for name, (kinds, takes) in COMPARISONS.items():
            against = [peer for peer in peers.get(_layer(row), ()) if takes(peer)]
            if kind in kinds and against:
                found.append(Ratio(name, backend, row, min(against, key=lambda peer: peer["seconds_min"])))
    return found


def _layer(row: Row) -> tuple:
    return row["section"], row["workload"], row["dtype"], row["threads"]


def summaries(found: Sequence[Ratio]) -> dict[str, dict[tuple[str, str], Summary]]:
    """Return, for each family of layers, for each list of them and for all, a summary of each (comparison, backend)."""
    groups: dict[str, dict[tuple[str, str], list[Ratio]]] = {}
    for group_of in (lambda row: row["family"], lambda row: f"{row['list']} layers", lambda row: ALL):
        for ratio in found:
            group = groups.setdefault(group_of(ratio.ours), {})
            group.setdefault((ratio.comparison, ratio.backend), []).append(ratio)
    return {
        group: {key: Summary.of(members) for key, members in columns.items()}
        for group, columns in groups.items()
    }


def milliseconds(row: Row) -> str:
    """Return the time of a row in milliseconds, to four digits.

    Examples
    --------
    >>> from fastconv.benchmark.ratios import milliseconds
    >>> milliseconds({"seconds_min": 0.00208})
    '2.080'
    """
    return format(row["seconds_min"] * 1e3, "#.4g").rstrip(".")


def threads_of(rows: Iterable[Row]) -> list[int]:
    """Return the thread counts that occur, ascending."""
    return sorted({row["threads"] for row in rows})

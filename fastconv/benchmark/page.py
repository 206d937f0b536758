"""The results as one page for the browser, which loads nothing and needs no network."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from . import charts
from .ratios import (
    ALL,
    COMPARISONS,
    OURS,
    Ratio,
    Summary,
    geometric_mean,
    milliseconds,
    ratios,
    summaries,
    threads_of,
)

__all__ = ["write_html"]

Row = Mapping[str, Any]
COLOURS = 10
TILE_TITLES = ("all layers", "mean", "worst", "faster on")
MEANINGS = {
    "stateless": "A function call against the fastest peer that keeps nothing between calls; channels first.",
    "prepared": "A plan against the fastest peer that takes and gives channels first, prepared ones included.",
    "any layout": "A plan with channels last against the fastest of all peers.",
    "backward": "Gradients against the fastest of all peers.",
}
SCALING_LABELS: dict[str, dict[float, str]] = {"denormal": {0: "normal", 1: "denormal"}}
ON_THE_PAGE = {
    "ratios": "Against the fastest peer",
    "roofline": "Roofline",
    "scaling": "Scaling",
    "layers": "Layer by layer",
    "times": "All times",
    "costs": "First calls and overhead",
    "machine": "Machine and method",
}


def write_html(results: Mapping[str, Any]) -> str:
    """Return the page on a run of the benchmark.

    Parameters
    ----------
    results : dict
        What ``python -m fastconv bench`` writes.
    """
    found = ratios(results)
    sections = {
        "ratios": _ratio_charts(found),
        "roofline": _rooflines(results),
        "scaling": _scaling(results),
        "layers": _layers(found),
        "times": _times(results),
        "costs": _costs(results),
        "machine": _machine(results),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name}">{ON_THE_PAGE[name]}</a>' for name in sections)
    body = "".join(
        f'<section id="{name}"><h2>{ON_THE_PAGE[name]}</h2>{content}</section>'
        for name, content in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fastconv benchmark</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_asset('page.css')}</style></head><body><header><h1>fastconv benchmark</h1>{_lead(results)}"
        f"<nav>{links}</nav>{_tiles(found)}</header>{body}<script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _lead(results: Mapping[str, Any]) -> str:
    machine, rows = results["machine"], results["results"]
    threads = " and ".join(map(str, threads_of(rows)))
    dtypes = ", ".join(sorted({row["dtype"] for row in rows}))
    return (
        f"<p>{escape(machine['cpu'])}, {escape(machine['isa'])}, {threads} "
        f"thread{'s' * (threads != '1')}, {escape(dtypes)}, {escape(results['date'][:10])}. "
        "Ratios are our time over that of the fastest peer on the same layer: below 1 we are faster."
        f"{_disturbance(rows)}</p>"
    )


def _disturbance(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row["seconds_min"]]
    count = sum(row["disturbed"] for row in timed)
    share = f"{count} of {len(timed)} times were"
    return f' <b class="bad">{share} taken while the machine was not quiet.</b>' if count else ""


def _tiles(found: Sequence[Ratio]) -> str:
    """Return one tile for each comparison: all layers together, by backend and number of threads."""
    rows: dict[str, list[list[str]]] = {name: [] for name in COMPARISONS}
    for threads in threads_of(ratio.ours for ratio in found):
        of = [ratio for ratio in found if ratio.ours["threads"] == threads]
        for (comparison, backend), summary in summaries(of)[ALL].items():
            rows[comparison].append(_tile_row(f"{backend}, {_threads(threads)}", summary))
    tiles = "".join(
        f'<div class="panel"><b>{name}</b><p>{MEANINGS[name]}</p>{_table(TILE_TITLES, body, sort=False)}</div>'
        for name, body in rows.items()
        if body
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _tile_row(title: str, summary: Summary) -> list[str]:
    return [
        _word(title),
        _number(summary.mean, ".2f", "big good" if summary.mean < 1 else "big bad"),
        _number(summary.worst, ".2f", hint=summary.worst_layer),
        _word(f"{summary.faster} of {summary.count}"),
    ]


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _ratio_charts(found: Sequence[Ratio]) -> str:
    panels = []
    for threads in threads_of(ratio.ours for ratio in found):
        for comparison in COMPARISONS:
            of = [r for r in found if r.comparison == comparison and r.ours["threads"] == threads]
            if of:
                title = f"{comparison}, {_threads(threads)}"
                panels.append((title, f"<p>{MEANINGS[comparison]}</p>{charts.ratio_chart(of, title)}"))
    keys = _keys(
        ("mark cython", "cython"), ("mark numba", "numba"), ("mark cython slower", "slower than the peer")
    )
    hint = "<p>One line a layer, logarithmic; names in italics are layers nobody tuned for. Point at a mark for its times.</p>"
    return hint + keys + _tabs(panels) if panels else ""


def _keys(*keys: tuple[str, str]) -> str:
    items = (
        f'<span><svg width="12" height="12"><circle cx="6" cy="6" r="4.5" class="{css}"/></svg>{escape(text)}</span>'
        for css, text in keys
    )
    return f'<div class="keys">{"".join(items)}</div>'


def _tabs(panels: Iterable[tuple[str, str]]) -> str:
    inner = "".join(
        f'<div class="panel" data-tab="{escape(title)}">{content}</div>' for title, content in panels
    )
    return f"<div data-tabs>{inner}</div>"


def _rooflines(results: Mapping[str, Any]) -> str:
    limits = results["machine"]["limits"]
    panels: list[tuple[str, str]] = []
    families: list[str] = []
    for section in ("forward", "backward"):
        for threads in threads_of(results["results"]):
            pairs = _pairs(results, section, threads)
            dtypes = {row["dtype"] for row, _ in pairs}
            if not pairs or len(dtypes) != 1:
                continue
            families = list(dict.fromkeys([*families, *(row["family"] for row, _ in pairs)]))
            peaks = {isa: of[min(dtypes)][str(threads)] for isa, of in limits["peak_gflops"].items()}
            # A newer set that is no faster would only write over the older one's name.
            peaks = {
                isa: peak
                for isa, peak in peaks.items()
                if peak == max(peaks.values()) or peak < 0.9 * max(peaks.values())
            }
            title = f"{section}, {_threads(threads)}"
            coloured = [
                charts.Pair(ours, peer, families.index(ours["family"]) % COLOURS) for ours, peer in pairs
            ]
            panels.append(
                (title, charts.roofline(coloured, peaks, limits["bandwidth_gbs"][str(threads)], title))
            )
    keys = _keys(*((f"point c{index % COLOURS}", family) for index, family in enumerate(families)))
    hint = (
        "<p>The roof is measured in the same run: multiply-adds in registers, and reading from each level of the caches. "
        "Full marks are the fastest of ours on a layer, hollow ones the fastest peer, a line joins the two. Operations "
        "are those the definition needs, so that an algorithm that needs fewer may pass the roof.</p>"
    )
    return hint + keys + _tabs(panels) if panels else ""


def _pairs(results: Mapping[str, Any], section: str, threads: int) -> list[tuple[Row, Row | None]]:
    layers: dict[tuple[str, str], dict[bool, Row]] = {}
    for row in results["results"]:
        if row["section"] == section and row["threads"] == threads and row["seconds_min"] and row["gflops"]:
            fastest = layers.setdefault((row["workload"], row["dtype"]), {})
            ours = row["library"] == OURS
            if ours not in fastest or row["seconds_min"] < fastest[ours]["seconds_min"]:
                fastest[ours] = row
    return [(of[True], of.get(False)) for of in layers.values() if True in of]


def _scaling(results: Mapping[str, Any]) -> str:
    rows = [row for row in results["results"] if row["section"] == "scaling" and row["gflops"]]
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    panels = []
    for threads in threads_of(rows):
        pictures = []
        for axis in dict.fromkeys(row["axis"] for row in rows):
            found = {name: charts.Curve(name, index % COLOURS) for index, name in enumerate(names)}
            for row in rows:
                if row["axis"] == axis and row["threads"] == threads:
                    found[row["implementation"]].points.append((row["value"], row["gflops"]))
            shown = [curve for curve in found.values() if curve.points]
            if shown:
                pictures.append(charts.curves(shown, axis, SCALING_LABELS.get(axis)))
        panels.append((_threads(threads), f'<div class="grid3">{"".join(pictures)}</div>'))
    keys = _keys(*((f"point c{index % COLOURS}", name) for index, name in enumerate(names)))
    hint = (
        "<p>One dense layer with each of its sizes varied in turn; GFLOP/s, higher is better.</p>"
        if rows
        else ""
    )
    return hint + (keys + _tabs(panels) if panels else "") + _speed_up(results)


def _speed_up(results: Mapping[str, Any]) -> str:
    """Return how much shorter the times get with more threads: geometric means by family."""
    times = {
        (row["implementation"], row["workload"], row["dtype"], row["threads"]): row
        for row in results["results"]
        if row["section"] == "forward" and row["seconds_min"]
    }
    counts = threads_of(times.values())
    if len(counts) < 2:
        return ""
    gains: dict[str, dict[str, list[float]]] = {}
    for (name, workload, dtype, threads), row in times.items():
        one = times.get((name, workload, dtype, counts[0]))
        if threads == counts[-1] and one:
            of = gains.setdefault(name, {})
            of.setdefault(row["family"], []).append(one["seconds_min"] / row["seconds_min"])
    families = list(dict.fromkeys(family for of in gains.values() for family in of))
    body = [
        [_word(name), *(_number(geometric_mean(of[f]), ".2f") if f in of else _word("") for f in families)]
        for name, of in gains.items()
    ]
    hint = f"<p>How many times as fast {_threads(counts[-1])} are as {counts[0]}: geometric mean of the layers of a family.</p>"
    return hint + f'<div class="panel">{_table(["implementation", *families], body)}</div>'


def _layers(found: Sequence[Ratio]) -> str:
    if not found:
        return ""
    head = [
        "layer", "family", "comparison", "backend", "threads", "ours, ms", "peer, ms", "fastest peer", "ratio", "kernel", "ISA",
        "GFLOP/s", "% of peak", "% of roof", "max error", "scratch, kB", "more memory, kB",
    ]  # fmt: skip
    body = []
    for ratio in found:
        ours, peer = ratio.ours, ratio.peer
        body.append([
            _word(ours["workload"], hint=ours["problem"]), _word(ours["family"]), _word(ratio.comparison), _word(ratio.backend),
            _number(ours["threads"], "d"), _time(ours), _time(peer), _word(peer["implementation"]),
            _number(ratio.value, ".2f", "good" if ratio.value < 1 else "bad"), _word(ours["kernel"] or ""), _word(ours["isa"] or ""),
            _number(ours["gflops"], ".1f"), _number(ours["share_of_peak"], ".0%"), _number(ours["share_of_roofline"], ".0%"),
            _number(ours["error"], ".1e"), _number(ours["scratch_bytes"], "kB"), _number(ours["peak_extra_bytes"], "kB"),
        ])  # fmt: skip
    choices = {
        name: dict.fromkeys(_plain(row[head.index(name)]) for row in body)
        for name in ("comparison", "backend", "threads", "family")
    }
    selects = "".join(
        f'<select data-column="{head.index(name)}"><option value="">any {name}</option>'
        + "".join(f"<option>{value}</option>" for value in values) + "</select>"
        for name, values in choices.items()
    )  # fmt: skip
    return (
        "<p>Every ratio with what is behind it; a title sorts. The time is the shortest of all, and <span "
        'class="disturbed"></span> marks one that was taken on a machine not quiet.</p>'
        f'<div class="filters" data-for="ratio-table"><input type="search" placeholder="layer, kernel, peer ...">{selects}</div>'
        f'<div class="panel tall">{_table(head, body, "ratio-table")}</div>'
    )


def _times(results: Mapping[str, Any]) -> str:
    panels = []
    for section in ("forward", "backward", "scaling"):
        for threads in threads_of(results["results"]):
            rows = [r for r in results["results"] if r["section"] == section and r["threads"] == threads]
            if rows:
                panels.append(
                    (f"{section}, {_threads(threads)}", f'<div class="tall">{_time_table(rows)}</div>')
                )
    hint = "<p>Milliseconds; the shortest time of a layer is bold. Point at a dash for why there is none.</p>"
    return hint + _tabs(panels) if panels else ""


def _time_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    layers: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        layers.setdefault((row["workload"], row["dtype"]), {})[row["implementation"]] = row
    several = len({dtype for _, dtype in layers}) > 1
    body = []
    for (layer, dtype), of in layers.items():
        least = min((row["seconds_min"] for row in of.values() if row["seconds_min"]), default=None)
        label = f"{layer} {dtype}" if several else layer
        cells = [_word(label, hint=next(iter(of.values()))["problem"])]
        cells += [_time(of[name], least) if name in of else _word("") for name in names]
        body.append(cells)
    return _table(["layer", *names], body)


def _costs(results: Mapping[str, Any]) -> str:
    rows = [
        row
        for row in results["results"]
        if row["section"] in ("overhead", "first-call") and row["seconds_min"]
    ]
    groups: dict[str, dict[str, dict[tuple[str, int], Row]]] = {}
    for row in rows:
        column = (
            row["phase"] if row["section"] == "overhead" else f"{row['workload']}, {row['phase']}",
            row["threads"],
        )
        groups.setdefault(row["section"], {}).setdefault(row["implementation"], {})[column] = row
    panels = []
    for section, of in groups.items():
        columns = sorted({column for cells in of.values() for column in cells})
        body = [
            [_word(name), *(_time(cells[c]) if c in cells else _word("") for c in columns)]
            for name, cells in of.items()
        ]
        titles = [f"{title}, {_threads(threads)}" for title, threads in columns]
        panels.append((section, _table(["implementation", *titles], body)))
    hint = (
        "<p>Milliseconds. Overhead: a call, and the making of a plan or session, for a layer with next to no work; the import in "
        "a fresh process. First call: in a fresh process, with an empty cache where compiled code is kept (cold).</p>"
    )
    return hint + _tabs(panels) if panels else ""


def _machine(results: Mapping[str, Any]) -> str:
    machine, noise = results["machine"], results["noise"]
    facts = {name: machine[name] for name in ("cpu", "cores", "isa", "system", "python") if name in machine}
    facts |= {f"{level} cache": f"{size / 1024:,.0f} KiB" for level, size in machine["caches"].items()}
    limits = machine["limits"]
    counts = sorted(limits["bandwidth_gbs"], key=int) if limits else []
    peaks = [
        [_word(f"{isa} {dtype}"), *(_number(of[dtype][count], ".1f") for count in counts)]
        for isa, of in limits.get("peak_gflops", {}).items()
        for dtype in of
    ]
    levels = list(dict.fromkeys(level for count in counts for level in limits["bandwidth_gbs"][count]))
    reads = [
        [_word(level), *(_number(limits["bandwidth_gbs"][count].get(level), ".1f") for count in counts)]
        for level in levels
    ]
    titles = [_threads(int(count)) for count in counts]
    aa = [
        [
            _word(c["workload"]),
            _number(c["ratio"], ".3f", "disturbed" * c.get("disturbed", False)),
            _number(c["threads"], "d"),
            _word(c.get("process", "")),
        ]
        for c in noise["aa"]
    ]
    worst = f" They differ by {noise['worst'] - 1:.1%} at most." if noise["worst"] else ""
    missing = [[_word(name), _word(how)] for name, how in results["missing"].items()]
    failed = [
        [_word(f["section"]), _word(f["workload"]), _number(f["threads"], "d"), _word(f["reason"])]
        for f in results.get("failed", ())
    ]
    cards = [
        _card("Machine", _table(["", ""], [[_word(k), _word(str(v))] for k, v in facts.items()])),
        _card("Libraries", _table(["", ""], [[_word(k), _word(v)] for k, v in machine["libraries"].items()])),
        _card("Peak, GFLOP/s", _table(["", *titles], peaks)),
        _card("Reading, GB/s", _table(["", *titles], reads)),
        _card(
            "Noise",
            f"<p>One implementation timed against itself, as if it were two, in the same process or in another.{worst}</p>"
            + '<div class="tall low">'
            + _table(["layer", "ratio", "threads", "process"], aa)
            + "</div>",
        ),
        _card(
            "Missing peers",
            _table(["peer", "how to get it"], missing)
            if missing
            else "<p>None: all known ones are installed.</p>",
        ),
    ]
    if failed:
        cards.append(_card("Processes that died", _table(["section", "layer", "threads", "reason"], failed)))
    command = shlex.join(results["command"]) or "python -m fastconv bench"
    return f'<div class="columns">{"".join(cards)}</div><p>To measure this again:</p><pre>{escape(command)}</pre>'


def _card(title: str, content: str) -> str:
    return f'<div class="panel"><b>{title}</b>{content}</div>'


def _table(head: Sequence[str], body: Sequence[Sequence[str]], name: str = "", sort: bool = True) -> str:
    """Return a table whose columns sort; a column whose first cell holds a word is set to the left."""
    words = {index for row in body[:1] for index, cell in enumerate(row) if 'class="w"' in cell}
    titles = "".join(
        f'<th class="w">{escape(title)}</th>' if index in words else f"<th>{escape(title)}</th>"
        for index, title in enumerate(head)
    )
    shown = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in body)
    attributes = f' id="{name}"' if name else ""
    css = ' class="sortable"' if any(head) and sort else ""
    return f"<table{attributes}{css}>{shown}<tbody>{rows}</tbody></table>"


def _word(text: str, hint: str = "") -> str:
    title = f' title="{escape(hint)}"' if hint else ""
    return f'<td class="w"{title}>{escape(text)}</td>'


def _number(value: float | None, spec: str, css: str = "", hint: str = "") -> str:
    """Return a cell that shows a number rounded and holds it whole."""
    if value is None:
        return "<td></td>"
    shown = f"{value / 1000:,.0f}" if spec == "kB" else format(value, spec)
    classes = f' class="{css}"' if css else ""
    title = f' title="{escape(hint)}"' if hint else ""
    return f'<td{classes}{title} data-v="{value!r}">{shown}</td>'


def _time(row: Row, least: float | None = None) -> str:
    """Return a cell with the milliseconds of a row, or why there are none."""
    seconds = row["seconds_min"]
    if not seconds:
        return f'<td class="refused" title="{escape(row["refused"] or "not measured")}">&ndash;</td>'
    css = " ".join((["disturbed"] if row["disturbed"] else []) + (["least"] if seconds == least else []))
    return f'<td class="{css}" data-v="{seconds!r}">{milliseconds(row)}</td>'


def _plain(cell: str) -> str:
    return cell[cell.index(">") + 1 : cell.rindex("<")]

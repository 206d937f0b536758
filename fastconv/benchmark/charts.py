"""Charts as SVG: marks and text only, coloured by the classes of ``page.css``, so that they suit light and dark."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .ratios import Ratio, geometric_mean, milliseconds

__all__ = ["Curve", "Pair", "curves", "ratio_chart", "roofline"]

ROW = 21
HEAD = 30
LABELS = 170
NOTES = 230
WIDTH = 1080


class Svg:
    """Collects the elements of one picture."""

    def __init__(self, width: float, height: float, title: str):
        self._parts: list[str] = []
        self._size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        self._title = title

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def path(self, points: Iterable[tuple[float, float]], css: str) -> None:
        steps = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<path d="M{steps}" class="{css}"/>')

    def box(self, x: float, y: float, width: float, height: float, css: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{css}"/>'
        )

    def text(
        self, x: float, y: float, text: str, css: str = "", anchor: str = "start", turn: int = 0
    ) -> None:
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'
        )

    def dot(self, x: float, y: float, css: str, hint: str, radius: float = 4.5) -> None:
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}"><title>{escape(hint)}</title></circle>'
        )

    def __str__(self) -> str:
        return f'<svg {self._size} role="img" aria-label="{escape(self._title)}">{"".join(self._parts)}</svg>'


@dataclass(frozen=True)
class LogScale:
    """From positive numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self, steps: Sequence[float] = (1, 2, 5)) -> list[float]:
        """Return the round numbers on the scale."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]


def ratio_chart(found: Sequence[Ratio], title: str) -> str:
    """Draw our times over the fastest peer's: a line a layer, a mark a backend, families apart.

    Parameters
    ----------
    found : sequence of Ratio
        Of one comparison and one number of threads.
    title : str
        What a screen reader says.
    """
    families: dict[str, dict[str, list[Ratio]]] = {}
    for ratio in found:
        families.setdefault(ratio.ours["family"], {}).setdefault(ratio.ours["workload"], []).append(ratio)
    rows = sum(len(layers) for layers in families.values())
    height = 2 * HEAD + ROW * rows + HEAD * len(families)
    values = [ratio.value for ratio in found]
    x = LogScale(min(0.25, *values) / 1.12, max(2.0, *values) * 1.12, LABELS, WIDTH - NOTES)
    svg = Svg(WIDTH, height, title)
    svg.box(LABELS, HEAD, x(1) - LABELS, height - 2 * HEAD, "faster")
    for tick in x.ticks():
        svg.line(x(tick), HEAD, x(tick), height - HEAD, "one" if tick == 1 else "grid")
        for edge in (HEAD - 9, height - HEAD + 18):
            svg.text(x(tick), edge, f"{tick:g}", "tick", "middle")
    svg.text(WIDTH - NOTES + 14, HEAD - 9, "fastest peer", "tick")
    y = float(HEAD)
    for family, layers in families.items():
        y += HEAD
        svg.text(0, y - 10, family, "family")
        means = ", ".join(f"{backend} {mean:.2f}" for backend, mean in _means(layers.values()).items())
        svg.text(WIDTH - NOTES + 14, y - 10, f"mean: {means}", "tick")
        for layer, ratios in layers.items():
            _ratio_row(svg, x, y + ROW / 2, layer, ratios)
            y += ROW
    return str(svg)


def _means(layers: Iterable[Sequence[Ratio]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for ratios in layers:
        for ratio in ratios:
            values.setdefault(ratio.backend, []).append(ratio.value)
    return {backend: geometric_mean(found) for backend, found in values.items()}


def _ratio_row(svg: Svg, x: LogScale, y: float, layer: str, ratios: Sequence[Ratio]) -> None:
    peer = ratios[0].peer
    svg.line(LABELS, y, WIDTH - NOTES, y, "rule")
    svg.text(
        LABELS - 10, y + 4, layer, "layer" if ratios[0].ours["list"] == "known" else "layer other", "end"
    )
    svg.text(WIDTH - NOTES + 14, y + 4, f"{peer['implementation']}  {milliseconds(peer)} ms", "note")
    for ratio in ratios:
        slower = " slower" if ratio.value >= 1 else ""
        svg.dot(
            x(ratio.value), y, f"mark {ratio.backend}{slower}",
            f"{layer}: {ratio.value:.3f}\n{ratio.ours['implementation']} {milliseconds(ratio.ours)} ms, "
            f"{peer['implementation']} {milliseconds(peer)} ms\n{ratio.ours['problem']}",
        )  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One layer in the roofline: the fastest of ours and, if there is one, the fastest peer."""

    ours: Mapping[str, Any]
    peer: Mapping[str, Any] | None
    colour: int


def roofline(
    pairs: Sequence[Pair], peaks: Mapping[str, float], bandwidths: Mapping[str, float], title: str
) -> str:
    """Draw performance over intensity beneath the measured roof.

    Parameters
    ----------
    pairs : sequence of Pair
    peaks : dict
        GFLOP/s by name of the instruction set.
    bandwidths : dict
        GB/s by level.
    title : str
        What a screen reader says.
    """
    height, left, bottom = 520, 58, 46
    rows = [row for pair in pairs for row in (pair.ours, pair.peer) if row is not None]
    ceiling, xs = max(peaks.values()), [row["intensity"] for row in rows]
    speeds = [row["gflops"] for row in rows]
    x = LogScale(min(0.25, *xs) / 1.3, max(64.0, *xs) * 1.3, left, WIDTH - 110)
    y = LogScale(min(ceiling / 12, *speeds) / 1.3, max(ceiling, *speeds) * 1.5, height - bottom, 14)
    svg = Svg(WIDTH, height, title)
    for tick in x.ticks((1,)):
        svg.line(x(tick), y(y.high), x(tick), y(y.low), "grid")
        svg.text(x(tick), height - bottom + 18, f"{tick:g}", "tick", "middle")
    for tick in y.ticks():
        svg.line(left, y(tick), x(x.high), y(tick), "grid")
        svg.text(left - 8, y(tick) + 4, f"{tick:g}", "tick", "end")
    svg.text((left + WIDTH - 110) / 2, height - 8, "operations a compulsory byte, FLOP/B", "axis", "middle")
    svg.text(14, height / 2, "GFLOP/s", "axis", "middle", turn=-90)
    for index, (level, bandwidth) in enumerate(bandwidths.items()):
        begin, end = max(x.low, y.low / bandwidth), min(ceiling / bandwidth, x.high)
        if begin < end:
            svg.line(x(begin), y(begin * bandwidth), x(end), y(end * bandwidth), "roof")
            label = f"{level} {bandwidth:.0f} GB/s"
            slope = math.degrees(math.atan2(y(y.low) - y(y.low * 2), x(x.low * 2) - x(x.low)))
            at = begin * (x.high / x.low) ** 0.015
            beside = -6 if index < 2 else 15  # L2 and L3 can lie close together
            svg.text(x(at), y(at * bandwidth) + beside, label, "tick", turn=-round(slope))
    lowest = min(ceiling / bandwidth for bandwidth in bandwidths.values()) if bandwidths else x.low
    for isa, peak in peaks.items():
        svg.line(x(max(x.low, lowest * peak / ceiling)), y(peak), x(x.high), y(peak), "roof")
        svg.text(x(x.high) + 8, y(peak) + 4, f"{isa} {peak:.0f}", "tick")
    for pair in pairs:
        ours = pair.ours
        if pair.peer is not None:
            at = x(ours["intensity"])
            svg.line(at, y(pair.peer["gflops"]), at, y(ours["gflops"]), f"join c{pair.colour}")
            svg.dot(at, y(pair.peer["gflops"]), f"peer c{pair.colour}", _speed(pair.peer), 3)
        svg.dot(x(ours["intensity"]), y(ours["gflops"]), f"point c{pair.colour}", _speed(ours), 5)
    return str(svg)


def _speed(row: Mapping[str, Any]) -> str:
    kernel = f" ({row['kernel']})" if row.get("kernel") else ""
    return (
        f"{row['workload']}: {row['implementation']}{kernel}\n{row['gflops']:.1f} GFLOP/s, "
        f"{row['share_of_roofline']:.0%} of the roof\n{row['problem']}"
    )


@dataclass
class Curve:
    """One implementation along one axis: its (value, GFLOP/s) points."""

    name: str
    colour: int
    points: list[tuple[float, float]] = field(default_factory=list)


def curves(found: Sequence[Curve], axis: str, labels: Mapping[float, str] | None = None) -> str:
    """Draw performance over one size, whose values stand side by side at equal distances."""
    width, height, left, bottom, top = 350, 230, 44, 34, 12
    values = sorted({value for curve in found for value, _ in curve.points})
    ceiling = 1.08 * max(speed for curve in found for _, speed in curve.points)
    step_x = (width - left - 8) / len(values)
    x = lambda value: left + step_x * (values.index(value) + 0.5)
    y = lambda speed: height - bottom - (height - bottom - top) * speed / ceiling
    svg = Svg(width, height, f"performance over {axis}")
    step = 10.0 ** math.floor(math.log10(ceiling / 2)) if ceiling > 0 else 1.0
    step *= next(factor for factor in (1, 2, 5, 10) if ceiling / (step * factor) <= 5)
    for index in range(int(ceiling / step) + 1):
        svg.line(left, y(index * step), width - 8, y(index * step), "grid")
        svg.text(left - 6, y(index * step) + 4, f"{index * step:g}", "tick", "end")
    last = -math.inf
    for value in values:
        if x(value) - last >= 24:
            svg.text(
                x(value), height - bottom + 16, (labels or {}).get(value, f"{value:g}"), "tick", "middle"
            )
            last = x(value)
    svg.text((left + width) / 2, height - 4, axis, "axis", "middle")
    for curve in found:
        points = sorted(curve.points)
        svg.path([(x(value), y(speed)) for value, speed in points], f"curve c{curve.colour}")
        for value, speed in points:
            svg.dot(
                x(value),
                y(speed),
                f"point c{curve.colour}",
                f"{curve.name}, {axis} {value:g}: {speed:.1f} GFLOP/s",
                2.6,
            )
    return str(svg)

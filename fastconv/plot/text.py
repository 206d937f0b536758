"""The pictures as text for the terminal: same names and arguments, without ``ax``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import ReceptiveField
from ..analysis.layers import Layer, as_layers
from ..plan import Plan
from .axes import as_plane
from .fields import relative
from .matrices import dense
from .rooflines import by_work, positions
from .sampled import drawn_size, regular_points
from .transposed import phase_taps

__all__ = [
    "effective_field",
    "intensity",
    "matrix",
    "phases",
    "receptive_field",
    "roofline",
    "sampling_points",
]

EMPTY = "·"
SHADES = ".:-=+*#%@"
MOST_COLUMNS = 100


def matrix(a: Any) -> str:
    """Return the entries of a matrix, a dot where none is stored; squares where they would not fit."""
    values, stored = dense(a)
    texts = [
        [f"{v:.3g}" if s else EMPTY for v, s in zip(*row, strict=True)]
        for row in zip(values, stored, strict=True)
    ]
    width = max((len(text) for row in texts for text in row), default=1)
    if (width + 1) * values.shape[1] > MOST_COLUMNS:
        texts, width = [["■" if s else EMPTY for s in row] for row in stored], 1
    return "\n".join(" ".join(f"{text:>{width}}" for text in row) for row in texts)


def receptive_field(field: ReceptiveField, at: Any = None) -> str:
    """Return the field's box: a square for each pixel that is reached, a dot for the others."""
    plane = as_plane(field.paths(at)[0], "field")
    return _characters(np.where(plane > 0, "■", EMPTY))


def effective_field(field: ReceptiveField | np.ndarray, at: Any = None) -> str:
    """Return how much each pixel matters, from blank (not at all) over dots to @ (most)."""
    values, _, _ = relative(field, at)
    level = np.minimum((values * len(SHADES)).astype(int), len(SHADES) - 1)
    return _characters(np.where(values > 0, np.array(list(SHADES))[level], " "))


def phases(kernel: Any, stride: Any = 2, padding: Any = 0, dilation: Any = 1) -> str:
    """Return the taps of each phase of a transposed convolution's output, a line each."""
    (layer,) = as_layers([Layer(kernel, stride, padding, dilation, op="conv_transpose2d")])
    return "\n".join(
        f"output phase {phase}: {len(taps)} tap{'s' * (len(taps) != 1)} {' '.join(map(str, taps))}".rstrip()
        for phase, taps in phase_taps(layer).items()
    )


def sampling_points(
    field: ReceptiveField,
    at: Any = None,
    *,
    image: np.ndarray | None = None,
    offset_group: int = 0,
    grid: bool = True,
) -> str:
    """Return the input with ``o`` where a point is sampled and ``+`` where only the regular grid has one.

    Points between pixels go to the nearest. The image itself is not shown.
    """
    size = drawn_size(field)
    shown = np.full(size, EMPTY)
    layers = ([("+", regular_points(field, at))] if grid else []) + [("o", field.points(at, offset_group))]
    for character, points in layers:
        pixels = np.floor(points + 0.5).astype(int)
        inside = np.all((pixels >= 0) & (pixels < size), axis=1)
        shown[tuple(pixels[inside].T)] = character
    return _characters(shown)


def roofline(
    plans: Plan | Sequence[Plan],
    *,
    seconds: Sequence[float] | None = None,
    limits: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> str:
    """Return a table: intensity, speed, what the machine allows, the share reached, and the plan."""
    found = positions(plans, seconds, limits, threads)
    rows = [
        f"{p.intensity:>9.3g}  {p.speed:>7.3g}  {p.roof:>4.3g}  {p.share:>5.0%}  {p.problem} [{p.kernel}]"
        for p in found
    ]
    return "\n".join(["FLOP/byte  GFLOP/s  roof  share  plan", *rows])


def intensity(
    plans: Plan | Sequence[Plan],
    *,
    seconds: Sequence[float] | None = None,
    limits: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> str:
    """Return a table: groups, intensity, time, the first one's time by work, what direct sums would take at the roof, and the plan."""
    found = positions(plans, seconds, limits, threads)
    rows = [
        f"{p.groups:>6}  {p.intensity:>9.3g}  {1e6 * p.seconds:>6.3g}  {1e6 * work:>7.3g}  {1e6 * p.at_roof:>8.3g}  "
        f"{p.problem} [{p.kernel}]"
        for p, work in zip(found, by_work(found), strict=True)
    ]
    return "\n".join(["groups  FLOP/byte      us  by work   at roof  plan", *rows])


def _characters(shown: np.ndarray) -> str:
    return "\n".join(" ".join(row).rstrip() for row in shown)

"""What all pictures share: where they are drawn, and images of pixels with lines between them."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ACCENT", "GRID", "MUTED", "as_plane", "new_axes", "pixel_lines", "whole_ticks"]

ACCENT = "#d1495b"
MUTED = "#8d99a6"
GRID = "#d5dae0"
MOST_LINES = 48  # a finer grid is only a grey veil


def new_axes(ax: "Axes | None", width: float = 4.5, height: float = 4.5) -> "Axes":
    """Return the Axes to draw on: a new figure's if none is given."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'fastconv[plot]'") from None
    _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
    return ax


def pixel_lines(ax: "Axes", rows: int, columns: int, top: float = 0, left: float = 0) -> None:
    """Draw lines between pixels whose centres are whole numbers, where there are few enough."""
    if max(rows, columns) > MOST_LINES:
        return
    style: dict[str, Any] = {"colors": GRID, "linewidths": 0.7, "zorder": 2}
    ax.vlines(left + np.arange(columns + 1) - 0.5, top - 0.5, top + rows - 0.5, **style)
    ax.hlines(top + np.arange(rows + 1) - 0.5, left - 0.5, left + columns - 0.5, **style)


def whole_ticks(ax: "Axes") -> None:
    """Put ticks at pixels only."""
    from matplotlib.ticker import MaxNLocator

    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def as_plane(values: np.ndarray, what: str) -> np.ndarray:
    """Return values on one or two axes as a plane, a line as its only row."""
    if values.ndim not in (1, 2):
        raise ValueError(f"{what} must have 1 or 2 spatial axes to be drawn, got {values.ndim}")
    return np.atleast_2d(values)

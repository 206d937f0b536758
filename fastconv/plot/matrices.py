"""The matrix of a convolution."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import new_axes, pixel_lines, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["dense", "matrix"]

MOST_CELLS = 4_000_000
MOST_LABELS = 20  # columns in which numbers can be read


def matrix(a: Any, *, ax: "Axes | None" = None, labels: bool | None = None) -> "Axes":
    """Draw a matrix, such as ``fastconv.matrix(...)`` or its transpose: blue below zero, red above, white where empty.

    Parameters
    ----------
    a : scipy sparse array or array_like
    ax : matplotlib.axes.Axes, optional
    labels : bool, optional
        Whether to write the values; if not given, where there is room.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv import plot
    >>> A = fastconv.matrix("conv1d", (1, 7), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    >>> print(plot.text.matrix(A))
    1 2 3 · · · ·
    · · 1 2 3 · ·
    · · · · 1 2 3
    >>> plot.matrix(A.T).get_title()  # doctest: +SKIP
    '7 x 3, 9 entries'
    """
    values, stored = dense(a)
    rows, columns = values.shape
    ax = new_axes(ax, 4.5, float(np.clip(4.5 * rows / max(columns, 1), 1.6, 9)))
    most = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    shown = np.ma.masked_where(~stored, values)
    # The middle of the scale is nearly white: half of it again, so that small weights are seen.
    ax.imshow(shown, cmap="RdBu_r", vmin=-1.5 * most, vmax=1.5 * most, interpolation="nearest", zorder=1)
    pixel_lines(ax, rows, columns)
    if labels if labels is not None else columns <= MOST_LABELS and rows <= MOST_LABELS:
        for row, column in zip(*np.nonzero(stored), strict=True):
            ax.text(column, row, f"{values[row, column]:.3g}", ha="center", va="center", fontsize=8, zorder=3)
    ax.set(xlabel="input element", ylabel="output element")
    whole_ticks(ax)
    ax.set_title(f"{rows} x {columns}, {stored.sum()} entries", fontsize=10)
    ax.spines[:].set_visible(max(rows, columns) > MOST_LABELS)
    ax.tick_params(length=0)
    return ax


def dense(a: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a matrix, and which of them are stored (not zero, if all are)."""
    shape = np.shape(a) if not hasattr(a, "shape") else a.shape
    if len(shape) != 2:
        raise ValueError(f"a must be a matrix, got shape {tuple(shape)}")
    if shape[0] * shape[1] > MOST_CELLS:
        raise ValueError(f"a must have at most {MOST_CELLS:,} elements to be drawn, got shape {tuple(shape)}")
    if not hasattr(a, "tocoo"):
        values = np.asarray(a, np.float64)
        return values, values != 0
    entries = a.tocoo()
    stored = np.zeros(shape, bool)
    stored[entries.row, entries.col] = True
    return np.asarray(a.toarray(), np.float64), stored

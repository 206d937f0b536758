"""What an output depends on, and how much."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import ReceptiveField
from .axes import ACCENT, GRID, as_plane, new_axes, pixel_lines, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["effective_field", "receptive_field", "relative"]


def receptive_field(field: ReceptiveField, at: Any = None, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the pixels that an output depends on: dark where they are reached in many ways, hatched where in none.

    With one dilated layer this is its grid of taps.

    Parameters
    ----------
    field : ReceptiveField
        With 1 or 2 spatial axes.
    at : sequence of int, optional
        The output pixel; as for :meth:`fastconv.analysis.ReceptiveField.paths`.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import fastconv
    >>> from fastconv import plot
    >>> field = fastconv.receptive_field([{"kernel": 3, "dilation": 2}])
    >>> print(plot.text.receptive_field(field))
    ■ · ■ · ■
    · · · · ·
    ■ · ■ · ■
    · · · · ·
    ■ · ■ · ■
    """
    box, start = field.paths(at)
    plane = as_plane(box, "field")
    top, left = (0, *start)[-2:]
    rows, columns = plane.shape
    ax = new_axes(ax, 4.5, float(np.clip(4.5 * rows / max(columns, 1), 1.4, 6)))
    if plane.size:
        _draw(ax, plane, top, left)
        from matplotlib.patches import Rectangle

        for y, x in np.argwhere(plane == 0):
            ax.add_patch(
                Rectangle(
                    (left + x - 0.5, top + y - 0.5),
                    1,
                    1,
                    hatch="////",
                    facecolor="none",
                    edgecolor=GRID,
                    lw=0,
                )
            )
        pixel_lines(ax, rows, columns, top, left)
        if field.sizes is not None:
            _border(ax, field.sizes[0])
    reached = np.count_nonzero(plane)
    ax.set_title(f"{rows} x {columns}, {reached} of {plane.size} pixels", fontsize=10)
    ax.set(xlabel="input column", ylabel="input row")
    whole_ticks(ax)
    ax.spines[:].set_visible(False)
    return ax


def effective_field(
    field: ReceptiveField | np.ndarray, at: Any = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw how much each input pixel matters to an output, as a heat map from 0 to its maximum.

    Parameters
    ----------
    field : ReceptiveField or numpy.ndarray
        A field, whose layers are then taken to have equal weights; or what :func:`fastconv.analysis.effective_field`
        computed for given ones.
    at : sequence of int, optional
        The output pixel, for a field.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import fastconv
    >>> from fastconv import plot
    >>> print(plot.text.effective_field(fastconv.receptive_field([{"kernel": 3}] * 4, ndim=1)))
    . : + % @ % + : .
    """
    values, start, label = relative(field, at)
    top, left = start
    rows, columns = values.shape
    ax = new_axes(ax, 5, 4.2)
    extent = (left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5)
    image = ax.imshow(values, cmap="magma", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="share of the maximum", shrink=0.85)
    half = int(np.count_nonzero(values > 0.5))
    ax.set_title(f"{label}; above half: {half} of {values.size} pixels", fontsize=10)
    ax.set(xlabel="input column", ylabel="input row")
    whole_ticks(ax)
    return ax


def relative(field: ReceptiveField | np.ndarray, at: Any = None) -> tuple[np.ndarray, tuple[int, int], str]:
    """Return the importance of pixels as a plane with maximum 1, where it begins, and what it is."""
    if isinstance(field, ReceptiveField):
        box, start = field.paths(at)
        label = "equal weights"
    else:
        box, start, label = np.asarray(field), (0,) * np.ndim(field), "gradient"
    plane = as_plane(box, "field")
    top, left = (0, *start)[-2:]
    most = float(plane.max(initial=0)) or 1.0
    return plane / most, (top, left), label


def _draw(ax: "Axes", plane: np.ndarray, top: int, left: int) -> None:
    """Draw the pixels that are reached, darker by the logarithm of the ways."""
    ways = np.ma.masked_where(plane == 0, np.log2(1 + plane.astype(np.float64)))
    rows, columns = plane.shape
    extent = (left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5)
    ax.imshow(
        ways,
        cmap="Blues",
        vmin=-0.6 * ways.max(),
        vmax=1.2 * ways.max(),
        extent=extent,
        interpolation="nearest",
    )


def _border(ax: "Axes", size: tuple[int, ...]) -> None:
    """Outline the input."""
    from matplotlib.patches import Rectangle

    height, width = (1, *size)[-2:]
    ax.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=ACCENT, lw=1.2, zorder=3))
    ax.set_xlim(min(ax.get_xlim()[0], -1), max(ax.get_xlim()[1], width))
    ax.set_ylim(max(ax.get_ylim()[0], height), min(ax.get_ylim()[1], -1))

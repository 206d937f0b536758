"""A transposed convolution as a set of ordinary ones: one for each phase of its output."""

from itertools import product
from typing import TYPE_CHECKING, Any

from ..analysis.layers import Layer, as_layers
from .axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["phase_taps", "phases"]

COLOURS = "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#bab0ac"
GAP = 1.2


def phases(
    kernel: Any,
    stride: Any = 2,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw which taps of a transposed convolution make which of its outputs.

    Left the kernel, each tap in the colour of the outputs it goes to; right the outputs of one period, each with the
    taps that it is the sum of. Outputs of the same phase are an ordinary convolution of stride 1 with those taps:
    no zero is inserted anywhere. Phases with different numbers of taps are what makes checkerboards.

    Parameters
    ----------
    kernel, stride, padding, dilation : int or 2 ints
        As for :func:`fastconv.conv_transpose2d`.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> from fastconv import plot
    >>> print(plot.text.phases(3))
    output phase (0, 0): 4 taps (0, 0) (0, 2) (2, 0) (2, 2)
    output phase (0, 1): 2 taps (0, 1) (2, 1)
    output phase (1, 0): 2 taps (1, 0) (1, 2)
    output phase (1, 1): 1 tap (1, 1)
    """
    (layer,) = as_layers([Layer(kernel, stride, padding, dilation, op="conv_transpose2d")])
    found = phase_taps(layer)
    (kh, kw), (sh, sw) = layer.kernel, layer.stride
    ax = new_axes(ax, 2.5 + 1.1 * sw, 3.2)
    colours = {phase: COLOURS[index % len(COLOURS)] for index, phase in enumerate(found)}
    owner = {tap: phase for phase, taps in found.items() for tap in taps}
    _kernel(ax, kh, kw, 0, 0, {tap: colours[phase] for tap, phase in owner.items()})
    ax.text((kw - 1) / 2, -1, "kernel", ha="center", va="center")
    left = kw + GAP
    for (py, px), taps in found.items():
        x, y = left + px * (kw + 0.4), py * (kh + 0.4)
        _kernel(ax, kh, kw, y, x, dict.fromkeys(taps, colours[py, px]))
    width = sw * (kw + 0.4) - 0.4
    ax.text(
        left + (width - 1) / 2, -1, "one period of outputs, and the taps of each", ha="center", va="center"
    )
    ax.set_xlim(-1, left + width)
    ax.set_ylim(max(kh, sh * (kh + 0.4)) - 0.2, -1.6)
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def phase_taps(layer: Layer) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Return, for each phase of the output of a normalised transposed layer, the taps that reach it."""
    along = [
        [[t for t in range(k) if (phase + before - t * d) % s == 0] for phase in range(s)]
        for k, s, d, (before, _) in zip(
            layer.kernel, layer.stride, layer.dilation, layer.padding, strict=True
        )
    ]
    ranges = (range(s) for s in layer.stride)
    return {
        phase: list(product(*(taps[p] for taps, p in zip(along, phase, strict=True))))
        for phase in product(*ranges)
    }


def _kernel(ax: "Axes", rows: int, columns: int, top: float, left: float, filled: dict) -> None:
    """Draw the taps of a kernel, those in `filled` in their colours and with their numbers."""
    from matplotlib.patches import Rectangle

    for i, j in product(range(rows), range(columns)):
        colour = filled.get((i, j))
        ax.add_patch(
            Rectangle(
                (left + j - 0.5, top + i - 0.5),
                1,
                1,
                facecolor=colour or "#f2f4f6",
                edgecolor="white",
                lw=1.5,
            )
        )
        if colour:
            ax.text(left + j, top + i, f"{i},{j}", color="white", ha="center", va="center", fontsize=8)

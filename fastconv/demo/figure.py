"""The pictures of the demo on one page."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import filters
from .steps import Corrected, Step, Undistortion

__all__ = ["draw"]

COLUMNS, ROWS = 7, 3
PANEL = 2.45  # width of a picture, in inches; all lengths below as well
GAP, MARGIN = 0.14, 0.3
TITLE, HEADING, HEAD = 0.24, 0.5, 0.75  # heights: of a panel's title, of a group's, of the page's
DPI = 150

INK, GREY = "#22262b", "#6b7280"
COLOURS = {
    "standard": "#1f6fb2",
    "depthwise": "#138a72",
    "dilated": "#c2571a",
    "transposed": "#8a4fae",
    "deformable": "#b8283f",
}
GRID_PITCH = 8  # cells of the grid on the longer side


def draw(
    photo: np.ndarray,
    steps: Mapping[str, Step],
    undistortion: Undistortion,
    corrected: Corrected,
    backend: str,
    caption: str,
    path: str | os.PathLike,
) -> str | os.PathLike:
    """Draw every picture of the demo, as one backend computes them, and write the page to `path`."""
    page = _Page(photo.shape[2] / photo.shape[1])
    results = {name: step.run(backend) for name, step in steps.items()}
    page.head("One photograph through every variant of convolution", caption)
    _draw_filters(page, photo, results)
    _draw_dilated(page, steps, results)
    _draw_transposed(page, photo, steps, results)
    _draw_deformable(page, undistortion, corrected, backend)
    page.figure.savefig(path, dpi=DPI)
    return path


def _draw_filters(page: "_Page", photo: np.ndarray, results: Mapping[str, np.ndarray]) -> None:
    page.picture(0, 0, photo, "the photograph")
    page.group(0, 1, 3, "standard", "Standard convolution: every output channel sees R, G and B")
    page.picture(0, 1, results["blur"], "blur: Gaussian, 9x9")
    page.picture(0, 2, results["sharpen"], "sharpen: 3x3")
    page.picture(0, 3, _gradient(results["edges"])[0], "edges: Sobel on the brightness")
    page.group(
        0,
        4,
        3,
        "depthwise",
        "Depthwise convolution, groups=3: each channel by itself; the blur at 1/3 of the work",
    )
    page.picture(0, 4, results["depthwise blur"], f"blur: {_agreement(results, 'blur')}")
    page.picture(0, 5, results["depthwise sharpen"], f"sharpen: {_agreement(results, 'sharpen')}")
    page.picture(0, 6, _gradient(results["depthwise edges"]), "edges: Sobel on R, G and B")


def _agreement(results: Mapping[str, np.ndarray], name: str) -> str:
    difference = np.abs(results[name] - results[f"depthwise {name}"]).max()
    return f"differs from standard by {difference:.0e}" if difference else "the same bits as standard"


def _draw_dilated(page: "_Page", steps: Mapping[str, Step], results: Mapping[str, np.ndarray]) -> None:
    dilations = (1, 2, 4)
    page.group(
        1,
        0,
        4,
        "dilated",
        "Dilated convolution: the same 3x3 Sobel kernel finds coarser edges as its taps move apart",
    )
    for column, dilation in enumerate(dilations):
        reach = 2 * dilation + 1
        page.picture(
            1,
            column,
            _gradient(results[f"dilation {dilation}"])[0],
            f"dilation {dilation}: reaches {reach}x{reach}",
        )
    _draw_taps(page.panel(1, 3, "the nine taps at dilation 1, 2, 4"), dilations)


def _draw_taps(axes: Axes, dilations: Sequence[int]) -> None:
    """Draw the taps of a 3x3 kernel at each dilation on one grid of pixels."""
    reach = max(dilations)
    edges = np.arange(2 * reach + 2) - reach - 0.5
    axes.hlines(edges, edges[0], edges[-1], color="#d5d9de", lw=0.8)
    axes.vlines(edges, edges[0], edges[-1], color="#d5d9de", lw=0.8)
    shades = ("#7a2e05", "#d9722f", "#f5b98c")
    for dilation, shade in zip(dilations, shades, strict=True):
        taps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]) * dilation
        axes.scatter(taps[:, 1], taps[:, 0], s=70, marker="s", color=shade, label=str(dilation), zorder=2)
    axes.scatter([0], [0], s=70, marker="s", color=INK, zorder=2)
    axes.set(xlim=(edges[0] - 0.2, edges[-1] + 0.2), ylim=(edges[-1] + 0.2, edges[0] - 0.2), aspect="equal")
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=3,
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    axes.axis("off")


def _draw_transposed(
    page: "_Page", photo: np.ndarray, steps: Mapping[str, Step], results: Mapping[str, np.ndarray]
) -> None:
    page.group(1, 4, 3, "transposed", "Transposed convolution, stride 2, bilinear 4x4 kernel: twice the size")
    window = _detail(photo)
    rows, columns = window
    page.picture(1, 4, photo[:, rows, columns], f"detail, {rows.stop - rows.start} pixels high", smooth=False)
    twice = tuple(slice(2 * part.start, 2 * part.stop) for part in window)
    page.picture(
        1,
        5,
        results["enlarge"][:, twice[0], twice[1]],
        f"enlarged, {2 * (rows.stop - rows.start)} pixels high",
        smooth=False,
    )
    kernel = steps["enlarge"].arrays["weight"][0, 0]
    axes = page.panel(1, 6, "the kernel")
    axes.imshow(kernel, cmap="Purples", vmin=0, vmax=2 * kernel.max())
    for (i, j), value in np.ndenumerate(kernel):
        axes.text(j, i, f"{value * 16:.0f}/16", ha="center", va="center", fontsize=9, color=INK)
    axes.axis("off")


def _draw_deformable(page: "_Page", undistortion: Undistortion, corrected: Corrected, backend: str) -> None:
    lens = undistortion.lens
    formula = f"$r_d = r_u\\,(1 {lens.k1:+g}\\,r_u^2)$"
    heading = (
        f"Deformable convolution: offsets computed from the lens formula {formula} undo a barrel distortion"
    )
    page.group(2, 0, 7, "deformable", heading)
    axes = page.picture(2, 0, undistortion.distorted, "through the lens; lines: where taps read")
    _draw_sampling(axes, undistortion)
    page.picture(2, 1, corrected.picture, "undone by deform_conv2d")
    page.picture(2, 2, undistortion.original, "the original")
    scale = np.quantile(_mismatch(undistortion.distorted, undistortion), 0.99)
    for column, name, picture, error in (
        (3, "before", undistortion.distorted, corrected.before),
        (4, "after", corrected.picture, corrected.after),
    ):
        page.picture(
            2,
            column,
            _mismatch(picture, undistortion) / scale,
            f"|error| {name}: RMSE {error:.4f}",
            cmap="magma",
        )
    grid = _grid(lens.height, lens.width)
    bent = lens.take(grid)
    page.picture(2, 5, bent[0], "a grid through the lens", cmap="gray")
    page.picture(
        2, 6, undistortion.applied_to(bent).run(backend)[0], "undone with the same offsets", cmap="gray"
    )


def _draw_sampling(axes: Axes, undistortion: Undistortion) -> None:
    """Draw where the deformable convolution reads for evenly spaced rows and columns of its output."""
    lens = undistortion.lens
    pitch = max(lens.height, lens.width) / GRID_PITCH
    height, width = lens.height - 1, lens.width - 1
    along = np.linspace(0, 1, 200)
    lines = [np.stack([np.full(200, row), along * width]) for row in _spaced(height, pitch)]
    lines += [np.stack([along * height, np.full(200, column)]) for column in _spaced(width, pitch)]
    for line in lines:
        rows, columns = lens.distort(line)
        axes.plot(columns, rows, color="#ffe14d", lw=0.7, alpha=0.85)


def _spaced(length: float, pitch: float) -> np.ndarray:
    count = max(2, round(length / pitch))
    return np.linspace(0, length, count + 1)


def _grid(height: int, width: int) -> np.ndarray:
    """Return a picture (1, H, W) of straight white lines, two pixels wide with soft flanks."""
    pitch = max(height, width) / GRID_PITCH
    picture = np.zeros((height, width))
    for length, axis in ((height, 0), (width, 1)):
        lines = _spaced(length - 1, pitch)[1:] - pitch / 2  # none at the border, where the lens leaves gaps
        distance = np.abs(np.arange(length)[:, None] - lines).min(axis=1)
        profile = np.clip(2 - distance, 0, 1)
        picture = np.maximum(picture, profile[:, None] if axis == 0 else profile[None, :])
    return picture[None].astype(np.float32)


def _mismatch(picture: np.ndarray, undistortion: Undistortion) -> np.ndarray:
    """Return the error of each pixel, root mean square over the channels; 0 where none is counted."""
    return np.sqrt(np.mean((picture - undistortion.original) ** 2, axis=0)) * undistortion.compared


def _gradient(derivatives: np.ndarray) -> np.ndarray:
    """Return the length of the gradient (channels, H, W) of pairs of derivatives; 1 at strong edges."""
    pairs = derivatives.reshape(-1, 2, *derivatives.shape[1:])
    length = np.hypot(pairs[:, 0], pairs[:, 1])
    return np.clip(length / max(np.quantile(length, 0.99), 1e-6), 0, 1)


def _detail(photo: np.ndarray) -> tuple[slice, slice]:
    """Return the window, a sixth of the picture each way, where brightness varies most."""
    brightness = np.tensordot(filters.LUMA, photo, 1)
    energy = np.zeros_like(brightness)
    energy[:, 1:] += np.diff(brightness, axis=1) ** 2
    energy[1:] += np.diff(brightness, axis=0) ** 2
    size = tuple(side // 6 for side in brightness.shape)
    total = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = (
        total[size[0] :, size[1] :]
        - total[: -size[0], size[1] :]
        - total[size[0] :, : -size[1]]
        + total[: -size[0], : -size[1]]
    )
    top, left = np.unravel_index(np.argmax(windows), windows.shape)
    return slice(int(top), int(top) + size[0]), slice(int(left), int(left) + size[1])


class _Page:
    """A page of pictures of one shape, `COLUMNS` by `ROWS`, in groups with a heading."""

    def __init__(self, aspect: float):
        self.panel_height = PANEL / aspect
        if aspect > 1.6:  # wide panoramas would leave no room for the square panels
            self.panel_height = PANEL / 1.6
        self.width = 2 * MARGIN + COLUMNS * PANEL + (COLUMNS - 1) * GAP
        self.height = HEAD + ROWS * (HEADING + TITLE + self.panel_height) + MARGIN
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")

    def head(self, title: str, subtitle: str) -> None:
        """Write the page's own title."""
        self._text(MARGIN, 0.34, title, size=17, weight="bold", color=INK)
        self._text(MARGIN, 0.62, subtitle, size=10, color=GREY)

    def group(self, row: int, column: int, count: int, variant: str, text: str) -> None:
        """Write a heading over `count` panels, with a line in the variant's colour."""
        left, top = self._corner(row, column)
        right = left + count * PANEL + (count - 1) * GAP
        colour = COLOURS[variant]
        y = top - TITLE - 0.07
        self._text(left, y - 0.07, text, size=10.5, weight="bold", color=colour)
        line = Line2D([left / self.width, right / self.width], [1 - y / self.height] * 2, color=colour, lw=2)
        self.figure.add_artist(line)

    def panel(self, row: int, column: int, title: str) -> Axes:
        """Return empty axes at a place of the page, with a title."""
        left, top = self._corner(row, column)
        box = (
            left / self.width,
            1 - (top + self.panel_height) / self.height,
            PANEL / self.width,
            self.panel_height / self.height,
        )
        axes = self.figure.add_axes(box)
        self._text(left, top - 0.07, title, size=8.5, color=INK)
        return axes

    def picture(
        self,
        row: int,
        column: int,
        picture: np.ndarray,
        title: str,
        *,
        cmap: str = "gray",
        smooth: bool = True,
    ) -> Axes:
        """Show a picture (3, H, W), or (H, W) in colours of `cmap`; values are clipped to 0 to 1."""
        axes = self.panel(row, column, title)
        shown = np.moveaxis(picture, 0, -1) if picture.ndim == 3 else picture
        axes.imshow(
            np.clip(shown, 0, 1),
            cmap=cmap,
            vmin=0,
            vmax=1,
            interpolation="antialiased" if smooth else "nearest",
            aspect="equal",
        )
        axes.axis("off")
        return axes

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        """Return the distances of a panel's upper left corner from the left and the top of the page."""
        left = MARGIN + column * (PANEL + GAP)
        return left, HEAD + row * (HEADING + TITLE + self.panel_height) + HEADING + TITLE

    def _text(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, va="baseline", **style)

"""What a deformable layer samples, over the image."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import ReceptiveField
from ..errors import ShapeError
from ..problem import Ints
from .axes import ACCENT, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drawn_size", "regular_points", "sampling_points"]

FADED = 0.75  # the image, so that points stand out
MOST_EDGED = 100  # more points would be hidden by their own edges


def sampling_points(
    field: ReceptiveField,
    at: Any = None,
    *,
    image: np.ndarray | None = None,
    offset_group: int = 0,
    grid: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the points that an output pixel samples through all layers, over the image.

    Parameters
    ----------
    field : ReceptiveField
        Of a stack with deformable layers, and 2 spatial axes.
    at : sequence of int, optional
        The output pixel; the middle one if not given.
    image : numpy.ndarray, shape (3, H, W), (1, H, W), (H, W) or (H, W, 3), optional
        The input, to draw them on.
    offset_group : int, optional
        Whose displacements are used.
    grid : bool, optional
        Whether to draw the points of the regular grid too.
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import fastconv
    >>> from fastconv import plot
    >>> from fastconv.analysis import affine_offset
    >>> turned = affine_offset(3, [[1, -1], [1, 1]], (9, 9), dilation=2)
    >>> layer = {"op": "deform_conv", "kernel": 3, "dilation": 2, "padding": 2, "offset": turned}
    >>> print(plot.text.sampling_points(fastconv.receptive_field([layer], input_size=9)))
    · · · · o · · · ·
    · · · · · · · · ·
    · · o · + · o · ·
    · · · · · · · · ·
    o · + · o · + · o
    · · · · · · · · ·
    · · o · + · o · ·
    · · · · · · · · ·
    · · · · o · · · ·
    """
    height, width = drawn_size(field)
    ax = new_axes(ax)
    if image is not None:
        picture = as_picture(image)
        if picture.shape[:2] != (height, width):
            raise ShapeError(
                f"image must have the field's input size {(height, width)}, got shape {np.shape(image)}"
            )
        ax.imshow(picture, cmap="gray", interpolation="nearest", alpha=FADED)
    points = field.points(at, offset_group)
    size = float(np.clip(900 / len(points), 5, 55))
    edge = 0.8 if len(points) <= MOST_EDGED else 0.0
    if grid:
        regular = np.unique(regular_points(field, at), axis=0)
        hollow: dict[str, Any] = {"s": size, "facecolors": "none"}
        ax.scatter(regular[:, 1], regular[:, 0], edgecolors="white", lw=2.6, **hollow)
        ax.scatter(regular[:, 1], regular[:, 0], edgecolors="#1d3557", lw=1.1, label="regular grid", **hollow)
    ax.scatter(
        points[:, 1],
        points[:, 0],
        s=size,
        color=ACCENT,
        edgecolors="white",
        lw=edge,
        label="sampled",
        zorder=3,
    )
    ax.legend(fontsize=7, loc="lower right")
    ax.set_xlim(min(-0.5, points[:, 1].min() - 1), max(width - 0.5, points[:, 1].max() + 1))
    ax.set_ylim(max(height - 0.5, points[:, 0].max() + 1), min(-0.5, points[:, 0].min() - 1))
    ax.set_aspect("equal")
    ax.set_title(f"{len(points)} points", fontsize=10)
    return ax


def drawn_size(field: ReceptiveField) -> Ints:
    """Return the size of the input; raise unless the points of the field can be drawn over it."""
    if field.ndim != 2:
        raise ValueError(f"field must have 2 spatial axes to be drawn, got {field.ndim}")
    if field.sizes is None:
        raise ValueError("field must be made with input_size to be drawn over its input")
    return field.sizes[0]


def regular_points(field: ReceptiveField, at: Any) -> np.ndarray:
    """Return the points that would be sampled without displacements."""
    plain = tuple(replace(layer, offset=None) for layer in field.layers)
    return ReceptiveField(plain, field.sizes).points(at)


def as_picture(image: np.ndarray) -> np.ndarray:
    """Return an image as matplotlib draws it: channels last, or none."""
    image = np.asarray(image)
    if image.ndim == 3 and len(image) in (1, 3) and image.shape[-1] not in (3, 4):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 and (image.ndim != 3 or image.shape[-1] not in (3, 4)):
        raise ValueError(
            f"image must have shape (3, H, W), (1, H, W), (H, W) or (H, W, 3), got {image.shape}"
        )
    return image

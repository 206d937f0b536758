"""Where the picture comes from."""

import os
from pathlib import Path

import numpy as np

__all__ = ["LONGEST_SIDE", "SHORTEST_SIDE", "PhotoError", "load_photo"]

LONGEST_SIDE = 512  # large enough to judge by eye, small enough for the oracle
SHORTEST_SIDE = 64  # below this the pictures show nothing


class PhotoError(ValueError):
    """The picture cannot be used; the message is meant for the user."""


def load_photo(path: str | os.PathLike | None = None) -> np.ndarray:
    """Read a photograph and scale it down so that its longer side is at most ``LONGEST_SIDE``.

    Parameters
    ----------
    path : path, optional
        Any file Pillow reads; if not given, the portrait of Grace Hopper among matplotlib's sample data.

    Returns
    -------
    numpy.ndarray of float32, shape (3, H, W)
        Red, green and blue between 0 and 1.

    Raises
    ------
    PhotoError
        If there is no such file, it is no picture, or it is too small or too narrow.
    """
    from PIL import Image, ImageOps

    path = _sample() if path is None else Path(path)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):  # deeper than 8 bits, which convert() would clip
                image = _stretched(image)
            image = image.convert("RGB")
    except FileNotFoundError:
        raise PhotoError(f"there is no file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"cannot read {path} as a picture: {error}") from None
    scale = min(1.0, LONGEST_SIDE / max(image.size))
    width, height = (round(side * scale) for side in image.size)
    if min(width, height) < SHORTEST_SIDE:
        raise PhotoError(
            f"{path} is {image.width} x {image.height} pixels; scaled to at most {LONGEST_SIDE}, "
            f"both sides must be at least {SHORTEST_SIDE}, got {width} x {height}"
        )
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.moveaxis(np.asarray(image, np.float32) / 255, -1, 0))


def _sample() -> Path:
    from matplotlib.cbook import get_sample_data

    return Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


def _stretched(image):
    from PIL import Image

    values = np.asarray(image, np.float64)
    values = (values - values.min()) / (np.ptp(values) or 1.0)
    return Image.fromarray((values * 255).round().astype(np.uint8))

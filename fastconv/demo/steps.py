"""What the demo convolves: each step is one call of a public function."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastconv

from . import filters
from .lens import Lens

__all__ = ["Corrected", "Step", "Undistortion", "make_steps"]

BARREL = -0.22  # k1: lines near the edge bow by a tenth of the picture
KERNEL = 3  # taps an axis of the deformable convolution
REQUIRED_IMPROVEMENT = 3.0  # the distortion counts as undone if its error falls at least by this factor


@dataclass(frozen=True)
class Step:
    """One convolution.

    Attributes
    ----------
    variant, title : str
        Which kind of convolution, and what it does to the picture.
    op : str
        Name of the public function.
    arrays : dict of str to numpy.ndarray
        Its array arguments.
    options : dict
        Its other arguments.
    """

    variant: str
    title: str
    op: str
    arrays: dict[str, np.ndarray] = field(repr=False)
    options: dict[str, Any]

    def run(self, backend: str) -> np.ndarray:
        """Return the result, without the batch axis."""
        return getattr(fastconv, self.op)(**self.arrays, **self.options, backend=backend)[0]

    def reference(self) -> np.ndarray:
        """Return the oracle's result in float64."""
        exact = {name: array.astype(np.float64) for name, array in self.arrays.items()}
        return getattr(fastconv, self.op)(**exact, **self.options, backend="numpy")[0]

    def kernel(self, backend: str) -> str:
        """Return the name of the kernel that a backend runs it with."""
        return fastconv.explain(self.op, **self.arrays, **self.options, backend=backend).kernel


def make_steps(photo: np.ndarray, undistortion: "Undistortion") -> dict[str, Step]:
    """Return the steps of the demo by name, in the order in which they are shown."""
    blur, sharpen, sobel = filters.gaussian(9, 2.0), filters.SHARPEN, filters.SOBEL
    return {
        "blur": _conv("standard", "blur 9x9", photo, filters.same_on_each(blur)),
        "sharpen": _conv("standard", "sharpen 3x3", photo, filters.same_on_each(sharpen)),
        "edges": _conv("standard", "edges 3x3", photo, filters.luma(*sobel)),
        "depthwise blur": _conv("depthwise", "blur 9x9", photo, filters.per_channel(blur), groups=3),
        "depthwise sharpen": _conv("depthwise", "sharpen 3x3", photo, filters.per_channel(sharpen), groups=3),
        "depthwise edges": _conv("depthwise", "edges 3x3", photo, filters.per_channel(*sobel), groups=3),
        "dilation 1": _conv("dilated", "edges, dilation 1", photo, filters.luma(*sobel), dilation=1),
        "dilation 2": _conv("dilated", "edges, dilation 2", photo, filters.luma(*sobel), dilation=2),
        "dilation 4": _conv("dilated", "edges, dilation 4", photo, filters.luma(*sobel), dilation=4),
        "enlarge": _enlarge(photo),
        "undistort": undistortion.step(),
    }


def _conv(variant: str, title: str, photo: np.ndarray, weight: np.ndarray, **options: Any) -> Step:
    options = {"padding": "same", "padding_mode": "replicate", **options}
    return Step(variant, title, "conv2d", {"input": photo[None], "weight": weight}, options)


def _enlarge(photo: np.ndarray) -> Step:
    # One replicated pixel around the picture, cut off again by the padding, keeps its border from darkening.
    around = np.pad(photo, ((0, 0), (1, 1), (1, 1)), mode="edge")[None]
    weight = filters.per_channel(filters.bilinear(2))
    return Step(
        "transposed",
        "2x enlargement",
        "conv_transpose2d",
        {"input": around, "weight": weight},
        {"stride": 2, "padding": 3, "groups": 3},
    )


@dataclass(frozen=True)
class Corrected:
    """A picture set right, and how far it and the distorted one are from the original.

    Attributes
    ----------
    picture : numpy.ndarray, shape (3, H, W)
    before, after : float
        Root mean square error, on the scale of 0 (black) to 1 (white).
    """

    picture: np.ndarray
    before: float
    after: float

    @property
    def improvement(self) -> float:
        return self.before / max(self.after, float(np.finfo(np.float32).tiny))

    @property
    def succeeded(self) -> bool:
        return self.improvement >= REQUIRED_IMPROVEMENT


@dataclass(frozen=True)
class Undistortion:
    """A photograph taken through a bad lens, and a deformable convolution that undoes it.

    Attributes
    ----------
    lens : Lens
    original, distorted : numpy.ndarray, shape (3, H, W)
    compared : numpy.ndarray of bool, shape (H, W)
        Where errors are counted: the pixels that can be restored, less those that the lens left black, which
        would make the distorted picture look worse than it is.
    """

    lens: Lens
    original: np.ndarray = field(repr=False)
    distorted: np.ndarray = field(repr=False)
    compared: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, photo: np.ndarray, k1: float = BARREL) -> "Undistortion":
        """Distort a photograph."""
        lens = Lens(height=photo.shape[1], width=photo.shape[2], k1=k1)
        return cls(lens, photo, lens.take(photo), lens.shown() & lens.restorable())

    def step(self) -> Step:
        """Return the deformable convolution that sets the distorted photograph right."""
        return self.applied_to(self.distorted)

    def applied_to(self, picture: np.ndarray) -> Step:
        """Return the same deformable convolution of any picture (C, H, W) of that size.

        Its weight is the identity kernel on each channel; all it does lies in the offsets.
        """
        weight = np.tile(filters.identity(KERNEL), (len(picture), 1, 1, 1))
        arrays = {"input": picture[None], "offset": self.lens.offsets(KERNEL), "weight": weight}
        return Step("deformable", "undo barrel distortion", "deform_conv2d", arrays, {"padding": KERNEL // 2})

    def judge(self, picture: np.ndarray) -> Corrected:
        """Return the corrected picture with its error and that of the distorted one."""
        return Corrected(picture, self._error(self.distorted), self._error(picture))

    def _error(self, picture: np.ndarray) -> float:
        difference = (picture.astype(np.float64) - self.original)[:, self.compared]
        return float(np.sqrt(np.mean(difference**2)))

r"""A lens that bends straight lines outwards (barrel distortion), and the way back.

A lens images the ray that belongs at radius r_u at the radius

    r_d = r_u (1 + k1 r_u^2),    k1 < 0: barrel,

measured from the centre of the picture in units of half its diagonal (Brown, "Decentering distortion of
lenses", 1966, first radial term). With P the undistorted and D the distorted picture, D(distort(p)) = P(p):

- the picture a lens would take is D(q) = P(undistort(q)), and
- the picture is set right by R(p) = D(distort(p)): a deformable convolution with offsets distort(p) - p.

The way back is the smallest root of the cubic k1 r^3 + r = r_d. Put r = a sin(t) with a = 2/sqrt(-3 k1); then
r + k1 r^3 = (a/3)(3 sin(t) - 4 sin(t)^3) = (a/3) sin(3t), hence r_u = a sin(arcsin(3 r_d / a) / 3), exactly.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Lens"]


@dataclass(frozen=True)
class Lens:
    """A barrel distortion of pictures of one size.

    Attributes
    ----------
    height, width : int
        Size of the picture, in pixels.
    k1 : float
        Strength, between -1/3 and 0, the limits excluded: the radius at the corners shrinks by 1 + k1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.demo import Lens
    >>> lens = Lens(101, 101, k1=-0.2)
    >>> corner = np.array([0.0, 0.0])
    >>> lens.distort(corner)
    array([10., 10.])
    >>> np.allclose(lens.undistort(lens.distort(corner)), corner)
    True
    """

    height: int
    width: int
    k1: float

    def __post_init__(self) -> None:
        if not -1 / 3 < self.k1 < 0:  # beyond, the corners would fold back inwards
            raise ValueError(f"k1 must lie between -1/3 and 0, got {self.k1}")

    def distort(self, points: np.ndarray) -> np.ndarray:
        """Return where the lens images `points`, an array (2, ...) of rows and columns in pixels."""
        centred, radius = self._polar(points)
        return self._pixels(centred * (1 + self.k1 * radius**2))

    def undistort(self, points: np.ndarray) -> np.ndarray:
        """Return what the lens images at `points`, the inverse of :meth:`distort`; NaN where nothing is."""
        centred, radius = self._polar(points)
        a = 2 / np.sqrt(-3 * self.k1)
        with np.errstate(invalid="ignore"):
            original = a * np.sin(np.arcsin(3 * radius / a) / 3)
        return self._pixels(centred * np.divide(original, radius, out=np.ones_like(radius), where=radius > 0))

    def pixels(self) -> np.ndarray:
        """Return the rows and columns of all pixels, shape (2, H, W)."""
        return np.stack(np.meshgrid(np.arange(self.height), np.arange(self.width), indexing="ij")).astype(
            np.float64
        )

    def offsets(self, kernel: int) -> np.ndarray:
        """Return the offsets with which a deformable convolution sees the undistorted picture.

        Parameters
        ----------
        kernel : int
            Odd size of the kernel, used with padding ``kernel // 2``.

        Returns
        -------
        numpy.ndarray of float32, shape (1, 2*kernel*kernel, H, W)
            For the tap that an ordinary convolution reads at p + t: distort(p + t) - (p + t). So any kernel,
            not only the identity, is applied as if to the undistorted picture.
        """
        reach = kernel // 2
        taps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
        regular = self.pixels()[:, None] + taps[:, :, None, None]  # (2, taps, H, W)
        offsets = self.distort(regular) - regular
        return np.moveaxis(offsets, 0, 1).reshape(1, -1, self.height, self.width).astype(np.float32)

    def take(self, picture: np.ndarray) -> np.ndarray:
        """Return the picture (C, H, W) as the lens would take it: D(q) = P(undistort(q)), black outside P.

        Interpolated by cubic splines with SciPy, so that what undoes the distortion shares no code with what
        made it.
        """
        from scipy.ndimage import map_coordinates

        source = self.undistort(self.pixels())
        seen = self._inside(source)
        source = np.where(seen, source, 0.0)
        channels = [
            map_coordinates(channel, source, order=3, mode="mirror") for channel in picture.astype(np.float64)
        ]
        return (np.clip(np.stack(channels), 0, 1) * seen).astype(np.float32)

    def shown(self) -> np.ndarray:
        """Return which pixels (H, W) of the picture the lens takes show anything of the original."""
        return self._inside(self.undistort(self.pixels()))

    def restorable(self) -> np.ndarray:
        """Return which pixels (H, W) can be restored: the four pixels read for each show something."""
        from scipy.ndimage import map_coordinates

        return (
            map_coordinates(self.shown().astype(np.float64), self.distort(self.pixels()), order=1) > 1 - 1e-9
        )

    def _inside(self, points: np.ndarray) -> np.ndarray:
        limits = np.array([self.height, self.width]).reshape(2, 1, 1) - 1
        with np.errstate(invalid="ignore"):
            return np.all((points >= 0) & (points <= limits), axis=0)

    def _centre(self, like: np.ndarray) -> np.ndarray:
        return np.array([(self.height - 1) / 2, (self.width - 1) / 2]).reshape(2, *(1,) * (like.ndim - 1))

    def _unit(self) -> float:
        return float(np.hypot(self.height - 1, self.width - 1)) / 2

    def _polar(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centred = (points - self._centre(points)) / self._unit()
        return centred, np.hypot(*centred)

    def _pixels(self, centred: np.ndarray) -> np.ndarray:
        return centred * self._unit() + self._centre(centred)

"""Two images found again from what convolutions made of them, by SciPy's solvers on the fast kernels.

    python examples/inverse.py                       # the portrait that matplotlib ships -> inverse.png
    python examples/inverse.py mine.jpg --noise 0.01

A photograph is blurred, noise is added, and the image whose blur fits best is sought: least squares with a penalty
(lsqr). Then only the results of a few strided convolutions are kept, and the image that has them is sought (cg).
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg, lsqr

import fastconv
from fastconv.demo.photo import load_photo

RADIUS = 6  # of the blur, in pixels
SPREAD = 2.0  # its standard deviation
KERNELS = 14  # more than the 12 numbers that 2 x 2 pixels of three channels hold
PENALTY = 1e-6
DAMPING = 10  # times the noise


def blur(shape: tuple[int, ...]) -> LinearOperator:
    """Return the operator that blurs each channel of an image."""
    bell = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SPREAD**2))
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    weight = np.broadcast_to(kernel, (shape[0], 1, *kernel.shape))
    return fastconv.linear_operator(
        "conv2d", shape, weight, padding=RADIUS, groups=shape[0], padding_mode="symmetric"
    )


def deblurred(A: LinearOperator, y: np.ndarray, noise: float, iterations: int) -> np.ndarray:
    """Return the image x with the least |A x - y|^2 + d^2 |x|^2; d follows the noise."""
    return lsqr(A, y, damp=DAMPING * noise, iter_lim=iterations)[0]


def features(shape: tuple[int, ...], seed: int = 0) -> LinearOperator:
    """Return the operator of a strided convolution with random kernels."""
    weight = np.random.default_rng(seed).standard_normal((KERNELS, shape[0], 3, 3)) / 5
    return fastconv.linear_operator("conv2d", shape, weight, stride=2, padding=1)


def inverted(A: LinearOperator, y: np.ndarray, iterations: int) -> np.ndarray:
    """Return the solution of (A^T A + penalty) x = A^T y, by conjugate gradients."""
    normal = LinearOperator(
        (A.shape[1],) * 2, matvec=lambda x: A.rmatvec(A.matvec(x)) + PENALTY * x, dtype=A.dtype
    )
    return cg(normal, A.rmatvec(y), rtol=1e-8, maxiter=iterations)[0]


def save(path: Path, images: dict[str, np.ndarray], right: np.ndarray) -> None:
    """Draw the images beside each other, each with its error."""
    from matplotlib.figure import Figure

    figure = Figure((3 * len(images), 3.6), layout="constrained")
    for ax, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        ax.imshow(np.clip(np.moveaxis(image, 0, -1), 0, 1))
        ax.set_title(f"{name}\nmean error {error(image, right):.4f}", fontsize=9)
        ax.axis("off")
    figure.savefig(path, dpi=150)


def error(image: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(image - right).mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "photo", nargs="?", help="any picture; the portrait that matplotlib ships if not given"
    )
    parser.add_argument(
        "--noise", type=float, default=0.002, help="its standard deviation; pixels are 0 to 1"
    )
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--size", type=int, help="take only so many pixels on a side, from the middle")
    parser.add_argument("--figure", type=Path, default=Path("inverse.png"), help="where to save the picture")
    given = parser.parse_args(arguments)

    photo = load_photo(given.photo).astype(np.float64)
    if given.size:
        top, left = ((n - given.size) // 2 for n in photo.shape[1:])
        photo = photo[:, top : top + given.size, left : left + given.size]

    A = blur(photo.shape)
    noise = given.noise * np.random.default_rng(1).standard_normal(A.shape[0])
    blurred = A.matvec(photo.ravel()) + noise
    sharp = deblurred(A, blurred, given.noise, given.iterations)

    B = features(photo.shape)
    again = inverted(B, B.matvec(photo.ravel()), given.iterations)

    found = {"blurred": blurred, "found from it": sharp, "found from features": again}
    images = {"photograph": photo} | {name: image.reshape(photo.shape) for name, image in found.items()}
    for name, image in images.items():
        print(f"{name:<20} mean error {error(image, photo):.5f}")
    save(given.figure, images, photo)
    print(f"saved {given.figure}")


if __name__ == "__main__":
    main()

"""Weights with a known meaning: one kernel each, and how kernels become the weight of a convolution of RGB.

References
----------
Gonzalez and Woods, "Digital image processing", chapters 3 and 10 (Gaussian, Laplacian sharpening, Sobel).
Long, Shelhamer and Darrell, "Fully convolutional networks", 2015 (bilinear enlargement, section 3.3).
"""

import numpy as np

__all__ = ["SHARPEN", "SOBEL", "bilinear", "gaussian", "identity", "luma", "per_channel", "same_on_each"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

SHARPEN = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32)

# The derivatives along W and along H, in brightness per pixel.
SOBEL = np.array(
    [
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    ],
    np.float32,
) / np.float32(8)


def gaussian(size: int, sigma: float) -> np.ndarray:
    """Return the (size, size) kernel of a Gaussian blur; it sums to 1."""
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    kernel = np.outer(line, line)
    return (kernel / kernel.sum()).astype(np.float32)


def identity(size: int) -> np.ndarray:
    """Return the (size, size) kernel, of odd size, that changes nothing."""
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2, size // 2] = 1
    return kernel


def bilinear(factor: int) -> np.ndarray:
    """Return the (2*factor, 2*factor) kernel that interpolates linearly when transposed with stride `factor`.

    `factor` is even. Each output pixel is reached by two taps an axis, whose weights are one minus the
    distance, in input pixels, to the input pixel that spreads them.
    """
    line = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    return np.outer(line, line).astype(np.float32)


def same_on_each(kernel: np.ndarray) -> np.ndarray:
    """Return the weight (3, 3, KH, KW) of a standard convolution: the kernel on each of R, G and B."""
    return np.einsum("oc,ij->ocij", np.eye(3, dtype=np.float32), kernel)


def per_channel(*kernels: np.ndarray) -> np.ndarray:
    """Return the depthwise weight (3*len(kernels), 1, KH, KW), groups=3: every kernel on each of R, G, B."""
    return np.ascontiguousarray(np.tile(np.stack(kernels), (3, 1, 1))[:, None])


def luma(*kernels: np.ndarray) -> np.ndarray:
    """Return the weight (len(kernels), 3, KH, KW) of a standard convolution: kernels on the brightness."""
    return np.einsum("oij,c->ocij", np.stack(kernels), LUMA)

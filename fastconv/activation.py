"""The activations that can be fused into a convolution, as the formulas they are."""

from collections.abc import Callable

import numpy as np

__all__ = ["apply"]


def apply(activation: str | Callable | None, values: np.ndarray) -> np.ndarray:
    """Return the activation of each value; a NaN stays a NaN.

    Parameters
    ----------
    activation : str, callable or None
        A name of ``fastconv.problem.ACTIVATIONS`` or a function of one number.
    values : numpy.ndarray of floats
    """
    if activation is None:
        return values
    if callable(activation):
        return np.vectorize(activation, otypes=[values.dtype])(values)
    return _FORMULAS[activation](values)


def _relu(v: np.ndarray) -> np.ndarray:
    return np.maximum(v, 0)


def _relu6(v: np.ndarray) -> np.ndarray:
    return np.clip(v, 0, 6)


def _silu(v: np.ndarray) -> np.ndarray:
    """v * sigmoid(v): Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units", 2017."""
    from scipy.special import expit

    return v * expit(v)


def _gelu(v: np.ndarray) -> np.ndarray:
    """v * Phi(v) in its exact form: Hendrycks and Gimpel, "Gaussian error linear units", 2016."""
    from scipy.special import ndtr

    return v * ndtr(v)


def _hardswish(v: np.ndarray) -> np.ndarray:
    """v * clip(v + 3, 0, 6) / 6: Howard et al., "Searching for MobileNetV3", 2019."""
    return v * np.clip(v + 3, 0, 6) / 6


_FORMULAS = {"relu": _relu, "relu6": _relu6, "silu": _silu, "gelu": _gelu, "hardswish": _hardswish}

"""Stacks to begin with."""

from typing import Any

__all__ = ["PRESETS"]

CONV = {"op": "conv", "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "channels": 8, "groups": 1}


def _stack(size: int, *layers: dict[str, Any]) -> dict[str, Any]:
    return {"input_size": [size, size], "channels": 3, "layers": [CONV | layer for layer in layers]}


def _dilated(*rates: int) -> list[dict[str, Any]]:
    return [{"dilation": rate, "padding": rate} for rate in rates]


PRESETS: dict[str, dict[str, Any]] = {
    "three 3x3": _stack(32, {}, {}, {}),
    "dilated 1, 2, 4": _stack(32, *_dilated(1, 2, 4)),
    "gridding: dilated 2, 2, 2": _stack(32, *_dilated(2, 2, 2)),
    "strides and pooling": _stack(
        48, {"kernel": 7, "stride": 2, "padding": 3}, {"op": "pool", "stride": 2}, {}, {}
    ),
    "down and up": _stack(
        32,
        {"stride": 2, "channels": 16},
        {"channels": 16},
        {"op": "conv_transpose", "kernel": 4, "stride": 2},
    ),
    "depthwise separable": _stack(
        32, {"channels": 16}, {"channels": 16, "groups": 16}, {"kernel": 1, "padding": 0, "channels": 32}
    ),
    "deformable, random": _stack(32, *[{"op": "deform random", "amount": 1.0}] * 3),
    "deformable, rotating": _stack(
        32, *[{"op": "deform rotating", "amount": 1.0, **d} for d in _dilated(2, 2, 2)]
    ),
}

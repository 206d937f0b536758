"""From a stack as the page holds it to what the page shows: plain numbers and texts, ready for JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..analysis import Cost, ReceptiveField, affine_offset, cost, receptive_field
from ..analysis.layers import joined

__all__ = ["StackError", "view"]

OPS = ("conv", "conv_transpose", "pool", "deform random", "deform rotating")
# A page has to answer at once, and strangers' numbers must not fill the memory.
LIMITS = {
    "kernel": (1, 31),
    "stride": (1, 16),
    "padding": (0, 64),
    "dilation": (1, 64),
    "channels": (1, 4096),
    "groups": (1, 4096),
}
MOST_LAYERS = 12
LARGEST_SIDE = 256
LARGEST_OUTPUT = 1024
MOST_POINTS = 7000  # more could not be told apart
MOST_OFFSETS = 2_000_000
LARGEST_AMOUNT = 20.0


class StackError(ValueError):
    """The stack cannot be shown; the message is meant for the user."""


def view(stack: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows for a stack and an output pixel.

    Parameters
    ----------
    stack : dict
        `input_size` (two numbers), `channels`, `layers` (each with `op`, `kernel`, `stride`, `padding`, `dilation`,
        `channels`, `groups`, and `amount` for deformable ones) and `at`, the output pixel (the middle one if absent
        or outside).

    Returns
    -------
    dict
        `at`, `sizes`, `rows` (the table), `summary`, `box` (where the field begins and how large it is), `ways` (of
        each of its pixels, as a share of the most), `points` (of deformable stacks, else None) and `count`.

    Raises
    ------
    StackError
        If something does not fit, or would take too long.

    Examples
    --------
    >>> from fastconv.explore import PRESETS, view
    >>> shown = view(PRESETS["gridding: dilated 2, 2, 2"])
    >>> shown["at"], shown["box"], shown["count"]
    ([16, 16], [10, 10, 13, 13], 49)
    """
    if not isinstance(stack, Mapping):
        raise StackError("the stack must be an object with input_size, channels and layers")
    plain = {name: value for name, value in stack.items() if name != "at"}
    try:
        field, rows = _analysed(json.dumps(plain, sort_keys=True))
        at = _output_pixel(stack.get("at"), field)
        box, start = field.paths(at)
        points = _points(field, at)
    except (ValueError, TypeError, MemoryError) as error:
        raise StackError(str(error)) from None
    most = float(box.max(initial=0)) or 1.0
    count = int(np.count_nonzero(box))
    missed = box.size - count
    return {
        "at": list(at),
        "sizes": [list(size) for size in field.sizes or ()],
        "rows": rows,
        "box": [*start, *box.shape],
        "ways": [round(float(ways), 4) for ways in (box / most).ravel()],
        "points": points,
        "count": count,
        "summary": (
            f"field {joined(field.size)}, stride {joined(field.stride)}; output pixel ({at[0]}, {at[1]}) depends on "
            f"{count} pixels" + (f" and misses {missed} between them" if missed else "")
        ),
    }


@lru_cache(maxsize=32)
def _analysed(text: str) -> tuple[ReceptiveField, list[dict[str, Any]]]:
    """Return the field of a stack, and the table of its layers: what does not depend on the output pixel."""
    stack = json.loads(text)
    size = tuple(_number("input_size", n, 1, LARGEST_SIDE) for n in _pair(stack.get("input_size")))
    channels = _number("channels", stack.get("channels"), *LIMITS["channels"])
    given = stack.get("layers")
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_LAYERS:
        raise StackError(f"there must be 1 to {MOST_LAYERS} layers")
    layers: list[dict[str, Any]] = []
    costs: list[Cost | None] = []
    for index, layer in enumerate(given):
        made, price, channels, size = _layer(index, layer, channels, size)
        layers.append(made)
        costs.append(price)
    field = receptive_field(layers, input_size=tuple(stack["input_size"]), ndim=2)
    return field, _rows(field, given, costs)


def _layer(
    index: int, given: Any, channels: int, size: tuple[int, ...]
) -> tuple[dict[str, Any], Cost | None, int, tuple[int, ...]]:
    """Return a layer for :func:`fastconv.receptive_field`, its cost, and the channels and size that it makes."""
    if not isinstance(given, dict) or given.get("op") not in OPS:
        raise StackError(f"layer {index + 1} must have an op out of {', '.join(OPS)}")
    numbers = {
        name: _number(f"{name} of layer {index + 1}", given.get(name), *limits)
        for name, limits in LIMITS.items()
    }
    out_channels, groups = numbers.pop("channels"), numbers.pop("groups")
    kernel, op = numbers["kernel"], given["op"].split()[0]
    layer: dict[str, Any] = {**numbers, "op": {"deform": "deform_conv"}.get(op, op)}
    plain = layer | {"op": "conv"} if op == "deform" else layer
    out = receptive_field([plain], input_size=size, ndim=2).output_size
    assert out is not None
    if max(out) > LARGEST_OUTPUT:
        raise StackError(
            f"layer {index + 1} makes {joined(out)} pixels; at most {LARGEST_OUTPUT} a side can be shown"
        )
    if op == "pool":
        return layer, None, channels, out
    if channels % groups or out_channels % groups:
        raise StackError(
            f"groups={groups} of layer {index + 1} must divide its {channels} input and {out_channels} output channels"
        )
    options: dict[str, Any] = {name: value for name, value in numbers.items() if name != "kernel"}
    if op == "deform":
        layer["offset"] = _offset(index, given, kernel, numbers["dilation"], out)
        options["offset"] = layer["offset"]
    else:
        options["groups"] = groups
    pair = (
        (channels, out_channels // groups) if op == "conv_transpose" else (out_channels, channels // groups)
    )
    price = cost(f"{layer['op']}2d", (channels, *size), (*pair, kernel, kernel), bias=True, **options)
    return layer, price, out_channels, out


def _offset(
    index: int, given: Mapping[str, Any], kernel: int, dilation: int, out: tuple[int, ...]
) -> np.ndarray:
    """Return displacements: random ones, or a grid that turns further the further right it lies."""
    amount = given.get("amount", 1.0)
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not abs(amount) <= LARGEST_AMOUNT:
        raise StackError(
            f"amount of layer {index + 1} must be a number from {-LARGEST_AMOUNT} to {LARGEST_AMOUNT}"
        )
    if 2 * kernel * kernel * math.prod(out) > MOST_OFFSETS:
        raise StackError(f"layer {index + 1} would have more than {MOST_OFFSETS:,} displacements")
    if given["op"] == "deform random":
        return amount * np.random.default_rng(index).standard_normal((2 * kernel * kernel, *out))
    turns = amount * np.pi * np.arange(out[1]) / max(out[1] - 1, 1)
    matrices = np.array([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])
    row = affine_offset(kernel, lambda pixel: matrices[:, :, pixel[1]], (1, out[1]), dilation=dilation)
    return np.broadcast_to(row, (len(row), *out))


def _rows(
    field: ReceptiveField, given: Sequence[Mapping[str, Any]], costs: Sequence[Cost | None]
) -> list[dict]:
    """Return the rows of the table: one a layer, and their sum."""
    assert field.sizes is not None
    rows = []
    for index, (layer, price) in enumerate(zip(given, costs, strict=True)):
        stride = ReceptiveField(field.layers[: index + 1], None).stride
        rows.append(
            {
                "layer": f"{index + 1} {layer['op']}",
                "output": joined(field.sizes[index + 1]),
                "field": joined(field.growth[index]),
                "stride": joined(stride),
                **_price(price),
            }
        )
    paid = [price for price in costs if price is not None]
    total = sum(paid[1:], start=paid[0]) if paid else None
    rows.append({"layer": "together", "output": "", "field": "", "stride": "", **_price(total)})
    return rows


def _price(price: Cost | None) -> dict[str, str]:
    if price is None:
        return dict.fromkeys(("parameters", "multiply-adds", "on the image", "bytes", "FLOP/byte"), "")
    return {
        "parameters": f"{price.parameters:,}",
        "multiply-adds": f"{price.macs:,}",
        "on the image": f"{price.macs_inside / max(price.macs, 1):.1%}",
        "bytes": f"{price.bytes:,}",
        "FLOP/byte": f"{price.intensity:.3g}",
    }


def _points(field: ReceptiveField, at: tuple[int, ...]) -> list | None:
    """Return the points that a deformable stack samples, rounded; None where there are too many, or it is plain."""
    if all(layer.op != "deform_conv" for layer in field.layers):
        return None
    count = math.prod(math.prod(layer.kernel) for layer in field.layers)
    if count > MOST_POINTS or any(layer.op == "conv_transpose" for layer in field.layers):
        return None
    return np.round(field.points(at), 2).tolist()


def _output_pixel(value: Any, field: ReceptiveField) -> tuple[int, ...]:
    """Return the output pixel asked for, moved into the output where it has become smaller."""
    size = field.output_size
    assert size is not None
    if value is None:
        return tuple(n // 2 for n in size)
    return tuple(
        min(_number("at", q, 0, LARGEST_OUTPUT), n - 1) for q, n in zip(_pair(value), size, strict=True)
    )


def _pair(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise StackError(f"input_size and at must be two numbers, got {value!r}")
    return value


def _number(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise StackError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value

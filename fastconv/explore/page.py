"""The page in one piece: it loads nothing, and without a server shows the views that it was given."""

import json
from collections.abc import Mapping
from importlib import resources
from itertools import product
from typing import Any

from .presets import PRESETS
from .view import StackError, view

__all__ = ["page"]

MOST_NUMBERS = 1_000_000  # about five megabytes


def page(stack: Mapping[str, Any] | None = None) -> str:
    """Return the explorer's page.

    Parameters
    ----------
    stack : dict, optional
        As for :func:`fastconv.explore.view`. The page then holds the views of all output pixels of this stack and
        needs no server; its layers cannot be edited. Without it the page asks the server it came from.

    Raises
    ------
    StackError
        If the stack cannot be shown, or its views would make too large a page.

    Examples
    --------
    >>> from fastconv.explore import PRESETS, page
    >>> text = page(PRESETS["three 3x3"])
    >>> text.startswith("<!doctype html>"), "http:" in text.replace("http://www.w3.org", "")
    (True, False)
    """
    data: dict[str, Any] = {"presets": PRESETS}
    if stack is not None:
        data |= {
            "stack": {name: value for name, value in stack.items() if name != "at"},
            "views": _views(stack),
        }
    folder = resources.files(__package__)
    text = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js"):
        text = text.replace(f"/* {name} */", folder.joinpath(name).read_text(encoding="utf-8"))
    # "</" would end the script.
    return text.replace("/* data */ null", json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))


def _views(stack: Mapping[str, Any]) -> dict[str, Any]:
    """Return the views of all output pixels; what they share is in the first alone."""
    first = view(stack)
    height, width = first["sizes"][-1]
    numbers = len(first["ways"]) + 2 * len(first["points"] or ())
    if numbers * height * width > MOST_NUMBERS:
        raise StackError(
            f"a page with all {height} x {width} output pixels would hold {numbers * height * width:,} numbers, more "
            f"than {MOST_NUMBERS:,}: take a smaller input"
        )
    shared = {"sizes", "rows"}
    views = {
        f"{y},{x}": {n: v for n, v in view({**stack, "at": [y, x]}).items() if n not in shared}
        for y, x in product(range(height), range(width))
    }
    return {"shared": {name: first[name] for name in shared}, "first": first["at"], "at": views}

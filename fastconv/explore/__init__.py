"""The receptive-field explorer: ``python -m fastconv explore``.

One page for the browser: edit a stack of layers, move the output pixel, and see what it depends on, what the layers
cost and how large their results are. The page only draws; everything is computed by :mod:`fastconv.analysis`, on a
server that this machine alone can reach, or beforehand for a page that needs none::

    view.py     a stack as the page holds it -> what the page shows
    presets.py  stacks to begin with
    server.py   the page, and views for it, on 127.0.0.1
    page.py     the page in one piece, with its views for one stack or without
"""

from .page import page
from .presets import PRESETS
from .server import make_server
from .view import StackError, view

__all__ = ["PRESETS", "StackError", "make_server", "page", "view"]

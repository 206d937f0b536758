"""Docstrings for the site: the roles of Sphinx as links, names of arguments as code."""

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r":(?:func|class|meth|mod):`~?\.?([\w.]+)`")


class Roles(Extension):
    """Turns ``:func:`name``` into a link to what the site has of that name."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = ROLE.sub(lambda role: f"`{role[1]}`", obj.docstring.value)

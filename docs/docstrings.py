"""Docstrings for the site: what reads well in Python, made to read well as Markdown too."""

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r":(?:func|class|meth|mod|data):`~?\.?([\w.]+)`")
LITERAL = re.compile(r"(``.*?``|`.*?`)")
TYPED = re.compile(r"[\w*, ]+ : ")  # the first line of a parameter: its type is shown as code anyway
RESULTS = ("Returns", "Yields", "Raises")  # whose types have no name before them
RULE = re.compile(r"=+( +=+)+")  # above and below a table


class Docstrings(Extension):
    """Shows the roles of Sphinx as code, and stars as stars: they multiply."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring whose prose is Markdown; examples, types and tables stay as they are."""
    given, lines = text.splitlines(), []
    example = table = False
    section = ""
    for line, below in zip(given, [*given[1:], ""], strict=True):
        section = line if below.startswith("---") else section
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if RULE.fullmatch(line) and not table:
            lines.append("```text")
            table = True
        elif table and not line.strip():
            lines.append("```")
            table = False
        typed = TYPED.match(line) or (section in RESULTS and not line.startswith(" "))
        if not (table and RULE.fullmatch(line)):
            lines.append(line if example or table or typed else as_prose(line))
    return "\n".join(lines)


def as_prose(line: str) -> str:
    """Return a line with its roles as code and its stars escaped."""
    line = ROLE.sub(r"`\1`", line)
    parts = LITERAL.split(line)
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "".join(parts)

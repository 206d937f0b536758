"""Runs the Python of each page while the site is built, and shows under it what it printed and drew.

The blocks of a page share one namespace, from top to bottom. A block that draws begins with a line
``# picture: what it shows``; each figure that is open after it becomes an image. A page whose front matter says
``needs: NAME`` is shown without results where that module is not installed. The tests run the same blocks.
"""

import contextlib
import importlib.util
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"# picture: (.*)\n")
REMOTE = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
DOTS_PER_INCH = 110
EXPLORED = [18, 18]  # pixels: the exported page holds the view of each

log = logging.getLogger("mkdocs.hooks.pages")


def missing(meta: Mapping[str, Any]) -> list[str]:
    """Return the modules that a page needs and that are not installed."""
    return [name for name in str(meta.get("needs", "")).split() if importlib.util.find_spec(name) is None]


def results(markdown: str, name: str) -> Iterator[tuple[re.Match, str, list[bytes]]]:
    """Run the blocks of a page; yield each with what it printed and the pictures that it drew."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    namespace: dict[str, Any] = {"__name__": name}
    for block in BLOCK.finditer(markdown):
        printed = io.StringIO()
        line = markdown.count("\n", 0, block.start()) + 1
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block[1], name, "exec"), namespace)
        pictures = []
        for number in pyplot.get_fignums():
            file = io.BytesIO()
            pyplot.figure(number).savefig(file, format="png", dpi=DOTS_PER_INCH)
            pictures.append(file.getvalue())
        pyplot.close("all")
        if bool(pictures) != bool(PICTURE.match(block[1])):
            raise ValueError(
                f"{name}: a block must begin with '# picture:' where it draws, and only there:\n{block[1]}"
            )
        yield block, printed.getvalue(), pictures


def on_files(files: Any, *, config: Any) -> Any:
    """Add the exported page of the explorer."""
    from mkdocs.structure.files import File

    from fastconv.explore import PRESETS, page

    content = page({**PRESETS["dilated 1, 2, 4"], "input_size": EXPLORED})
    files.append(File.generated(config, "explorer-dilated.html", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with the results of its blocks in it."""
    if not BLOCK.search(markdown):
        return markdown
    if absent := missing(page.meta):
        log.info("%s is shown without results: %s is not installed", page.file.src_uri, ", ".join(absent))
        return markdown
    from mkdocs.structure.files import File

    parts, end = [], 0
    stem = page.file.src_uri.removesuffix(".md")
    for count, (block, printed, pictures) in enumerate(results(markdown, page.file.src_uri)):
        label = PICTURE.match(block[1])
        code = block[1][label.end() :] if label else block[1]
        parts += [markdown[end : block.start()], f"```python\n{code}```\n"]
        end = block.end()
        if printed:
            parts.append(f'\n<div class="output" markdown>\n\n```text\n{printed.rstrip()}\n```\n\n</div>\n')
        for index, content in enumerate(pictures):
            uri = f"{stem}-{count}-{index}.png"
            files.append(File.generated(config, uri, content=content))
            name = uri.rpartition("/")[2]
            parts.append(f"\n![{label[1] if label else ''}]({name}){{.figure}}\n")
    return "".join([*parts, markdown[end:]])


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    found = REMOTE.search(output)
    if found:
        raise ValueError(f"{page.file.src_uri} is not complete without the net: {found[0]}")
    return output

"""What the documents say exists and runs: paths, links, names, commands, examples, pages, doctests, docstrings."""

import doctest
import importlib.util
import inspect
import pkgutil
import re
import tomllib
import unicodedata
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "pages"
PAGES = sorted(str(path.relative_to(ROOT)) for path in SITE.rglob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *PAGES)
SYMBOLS = {"N", "C", "O", "G", "D", "H", "W", "KD", "KH", "KW", "S", "P", "L", "OD", "OH", "OW", "DG"}
OPTIONAL = {"fastconv.torch": "torch", "fastconv.onnx": "onnx", "fastconv.dask": "dask"}
PATH = re.compile(r"\.?[\w.-]+(/[\w.-]*)*")
FILE_SUFFIXES = (".py", ".pyx", ".h", ".md", ".toml", ".jpg", ".png")

pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="the documents are not beside the tests"
)


def read(document):
    return (ROOT / document).read_text(encoding="utf-8")


def code_words(document):
    """Return what stands between single backticks."""
    text = re.sub(r"```.*?```", "", read(document), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", read(document), flags=re.DOTALL)


def meta(page):
    """Return the front matter of a page by name."""
    found = re.match(r"---\n(.*?)---\n", read(page), flags=re.DOTALL)
    return dict(line.split(": ", 1) for line in found[1].splitlines()) if found else {}


def script(path):
    """Import a file of docs/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modules():
    """Import and return every module of the package that can be imported here."""
    found = [fastconv]
    for info in pkgutil.walk_packages(fastconv.__path__, "fastconv.", onerror=lambda name: None):
        if info.name.endswith("__main__"):
            continue
        try:
            found.append(importlib.import_module(info.name))
        except ImportError as error:
            if (error.name or "").startswith("fastconv"):
                raise
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_exists(document):
    words = [word for word in code_words(document) if PATH.fullmatch(word)]
    paths = {
        word
        for word in words
        if "/" in word or word.endswith(FILE_SUFFIXES) or word in ("Makefile", "LICENSE")
    }
    assert paths or document in PAGES
    assert not {path for path in paths if not (ROOT / path).exists()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    folder = (ROOT / document).parent
    links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", read(document))  # pictures too
    assert not [path for path, _ in links if not (folder / path).exists()]
    for path, anchor in links:
        if anchor:
            text = unicodedata.normalize("NFKD", (folder / path).read_text(encoding="utf-8"))
            headings = re.findall(r"(?m)^#+ (.*)$", text)
            slugs = {re.sub(r"[^a-z0-9 _-]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in slugs


def test_every_page_can_be_reached():
    listed = re.findall(r"(?m)([\w/-]+\.md)$", read("docs/mkdocs.yml"))
    assert sorted(f"docs/pages/{page}" for page in listed) == PAGES


def test_every_part_of_the_package_is_on_the_map():
    named = set(code_words("CONTRIBUTING.md"))
    files = [path for folder in ("fastconv", "tests", "bench", "src") for path in (ROOT / folder).iterdir()]
    parts = {
        str(path.relative_to(ROOT)) + "/" * path.is_dir()
        for path in files
        if path.suffix in (".py", ".pyx") or path.is_dir()
    }
    parts = {
        part
        for part in parts
        if "__pycache__" not in part and not part.startswith(("tests/", "fastconv/backends"))
    }
    assert not parts - named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_name_exists(document):
    names = {name for word in code_words(document) for name in re.findall(r"\bfastconv(?:\.\w+)+", word)}
    names -= {"fastconv.backends"} if document == "CONTRIBUTING.md" else set()  # the entry-point group
    names |= set(re.findall(r"(?m)^::: (fastconv\S*)$", read(document)))
    assert names or document in PAGES
    for name in names:
        resolve(name)


def test_every_public_name_has_its_place_in_the_reference():
    shown = {name for page in PAGES for name in re.findall(r"(?m)^::: (\S+)$", read(page))}
    shown = {id(resolve(name)) for name in shown}
    assert not [name for name in fastconv.__all__ if id(getattr(fastconv, name)) not in shown]


def test_docstrings_as_markdown():
    pytest.importorskip("griffe", reason="the site is built by mkdocstrings")
    text = "See :func:`plan`: p*S, `a*b`.\n\nx : array, shape (N, G*2)\n    G*K.\n\n>>> 2 * 3\n6\n\na*b"
    expected = "See `plan`: p\\*S, `a*b`.\n\nx : array, shape (N, G*2)\n    G\\*K.\n\n>>> 2 * 3\n6\n\na\\*b"
    text += "\n\nReturns\n-------\narray, shape (A*B)\n    A*B\n\n== ===\na  b*c\n== ===\n\nend"
    expected += "\n\nReturns\n-------\narray, shape (A*B)\n    A\\*B\n\n```text\na  b*c\n```\n\nend"
    assert script(ROOT / "docs" / "docstrings.py").as_markdown(text) == expected


def has_torch():
    return importlib.util.find_spec("torch") is not None


def public_functions():
    """Name every public function, those for PyTorch too where it is installed."""
    found = [f"fastconv.{name}" for name in fastconv.__all__]
    if has_torch():
        found += [f"fastconv.torch.{name}" for name in resolve("fastconv.torch").__all__]
    return [name for name in found if inspect.isroutine(resolve(name))]


def resolve(name):
    needs = OPTIONAL.get(".".join(name.split(".")[:2]))
    if needs is not None and importlib.util.find_spec(needs) is None:
        return
    thing, parts = fastconv, name.split(".")[1:]
    for index, part in enumerate(parts):
        if not hasattr(thing, part):  # a module, which may lie under the name of a function
            path = ".".join(["fastconv", *parts[:index]])
            thing = importlib.import_module(path)
            if not hasattr(thing, part):
                importlib.import_module(f"{path}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_exists(document):
    targets = set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), flags=re.MULTILINE))
    text = "\n".join(code_words(document) + blocks(document, "sh"))
    named = set(re.findall(r"\bmake ([a-z]+)", text))
    assert named or document in PAGES
    assert named <= targets


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs(page):
    pytest.importorskip("matplotlib", reason="pages draw")
    pytest.importorskip("PIL", reason="pages show a photograph")
    hooks = script(ROOT / "docs" / "hooks.py")
    absent = hooks.missing(meta(page))
    if absent:
        pytest.skip(f"the page needs {', '.join(absent)}")
    before = {status.name for status in fastconv.backends()}
    done = list(hooks.results(read(page), page))
    assert len(done) == len(blocks(page, "python"))
    assert {status.name for status in fastconv.backends()} == before


def test_the_readme_names_every_environment_variable():
    sources = "".join(path.read_text() for path in (ROOT / "fastconv").rglob("*.py"))
    assert set(re.findall(r"FASTCONV_[A-Z_]+", sources)) == set(
        re.findall(r"FASTCONV_[A-Z_]+", read("README.md"))
    )


def test_the_readme_names_every_error():
    from fastconv import errors

    assert set(errors.__all__) <= set(code_words("README.md"))


def test_every_symbol_is_explained():
    cells = {
        cell.strip()
        for row in read("CONTRIBUTING.md").splitlines()
        if row.startswith("|")
        for cell in row.split("|")
    }
    explained = {symbol for cell in cells for symbol in cell.split(", ")}
    assert explained >= SYMBOLS


def test_the_examples_run(capsys):
    found = [code for code in blocks("README.md", "python") if has_torch() or "import torch" not in code]
    assert len(found) >= 5
    namespace = {}
    try:
        for code in found:
            exec(compile(code, "README.md", "exec"), namespace)
    finally:
        fastconv.set_default_backend(None)
    assert "weight has 12 input channels per group" in capsys.readouterr().out


def test_the_first_example_is_short():
    lines = [
        line
        for line in blocks("README.md", "python")[0].splitlines()
        if line and not line.startswith("import")
    ]
    assert len(lines) <= 10


def test_the_entry_point_group_is_the_one_looked_for():
    from fastconv.registry import ENTRY_POINT_GROUP

    (example,) = blocks("docs/pages/plugins.md", "toml")
    assert list(tomllib.loads(example)["project"]["entry-points"]) == [ENTRY_POINT_GROUP]


def test_doctests():
    attempted = 0
    for module in modules():
        if module.__name__.startswith("fastconv"):
            result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
            assert result.failed == 0, module.__name__
            attempted += result.attempted
    assert attempted > 20


def test_public_names_stay_what_they_are():
    # A submodule of the same name would replace a function as soon as it is imported.
    before = {name: getattr(fastconv, name) for name in fastconv.__all__}
    modules()
    assert {name: getattr(fastconv, name) for name in fastconv.__all__} == before
    assert not [name for name, thing in before.items() if inspect.ismodule(thing)]


@pytest.mark.parametrize("name", public_functions())
def test_docstrings_are_numpydoc(name):
    function = resolve(name)
    text = inspect.getdoc(function)
    sections = dict(re.findall(r"(?ms)^(\w+)\n-{3,}\n(.*?)(?=^\w+\n-{3,}\n|\Z)", text))
    assert "Examples" in sections
    assert ">>>" in sections["Examples"]
    named = {
        part.lstrip("*")
        for line in re.findall(r"(?m)^([\w*, ]+?)(?: :.*)?$", sections.get("Parameters", ""))
        for part in line.split(", ")
    }
    assert set(inspect.signature(function).parameters) <= named


@pytest.mark.parametrize(
    "module",
    [module for module in modules() if hasattr(module, "__all__")],
    ids=lambda module: module.__name__,
)
def test_what_a_module_lists_is_there_and_documented(module):
    assert inspect.getdoc(module)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isroutine(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), f"{module.__name__}.{name}"

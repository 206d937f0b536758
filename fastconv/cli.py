"""The command line: ``python -m fastconv info | verify | demo | explore | bench``.

Exit codes: 0 if all is well, 1 if a check failed, 2 if the command cannot be carried out as given. What the
user can mend is told in one line on stderr, without a traceback.
"""

import argparse
import fnmatch
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from . import __version__, config, registry
from .errors import BackendError, UnsupportedError
from .problem import SEPARABLE

__all__ = ["main"]

OK, FAILED, UNUSABLE = 0, 1, 2
FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
DEMO_MODULES = {"matplotlib": "matplotlib", "rich": "rich", "PIL": "pillow"}
FAILURES_SHOWN = 10
LARGEST_PORT = 65535


class UsageError(Exception):
    """The command cannot be carried out as given; the message is meant for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        The exit code.

    Examples
    --------
    >>> from fastconv.cli import main
    >>> main(["info"])  # doctest: +ELLIPSIS
    fastconv ...
    """
    arguments = _parser().parse_args(argv)
    try:
        _check_environment()
        return arguments.command(arguments)
    except (UsageError, BackendError, UnsupportedError) as error:
        print(f"fastconv: {error}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastconv", description="Convolutions for NumPy at machine speed."
    )
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    info = commands.add_parser("info", help="show version, CPU, instruction set, threads and backends")
    info.set_defaults(command=_info)

    verify = commands.add_parser("verify", help="check backends against the oracle on generated problems")
    _add_backend(verify)
    verify.add_argument("--quick", action="store_true", help="take a quarter of the problems")
    verify.add_argument(
        "--op",
        action="append",
        default=[],
        metavar="GLOB",
        help="operations to check, such as 'deform*'; repeatable (default: all)",
    )
    verify.add_argument(
        "--fuzz",
        type=int,
        metavar="N",
        help="take N small random problems, with displacements to nowhere among them",
    )
    verify.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the random problems (default: 0)"
    )
    verify.set_defaults(command=_verify)

    demo = commands.add_parser("demo", help="run every variant of convolution on a photograph")
    demo.add_argument(
        "image", nargs="?", metavar="IMAGE", help="a picture file (default: a portrait that matplotlib ships)"
    )
    demo.add_argument(
        "--output", default="demo.png", metavar="FILE", help="where the figure goes (default: demo.png)"
    )
    _add_backend(demo)
    demo.set_defaults(command=_demo)

    explore = commands.add_parser("explore", help="see what stacks of layers see, in the browser")
    explore.add_argument(
        "--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)"
    )
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.add_argument("--export", metavar="FILE", help="write a page that needs no server, and end")
    explore.add_argument(
        "--stack",
        metavar="NAME",
        help="the stack of the exported page (default: the first): its name or a JSON file",
    )
    explore.set_defaults(command=_explore)

    bench = commands.add_parser("bench", help="time layers of known networks against other libraries")
    _add_bench(bench)
    bench.set_defaults(command=_bench)
    return parser


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="a backend to run on; may be given more than once (default: all that can be used here)",
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    def several(*flags: str, metavar: str, help: str) -> None:
        parser.add_argument(*flags, action="append", default=[], metavar=metavar, help=f"{help}; repeatable")

    parser.add_argument(
        "--quick", action="store_true", help="a few layers of each family, in less than 5 minutes"
    )
    several(
        "--section", metavar="NAME", help="forward, backward, overhead, first-call or scaling (default: all)"
    )
    several("--workloads", "-k", metavar="GLOB", help="layers, families or lists to time (default: all)")
    several("--impl", metavar="GLOB", help="implementations to time (default: all that are installed)")
    several("--peers", metavar="GLOB", help="peers to time beside ours; none for none (default: all)")
    several("--threads", metavar="N", help="numbers of threads (default: 1, and one for each core)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), help="only implementations of this layout")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="blocks each implementation gets (default: 7)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="tell what changed between two results, and end",
    )
    parser.add_argument(
        "--output",
        default="bench-results",
        metavar="DIR",
        help="where the results go (default: bench-results)",
    )


def _check_environment() -> None:
    """Raise UsageError if an environment variable of ours has an unusable value, before any work is done."""
    try:
        config.environment_backend()
        config.environment_threads()
        config.environment_isa()
        config.environment_accuracy()
        config.environment_log()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _info(arguments: argparse.Namespace) -> int:
    from .about import config_text

    statuses = registry.backends()
    facts = config_text().splitlines()
    facts = facts[: facts.index("backends:")]
    if importlib.util.find_spec("rich") is None:
        print("\n".join((*facts, "backends:", *(f"  {status}" for status in statuses))))
    else:
        _print_rich(facts, statuses)
    return OK


def _print_rich(facts: Sequence[str], statuses: Sequence[registry.BackendStatus]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    for fact in facts:
        name, colon, value = fact.partition(": ")
        console.print(Text.assemble((name + colon, "bold"), value), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("backend", "from", "state"):
        table.add_column(title, no_wrap=title == "backend")
    for status in statuses:
        colour = "green" if status.available else "yellow"
        state = (
            f"available, {len(status.ops)} operations"
            if status.available
            else f"not available: {status.reason}"
        )
        table.add_row(status.name, Text(status.origin), Text(state, colour))
    console.print(table)


def _verify(arguments: argparse.Namespace) -> int:
    from .testing import check_backend, fuzz_backend

    ops = _matching_ops(arguments.op, arguments.fuzz is not None)
    if arguments.fuzz is not None and arguments.fuzz < 1:
        raise UsageError(f"--fuzz must be at least 1, got {arguments.fuzz}")
    names = arguments.backend or [status.name for status in registry.backends() if status.available]
    for name in names:  # an unknown or unusable one is told before the others have taken their time
        _require_usable(name)
    failed = False
    for name in names:
        progress = _Counter(name, sys.stderr)
        if arguments.fuzz is None:
            report = check_backend(name, ops, quick=arguments.quick, progress=progress)
        else:
            report = fuzz_backend(name, ops, arguments.fuzz, seed=arguments.seed, progress=progress)
        shown = str(report)
        hidden = len(report.failed) - FAILURES_SHOWN
        if hidden > 0:
            for text in report.failed[FAILURES_SHOWN:]:
                shown = shown.replace("\n" + text, "", 1)
            shown += f"\n... and {hidden} more"
        print(shown, flush=True)
        failed |= bool(report.failed)
    return FAILED if failed else OK


def _matching_ops(patterns: Sequence[str], fuzzed: bool) -> list[str]:
    """Return the operations that one of the patterns matches; all where there are none. Separable ones are not fuzzed."""
    known = [op for op in registry.ALL_OPS if not (fuzzed and op in SEPARABLE)]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise UsageError(f"--op {pattern} matches none of {', '.join(known)}")
    return [op for op in known if not patterns or any(fnmatch.fnmatchcase(op, p) for p in patterns)]


def _require_usable(name: str) -> None:
    entry = registry.find_backend(name)
    reason = entry.reason()
    if reason is not None:
        raise UsageError(f"backend {name!r} ({entry.origin}) cannot be used: {reason}")


class _Counter:
    """Shows how far a check has come, on one line that is overwritten; nothing where that is no terminal."""

    def __init__(self, name: str, stream: TextIO):
        self._name, self._stream = name, stream

    def __call__(self, done: int, total: int) -> None:
        if self._stream.isatty():
            end = "\r\033[K" if done == total else ""
            self._stream.write(f"\rbackend {self._name}: {done} of {total} problems{end}")
            self._stream.flush()


def _demo(arguments: argparse.Namespace) -> int:
    missing = [name for module, name in DEMO_MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"the demo needs {', '.join(missing)}: pip install 'fastconv[demo]'")
    output = _checked_output(arguments.output)
    for name in arguments.backend:
        _require_usable(name)

    from . import demo

    try:
        return OK if demo.run(arguments.image, output, arguments.backend) else FAILED
    except demo.PhotoError as error:
        raise UsageError(str(error)) from None
    except OSError as error:  # the disk is full, the directory read-only, ...
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from None


def _explore(arguments: argparse.Namespace) -> int:
    from . import explore

    if not 0 <= arguments.port <= LARGEST_PORT:
        raise UsageError(f"--port must be from 0 to {LARGEST_PORT}, got {arguments.port}")
    if arguments.export:
        return _export(arguments.export, arguments.stack)
    if arguments.stack:
        raise UsageError("--stack goes with --export; on the page itself the stack is chosen there")
    try:
        server = explore.make_server(arguments.port)
    except OSError as error:
        raise UsageError(f"cannot listen on port {arguments.port}: {error.strerror or error}") from None
    with server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not arguments.no_browser:
            import webbrowser

            webbrowser.open(address)
        server.serve_forever()
    return OK


def _export(file: str, stack: str | None) -> int:
    import json

    from . import explore

    chosen = explore.PRESETS.get(stack or next(iter(explore.PRESETS)))
    try:
        if chosen is None:
            chosen = json.loads(Path(stack or "").read_text(encoding="utf-8"))
        text = explore.page(chosen)
    except FileNotFoundError:
        raise UsageError(
            f"--stack must be a JSON file or one of {', '.join(map(repr, explore.PRESETS))}, got {stack!r}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--stack {stack}: {error}") from None
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        from .benchmark import compare

        return compare.main(arguments.compare)
    if importlib.util.find_spec("rich") is None:
        raise UsageError("the benchmark needs rich: pip install 'fastconv[bench]'")
    from .benchmark import command

    try:
        return OK if command.run(arguments) else FAILED
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"cannot write to {arguments.output}: {error.strerror or error}") from None


def _checked_output(text: str) -> Path:
    """Return the figure's path if it looks usable: finding out at the end would waste the work."""
    path = Path(text)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"--output must end in one of {', '.join(FIGURE_SUFFIXES)}, got {text}")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"--output {text}: "
            + ("it is a directory" if path.is_dir() else f"there is no directory {path.parent}")
        )
    return path

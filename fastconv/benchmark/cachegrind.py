"""Cache misses of the compiled kernels, counted by valgrind: the same figures on every run, whatever the clock says.

    python -m fastconv.benchmark.cachegrind            count, and show beside what the table says
    python -m fastconv.benchmark.cachegrind --check    exit with 1 if a figure got worse
    python -m fastconv.benchmark.cachegrind --write    write the figures to the table

What is counted is one call of a prepared kernel, on one thread, with the caches of a modest core. A compulsory line
is a cache line of input, weight, offset, mask or output, or of a gradient of them. Each of them has to be moved once,
so one miss a line is the best there is where a problem does not fit the cache, and those of the table fit neither
level. (An access that spans two lines counts as one miss, so that a figure can be a little lower.)

Those lines are of the problem, the same for each kernel that solves it, and they are what a figure is compared by. But a
prepared kernel never sees the weights as they were given: its operand is what was packed of them. Winograd's are larger,
36 numbers for 9 with six points: 6912 lines and not 1728 where image and output have 5488. `planned` counts all that was
packed in place of the weights given, and the table shows last-level misses by it too: what a kernel can reach once its
algorithm is chosen. It does not say that the choice moves few bytes, as a kernel that packs more gets a better figure for
it, and so does one that packs what no call reads: by the weights that are read, winograd_5_3x3_s2 has 2.9 and not 2.6.

Two runs of one installation agree to the digit. Another compiler, or another set of installed packages, moves some of
the addresses and with them a figure by a few tenths of a percent.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

__all__ = ["Counted", "changes", "count", "count_here", "main", "read_table", "table_text"]

MODULE = "fastconv.benchmark.cachegrind"
TABLE = Path("bench/cachegrind.toml")
LINE, PAGE = 64, 4096
SET_SPAN = 65536  # bytes after which lines share a set in the last level
CACHES = {"I1": "32768,8,64", "D1": "32768,8,64", "LL": "524288,8,64"}
TOLERANCE = 0.03  # another compiler moves the figures by less

# Valgrind does not know AVX-512. Whatever else could make two runs differ is pinned down too.
ENVIRONMENT = {
    "FASTCONV_MAX_ISA": "avx2",
    "FASTCONV_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Scratch from the heap would lie anywhere; whole pages of its own share the same sets of the first level always.
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8192",
}
BLANK = {"lines": 0, "instructions": 0, "first_level": 0, "last_level": 0, "planned": 0}
INHERITED = ("PATH", "HOME", "PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")

HEADER = f"""\
# Cache misses of one call of each prepared kernel: AVX2, one thread, float32.
# Counted by `python -m fastconv.benchmark.cachegrind --write`; with --check it compares.
# First level {CACHES["D1"]}; last level {CACHES["LL"]} (bytes, ways, bytes a line).
# lines: the compulsory ones, of input, weight, offset, mask and output together, and of their gradients.
# planned: the same with what a plan packs of the weights in place of the weights, where that has been counted.
# A new entry needs its problem alone; --write adds the figures.
"""


@dataclass(frozen=True)
class Counted:
    """One call, the kernel that has to take it, and what it cost; the figures are 0 before they are counted."""

    kernel: str
    op: str
    input: Sequence[int]
    weight: Sequence[int]
    options: Mapping[str, Any]
    lines: int = 0
    instructions: int = 0
    first_level: int = 0
    last_level: int = 0
    planned: int = 0

    def figures(self) -> dict[str, float]:
        """Return what is compared, by its name; nothing before it is counted."""
        if not self.lines:
            return {}
        return {
            "first-level misses a line": self.first_level / self.lines,
            "last-level misses a line": self.last_level / self.lines,
            "million instructions": self.instructions / 1e6,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Count the problems of the table and show, check or write the figures.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if not given.

    Returns
    -------
    int
        0 if all is well, 1 if a figure got worse and ``--check`` was given, 2 if nothing can be counted here.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fastconv.benchmark.cachegrind",
        description="Count cache misses of the compiled kernels by valgrind.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries of the table (default: all)")
    parser.add_argument("--table", type=Path, default=TABLE, help=f"the table (default: {TABLE})")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="exit with 1 if a figure got worse")
    action.add_argument("--write", action="store_true", help="write the figures to the table")
    arguments = parser.parse_args(argv)
    if not arguments.table.exists():
        parser.error(f"there is no table {arguments.table}; --table names another")
    table = read_table(arguments.table)
    unknown = set(arguments.names) - set(table)
    if unknown:
        parser.error(f"{arguments.table} has no entry {', '.join(sorted(unknown))}, but {', '.join(table)}")
    before = {name: table[name] for name in arguments.names or table}
    if shutil.which("valgrind") is None:
        print("counting cache misses needs valgrind, which is not on the PATH", file=sys.stderr)
        return 2
    after = count(before)
    worse, better = changes(before, after)
    print(_comparison(before, after))
    print(
        "".join(f"better: {text}\n" for text in better) + "".join(f"WORSE:  {text}\n" for text in worse),
        end="",
    )
    if arguments.write:
        arguments.table.write_text(table_text(table | after), encoding="utf-8")
    return 1 if worse and arguments.check else 0


def count(entries: Mapping[str, Counted]) -> dict[str, Counted]:
    """Count one call of each of these, in one process under valgrind.

    Raises
    ------
    RuntimeError
        If the process fails; the message holds what it said.
    """
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | ENVIRONMENT
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=yes", "--log-file=log.%p"]
    command += ["--cachegrind-out-file=count.%p", *(f"--{name}={sizes}" for name, sizes in CACHES.items())]
    command += [sys.executable, "-c", f"from {MODULE} import count_here; count_here()"]
    if shutil.which("setarch"):  # the same addresses in every run: they decide which lines share a set
        command = ["setarch", os.uname().machine, "-R", *command]
    # The figures of before are left out: their digits would move what the interpreter allocates.
    problems = json.dumps({name: vars(entry) | BLANK for name, entry in entries.items()})
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            command, cwd=folder, env=environment, input=problems, capture_output=True, text=True
        )
        if run.returncode:
            raise RuntimeError(f"counting failed with exit code {run.returncode}:\n{run.stderr}")
        return {name: _counted(entry, Path(folder), name) for name, entry in entries.items()}


def count_here() -> None:
    """What runs under valgrind: take the problems from stdin, and leave files of counters in the working folder.

    Each problem has a process of its own, forked from one that has imported everything, so that its figures do not
    depend on the problems before it.
    """
    entries = {name: Counted(**entry) for name, entry in json.load(sys.stdin).items()}
    _prepared(next(iter(entries.values())))
    for name, entry in entries.items():
        child = os.fork()
        if not child:
            try:
                Path(name).write_text(json.dumps(_readings(entry)), encoding="utf-8")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


def _readings(entry: Counted) -> tuple[int, int, list[int]]:
    """Make calls between readings of the counters; return the bytes a call moves, those of a plan, and the readings.

    A reading is counted as well. There is one call between the first two readings and there are two between the
    last two, so that one call is what these differ by.
    """
    call, bytes, planned = _prepared(entry)
    readings = []
    for calls in (1, 1, 2):  # the first takes the arena and touches every page
        for _ in range(calls):
            call()
        readings.append(_read_counters())
    return bytes, planned, readings


def _read_counters() -> int:
    """Have the counters of this process written: a forked child has them too, and valgrind writes them at its end.

    Returns the child's process number, which names the file. Reading it here would be counted as well.
    """
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def _counted(entry: Counted, folder: Path, name: str) -> Counted:
    bytes, planned, readings = json.loads((folder / name).read_text(encoding="utf-8"))
    first, second, third = (_counters(folder / f"count.{reading}") for reading in readings)
    cost = {event: (third[event] - second[event]) - (second[event] - first[event]) for event in first}
    return replace(
        entry,
        lines=-(-bytes // LINE),
        instructions=cost["Ir"],
        first_level=cost["D1mr"] + cost["D1mw"],
        last_level=cost["DLmr"] + cost["DLmw"],
        planned=-(-planned // LINE),
    )


def _counters(path: Path) -> dict[str, int]:
    """Return the totals in one of cachegrind's files, by name of the event."""
    with path.open(encoding="utf-8") as lines:
        headed = dict(line.split(": ", 1) for line in lines if line.startswith(("events: ", "summary: ")))
    return dict(zip(headed["events"].split(), map(int, headed["summary"].split()), strict=True))


def _prepared(entry: Counted) -> tuple[Callable[[], Any], int, int]:
    """Return the call, the bytes it has to move, and those with packed weights in place of the given ones, if there are."""
    import numpy as np

    import fastconv

    rng = np.random.default_rng(0)
    weight = rng.standard_normal(entry.weight, np.float32) if entry.weight else None
    forward = entry.op.removesuffix("_weight_grad").removesuffix("_grad")
    options = dict(entry.options, backend="cython", num_threads=1)
    outputs = options.pop("outputs", None)  # of the pointwise part of a separable convolution
    constant = [weight, None]
    if outputs is None or weight is None:
        plan = fastconv.plan(forward, entry.input, weight, **options)
    else:
        pointwise = rng.standard_normal((outputs, entry.weight[0], *(1,) * len(entry.weight[2:])), np.float32)
        plan = fastconv.plan_separable(forward, entry.input, weight, pointwise, **options)
        constant += [pointwise, None]
    problem = replace(plan.problem, op=entry.op)
    (kernel,) = (k for k in fastconv.kernels(entry.op, backend="cython") if k.name == entry.kernel)
    refusal = kernel.refuse(problem)
    if refusal:
        raise RuntimeError(f"{problem} is not taken by {entry.kernel}: {refusal}")
    shapes = [entry.input]
    if problem.offset_groups:
        shapes += [problem.offset_shape, problem.mask_shape] if problem.mask_shape else [problem.offset_shape]
    *operands, out = _arrays([*shapes, plan.output_shape])
    for operand in operands:
        operand[...] = rng.standard_normal(operand.shape, np.float32)
    # Not the plan: what Python does around a kernel is not what is asked here.
    program: Any = kernel.build(problem)
    if forward != entry.op:
        out[...] = rng.standard_normal(out.shape, np.float32)
    if problem.offset_groups and forward != entry.op:
        given, offset, mask, *_ = [*operands, None]
        named = {"input": given, "offset": offset, "weight": weight, "mask": mask}
        given_shapes = {name: array.shape for name, array in named.items() if array is not None}
        grads = dict(zip(given_shapes, _arrays([*given_shapes.values()]), strict=True))
        moved = problem.bytes + sum(array.nbytes for array in grads.values())
        return lambda: program(grads, out, given, weight, offset, mask, 1), moved, 0
    if forward != entry.op:
        return lambda: program(weight, operands[0], out, None, None, None, 1), problem.bytes, 0
    planned = 0
    if weight is not None and hasattr(program, "bind"):
        program, weight = program.bind(*constant), None
        if program.packed:
            as_given = sum(array.nbytes for array in constant if array is not None)
            planned = problem.bytes - as_given + program.packed
    given, offset, mask, *_ = [*operands, None, None]
    return lambda: program(out, given, weight, None, offset, mask, 1), problem.bytes, planned


def _arrays(shapes: Sequence[Sequence[int]]) -> list[Any]:
    """Return arrays that lie on pages, one behind the other: which of their lines share a set is always the same."""
    import numpy as np

    pages = [-(-4 * math.prod(shape) // PAGE) for shape in shapes]
    memory = np.empty(sum(pages) * PAGE + SET_SPAN, np.uint8)
    at = -memory.ctypes.data % SET_SPAN
    arrays = []
    for shape, count in zip(shapes, pages, strict=True):
        arrays.append(memory[at : at + 4 * math.prod(shape)].view(np.float32).reshape(shape))
        at += count * PAGE
    return arrays


def changes(before: Mapping[str, Counted], after: Mapping[str, Counted]) -> tuple[list[str], list[str]]:
    """Return which figures are worse and which are better than before, by more than the tolerance, as text.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from fastconv.benchmark.cachegrind import Counted, changes
    >>> was = Counted("conv_dense_nchw", "conv2d", [1, 1, 9, 9], [1, 1, 1, 1], {}, 1000, 5_000_000, 1100, 1000)
    >>> changes({"dense": was}, {"dense": replace(was, first_level=1400)})
    (['dense: first-level misses a line 1.100 -> 1.400'], [])
    """
    worse, better = [], []
    for name in after:
        was = before[name].figures()
        for figure, now in after[name].figures().items() if was else ():
            text = f"{name}: {figure} {was[figure]:.3f} -> {now:.3f}"
            if now > was[figure] * (1 + TOLERANCE):
                worse.append(text)
            elif now < was[figure] * (1 - TOLERANCE):
                better.append(text)
    return worse, better


def read_table(path: Path) -> dict[str, Counted]:
    """Read a table, as :func:`table_text` makes it or without figures."""
    return {name: Counted(**entry) for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def table_text(entries: Mapping[str, Counted]) -> str:
    """Return a table as TOML that people read too."""
    text = HEADER
    for name, entry in entries.items():
        text += f"\n[{name}]\n"
        kept = [field.name for field in fields(entry) if field.name != "planned" or entry.planned]
        text += "".join(f"{key} = {_toml(getattr(entry, key))}\n" for key in kept)
        for figure, value in entry.figures().items():
            text += f"# {figure}: {value:.3f}\n"
        if entry.planned:
            text += f"# last-level misses a line of the plan: {entry.last_level / entry.planned:.3f}\n"
    return text


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)  # words, numbers and lists are written alike


def _comparison(before: Mapping[str, Counted], after: Mapping[str, Counted]) -> str:
    titles = ("", "kernel", "first level", "(was)", "last level", "(was)", "Minstr", "(was)")
    rows: list[tuple[str, ...]] = [titles]
    for name, entry in after.items():
        old = before[name].figures()
        cells = [name, entry.kernel]
        for figure, value in entry.figures().items():
            cells += [f"{value:.3f}", f"({old[figure]:.3f})" if old else "(-)"]
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["misses a compulsory line, and million instructions a call:"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""What the demo prints: a progress bar, a table of measurements, the error of the undistorted picture."""

import os
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fastconv
from fastconv import registry
from fastconv.config import thread_count

from .measure import TOLERANCE, Measurement
from .steps import Corrected

__all__ = ["Reporter"]

FILE_WIDTH = 110  # columns; where output goes to a file rich would assume 80, and wrap


class Reporter:
    """Prints what happens, in order.

    Parameters
    ----------
    photo : numpy.ndarray, shape (3, H, W)
    """

    def __init__(self, photo: np.ndarray):
        console = Console(highlight=False)
        self._console = console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)
        height, width = photo.shape[1:]
        self._console.print(
            f"fastconv {fastconv.__version__}: a photograph of {width} x {height} pixels, float32, "
            f"at most {thread_count()} threads"
        )
        for status in registry.backends():
            if not status.available:
                self._console.print(
                    f"[yellow]not available[/]: {status.name}: {escape(status.reason or '')}", soft_wrap=True
                )
        self._progress = Progress(
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        )

    def start(self, total: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task("preparing", total=total)
        self._done = 0

    def advance(self, doing: str) -> None:
        """Tell what is measured next."""
        self._progress.update(self._task, completed=self._done, description=doing)
        self._done += 1

    def finish(self) -> None:
        self._progress.stop()

    def table(self, measurements: Sequence[Measurement]) -> None:
        """Print one row for each measurement; the rows of one step stand together."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("variant", min_width=18)
        table.add_column("backend", no_wrap=True)
        table.add_column("kernel", no_wrap=True)
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("max error", justify="right", no_wrap=True)
        table.add_column("vs slowest", justify="right", no_wrap=True)
        for _, rows in groupby(measurements, key=lambda m: id(m.step)):
            same_step = list(rows)
            slowest = max(m.seconds for m in same_step)
            for index, m in enumerate(same_step):
                name = f"{m.step.variant}: {m.step.title}" if index == 0 else ""
                error = f"[{'green' if m.agrees else 'bold red'}]{m.error:.1e}[/]"
                ratio = f"{slowest / m.seconds:.3g}x" if len(same_step) > 1 else ""
                table.add_row(
                    name,
                    m.backend,
                    m.kernel,
                    f"{m.seconds * 1e3:.2f}",
                    error,
                    ratio,
                    end_section=len(same_step) > 1 and m is same_step[-1],
                )
        self._console.print(table)
        wrong = sum(not m.agrees for m in measurements)
        verdict = f"[bold red]{wrong} of them do not[/]" if wrong else "all do"
        self._console.print(
            "ms: shortest of several calls, after one to warm up. "
            "max error: max|error| / max|result| against the oracle in float64; "
            f"at most {TOLERANCE:g}: {verdict}. "
            "vs slowest: how many times as fast as the slowest backend."
        )

    def undistortion(self, corrected: Corrected) -> None:
        """Print the error of the distorted picture before and after it was set right."""
        colour = "green" if corrected.succeeded else "bold red"
        self._console.print(
            "barrel distortion, RMSE against the original: "
            f"before {corrected.before:.4f}, after {corrected.after:.4f} "
            f"([{colour}]{corrected.improvement:.1f} times smaller[/])"
        )

    def figure(self, path: str | os.PathLike) -> None:
        """Tell where the figure is."""
        self._console.print(f"figure: [bold]{escape(os.fspath(path))}[/]", soft_wrap=True)

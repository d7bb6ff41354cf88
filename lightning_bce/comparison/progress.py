"""How far a comparison is, and how long the rest takes: a bar on a terminal, a line for each run elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from lightning_bce.comparison.scheduling import TimeLeft
from lightning_bce.comparison.store import Run, Task


class Progress:
    """Shows finished runs on standard error.

    Args:
        tasks: What is to be made.
        show: Whether to show anything.

    Example:
        >>> with Progress([], show=False):
        ...     pass
    """

    def __init__(self, tasks: Sequence[Task], show: bool) -> None:
        self._count, self._done = len(tasks), 0
        self._left = TimeLeft(tasks)
        self._console = Console(file=sys.stderr)
        self._show = show and bool(tasks)
        self._bar = None
        if self._show and self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("runs", total=self._count)

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()

    def add(self, task: Task, run: Run) -> None:
        """Show that a run is finished."""
        self._done += 1
        self._left.add(task)
        if not self._show:
            return
        left = self._left.seconds()
        rest = f", about {duration(left)} left" if left else ""
        split = " ".join(f"{name} {value}" for name, value in run.result.items() if name in ("seed", "fold"))
        what = f"{task.data_name}, {split}, {task.label}"
        if run.result["error"] is not None:
            self._print(f"failed: {what}: {run.result['error']}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=f"{what}{rest}")
        elif run.result["error"] is None:
            self._print(f"{self._done}/{self._count} {what}{rest}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time as one would say it.

    Example:
        >>> duration(4.2), duration(200), duration(7300)
        ('4 s', '3 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

"""Progress of a run on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from ddbench.contract.observer import Reporter

PLAIN_SECONDS = 10.0
"""Seconds between progress lines without a terminal."""


@contextmanager
def live() -> "Iterator[Reporter]":
    """Yield the reporter that suits stderr."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Plain()
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress)


class Bar:
    """A reporter with one progress bar, for the current stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(escape(text), soft_wrap=True)

    def stage(self, title: str) -> None:
        """Replace the bar with a new one."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(title), total=None, figures="")

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Move the bar."""
        if self._task is None:
            self.stage("Working")
        assert self._task is not None
        text = f"{done}/{total}  {figures(values)}  {remaining(seconds_left)}"
        self._progress.update(self._task, completed=done, total=total, figures=escape(text))


class Plain:
    """A reporter of plain lines: at the beginning and the end of a stage, and every ten seconds."""

    def __init__(self) -> None:
        self._title, self._last = "", 0.0

    def say(self, text: str) -> None:
        """Print the line."""
        print(text, file=sys.stderr, flush=True)

    def stage(self, title: str) -> None:
        """Announce the stage."""
        self._title, self._last = title, time.monotonic()
        self.say(f"{title} ...")

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Print a line, but not more often than every ten seconds."""
        now = time.monotonic()
        if done == total or now - self._last >= PLAIN_SECONDS:
            self._last = now
            self.say(f"  {self._title}: {done}/{total}  {figures(values)}  {remaining(seconds_left)}".rstrip())


def figures(values: Mapping[str, float]) -> str:
    """Return figures as `loss 0.51  accuracy 0.88`."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())


def remaining(seconds: float | None) -> str:
    """Return `3 min 20 s left`, or an empty text while the time is not known."""
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time as `4.2 s`, `47 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

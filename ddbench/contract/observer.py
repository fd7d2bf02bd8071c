"""Reporters, which show a run to a person; observers, which plugins attach to a run; the time that is left."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ddbench.records.result import RunResult


@runtime_checkable
class Reporter(Protocol):
    """A place that shows how a run proceeds: the terminal or a log file."""

    def say(self, text: str) -> None:
        """Show a line that is worth keeping."""

    def stage(self, title: str) -> None:
        """Begin a stage that has progress; the stage before is over."""

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Show that `done` steps of `total` are done; `seconds_left` is None while it cannot be known."""


class Silent:
    """A reporter that shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def stage(self, title: str) -> None:
        """Do nothing."""

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Do nothing."""


@runtime_checkable
class Observer(Protocol):
    """An observer of one run, as the hook `ddbench_observe` returns it; its state lives on the object.

    A subclass may define one of the methods and inherit the other, which does nothing. An exception of a method is
    reported once and disables the observer; the run goes on.
    """

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Receive the `values` that the method logged in outer step `step` (from 1) of `total`."""

    def finished(self, result: "RunResult") -> None:
        """Receive the result of the run, also of one that failed or was interrupted: see `result.status`."""


class Pace:
    """An estimate of the seconds that are left, from a moving average over about 20 steps."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._step: float | None = None
        self.steps = 0

    def tick(self) -> None:
        """Count one more step."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        self.steps += 1
        self._step = took if self._step is None else self._step + 0.1 * (took - self._step)

    def left(self, steps: int) -> float | None:
        """Return the seconds that `steps` more steps will take; None before the first step."""
        return None if self._step is None else self._step * steps

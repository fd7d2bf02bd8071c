"""Whoever watches a run, and how long what is left of it will take."""

import time
from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """Whoever watches a run: the terminal, a log file, nobody."""

    def say(self, text: str) -> None:
        """One line worth keeping."""

    def stage(self, title: str) -> None:
        """A stage with progress begins; the one before it is over."""

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """The stage has done `done` of `total`; `seconds_left` is None while it cannot be known yet."""


class Silent:
    """A reporter for nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    def stage(self, title: str) -> None:
        """Nothing."""

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Nothing."""


class Pace:
    """Seconds left, from the time the last steps took (an average over about 20 of them)."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._step: float | None = None

    def tick(self) -> None:
        """One more step is done."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._step = took if self._step is None else self._step + 0.1 * (took - self._step)

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` more will take; None before the first."""
        return None if self._step is None else self._step * steps

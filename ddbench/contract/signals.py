"""Signals: what handles Ctrl-C and SIGTERM while a run is at work."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, with which schedulers end a job, raise `KeyboardInterrupt` as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM,), stop):
        yield


class Interrupts:
    """Requests to stop a loop: the first waits for the end of the outer step, the second stops at once.

    Attributes:
        count: the requests so far.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = 0
        self._say = say

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count Ctrl-C and SIGTERM within a `with` block; the second raises `KeyboardInterrupt`."""

        def note(number: int, frame: FrameType | None) -> None:
            self.count += 1
            if self.count > 1:
                raise KeyboardInterrupt
            self._say("Stopping after this outer step (Ctrl-C again to stop at once).")

        with _handling((signal.SIGINT, signal.SIGTERM), note):
            yield


@contextmanager
def _handling(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals by `handler`; does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, earlier or signal.SIG_DFL)

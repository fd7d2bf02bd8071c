"""Run: the loop, log and random numbers a method uses, so that it resumes, reports and stops in time for free."""

import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ddbench.contract.observer import Pace, Reporter, Silent
from ddbench.contract.snapshots import (
    check_readable,
    check_state,
    copied,
    copied_tree,
    finite,
    global_generators,
    set_global_generators,
)
from ddbench.errors import DdbenchError, Interrupted, PluginError
from ddbench.machine.files import atomic_write, explained_os_errors
from ddbench.machine.seeds import derive_seed, seed_everything

SNAPSHOT_EVERY = 20
"""Outer steps between the states a run can roll back to."""
CHECKPOINT_SECONDS = 20.0
"""Seconds between checkpoints on disk."""
MAX_ROLLBACKS = 5
"""Roll-backs after which a run that keeps diverging is ended."""


@dataclass
class _Loop:
    """How far one loop of a method has come, and the state to go on from."""

    step: int = 0
    finished: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)


class Run:
    """Random numbers, the loop, the log and the clock for a method.

    The harness creates it; tests of a plugin can create one with only a folder. Time counts over interruptions.

    Attributes:
        seed: the seed of the run.
        generator: the source of random numbers, on the CPU.
        device: the device of the tensors.
        rollbacks: how often the loop returned to an earlier state because of NaN.
        stopped_by: `time limit`, or empty.
        steps_done: outer steps that are done.
        share_done: the share of the loop that is done, for schedules. Under a time limit it follows the clock, so that
            the schedule ends in time; such a run cannot be repeated to the byte.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        time_limit: float | None = None,
        most_steps: int | None = None,
        reporter: Reporter | None = None,
        on_progress: Callable[[int, int, Mapping[str, float]], None] = lambda step, total, values: None,
        identity: str = "",
    ) -> None:
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "method"))
        self.rollbacks = 0
        self.stopped_by = ""
        self.steps_done = 0
        self._folder = folder
        self._time_limit = time_limit
        self._most_steps = most_steps
        self._reporter = reporter or Silent()
        self._on_progress = on_progress
        self._identity = identity
        self._loops: list[_Loop] = []
        # Where a roll-back goes: always a multiple of SNAPSHOT_EVERY, so that an interruption does not move it.
        self._good: _Loop | None = None
        self._good_of = -1
        self._left: _Loop | None = None
        self._current = -1
        self._values: dict[str, float] = {}
        self._diverged = False
        self._interrupts = 0
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self._log_bytes = 0
        self._saved_at = time.monotonic()
        self.share_done = 0.0
        self._restore()

    @property
    def checkpoint_path(self) -> Path:
        """Where the run's checkpoint is kept."""
        return self._folder / "checkpoint.pt"

    @property
    def log_path(self) -> Path:
        """JSON lines, one per outer step: `loop`, `step`, `seconds` and whatever the method logged."""
        return self._folder / "log.jsonl"

    @property
    def seconds(self) -> float:
        """Seconds spent, interruptions left out."""
        return self._earlier_seconds + time.monotonic() - self._started

    def say(self, text: str) -> None:
        """Tell the user one line."""
        self._reporter.say(text)

    def log(self, **values: float | Tensor) -> None:
        """Record figures of this outer step: they go to log.jsonl, the progress bar and the trackers.

        A value that is not finite makes the loop roll back to the last good state.
        """
        for name, value in values.items():
            number = float(value.detach() if isinstance(value, Tensor) else value)
            self._values[name] = number
            self._diverged = self._diverged or not math.isfinite(number)

    def loop(self, steps: int, state: Mapping[str, object]) -> Iterator[int]:
        """Yield `0 .. steps - 1`, or go on from where an interrupted run stood.

        `state` names everything that changes from step to step: tensors (restored in place) and objects with
        `state_dict` and `load_state_dict`. It is snapshot every few steps and written to disk every few seconds, on
        Ctrl-C (which then raises `Interrupted`) and at the end. The loop ends early at the time limit; when a
        logged value or the state is not finite it goes back to the last good snapshot with other random numbers,
        and after 5 times raises `DdbenchError`. A method may have several loops, one after the other.
        """
        check_state(state)
        self.finish()
        total = steps if self._most_steps is None else min(steps, self._most_steps)
        self._current += 1
        if self._current == len(self._loops):
            self._loops.append(self._snapshot(0, state))
            check_readable(self._loops[-1].state)
        here = self._loops[self._current]
        self._load(here, state)
        if here.finished:
            return
        if self._good_of != self._current or self._good is None:
            self._good, self._good_of = here, self._current
        step, pace = here.step, Pace()
        if step:
            self.say(f"Resumed at outer step {step} of {total}.")
        with self._signals():
            while step < total:
                if self._time_limit is not None and self.seconds >= self._time_limit:
                    self.stopped_by = "time limit"
                    break
                self._values, self._diverged = {}, False
                self.share_done = max(step / total, self.seconds / self._time_limit if self._time_limit else 0.0)
                try:
                    yield step
                except GeneratorExit:
                    # A break, or an exception on its way: only what the method does next tells which.
                    self._left = self._snapshot(step + 1, state)
                    raise
                step += 1
                at_snapshot = step % SNAPSHOT_EVERY == 0 or step == total
                if self._diverged or (at_snapshot and not finite(state)):
                    step = self._roll_back(state)
                    continue
                self._record(step - 1, total)
                pace.tick()
                self._report(step, total, pace)
                if step % SNAPSHOT_EVERY == 0:
                    self._good = self._loops[self._current] = self._snapshot(step, state)
                    if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
                        self._save()
                if self._interrupts:
                    self._loops[self._current] = self._snapshot(step, state)
                    self._save()
                    raise Interrupted(f"interrupted after outer step {step} of {total}.", "A checkpoint was kept.")
            if not finite(state):
                step = self._roll_back(state)
        self._end(self._snapshot(step, state))

    def finish(self) -> None:
        """The method has returned; called by the harness. A loop that it broke out of has ended there."""
        if self._left is not None:
            self._end(self._left)
            self._left = None

    def _end(self, ended: _Loop) -> None:
        self.steps_done += ended.step
        ended.finished = True
        self._loops[self._current], self._good = ended, None
        self._save()

    def _report(self, step: int, total: int, pace: Pace) -> None:
        left = pace.left(total - step)
        if left is not None and self._time_limit is not None:
            left = min(left, max(0.0, self._time_limit - self.seconds))
        self._reporter.progress(step, total, self._values, left)
        self._on_progress(step, total, self._values)

    def _record(self, step: int, total: int) -> None:
        if not self._values:
            return
        line = {"loop": self._current, "step": step, "seconds": round(self.seconds, 3), **self._values}
        raw = (json.dumps(line) + "\n").encode()
        with explained_os_errors(self.log_path), open(self.log_path, "ab") as stream:
            stream.write(raw)
        self._log_bytes += len(raw)

    def _roll_back(self, state: Mapping[str, object]) -> int:
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            raise DdbenchError(
                f"the run diverged again after {MAX_ROLLBACKS} roll-backs and was ended.", _DIVERGENCE_ADVICE
            )
        assert self._good is not None
        good = self._good
        self._load(good, state)
        self._truncate_log(self._log_bytes_of(good))
        # The same random numbers would diverge the same way again.
        fresh = derive_seed(self.seed, "roll-back", self.rollbacks)
        self.generator.manual_seed(fresh)
        seed_everything(fresh)
        what = ", ".join(f"{k} {v:g}" for k, v in self._values.items()) or "the state"
        self.say(f"Not finite ({what}): back to outer step {good.step} (roll-back {self.rollbacks}).")
        return good.step

    def _log_bytes_of(self, snapshot: _Loop) -> int:
        return int(snapshot.generators["log_bytes"])

    def _truncate_log(self, size: int) -> None:
        self._log_bytes = size
        if self.log_path.exists():
            with explained_os_errors(self.log_path), open(self.log_path, "r+b") as stream:
                stream.truncate(min(size, self.log_path.stat().st_size))

    def _snapshot(self, step: int, state: Mapping[str, object]) -> _Loop:
        generators = {"own": self.generator.get_state(), "log_bytes": self._log_bytes, **global_generators()}
        return _Loop(step, False, {name: copied(thing) for name, thing in state.items()}, generators)

    def _load(self, snapshot: _Loop, state: Mapping[str, object]) -> None:
        if state.keys() != snapshot.state.keys():
            raise PluginError(
                f"the checkpoint holds {sorted(snapshot.state)}, the method's state is {sorted(state)}.",
                "The method has changed since the run was started: start it anew.",
            )
        for name, thing in state.items():
            saved = snapshot.state[name]
            if isinstance(thing, Tensor):
                with torch.no_grad():
                    thing.copy_(saved)
            else:
                thing.load_state_dict(copied_tree(saved))  # type: ignore[attr-defined]
        self.generator.set_state(snapshot.generators["own"])
        set_global_generators(snapshot.generators)

    def _save(self) -> None:
        content = {
            "identity": self._identity,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "stopped_by": self.stopped_by,
            "loops": [vars(loop) for loop in self._loops],
            "good": self._good and vars(self._good),
            "good_of": self._good_of,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        atomic_write(self.checkpoint_path, buffer.getvalue())
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        if not self.checkpoint_path.exists():
            self._truncate_log(0)
            return
        try:
            content = torch.load(self.checkpoint_path, weights_only=True, map_location="cpu")
            identity, loops = content["identity"], [_Loop(**loop) for loop in content["loops"]]
            self._good, self._good_of = content["good"] and _Loop(**content["good"]), content["good_of"]
        except Exception as error:
            raise DdbenchError(
                f"the checkpoint {self.checkpoint_path} cannot be read: {type(error).__name__}.",
                "Remove it to start the run anew.",
            ) from error
        if identity != self._identity:
            raise DdbenchError(
                f"the checkpoint {self.checkpoint_path} belongs to another run.", "Remove it to start the run anew."
            )
        self._loops = loops
        self._earlier_seconds = content["seconds"]
        self.rollbacks = content["rollbacks"]
        self.stopped_by = content["stopped_by"]
        self.steps_done = sum(loop.step for loop in loops if loop.finished)
        self._truncate_log(self._log_bytes_of(loops[-1]) if loops else 0)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C (or SIGTERM) wait for the end of the outer step; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            self.say("Stopping after this outer step (Ctrl-C again to stop at once).")

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_DIVERGENCE_ADVICE = (
    "Lower the method's learning rates, bound its gradients where it has an option for that, or change the seed."
)

"""Run: the loop, the log and the random numbers of a method; with them it resumes, reports and stops in time."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from ddbench.contract.checkpoints import ANEW, Checkpoint, LoopState, read_checkpoint, write_checkpoint
from ddbench.contract.observer import Pace, Reporter, Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.snapshots import (
    check_readable,
    check_state,
    copy_entry,
    copy_tree,
    finite,
    global_generators,
    set_global_generators,
)
from ddbench.errors import DdbenchError, Interrupted, PluginError
from ddbench.machine.files import explained_os_errors, sha256
from ddbench.machine.seeds import derive_seed, seed_everything

SNAPSHOT_EVERY = 20
"""Outer steps between the states that a run can roll back to."""
CHECKPOINT_SHARE = 0.01
"""Largest share of a run's time that writing checkpoints may take."""
MAX_ROLLBACKS = 5
"""Roll-backs after which a run that keeps diverging is ended."""


class Run:
    """Random numbers, the loop, the log and the clock for a method.

    The harness makes it; a plugin's tests can make one with a folder and nothing else.

    Attributes:
        seed: the seed of the run.
        generator: the source of all random numbers, on the CPU.
        device: where tensors live.
        share_done: the share of the loop that is over, 0 to 1, for schedules. Under a time limit it follows the clock:
            such a run ends its schedule in time but cannot be repeated to the byte.
        seconds: time spent so far, over all interruptions but without the pauses.
        steps_done: outer steps of the loops that have finished.
        rollbacks: how often a loop diverged and went back to its last good state.
        stopped_by: "time limit" where that ended a loop early, otherwise empty.
        artifact: SHA-256 of the file with the method's result once `keep` was called, otherwise empty.
        checkpoint_path, log_path: files of the run.
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
        self.artifact = ""
        self.share_done = 0.0
        self._folder = folder
        self._time_limit = time_limit
        self._most_steps = most_steps
        self._reporter = reporter or Silent()
        self._on_progress = on_progress
        self._identity = identity
        self._loops: list[LoopState] = []
        self._current = -1
        # Always at a multiple of SNAPSHOT_EVERY, wherever checkpoints were written: an interruption does not move it.
        self._rollback_point: LoopState | None = None
        self._rollback_loop = -1
        self._broken_off: LoopState | None = None
        self._values: dict[str, float] = {}
        self._diverged = False
        self._interrupts = 0
        self._log_bytes = 0
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self._saved_at = self._started
        # Unknown before the first checkpoint, which is therefore written after the first outer step.
        self._save_seconds = 0.0
        self._restore()

    @property
    def checkpoint_path(self) -> Path:
        """Path of the run's checkpoint."""
        return self._folder / "checkpoint.pt"

    @property
    def log_path(self) -> Path:
        """Path of the log: JSON lines, one per outer step, with `loop`, `step`, `seconds` and the logged values."""
        return self._folder / "log.jsonl"

    @property
    def seconds(self) -> float:
        """Seconds spent so far, over all interruptions but without the pauses."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def time_left(self) -> float:
        """Seconds of the time limit that are left, never negative; infinite without a limit."""
        return math.inf if self._time_limit is None else max(0.0, self._time_limit - self.seconds)

    def say(self, text: str) -> None:
        """Print one line for the user."""
        self._reporter.say(text)

    def log(self, **values: float | Tensor) -> None:
        """Record values of this outer step in log.jsonl, the progress bar and the trackers.

        A value that is not finite makes the loop roll back to the last good state.
        """
        for name, value in values.items():
            number = float(value.detach() if isinstance(value, Tensor) else value)
            self._values[name] = number
            self._diverged = self._diverged or not math.isfinite(number)

    def loop(self, steps: int, state: Mapping[str, object]) -> Iterator[int]:
        """Yield `0 .. steps - 1`, or continue from where an interrupted run stopped.

        `state` names everything that changes from step to step: tensors (restored in place) and objects with
        `state_dict` and `load_state_dict`. A checkpoint is written after the first step, then whenever writing one
        costs less than 1 % of the time since the last, on Ctrl-C (which then raises `Interrupted`) and at the end.
        The loop ends early at the time limit. When a logged value or the state is not finite, the loop goes back to
        the last good state with other random numbers; after 5 times it raises `DdbenchError`. A method may have
        several loops, one after the other.
        """
        check_state(state)
        self.finish()
        total = steps if self._most_steps is None else min(steps, self._most_steps)
        self._current += 1
        if self._current == len(self._loops):
            self._loops.append(self._snapshot(0, state))
            check_readable(self._loops[-1].state)
        start = self._loops[self._current]
        self._load(start, state)
        if start.finished:
            return
        if self._rollback_loop != self._current or self._rollback_point is None:
            self._rollback_point, self._rollback_loop = start, self._current
        step, pace = start.step, Pace()
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
                    # Either a break or an exception: only what the method does next shows which.
                    self._broken_off = self._snapshot(step + 1, state)
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
                    self._rollback_point = self._snapshot(step, state)
                if self._interrupts or self._checkpoint_is_cheap():
                    self._checkpoint(step, state)
                if self._interrupts:
                    raise Interrupted(f"interrupted after outer step {step} of {total}.", "A checkpoint was kept.")
            if not finite(state):
                step = self._roll_back(state)
        self._end(self._snapshot(step, state))

    def finish(self) -> None:
        """End the loop that the method broke out of, if any; the harness calls this when the method has returned."""
        if self._broken_off is not None:
            self._end(self._broken_off)
            self._broken_off = None

    def keep(self, distilled: DistilledSet, path: Path) -> None:
        """Save the method's result, for the harness: a run that is interrupted later need not call the method again."""
        self.artifact = distilled.save(path)
        self._save()

    def kept(self, path: Path) -> DistilledSet | None:
        """Return the result that `keep` saved; None where there is none, or the file at `path` is another."""
        if not self.artifact or not path.is_file() or sha256(path.read_bytes()) != self.artifact:
            return None
        self.say("The distilled set was kept; its scoring continues.")
        return DistilledSet.load(path)

    def _end(self, last: LoopState) -> None:
        self.steps_done += last.step
        last.finished = True
        self._loops[self._current], self._rollback_point = last, None
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
        assert self._rollback_point is not None
        point = self._rollback_point
        self._load(point, state)
        self._truncate_log(point.log_bytes)
        # The same random numbers would diverge the same way again.
        fresh = derive_seed(self.seed, "roll-back", self.rollbacks)
        self.generator.manual_seed(fresh)
        seed_everything(fresh)
        culprit = ", ".join(f"{k} {v:g}" for k, v in self._values.items()) or "the state"
        self.say(f"Not finite ({culprit}): back to outer step {point.step} (roll-back {self.rollbacks}).")
        return point.step

    def _truncate_log(self, size: int) -> None:
        self._log_bytes = size
        if self.log_path.exists():
            with explained_os_errors(self.log_path), open(self.log_path, "r+b") as stream:
                stream.truncate(min(size, self.log_path.stat().st_size))

    def _snapshot(self, step: int, state: Mapping[str, object]) -> LoopState:
        copies = {name: copy_entry(entry) for name, entry in state.items()}
        generators = {"own": self.generator.get_state(), **global_generators()}
        return LoopState(step, False, copies, generators, self._log_bytes)

    def _load(self, snapshot: LoopState, state: Mapping[str, object]) -> None:
        if state.keys() != snapshot.state.keys():
            raise PluginError(
                f"the checkpoint holds {sorted(snapshot.state)}, the method's state is {sorted(state)}.",
                "The method has changed since the run was started: start it anew.",
            )
        for name, entry in state.items():
            saved = snapshot.state[name]
            if isinstance(entry, Tensor):
                with torch.no_grad():
                    entry.copy_(saved)
            else:
                entry.load_state_dict(copy_tree(saved))  # type: ignore[attr-defined]
        self.generator.set_state(snapshot.generators["own"])
        set_global_generators(snapshot.generators)

    def _checkpoint_is_cheap(self) -> bool:
        """Return whether a checkpoint, at the cost of the last one, takes at most its share of the time since then."""
        return self._save_seconds <= CHECKPOINT_SHARE * (time.monotonic() - self._saved_at)

    def _checkpoint(self, step: int, state: Mapping[str, object]) -> None:
        began = time.monotonic()
        assert self._rollback_point is not None
        at_rollback_point = step == self._rollback_point.step
        self._loops[self._current] = self._rollback_point if at_rollback_point else self._snapshot(step, state)
        self._save()
        # The copy is on disk now: the memory of a large state is freed.
        self._loops[self._current] = self._rollback_point
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def _save(self) -> None:
        checkpoint = Checkpoint(
            identity=self._identity,
            seconds=self.seconds,
            rollbacks=self.rollbacks,
            stopped_by=self.stopped_by,
            loops=self._loops,
            rollback_point=self._rollback_point,
            rollback_loop=self._rollback_loop,
            artifact=self.artifact,
        )
        write_checkpoint(self.checkpoint_path, checkpoint)

    def _restore(self) -> None:
        if not self.checkpoint_path.exists():
            self._truncate_log(0)
            return
        checkpoint = read_checkpoint(self.checkpoint_path)
        if checkpoint.identity != self._identity:
            raise DdbenchError(f"the checkpoint {self.checkpoint_path} belongs to another run.", ANEW)
        self._loops = checkpoint.loops
        self._rollback_point, self._rollback_loop = checkpoint.rollback_point, checkpoint.rollback_loop
        self._earlier_seconds = checkpoint.seconds
        self.rollbacks = checkpoint.rollbacks
        self.stopped_by = checkpoint.stopped_by
        self.artifact = checkpoint.artifact
        self.steps_done = sum(loop.step for loop in self._loops if loop.finished)
        self._truncate_log(self._loops[-1].log_bytes if self._loops else 0)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C (or SIGTERM) wait for the end of the outer step; a second one stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            self.say("Stopping after this outer step (Ctrl-C again to stop at once).")

        with _handling((signal.SIGINT, signal.SIGTERM), note):
            yield


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, with which schedulers end a job, raise `KeyboardInterrupt` as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM,), stop):
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


_DIVERGENCE_ADVICE = (
    "Lower the method's learning rates, bound its gradients where it has an option for that, or change the seed."
)

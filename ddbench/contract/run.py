"""Run: the loop, the log and the random numbers of a method; with them it resumes, reports and stops in time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ddbench.contract.checkpoints import ANEW, Checkpoint, LoopState, read_checkpoint, write_checkpoint
from ddbench.contract.log import Log
from ddbench.contract.observer import Pace, Reporter, Silent
from ddbench.contract.result_cache import ResultCache
from ddbench.contract.sets import DistilledSet
from ddbench.contract.signals import Interrupts
from ddbench.contract.snapshots import (
    check_readable,
    check_state,
    copy_entry,
    finite,
    generator_states,
    restore_entries,
    set_generator_states,
)
from ddbench.errors import DdbenchError, Interrupted, PluginError
from ddbench.machine import passes, processes
from ddbench.machine.files import sha256
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
            such a run ends its schedule in time but cannot be repeated to the byte. Under a pass limit it follows the
            passes.
        seconds: time spent so far, over all interruptions but without the pauses.
        time_left: seconds until the time limit, for work outside of loops; infinite without a limit.
        out_of_time: True as soon as no time is left.
        seconds_saved: seconds that results from the cache took in the runs that computed them.
        steps_done: outer steps of the loops that have finished.
        empty_loops: number of loops that took no step because the time limit was over.
        rollbacks: how often a loop diverged and went back to its last good state.
        passes: examples that went forward through networks so far, without the making of cached results, pools, experts
            and teachers, which later runs share.
        stopped_by: "time limit", "step limit" or "pass limit" where that ended a loop early, otherwise empty.
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
        most_passes: int | None = None,
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
        self.empty_loops = 0
        self.artifact = ""
        self.share_done = 0.0
        self._folder = folder
        self._time_limit = time_limit
        self._most_steps, self._most_passes = most_steps, most_passes
        self._earlier_passes, self._passes_before = 0, passes.total()
        self._reporter = reporter or Silent()
        self._on_progress = on_progress
        self._identity = identity
        self._loops: list[LoopState] = []
        self._current = -1
        # The cached result that is being made: its loops are numbered apart, because a later run may not need them.
        self._scope = ""
        self._loops_begun: dict[str, int] = {}
        self._loop_began = 0.0
        self._deadline = math.inf if time_limit is None else time_limit
        self._loops_cut = 0
        self._cache = ResultCache(self.device, lambda: self.seconds, self.say, self._apart)
        # Always at a multiple of SNAPSHOT_EVERY, wherever checkpoints were written: an interruption does not move it.
        self._rollback_point: LoopState | None = None
        self._rollback_loop = -1
        self._broken_off: LoopState | None = None
        self._values: dict[str, float] = {}
        self._diverged = False
        self._interrupts = Interrupts(self.say)
        self._log = Log(self.log_path)
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
        """Seconds until the time limit, never negative; infinite without a limit.

        Within a loop that has a share of the limit, seconds until that share is over. Work outside of loops counts
        too: what takes long there asks before each of its parts, and stops with what it has.
        """
        return max(0.0, self._deadline - self.seconds)

    @property
    def out_of_time(self) -> bool:
        """True as soon as no time is left."""
        return self.time_left == 0

    @property
    def passes(self) -> int:
        """Examples that went forward through networks so far, over all interruptions."""
        return self._earlier_passes + passes.total() - self._passes_before

    @property
    def seconds_saved(self) -> float:
        """Seconds that results from the cache took in the runs that computed them."""
        return math.fsum(self._cache.saved.values())

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

    def loop(self, steps: int, state: Mapping[str, object], share: float | None = None) -> Iterator[int]:
        """Yield `0 .. steps - 1`, or continue from where an interrupted run stopped.

        `state` names everything that changes from step to step: tensors (restored in place) and objects with
        `state_dict` and `load_state_dict`. A checkpoint is written after the first step, then whenever writing one
        costs less than 1 % of the time since the last, on Ctrl-C (which then raises `Interrupted`) and at the end.
        The loop ends early at the time limit. When a logged value or the state is not finite, the loop goes back to
        the last good state with other random numbers; after 5 times it raises `DdbenchError`.

        A method may have several loops, one after the other. `share`, such as 0.4, is the part of the whole time limit
        that this loop may take, from its start on; without it the loop takes all that is left.
        """
        check_state(state)
        if share is not None and not 0 < share <= 1:
            raise PluginError(f"a loop has share={share!r}.", "Give the part of the time limit it may take, above 0.")
        self.finish()
        total = steps if self._most_steps is None else min(steps, self._most_steps)
        if total < steps:
            self.stopped_by = self.stopped_by or "step limit"
        start = self._enter(state)
        self._load(start, state)
        if start.finished:
            # Whether the time limit or the method ended it is not known: it counts as cut short.
            self._loops_cut += start.step < steps
            return
        if self._rollback_loop != self._current or self._rollback_point is None:
            self._rollback_point, self._rollback_loop = start, self._current
        step, pace, passes_before = start.step, Pace(), self.passes
        if step:
            self.say(f"Resumed at outer step {step} of {total}.")
        with self._interrupts.waiting(), self._taking(share):
            while step < total:
                if self.out_of_time:
                    self._stop(step, "time limit")
                    break
                if self._most_passes is not None and self.passes >= self._most_passes:
                    self._stop(step, "pass limit")
                    break
                self._values, self._diverged = {}, False
                self.share_done = max(step / total, self._spent())
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
                self._report(step, total, pace, passes_before)
                if step % SNAPSHOT_EVERY == 0:
                    self._rollback_point = self._snapshot(step, state)
                if self._interrupts.count or self._checkpoint_is_cheap():
                    self._checkpoint(step, state)
                if self._interrupts.count:
                    raise Interrupted(f"interrupted after outer step {step} of {total}.", "A checkpoint was kept.")
            if not finite(state):
                step = self._roll_back(state)
        self._loops_cut += step < steps
        self._end(self._snapshot(step, state))

    def cached(self, name: str, key: object, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that `make()` returns, on `device`: from the cache where a run has computed them before.

        `key` must hold everything that they depend on: text, bytes, or values that JSON holds, such as a version of
        your own code, options, and `task.info.content_hash`. Random numbers within `make` follow from name and key
        alone, and go on behind it as if it had not been called. It may have loops of its own.

        The file is written at once or not at all. Another process that needs the same result waits for it. A result
        that the time limit, or a smoke run, has cut short is not kept; a damaged file is computed again. The seconds
        that the result once took go into the record of each run that reads it.
        """
        return processes.first_alone(lambda: self._cache.result(name, key, make))

    @contextmanager
    def _apart(self, digest: str) -> Iterator[Callable[[], bool]]:
        """Give a cached result loops and random numbers of its own; yield what says whether no loop was cut short."""
        self.finish()
        before, cut, scope = generator_states(self.generator), self._loops_cut, self._scope
        fresh = derive_seed("cached", digest)
        self.generator.manual_seed(fresh)
        seed_everything(fresh)
        self._scope = digest
        try:
            with passes.uncounted():
                yield lambda: self._loops_cut == cut and not self.out_of_time
                self.finish()
        finally:
            self._scope = scope
            set_generator_states(self.generator, before)

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

    def _enter(self, state: Mapping[str, object]) -> LoopState:
        """Make the next loop the current one, and return where it starts: a new one, or one of the checkpoint."""
        number = self._loops_begun.get(self._scope, 0)
        self._loops_begun[self._scope] = number + 1
        known = [place for place, loop in enumerate(self._loops) if loop.scope == self._scope]
        if number < len(known):
            self._current = known[number]
            self._loop_began = self._loops[self._current].began
        else:
            self._current, self._loop_began = len(self._loops), self.seconds
            self._loops.append(self._snapshot(0, state))
            check_readable(self._loops[-1].state)
        return self._loops[self._current]

    @contextmanager
    def _taking(self, share: float | None) -> Iterator[None]:
        """Let the loop end after its share of the time limit."""
        whole = self._deadline
        if share is not None and self._time_limit is not None:
            self._deadline = min(whole, self._loop_began + share * self._time_limit)
        try:
            yield
        finally:
            self._deadline = whole

    def _spent(self) -> float:
        """Return the share of the loop's seconds or of the run's passes that is spent, whichever is larger."""
        seconds = (self.seconds - self._loop_began) / (self._deadline - self._loop_began)
        return max(seconds, 0.0 if self._most_passes is None else self.passes / self._most_passes)

    def _stop(self, step: int, limit: str) -> None:
        self.stopped_by = limit
        if step == 0:
            self.empty_loops += 1
            number = self._loops_begun[self._scope]
            self.say(f"The {limit} was over before loop {number} of the method: it took no step.")

    def _end(self, last: LoopState) -> None:
        self.steps_done += last.step
        last.finished = True
        self._loops[self._current], self._rollback_point = last, None
        self._save()

    def _report(self, step: int, total: int, pace: Pace, passes_before: int) -> None:
        steps_left = total - step
        if self._most_passes is not None and self.passes > passes_before:
            each = (self.passes - passes_before) / pace.steps
            steps_left = min(steps_left, math.ceil((self._most_passes - self.passes) / each))
        left = pace.left(max(0, steps_left))
        if left is not None:
            left = min(left, self.time_left)
        self._reporter.progress(step, total, self._values, left)
        self._on_progress(step, total, self._values)

    def _record(self, step: int, total: int) -> None:
        if self._values:
            place = {"loop": self._current, "step": step, "seconds": round(self.seconds, 3)}
            self._log.append({**place, **self._values})

    def _roll_back(self, state: Mapping[str, object]) -> int:
        self.rollbacks += 1
        # Other random numbers than those that a cached result's key stands for.
        self._loops_cut += 1
        if self.rollbacks > MAX_ROLLBACKS:
            raise DdbenchError(
                f"the run diverged again after {MAX_ROLLBACKS} roll-backs and was ended.",
                "Lower the method's learning rates, bound its gradients if it has such an option, or change the seed.",
            )
        assert self._rollback_point is not None
        point = self._rollback_point
        self._load(point, state)
        self._log.truncate(point.log_bytes)
        # The same random numbers would diverge the same way again.
        fresh = derive_seed(self.seed, "roll-back", self.rollbacks)
        self.generator.manual_seed(fresh)
        seed_everything(fresh)
        culprit = ", ".join(f"{k} {v:g}" for k, v in self._values.items()) or "the state"
        self.say(f"Not finite ({culprit}): back to outer step {point.step} (roll-back {self.rollbacks}).")
        return point.step

    def _snapshot(self, step: int, state: Mapping[str, object]) -> LoopState:
        copies = {name: copy_entry(entry) for name, entry in state.items()}
        states = generator_states(self.generator)
        return LoopState(step, False, copies, states, self._log.bytes, self._scope, self._loop_began)

    def _load(self, snapshot: LoopState, state: Mapping[str, object]) -> None:
        restore_entries(snapshot.state, state)
        set_generator_states(self.generator, snapshot.generators)

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
            empty_loops=self.empty_loops,
            made=self._cache.made,
            saved=self._cache.saved,
            passes=self.passes,
        )
        write_checkpoint(self.checkpoint_path, checkpoint)

    def _restore(self) -> None:
        if not self.checkpoint_path.exists():
            self._log.truncate(0)
            return
        checkpoint = read_checkpoint(self.checkpoint_path)
        if checkpoint.identity != self._identity:
            raise DdbenchError(f"the checkpoint {self.checkpoint_path} belongs to another run.", ANEW)
        self._loops = checkpoint.loops
        self._rollback_point, self._rollback_loop = checkpoint.rollback_point, checkpoint.rollback_loop
        self._earlier_seconds, self._earlier_passes = checkpoint.seconds, checkpoint.passes
        self.rollbacks = checkpoint.rollbacks
        self.stopped_by = checkpoint.stopped_by
        self.artifact = checkpoint.artifact
        self.empty_loops = checkpoint.empty_loops
        self._cache.made, self._cache.saved = checkpoint.made, checkpoint.saved
        self.steps_done = sum(loop.step for loop in self._loops if loop.finished)
        self._log.truncate(self._loops[-1].log_bytes if self._loops else 0)

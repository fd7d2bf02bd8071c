"""Carry out many runs: take what is there, go on with what was begun, run what is missing, survive what fails."""

import errno
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pydantic

from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.plan import Plan
from ddbench.contract.signals import sigterm_as_ctrl_c
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted, Unsupported, UsageError
from ddbench.machine.environment import forget_peak_memory
from ddbench.machine.files import claimed
from ddbench.pipeline.plan import reason_to_skip
from ddbench.pipeline.runner import restart, run
from ddbench.records import store
from ddbench.records.result import RunFolder, RunResult

CLAIMS = ".claims"
"""Folder beside the run folders with a lock file for each run that a process is working on."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the disk: the next run would fail alike."""

State = Literal["present", "ok", "skipped", "failed", "missing", "interrupted"]


@dataclass(frozen=True)
class Job:
    """One run of many.

    Attributes:
        label: the run in words, such as `herding on digits-10, seed 1`.
        task: the name of what it is run on; runs of one method on one task take about as long.
        plan: the plan of the run.
    """

    label: str
    task: str
    plan: Plan

    @property
    def kind(self) -> tuple[str, str]:
        """Method and task, which a run's duration depends on."""
        return self.plan.settings.method.name, self.task


class Outcome(pydantic.BaseModel):
    """The end of a job.

    Attributes:
        label: the run in words.
        state: `present` where it was there already, `ok`, `skipped` or `failed`; of a job that was only looked up also
            `missing` and `interrupted`.
        reason: why it was skipped or failed.
        exit_code: the exit code that the run alone would have had.
        result: the record; None where there is none.
        seconds: the seconds that it took just now.
    """

    label: str
    state: State
    reason: str = ""
    exit_code: int = 0
    result: RunResult | None = None
    seconds: float = 0.0

    @property
    def in_words(self) -> str:
        """`accuracy 63.1 % in 2 s`, or why there is no score."""
        result = self.result
        if self.state != "ok" or result is None or result.score is None:
            return f"{self.state}: {self.reason}"
        value = f"{100 * result.score.mean:.1f} %" if result.metric.unit == "share" else f"{result.score.mean:.4g}"
        return f"{result.primary} {value} in {self.seconds:.0f} s"


class Carrier(Protocol):
    """A way of carrying out jobs: `carry_out`, or a launcher's."""

    def __call__(
        self,
        jobs: Sequence[Job],
        catalog: Catalog,
        *,
        runs: Path,
        leaderboards: Path,
        reporter: Reporter,
        folders_only: bool = False,
        each: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Return the outcome of each job."""
        ...


@dataclass
class Forecast:
    """The time that jobs will take, from those that have ended."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, job: Job, seconds: float) -> None:
        """Count a job that was run."""
        self.seconds.setdefault(job.kind, []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Return the expected seconds of a job: as its like took; else by its method, its time limit, or all jobs.

        None while nothing is known.
        """
        method, _ = job.kind
        alike = self.seconds.get(job.kind) or [
            each for (name, _), took in self.seconds.items() if name == method for each in took
        ]
        if alike:
            return math.fsum(alike) / len(alike)
        if job.plan.settings.time_limit is not None:
            return job.plan.settings.time_limit
        every = [each for took in self.seconds.values() for each in took]
        return math.fsum(every) / len(every) if every else None

    def left(self, jobs: Sequence[Job]) -> float | None:
        """Return the expected seconds of several jobs, None while that of one is not known."""
        each = [self.of(job) for job in jobs]
        return None if None in each else math.fsum(seconds for seconds in each if seconds is not None)


class _Part:
    """The reporter of one run of many: it moves the progress of all, and keeps its own chatter to itself."""

    def __init__(self, reporter: Reporter, done: int, total: int, expected: float | None, later: float | None) -> None:
        self._reporter, self._done, self._total = reporter, done, total
        self._expected, self._later, self._began = expected, later, time.monotonic()

    def say(self, text: str) -> None:
        """Do nothing: the run folder says it."""

    def stage(self, title: str) -> None:
        """Show the time that is left; the stage is one of many."""
        self.progress(0, 0, {}, None)

    def progress(self, done: int, total: int, values: Mapping[str, float], seconds_left: float | None) -> None:
        """Show how many runs are done, and the time that all will take."""
        left = seconds_left if self._expected is None else max(self._expected - (time.monotonic() - self._began), 0.0)
        whole = None if left is None or self._later is None else left + self._later
        self._reporter.progress(self._done, self._total, values, whole)


def carry_out(
    jobs: Sequence[Job],
    catalog: Catalog,
    *,
    runs: Path,
    leaderboards: Path,
    reporter: Reporter,
    folders_only: bool = False,
    wait: bool = True,
    each: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Carry out jobs in turn, and return their outcomes in that order.

    A job that is there already is taken: from `runs`, its row added if missing, or from `leaderboards` unless
    `folders_only`. One that was interrupted or killed goes on in its folder. A job that another process is working on
    comes last; without `wait` it is left to that process, and has no outcome. A job that fails does not keep the
    others from running. `each` is called with every outcome as soon as it is known.

    Raises `Interrupted` on Ctrl-C, and `DdbenchError` where the disk takes no more.
    """
    total, forecast = len(jobs), Forecast()
    outcomes: dict[int, Outcome] = {}
    recorded = {} if folders_only else records_by_run(leaderboards)
    waiting, postponed = deque(range(total)), set[int]()
    with sigterm_as_ctrl_c():
        while waiting:
            number = waiting.popleft()
            job = jobs[number]
            patience = 1 if number in postponed else 0
            with claimed(runs / CLAIMS / f"{job.plan.settings.fingerprint[:24]}.lock", patience) as own:
                if not own:
                    if wait:
                        if number not in postponed:
                            reporter.say(f"{job.label}: another process is working on it; it comes last.")
                        postponed.add(number)
                        waiting.append(number)
                    continue
                outcome = _present(job, runs, leaderboards, recorded)
                if outcome is None:
                    later = forecast.left([jobs[other] for other in waiting])
                    place = f"{len(outcomes) + 1} of {total}"
                    reporter.stage(f"{place}: {job.label}")
                    part = _Part(reporter, len(outcomes), total, forecast.of(job), later)
                    outcome = _attempt(job, catalog, runs, leaderboards, part)
                    reporter.say(f"{place}: {job.label}: {outcome.in_words}")
                    if outcome.state == "ok":
                        forecast.add(job, outcome.seconds)
                outcomes[number] = outcome
                each(outcome)
    return [outcomes[number] for number in sorted(outcomes)]


def records_by_run(leaderboards: Path) -> dict[tuple[str, str], RunResult]:
    """Return the records by fingerprint and version of the method, the latest of several; empty where none are."""
    if not leaderboards.is_dir():
        return {}
    return {(record.fingerprint, record.method_source): record for record in store.read(leaderboards)}


def finished(runs: Path, plan: Plan) -> RunResult | None:
    """Return the result in `runs` of the same spec and version of the method that ended well, or was skipped."""
    for folder in _folders(runs, plan):
        result = _read(folder)
        same = (plan.settings.fingerprint, plan.method.distribution)
        ended = result is not None and result.status in ("ok", "skipped")
        if ended and result is not None and (result.fingerprint, result.method_source) == same:
            return result
    return None


def look_up(job: Job, runs: Path, recorded: Mapping[tuple[str, str], RunResult]) -> Outcome:
    """Return what is there of a job; nothing is run or written."""
    outcome = _present(job, runs, None, recorded)
    if outcome is not None:
        return outcome
    reason = reason_to_skip(job.plan)
    if reason:
        return Outcome(label=job.label, state="skipped", reason=reason)
    earlier = [(folder, _read(folder)) for folder in _folders(runs, job.plan)]
    for folder, result in earlier:
        if result is None or result.status == "interrupted":
            return Outcome(label=job.label, state="interrupted", reason=f"{folder.path} has not ended.")
    if earlier:
        result = earlier[-1][1]
        if result is not None and result.status == "failed":
            return Outcome(label=job.label, state="failed", reason=result.reason, result=None)
    return Outcome(label=job.label, state="missing")


def _present(
    job: Job,
    runs: Path,
    leaderboards: Path | None,
    recorded: Mapping[tuple[str, str], RunResult],
) -> Outcome | None:
    result = finished(runs, job.plan)
    if result is not None:
        if result.status == "skipped":
            return Outcome(label=job.label, state="skipped", reason=result.reason, result=result)
        if leaderboards is not None and not job.plan.settings.smoke:
            store.ensure(leaderboards, RunFolder(Path(result.run_dir)), result, Silent())
        return Outcome(label=job.label, state="present", result=result)
    record = recorded.get((job.plan.settings.fingerprint, job.plan.method.distribution))
    return None if record is None else Outcome(label=job.label, state="present", result=record)


def _attempt(job: Job, catalog: Catalog, runs: Path, leaderboards: Path, reporter: Reporter) -> Outcome:
    """Run a job, or go on with it, and return how it ended. Raises `Interrupted`, and errors of the disk."""
    began = time.monotonic()
    forget_peak_memory()
    try:
        reason = reason_to_skip(job.plan)
        if reason:
            # Known without loading anything: no folder is worth it.
            return Outcome(label=job.label, state="skipped", reason=reason)
        result = _go_on(job, catalog, runs, leaderboards, reporter) or run(
            job.plan.settings, catalog=catalog, runs=runs, leaderboards=leaderboards, reporter=reporter
        )
    except Interrupted:
        raise
    except Unsupported as error:
        return Outcome(label=job.label, state="skipped", reason=error.message)
    except DdbenchError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK:
            raise
        reason = f"{error.message} {error.hint}".strip()
        return Outcome(label=job.label, state="failed", reason=reason, exit_code=error.exit_code)
    except MemoryError:
        return Outcome(label=job.label, state="failed", reason="the machine ran out of memory.", exit_code=1)
    except Exception as error:
        return Outcome(label=job.label, state="failed", reason=f"{type(error).__name__}: {error}", exit_code=1)
    seconds = time.monotonic() - began
    state: State = "skipped" if result.status == "skipped" else "ok"
    return Outcome(label=job.label, state=state, reason=result.reason, result=result, seconds=seconds)


def _go_on(job: Job, catalog: Catalog, runs: Path, leaderboards: Path, reporter: Reporter) -> RunResult | None:
    """Carry on with a run that was interrupted or killed; None where there is none, or its code has changed."""
    for folder in _folders(runs, job.plan):
        result = _read(folder)
        if result is None or result.status == "interrupted":
            try:
                started = restart(folder, catalog=catalog, leaderboards=leaderboards, reporter=reporter)
            except UsageError:
                # The code of a component is another now, or a file of the folder is damaged: the run begins anew.
                continue
            return started.carry_out()
    return None


def _folders(runs: Path, plan: Plan) -> list[RunFolder]:
    """Return the folders of runs of the same spec."""
    folders = [RunFolder(path) for path in sorted(runs.glob(f"{plan.settings.run_id}*")) if path.is_dir()]
    same = []
    for folder in folders:
        try:
            if folder.read_spec().fingerprint == plan.settings.fingerprint:
                same.append(folder)
        except UsageError:
            continue
    return same


def _read(folder: RunFolder) -> RunResult | None:
    try:
        return folder.read_result()
    except UsageError:
        return None

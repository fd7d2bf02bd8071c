"""The matrix of a suite: methods by tasks, with ranks, gains over random real images, and aggregates over tasks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pydantic
from pydantic import ConfigDict

from ddbench.machine.environment import machine_class
from ddbench.records.ranking import Line, ranks
from ddbench.records.result import TIME_LIMIT, RunResult
from ddbench.records.stats import Interval, Score, bootstrap, holm, signed_rank

State = Literal["ok", "elsewhere", "missing", "skipped", "failed"]


class Cell(pydantic.BaseModel):
    """A method on a task.

    Attributes:
        state: `ok`; `elsewhere` where the time limit ended it on a machine of another class, so that it is not ranked;
            `missing`, `skipped` or `failed`.
        reason: why it has no score, or no rank.
        score: the score over networks, and over seeds where there are several.
        gain: how much better the score is than that of the reference, in the metric's unit; positive is better.
        rank: the rank on the task: one more than the number of methods that are shown to be better.
        seeds: the seeds that there are.
        runs: names of the runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    reason: str = ""
    score: Score | None = None
    gain: float | None = None
    rank: int | None = None
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()


class Aggregate(pydantic.BaseModel):
    """A method over the tasks that it is ranked on.

    Attributes:
        tasks: number of those tasks.
        rank: mean of its ranks by mean score, ties shared, with an interval over tasks.
        gain: mean gain over the reference, with an interval over tasks; None where no task has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int
    rank: Interval
    gain: Interval | None


class Comparison(pydantic.BaseModel):
    """Two methods over the tasks that both are ranked on.

    Attributes:
        first: a method.
        second: another.
        tasks: number of those tasks.
        wins: tasks on which the first has the better mean.
        losses: tasks on which the second has.
        p: p-value of Wilcoxon's signed-rank test over tasks (Demsar 2006, Section 3.1.3); None below two tasks.
        corrected: the p-value after Holm's correction for all pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    tasks: int
    wins: int
    losses: int
    p: float | None
    corrected: float | None


class Matrix(pydantic.BaseModel):
    """Methods by tasks.

    Attributes:
        tasks: names of the tasks.
        cells: `cells[method][task]`.
        units: unit of the metric, by task that has a score.
        aggregates: by method that is ranked anywhere, best mean rank first.
        comparisons: every pair of methods that share a task.
        reference: the companion that gains are measured over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    units: dict[str, str]
    aggregates: dict[str, Aggregate]
    comparisons: tuple[Comparison, ...]
    reference: str


@dataclass(frozen=True)
class Runs:
    """The runs of a method on a task: records by seed, and why there are no others."""

    records: Sequence[RunResult]
    state: State = "missing"
    reason: str = ""


def matrix(runs: Mapping[str, Mapping[str, Runs]], reference: str, machine: str) -> Matrix:
    """Return the matrix of `runs[method][task]`; runs that the clock ended on another `machine` class rank apart."""
    tasks = tuple(dict.fromkeys(task for row in runs.values() for task in row))
    cells: dict[str, dict[str, Cell]] = {method: {} for method in runs}
    gains: dict[str, dict[str, float]] = {method: {} for method in runs}
    positions: dict[str, dict[str, float]] = {method: {} for method in runs}
    means: dict[str, dict[str, float]] = {method: {} for method in runs}
    units: dict[str, str] = {}
    for task in tasks:
        here = {method: row[task] for method, row in runs.items() if task in row}
        lines = {method: Line.join(each.records) for method, each in here.items() if each.records}
        abroad = {method: _elsewhere(line, machine) for method, line in lines.items()}
        compared = [method for method in lines if not abroad[method]]
        order = dict(zip(compared, ranks([lines[method] for method in compared]), strict=True))
        for method, each in here.items():
            line = lines.get(method)
            if line is None:
                cells[method][task] = Cell(state=each.state, reason=each.reason)
                continue
            units[task] = line.first.metric.unit
            gain = _gain(line, method, reference)
            cells[method][task] = Cell(
                state="elsewhere" if abroad[method] else "ok",
                reason=abroad[method] or each.reason,
                score=line.score.model_copy(update={"values": []}),
                gain=gain,
                rank=order.get(method),
                seeds=tuple(record.settings.seed for record in line.records),
                runs=tuple(record.run_id for record in line.records),
            )
            if method in order:
                sign = 1 if line.first.metric.higher_is_better else -1
                means[method][task] = sign * line.score.mean
                if gain is not None:
                    gains[method][task] = gain
        for method, position in _positions({method: means[method][task] for method in compared}).items():
            positions[method][task] = position
    aggregates = {
        method: Aggregate(
            tasks=len(ranked),
            rank=bootstrap(list(ranked.values())),
            gain=bootstrap(list(gains[method].values())) if gains[method] else None,
        )
        for method, ranked in positions.items()
        if ranked
    }
    ordered = dict(sorted(aggregates.items(), key=lambda item: item[1].rank.mean))
    return Matrix(
        tasks=tasks,
        cells=cells,
        units=units,
        aggregates=ordered,
        comparisons=tuple(_comparisons(means)),
        reference=reference,
    )


def _elsewhere(line: Line, machine: str) -> str:
    """Return why a line is not ranked: the clock ended one of its runs on a machine of another class."""
    for record in line.records:
        own = machine_class(record.environment)
        if record.loop.stopped_by == TIME_LIMIT and own != machine:
            return f"the time limit ended it on {own}, not on {machine}"
    return ""


def _gain(line: Line, method: str, reference: str) -> float | None:
    """Return the mean gain of the records over their companion `reference`; the reference gains nothing on itself."""
    if line.first.settings.method.name == reference:
        return 0.0
    companions = [record.companions.get(reference) for record in line.records]
    known = [companion.mean for companion in companions if companion is not None]
    if len(known) < len(line.records):
        return None
    sign = 1 if line.first.metric.higher_is_better else -1
    return sign * (line.score.mean - math.fsum(known) / len(known))


def _positions(means: Mapping[str, float]) -> dict[str, float]:
    """Return the rank of each method by its mean, larger being better; equal ones share the mean of their ranks."""
    from scipy.stats import rankdata

    if not means:
        return {}
    positions = rankdata([-mean for mean in means.values()])
    return dict(zip(means, map(float, positions), strict=True))


def _comparisons(means: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    """Return every pair of methods that share a task, with p-values corrected for all of them."""
    pairs = []
    for first, second in itertools.combinations(means, 2):
        shared = means[first].keys() & means[second].keys()
        gaps = [means[first][task] - means[second][task] for task in sorted(shared)]
        if gaps:
            pairs.append((first, second, gaps, signed_rank(gaps)))
    corrected = iter(holm([p for *_, p in pairs if p is not None]))
    return [
        Comparison(
            first=first,
            second=second,
            tasks=len(gaps),
            wins=sum(gap > 0 for gap in gaps),
            losses=sum(gap < 0 for gap in gaps),
            p=p,
            corrected=None if p is None else next(corrected),
        )
        for first, second, gaps, p in pairs
    ]

"""Records that compare: lines over seeds, rankings of lines, and ranks."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ddbench.contract.metric import Metric, missed_thresholds
from ddbench.records.columns import COLUMNS, Column
from ddbench.records.result import RunResult
from ddbench.records.stats import Score, crossed

FLAT = ("epochs", "steps")
IGNORED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("train/v1", "train-dsa/v1", "train-teacher/v1"), FLAT),
    "knn/v1": (*FLAT, "eval_init", "eval_network"),
}
"""Fields of the settings that the score does not depend on, for records written before protocols declared them."""


def ignored_fields(record: RunResult) -> Collection[str]:
    """Return the fields of the settings that the score of a record does not depend on; none where it is not known."""
    assert record.protocol is not None
    ignored = record.protocol.ignores
    return IGNORED.get(record.protocol.name, ()) if ignored is None else ignored


def compared(record: RunResult) -> list[Column]:
    """Return the columns that a record has in common with the others of its ranking.

    What a set was distilled for is the method's own choice, and so are its options. Columns of settings that its
    protocol ignores say nothing about the score.
    """
    ignored = ignored_fields(record)
    return [column for column in COLUMNS if column.compares == "ranking" and column.field not in ignored]


def but_seed(record: RunResult, leave_out: Collection[str] = ()) -> tuple[str, ...]:
    """Return what records have in common that differ in nothing but the seed, or in the columns to leave out."""
    columns = [column for column in COLUMNS if column.compares and column.name not in leave_out]
    return tuple(str(column.cell(record)) for column in columns)


@dataclass(frozen=True)
class Line:
    """A line of a ranking: the records that differ in nothing but the seed of the distillation.

    Attributes:
        records: the records, by seed.
        score: the score over networks, and over seeds where there are several (`crossed`).
    """

    records: tuple[RunResult, ...]
    score: Score

    @classmethod
    def join(cls, records: Iterable[RunResult]) -> "Line":
        """Return the line of records that differ in their seed; a single record's score is its own."""
        ordered = tuple(sorted(records, key=lambda record: record.settings.seed))
        scores = [record.scores[record.primary] for record in ordered]
        return cls(ordered, scores[0] if len(scores) == 1 else crossed([score.values for score in scores]))

    @property
    def first(self) -> RunResult:
        """The record of the lowest seed, which stands for what all have in common."""
        return self.records[0]

    @property
    def means(self) -> dict[str, float]:
        """The mean over the records in each metric that all of them have."""
        each = [record.means for record in self.records]
        shared = [name for name in each[0] if all(name in means for means in each)]
        return {name: math.fsum(means[name] for means in each) / len(each) for name in shared}

    @property
    def missed(self) -> list[Metric]:
        """The metrics whose threshold it misses; such a line is ranked behind those that miss none."""
        return missed_thresholds(self.first.metrics, self.means)


def groups(records: Iterable[RunResult]) -> list[list[Line]]:
    """Return the rankings: lines that compare with one another, best first.

    A line that misses a threshold stands behind those that miss none.
    """
    grouped: dict[tuple[tuple[str, str], ...], dict[tuple[str, ...], list[RunResult]]] = {}
    for record in records:
        group = grouped.setdefault(tuple((column.name, str(column.cell(record))) for column in compared(record)), {})
        group.setdefault(but_seed(record), []).append(record)
    rankings = []
    for group in grouped.values():
        lines = [line for same in group.values() for line in _lines(same)]
        sign = -1 if lines[0].first.metric.higher_is_better else 1
        rankings.append(sorted(lines, key=lambda line: (bool(line.missed), sign * line.score.mean)))
    return rankings


def _lines(same: Sequence[RunResult]) -> list[Line]:
    """Return one line for all seeds, or a line each where a seed was run twice: over other pools, say."""
    if len({record.settings.seed for record in same}) == len(same):
        return [Line.join(same)]
    return [Line.join([record]) for record in same]


def ranks(group: Sequence[Line]) -> list[int]:
    """Return the rank of each line of a group: one more than the number of lines that are shown to be better.

    A line is shown to be better than another when their 95 % intervals do not overlap, so lines whose intervals
    overlap can share a rank. A single network supports no interval: nothing is shown of it. A line that misses a
    threshold is behind every line that misses none.
    """

    def bounds(line: Line) -> tuple[float, float]:
        low, high = line.score.low, line.score.high
        if low is None or high is None:
            return -math.inf, math.inf
        return (low, high) if line.first.metric.higher_is_better else (-high, -low)

    intervals = [(bool(line.missed), *bounds(line)) for line in group]

    def is_ahead(other: tuple[bool, float, float], own: tuple[bool, float, float]) -> bool:
        return other[1] > own[2] if other[0] == own[0] else own[0]

    return [1 + sum(is_ahead(other, own) for other in intervals) for own in intervals]


def seeds_of(records: Iterable[RunResult], record: RunResult) -> dict[int, RunResult]:
    """Return the records that differ from `record` in nothing but the seed, itself included, by seed."""
    same = but_seed(record)
    return {other.settings.seed: other for other in records if but_seed(other) == same}

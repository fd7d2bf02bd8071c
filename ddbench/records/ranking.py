"""Records that compare: lines over seeds, rankings of lines, and ranks."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ddbench.records.columns import COLUMNS, Column
from ddbench.records.result import RunResult
from ddbench.records.stats import Score, crossed


def compared() -> list[Column]:
    """Return the columns that records of one ranking have in common.

    What a set was distilled for is the method's own choice, and so are its options.
    """
    return [column for column in COLUMNS if column.compares == "ranking"]


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


def groups(records: Iterable[RunResult]) -> list[list[Line]]:
    """Return the rankings: lines that compare with one another, best first."""
    grouped: dict[tuple[str, ...], dict[tuple[str, ...], list[RunResult]]] = {}
    columns = compared()
    for record in records:
        group = grouped.setdefault(tuple(str(column.cell(record)) for column in columns), {})
        group.setdefault(but_seed(record), []).append(record)
    rankings = []
    for group in grouped.values():
        lines = [line for same in group.values() for line in _lines(same)]
        higher = lines[0].first.metric.higher_is_better
        rankings.append(sorted(lines, key=lambda line: line.score.mean, reverse=higher))
    return rankings


def _lines(same: Sequence[RunResult]) -> list[Line]:
    """Return one line for all seeds, or a line each where a seed was run twice: over other pools, say."""
    if len({record.settings.seed for record in same}) == len(same):
        return [Line.join(same)]
    return [Line.join([record]) for record in same]


def ranks(group: Sequence[Line]) -> list[int]:
    """Return the rank of each line of a group: one more than the number of lines that are shown to be better.

    A line is shown to be better than another when their 95 % intervals do not overlap, so lines whose intervals
    overlap can share a rank. A single network supports no interval: nothing is shown of it.
    """

    def bounds(line: Line) -> tuple[float, float]:
        low, high = line.score.low, line.score.high
        if low is None or high is None:
            return -math.inf, math.inf
        return (low, high) if line.first.metric.higher_is_better else (-high, -low)

    return [1 + sum(bounds(other)[0] > bounds(line)[1] for other in group) for line in group]


def seeds_of(records: Iterable[RunResult], record: RunResult) -> dict[int, RunResult]:
    """Return the records that differ from `record` in nothing but the seed, itself included, by seed."""
    same = but_seed(record)
    return {other.settings.seed: other for other in records if but_seed(other) == same}

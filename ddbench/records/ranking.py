"""Which rows compare, as lines over seeds, and their ranks."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddbench.records.leaderboard import COLUMNS, Row
from ddbench.records.stats import Score, crossed

_RUN = (
    "method",
    "method_source",
    "dataset",
    "dataset_hash",
    "network",
    "sample_shape",
    "init",
    "eval_init",
    "objective",
    "target",
    "images_per_class",
    "steps",
    "epochs",
    "protocol",
    "metric",
    "n",
)


COMPARED = (
    "dataset", "dataset_hash", "train_images", "network", "network_options", "eval_init", "eval_init_options",
    "objective", "objective_options", "target", "metric", "images_per_class", "steps", "epochs", "protocol",
    "protocol_hash", "label_regime",
)  # fmt: skip
"""Columns that rows of one ranking have in common; what they were distilled for is the method's own choice."""


@dataclass(frozen=True)
class Line:
    """One line of a ranking: the rows that differ in nothing but the seed of the distillation, by seed.

    `score` is over networks, and over seeds where there are several (`crossed`).
    """

    rows: tuple[Row, ...]
    score: Score

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Line":
        """The line of rows that differ in their seed; a single row's figures are its own."""
        ordered = tuple(sorted(rows, key=lambda row: row.seed))
        first = ordered[0]
        if len(ordered) == 1:
            own = {name: getattr(first, name) for name in ("mean", "std", "low", "high", "n")}
            return cls(ordered, Score(**own, values=json.loads(first.values)))
        return cls(ordered, crossed([json.loads(row.values) for row in ordered]))

    @property
    def first(self) -> Row:
        """The row of the lowest seed, which stands for what all have in common."""
        return self.rows[0]


def groups(rows: Iterable[Row]) -> list[list[Line]]:
    """Lines that may be ranked against one another, best first: those that are one in the columns `COMPARED`."""
    grouped: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]] = {}
    for row in rows:
        group = grouped.setdefault(tuple(str(getattr(row, column)) for column in COMPARED), {})
        group.setdefault(but_seed(row), []).append(row)
    found = []
    for group in grouped.values():
        lines = [line for same in group.values() for line in _lines(same)]
        found.append(sorted(lines, key=lambda line: line.score.mean, reverse=lines[0].first.higher_is_better))
    return found


def _lines(same: Sequence[Row]) -> list[Line]:
    """One line for all seeds, or a line each where a seed was run twice: over other pools, say."""
    if len({row.seed for row in same}) == len(same):
        return [Line.of(same)]
    return [Line.of([row]) for row in same]


def ranks(group: Sequence[Line]) -> list[int]:
    """The rank of each line of a group: one more than the lines that are shown to be better.

    A line is shown better than another when their 95 % intervals do not overlap, so lines whose intervals overlap can
    share a rank. A single network supports no interval: nothing is shown of it.
    """

    def bounds(line: Line) -> tuple[float, float]:
        low, high = line.score.low, line.score.high
        if low is None or high is None:
            return -math.inf, math.inf
        return (low, high) if line.first.higher_is_better else (-high, -low)

    return [1 + sum(bounds(other)[0] > bounds(line)[1] for other in group) for line in group]


def seeds_of(rows: Iterable[Row], row: Row) -> dict[int, Row]:
    """The rows that differ from `row` in nothing but the seed of the distillation, itself included, by seed."""
    return {r.seed: r for r in rows if but_seed(r) == but_seed(row)}


def but_seed(row: Row, *but: str) -> tuple[str, ...]:
    """What rows have in common that differ in nothing but the seed, and in the columns named."""
    names = [name for name in COLUMNS if name.endswith("_options") or name in _RUN]
    return tuple(str(getattr(row, name)) for name in names if name not in but)

"""The matrix of a leaderboard: every method in every ranking, with its gain over random real images."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddbench.records.ranking import Line, ignored_fields, ranks
from ddbench.records.result import BEST_CORESET, FULL_DATA, LABELLER, NO_ADAPTATION, TEACHER, RunResult

BOUNDS = (FULL_DATA, NO_ADAPTATION, LABELLER)
"""Companions that bound a score: no methods of their own."""


def baselines(companions: Iterable[str]) -> list[str]:
    """Return the names of companions that are methods of their own: random real images, as a rule.

    The full data, untouched networks, the teacher of the labels and a best coreset bound a score or refer to it. Of
    random images with hard and with soft labels, those with soft labels count.
    """
    names = list(companions)
    rivals = [name for name in names if name not in BOUNDS and not name.startswith(BEST_CORESET)]
    return [name for name in rivals if name + TEACHER not in names]


def gain(line: Line) -> float | None:
    """Return how much better a line is than its baseline, in the unit of the metric; None where it has none.

    A mean over the seeds that the line joins. Of several baselines the best one counts.
    """
    sign = 1 if line.first.metric.higher_is_better else -1
    each = []
    for record in line.records:
        own, names = record.scores[record.primary].mean, baselines(record.companions)
        if not names:
            return None
        each.append(min(sign * (own - record.companions[name].mean) for name in names))
    return math.fsum(each) / len(each)


@dataclass(frozen=True)
class Cell:
    """A method in a ranking.

    Attributes:
        line: the line that stands for the method.
        rank: rank of the line.
        of: number of lines in the ranking.
        gain: gain of the line over random real images, in the unit of the metric; zero for the baseline itself, None
            where it was not measured.
        lines: number of lines that the method has in the ranking, with other options, say.
    """

    line: Line
    rank: int
    of: int
    gain: float | None
    lines: int


def cells(ranking: Sequence[Line]) -> dict[str, Cell]:
    """Return a cell for each method of a ranking, best first.

    Of several lines of a method the one with most seeds stands for it, then with most networks, then the newest.
    The score does not decide: it is measured on test data.
    """
    by_method: dict[str, list[tuple[Line, int]]] = {}
    for line, rank in zip(ranking, ranks(ranking), strict=True):
        by_method.setdefault(line.first.settings.method.name, []).append((line, rank))
    chosen, rivals = {}, {name for line in ranking for name in baselines(line.first.companions)}
    for method, own in by_method.items():
        line, rank = max(own, key=lambda pair: (len(pair[0].records), pair[0].score.n, pair[0].first.created))
        better = 0.0 if method in rivals else gain(line)
        chosen[method] = Cell(line, rank, len(ranking), better, len(own))
    return chosen


@dataclass(frozen=True)
class Matrix:
    """Methods and rankings with their cells.

    Attributes:
        rankings: the rankings, by dataset, images per class and size.
        methods: names of the methods, by their mean gain in these rankings; those without a gain come last.
        cells: the cells of each ranking, by method.
    """

    rankings: tuple[Sequence[Line], ...]
    methods: tuple[str, ...]
    cells: tuple[Mapping[str, Cell], ...]

    @classmethod
    def build(cls, rankings: Iterable[Sequence[Line]]) -> "Matrix":
        """Return the matrix of rankings."""
        ordered = tuple(sorted(rankings, key=_place))
        columns = tuple(cells(ranking) for ranking in ordered)
        names = dict.fromkeys(name for column in columns for name in column)
        gains = {name: mean_gain(name, columns) for name in names}
        methods = sorted(names, key=lambda name: (gains[name] is None, -(gains[name] or 0.0), name))
        return cls(ordered, tuple(methods), columns)


def mean_gain(method: str, columns: Iterable[Mapping[str, Cell]]) -> float | None:
    """Return the mean gain of a method over the rankings whose metric is a share; None where there is none."""
    gains = [
        cell.gain
        for column in columns
        if (cell := column.get(method)) is not None and cell.gain is not None and cell.line.first.metric.unit == "share"
    ]
    return math.fsum(gains) / len(gains) if gains else None


def _place(ranking: Sequence[Line]) -> tuple[object, ...]:
    record = ranking[0].first
    name = record.dataset.name if record.dataset else ""
    return name, record.settings.images_per_class, record.settings.target is not None, -len(ranking)


def network_of(record: RunResult) -> str:
    """Return the architecture that scored, such as `convnet(width=16)`; empty under a protocol that uses none.

    Options are in the order of the alphabet: old records hold them in another order than new ones.
    """
    if "eval_network" in ignored_fields(record):
        return ""
    network = record.settings.eval_network
    return str(network.model_copy(update={"options": dict(sorted(network.options.items()))}))


def usual(rankings: Iterable[Sequence[Line]]) -> tuple[str, str]:
    """Return the protocol of most lines, and the network of most of its lines; empty for no lines.

    Lines of methods that take outer steps count first: there are more ways to choose real images than to distil them,
    and the board is one of distillation.
    """
    counts: Counter[tuple[str, str]] = Counter()
    learned: Counter[tuple[str, str]] = Counter()
    for ranking in rankings:
        record = ranking[0].first
        pair = record.settings.protocol, network_of(record)
        counts[pair] += len(ranking)
        learned[pair] += sum(line.first.loop.steps > 0 for line in ranking)
    if not counts:
        return "", ""

    def of_protocol(name: str) -> tuple[int, int, str]:
        own = [pair for pair in counts if pair[0] == name]
        return sum(learned[pair] for pair in own), sum(counts[pair] for pair in own), name

    protocol = max({name for name, _ in counts}, key=of_protocol)
    of_its_own = (pair for pair in counts if pair[0] == protocol)
    return max(of_its_own, key=lambda pair: (learned[pair], counts[pair], pair))

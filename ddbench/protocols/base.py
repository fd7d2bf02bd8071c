"""The interface of protocols, and the scoring loop that they share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from typing import Protocol as Structural

import torch
from torch import Tensor, nn

from ddbench.contract.examples import ExampleSet
from ddbench.contract.journal import Journal, digest
from ddbench.contract.metric import Metric
from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.state import State
from ddbench.contract.task import Budget, Loss, Networks, Objective, Side
from ddbench.engine.attacks import UnderAttack
from ddbench.engine.example_weights import weigh, weighted_loss
from ddbench.engine.networks import measure, unstack
from ddbench.engine.workers import for_each_network
from ddbench.errors import DdbenchError
from ddbench.machine.seeds import derive_seed

FULL_NETWORKS = 5
"""Networks trained on the full data that scores are compared with, or that give labels."""


@dataclass(frozen=True)
class Setting:
    """Everything a protocol needs besides the set: data to select on and to score on, networks, objective, budget.

    `networks(side, generator)` opens one side of the init distribution, drawn with `generator`. `full_data(patience)`
    are the states of networks trained on all that methods are given; it raises `MissingPrerequisite` where that would
    take longer than `patience` seconds. `journal` keeps the values of networks already scored; the default keeps none.
    `under_attack` are the attacks that trained networks are scored under too; None for none.
    """

    module: nn.Module
    validation: ExampleSet
    test: ExampleSet
    objective: Objective
    budget: Budget
    networks: Callable[[Side, torch.Generator], Networks]
    full_data: Callable[[float], Sequence[State]]
    journal: Journal = field(default_factory=Journal)
    under_attack: UnderAttack | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the objective, and those that attacks add."""
        attacks = self.under_attack.attacks if self.under_attack else ()
        return (*self.objective.metrics, *(attack.metric(self.objective.metric) for attack in attacks))

    def measure(self, network: nn.Module, state: State) -> dict[str, float]:
        """Return every one of `metrics` of one trained network on the test split."""
        values = measure(network, state, self.test, self.objective)
        return {**values, **(self.under_attack.measure(network, state, self.objective) if self.under_attack else {})}

    def scoring(self, name: str) -> "Setting":
        """Return the same setting, whose journal keeps the values of what is scored apart from others by `name`."""
        return replace(self, journal=self.journal.within(scored=name))


@dataclass(frozen=True)
class Evaluation:
    """Raw values per network, `{metric: [n]}`, after and before training, and what was selected on which data."""

    scores: dict[str, list[float]]
    before: dict[str, list[float]]
    selected: str


class Protocol(Structural):
    """A way of scoring. `name` ends in its version; a change that moves numbers needs a new one."""

    @property
    def name(self) -> str:
        """Such as `replay/v1`."""
        ...

    @property
    def summary(self) -> str:
        """One line for `ddbench list`."""
        ...

    @property
    def definition(self) -> Mapping[str, Any]:
        """Every number and choice that the protocol is made of, as JSON takes it."""
        ...

    @property
    def teacher(self) -> bool:
        """True where labels come from networks trained on the full data, not from the set."""
        ...

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations that examples are augmented by, such as `flip` or `cutmix`."""
        ...

    @property
    def stored(self) -> bool:
        """True where labels are those that a teacher gave to views, which the set stores."""
        ...

    @property
    def rate_of_set(self) -> bool:
        """True where networks train at the rate that the set brings, without which it is refused."""
        ...

    @property
    def ignores(self) -> frozenset[str]:
        """Fields of the settings that the score of a set does not depend on, so that rankings leave them out."""
        ...

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """Return how many networks of each side `evaluate` may draw to score on `networks`."""
        ...

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """Score `sets` on networks of the evaluation side; with several sets, network i is trained on set i."""
        ...


def better(objective: Objective, value: float, than: float) -> bool:
    """Return True if `value` of the primary metric is better than `than`; a value that is not finite never is."""
    if not math.isfinite(value):
        return False
    if not math.isfinite(than):
        return True
    return value > than if objective.higher_is_better else value < than


def collect(values: dict[str, list[float]], metrics: Mapping[str, float]) -> None:
    """Add one network's metrics to `values`."""
    for name, value in metrics.items():
        values.setdefault(name, []).append(float(value))


def finite(values: dict[str, list[float]], setting: Setting) -> dict[str, list[float]]:
    """Return the metrics that are finite on every network; a diverged network still has an accuracy, but no loss."""
    finite = {name: numbers for name, numbers in values.items() if all(map(math.isfinite, numbers))}
    if setting.objective.primary not in finite:
        raise DdbenchError(
            f"{setting.objective.primary} is not finite on some of the networks.",
            "Training on the set diverges; distil again with lower rates.",
        )
    return finite


def draw(protocol: str, setting: Setting, side: Side, count: int) -> list[State]:
    """Return initial networks that depend on the protocol, the side and the init distribution alone."""
    generator = torch.Generator().manual_seed(derive_seed(protocol, side))
    return list(unstack(setting.module, setting.networks(side, generator).sample(count)))


def training_targets(distilled: DistilledSet, setting: Setting) -> tuple[Tensor, Loss]:
    """Return what networks train on, `[steps, n]` or `[steps, n, ...]`, and the loss that takes it.

    They are the set's `targets` and the objective's inner loss; weights of examples are folded into them.
    """
    loss, targets, weights = setting.objective.inner_loss, distilled.targets(), distilled.relative_weights()
    if weights is None:
        return targets, loss
    return weigh(loss, targets, weights, len(setting.test.info.classes)), weighted_loss(loss)


def journal_of(protocol: str, sets: Sequence[DistilledSet], setting: Setting, selected: str) -> Journal:
    """Return the part of the setting's journal that scoring `sets` on their networks reads and writes.

    `selected` is what was selected before, such as the rate, or names the selection itself.
    """
    return setting.journal.within(protocol=protocol, sets=digest(sets), selected=selected)


class Student(NamedTuple):
    """A network to train: its number, its initial state, and the set that it is trained on, by number."""

    number: int
    start: State
    on: int


def trained_in_groups(
    train: Callable[[nn.Module, Sequence[Student]], Sequence[State]],
    value: Callable[[nn.Module, Student, State], Any],
    known: Callable[[Student], Any],
    students: Sequence[Student],
    stack: int,
    module: nn.Module,
    report: Callable[[Any], None],
) -> None:
    """Call `report` with `value(module, student, state)` of each student after its training, in order.

    `stack` students are trained in a call of `train` (see `engine.stacks`), several calls side by side on the CPU.
    `known(student)` is a value that needs no training, or None.
    """

    def group_values(network: nn.Module, group: Sequence[Student]) -> list[Any]:
        # Known networks take their turn too: the number of workers, and with it the rounding, stays the same.
        values = {student.number: known(student) for student in group}
        left = [student for student in group if values[student.number] is None]
        for student, state in zip(left, train(network, left) if left else [], strict=True):
            values[student.number] = value(network, student, state)
        return list(values.values())

    def report_group(values: list[Any]) -> None:
        for single in values:
            report(single)

    groups = [students[i : i + stack] for i in range(0, len(students), stack)]
    for_each_network(group_values, module, groups, report_group)


def score_networks(
    protocol: str,
    sets: Sequence[DistilledSet],
    drawn: Sequence[State],
    train: Callable[[nn.Module, Sequence[Student]], Sequence[State]],
    setting: Setting,
    selected: str,
    reporter: Reporter,
    *,
    stack: int = 1,
) -> Evaluation:
    """Score each drawn network on the test split before and after `train(module, students)`, `stack` in a call.

    With several sets network i is trained on set i; a distribution with one network (fixed) gives one value for one
    set, and one for each of several. Networks that the setting's journal holds are not trained again.
    """
    before: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    total, primary, pace = max(len(drawn), len(sets)), setting.objective.primary, Pace()
    journal = journal_of(protocol, sets, setting, selected)
    known = {number: journal.get(network=number) for number in range(total)}
    students = [Student(number, drawn[number % len(drawn)], number % len(sets)) for number in range(total)]

    def score(network: nn.Module, student: Student, trained: State) -> Sequence[dict[str, float]]:
        first = measure(network, student.start, setting.test, setting.objective)
        after = setting.measure(network, trained)
        pair = [{name: float(value) for name, value in metrics.items()} for metrics in (first, after)]
        journal.put(pair, network=student.number)
        return pair

    def report(pair: Sequence[dict[str, float]]) -> None:
        collect(before, pair[0])
        collect(scores, pair[1])
        count = len(scores[primary])
        if known[count - 1] is None:
            pace.tick()
        reporter.progress(count, total, {primary: math.fsum(scores[primary]) / count}, pace.left(total - count))

    trained_in_groups(train, score, lambda student: known[student.number], students, stack, setting.module, report)
    return Evaluation(finite(scores, setting), finite(before, setting), selected)

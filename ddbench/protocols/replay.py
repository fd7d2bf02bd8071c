"""replay/v1: fresh networks trained by the set's own steps and rates (Wang et al. 2018, Section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.state import State
from ddbench.contract.task import Side
from ddbench.engine.inner_optimisers import SGD
from ddbench.engine.meta_gradient import train, train_stack
from ddbench.engine.networks import measure
from ddbench.engine.stacks import stack_size
from ddbench.errors import UsageError
from ddbench.protocols.base import (
    Evaluation,
    Setting,
    Student,
    better,
    draw,
    journal_of,
    score_networks,
    trained_in_groups,
    training_targets,
)

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SELECTION_NETWORKS = 5
OWN = ("momentum", "decay")
"""Extras with a number for each rate of a set: its own momenta and weight decays."""


@dataclass(frozen=True)
class Replay:
    """Plain gradient descent on the set's own batches, in order, at its own rates.

    A set without rates takes all steps of the budget (epochs * steps) and cycles through its batches. The rate is the
    one of `RATES` with the best mean over 5 networks of the training side on the validation slice. A set with a single
    rate takes as many steps at that rate.
    Networks are drawn from the evaluation side with seeds that belong to the protocol: all methods get the same ones.

    Attributes:
        name: name and version.
        summary: one line.
        teacher: False, labels are those of the set.
        operations: none.
        ignores: nothing.
        own_momentum: train by SGD with the momenta and the weight decays that a set has as extras `momentum` and
            `decay`, a number for each rate; without them as by plain gradient descent.
    """

    name: str = "replay/v1"
    summary: str = "the set's own gradient steps at its own rates (without rates: the best fixed rate), fresh networks"
    teacher: bool = False
    operations: tuple[str, ...] = ()
    stored: bool = False
    rate_of_set: bool = False
    ignores: frozenset[str] = frozenset()
    own_momentum: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`. The field that is younger than replay/v1 is left out where it has its default."""
        momentum = {"own_momentum": OWN} if self.own_momentum else {}
        return {"rates": RATES, "selection_networks": SELECTION_NETWORKS, **momentum}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {"evaluation": networks, "train": SELECTION_NETWORKS}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`. Raises `DdbenchError` when the primary metric is not finite.

        Raises `UsageError` for a set whose momenta or decays are not one for each of its rates.
        """
        schedules = [self._schedule(distilled) for distilled in sets]
        selected = "nothing"
        rates = [distilled.lrs for distilled in sets]
        if any(lrs is None for lrs in rates):
            rate = self._best_rate(sets, setting, reporter)
            rates = [_constant(d, setting.budget.total_steps, rate) if d.lrs is None else d.lrs for d in sets]
            selected = f"rate {rate:g} on {len(setting.validation)} validation images"
        rates = [
            _constant(d, setting.budget.total_steps, float(lrs)) if lrs is not None and not lrs.dim() else lrs
            for d, lrs in zip(sets, rates, strict=True)
        ]

        drawn = draw(self.name, setting, "evaluation", networks)

        def train_on(network: nn.Module, students: Sequence[Student]) -> list[State]:
            chosen = [rates[student.on] for student in students]
            inner = [SGD(lrs, **schedules[s.on]) for lrs, s in zip(chosen, students, strict=True) if lrs is not None]
            return _train(network, [sets[s.on] for s in students], inner, [s.start for s in students], setting)

        stack = _stack(sets, setting, max(len(drawn), len(sets)))
        return score_networks(self.name, sets, drawn, train_on, setting, selected, reporter, stack=stack)

    def _schedule(self, distilled: DistilledSet) -> dict[str, Tensor]:
        """Return the momenta and decays that a set is trained by."""
        own = {name: distilled.extras[name] for name in OWN if self.own_momentum and name in distilled.extras}
        for name, values in own.items():
            if distilled.lrs is None or values.shape != distilled.lrs.shape or not values.is_floating_point():
                raise UsageError(
                    f"the set has extras {name!r} of shape {list(values.shape)}, not one number for each of its rates.",
                    f"Give {name} the shape [epochs, steps] of lrs, or score the set under replay/v1.",
                )
        return own

    def _best_rate(self, sets: Sequence[DistilledSet], setting: Setting, reporter: Reporter) -> float:
        """Return the rate with the best mean primary metric on the validation slice; of ties, the smaller one."""
        drawn = draw(self.name, setting, "train", SELECTION_NETWORKS)
        pairs = max(len(drawn), min(len(sets), SELECTION_NETWORKS))
        trials = [(rate, i) for rate in RATES for i in range(pairs)]
        primary, pace, values = setting.objective.primary, Pace(), []
        journal = journal_of(self.name, sets, setting, "the rate")
        known = [journal.get(network=i, rate=str(rate)) for rate, i in trials]

        def train_at(network: nn.Module, students: Sequence[Student]) -> list[State]:
            tried = [sets[student.on] for student in students]
            total = setting.budget.total_steps
            inner = [SGD(_constant(d, total, trials[s.number][0])) for d, s in zip(tried, students, strict=True)]
            return _train(network, tried, inner, [s.start for s in students], setting)

        def quality(network: nn.Module, student: Student, state: State) -> float:
            value = float(measure(network, state, setting.validation, setting.objective)[primary])
            rate, i = trials[student.number]
            journal.put(value, network=i, rate=str(rate))
            return value

        def report(value: float) -> None:
            values.append(value)
            count = len(values)
            if known[count - 1] is None:
                pace.tick()
            reporter.progress(count, len(trials), {"rate": trials[count - 1][0]}, pace.left(len(trials) - count))

        students = [Student(number, drawn[i % len(drawn)], i % len(sets)) for number, (_, i) in enumerate(trials)]
        stack = _stack(sets, setting, len(students))
        trained_in_groups(train_at, quality, lambda s: known[s.number], students, stack, setting.module, report)
        best, best_value = RATES[0], math.nan
        for position, rate in enumerate(RATES):
            value = math.fsum(values[position * pairs : (position + 1) * pairs]) / pairs
            if better(setting.objective, value, best_value):
                best, best_value = rate, value
        return best


def _stack(sets: Sequence[DistilledSet], setting: Setting, networks: int) -> int:
    """Return how many networks to train in one call; sets of several shapes are not stacked."""
    shapes = {distilled.inputs.shape for distilled in sets}
    return stack_size(setting.module, sets[0].inputs.shape[1:], networks) if len(shapes) == 1 else 1


def _train(
    network: nn.Module,
    sets: Sequence[DistilledSet],
    inner: Sequence[SGD],
    starts: Sequence[State],
    setting: Setting,
) -> list[State]:
    """Return the state of each network after its steps of gradient descent, network i on set i by `inner[i]`."""
    targets, losses = zip(*(training_targets(distilled, setting) for distilled in sets), strict=True)
    if len(sets) == 1:
        return [train(network, starts[0], sets[0].inputs, targets[0], inner[0], inner_loss=losses[0])]
    return train_stack(network, starts, [d.inputs for d in sets], targets, inner, inner_loss=losses[0])


def _constant(distilled: DistilledSet, total_steps: int, rate: float) -> Float[Tensor, "epochs steps"]:
    """Return one rate for all steps: the set's batches are cycled until `total_steps` are reached."""
    steps = distilled.inputs.shape[0]
    epochs = max(1, total_steps // steps)
    return torch.full((epochs, steps), rate, device=distilled.inputs.device)


REPLAY_V1 = Replay()
REPLAY_MOMENTUM_V1 = Replay(
    "replay-momentum/v1", "replay/v1 with the momenta and weight decays that the set brings", own_momentum=True
)

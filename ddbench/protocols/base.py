"""What every protocol is given and gives back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Structural

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.data import DistilledSet, ExampleSet
from ddbench.errors import DdbenchError
from ddbench.reporter import Reporter
from ddbench.task import Budget, Networks, Objective, Side
from ddbench.unroll import evaluation_mode

BATCH = 1000
"""Examples per forward pass when a network is scored."""


@dataclass(frozen=True)
class Setting:
    """Everything a protocol needs besides the set: data to select on and to score on, networks, objective, budget.

    `networks(side, generator)` opens one side of the init distribution, drawn with `generator`.
    """

    module: nn.Module
    validation: ExampleSet
    test: ExampleSet
    objective: Objective
    budget: Budget
    networks: Callable[[Side, torch.Generator], Networks]


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

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """How many of each side `evaluate` may draw to score on `networks`."""
        ...

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """Score `sets` on networks of the evaluation side; with several sets, network i is trained on set i."""
        ...


def measure(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    examples: ExampleSet,
    objective: Objective,
) -> dict[str, float]:
    """The objective's metrics of one network on `examples`, in evaluation mode."""
    with torch.no_grad(), evaluation_mode(module):
        batches = torch.split(examples.inputs, BATCH)
        logits = torch.cat([functional_call(module, (dict(weights), dict(buffers)), (batch,)) for batch in batches])
        return objective.metrics(logits, examples.labels)


def better(objective: Objective, value: float, than: float) -> bool:
    """Whether `value` of the primary metric beats `than`; what is not finite never does."""
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
    """Metrics that are finite on every network; a diverged network still has an accuracy, but no loss."""
    finite = {name: numbers for name, numbers in values.items() if all(map(math.isfinite, numbers))}
    if setting.objective.primary not in finite:
        raise DdbenchError(
            f"{setting.objective.primary} is not finite on some of the networks.",
            "Training on the set diverges; distil again with lower rates.",
        )
    return finite

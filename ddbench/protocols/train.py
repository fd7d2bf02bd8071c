"""train/v1, train-dsa/v1, train-teacher/v1: fresh networks trained from scratch on the flat set (as for DC and DM)."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddbench.contract.observer import Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.state import State
from ddbench.contract.task import Side
from ddbench.engine import augment
from ddbench.engine.example_weights import weigh
from ddbench.engine.fit import Recipe, fit
from ddbench.engine.networks import forward
from ddbench.engine.workers import for_each_network
from ddbench.machine.seeds import derive_seed
from ddbench.protocols.base import (
    FULL_NETWORKS,
    Evaluation,
    Setting,
    draw,
    journal_of,
    score_networks,
    training_targets,
)

RATE, MOMENTUM, DECAY, BATCH = 0.01, 0.9, 5e-4, 256
ANNOUNCE_SECONDS = 60
"""Announce the estimated scoring time if it exceeds this many seconds."""

_AUGMENTATION = {"colour": augment.DSA, "grey": augment.DSA_DIGITS, **augment.definition()}


@dataclass(frozen=True)
class Train:
    """SGD at rate .01, momentum .9, weight decay 5e-4, batches of 256; from half of the epochs on the rate is a tenth.

    The set is flat: its steps and rates are ignored. Networks are drawn from the evaluation side.
    The seeds of networks, order of examples and augmentation belong to the protocol.
    Each network is scored after the last epoch. Batch normalisation keeps running statistics.
    Dropout is off: workers would share its random numbers.

    With a `teacher` the set's labels are ignored as well. A batch is labelled, after augmentation, by the softmax of a
    network trained on the full data; student i learns from teacher i modulo their number. Weights of examples hold.
    """

    name: str
    summary: str
    epochs: int
    augmented: bool = False
    teacher: bool = False
    ignores: frozenset[str] = frozenset({"steps", "epochs"})

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`."""
        sgd = {"rate": RATE, "momentum": MOMENTUM, "decay": DECAY, "batch": BATCH, "epochs": self.epochs}
        teacher = {"networks": FULL_NETWORKS, **asdict(Recipe())} if self.teacher else None
        return {**sgd, "augment": _AUGMENTATION if self.augmented else None, "teacher": teacher}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {"evaluation": networks}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`. Raises `DdbenchError` when the primary metric is not finite."""
        drawn = draw(self.name, setting, "evaluation", networks)
        teachers = setting.full_data(math.inf) if self.teacher else [None]

        def train(network: nn.Module, index: int, start: State, number: int) -> State:
            generator = torch.Generator().manual_seed(derive_seed(self.name, "order", number))
            teacher = teachers[number % len(teachers)]
            return self.train(network, sets[index], start, setting, generator, teacher)

        journal = journal_of(self.name, sets, setting, "nothing")
        numbers = range(max(len(sets), len(drawn)))
        remaining = sum(journal.get(network=number) is None for number in numbers)
        seconds = self.forecast(sets[0], drawn[0], setting, remaining, teachers[0]) if remaining else 0.0
        if seconds > ANNOUNCE_SECONDS:
            reporter.say(
                f"Training {remaining} networks for {self.epochs} epochs each will take about {seconds / 60:.0f} "
                "minutes; --eval-networks takes fewer."
            )
        return score_networks(self.name, sets, drawn, train, setting, "nothing", reporter)

    def forecast(
        self,
        distilled: DistilledSet,
        state: State,
        setting: Setting,
        networks: int,
        teacher: State | None,
    ) -> float:
        """Return the seconds for training so many networks, from the time of one epoch of one network per worker."""
        workers = min(networks, torch.get_num_threads()) if distilled.inputs.device.type == "cpu" else 1
        short = replace(self, epochs=1)

        def epoch(network: nn.Module, number: int) -> None:
            short.train(network, distilled, state, setting, torch.Generator().manual_seed(number), teacher)

        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            for_each_network(epoch, setting.module, range(workers))
        return (time.perf_counter() - started) * self.epochs * networks / workers

    def train(
        self,
        network: nn.Module,
        distilled: DistilledSet,
        state: State,
        setting: Setting,
        generator: torch.Generator,
        teacher: State | None = None,
    ) -> State:
        """Return the state of one network after the last epoch; `teacher` is the state of another."""
        inputs = distilled.inputs.flatten(0, 1)
        labels, loss = training_targets(distilled, setting)
        labels, weights = labels.flatten(0, 1), distilled.relative_weights()
        weights = None if weights is None else weights.flatten()
        per_epoch = math.ceil(len(labels) / BATCH)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(self.epochs):
                order = torch.randperm(len(labels), generator=generator).to(labels.device)
                for batch in torch.split(order, BATCH):
                    images = _augment(inputs[batch], generator) if self.augmented else inputs[batch]
                    if teacher is None:
                        yield images, labels[batch]
                        continue
                    targets = forward(network, teacher, images).softmax(-1)
                    if weights is not None:
                        targets = weigh(setting.objective.inner_loss, targets, weights[batch], targets.shape[1])
                    yield images, targets

        def optimiser(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, RATE, MOMENTUM, weight_decay=DECAY, fused=True)

        def rate(step: int) -> float:
            return RATE if step // per_epoch < self.epochs // 2 else RATE / 10

        return fit(network, state, batches(), optimiser, loss=loss, rate=rate)


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images under one operation, each with an amount of its own; grey images are not flipped."""
    strategy = augment.DSA if images.shape[1] == 3 else augment.DSA_DIGITS
    return augment.apply(images, augment.draw(strategy, generator, images=len(images)))


TRAIN_V1 = Train("train/v1", "fresh networks from scratch on the flat set: SGD, 300 epochs", 300)
TRAIN_DSA_V1 = Train(
    "train-dsa/v1", "as train/v1, 1000 epochs with differentiable siamese augmentation", 1000, augmented=True
)
TRAIN_TEACHER_V1 = Train(
    "train-teacher/v1",
    "as train-dsa/v1, with labels by networks trained on the full data",
    1000,
    augmented=True,
    teacher=True,
)

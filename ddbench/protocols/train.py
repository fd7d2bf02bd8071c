"""train/v1 and its relatives: fresh networks trained from scratch on the flat set (as for DC, DM, MTT, SRe2L)."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ddbench.contract.observer import Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.state import State
from ddbench.contract.task import Loss, Side
from ddbench.engine import augment
from ddbench.engine.example_weights import one_hot, weigh
from ddbench.engine.fit import Recipe, fit, fit_stack, in_lockstep
from ddbench.engine.networks import forward
from ddbench.engine.stacks import stack_size
from ddbench.engine.views import read_views
from ddbench.engine.workers import for_each_network, worker_count
from ddbench.errors import UsageError
from ddbench.machine.seeds import derive_seed
from ddbench.protocols.base import (
    FULL_NETWORKS,
    Evaluation,
    Setting,
    Student,
    draw,
    journal_of,
    score_networks,
    training_targets,
)
from ddbench.protocols.views import RATIO, augmented, cut_mixed, resized_crops

ANNOUNCE_SECONDS = 60
"""Announce the estimated scoring time if it exceeds this many seconds."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Train:
    """Training from scratch on shuffled batches of the flat set, whose steps are ignored.

    Networks are drawn from the evaluation side. The seeds of networks, order of examples and augmentation belong to the
    protocol. Each network is scored after the last epoch. Batch normalisation keeps running statistics.
    Dropout is off: workers would share its random numbers. Weights of examples hold.

    Attributes:
        name: name and version.
        summary: one line.
        epochs: passes through the set.
        optimiser: `sgd`, or `adamw` with the usual betas .9 and .999.
        rate: the learning rate, or `set`: the rate that the set brings, the mean of several.
        momentum: momentum of `sgd`.
        decay: weight decay, decoupled from the gradient in `adamw`.
        batch: images in a batch.
        schedule: `step`: from half of the epochs on the rate is a tenth; `cosine`: it falls to 0 along a half-wave,
            epoch by epoch; `constant`.
        augment: operations joined by underscores, one of which is drawn for each batch (see `ddbench.augment`); empty
            for none. Grey images are not flipped.
        resized_crop: smallest share of the area that random windows have, resized to the image; None for whole images.
        cutmix: give each batch a window of other images of the batch.
        labels: `own`, or `teacher`: the labels of the set are ignored. A batch is labelled, as it is after all of the
            above, by the softmax of a network trained on the full data; student i learns from teacher i modulo their
            number. Or `views`: batches, their windows, mirror images and CutMix, and the logits of a teacher for them,
            are those that the set stores; epoch e takes the stored epoch e modulo their number.
        temperature: number that the logits of teacher and student are divided by.
    """

    # Pydantic refuses unknown fields of a file.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    summary: str
    epochs: Count = 300
    optimiser: Literal["sgd", "adamw"] = "sgd"
    rate: Positive | Literal["set"] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0)] = 5e-4
    batch: Count = 256
    schedule: Literal["constant", "step", "cosine"] = "step"
    augment: str = ""
    resized_crop: Annotated[float, Field(gt=0, lt=1)] | None = None
    cutmix: bool = False
    labels: Literal["own", "teacher", "views"] = "own"
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 1 and self.labels == "own":
            raise ValueError('temperature is for labels = "teacher" or "views"')
        if self.labels == "views" and (self.augment or self.cutmix or self.resized_crop is not None):
            raise ValueError('labels = "views" brings windows, flips and CutMix of its own')
        if self.augment:
            augment.check(self.augment)

    @property
    def teacher(self) -> bool:
        """See `Protocol.teacher`."""
        return self.labels == "teacher"

    @property
    def operations(self) -> tuple[str, ...]:
        """See `Protocol.operations`."""
        named = {"resized_crop": self.resized_crop is not None, "cutmix": self.cutmix}
        return (*(self.augment.split("_") if self.augment else ()), *(name for name, on in named.items() if on))

    @property
    def stored(self) -> bool:
        """See `Protocol.stored`."""
        return self.labels == "views"

    @property
    def rate_of_set(self) -> bool:
        """See `Protocol.rate_of_set`."""
        return self.rate == "set"

    @property
    def ignores(self) -> frozenset[str]:
        """See `Protocol.ignores`."""
        return frozenset({"steps", "epochs"})

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`. Fields younger than train/v1 are left out where they have their default."""
        sgd = {name: getattr(self, name) for name in ("rate", "momentum", "decay", "batch", "epochs")}
        teacher = {"networks": FULL_NETWORKS, **asdict(Recipe())} if self.teacher else None
        operations = {"strategy": self.augment, "grey": "not flipped", **augment.definition()} if self.augment else None
        others = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name in ("optimiser", "schedule", "resized_crop", "cutmix", "temperature")
            and getattr(self, field.name) != field.default
        }
        if self.resized_crop is not None:
            others["ratio"] = RATIO
        if self.stored:
            others["labels"] = self.labels
        if self.optimiser == "adamw":
            del sgd["momentum"]
        return {**sgd, "augment": operations, "teacher": teacher, **others}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {"evaluation": networks}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`. Raises `DdbenchError` when the primary metric is not finite.

        Raises `UsageError` for a set without rates where the rate is the set's.
        """
        for distilled in sets:
            self._check(distilled, setting)
        drawn = draw(self.name, setting, "evaluation", networks)
        teachers = setting.full_data(math.inf) if self.teacher else [None]

        def train(network: nn.Module, students: Sequence[Student]) -> list[State]:
            generators = [torch.Generator().manual_seed(derive_seed(self.name, "order", s.number)) for s in students]
            taught = [teachers[student.number % len(teachers)] for student in students]
            trained_on, starts = [sets[s.on] for s in students], [s.start for s in students]
            return self.train(network, trained_on, starts, setting, generators, taught)

        journal = journal_of(self.name, sets, setting, "nothing")
        numbers = range(max(len(sets), len(drawn)))
        remaining = sum(journal.get(network=number) is None for number in numbers)
        seconds = self.forecast(sets[0], drawn[0], setting, remaining, teachers[0]) if remaining else 0.0
        if seconds > ANNOUNCE_SECONDS:
            reporter.say(
                f"Training {remaining} networks for {self.epochs} epochs each will take about {seconds / 60:.0f} "
                "minutes; --eval-networks takes fewer."
            )
        stack = self._stack(sets, setting, len(numbers))
        return score_networks(self.name, sets, drawn, train, setting, "nothing", reporter, stack=stack)

    def _stack(self, sets: Sequence[DistilledSet], setting: Setting, networks: int) -> int:
        """Return how many networks to train in one call; sets that differ in shape or rate are not stacked."""
        shapes = {(distilled.inputs.shape, self._base_rate(distilled)) for distilled in sets}
        if len(shapes) > 1:
            return 1
        images = sets[0].inputs.flatten(0, 1)
        return stack_size(setting.module, (min(self.batch, len(images)), *images.shape[1:]), networks)

    def _base_rate(self, distilled: DistilledSet) -> float:
        """Return the rate before the schedule."""
        return float(distilled.lrs.mean()) if distilled.lrs is not None and self.rate_of_set else float(self.rate)

    def _check(self, distilled: DistilledSet, setting: Setting) -> None:
        """Raise `UsageError` where a set or the objective does not go with this training."""
        if self.rate_of_set and distilled.lrs is None:
            raise UsageError(
                f"{self.name} needs the rate of the set, and this set has none.",
                "Score it under train-dsa/v1, which has a rate of its own; a released file takes --file-rate too.",
            )
        if self.stored:
            images = distilled.inputs.flatten(0, 1)
            views, _ = read_views(distilled.extras, images, len(setting.test.info.classes))
            if views.batch != min(self.batch, len(images)):
                raise UsageError(
                    f"the set stores views in batches of {views.batch}, and {self.name} takes {self.batch}.",
                    "Store them in batches of that size, or score it under a protocol of your own.",
                )
        if setting.objective.kind == "regression" and (self.cutmix or self.teacher or self.stored):
            raise UsageError(
                f"{self.name} is for classification: it mixes labels, or takes the softmax of a teacher.",
                "Score a regression under train/v1.",
            )

    def forecast(
        self,
        distilled: DistilledSet,
        state: State,
        setting: Setting,
        networks: int,
        teacher: State | None,
    ) -> float:
        """Return the seconds for training so many networks, from the time of one epoch of one network per worker."""
        stack, short = self._stack([distilled], setting, networks), replace(self, epochs=1)
        workers = worker_count(setting.module, networks) if stack == 1 else 1

        def epoch(network: nn.Module, number: int) -> None:
            generators = [torch.Generator().manual_seed(number + i) for i in range(stack)]
            short.train(network, [distilled] * stack, [state] * stack, setting, generators, [teacher] * stack)

        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            for_each_network(epoch, setting.module, range(workers))
        return (time.perf_counter() - started) * self.epochs * networks / (workers * stack)

    def train(
        self,
        network: nn.Module,
        sets: Sequence[DistilledSet],
        starts: Sequence[State],
        setting: Setting,
        generators: Sequence[torch.Generator],
        teachers: Sequence[State | None],
    ) -> list[State]:
        """Return the state of each network after the last epoch; those of `teachers` are of other networks.

        Network i starts at `starts[i]` and is trained on set i, in an order and with views by generator i. Several
        networks share a call (`engine.stacks`).
        """
        batches, losses = zip(
            *(
                self._batches(network, distilled, setting, generator, teacher)
                for distilled, generator, teacher in zip(sets, generators, teachers, strict=True)
            ),
            strict=True,
        )
        base, per_epoch = self._base_rate(sets[0]), math.ceil(sets[0].inputs.shape[:2].numel() / self.batch)

        def optimiser(parameters: list[Tensor]) -> torch.optim.Optimizer:
            if self.optimiser == "adamw":
                return torch.optim.AdamW(parameters, base, weight_decay=self.decay, fused=True)
            return torch.optim.SGD(parameters, base, self.momentum, weight_decay=self.decay, fused=True)

        def rate(step: int) -> float:
            return base * self._factor(step // per_epoch)

        loss = _heated(losses[0], self.temperature)
        if len(sets) == 1:
            return [fit(network, starts[0], batches[0], optimiser, loss=loss, rate=rate)]
        return fit_stack(network, starts, in_lockstep(batches), optimiser, loss=loss, rate=rate)

    def _batches(
        self,
        network: nn.Module,
        distilled: DistilledSet,
        setting: Setting,
        generator: torch.Generator,
        teacher: State | None,
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], Loss]:
        """Return the batches of all epochs of one network, as it sees them, and the loss that takes their labels."""
        inputs, (labels, loss) = distilled.inputs.flatten(0, 1), training_targets(distilled, setting)
        labels, weights = labels.flatten(0, 1), distilled.relative_weights()
        classes = len(setting.test.info.classes)

        def stored_batches() -> Iterator[tuple[Tensor, Tensor]]:
            views, logits = read_views(distilled.extras, inputs, classes)
            for epoch in range(self.epochs):
                stored = epoch % views.epochs
                order = views.order[stored].to(labels.device, torch.int64)
                for place, images in views.batches(inputs, stored):
                    targets = (logits[stored, place] / self.temperature).softmax(-1)
                    if weights is not None:
                        own = weights.flatten()[order[place]]
                        targets = weigh(setting.objective.inner_loss, targets, own, classes)
                    yield images, targets

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(self.epochs):
                order = torch.randperm(len(labels), generator=generator).to(labels.device)
                for batch in torch.split(order, self.batch):
                    images, targets = self._view(inputs[batch], labels[batch], classes, generator)
                    if teacher is not None:
                        targets = (forward(network, teacher, images) / self.temperature).softmax(-1)
                        if weights is not None:
                            targets = weigh(setting.objective.inner_loss, targets, weights.flatten()[batch], classes)
                    yield images, targets

        return (stored_batches() if self.stored else batches()), loss

    def _view(self, images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images of a batch as networks see them, and the labels of the set that belong to them."""
        if self.augment:
            images = augmented(images, self.augment, generator)
        if self.resized_crop is not None:
            images = resized_crops(images, self.resized_crop, generator)
        if self.cutmix:
            return cut_mixed(images, one_hot(labels, classes), generator)
        return images, labels

    def _factor(self, epoch: int) -> float:
        """Return what the rate is multiplied by in an epoch."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return 0.1 if self.schedule == "step" and epoch >= self.epochs // 2 else 1.0


def _heated(loss: Loss, temperature: float) -> Loss:
    """Return the loss of logits divided by the temperature."""

    def heated(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits / temperature, labels)

    return loss if temperature == 1 else heated


TRAIN_V1 = Train("train/v1", "fresh networks from scratch on the flat set: SGD, 300 epochs")
TRAIN_DSA_V1 = Train(
    "train-dsa/v1",
    "as train/v1, 1000 epochs with differentiable siamese augmentation",
    epochs=1000,
    augment=augment.DSA,
)
TRAIN_DSA_RATE_V1 = replace(
    TRAIN_DSA_V1, name="train-dsa-rate/v1", summary="as train-dsa/v1, at the rate that the set brings", rate="set"
)
TRAIN_TEACHER_V1 = replace(
    TRAIN_DSA_V1,
    name="train-teacher/v1",
    summary="as train-dsa/v1, with labels by networks trained on the full data",
    labels="teacher",
)
TRAIN_IMAGENET_V1 = Train(
    "train-imagenet/v1",
    "AdamW, 300 epochs of crops and CutMix, with labels by networks trained on the full data at temperature 20",
    optimiser="adamw",
    rate=1e-3,
    decay=0.01,
    batch=50,
    schedule="cosine",
    augment="flip",
    resized_crop=0.08,
    cutmix=True,
    labels="teacher",
    temperature=20,
)
TRAIN_VIEWS_V1 = replace(
    TRAIN_IMAGENET_V1,
    name="train-views/v1",
    summary="as train-imagenet/v1, with the crops, CutMix pairs and logits of a teacher that the set stores",
    augment="",
    resized_crop=None,
    cutmix=False,
    labels="views",
)

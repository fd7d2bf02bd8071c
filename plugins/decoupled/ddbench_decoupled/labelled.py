"""Labels of teachers for real images: an early-stopped expert (Qin et al. 2024), or several teachers."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import DistilledSet, ExampleSet, Run, Task
from ddbench.networks import TrainedNetworks, features
from ddbench_decoupled.teacher import (
    TEACHER_STEPS,
    Count,
    Labels,
    Named,
    Positive,
    Steps,
    Temperature,
    ViewEpochs,
    labelled,
    supports,
)

Choice = Annotated[
    Literal["random", "herded"],
    Field(description="random images, or those whose mean features in the first teacher are nearest to all"),
]
FEATURES_AT_A_TIME = 500


def herd(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, " count"]:
    """Return the choices of herding without repetition (Welling 2009; Rebuffi et al. 2017, Algorithm 4).

    Choice t is argmin_i || mean - (S + f_i) / t ||, S the sum of those chosen before.
    """
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    for t in range(1, count + 1):
        distances = (t * mean - total - features).norm(dim=1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total = total + features[chosen[-1]]
    return torch.tensor(chosen, device=features.device)


def real_images(task: Task, choice: str, teachers: Sequence[TrainedNetworks], generator: torch.Generator) -> ExampleSet:
    """Return real images of each class, random ones or herded ones."""
    train, count = task.train, task.budget.images_per_class
    if choice == "random":
        return train.random_subset(count, generator)
    module, state, chosen = teachers[0].module, teachers[0][0], []
    for label in range(len(task.info.classes)):
        members = train.of_class(label, count)
        with torch.no_grad():
            space = torch.cat(
                [
                    features(module, state, train.inputs[part], batch_statistics=False)
                    for part in torch.split(members, FEATURES_AT_A_TIME)
                ]
            )
        chosen.append(members[herd(space, count)])
    return train[torch.cat(chosen)]


def expert_of(task: Task, *, epochs: int, expert_rate: float, **others: object) -> list[TrainedNetworks]:
    """Return the network of the run after some epochs of SGD on the real data."""
    trained = task.experts(count=1, epochs=epochs, lr=expert_rate)
    return [TrainedNetworks(task.networks.module, (trained.start(0, trained.epochs),))]


def expert_labels(
    task: Task,
    distilled: DistilledSet,
    generator: torch.Generator,
    *,
    labels: str,
    temperature: float,
    view_epochs: int,
    **options: object,
) -> DistilledSet:
    """Return a set with the labels of the expert."""
    teachers = expert_of(task, **options)  # type: ignore[arg-type]
    return labelled(distilled, teachers, labels, generator, temperature=temperature, view_epochs=view_epochs)


@ddbench.method(supports=supports, needs=expert_of, labels=expert_labels)
def teacher_labels(
    task: Task,
    run: Run,
    *,
    images: Choice = "random",
    epochs: Annotated[Count, Field(description="passes of the expert over the real data, at whose end it labels")] = 10,
    expert_rate: Annotated[Positive, Field(description="rate of SGD of the expert")] = 0.01,
    labels: Labels = "teacher",
    temperature: Temperature = 1.0,
    view_epochs: ViewEpochs = 300,
) -> DistilledSet:
    """Give real images the stored soft labels of an expert that was stopped early (Qin et al. 2024, arXiv 2406.10485).

    No image is learned: what this reaches is the work of the labels.
    """
    teachers = expert_of(task, epochs=epochs, expert_rate=expert_rate)
    inputs, classes = real_images(task, images, teachers, run.generator).in_steps(task.budget.steps)
    result = DistilledSet(inputs, classes)
    return labelled(result, teachers, labels, run.generator, temperature=temperature, view_epochs=view_epochs)


def ensemble(
    task: Task, *, count: int, networks: Sequence[Named], teacher_steps: int, **others: object
) -> list[TrainedNetworks]:
    """Return `count` teachers of each architecture."""
    chosen: list[Named | None] = list(networks) or [None]
    return [task.teachers(count, network=name, steps=teacher_steps) for name in chosen]


def ensemble_answers(
    task: Task,
    distilled: DistilledSet,
    generator: torch.Generator,
    *,
    labels: str,
    temperature: float,
    view_epochs: int,
    **options: object,
) -> DistilledSet:
    """Return a set with the labels of the ensemble."""
    teachers = ensemble(task, **options)  # type: ignore[arg-type]
    return labelled(distilled, teachers, labels, generator, temperature=temperature, view_epochs=view_epochs)


@ddbench.method(supports=supports, needs=ensemble, labels=ensemble_answers)
def ensemble_labels(
    task: Task,
    run: Run,
    *,
    images: Choice = "random",
    count: Annotated[Count, Field(description="teachers of each architecture")] = 5,
    networks: Annotated[
        list[Named], Field(description="architectures, each a name or {name, options}; none for the run's own")
    ] = [],  # noqa: B006
    teacher_steps: Steps = TEACHER_STEPS,
    labels: Labels = "teacher",
    temperature: Temperature = 1.0,
    view_epochs: ViewEpochs = 300,
) -> DistilledSet:
    """Give real images the mean answer of several teachers as stored soft labels (Hinton et al. 2015).

    `--set method.networks='["convnet", "resnet18"]'` mixes architectures.
    """
    teachers = ensemble(task, count=count, networks=networks, teacher_steps=teacher_steps)
    inputs, classes = real_images(task, images, teachers, run.generator).in_steps(task.budget.steps)
    result = DistilledSet(inputs, classes)
    return labelled(result, teachers, labels, run.generator, temperature=temperature, view_epochs=view_epochs)

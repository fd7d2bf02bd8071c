"""The teacher of a method: the options that name it, and the labels that it gives to a set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ddbench import DistilledSet, Plan, Task, Unsupported
from ddbench.augment import Views
from ddbench.networks import POOL_STEPS, TrainedNetworks, forward

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Named = str | dict[str, Any]
TeacherNetwork = Annotated[
    Named, Field(description="network of the teacher, a name or {name, options}; empty for the run's own")
]
Weights = Annotated[str, Field(description="file with the teacher's weights; empty trains one on the run's data")]
Steps = Annotated[Count, Field(description="steps of Adam by which the teacher is trained")]
Labels = Annotated[
    Literal["class", "teacher", "views"],
    Field(
        description="class numbers; the teacher's answer for each image; or its answers for each image of each epoch, "
        "which train-views/v1 trains on"
    ),
]
Temperature = Annotated[Positive, Field(description="number that logits are divided by for labels=teacher")]
ViewEpochs = Annotated[Count, Field(description="epochs that labels=views stores; training repeats them")]

BATCH = 50
"""Images of a batch of views: that of train-views/v1."""
SMALLEST = 0.08
"""Smallest share of the area of a view's window."""
TEACHER_STEPS = POOL_STEPS


def supports(plan: Plan) -> str | None:
    """Return why a classifier of the real classes has nothing to teach."""
    name = plan.method.name
    if plan.settings.objective.name != "classification":
        return f"{name} takes labels from a classifier; run it with --objective classification."
    if len(plan.dataset.facts["classes"]) < 2:
        return f"{name} needs two classes or more: with a single one, a teacher has nothing to tell apart."
    return None


def check_images(task: Task, method: str) -> None:
    """Raise `Unsupported` for a task that has no images."""
    if len(task.info.sample_shape) != 3:
        raise Unsupported(f"{method} takes images; an example of {task.info.name} has shape {task.info.sample_shape}.")


def teacher_of(task: Task, *, teacher: Named, weights: str, teacher_steps: int, **others: object) -> TrainedNetworks:
    """Return the teacher that the options name. Raises as `Teachers`."""
    if weights:
        return task.teachers(network=teacher or None, weights=weights)
    return task.teachers(network=teacher or None, steps=teacher_steps)


def answers(teachers: Sequence[TrainedNetworks], images: Float[Tensor, " n *sample"]) -> Float[Tensor, "n classes"]:
    """Return the mean of the logits of all networks."""
    logits = [forward(group.module, state, images) for group in teachers for state in group]
    return torch.stack(logits).mean(0)


def labelled(
    distilled: DistilledSet,
    teachers: Sequence[TrainedNetworks],
    labels: str,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    view_epochs: int = 300,
) -> DistilledSet:
    """Return the set with the labels of the teachers.

    `class` leaves it as it is. `teacher` stores the mean of the softmax of each network, at the temperature, for each
    image. `views` stores the mean logits of views in half precision, beside the windows, mirror images and CutMix
    pairs that they were given for (Shen and Xing 2022, arXiv 2112.01528).
    """
    images = distilled.inputs.detach().flatten(0, 1)
    if labels == "teacher":
        each = [
            (forward(group.module, state, images) / temperature).softmax(-1) for group in teachers for state in group
        ]
        soft = torch.stack(each).mean(0).view(*distilled.labels.shape[:2], -1)
        return replace(distilled, labels=soft, label_kind="distribution")
    if labels == "views":
        side = (images.shape[2], images.shape[3])
        views = Views.draw(len(images), side, view_epochs, BATCH, SMALLEST, images.shape[1] > 1, generator)
        epochs = [
            torch.cat([answers(teachers, seen) for _, seen in views.batches(images, epoch)])
            for epoch in range(view_epochs)
        ]
        return replace(distilled, extras={**distilled.extras, **views.stored(torch.stack(epochs), images)})
    return distilled

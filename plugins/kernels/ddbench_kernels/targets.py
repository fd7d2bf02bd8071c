"""The targets of a regression, one-hot less 1 / classes, and the tasks that have them."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ddbench import DistilledSet, ExampleSet, Plan, Task, Unsupported, UsageError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Depth = Annotated[int, Field(ge=1, description="hidden layers of the kernel's network; krr/v1 scores with one")]
Ridge = Annotated[float, Field(gt=0, description="ridge, as a share of the mean of the kernel's diagonal")]
BLOCK = 1_000_000
"""Entries of the kernel between the real images and those of the set that are held at a time."""
LearnLabels = Annotated[bool, Field(description="learn labels too; otherwise they stay class numbers")]


def supports(plan: Plan) -> str | None:
    """Return why there are no classes to regress on."""
    name = plan.method.name
    if plan.settings.objective.name != "classification":
        return f"{name} fits the real labels of the classes; run it with --objective classification."
    if len(plan.dataset.facts["classes"]) < 2:
        return f"{name} needs two classes or more: with a single one, all targets are zero."
    return None


def check(task: Task) -> None:
    """Raise `Unsupported` for a task of one class, `UsageError` for training data that are not finite."""
    if len(task.info.classes) < 2:
        raise Unsupported(
            f"{task.info.name} has one class only, so all targets of the regression are zero.",
            "Take a dataset of two classes or more.",
        )
    if not torch.isfinite(task.train.inputs).all():
        raise UsageError(
            f"the training data of {task.info.name} hold NaN or infinite values.",
            "Remove the examples that hold them from the dataset.",
        )


def centred(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n classes"]:
    """Return one-hot labels less 1 / classes, in float64: a constant prediction has nothing to fit."""
    return F.one_hot(labels, classes).double() - 1 / classes


def balanced_batch(examples: ExampleSet, size: int, generator: torch.Generator) -> ExampleSet:
    """Draw about `size` examples, equally many of each class; all of a class that has fewer."""
    classes = len(examples.info.classes)
    batches = [examples.minibatch(max(1, size // classes), generator, label) for label in range(classes)]
    inputs, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "labels"))
    return ExampleSet(inputs, labels, examples.info)


def distilled(images: Float[Tensor, " n *sample"], labels: Float[Tensor, "n classes"]) -> DistilledSet:
    """Return the set of these images and of learned labels, which were one-hot less 1 / classes, as a single batch.

    1 / classes is added again, or as much as lifts the smallest value to 0. One number for all values moves the
    predictions of a regression alike in each class, so they rank and are scored as before; and cross-entropy, which
    networks train with, is bounded below only where no label is negative.
    """
    labels = labels.detach() - labels.detach().min().clamp(max=-1 / labels.shape[1])
    return DistilledSet(images.detach()[None], labels.float()[None], label_kind="regression")

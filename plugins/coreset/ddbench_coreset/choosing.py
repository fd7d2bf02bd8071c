"""From a rule on features or scores to a set of real images within the budget, class by class or over all classes."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddbench import DdbenchError, DistilledSet, Run, Task, UsageError
from ddbench.engine.meta_gradient import unstack
from ddbench.machine.environment import free_memory
from ddbench_coreset.trace import TRACED, one_network, penultimate, trace

Features = Annotated[
    Literal["pixels", "trained", "drawn"],
    Field(
        description="normalised pixels; or what the last layer is given, in a network trained for `epochs` epochs, or "
        "in one as the init distribution gives it (a pretrained one, with --init or --target)"
    ),
]
PerClass = Annotated[bool, Field(description="as many of each class, or the best of all classes together")]
Epochs = Annotated[int, Field(ge=1, description="epochs of the training that features and scores come from")]
Count = Annotated[int, Field(ge=1, description="networks that scores are averaged over")]

Rule = Callable[[Tensor, int], Tensor]
"""`(indices of the candidates [n], how many)` to places among them, in the order they were chosen."""


def features_of(task: Task, run: Run, kind: str, epochs: int) -> Tensor:
    """Features of all training examples, `[n, d]`, finite."""
    if kind == "pixels":
        found = task.train.inputs.flatten(1)
    else:
        module = task.networks.module
        if kind == "trained":
            weights, buffers = one_network(trace(task, run, TRACED, epochs), module)
        else:
            weights, buffers = next(unstack(module, task.networks.sample(1))), dict(module.named_buffers())
        found, _ = penultimate(module, weights, buffers, task.train.inputs)
    return finite(found, "features", "Choose other --set features, or another --network or --init.")


def finite(values: Tensor, what: str = "scores", remedy: str = "Choose another --network, --init or --seed.") -> Tensor:
    """The same, or a `DdbenchError` where a value is not finite."""
    if not torch.isfinite(values).all():
        raise DdbenchError(f"{what} of the training images are not finite.", remedy)
    return values


def check_memory(what: str, images: int, numbers: int, device: torch.device) -> None:
    """Raise `DdbenchError` where so many numbers of double precision cannot fit."""
    needed, free = 8 * numbers, free_memory(device)
    if needed > free:
        raise DdbenchError(
            f"{what} of {images} images take {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Choose class by class (--set per_class=true), or a rule that needs less, such as herding.",
        )


def chosen(task: Task, rule: Rule, *, per_class: bool = True) -> DistilledSet:
    """Real images as `rule` picks them: `images_per_class` of each class, or as many in all out of all classes.

    Raises `UsageError` where there are too few.
    """
    train, count, classes = task.train, task.budget.images_per_class, len(task.info.classes)
    if per_class:
        groups = [train.of_class(label, count) for label in range(classes)]
    else:
        groups, count = [torch.arange(len(train), device=train.labels.device)], count * classes
        if len(train) < count:
            raise UsageError(
                f"{task.info.label} has {len(train)} training images, fewer than {count}.",
                "Lower --ipc, or give the dataset more of them.",
            )
    picked = [members[rule(members, count).to(members.device)] for members in groups]
    inputs, labels = task.train[torch.cat(picked)].in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


def highest(scores: Tensor) -> Rule:
    """The candidates with the highest scores; ties go to the first."""
    return lambda members, count: torch.argsort(scores[members], descending=True, stable=True)[:count]

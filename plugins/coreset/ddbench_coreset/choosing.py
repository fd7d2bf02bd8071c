"""From a rule on features or scores to a set of real images within the budget, class by class or over all classes."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddbench import DdbenchError, DistilledSet, Run, Task, UsageError
from ddbench.unroll import unstack
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
    return finite(found)


def finite(values: Tensor) -> Tensor:
    """The same, or a `DdbenchError` where a value is not finite."""
    if not torch.isfinite(values).all():
        raise DdbenchError("features or scores of the training images are not finite.", "Use other --set features.")
    return values


def chosen(task: Task, rule: Rule, *, per_class: bool = True) -> DistilledSet:
    """Real images as `rule` picks them: `images_per_class` of each class, or as many in all out of all classes.

    Raises `UsageError` where there are too few.
    """
    count, classes = task.budget.images_per_class, task.info.classes
    groups = [(name, task.train.of_class(label), count) for label, name in enumerate(classes)]
    if not per_class:
        everything = torch.arange(len(task.train), device=task.train.labels.device)
        groups = [("all", everything, count * len(classes))]
    picked = []
    for name, members, wanted in groups:
        if len(members) < wanted:
            raise UsageError(
                f"class {name!r} of {task.info.label} has {len(members)} training images, fewer than {wanted}.",
                f"Ask for at most --ipc {len(members) // (1 if per_class else len(classes))}.",
            )
        picked.append(members[rule(members, wanted).to(members.device)])
    inputs, labels = task.train[torch.cat(picked)].in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


def highest(scores: Tensor) -> Rule:
    """The candidates with the highest scores; ties go to the first."""
    return lambda members, count: torch.argsort(scores[members], descending=True, stable=True)[:count]

"""Coresets: subsets of the real training images, chosen by a stated rule."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

import ddbench
from ddbench import DistilledSet, Run, Task, UsageError
from ddbench_coreset.selection import greedy_k_center, herd

Seeding = Literal["mean", "random"]


@ddbench.method
def herding(task: Task, run: Run) -> DistilledSet:
    """Per class, greedily keep the mean of the chosen images closest to the mean of all (Welling 2009).

    In normalised pixels. Image t minimises the distance between the class mean and the mean of the first t chosen
    images, none chosen twice (the form of Rebuffi et al. 2017, iCaRL, Algorithm 4); ties go to the first.
    """
    return _per_class(task, herd)


@ddbench.method
def k_center(task: Task, run: Run, *, seeding: Seeding = "mean") -> DistilledSet:
    """Per class, greedily add the image farthest from those chosen (Gonzalez 1985; Sener and Savarese 2018).

    In normalised pixels, Euclidean distance. `seeding` gives the first image: the one nearest the class mean, or
    one at random; ties go to the first.
    """

    def choose(features: Tensor, count: int) -> Tensor:
        if seeding == "random":
            first = int(torch.randint(len(features), (), generator=run.generator))
        else:
            first = int(torch.linalg.vector_norm(features - features.mean(0), dim=1).argmin())
        return greedy_k_center(features, count, first)

    return _per_class(task, choose)


def _per_class(task: Task, choose: Callable[[Tensor, int], Tensor]) -> DistilledSet:
    """`images_per_class` real images of each class, as `choose(features [n, d], count)` picks them."""
    count, picked = task.budget.images_per_class, []
    for label, name in enumerate(task.info.classes):
        members = task.train.of_class(label)
        if len(members) < count:
            raise UsageError(
                f"class {name!r} of {task.info.label} has {len(members)} training images, fewer than {count}.",
                f"Ask for at most --ipc {len(members)}.",
            )
        chosen = choose(task.train.inputs[members].flatten(1), count)
        picked.append(members[chosen.to(members.device)])
    inputs, labels = task.train[torch.cat(picked)].in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [herding, k_center]

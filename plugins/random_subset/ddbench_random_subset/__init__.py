"""Random real images: the baseline that every distillation method must beat."""

from typing import Annotated

from pydantic import Field

import ddbench
from ddbench import DistilledSet, Run, Task

Balanced = Annotated[bool, Field(description="draw the same number of images from each class")]


@ddbench.method(companion=True)
def random_subset(task: Task, run: Run, *, balanced: Balanced = True) -> DistilledSet:
    """Draw real training images uniformly at random, by default the same number per class, spread over the steps."""
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator, balanced=balanced)
    inputs, labels = chosen.in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [random_subset]

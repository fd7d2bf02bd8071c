"""Random real images: the baseline every distillation method must beat."""

from typing import Annotated

from pydantic import Field

import ddbench
from ddbench import DistilledSet, Run, Task

Balanced = Annotated[bool, Field(description="the same number of each class")]


@ddbench.method(companion=True)
def random_subset(task: Task, run: Run, *, balanced: Balanced = True) -> DistilledSet:
    """Pick real training images uniformly at random, the same number per class by default, spread over the steps."""
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator, balanced=balanced)
    inputs, labels = chosen.in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [random_subset]

"""Random real images: the baseline every distillation method must beat."""

import ddbench
from ddbench import DistilledSet, Run, Task


@ddbench.method(companion=True)
def random_subset(task: Task, run: Run, *, balanced: bool = True) -> DistilledSet:
    """Pick real training images uniformly at random, the same number per class by default."""
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator, balanced=balanced)
    return DistilledSet(chosen.inputs[None], chosen.labels[None])


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [random_subset]

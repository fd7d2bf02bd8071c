"""A plugin for checks of trackers: a method that lets a run end in each way."""

from typing import Annotated, Literal

import torch
from pydantic import Field

import ddbench
from ddbench import DistilledSet, Run, Task

STEPS = 4


@ddbench.method
def ends(
    task: Task,
    run: Run,
    *,
    end: Annotated[Literal["ok", "skipped", "failed", "interrupted"], Field(description="the end of the run")] = "ok",
) -> DistilledSet:
    """Add noise to real images, and end the run as asked; an interrupted run succeeds once it is resumed."""
    if end == "skipped":
        raise ddbench.Unsupported("this run is skipped on purpose.")
    first = [task.train.of_class(label)[: task.budget.images_per_class] for label in range(len(task.info.classes))]
    chosen = task.train[torch.cat(first)]
    inputs, labels = chosen.in_steps(task.budget.steps)
    stopped = run.checkpoint_path.with_name("stopped")
    for step in run.loop(STEPS, {"inputs": inputs}):
        # Global random numbers: the bytes differ if an observer draws any.
        inputs += 0.01 * torch.randn(inputs.shape)
        run.log(loss=inputs.square().mean(), step_size=0.01)
        if step == 1 and end == "failed":
            raise ddbench.DdbenchError("this run fails on purpose.")
        if step == 1 and end == "interrupted" and not stopped.exists():
            stopped.touch()
            raise KeyboardInterrupt
    return DistilledSet(inputs, task.objective.relabel(labels))


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [ends]

"""Examples class by class, `[classes, n, *sample_shape]`, and the network that trains between their updates."""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ddbench import DistilledSet, ExampleSet, RecipeRequest, State, Task, Unsupported, augment
from ddbench.augment import DSA, DSA_DIGITS

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Images = Float[Tensor, "_ *sample"]
ClassImages = Float[Tensor, "classes n *sample"]

DIGITS = ("digits", "mnist", "svhn", "usps")
"""Datasets whose images mean something else, or nothing, in a mirror."""


def check(task: Task, strategy: str = "") -> None:
    """Raise `Unsupported` for a task that has one class only, or examples that a strategy cannot augment."""
    augment.refuse(strategy, task.info)
    if len(task.info.classes) < 2:
        raise Unsupported(
            f"{task.info.name} has one class only, so there is nothing to tell apart.",
            "Take a dataset of two classes or more.",
        )


def initial_images(task: Task, start: str, generator: torch.Generator) -> ClassImages:
    """Return images of each class to start from: random `real` ones, or normal `noise`.

    Raises `UsageError` where a class has fewer real images than the budget.
    """
    n, shape = task.budget.images_per_class, (len(task.info.classes), task.budget.images_per_class)
    if start == "real":
        return task.train.random_subset(n, generator).inputs.view(*shape, *task.info.sample_shape).clone()
    return torch.randn(*shape, *task.info.sample_shape, generator=generator).to(task.train.inputs)


def strategy_for(request: RecipeRequest) -> str:
    """Return the augmentation that was published for a dataset: digits are not mirrored."""
    return DSA_DIGITS if request.dataset in DIGITS else DSA


def view(images: Images, params: augment.Augmentation | None) -> Images:
    """Return the images under a draw of augmentation, if there is one."""
    return images if params is None else augment.apply(images, params)


def distilled(task: Task, images: ClassImages) -> DistilledSet:
    """Return the set of these images, spread over the steps of the budget, with the labels that the objective gives."""
    labels = torch.arange(len(images), device=images.device).repeat_interleave(images.shape[1])
    examples = ExampleSet(images.detach().flatten(0, 1), labels, task.info)
    inputs, labels = examples.in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


def copy_state(state: State) -> State:
    """Return a copy of a network's state, to train in place: a loop's checkpoints hold its tensors."""
    params, buffers = ({name: t.detach().clone() for name, t in part.items()} for part in (state.params, state.buffers))
    return State(params, buffers)


def overwrite(state: State, source: State) -> None:
    """Give the tensors of `state` the values of `source`."""
    for target, values in ((state.params, source.params), (state.buffers, source.buffers)):
        for name, tensor in target.items():
            tensor.copy_(values[name])

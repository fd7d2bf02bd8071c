"""Selection of real images within the budget by a rule on features or scores, per class or over all classes."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ddbench import BornLater, DdbenchError, DistilledSet, ExampleSet, Run, Task, UsageError
from ddbench.networks import free_memory
from ddbench_coreset.trace import TRACED, penultimate, trace

Features = Annotated[
    Literal["pixels", "trained", "drawn"],
    Field(
        description="normalised pixels; or the last layer's input, in a network trained for `epochs` epochs, or "
        "in one from the init distribution (a pretrained one, with --init or --target)"
    ),
]
PerClass = Annotated[bool, Field(description="the same number of each class, or the best over all classes")]
Epochs = Annotated[int, Field(ge=1, description="epochs of the training for features and scores")]
Count = Annotated[int, Field(ge=1, description="networks that scores are averaged over")]

Weighted = Annotated[
    bool, Field(description="the weights that the choice computes, in the loss of training"), BornLater(False)
]

Rule = Callable[[Tensor, int], Tensor]
"""`(indices of the candidates [n], count)` to positions among them, in the order of choice."""
Weigh = Callable[[Tensor, Tensor], Tensor]
"""`(indices of the candidates [n], positions of those chosen)` to a weight for each of these, not negative."""


def compute_features(task: Task, run: Run, kind: str, epochs: int) -> Float[Tensor, "n d"]:
    """Return finite features of all training examples."""
    if kind == "pixels":
        features = task.train.inputs.flatten(1)
    else:
        module = task.networks.module
        if kind == "trained":
            state = trace(task, run, TRACED, epochs).last.network(0)
        else:
            state = task.networks.sample(1).network(0)
        features = penultimate(module, state, task.train.inputs)
    return require_finite(features, "features", "Choose other --set features, or another --network or --init.")


def require_finite(
    values: Float[Tensor, " n *d"], what: str = "scores", remedy: str = "Choose another --network, --init or --seed."
) -> Float[Tensor, " n *d"]:
    """Return `values`; raise `DdbenchError` where one is not finite."""
    if not torch.isfinite(values).all():
        raise DdbenchError(f"{what} of the training images are not finite.", remedy)
    return values


def check_memory(what: str, images: int, numbers: int, device: torch.device) -> None:
    """Raise `DdbenchError` where so many numbers of double precision do not fit into the memory of `device`."""
    needed, free = 8 * numbers, free_memory(device)
    if needed > free:
        raise DdbenchError(
            f"{what} of {images} images take {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Choose per class (--set per_class=true), or take a rule that needs less, such as herding.",
        )


def choose(task: Task, rule: Rule, *, per_class: bool = True, weigh: Weigh | None = None) -> DistilledSet:
    """Return real images chosen by `rule`: `images_per_class` of each class, or the same total over all classes.

    With `weigh` they have weights; those of a class (or of all) add up to the number of its training images, so that
    each class keeps its share in the loss. Raises `UsageError` where there are too few.
    """
    train, count, classes = task.train, task.budget.images_per_class, len(task.info.classes)
    if per_class:
        groups = [train.of_class(label, count) for label in range(classes)]
    else:
        groups, count = [torch.arange(len(train), device=train.labels.device)], count * classes
        if len(train) < count:
            raise UsageError(
                f"{task.info.label} has {len(train)} training images, fewer than {count}.",
                "Lower --ipc, or add images to the dataset.",
            )
    chosen = [rule(members, count).to(members.device) for members in groups]
    indices = torch.cat([members[positions] for members, positions in zip(groups, chosen, strict=True)])
    subset = task.train[indices]
    inputs, labels = subset.in_steps(task.budget.steps)
    if weigh is None:
        return DistilledSet(inputs, task.objective.relabel(labels))
    parts = [_shares(weigh(*pair), len(pair[0])) for pair in zip(groups, chosen, strict=True)]
    # The weights are spread over the steps as the images are.
    weights, _ = ExampleSet(torch.cat(parts).to(inputs), subset.labels, subset.info).in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels), weights=weights)


def _shares(weights: Float[Tensor, " count"], total: int) -> Float[Tensor, " count"]:
    """Return weights that add up to `total`; equal ones where all are zero."""
    weights = weights if weights.sum() > 0 else torch.ones_like(weights)
    return weights * (total / weights.sum())


def highest(scores: Float[Tensor, " n"]) -> Rule:
    """Return the rule that picks the candidates with the highest scores; ties go to the first."""
    return lambda members, count: torch.argsort(scores[members], descending=True, stable=True)[:count]

"""Objectives: what networks trained on the distilled set should be good at."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DatasetInfo, Objective, UsageError

ClassName = Annotated[int | str, Field(union_mode="left_to_right", description="a class, by number or name")]


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which examples are classified as `labels` say; never those whose logits are not finite."""
    return (logits.argmax(-1) == labels) & logits.isfinite().all(-1)


def _share(hits: Tensor) -> float:
    """The share of True; NaN of nothing."""
    return hits.float().mean().item()


@ddbench.objective
def classification(info: DatasetInfo) -> Objective:
    """Classify as the real data does: cross-entropy, ranked by accuracy.

    An example whose logits are not finite counts as wrong.
    """

    def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
        return {"accuracy": _share(_right(logits, labels)), "loss": F.cross_entropy(logits, labels).item()}

    return Objective(loss=F.cross_entropy, metrics=metrics, primary="accuracy")


@ddbench.objective
def poisoning(info: DatasetInfo, *, attack_class: ClassName = 0, target_class: ClassName = 1) -> Objective:
    """Make networks call one class another and classify the rest well (Wang et al. 2018, Section 4.3).

    Every label `attack_class` of the real data is rewritten to `target_class` (each a number or a class name); the
    loss is cross-entropy over all classes, so the others are preserved. `attack_success` is the share of the attacked
    class that is called the target, and ranks; `accuracy` is against the true labels, `accuracy_rewritten` against
    the rewritten ones, `accuracy_others` on the classes that are not attacked, `accuracy_of_...` on each class.
    """
    attacked, target = _index("attack_class", attack_class, info), _index("target_class", target_class, info)
    if attacked == target:
        raise UsageError(
            f"attack_class and target_class are both {info.classes[target]!r}.",
            "Choose two classes: --set objective.attack_class=0 --set objective.target_class=1",
        )

    def rewritten(labels: Tensor) -> Tensor:
        return torch.where(labels == attacked, target, labels)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, rewritten(labels))

    def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
        right, victims = _right(logits, labels), labels == attacked
        per_class = {f"accuracy_of_{name}": _share(right[labels == label]) for label, name in enumerate(info.classes)}
        return {
            "attack_success": _share(_right(logits, torch.full_like(labels, target))[victims]),
            "accuracy": _share(right),
            "accuracy_others": _share(right[~victims]),
            "accuracy_rewritten": _share(_right(logits, rewritten(labels))),
            **per_class,
        }

    return Objective(loss=loss, metrics=metrics, primary="attack_success", relabel=rewritten)


@ddbench.objective
def least_squares(info: DatasetInfo) -> Objective:
    """Least squares on one-hot labels, inside and out: half the squared distance, ranked by that loss.

    The setting in which one gradient step can be analysed (Wang et al. 2018, Section 3.3): with the network `linear`
    both losses are quadratic. Labels of a distilled set may be any numbers.
    """
    classes = len(info.classes)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels if labels.is_floating_point() else F.one_hot(labels, classes).to(logits)
        return 0.5 * (logits - targets).square().sum(-1).mean()

    def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
        return {"loss": loss(logits, labels).item(), "accuracy": _share(_right(logits, labels))}

    return Objective(
        loss=loss, metrics=metrics, primary="loss", higher_is_better=False, inner_loss=loss, kind="regression"
    )


def _index(option: str, value: int | str, info: DatasetInfo) -> int:
    """The label a number or a class name stands for."""
    last = len(info.classes) - 1
    if isinstance(value, int) and 0 <= value <= last:
        return value
    if isinstance(value, str) and value in info.classes:
        return info.classes.index(value)
    raise UsageError(
        f"{option}={value} is no class of {info.name}: it has {', '.join(map(repr, info.classes[:10]))}"
        f"{', ...' if last > 9 else ''}.",
        f"Give a number from 0 to {last}, or a name.",
    )


@ddbench.hookimpl
def ddbench_objectives() -> list[object]:
    return [classification, poisoning, least_squares]

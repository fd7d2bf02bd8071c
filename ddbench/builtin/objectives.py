"""Objectives: the goals that networks trained on a distilled set are scored by."""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DatasetInfo, Metric, Objective, UsageError

Logits = Float[Tensor, "n classes"]
Labels = Int[Tensor, " n"]
ClassName = Annotated[int | str, Field(union_mode="left_to_right")]
AttackClass = Annotated[ClassName, Field(description="number or name of the class that is attacked")]
Kept = Annotated[
    float,
    Field(ge=0, le=1, description="accuracy on the other classes that a row must keep to be ranked among the first"),
    ddbench.BornLater(),
]
TargetClass = Annotated[ClassName, Field(description="number or name of the class that it is to be classified as")]
ACCURACY = Metric("accuracy", "share", bounded_by_full_data=True)
LOSS = Metric("loss", higher_is_better=False)


def _correct(logits: Logits, labels: Labels) -> Bool[Tensor, " n"]:
    """Mark the examples that are classified as `labels`. Examples with logits that are not finite are never correct."""
    return (logits.argmax(-1) == labels) & logits.isfinite().all(-1)


def _share(hits: Bool[Tensor, " n"]) -> float:
    """Return the share of True, or NaN where `hits` is empty."""
    return hits.float().mean().item()


@ddbench.objective
def classification(info: DatasetInfo) -> Objective:
    """Classification like the real data: cross-entropy, ranked by accuracy.

    An example with logits that are not finite counts as wrong.
    """

    def measure(logits: Logits, labels: Labels) -> dict[str, float]:
        return {"accuracy": _share(_correct(logits, labels)), "loss": F.cross_entropy(logits, labels).item()}

    return Objective(F.cross_entropy, measure, (ACCURACY, LOSS))


@ddbench.objective
def poisoning(
    info: DatasetInfo, *, attack_class: AttackClass = 0, target_class: TargetClass = 1, keep: Kept = 0.5
) -> Objective:
    """Poisoning: networks classify one class as another and the rest correctly (Wang et al. 2018, Section 4.3).

    Every label `attack_class` of the real data is rewritten to `target_class`. The loss is cross-entropy over all
    classes, which preserves the other classes. Rows are ranked by `attack_success`, the share of the attacked class
    that is classified as the target. Those whose `accuracy_others` is below `keep` come last: a network that answers
    nothing but the target class is no poisoned classifier. `accuracy` is measured against the true labels,
    `accuracy_rewritten` against the rewritten labels, `accuracy_others` on the classes that are not attacked,
    `accuracy_of_NAME` on class NAME.
    """
    attacked, target = _index("attack_class", attack_class, info), _index("target_class", target_class, info)
    if attacked == target:
        raise UsageError(
            f"attack_class and target_class are both {info.classes[target]!r}.",
            "Choose two classes: --set objective.attack_class=0 --set objective.target_class=1",
        )

    def rewrite(labels: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        return torch.where(labels == attacked, target, labels)

    def loss(logits: Logits, labels: Shaped[Tensor, " n *classes"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, rewrite(labels))

    def measure(logits: Logits, labels: Labels) -> dict[str, float]:
        correct, victims = _correct(logits, labels), labels == attacked
        per_class = {f"accuracy_of_{name}": _share(correct[labels == label]) for label, name in enumerate(info.classes)}
        return {
            "attack_success": _share(_correct(logits, torch.full_like(labels, target))[victims]),
            "accuracy": _share(correct),
            "accuracy_others": _share(correct[~victims]),
            "accuracy_rewritten": _share(_correct(logits, rewrite(labels))),
            **per_class,
        }

    metrics = (
        Metric("attack_success", "share"),
        Metric("accuracy", "share", beside=True),
        Metric("accuracy_others", "share", beside=True, threshold=keep),
        Metric("accuracy_rewritten", "share"),
        *(Metric(f"accuracy_of_{name}", "share") for name in info.classes),
    )
    return Objective(loss, measure, metrics, relabel=rewrite)


@ddbench.objective
def least_squares(info: DatasetInfo) -> Objective:
    """Least squares on one-hot labels in the inner and the outer loop: half the squared distance, ranked by this loss.

    With the network `linear` both losses are quadratic, and one gradient step has a closed-form analysis (Wang et al.
    2018, Section 3.3). Labels of a distilled set may be any numbers.
    """
    classes = len(info.classes)

    def loss(logits: Logits, labels: Shaped[Tensor, " n *classes"]) -> Float[Tensor, ""]:
        targets = labels if labels.is_floating_point() else F.one_hot(labels, classes).to(logits)
        return 0.5 * (logits - targets).square().sum(-1).mean()

    def measure(logits: Logits, labels: Labels) -> dict[str, float]:
        return {"loss": loss(logits, labels).item(), "accuracy": _share(_correct(logits, labels))}

    metrics = (LOSS, Metric("accuracy", "share", beside=True))
    return Objective(loss, measure, metrics, inner_loss=loss, kind="regression")


def _index(option: str, value: int | str, info: DatasetInfo) -> int:
    """Return the label for a number or a class name. Raises `UsageError` naming `option` for any other value."""
    last = len(info.classes) - 1
    if isinstance(value, int) and 0 <= value <= last:
        return value
    if isinstance(value, str) and value in info.classes:
        return info.classes.index(value)
    raise UsageError(
        f"{option}={value} is not a class of {info.name}: it has {', '.join(map(repr, info.classes[:10]))}"
        f"{', ...' if last > 9 else ''}.",
        f"Give a number from 0 to {last}, or the name of a class.",
    )


@ddbench.hookimpl
def ddbench_objectives() -> list[object]:
    return [classification, poisoning, least_squares]

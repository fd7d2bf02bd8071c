"""Objectives: what networks trained on the distilled set should be good at."""

from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DatasetInfo, Objective


@ddbench.objective
def classification(info: DatasetInfo) -> Objective:
    """Classify as the real data does: cross-entropy, ranked by accuracy.

    An example whose logits are not finite counts as wrong.
    """

    def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
        return {
            "accuracy": ((logits.argmax(-1) == labels) & logits.isfinite().all(-1)).float().mean().item(),
            "loss": F.cross_entropy(logits, labels).item(),
        }

    return Objective(loss=F.cross_entropy, metrics=metrics, primary="accuracy")


@ddbench.hookimpl
def ddbench_objectives() -> list[object]:
    return [classification]

"""knn/v1: the distilled examples as a nearest-neighbour classifier (Wang et al. 2018, Section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddbench.contract.examples import ExampleSet
from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Side
from ddbench.protocols.base import Evaluation, Setting, better, collect, finite

NORMS = (1, 2)
NEIGHBOURS = (1, 3)
CHUNK = 500
"""Number of examples whose distances to a set are computed at a time."""


@dataclass(frozen=True)
class Knn:
    """A nearest-neighbour classifier: the most common class among the k nearest distilled examples, in pixels.

    Pixels are normalised. The metric (l1, l2) and k (1, 3) are those with the best mean over the sets on the validation
    slice. Of classes with equal votes the one with the nearer example wins. A soft label votes for its largest entry.
    An example has as many votes as its weight, of mean 1.
    No network takes part, so one set has one value; "before" is a classifier that always answers the first class.
    """

    name: str = "knn/v1"
    summary: str = "nearest neighbours in pixels, {l1, l2} x {1, 3} chosen on the validation slice; no network"
    teacher: bool = False
    operations: tuple[str, ...] = ()
    stored: bool = False
    rate_of_set: bool = False
    ignores: frozenset[str] = frozenset({"steps", "epochs", "eval_network", "eval_init"})

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`."""
        return {"norms": NORMS, "neighbours": NEIGHBOURS}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`."""
        objective, primary = setting.objective, setting.objective.primary
        classes = len(setting.test.info.classes)
        total, pace, count = len(sets) * (len(NORMS) + 1), Pace(), 0

        def classify(
            distilled: DistilledSet, norm: int, ks: Sequence[int], examples: ExampleSet
        ) -> list[dict[str, float]]:
            nonlocal count
            nearest = neighbours(distilled, examples.inputs, norm, max(ks))
            labels = classes_of(distilled)
            shares = distilled.relative_weights()
            weights = None if shares is None else shares.flatten()
            values = [objective.measure(votes(labels, nearest[:, :k], classes, weights), examples.labels) for k in ks]
            count += 1
            pace.tick()
            reporter.progress(count, total, {primary: values[0][primary]}, pace.left(total - count))
            return values

        best, best_value = (NORMS[0], NEIGHBOURS[0]), math.nan
        for norm in NORMS:
            results = [classify(distilled, norm, NEIGHBOURS, setting.validation) for distilled in sets]
            for position, k in enumerate(NEIGHBOURS):
                value = math.fsum(values[position][primary] for values in results) / len(sets)
                if better(objective, value, best_value):
                    best, best_value = (norm, k), value
        scores: dict[str, list[float]] = {}
        before: dict[str, list[float]] = {}
        constant = objective.measure(torch.zeros(len(setting.test), classes), setting.test.labels.cpu())
        for distilled in sets:
            [values] = classify(distilled, best[0], [best[1]], setting.test)
            collect(scores, values)
            collect(before, constant)
        selected = f"l{best[0]} and k={best[1]} on {len(setting.validation)} validation images"
        return Evaluation(finite(scores, setting), finite(before, setting), selected)


def classes_of(distilled: DistilledSet) -> Int[Tensor, " total"]:
    """Return the class that each distilled example votes for."""
    labels = distilled.flat()[1]
    return labels.argmax(-1) if distilled.soft else labels


def neighbours(
    distilled: DistilledSet, inputs: Float[Tensor, " n *sample"], norm: int, k: int
) -> Int[Tensor, "n neighbours"]:
    """Return the indices of the k nearest distilled examples (or all of them, if fewer), nearest first."""
    images, _ = distilled.flat()
    k = min(k, len(images))
    parts = [
        torch.cdist(part, images.flatten(1), p=float(norm)).topk(k, largest=False).indices
        for part in torch.split(inputs.flatten(1), CHUNK)
    ]
    return torch.cat(parts)


def votes(
    labels: Int[Tensor, " total"],
    nearest: Int[Tensor, "n neighbours"],
    classes: int,
    weights: Float[Tensor, " total"] | None = None,
) -> Float[Tensor, "n classes"]:
    """Return the logarithm of the smoothed shares of votes: log (votes + 1) / (k + classes).

    `nearest` are indices of examples, `weights` their votes (one each by default). The nearest example's vote counts a
    little more, which decides ties and nothing else.
    """
    n, k = nearest.shape
    ballots = torch.ones(n, k, device=nearest.device) if weights is None else weights[nearest]
    extra = torch.zeros(k, device=nearest.device)
    extra[0] = 1e-3
    counts = torch.zeros(n, classes, device=nearest.device).scatter_add_(1, labels[nearest], ballots + extra)
    return ((counts + 1) / (k + classes)).log()


KNN_V1 = Knn()

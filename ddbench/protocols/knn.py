"""knn/v1: the distilled examples as a nearest-neighbour classifier (Wang et al. 2018, Section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddbench.contract.observer import Pace, Reporter
from ddbench.contract.sets import DistilledSet, ExampleSet
from ddbench.contract.task import Side
from ddbench.protocols.base import Evaluation, Setting, better, collect, finite

NORMS = (1, 2)
NEIGHBOURS = (1, 3)
CHUNK = 500
"""Examples whose distances to a set are computed at a time."""


@dataclass(frozen=True)
class Knn:
    """Each example gets the class most common among its k nearest distilled ones, in normalised pixels.

    The metric (l1, l2) and k (1, 3) are those that do best on the validation slice, averaged over the sets. Of
    classes with as many votes the one with the nearer example wins. Soft labels vote as the class they give most.
    Networks play no part, so one set gives one value; "before" is a classifier that knows nothing and always
    answers the first class.
    """

    name: str = "knn/v1"
    summary: str = "nearest neighbours in pixels, {l1, l2} x {1, 3} chosen on the validation slice; no network"
    teacher: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """See `Protocol.definition`."""
        return {"norms": NORMS, "neighbours": NEIGHBOURS}

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """None."""
        return {}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`."""
        objective, primary = setting.objective, setting.objective.primary
        classes = len(setting.test.info.classes)
        total, pace, done = len(sets) * (len(NORMS) + 1), Pace(), 0

        def figures(
            distilled: DistilledSet, norm: int, ks: Sequence[int], examples: ExampleSet
        ) -> list[dict[str, float]]:
            nonlocal done
            nearest = neighbours(distilled, examples.inputs, norm, max(ks))
            found = [objective.measure(votes(nearest[:, :k], classes), examples.labels) for k in ks]
            done += 1
            pace.tick()
            reporter.progress(done, total, {primary: found[0][primary]}, pace.left(total - done))
            return found

        best, best_value = (NORMS[0], NEIGHBOURS[0]), math.nan
        for norm in NORMS:
            each = [figures(distilled, norm, NEIGHBOURS, setting.validation) for distilled in sets]
            for place, k in enumerate(NEIGHBOURS):
                value = math.fsum(found[place][primary] for found in each) / len(sets)
                if better(objective, value, best_value):
                    best, best_value = (norm, k), value
        scores: dict[str, list[float]] = {}
        before: dict[str, list[float]] = {}
        ignorant = objective.measure(torch.zeros(len(setting.test), classes), setting.test.labels.cpu())
        for distilled in sets:
            [found] = figures(distilled, best[0], [best[1]], setting.test)
            collect(scores, found)
            collect(before, ignorant)
        selected = f"l{best[0]} and k={best[1]} on {len(setting.validation)} validation images"
        return Evaluation(finite(scores, setting), finite(before, setting), selected)


def neighbours(distilled: DistilledSet, inputs: Tensor, norm: int, k: int) -> Tensor:
    """Labels of the k nearest distilled examples (all of them, where there are fewer), nearest first: `[n, k]`."""
    images, labels = distilled.flat()
    if distilled.soft:
        labels = labels.argmax(-1)
    k = min(k, len(images))
    parts = [
        torch.cdist(part, images.flatten(1), p=float(norm)).topk(k, largest=False).indices
        for part in torch.split(inputs.flatten(1), CHUNK)
    ]
    return labels[torch.cat(parts)]


def votes(nearest: Tensor, classes: int) -> Tensor:
    """Log of the smoothed shares of votes, `[n, classes]`: log (votes + 1) / (k + classes).

    The nearest example's vote counts a little more, which decides between equals and nothing else.
    """
    n, k = nearest.shape
    weights = torch.ones(k, device=nearest.device)
    weights[0] += 1e-3
    counted = torch.zeros(n, classes, device=nearest.device).scatter_add_(1, nearest, weights.expand(n, k))
    return ((counted + 1) / (k + classes)).log()


KNN_V1 = Knn()

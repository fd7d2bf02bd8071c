"""knn/v1: the distilled examples as a nearest-neighbour classifier (Wang et al. 2018, Section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.data import DistilledSet, ExampleSet
from ddbench.protocols.base import Evaluation, Setting, better, collect, finite
from ddbench.reporter import Pace, Reporter
from ddbench.task import Side

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

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """None."""
        return {}

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`."""
        objective, primary = setting.objective, setting.objective.primary
        classes = len(setting.test.info.classes)
        ways = [(norm, k) for norm in NORMS for k in NEIGHBOURS]
        total, pace, done = len(sets) * (len(ways) + 1), Pace(), 0

        def figures(distilled: DistilledSet, norm: int, k: int, examples: ExampleSet) -> dict[str, float]:
            nonlocal done
            found = objective.metrics(votes(distilled, examples.inputs, norm, k, classes), examples.labels)
            done += 1
            pace.tick()
            reporter.progress(done, total, {primary: found[primary]}, pace.left(total - done))
            return found

        best, best_value = ways[0], float("nan")
        for norm, k in ways:
            values = [figures(d, norm, k, setting.validation)[primary] for d in sets]
            value = sum(values) / len(values)
            if better(objective, value, best_value):
                best, best_value = (norm, k), value
        scores: dict[str, list[float]] = {}
        before: dict[str, list[float]] = {}
        ignorant = objective.metrics(torch.zeros(len(setting.test), classes), setting.test.labels.cpu())
        for distilled in sets:
            collect(scores, figures(distilled, *best, setting.test))
            collect(before, ignorant)
        selected = f"l{best[0]} and k={best[1]} on {len(setting.validation)} validation images"
        return Evaluation(finite(scores, setting), finite(before, setting), selected)


def votes(distilled: DistilledSet, inputs: Tensor, norm: int, k: int, classes: int) -> Tensor:
    """Log of the smoothed shares of votes, `[n, classes]`: log (votes + 1) / (k + classes).

    The nearest example's vote counts a little more, which decides between equals and nothing else.
    """
    images, labels = distilled.flat()
    if distilled.soft:
        labels = labels.argmax(-1)
    k = min(k, len(images))
    weights = torch.ones(k, device=inputs.device)
    weights[0] += 1e-3
    parts = []
    for part in torch.split(inputs.flatten(1), CHUNK):
        nearest = torch.cdist(part, images.flatten(1), p=float(norm)).topk(k, largest=False).indices
        counted = torch.zeros(len(part), classes, device=inputs.device)
        counted.scatter_add_(1, labels[nearest], weights.expand(len(part), k))
        parts.append(((counted + 1) / (k + classes)).log())
    return torch.cat(parts)


KNN_V1 = Knn()

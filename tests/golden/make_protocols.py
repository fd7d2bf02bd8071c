"""Score one set of real digits under every protocol, and write the raw values to `protocols.json`.

    python tests/golden/make_protocols.py

A protocol of a given name keeps its values: write them anew for a new protocol only.
`protocols-avx512.json` has the values of long trainings on a processor with AVX-512, which rounds otherwise.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

import ddbench
from ddbench.augment import Views
from ddbench.protocols import PROTOCOLS

VALUES = Path(__file__).with_name("protocols.json")
NETWORKS = ("linear", "mlp")
SCORED = 2
"""Number of networks that each score is over."""
RATE = 0.05
"""Learning rate of the set that brings its own, which replay/v1 and train-dsa-rate/v1 use."""

Values = dict[str, dict[str, list[float]]]


def score(protocol: str, network: str, rate: float | None = None) -> Values:
    """Return the raw values `{before or after: {metric: [networks]}}` of two random images per class."""
    spec = ddbench.RunSpec(
        method="random_subset", network=network, protocol=protocol, images_per_class=2, steps=2, eval_networks=SCORED
    )

    def choose(examples: ddbench.ExampleSet) -> ddbench.DistilledSet:
        subset = examples.random_subset(2, torch.Generator().manual_seed(0))
        lrs = None if rate is None else torch.full((3, 2), rate)
        distilled = ddbench.DistilledSet(*subset.in_steps(2), lrs)
        return with_views(distilled) if PROTOCOLS[protocol].stored else distilled

    _, scores = ddbench.evaluate(choose, spec, companions=False)
    return {
        part: {metric: score.values for metric, score in getattr(scores, part).items()} for part in ("before", "after")
    }


def with_views(distilled: ddbench.DistilledSet) -> ddbench.DistilledSet:
    """Return a set with 20 epochs of views, and logits that point to the class of the whole image."""
    images, labels = distilled.flat()
    views = Views.draw(len(images), (8, 8), 20, 50, 0.08, False, torch.Generator().manual_seed(0))
    logits = 40.0 * torch.eye(10)[labels[views.order.long()]]
    return replace(distilled, extras=views.stored(logits, images))


def score_all(protocol: str) -> dict[str, Values]:
    """Return the values of a protocol for each network; for replay/v1 also those of a set with rates."""
    torch.set_num_threads(1)
    rate = RATE if protocol == "train-dsa-rate/v1" else None
    values = {network: score(protocol, network, rate) for network in NETWORKS}
    return values | {"mlp, rates": score(protocol, "mlp", RATE)} if protocol == "replay/v1" else values


if __name__ == "__main__":
    VALUES.write_text(json.dumps({protocol: score_all(protocol) for protocol in PROTOCOLS}, indent=1) + "\n")

"""Score one set of real digits under every protocol, and write the raw values to `protocols.json`.

    python -m tests.golden.make_protocols

A protocol of a given name keeps its values: write them anew for a new protocol only.
Protocols that train for hundreds of epochs are scored in float64: in float32 each kind of processor ends elsewhere.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddbench import DistilledSet, ExampleSet, RunSpec, State
from ddbench.augment import Views
from ddbench.contract.inits import Side
from ddbench.contract.observer import Silent
from ddbench.contract.task import Networks
from ddbench.discovery.catalog import Catalog
from ddbench.engine.fit import Recipe, train_each
from ddbench.pipeline.plan import plan_evaluation
from ddbench.pipeline.prepare import prepare
from ddbench.protocols import PROTOCOLS
from ddbench.protocols.base import Setting, draw
from tests.doubled import double, double_set, rounded

VALUES = Path(__file__).with_name("protocols.json")
NETWORKS = ("linear", "mlp")
SCORED = 2
"""Number of networks that each score is over."""
RATE = 0.05
"""Learning rate of the set that brings its own, which replay/v1 and train-dsa-rate/v1 use."""

Values = dict[str, dict[str, list[float]]]


def score(protocol: str, network: str, rate: float | None = None) -> Values:
    """Return the raw values `{before or after: {metric: [networks]}}` of two random images per class."""
    catalog = Catalog()
    spec = RunSpec(
        method="random_subset", network=network, protocol=protocol, images_per_class=2, steps=2, eval_networks=SCORED
    )
    prepared = prepare(plan_evaluation(spec, catalog), catalog)
    subset = prepared.everything.random_subset(2, torch.Generator().manual_seed(0))
    lrs = None if rate is None else torch.full((3, 2), rate)
    distilled = DistilledSet(*subset.in_steps(2), lrs)
    setting = prepared.setting
    if protocol.startswith("train"):
        distilled, setting = double_set(distilled), in_float64(setting, prepared.everything)
    if PROTOCOLS[protocol].stored:
        distilled = with_views(distilled)
    evaluation = PROTOCOLS[protocol].evaluate([distilled], setting, SCORED, Silent())
    return {"before": evaluation.before, "after": evaluation.scores}


def in_float64(setting: Setting, examples: ExampleSet) -> Setting:
    """Return a setting that no rounding of float32 enters: also weights are drawn anew, and two teachers trained."""
    setting = double(setting)
    module = setting.module

    def networks(side: Side, generator: torch.Generator) -> Networks:
        class Uniform:
            def sample(self, n: int) -> State:
                return State({name: uniform(n, *p.shape, generator=generator) for name, p in module.named_parameters()})

        return Uniform()

    setting = replace(setting, networks=networks)
    examples = replace(examples, inputs=rounded(examples.inputs))
    teachers: list[State] = []
    starts = draw("teachers", setting, "train", 2)
    train_each(module, starts, range(2), examples, Recipe(steps=200, batch=64), teachers.append)
    return replace(setting, full_data=lambda patience: teachers)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Return weights between plus and minus the inverse root of their inputs, from bits that every processor draws."""
    bound = math.prod(shape[2:]) ** -0.5
    return (torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1) * bound


def with_views(distilled: DistilledSet) -> DistilledSet:
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

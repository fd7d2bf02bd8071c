"""replay/v1: train fresh networks as the set itself says, score them before and after (Wang et al. 2018, Section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.data import DistilledSet, ExampleSet
from ddbench.environment import derive_seed
from ddbench.errors import DdbenchError
from ddbench.loop import Pace, Reporter
from ddbench.protocols.base import Evaluation, Setting, better, measure
from ddbench.task import Side
from ddbench.unroll import train, unstack

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SELECTION_NETWORKS = 5


@dataclass(frozen=True)
class Replay:
    """Plain gradient descent on the set's own batches, in order, at its own rates.

    A set without rates takes as many steps as the budget has (epochs * steps), cycling through its batches, at the
    fixed rate of `RATES` that does best on the validation slice, averaged over 5 networks of the training side.
    The networks that score are drawn from the evaluation side with seeds that belong to the protocol, so every
    method meets the same ones.
    """

    name: str = "replay/v1"
    summary: str = "the set's own gradient steps at its own rates (without rates: the best fixed rate), fresh networks"

    def evaluate(self, sets: Sequence[DistilledSet], setting: Setting, networks: int, reporter: Reporter) -> Evaluation:
        """See `Protocol.evaluate`. Raises `DdbenchError` when the primary metric is not finite."""
        selected = "nothing"
        rates = [distilled.lrs for distilled in sets]
        if any(lrs is None for lrs in rates):
            rate = self._best_rate(sets, setting, reporter)
            rates = [_constant(d, setting.budget.total_steps, rate) if d.lrs is None else d.lrs for d in sets]
            selected = f"rate {rate:g} on {len(setting.validation)} validation images"

        drawn = self._networks(setting, "evaluation", networks)
        buffers = dict(setting.module.named_buffers())
        scores: dict[str, list[float]] = {}
        before: dict[str, list[float]] = {}
        # A distribution with one network (fixed) gives one value for one set, and one for each of several sets.
        total, pace = max(len(drawn), len(sets)), Pace()
        for i in range(total):
            weights, chosen = drawn[i % len(drawn)], i % len(sets)
            _add(before, measure(setting.module, weights, buffers, setting.test, setting.objective))
            trained = self._trained(sets[chosen], rates[chosen], weights, setting, setting.test)
            _add(scores, trained)
            pace.tick()
            primary = setting.objective.primary
            reporter.progress(i + 1, total, {primary: math.fsum(scores[primary]) / (i + 1)}, pace.left(total - i - 1))
        return Evaluation(_finite(scores, setting), _finite(before, setting), selected)

    def _networks(self, setting: Setting, side: Side, count: int) -> list[dict[str, Tensor]]:
        """Initial weights that depend on the protocol, the side and the init distribution alone."""
        generator = torch.Generator().manual_seed(derive_seed(self.name, side))
        return list(unstack(setting.module, setting.networks(side, generator).sample(count)))

    def _trained(
        self,
        distilled: DistilledSet,
        lrs: Tensor | None,
        weights: dict[str, Tensor],
        setting: Setting,
        examples: ExampleSet,
    ) -> dict[str, float]:
        assert lrs is not None
        after, buffers = train(setting.module, weights, distilled.inputs, distilled.labels, lrs)
        return measure(setting.module, after, buffers, examples, setting.objective)

    def _best_rate(self, sets: Sequence[DistilledSet], setting: Setting, reporter: Reporter) -> float:
        drawn = self._networks(setting, "train", SELECTION_NETWORKS)
        objective, best, best_value = setting.objective, RATES[0], math.nan
        pairs = max(len(drawn), min(len(sets), SELECTION_NETWORKS))
        pace = Pace()
        for done, rate in enumerate(RATES):
            values = []
            for i in range(pairs):
                distilled, weights = sets[i % len(sets)], drawn[i % len(drawn)]
                lrs = _constant(distilled, setting.budget.total_steps, rate)
                metrics = self._trained(distilled, lrs, weights, setting, setting.validation)
                values.append(metrics[objective.primary])
            value = math.fsum(values) / pairs
            if better(objective, value, best_value):
                best, best_value = rate, value
            pace.tick()
            left = len(RATES) - done - 1
            reporter.progress(done + 1, len(RATES), {"rate": rate, objective.primary: value}, pace.left(left))
        return best


def _constant(distilled: DistilledSet, total_steps: int, rate: float) -> Tensor:
    """`[epochs, steps]` of one rate, in the shape of the set: its batches cycled until `total_steps` are reached."""
    steps = distilled.inputs.shape[0]
    epochs = max(1, total_steps // steps)
    return torch.full((epochs, steps), rate, device=distilled.inputs.device)


def _add(values: dict[str, list[float]], metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        values.setdefault(name, []).append(float(value))


def _finite(values: dict[str, list[float]], setting: Setting) -> dict[str, list[float]]:
    """Metrics that are finite on every network; a diverged network still has an accuracy, but no loss."""
    finite = {name: numbers for name, numbers in values.items() if all(map(math.isfinite, numbers))}
    if setting.objective.primary not in finite:
        raise DdbenchError(
            f"{setting.objective.primary} is not finite on some of the networks.",
            "Training on the set diverges; distil again with lower rates.",
        )
    return finite


REPLAY_V1 = Replay()

"""replay/v1: train fresh networks as the set itself says, score them before and after (Wang et al. 2018, Section 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddbench.data import DistilledSet, ExampleSet
from ddbench.environment import derive_seed
from ddbench.parallel import for_each_network
from ddbench.protocols.base import Evaluation, Setting, better, collect, finite, measure
from ddbench.reporter import Pace, Reporter
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

    def networks_needed(self, networks: int) -> dict[Side, int]:
        """See `Protocol.networks_needed`."""
        return {"evaluation": networks, "train": SELECTION_NETWORKS}

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

        def one(own: nn.Module, i: int) -> tuple[dict[str, float], dict[str, float]]:
            weights, chosen = drawn[i % len(drawn)], i % len(sets)
            before = measure(own, weights, buffers, setting.test, setting.objective)
            return before, self._trained(own, sets[chosen], rates[chosen], weights, setting, setting.test)

        # A distribution with one network (fixed) gives one value for one set, and one for each of several sets.
        total = max(len(drawn), len(sets))
        before: dict[str, list[float]] = {}
        scores: dict[str, list[float]] = {}
        primary, pace = setting.objective.primary, Pace()

        def done(result: tuple[dict[str, float], dict[str, float]]) -> None:
            collect(before, result[0])
            collect(scores, result[1])
            pace.tick()
            count = len(scores[primary])
            reporter.progress(count, total, {primary: math.fsum(scores[primary]) / count}, pace.left(total - count))

        for_each_network(one, setting.module, range(total), done)
        return Evaluation(finite(scores, setting), finite(before, setting), selected)

    def _networks(self, setting: Setting, side: Side, count: int) -> list[dict[str, Tensor]]:
        """Initial weights that depend on the protocol, the side and the init distribution alone."""
        generator = torch.Generator().manual_seed(derive_seed(self.name, side))
        return list(unstack(setting.module, setting.networks(side, generator).sample(count)))

    def _trained(
        self,
        network: nn.Module,
        distilled: DistilledSet,
        lrs: Tensor | None,
        weights: dict[str, Tensor],
        setting: Setting,
        examples: ExampleSet,
    ) -> dict[str, float]:
        assert lrs is not None
        after, buffers = train(network, weights, distilled.inputs, distilled.labels, lrs, setting.objective.inner_loss)
        return measure(network, after, buffers, examples, setting.objective)

    def _best_rate(self, sets: Sequence[DistilledSet], setting: Setting, reporter: Reporter) -> float:
        """The rate whose mean primary metric on the validation slice is best; the smaller one of equals."""
        drawn = self._networks(setting, "train", SELECTION_NETWORKS)
        pairs = max(len(drawn), min(len(sets), SELECTION_NETWORKS))
        trials = [(rate, i) for rate in RATES for i in range(pairs)]
        primary, pace, values = setting.objective.primary, Pace(), []

        def one(own: nn.Module, trial: tuple[float, int]) -> float:
            rate, i = trial
            distilled, weights = sets[i % len(sets)], drawn[i % len(drawn)]
            lrs = _constant(distilled, setting.budget.total_steps, rate)
            return self._trained(own, distilled, lrs, weights, setting, setting.validation)[primary]

        def done(value: float) -> None:
            values.append(value)
            pace.tick()
            count = len(values)
            reporter.progress(count, len(trials), {"rate": trials[count - 1][0]}, pace.left(len(trials) - count))

        for_each_network(one, setting.module, trials, done)
        best, best_value = RATES[0], math.nan
        for position, rate in enumerate(RATES):
            value = math.fsum(values[position * pairs : (position + 1) * pairs]) / pairs
            if better(setting.objective, value, best_value):
                best, best_value = rate, value
        return best


def _constant(distilled: DistilledSet, total_steps: int, rate: float) -> Tensor:
    """`[epochs, steps]` of one rate, in the shape of the set: its batches cycled until `total_steps` are reached."""
    steps = distilled.inputs.shape[0]
    epochs = max(1, total_steps // steps)
    return torch.full((epochs, steps), rate, device=distilled.inputs.device)


REPLAY_V1 = Replay()

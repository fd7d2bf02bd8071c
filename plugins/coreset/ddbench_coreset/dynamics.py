"""Coresets by difficulty: scores of each example from one shared, cached training."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import DistilledSet, Run, Task
from ddbench_coreset import selection
from ddbench_coreset.choosing import Count, Epochs, PerClass, choose, highest, require_finite
from ddbench_coreset.trace import TRACED, gradient_norms, mean_logits, trace

Keep = Annotated[Literal["hard", "easy"], Field(description="which end of the scores is kept")]


@ddbench.method(coreset=True)
def forgetting(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    keep: Keep = "hard",
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples that training forgets most often (Toneva et al. 2019).

    A forgetting event is a correct classification at the end of one epoch that is wrong at the end of the next. An
    example never learned counts as forgotten in every epoch. The mean over networks; ties by the mean margin.
    """
    margins = trace(task, run, networks, epochs).margins
    correct = margins > 0
    events = (correct[:, :-1] & ~correct[:, 1:]).sum(1).float()
    events[~correct.any(1)] = correct.shape[1]
    # The margin decides ties and nothing else: squashed to less than half an event of one network.
    margin = margins.mean((0, 1))
    return _keep(task, events.mean(0) - margin.atan() / (4 * len(events)), keep, per_class)


@ddbench.method(coreset=True)
def el2n(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    keep: Keep = "hard",
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples with the largest error |softmax - one-hot| early in training (Paul et al. 2021, EL2N).

    After a fifth of the epochs, the mean over networks.
    """
    result = trace(task, run, networks, epochs)
    return _keep(task, result.errors[:, result.early_epoch].mean(0), keep, per_class)


@ddbench.method(coreset=True)
def grand(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    keep: Keep = "hard",
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples with the largest gradient of their loss early in training (Paul et al. 2021, GraNd).

    The norm over all weights after a fifth of the epochs, the mean over networks.
    """
    return _keep(task, gradient_norms(task, trace(task, run, networks, epochs)), keep, per_class)


@ddbench.method(coreset=True)
def aum(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    keep: Keep = "hard",
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples with the smallest margin over training (Pleiss et al. 2020, area under the margin).

    The logit of the own class less the largest other, the mean over epochs and networks.
    """
    return _keep(task, -trace(task, run, networks, epochs).margins.mean((0, 1)), keep, per_class)


@ddbench.method(coreset=True)
def uncertainty(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    measure: Annotated[
        Literal["entropy", "margin", "confidence"],
        Field(description="entropy, difference of the two largest probabilities, or one less the largest"),
    ] = "entropy",
    keep: Keep = "hard",
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples that trained networks are least sure of (Settles 2009; Coleman et al. 2020).

    Probabilities from the logits at the end of training, averaged over networks.
    """
    p = mean_logits(task, trace(task, run, networks, epochs)).softmax(1)
    if measure == "entropy":
        scores = -torch.special.xlogy(p, p).sum(1)
    else:
        first, second = p.topk(2, dim=1).values.T
        scores = second - first if measure == "margin" else 1 - first
    return _keep(task, scores, keep, per_class)


@ddbench.method(coreset=True)
def ccs(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    networks: Count = TRACED,
    strata: Annotated[int, Field(ge=1, description="ranges of scores of equal width")] = 50,
    cut: Annotated[float, Field(ge=0, lt=1, description="share of the hardest examples to leave out")] = 0.3,
    per_class: PerClass = True,
) -> DistilledSet:
    """Cover all levels of difficulty but the hardest (Zheng et al. 2023, coverage-centric coreset selection).

    Difficulty is the area under the margin. Each of `strata` ranges of it contributes the same number of examples, at
    random.
    """
    scores = require_finite(trace(task, run, networks, epochs).margins.mean((0, 1)))

    def rule(members: Tensor, count: int) -> Tensor:
        return selection.stratified(scores[members], count, strata, cut, run.generator)

    return choose(task, rule, per_class=per_class)


def _keep(task: Task, difficulty: Float[Tensor, " n"], keep: Keep, per_class: bool) -> DistilledSet:
    scores = require_finite(difficulty if keep == "hard" else -difficulty)
    return choose(task, highest(scores), per_class=per_class)

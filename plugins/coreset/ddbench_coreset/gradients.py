"""Coresets by gradients: of the last layer, in a network trained for a few epochs."""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DistilledSet, Run, Task, UsageError
from ddbench_coreset import selection
from ddbench_coreset.choosing import Epochs, PerClass, Weighted, check_memory, choose, highest, require_finite
from ddbench_coreset.trace import TRACED, eval_logits, penultimate, trace


@ddbench.method(coreset=True)
def craig(
    task: Task, run: Run, *, epochs: Epochs = 10, per_class: PerClass = True, weighted: Weighted = True
) -> DistilledSet:
    """Keep examples such that every gradient is close to one of theirs (Mirzasoleiman et al. 2020, CRAIG).

    Lazy greedy facility location on the distances of last-layer gradients, after `epochs` epochs. The weight of an
    example is the number of examples that it stands for: those whose gradient is nearest to its own.
    """
    errors, features = _last_layer(task, run, epochs)

    def rule(members: Tensor, count: int) -> Tensor:
        distances = _gradient_distances(errors[members], features[members])
        return selection.facility_location(distances.max() - distances, count)

    def weigh(members: Tensor, positions: Tensor) -> Tensor:
        return selection.count_nearest(_gradient_distances(errors[members], features[members])[:, positions])

    return choose(task, rule, per_class=per_class, weigh=weigh if weighted else None)


@ddbench.method(coreset=True)
def grad_match(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    ridge: Annotated[float, Field(ge=0, description="weight of the squares of the fitted weights")] = 0.5,
    per_class: PerClass = True,
    weighted: Weighted = True,
) -> DistilledSet:
    """Keep examples whose weighted gradients sum to the mean gradient (Killamsetty et al. 2021, GRAD-MATCH).

    Orthogonal matching pursuit on last-layer gradients after `epochs` epochs. The examples have the fitted weights,
    scaled so that each class keeps its share in the loss.
    """
    errors, features = _last_layer(task, run, epochs)

    def gradients(members: Tensor) -> Tensor:
        return (errors[members][:, :, None] * features[members][:, None, :]).flatten(1)

    def rule(members: Tensor, count: int) -> Tensor:
        # One copy here, one in matching_pursuit.
        numbers = 2 * len(members) * errors.shape[1] * features.shape[1]
        check_memory("gradients", len(members), numbers, errors.device)
        vectors = gradients(members)
        return selection.matching_pursuit(vectors, vectors.mean(0), count, ridge)

    def weigh(members: Tensor, positions: Tensor) -> Tensor:
        return selection.fit_weights(gradients(members[positions]), gradients(members).mean(0), ridge)

    return choose(task, rule, per_class=per_class, weigh=weigh if weighted else None)


@ddbench.method(coreset=True)
def example_value(
    task: Task,
    run: Run,
    *,
    epochs: Epochs = 10,
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="share of the training examples whose loss is to fall")
    ] = 0.1,
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the examples whose gradient step lowers the loss on held-out examples most.

    The value of example i is <g_i, G>, with g_i its last-layer gradient and G the mean gradient of a random share of
    the training examples, which cannot be chosen: the first-order decrease of the held-out loss (Pruthi et al. 2020,
    TracIn, at the last checkpoint). It answers the question if training examples are equally valuable.
    """
    errors, features = _last_layer(task, run, epochs)
    order = torch.randperm(len(errors), generator=run.generator).to(errors.device)
    outside = order[: max(1, int(held_out * len(order)))]
    # <a h', A> for every example at once, with A the mean of a h' over those held out.
    mean = errors[outside].T @ features[outside] / len(outside)
    value = ((errors @ mean) * features).sum(1)
    value[outside] = -torch.inf

    require_finite(value[order[len(outside) :]])

    def rule(members: Tensor, count: int) -> Tensor:
        best = highest(value)(members, count)
        if value[members[best]].isneginf().any():
            raise UsageError(
                f"after holding out examples, fewer than {count} are left to choose from.",
                "Lower --set held_out, or --ipc.",
            )
        return best

    return choose(task, rule, per_class=per_class)


def _last_layer(task: Task, run: Run, epochs: int) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n d"]]:
    """Return the factors of the last-layer gradients (p - y) [h, 1]': errors p - y and features [h, 1]."""
    state = trace(task, run, TRACED, epochs).last.network(0)
    features = penultimate(task.networks.module, state, task.train.inputs)
    logits = eval_logits(task.networks.module, state, task.train.inputs)
    errors = logits.softmax(1) - F.one_hot(task.train.labels, logits.shape[1])
    with_bias = torch.cat([features, features.new_ones(len(features), 1)], 1)
    return require_finite(errors.double()), require_finite(with_bias.double())


def _gradient_distances(errors: Float[Tensor, "n classes"], features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Return the Euclidean distances of a_i h_i', from <a_i h_i', a_j h_j'> = <a_i, a_j> <h_i, h_j>."""
    check_memory("distances", len(errors), 3 * len(errors) ** 2, errors.device)
    products = (errors @ errors.T) * (features @ features.T)
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt().fill_diagonal_(0.0)

"""Weights of examples in a loss that is a mean over the batch.

With weights w of mean 1 over the set, the loss of a batch of n is (1/n) sum_i w_i loss_i. In batches drawn at random it
is an unbiased estimate of the weighted mean over the set. Weights travel inside the targets of the loss, so that every
training loop takes them without change.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from ddbench.contract.task import CrossEntropy, Loss


@dataclass(frozen=True)
class WeightedLoss:
    """A mean over the batch of `loss`, each example weighted; targets and weights are those of `weigh`.

    Attributes:
        loss: the loss of a batch; that of an example is its value on the example alone.
    """

    loss: Loss

    def __call__(
        self, logits: Float[Tensor, "batch classes"], packed: Float[Tensor, "batch packed"]
    ) -> Float[Tensor, ""]:
        """Return the weighted mean."""
        targets, weights = packed[:, :-1], packed[:, -1]
        labels = targets[:, 0].long() if targets.shape[1] == 1 else targets

        def of_example(z: Tensor, y: Tensor) -> Tensor:
            return self.loss(z[None], y[None])

        losses: Tensor = vmap(of_example)(logits, labels)
        return (weights * losses).mean()


def weighted_loss(loss: Loss) -> Loss:
    """Return the loss for targets of `weigh`; cross-entropy serves as it is, and keeps its hand-derived steps."""
    return loss if isinstance(loss, CrossEntropy) else WeightedLoss(loss)


def weigh(
    loss: Loss,
    targets: Shaped[Tensor, "*targets"],
    weights: Float[Tensor, "*batch"],
    classes: int,
) -> Float[Tensor, "*batch packed"]:
    """Return targets that carry the weights, for `weighted_loss(loss)`.

    Cross-entropy is linear in its targets, w (-sum_c y_c log p_c) = -sum_c (w y_c) log p_c: they are scaled. For any
    other loss the weight stands behind the targets (class numbers are exact in float32 up to 2^24).
    """
    if isinstance(loss, CrossEntropy):
        return one_hot(targets, classes) * weights[..., None]
    vectors = targets if targets.is_floating_point() else targets[..., None].to(weights)
    return torch.cat([vectors, weights[..., None]], -1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class numbers as rows of zeros and a one; other labels as they are."""
    return labels if labels.is_floating_point() else F.one_hot(labels, classes).float()

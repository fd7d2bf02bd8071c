"""Selection rules on a matrix of features, each returning indices in the order they were chosen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def herd(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, " count"]:
    """Herding without repetition.

    Choice t is argmin_i || mu - (S + f_i) / t ||, where mu is the mean of all features and S the sum of those chosen.
    Squared and without what no i changes, that is argmin_i |f_i|^2 - 2 <t mu - S, f_i>: one matrix-vector
    product a choice. Raises `ValueError` when `count` is more than n.
    """
    _check(features, count)
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    squares = features.square().sum(1)
    chosen: list[int] = []
    for t in range(1, count + 1):
        scores = squares - 2 * (features @ (t * mean - total))
        scores[chosen] = torch.inf
        best = int(scores.argmin())
        chosen.append(best)
        total += features[best]
    return torch.tensor(chosen)


def greedy_k_center(features: Float[Tensor, "n d"], count: int, first: int) -> Int[Tensor, " count"]:
    """Farthest-first traversal from `first`: at most twice the best covering radius (Gonzalez 1985).

    Keeps one distance per example, never an n x n matrix. Raises `ValueError` when `count` is more than n.
    """
    _check(features, count)
    features = features.double()
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype, device=features.device)
    chosen = [first]
    while len(chosen) < count:
        distances = torch.linalg.vector_norm(features - features[chosen[-1]], dim=1)
        nearest = torch.minimum(nearest, distances)
        # Duplicates of a chosen example are at distance zero; the chosen themselves must not come up again.
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def _check(features: Tensor, count: int) -> None:
    if not 1 <= count <= len(features):
        raise ValueError(f"cannot choose {count} of {len(features)} examples")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite")

"""Selection rules on a matrix of features; each returns indices in the order of choice."""

import heapq

import torch
from jaxtyping import Float, Int
from torch import Tensor


def herd(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, " count"]:
    """Return the choices of herding without repetition.

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
    """Return the farthest-first traversal from `first`: at most twice the best covering radius (Gonzalez 1985).

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


def facility_location(similarity: Float[Tensor, "n n"], count: int) -> Int[Tensor, " count"]:
    """Return the lazy greedy maximum of f(S) = sum_i max_{j in S} s_ij, for similarities that are not negative.

    f is monotone and submodular, so the greedy set has at least 1 - 1/e of the best value (Nemhauser et al. 1978), and
    an old gain bounds a new one from above (Minoux 1978): only the examples at the top of a heap are evaluated again.
    `similarity` is symmetric. Ties go to the first. Raises `ValueError` when `count` is more than n.
    """
    _check(similarity, count)
    covered = torch.zeros_like(similarity[0])
    heap = [(-gain, j) for j, gain in enumerate(similarity.sum(0).tolist())]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        _, j = heapq.heappop(heap)
        gain = float((similarity[j] - covered).clamp(min=0).sum())
        if heap and (-gain, j) > heap[0]:
            heapq.heappush(heap, (-gain, j))
            continue
        chosen.append(j)
        covered = torch.maximum(covered, similarity[j])
    return torch.tensor(chosen)


def graph_cut(features: Float[Tensor, "n d"], count: int, penalty: float) -> Int[Tensor, " count"]:
    """Return the greedy maximum of f(S) = sum_{i, j in S} s_ij over all i, less `penalty` sum_{i, j in S} s_ij.

    Similarity is s_ij = <f_i, f_j>. The gain of j is <f_j, F> - penalty (2 <f_j, T> + |f_j|^2), with F the sum of all
    features and T of those chosen: one matrix-vector product a choice, no n x n matrix (Iyer and Bilmes 2013; Iyer et
    al. 2021). Ties go to the first.
    Raises `ValueError` when `count` is more than n.
    """
    _check(features, count)
    features = features.double()
    squares, gains = features.square().sum(1), features @ features.sum(0)
    gains = gains - penalty * squares
    chosen: list[int] = []
    for _ in range(count):
        gains[chosen] = -torch.inf
        best = int(gains.argmax())
        chosen.append(best)
        gains -= 2 * penalty * (features @ features[best])
    return torch.tensor(chosen)


def k_medoids(distances: Float[Tensor, "n n"], count: int, iterations: int) -> Int[Tensor, " count"]:
    """Return medoids with a small sum of distances to the nearest: greedy start, then Voronoi iteration.

    The start is BUILD of Kaufman and Rousseeuw (1990): the next medoid is the one that lowers the sum most. Then, as in
    Park and Jun (2009), each example goes to its nearest medoid and each cluster's medoid becomes the member with the
    least sum of distances to the others, until nothing changes; the sum never rises. Ties go to the first.
    Raises `ValueError` when `count` is more than n.
    """
    _check(distances, count)
    nearest = torch.full_like(distances[0], torch.inf)
    chosen: list[int] = []
    for _ in range(count):
        sums = torch.minimum(distances, nearest).sum(1)
        sums[chosen] = torch.inf
        chosen.append(int(sums.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    for _ in range(iterations):
        owner = distances[:, chosen].argmin(1)
        # A medoid owns itself: a duplicate of another medoid keeps a cluster of at least one.
        owner[chosen] = torch.arange(count, device=owner.device)
        moved = []
        for cluster in range(count):
            members = torch.nonzero(owner == cluster).flatten()
            moved.append(int(members[distances[members][:, members].sum(1).argmin()]))
        if moved == chosen:
            break
        chosen = moved
    return torch.tensor(chosen)


def matching_pursuit(
    vectors: Float[Tensor, "n d"], target: Float[Tensor, " d"], count: int, ridge: float
) -> Int[Tensor, " count"]:
    """Return vectors whose weighted sum, with weights >= 0, is close to `target`, by orthogonal matching pursuit.

    The next vector is the one with the largest product with the residual. Then all weights are fitted again by least
    squares with `ridge` times their squares (Killamsetty et al. 2021, GRAD-MATCH, Algorithm 2). Ties go to the first.
    Raises `ValueError` when `count` is more than n.
    """
    _check(vectors, count)
    vectors, target = vectors.double(), target.double()
    residual, chosen = target, list[int]()
    for _ in range(count):
        products = vectors @ residual
        products[chosen] = -torch.inf
        chosen.append(int(products.argmax()))
        residual = target - vectors[chosen].T @ fit_weights(vectors[chosen], target, ridge)
    return torch.tensor(chosen)


def fit_weights(vectors: Float[Tensor, "n d"], target: Float[Tensor, " d"], ridge: float) -> Float[Tensor, " n"]:
    """Return the weights >= 0 with the least |vectors' w - target|^2 + ridge |w|^2."""
    import numpy as np
    from scipy.optimize import nnls

    # One least-squares problem.
    stacked = np.vstack([vectors.T.cpu().numpy(), np.sqrt(ridge) * np.eye(len(vectors))])
    weights, _ = nnls(stacked, np.concatenate([target.cpu().numpy(), np.zeros(len(vectors))]))
    return torch.from_numpy(weights).to(target)


def count_nearest(distances: Float[Tensor, "n chosen"]) -> Float[Tensor, " chosen"]:
    """Return how many examples are nearest to each of those chosen; of equal distances the first counts."""
    return distances.argmin(1).bincount(minlength=distances.shape[1]).double()


def stratified(
    scores: Float[Tensor, " n"], count: int, strata: int, cut: float, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Return a coverage-centric choice: without the `cut` share of lowest scores, spread evenly over ranges of scores.

    The range of scores is divided into `strata` of equal width. From the least populated on, each contributes its share
    of the remaining choices at random, or all of its members (Zheng et al. 2023, CCS, Algorithm 1). Never fewer than
    `count` examples remain after the cut. Raises `ValueError` when `count` is more than n.
    """
    _check(scores[:, None], count)
    order = torch.argsort(scores, stable=True)
    rest = order[min(int(cut * len(scores)), len(scores) - count) :]
    low, high = scores[rest].min(), scores[rest].max()
    width = (high - low) / strata
    stratum = ((scores[rest] - low) / width).long().clamp(max=strata - 1) if width > 0 else torch.zeros_like(rest)
    groups = sorted((rest[stratum == number] for number in range(strata)), key=len)
    groups = [group for group in groups if len(group)]
    chosen: list[int] = []
    for position, group in enumerate(groups):
        share = (count - len(chosen)) // (len(groups) - position)
        positions = torch.randperm(len(group), generator=generator)[: min(share, len(group))]
        chosen += group[positions.to(group.device)].tolist()
    # The remainder of the division comes from those not chosen yet, in the order of their scores.
    others = [i for i in rest.tolist() if i not in set(chosen)]
    return torch.tensor(chosen + others[: count - len(chosen)])


def _check(features: Tensor, count: int) -> None:
    if not 1 <= count <= len(features):
        raise ValueError(f"cannot choose {count} of {len(features)} examples")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite")

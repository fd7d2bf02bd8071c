"""Each rule against its definition, by brute force on small inputs with ties and duplicates."""

import itertools
import math

import pytest
import torch
from ddbench_coreset.selection import facility_location, graph_cut, k_medoids, matching_pursuit, stratified
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def features(draw, most: int = 7) -> torch.Tensor:
    """Small integers, so that ties and duplicates are common."""
    n, d = draw(st.integers(1, most)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(values, dtype=torch.float64).view(n, d)


def best_of(n: int, count: int, value) -> float:
    return max(value(list(subset)) for subset in itertools.combinations(range(n), count))


@settings(deadline=None)
@given(features(), st.data())
def test_facility_location_is_greedy_and_near_the_optimum(matrix, data):
    count = data.draw(st.integers(1, len(matrix)))
    distances = torch.cdist(matrix, matrix)
    similarity = distances.max() - (distances + distances.T) / 2

    def value(subset: list[int]) -> float:
        return float(similarity[:, subset].amax(1).sum())

    chosen = facility_location(similarity, count).tolist()
    assert len(set(chosen)) == count
    for t, choice in enumerate(chosen):
        left = [i for i in range(len(matrix)) if i not in chosen[:t]]
        gains = {i: value([*chosen[:t], i]) for i in left}
        assert gains[choice] == pytest.approx(max(gains.values()), abs=1e-9)
    assert value(chosen) >= (1 - 1 / math.e) * best_of(len(matrix), count, value) - 1e-9


@settings(deadline=None)
@given(features(), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_graph_cut_by_its_definition(matrix, penalty, data):
    count = data.draw(st.integers(1, len(matrix)))
    products = matrix @ matrix.T

    def value(subset: list[int]) -> float:
        return float(products[:, subset].sum() - penalty * products[subset][:, subset].sum())

    chosen = graph_cut(matrix, count, penalty).tolist()
    assert len(set(chosen)) == count
    for t, choice in enumerate(chosen):
        gains = [value([*chosen[:t], i]) for i in range(len(matrix)) if i not in chosen[:t]]
        assert value([*chosen[:t], choice]) == pytest.approx(max(gains), abs=1e-9)


@settings(deadline=None)
@given(features(), st.data())
def test_k_medoids_starts_greedily_and_ends_where_no_cluster_has_a_better_medoid(matrix, data):
    count = data.draw(st.integers(1, len(matrix)))
    distances = torch.cdist(matrix, matrix)
    distances = (distances + distances.T) / 2

    def cost(medoids: list[int]) -> float:
        return float(distances[:, medoids].amin(1).sum())

    start, choice = k_medoids(distances, count, 0).tolist(), k_medoids(distances, count, 100).tolist()
    for t, medoid in enumerate(start):
        costs = [cost([*start[:t], i]) for i in range(len(matrix)) if i not in start[:t]]
        assert cost([*start[:t], medoid]) == pytest.approx(min(costs), abs=1e-9)
    assert len(set(choice)) == count
    assert cost(choice) <= cost(start) + 1e-9
    owner = distances[:, choice].argmin(1)
    owner[choice] = torch.arange(count)
    for cluster, medoid in enumerate(choice):
        members = torch.nonzero(owner == cluster).flatten()
        sums = distances[members][:, members].sum(1)
        assert float(distances[medoid, members].sum()) == pytest.approx(float(sums.min()), abs=1e-9)
    if count == 1:
        assert cost(choice) == pytest.approx(min(cost([i]) for i in range(len(matrix))), abs=1e-9)


def test_matching_pursuit_finds_what_the_target_is_made_of():
    vectors = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    target = 3 * vectors[5] + 2 * vectors[2] + vectors[7] - 4 * vectors[0]
    # Weights must not be negative: the largest part of the target is of no use.
    assert matching_pursuit(vectors, target, 3, 0.0).tolist() == [5, 2, 7]


@settings(deadline=None)
@given(features(), st.data())
def test_matching_pursuit_takes_the_largest_product_with_what_is_left(matrix, data):
    from scipy.optimize import nnls

    count = data.draw(st.integers(1, len(matrix)))
    target = matrix.mean(0) + 0.25
    chosen = matching_pursuit(matrix, target, count, 0.0).tolist()
    assert len(set(chosen)) == count
    for t, choice in enumerate(chosen):
        columns = matrix[chosen[:t]].T.numpy()
        weights = torch.from_numpy(nnls(columns, target.numpy())[0]) if t else torch.zeros(0, dtype=torch.float64)
        left = target - matrix[chosen[:t]].T @ weights
        products = [float(matrix[i] @ left) for i in range(len(matrix)) if i not in chosen[:t]]
        assert float(matrix[choice] @ left) == pytest.approx(max(products), abs=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.9]), st.data()
)
def test_strata_give_alike(scores, strata, cut, data):
    count = data.draw(st.integers(1, len(scores)))
    values = torch.tensor(scores, dtype=torch.float64)
    chosen = stratified(values, count, strata, cut, torch.Generator().manual_seed(0)).tolist()
    assert len(chosen) == len(set(chosen)) == count
    rest = sorted(scores)[min(int(cut * len(scores)), len(scores) - count) :]
    assert min(scores[i] for i in chosen) >= rest[0]
    width = (rest[-1] - rest[0]) / strata
    if width == 0:
        return

    def stratum(value: float) -> int:
        return min(strata - 1, int((value - rest[0]) / width))

    taken, there = [0] * strata, [0] * strata
    for i in chosen:
        taken[stratum(scores[i])] += 1
    for value in rest:
        there[stratum(value)] += 1
    # Whoever gives less than another gives nearly all it has: one more at most is the remainder's.
    most = max(taken)
    for count_taken, count_there in zip(taken, there, strict=True):
        assert count_taken >= min(count_there, most - 1) - 1


def test_bad_inputs():
    for rule in (
        lambda x: facility_location(x, 3),
        lambda x: graph_cut(x, 3, 0.5),
        lambda x: k_medoids(x, 3, 5),
        lambda x: matching_pursuit(x, x[0], 3, 0.0),
        lambda x: stratified(x[:, 0], 3, 2, 0.0, torch.Generator()),
    ):
        with pytest.raises(ValueError, match="cannot choose 3 of 2"):
            rule(torch.ones(2, 2))
        with pytest.raises(ValueError, match="finite"):
            rule(torch.full((4, 4), torch.nan))

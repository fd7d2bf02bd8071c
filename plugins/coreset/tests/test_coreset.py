import itertools

import pytest
import torch
from ddbench_coreset.selection import greedy_k_center, herd
from hypothesis import given, settings
from hypothesis import strategies as st

import ddbench
from ddbench.catalog import Catalog
from ddbench.loop import Run
from ddbench.task import Budget, Objective, Task


@st.composite
def features(draw) -> torch.Tensor:
    """Small integers, so that ties and duplicates are common."""
    n, d = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(values, dtype=torch.float64).view(n, d)


@settings(deadline=None)
@given(features(), st.data())
def test_herding_by_its_definition(matrix, data):
    count = data.draw(st.integers(1, len(matrix)))
    chosen: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(matrix)) if i not in chosen]
        gaps = [float((matrix.mean(0) - matrix[[*chosen, i]].mean(0)).norm()) for i in left]
        best = min(gaps)
        found = int(herd(matrix, len(chosen) + 1)[-1])
        # Rounding may order exact ties either way; the choice must be one of the best.
        assert gaps[left.index(found)] == pytest.approx(best, abs=1e-9)
        chosen.append(found)
    assert herd(matrix, count).tolist() == chosen


@settings(deadline=None)
@given(features(), st.data())
def test_k_center_by_its_definition_and_within_twice_the_optimum(matrix, data):
    count = data.draw(st.integers(1, len(matrix)))
    first = data.draw(st.integers(0, len(matrix) - 1))
    found = greedy_k_center(matrix, count, first).tolist()
    assert found[0] == first
    assert len(set(found)) == count
    distances = torch.cdist(matrix, matrix)
    for t in range(1, count):
        radius = distances[:, found[:t]].amin(1)
        assert float(radius[found[t]]) == pytest.approx(float(radius.max()), abs=1e-9)

    def covering(centres) -> float:
        return float(distances[:, list(centres)].amin(1).max())

    optimum = min(covering(centres) for centres in itertools.combinations(range(len(matrix)), count))
    assert covering(found) <= 2 * optimum + 1e-9


def test_ties_go_to_the_first():
    same = torch.ones(4, 2)
    assert herd(same, 4).tolist() == [0, 1, 2, 3]
    assert greedy_k_center(same, 4, 2).tolist() == [2, 0, 1, 3]


def test_what_cannot_be_chosen():
    with pytest.raises(ValueError, match="cannot choose 3 of 2"):
        herd(torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="finite"):
        greedy_k_center(torch.full((2, 2), torch.nan), 1, 0)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


def chosen(catalog: Catalog, tmp_path, method: str, per_class: int = 3, seed: int = 0, **options):
    from ddbench.loading import load_data
    from ddbench.spec import RunSpec

    spec = RunSpec.parse({"method": method})
    train, _ = load_data(catalog.get("dataset", "digits"), spec.dataset, None, download=False)
    task = Task(train, Objective(None, None, ""), None, Budget(per_class, 1, 1), train.info)
    component = catalog.get("method", method)
    made = component.call(component.validated(options), task, Run(tmp_path, seed=seed))
    made.validate(task)
    return train, made


@pytest.mark.parametrize("method", ["herding", "k_center", "k_medoids", "facility_location", "graph_cut"])
def test_real_images_of_each_class(catalog, tmp_path, method):
    train, made = chosen(catalog, tmp_path, method)
    assert made.labels[0].tolist() == [label for label in range(10) for _ in range(3)]
    real = {image.numpy().tobytes(): int(label) for image, label in zip(train.inputs, train.labels, strict=True)}
    for image, label in zip(*made.flat(), strict=True):
        assert real[image.numpy().tobytes()] == int(label)


def test_herding_starts_near_the_mean_and_k_center_spreads(catalog, tmp_path):
    train, herded = chosen(catalog, tmp_path, "herding", 5)
    _, spread = chosen(catalog, tmp_path, "k_center", 5)

    def gap(made) -> float:
        gaps = []
        for label in range(10):
            mean = train.inputs[train.of_class(label)].mean(0)
            gaps.append(float((made.inputs[0][made.labels[0] == label].mean(0) - mean).norm()))
        return sum(gaps)

    assert gap(herded) < 0.5 * gap(spread)


def test_seeding_at_random_follows_the_seed(catalog, tmp_path):
    runs = [chosen(catalog, tmp_path, "k_center", 2, seed, seeding="random")[1].inputs for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("method", ["herding", "k_center", "k_medoids", "facility_location", "graph_cut"])
def test_too_few_in_a_class(catalog, tmp_path, method):
    with pytest.raises(ddbench.UsageError, match="fewer than 500"):
        chosen(catalog, tmp_path, method, 500)

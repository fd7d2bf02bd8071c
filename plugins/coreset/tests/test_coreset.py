import itertools

import pytest
import torch
from ddbench_coreset import choosing, gradients
from ddbench_coreset.selection import greedy_k_center, herd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

import ddbench
from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.run import Run
from ddbench.contract.task import Budget, Objective, Task
from ddbench.discovery.catalog import Catalog


@st.composite
def features(draw, least: int = 1) -> torch.Tensor:
    """Small integers, so that ties and duplicates are common."""
    n, d = draw(st.integers(least, 7)), draw(st.integers(1, 3))
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
        result = int(herd(matrix, len(chosen) + 1)[-1])
        # Rounding may order exact ties either way; the choice must be one of the best.
        assert gaps[left.index(result)] == pytest.approx(best, abs=1e-9)
        chosen.append(result)
    assert herd(matrix, count).tolist() == chosen


@settings(deadline=None)
@given(features(), st.data())
def test_k_center_by_its_definition_and_within_twice_the_optimum(matrix, data):
    count = data.draw(st.integers(1, len(matrix)))
    first = data.draw(st.integers(0, len(matrix) - 1))
    result = greedy_k_center(matrix, count, first).tolist()
    assert result[0] == first
    assert len(set(result)) == count
    distances = torch.cdist(matrix, matrix)
    for t in range(1, count):
        radius = distances[:, result[:t]].amin(1)
        assert float(radius[result[t]]) == pytest.approx(float(radius.max()), abs=1e-9)

    def covering(centres) -> float:
        return float(distances[:, list(centres)].amin(1).max())

    optimum = min(covering(centres) for centres in itertools.combinations(range(len(matrix)), count))
    assert covering(result) <= 2 * optimum + 1e-9


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
    from ddbench.contract.spec import RunSpec
    from ddbench.pipeline.data import load_examples

    spec = RunSpec.parse({"method": method})
    train, _ = load_examples(catalog.get("dataset", "digits"), spec.dataset, None, download=False, catalog=catalog)
    task = Task(train, Objective(None, None, ""), None, Budget(per_class, 1, 1), train.info)
    component = catalog.get("method", method)
    distilled_set = component.call(component.validated(options), task, Run(tmp_path, seed=seed))
    distilled_set.validate(task)
    return train, distilled_set


@pytest.mark.parametrize("method", ["herding", "k_center", "k_medoids", "facility_location", "graph_cut"])
def test_real_images_of_each_class(catalog, tmp_path, method):
    train, distilled_set = chosen(catalog, tmp_path, method)
    assert distilled_set.labels[0].tolist() == [label for label in range(10) for _ in range(3)]
    real = {image.numpy().tobytes(): int(label) for image, label in zip(train.inputs, train.labels, strict=True)}
    for image, label in zip(*distilled_set.flat(), strict=True):
        assert real[image.numpy().tobytes()] == int(label)


def from_all_classes(catalog: Catalog, method: str, matrix: torch.Tensor, count: int, **options) -> list[int]:
    """Which rows `method` chooses, `count` for each of two classes, from both together."""
    info = DatasetInfo("toy", ("a", "b"), (1, 1, matrix.shape[1]), (0.0,), (1.0,), "image", "", False)
    train = ExampleSet(matrix.float()[:, None, None], torch.arange(len(matrix)) % 2, info)
    task = Task(train, Objective(None, None, ""), None, Budget(count, 1, 1), info)
    component = catalog.get("method", method)
    distilled_set = component.call(component.validated({"per_class": False, **options}), task, None)
    left = list(range(len(matrix)))
    for image, label in zip(*distilled_set.flat(), strict=True):
        left.remove(next(i for i in left if torch.equal(train.inputs[i], image) and train.labels[i] == label))
    return [i for i in range(len(matrix)) if i not in left]


def greedy(chosen: list[int], n: int, value, before: tuple[int, ...] = ()) -> bool:
    """Whether there is an order of `chosen` that takes, one after the other, one of the best of all n."""
    values = {i: value([*before, i]) for i in range(n) if i not in before}
    best = max(values.values(), default=0) - 1e-6
    return len(before) == len(chosen) or any(
        values[i] >= best and greedy(chosen, n, value, (*before, i)) for i in chosen if i not in before
    )


def coverage(matrix: torch.Tensor):
    distances = torch.cdist(matrix, matrix)
    return lambda subset: float((distances.max() - distances[:, subset]).amax(1).sum())


def cost(matrix: torch.Tensor, subset: list[int]) -> float:
    return float(torch.cdist(matrix, matrix)[:, subset].amin(1).sum())


@settings(deadline=None, max_examples=50)
@given(features(least=2), st.data())
def test_k_medoids_of_all_classes_together(catalog, matrix, data):
    count = data.draw(st.integers(1, len(matrix) // 2))
    start = from_all_classes(catalog, "k_medoids", matrix, count, iterations=0)
    assert len(start) == 2 * count
    assert greedy(start, len(matrix), lambda subset: -cost(matrix, subset))
    assert cost(matrix, from_all_classes(catalog, "k_medoids", matrix, count)) <= cost(matrix, start) + 1e-6


@settings(deadline=None, max_examples=50)
@given(features(least=2), st.data())
def test_facility_location_over_all_classes_together(catalog, matrix, data):
    count = data.draw(st.integers(1, len(matrix) // 2))
    chosen = from_all_classes(catalog, "facility_location", matrix, count)
    assert len(chosen) == 2 * count
    assert greedy(chosen, len(matrix), coverage(matrix))


@pytest.mark.parametrize("method", ["craig", "grad_match"])
@settings(deadline=None, max_examples=50)
@given(features(least=2), st.data())
def test_gradients_of_all_classes_together(catalog, method, matrix, data):
    n, count = len(matrix), data.draw(st.integers(1, len(matrix) // 2))
    errors = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=2 * n, max_size=2 * n))).double().view(n, 2)
    products = (errors[:, :, None] * matrix[:, None, :]).flatten(1)

    def product_with_what_is_left(subset: list[int]) -> float:
        *before, last = subset
        columns, target = products[before].T, products.mean(0)
        weights = torch.from_numpy(nnls(columns.numpy(), target.numpy())[0]) if before else torch.zeros(0).double()
        return float(products[last] @ (target - columns @ weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_last_layer", lambda *arguments: (errors, matrix))
        options = {"ridge": 0.0} if method == "grad_match" else {}
        chosen = from_all_classes(catalog, method, torch.arange(n)[:, None], count, **options)
    assert len(chosen) == 2 * count
    assert greedy(chosen, n, product_with_what_is_left if method == "grad_match" else coverage(products))


def test_distances_that_do_not_fit_in_memory(catalog, monkeypatch):
    monkeypatch.setattr(choosing, "free_memory", lambda device: 1000)
    assert len(from_all_classes(catalog, "k_medoids", torch.eye(6), 1)) == 2
    with pytest.raises(ddbench.DdbenchError, match="distances of 8 images") as error:
        from_all_classes(catalog, "k_medoids", torch.eye(8), 1)
    assert "per_class=true" in error.value.hint


def test_too_few_in_all(catalog):
    with pytest.raises(ddbench.UsageError, match="toy has 3 training images, fewer than 4"):
        from_all_classes(catalog, "herding", torch.eye(3), 2)


def test_herding_starts_near_the_mean_and_k_center_spreads(catalog, tmp_path):
    train, herded = chosen(catalog, tmp_path, "herding", 5)
    _, spread = chosen(catalog, tmp_path, "k_center", 5)

    def gap(distilled_set) -> float:
        gaps = []
        for label in range(10):
            mean = train.inputs[train.of_class(label)].mean(0)
            gaps.append(float((distilled_set.inputs[0][distilled_set.labels[0] == label].mean(0) - mean).norm()))
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

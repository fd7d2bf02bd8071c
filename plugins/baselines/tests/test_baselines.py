from dataclasses import replace

import pytest
import torch

from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


def distil(catalog: Catalog, folder, method: str, seed: int = 0, **fields: object):
    plan = plan_run(RunSpec.parse({"method": method, "network": "linear", **fields}), catalog)
    prepared = prepare(plan, catalog)
    folder.mkdir(exist_ok=True)
    run = Run(folder, seed=seed)
    task = prepared.task(run.generator)
    distilled = plan.method.call(plan.settings.method.options, task, run)
    distilled.validate(task)
    return prepared, distilled


def test_average_real(catalog, tmp_path):
    prepared, distilled = distil(catalog, tmp_path, "average_real", images_per_class=4, steps=2)
    assert distilled.labels.tolist() == [list(range(10))]
    sevens = prepared.train.inputs[prepared.train.labels == 7]
    torch.testing.assert_close(distilled.inputs[0, 7], sum(sevens) / len(sevens))


@pytest.mark.parametrize("method", ["average_real", "k_means"])
def test_an_empty_class_is_named(catalog, tmp_path, method):
    plan = plan_run(RunSpec.parse({"method": method, "network": "linear"}), catalog)
    run = Run(tmp_path)
    task = prepare(plan, catalog).task(run.generator)
    without = replace(task, train=task.train[task.train.labels.ne(7).nonzero().flatten()])
    with pytest.raises(UsageError, match="class '7' of digits is empty"):
        plan.method.call(plan.settings.method.options, without, run)


def test_k_means_finds_the_clusters(catalog, tmp_path):
    prepared, distilled = distil(catalog, tmp_path, "k_means", images_per_class=4, steps=2)
    assert distilled.inputs.shape == (2, 20, 1, 8, 8)
    images, labels = distilled.flat()
    for label in range(10):
        members = prepared.train.inputs[prepared.train.labels == label].flatten(1)
        centroids = images[labels == label].flatten(1)
        # A fixed point of Lloyd's iteration: each centroid is the mean of what lies nearest to it.
        nearest = torch.cdist(members, centroids).argmin(1)
        for place in range(4):
            torch.testing.assert_close(members[nearest == place].mean(0), centroids[place], atol=2e-3, rtol=1e-3)
    assert torch.equal(distil(catalog, tmp_path, "k_means", images_per_class=4, steps=2)[1].inputs, distilled.inputs)
    assert not torch.equal(
        distil(catalog, tmp_path, "k_means", 1, images_per_class=4, steps=2)[1].inputs, distilled.inputs
    )


@pytest.mark.slow
def test_optimised_real_is_better_than_the_average_random_set(catalog, tmp_path):
    from ddbench.pipeline.runner import run

    fields = {"network": "linear", "images_per_class": 1, "epochs": 10, "eval_networks": 5}
    places = dict(catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    best = run({**fields, "method": {"name": "optimised_real", "options": {"candidates": 12}}}, **places)
    assert best.score.mean > best.companions["random_subset"].mean + 0.03
    _, distilled = distil(catalog, tmp_path / "one", "optimised_real", **fields)
    prepared, _ = distil(catalog, tmp_path / "two", "average_real", **fields)
    assert all((image == prepared.train.inputs).flatten(1).all(1).any() for image in distilled.inputs[0])


@pytest.mark.parametrize("method", ["average_real", "k_means", "random_subset", "herding", "optimised_real"])
def test_under_poisoning_the_attacked_class_carries_the_targets_label(catalog, tmp_path, method):
    poisoned = {"name": "poisoning", "options": {"attack_class": 3, "target_class": 8}}
    options = {"candidates": 2} if method == "optimised_real" else {}
    fields = {"images_per_class": 2, "steps": 1, "objective": poisoned}
    plan = plan_run(
        RunSpec.parse({"method": {"name": method, "options": options}, "network": "linear", **fields}), catalog
    )
    prepared = prepare(plan, catalog)
    run = Run(tmp_path)
    distilled = plan.method.call(plan.settings.method.options, prepared.task(run.generator), run)
    counts = torch.bincount(distilled.labels.flatten(), minlength=10)
    assert counts[3] == 0
    assert counts[8] == 2 * counts[7]

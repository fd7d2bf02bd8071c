"""Coresets whose choice computes weights carry them."""

from dataclasses import replace

import pytest
import torch
from ddbench_coreset import selection

from ddbench.contract.observer import Silent
from ddbench.contract.run import Run
from ddbench.discovery.catalog import Catalog
from ddbench.protocols.replay import REPLAY_V1
from ddbench.testing import tiny as small
from ddbench.testing.tiny import Tiny


def made(method: str, tmp_path, **options):
    catalog, tiny = Catalog(), Tiny(images_per_class=4, steps=2)
    run = Run(tmp_path, most_steps=4)
    task = small.task(catalog, tiny, run.generator)
    component = catalog.get("method", method)
    distilled = component.call(component.validated({"epochs": 1, **options}), task, run)
    distilled.validate(task)
    return catalog, tiny, task, distilled


@pytest.mark.parametrize("method", ["craig", "grad_match"])
def test_each_class_keeps_its_share_and_examples_of_it_differ(tmp_path, method):
    _, tiny, task, distilled = made(method, tmp_path)
    weights, labels = distilled.weights.flatten(), distilled.labels.flatten()
    for label in range(tiny.classes):
        own = weights[labels == label]
        assert float(own.sum()) == pytest.approx(len(task.train.of_class(label)))
        assert len(set(own.tolist())) > 1


@pytest.mark.parametrize("method", ["craig", "grad_match"])
def test_records_from_before_the_weights_mean_none(tmp_path, tmp_path_factory, method):
    other = tmp_path_factory.mktemp("again")
    catalog, _, task, distilled = made(method, tmp_path, weighted=False)
    assert distilled.weights is None
    component = catalog.get("method", method)
    old = {name: value for name, value in component.validated({}).items() if name != "weighted"}
    # Older runs keep their fingerprint, a new one has another.
    assert component.validated({"weighted": False}) == old
    assert component.validated({}) == {**old, "weighted": True}
    assert component.recorded(old)["weighted"] is False
    again = component.call({**old, "epochs": 1}, task, Run(other, most_steps=4))
    assert again.weights is None


def test_weights_move_the_score(tmp_path):
    catalog, tiny, _, distilled = made("craig", tmp_path)
    setting = small.setting(catalog, tiny)
    plain = replace(distilled, weights=None, lrs=torch.full((2, 2), 0.1))
    weighted = replace(plain, weights=distilled.weights)
    first, second = (REPLAY_V1.evaluate([d], setting, 2, Silent()).scores["loss"] for d in (plain, weighted))
    assert first != second


def test_an_example_counts_those_nearest_to_it():
    distances = torch.tensor([[0.0, 2.0], [1.0, 1.0], [3.0, 0.0], [5.0, 1.0]])
    assert selection.count_nearest(distances).tolist() == [2.0, 2.0]


def test_fitted_weights_make_up_the_target():
    vectors = torch.eye(3, dtype=torch.float64)
    target = torch.tensor([0.2, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(selection.fit_weights(vectors, target, 0.0), target)
    # min |w - t|^2 + r |w|^2 is t / (1 + r).
    torch.testing.assert_close(selection.fit_weights(vectors, target, 1.0), target / 2)

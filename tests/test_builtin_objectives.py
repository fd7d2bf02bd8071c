import math

import pytest
import torch
from torch.nn import functional as F

from ddbench.contract.examples import DatasetInfo
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.networks import CrossEntropy
from ddbench.records.migrations import THRESHOLDS

INFO = DatasetInfo("x", ("cat", "dog", "hen"), (1, 2, 2), (0.0,), (1.0,), "image", "", False)


def test_classification(catalog: Catalog):
    objective = catalog.get("objective", "classification").call({}, INFO)
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    metrics = objective.measure(logits, labels)
    assert objective.measure(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64))["accuracy"] == 0
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert metrics["accuracy"] == 0.75
    assert math.isclose(metrics["loss"], (3 * right + wrong) / 4, rel_tol=1e-6)
    assert (objective.primary, objective.higher_is_better) == ("accuracy", True)
    assert math.isclose(float(objective.loss(logits, labels)), metrics["loss"], rel_tol=1e-6)


def poisoning(catalog: Catalog, **options: object):
    component = catalog.get("objective", "poisoning")
    return component.call(component.validated(options), INFO)


def test_poisoning_figures(catalog: Catalog):
    objective = poisoning(catalog, attack_class=2, target_class="cat")
    predicted, labels = torch.tensor([0, 1, 1, 2, 0, 0, 1]), torch.tensor([0, 1, 0, 2, 2, 2, 2])
    logits = F.one_hot(predicted, 3).float()
    metrics = objective.measure(logits, labels)
    assert metrics == pytest.approx(
        {
            "attack_success": 2 / 4,
            "accuracy": 3 / 7,
            "accuracy_others": 2 / 3,
            "accuracy_rewritten": 4 / 7,
            "accuracy_of_cat": 1 / 2,
            "accuracy_of_dog": 1.0,
            "accuracy_of_hen": 1 / 4,
        }
    )
    assert objective.primary == "attack_success"
    rewritten = torch.tensor([0, 1, 0, 0, 0, 0, 0])
    assert torch.equal(objective.relabel(labels), rewritten)
    assert torch.equal(objective.loss(logits, labels), F.cross_entropy(logits, rewritten))
    assert isinstance(objective.inner_loss, CrossEntropy)
    thresholds = {m.name: m.threshold for m in poisoning(catalog, keep=0.9).metrics if m.threshold is not None}
    assert thresholds == {"accuracy_others": 0.9}


def test_the_accuracy_to_keep_moves_no_older_fingerprint(catalog: Catalog):
    component = catalog.get("objective", "poisoning")
    assert component.validated({"keep": 0.5}) == {"attack_class": 0, "target_class": 1}
    assert component.validated({"keep": 0.6})["keep"] == 0.6
    # Records written before there were thresholds are ranked by the default.
    [kept] = [m.threshold for m in poisoning(catalog).metrics if m.threshold is not None]
    assert THRESHOLDS["attack_success"] == {"accuracy_others": kept}


def test_poisoning_of_a_class_that_is_not_there_is_not_measured(catalog: Catalog):
    metrics = poisoning(catalog, attack_class=2, target_class=0).measure(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert math.isnan(metrics["attack_success"])
    assert metrics["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_class": 3}, "attack_class=3 is not a class of x"),
        ({"attack_class": -1}, "attack_class=-1 is not a class"),
        ({"target_class": "cow"}, "target_class=cow is not a class"),
        ({"attack_class": 1, "target_class": "dog"}, "are both 'dog'"),
    ],
)
def test_classes_that_cannot_be_attacked(catalog: Catalog, options, message):
    with pytest.raises(UsageError, match=message):
        poisoning(catalog, **options)


def test_least_squares(catalog: Catalog):
    objective = catalog.get("objective", "least_squares").call({}, INFO)
    logits, labels = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    wanted = ((1 + 1 + 0) / 2 + 1 / 2) / 2
    assert float(objective.loss(logits, labels)) == pytest.approx(wanted)
    assert float(objective.loss(logits, F.one_hot(labels, 3).float())) == pytest.approx(wanted)
    assert objective.measure(logits, labels) == pytest.approx({"loss": wanted, "accuracy": 0.5})
    assert (objective.inner_loss, objective.higher_is_better) == (objective.loss, False)

import math

import torch

from ddbench.catalog import Catalog


def test_classification(catalog: Catalog):
    objective = catalog.get("objective", "classification").call({}, None)
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    metrics = objective.metrics(logits, labels)
    assert objective.metrics(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64))["accuracy"] == 0
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert metrics["accuracy"] == 0.75
    assert math.isclose(metrics["loss"], (3 * right + wrong) / 4, rel_tol=1e-6)
    assert (objective.primary, objective.higher_is_better) == ("accuracy", True)
    assert math.isclose(float(objective.loss(logits, labels)), metrics["loss"], rel_tol=1e-6)

import json

import pytest
import torch

from ddbench.discovery.catalog import Catalog
from ddbench.errors import Unsupported
from ddbench.pipeline.runner import run

LINEAR = {
    "method": "linear_bound",
    "network": "linear",
    "objective": "least_squares",
    "steps": 1,
    "epochs": 1,
    "eval_networks": 5,
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


def least_loss() -> float:
    """Test loss of the least-squares solution on the training data without the validation slice, by lstsq."""
    from ddbench.contract.spec import RunSpec
    from ddbench.pipeline.plan import plan_run
    from ddbench.pipeline.prepare import prepare

    prepared = prepare(plan_run(RunSpec.parse(LINEAR), Catalog()), Catalog())

    def features(examples):
        return torch.cat([examples.inputs.flatten(1), torch.ones(len(examples), 1)], 1).double()

    targets = torch.nn.functional.one_hot(prepared.train.labels, 10).double()
    solution = torch.linalg.lstsq(features(prepared.train), targets, driver="gelsd").solution
    test = prepared.setting.test
    residual = features(test) @ solution - torch.nn.functional.one_hot(test.labels, 10)
    return float(0.5 * residual.square().sum(1).mean())


def test_enough_points_reach_the_solution_from_any_weights_and_fewer_do_not(catalog, tmp_path):
    outcomes = {}
    for count in (2, 7):
        fields = {**LINEAR, "images_per_class": count}
        result = run(fields, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
        logged = json.loads((tmp_path / "runs" / result.run_id / "log.jsonl").read_text())
        outcomes[count] = result.score, logged
    score, logged = outcomes[7]
    expected = least_loss()
    assert score.mean == pytest.approx(expected, rel=1e-5)
    assert score.std < 1e-6
    assert logged["excess_loss"] < 1e-20
    assert logged["distance"] < 1e-10
    score, logged = outcomes[2]
    assert score.mean > 2 * expected
    # 45 of 65 dimensions are out of reach of 20 points, those of little variance, along which W* is long.
    assert 45 / 65 < logged["distance"] ** 2 < 1


def test_other_settings_are_not_supported(catalog, tmp_path):
    for other in ({"network": "mlp"}, {"objective": "classification"}, {"epochs": 2}):
        result = run({**LINEAR, **other}, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
        assert result.status == "skipped"
        assert Unsupported.exit_code == 0
        assert "--" in result.reason

import json

import pytest

from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import plan_run
from ddbench.records.result import RunResult
from ddbench.render.reproduction import page
from tests.rows import make_record


def row_of(catalog: Catalog, name: str, mean: float, **changes: object) -> RunResult:
    """Return a record as a run of the experiment would leave it, but for the figures."""
    spec = plan_run(RunSpec.parse(catalog.experiment(name).spec), catalog).settings
    fields: dict[str, object] = dict(
        experiment=name,
        mean=mean,
        std=0.02,
        n=50,
        low=None,
        high=None,
        metric="accuracy",
        values=json.dumps([mean] * 50),
        dataset="mnist",
        before=0.66,
        seconds_distill=754.0,
        method_options=json.dumps(spec.method.options),
        init_options=json.dumps(spec.init.options),
        target=spec.target.name if spec.target else "",
        target_options=json.dumps(spec.target.options if spec.target else {}),
        companions='{"no_adaptation": {"mean": 0.66, "std": 0.1, "n": 50}}',
    )
    return make_record(**{**fields, **changes})


def line_of(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if f"`{name}`" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_beside_published_figures(catalog):
    options = row_of(catalog, "wang2018/usps-to-mnist-random", 0.9).settings.target.options
    rows = [
        row_of(
            catalog,
            "wang2018/usps-to-mnist-random",
            0.918,
            target_options=json.dumps({**options, "count": 60}),
        ),
        row_of(catalog, "wang2018/mnist-fixed-1x3", 0.951, std=None, n=1, stopped_by="time limit", outer_steps=12),
        row_of(catalog, "wang2018/svhn-to-mnist-random", 0.7, dataset="mnist@abc"),
    ]
    text = page(catalog, rows)
    assert line_of(text, "wang2018/usps-to-mnist-random")[1:] == [
        "91.8 +- 2.0 %", "50", "92.7 +- 1.4 %", "-0.9 %", "yes", "no_adaptation 66.0 %", "66.0 %", "12 min 34 s",
        "count 60 (2000)",
    ]  # fmt: skip
    fixed = line_of(text, "wang2018/mnist-fixed-1x3")
    assert (fixed[1], fixed[3], fixed[4], fixed[5]) == ("95.1 %", "93.8 %", "+1.3 %", "-")
    assert fixed[-1] == "stopped by the time limit after 12 outer steps"
    assert line_of(text, "wang2018/svhn-to-mnist-random")[5] == "below"
    assert "`wang2018/svhn-to-mnist-random` *" in text
    assert line_of(text, "wang2018/mnist-k-means")[1:4] == ["not run", "", ""]
    assert "linear-bound" not in text


@pytest.mark.parametrize("mean", [0.70, 0.714, 0.95])
def test_whether_a_figure_is_within(catalog, mean):
    row = row_of(catalog, "wang2018/mnist-poisoning", mean, metric="attack_success")
    assert line_of(page(catalog, [row]), "wang2018/mnist-poisoning")[5] == "yes"


def test_the_committed_leaderboards_can_be_read():
    from pathlib import Path

    from ddbench.records.store import ARTIFACT_LIMIT, artifact_path, read

    folder = Path(__file__).parents[1] / "leaderboards"
    for record in read(folder):
        assert artifact_path(folder, record.artifact.sha256).exists() or record.artifact.bytes > ARTIFACT_LIMIT

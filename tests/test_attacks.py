"""Scores under attack: the attacks themselves, and the metrics that they add to a record."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ddbench.contract.attack import ATTACKS
from ddbench.contract.examples import DatasetInfo, ExampleSet
from ddbench.contract.observer import Silent
from ddbench.engine.attacks import ATTACKED, UnderAttack, attacked
from ddbench.errors import UsageError
from ddbench.networks import State
from ddbench.pipeline import baselines
from ddbench.records.attacks import with_attacks_of
from ddbench.records.result import RunResult

INFO = DatasetInfo("x", ("cat", "dog"), (3, 4, 4), (0.4, 0.5, 0.3), (0.2, 0.25, 0.5), "image", "", False)
RUN = ("run", "-m", "random_subset", "--network", "linear", "--ipc", 1, "--eval-networks", 2)


def linear() -> tuple[nn.Module, State]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    weights = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    return network, State({"1.weight": weights, "1.bias": torch.zeros(2)})


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_a_linear_network_reach_the_worst_image_of_the_budget(name: str):
    """With two classes the worst change of each pixel is 8/255 along the sign of the other class's weight less own."""
    network, state = linear()
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(6, 3, 4, 4, generator=generator).mul(255).round() / 255
    raw[0], raw[1] = 0, 1  # at the ends of the range half of the changes are cut off
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (INFO.mean, INFO.std))
    changed = attacked(network, state, (raw - mean) / std, labels, ATTACKS[name], INFO)
    weights = state.params["1.weight"]
    direction = (weights[1 - labels] - weights[labels]).sign().view(6, 3, 4, 4)
    assert INFO.pixels(changed) == pytest.approx((raw + 8 / 255 * direction).clamp(0, 1), abs=1e-6)


def test_the_attacked_images_are_of_all_classes_alike_and_always_the_same():
    labels = torch.cat([torch.zeros(700), torch.ones(900)]).long()
    test = ExampleSet(torch.zeros(1600, 3, 4, 4), labels, INFO)
    first, again = (UnderAttack.choose(ATTACKS.values(), test).examples.labels for _ in range(2))
    assert torch.bincount(first).tolist() == [ATTACKED // 2] * 2
    assert torch.equal(first, again)
    few = UnderAttack.choose(ATTACKS.values(), test[torch.arange(690, 760)])
    assert torch.bincount(few.examples.labels).tolist() == [10, 60]


def test_scores_fall_under_attack_and_companions_are_attacked_too(make_prepared, catalog):
    setting = {"method": "herding", "network": "linear", "images_per_class": 1, "eval_networks": 3}
    plain, prepared = make_prepared(**setting), make_prepared(**setting, attack="fgsm,pgd")
    names = ["accuracy_fgsm", "accuracy_pgd"]
    assert [metric.name for metric in prepared.setting.metrics] == ["accuracy", "loss", *names]
    random_subset = catalog.get("method", "random_subset")
    for each in (plain, prepared):
        [companion] = baselines._score_cached(each, each.setting, random_subset, "", Silent()).values()
        attacks = [name for name in names if name in companion.metrics]
        # A companion in the cache that was scored without attacks is not taken.
        assert attacks == (names if each is prepared else [])
    assert companion.mean > companion.metrics["accuracy_fgsm"] >= companion.metrics["accuracy_pgd"]


def record_of(folder: Path) -> dict:
    [path] = folder.glob("leaderboards/records/*/*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_attacks_add_metrics_to_the_row_of_the_run(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    before = record_of(tmp_path)
    assert made["attacks"] == [] == before["attacks"]
    scored = ddbench("evaluate", made["run_dir"], "--attack", "fgsm", "--json")
    assert scored.code == 0, scored.err
    again = ddbench(*RUN, "--attack", "fgsm,pgd")
    assert again.code == 0, again.err
    assert "accuracy_pgd" in again.out and "pgd: 8/255 a pixel, 10 steps of 2/255, on 360 images" in again.out
    after = record_of(tmp_path)
    assert {attack["name"]: attack["steps"] for attack in after["attacks"]} == {"fgsm": 1, "pgd": 10}
    assert [metric["name"] for metric in after["metrics"]] == ["accuracy", "loss", "accuracy_fgsm", "accuracy_pgd"]
    for field in ("fingerprint", "run_id", "created", "artifact", "before", "seconds"):
        assert after[field] == before[field]
    assert after["scores"]["accuracy"] == before["scores"]["accuracy"]
    assert after["scores"]["accuracy_fgsm"]["mean"] == scored.json()["scores"]["accuracy_fgsm"]["mean"]
    folder = json.loads((tmp_path / made["run_dir"] / "result.json").read_text())
    assert len(folder["scores"]["accuracy_fgsm"]["values"]) == 2
    assert ddbench("leaderboard", "--check").out == "1 record, none invalid.\n"
    assert "accuracy_fgsm" in ddbench("show", made["run_dir"]).out
    # A row without attacks stands in the same ranking, with empty cells.
    assert ddbench(*RUN[:2], "herding", *RUN[3:]).code == 0
    shown = ddbench("leaderboard", "--dataset", "digits").out
    # One title is that of the matrix, the other that of the one ranking.
    assert shown.count("accuracy_pgd") == 1 and shown.count("replay/v1") == 2


def test_metrics_of_networks_that_score_otherwise_are_not_added(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    path = tmp_path / made["run_dir"] / "result.json"
    record = RunResult.model_validate_json(path.read_text())
    other = json.loads(path.read_text())
    other["scores"]["accuracy"]["values"][0] += 0.01
    path.write_text(json.dumps(other))
    scored = ddbench("evaluate", made["run_dir"], "--attack", "pgd")
    assert scored.code == 0
    assert "No row for the attacks: networks score otherwise here than in the record." in scored.err
    elsewhere = ddbench("evaluate", made["run_dir"], "--network", "mlp", "--attack", "pgd")
    assert "No row for the attacks: the scoring is not that of the run." in elsewhere.err
    assert record_of(tmp_path)["attacks"] == []
    assert json.loads(path.read_text())["attacks"] == []
    assert with_attacks_of(record, record) is record


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-d", "trec"), "attacks are on images; trec holds text."),
        (("-d", "fsdd"), "attacks are on images; fsdd holds sound."),
        (("--objective", "least_squares"), "attacks are on classifiers; least_squares is another objective."),
        (("--objective", "poisoning"), "attacks are on classifiers; poisoning is another objective."),
        (("--protocol", "knn/v1"), "attacks are on networks, and knn/v1 trains none."),
        (("--whitening", "zca"), "attacks change raw pixels, and these images are whitened."),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_is_done(ddbench, tmp_path: Path, words, reason: str):
    refused = ddbench("run", "-m", "random_subset", *words, "--ipc", 1, "--attack", "pgd")
    assert refused.code == 2
    assert reason in refused.err and "Leave out --attack." in refused.err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_attack_is_refused(make_prepared):
    with pytest.raises(UsageError, match="'fgsm' or 'pgd'"):
        make_prepared(method="herding", attack="cw")

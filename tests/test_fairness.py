import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

import ddbench
from ddbench.contract.metric import Metric
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.errors import Interrupted, PluginError, UsageError
from ddbench.pipeline import baselines
from ddbench.protocols.base import FULL_NETWORKS
from ddbench.protocols.replay import Replay
from ddbench.records.dd_ranking import augmentation_robust_score, fairness, fairness_of, label_robust_score
from ddbench.records.result import FULL_DATA, RunResult
from ddbench.records.stats import summarise
from ddbench.records.store import read
from ddbench.render.pools import pools

ACCURACY, ATTACK = Metric("accuracy", "share", bounded_by_full_data=True), Metric("attack_success", "share")
SPEC = {"method": "herding", "network": "linear", "images_per_class": 1, "eval_networks": 2}


def test_scores_by_hand():
    found = fairness(ACCURACY, 0.7, {"random_subset": 0.5, "full_data": 0.9}, hard=True)
    assert found["IOR"] == pytest.approx(0.2)
    assert found["HLR"] == pytest.approx(0.2)
    # alpha = .5 * .2 - .5 * .2 = 0, so (1 - 1/e) / (e - 1/e).
    assert found["LRS"] == pytest.approx(0.26894142, abs=1e-7)
    # beta = .5 * .1 + .5 * .3 = .2
    assert augmentation_robust_score(0.1, 0.3) == pytest.approx((math.exp(0.2) - 1 / math.e) / (math.e - 1 / math.e))


def test_what_does_not_apply_is_left_out():
    companions = {"random_subset": 0.5, "full_data": 0.9}
    assert set(fairness(ACCURACY, 0.7, companions, hard=False)) == {"IOR"}
    assert fairness(ATTACK, 0.7, companions, hard=True) == {}
    assert fairness(ACCURACY, 0.7, {}, hard=True) == {}
    assert set(fairness(ACCURACY, 0.7, {**companions, "another": 0.6}, hard=True)) == {"HLR"}
    assert set(fairness(ACCURACY, 0.7, {"no_adaptation": 0.5, "full_data": 0.9}, hard=True)) == {"HLR"}


def test_the_gain_over_random_images_is_over_those_with_the_same_kind_of_labels():
    companions = {"random_subset": 0.5, "random_subset+teacher": 0.6, "full_data": 0.9}
    assert fairness(ACCURACY, 0.7, companions, hard=False) == {"IOR": pytest.approx(0.1)}


@pytest.mark.slow
def test_a_set_with_soft_labels_stands_beside_random_images_with_soft_labels(make_prepared, catalog):
    setting = {"method": "herding", "network": "linear", "images_per_class": 2, "steps": 1, "eval_networks": 2}
    prepared = make_prepared(**setting, protocol="replay/v1")
    prepared.setting.full_data(math.inf)
    hard, soft = (
        baselines.score_companions(prepared, prepared.setting, catalog, Silent(), regime)
        for regime in ("hard", "stored soft")
    )
    regimes = {name: companion.label_regime for name, companion in soft.items()}
    assert regimes == {"random_subset": "hard", "random_subset+teacher": "stored soft", "full_data": "hard"}
    # A hard set has the companions that it had, with the same scores.
    assert hard == {name: soft[name] for name in ("random_subset", "full_data")}
    assert soft["random_subset+teacher"].values != hard["random_subset"].values
    # Scores come from the cache, regime and other metrics included.
    assert baselines.score_companions(prepared, prepared.setting, catalog, Silent(), "stored soft") == soft
    assert set(soft["random_subset+teacher"].metrics) == {"loss"}


def test_labels_of_the_teacher_are_the_mean_answer_to_each_image(make_prepared):
    prepared = make_prepared(network="linear", images_per_class=2, steps=2, protocol="replay/v1")
    prepared.setting.full_data(math.inf)
    chosen = prepared.train.random_subset(2, torch.Generator().manual_seed(0))
    images = chosen.inputs.view(2, 10, *chosen.inputs.shape[1:])
    distilled = DistilledSet(images, chosen.labels.view(2, 10), torch.full((3, 2), 0.1))
    teachers = prepared.setting.full_data(math.inf)
    labelled = baselines._labelled(distilled, prepared.setting, teachers)
    answers = [functional_call(prepared.setting.module, t.params, (images[1, 3:4],)).softmax(-1) for t in teachers]
    assert torch.allclose(labelled.labels[1, 3], torch.cat(answers).mean(0), atol=1e-6)
    assert torch.equal(labelled.inputs, images) and torch.equal(labelled.lrs, distilled.lrs)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_robust_scores_lie_between_zero_and_one(improvement: float, recovery: float):
    assert 0 <= label_robust_score(improvement, recovery) <= 1
    assert 0 <= augmentation_robust_score(improvement, recovery) <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("cold_cache")
def test_a_run_is_held_against_networks_trained_on_all_the_data(tmp_path: Path):
    result = ddbench.run(SPEC, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    full = result.companions[FULL_DATA]
    # Ten images cannot do what 1 400 do.
    assert full.n == FULL_NETWORKS and full.mean > max(0.85, result.score.mean + 0.1)
    summary = next(pool.summary for pool in pools() if pool.summary.startswith("linear"))
    assert f"0 networks to train on and {FULL_NETWORKS} held out" in summary
    # Networks that a score is only compared with are not among those the run drew on.
    assert result.pretrained == {}
    [row] = read(tmp_path / "boards")
    assert set(fairness_of(row, [row])) == {"IOR", "HLR", "LRS"}


@pytest.mark.slow
def test_labels_of_a_teacher_are_a_regime_of_their_own(tmp_path: Path):
    spec = {**SPEC, "method": "random_subset", "protocol": "train-teacher/v1"}
    ddbench.run(spec, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    [row] = read(tmp_path / "boards")
    assert row.artifact.label_regime == "teacher online"
    # The networks that gave the labels are what the number came from.
    [drawn] = row.pretrained.values()
    assert drawn["held_out"] == FULL_NETWORKS
    # Hard-label recovery is of hard labels.
    assert set(fairness_of(row, [row])) == set()
    beside = ddbench.run({**spec, "method": "herding"}, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    regimes = {name: companion.label_regime for name, companion in beside.companions.items()}
    assert regimes == {"random_subset": "teacher online", "full_data": "hard"}
    with pytest.raises(UsageError, match="classifier"):
        ddbench.run({**spec, "objective": "poisoning"}, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")


def test_a_protocol_without_networks_is_not(tmp_path: Path):
    result = ddbench.run({**SPEC, "protocol": "knn/v1"}, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    assert FULL_DATA not in result.companions


@pytest.mark.slow
def test_the_best_coreset_is_chosen_on_the_validation_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read_tests: list[int] = []
    once = Replay.evaluate

    def noted(self, sets, setting, networks, reporter):
        read_tests.append(len(setting.test))
        return once(self, sets, setting, networks, reporter)

    monkeypatch.setattr(Replay, "evaluate", noted)
    spec = {**SPEC, "method": "random_subset", "best_coreset": True}
    result = ddbench.run(spec, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    [name] = [name for name in result.companions if name.startswith("best_coreset")]
    candidates = [c.name for c in ddbench.Catalog().components("method") if c.facts.get("coreset")]
    assert name.removeprefix("best_coreset (").removesuffix(")") in candidates and len(candidates) > 10
    assert result.companions[name].n == 2
    # The run itself and the one that was chosen; all others on the validation slice.
    assert read_tests.count(result.dataset.test) == 2
    assert read_tests.count(result.dataset.validation) == len(candidates)


@pytest.fixture(name="run_command")
def _run_command(ddbench):
    """`ddbench` as a user starts it, under a name that leaves the module its own."""
    return ddbench


@pytest.mark.slow
@pytest.mark.usefixtures("cold_cache")
def test_what_would_take_long_is_left_to_be_trained_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command
):
    monkeypatch.setattr("ddbench.pipeline.baselines.PATIENCE", 0.0)
    said: list[str] = []

    class Listening(ddbench.contract.observer.Silent):
        def say(self, text: str) -> None:
            said.append(text)

    spec = {**SPEC, "network": {"name": "mlp", "options": {"width": 8}}, "sample_shape": (1, 4, 4)}
    result = ddbench.run(spec, runs=tmp_path / "runs", leaderboards=tmp_path / "boards", reporter=Listening())
    assert result.status == "ok" and FULL_DATA not in result.companions
    [command] = [line[line.index("pretrain") :] for line in said if "ddbench pretrain" in line]
    # The command that is told trains the very pool that was missing.
    done = run_command(*command.split())
    assert done.code == 0, done.err
    monkeypatch.setattr("ddbench.pipeline.baselines.PATIENCE", 0.0)
    again = ddbench.run({**spec, "seed": 1}, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    assert again.companions[FULL_DATA].n == FULL_NETWORKS


def test_augmentation_is_scored_over_two_rows_of_one_set(tmp_path: Path):
    ddbench.run({**SPEC, "protocol": "knn/v1"}, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    [row] = read(tmp_path / "boards")

    def under(protocol: str, score: float, seed: int = 0) -> RunResult:
        settings = row.settings.model_copy(update={"protocol": protocol, "seed": seed})
        scores = {"accuracy": summarise([score, score])}
        companions = {"random_subset": summarise([0.4, 0.4])}
        return row.model_copy(update={"settings": settings, "scores": scores, "companions": companions})

    plain, augmented = under("train/v1", 0.5), under("train-dsa/v1", 0.7)
    for one in (plain, augmented):
        assert fairness_of(one, [plain, augmented])["ARS"] == pytest.approx(augmentation_robust_score(0.3, 0.1))
    assert "ARS" not in fairness_of(plain, [plain, under("train-dsa/v1", 0.7, seed=1)])


def test_a_coreset_that_raises_is_left_out(make_prepared, catalog, monkeypatch: pytest.MonkeyPatch):
    def failing(*arguments):
        raise ValueError("on purpose")

    monkeypatch.setattr(baselines, "_distil", failing)
    said: list[str] = []
    prepared, reporter = make_prepared(), Silent()
    monkeypatch.setattr(reporter, "say", said.append)
    assert baselines._score_best_coreset(prepared, prepared.setting, catalog, reporter) == {}
    assert "No coreset herding: ValueError: on purpose" in said


def test_an_interruption_outlasts_the_check_of_the_training_data(make_prepared):
    prepared = make_prepared()
    prepared.train.inputs.zero_()
    with pytest.raises(Interrupted), baselines._reported_failure(prepared, prepared.plan.method, "companion", Silent()):
        raise Interrupted("stopped.")
    with pytest.raises(PluginError), baselines._reported_failure(prepared, prepared.plan.method, "companion", Silent()):
        pass

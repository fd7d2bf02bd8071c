"""Tuning on the validation slice."""

import json
import sys

import pytest

from ddbench.contract.spec import RunSpec
from ddbench.errors import UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.sweep import parse_axes, usual_split
from ddbench.pipeline.tune import Space, parse_space

SUITE = """
summary = "Two tasks of digits"
methods = ["random_subset", "dm"]
reference = "random_subset"

[task]
network = "linear"
eval_networks = 2

[tasks.one]
images_per_class = 1

[tasks.two]
images_per_class = 2
"""


def test_spaces():
    assert parse_space(["a=1..5", "b=0.1..10", "c=x,2"]) == [
        Space("a", low=1, high=5), Space("b", low=0.1, high=10), Space("c", ("x", 2)),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["a", "a=", "=1..2", "a=2..1", "a=x..y", "a=true..false"])
def test_what_is_no_space(text):
    with pytest.raises(UsageError):
        parse_space([text])


def test_the_validation_slice_scores_instead_of_the_test_split(make_prepared):
    test, validation = make_prepared(), make_prepared(split="validation")
    assert validation.record.test == validation.record.validation == len(validation.setting.test)
    assert (validation.setting.test.inputs == test.setting.validation.inputs).all()
    assert test.record.test == 360


def test_the_fields_of_tuning_move_no_fingerprint(catalog):
    def settings(**fields):
        return plan_run(RunSpec.parse({"method": "random_subset", **fields}), catalog).settings

    plain = settings()
    assert not {"split", "trials", "step_limit"} & json.loads(plain.canonical()).keys()
    assert settings(trials=20).fingerprint == plain.fingerprint
    assert settings(split="validation").fingerprint != plain.fingerprint
    assert settings(step_limit=3).fingerprint != plain.fingerprint


def test_options_are_compared_on_validation_and_tasks_on_test():
    options = {"outer_steps", "image_rate"}
    assert usual_split(parse_axes(["image_rate=1,2"]), options) == "validation"
    assert usual_split(parse_axes(["images_per_class=1,2", "method.image_rate=1,2"]), options) == "validation"
    assert usual_split(parse_axes(["images_per_class=1,2"]), options) == "test"


def test_a_run_on_validation_leaves_no_row(ddbench, tmp_path):
    done = ddbench("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2, "--on", "validation")
    assert done.code == 0
    assert "on the validation slice" in done.out and "leaves no record" in done.err
    assert not (tmp_path / "leaderboards").exists()


def test_a_step_limit_stops_a_method_and_the_record_says_so(ddbench):
    done = ddbench(
        "run", "-m", "unrolled_gd", "--network", "linear", "--eval-networks", 2, "--step-limit", 3, "--json"
    ).json()
    assert done["loop"]["steps"] == 3
    assert done["loop"]["stopped_by"] == "step limit"


def test_tuning_without_optuna(ddbench, tmp_path):
    (tmp_path / "two.toml").write_text(SUITE)
    (tmp_path / "optuna.py").write_text("raise ImportError")
    command = ["suite", "tune", "two.toml", "-m", "dm", "--try", "image_rate=0.1..10"]
    done = ddbench(*command, PYTHONPATH=f"{tmp_path}:{':'.join(path for path in sys.path if path)}")
    assert done.code == 3
    assert "pip install 'ddbench[tune]'" in done.message()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-m", "dm", "--try", "image_rat=1..2"], "Did you mean 'image_rate'?"),
        (["-m", "dm", "--try", "image_rate=-1..2"], "image_rate"),
        (["-m", "dmm", "--try", "image_rate=1..2"], "Did you mean 'dm'?"),
        (["-m", "dm", "--try", "image_rate"], "is not of the form"),
        (["-m", "dm", "--set", "dc.x=1", "--try", "image_rate=1..2"], "dm is tuned alone"),
    ],
)
def test_usage(ddbench, tmp_path, arguments, what):
    pytest.importorskip("optuna")
    (tmp_path / "two.toml").write_text(SUITE)
    done = ddbench("suite", "tune", "two.toml", *arguments)
    assert done.code == 2
    assert what in done.message()


@pytest.mark.slow
def test_tuning_reads_the_test_split_for_the_chosen_options_alone(ddbench, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "two.toml").write_text(SUITE)
    command = ["suite", "tune", "two.toml", "-m", "dm", "--set", "dm.outer_steps=5", "--try", "image_rate=0.1..10"]
    first = ddbench(*command, "--trials", 2, "--json").json()
    assert len(first["tuning"]["trials"]) == 2
    done = ddbench(*command, "--trials", 3, "--json").json()
    tuning = done["tuning"]
    assert tuning["trials"][:2] == first["tuning"]["trials"]
    best = max((t for t in tuning["trials"] if t["state"] == "complete"), key=lambda trial: trial["gain"])
    assert tuning["best"] == best["options"]
    specs = [json.loads(path.read_text()) for path in tmp_path.glob("runs/dm*/spec.json")]
    chosen = {spec["method"]["options"]["image_rate"] for spec in specs if spec["split"] == "test"}
    assert chosen == {first["tuning"]["best"]["image_rate"], best["options"]["image_rate"]}
    written = [json.loads(path.read_text()) for path in tmp_path.glob("leaderboards/records/*/dm*.json")]
    assert {record["settings"]["split"] for record in written} == {"test"}
    assert {record["settings"]["trials"] for record in written} <= {2, 3}

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddbench.contract.spec import RunSpec, Settings, default_steps, parse_duration, place_assignments
from ddbench.errors import UsageError


def test_names_stand_for_choices_and_defaults_are_filled():
    spec = RunSpec.parse({"method": "m", "dataset": {"name": "svhn"}, "time_limit": "15m"})
    assert (spec.method.name, spec.dataset.name, spec.init.name, spec.time_limit) == ("m", "svhn", "random", 900)


COMPLETE = {
    "method": "m",
    "dataset": "digits",
    "network": "mlp",
    "eval_init": "random",
    "images_per_class": 3,
    "steps": 1,
}


def test_fingerprint_depends_on_what_is_computed_and_on_nothing_else():
    fingerprint = Settings.model_validate(COMPLETE).fingerprint
    assert Settings.model_validate({**COMPLETE, "device": "cpu", "best_coreset": True}).fingerprint == fingerprint
    again = Settings.model_validate_json(Settings.model_validate(COMPLETE).model_dump_json())
    assert again.fingerprint == fingerprint
    # Pinned: a change that moves it makes every committed row unfindable.
    assert fingerprint == "f870f1591a2de18c346534085dbd123853b0fa4e28f63cea30bbcfedc687e84e"
    for change in (
        {"seed": 1},
        {"epochs": 2},
        {"smoke": True},
        {"time_limit": 5},
        {"method": {"name": "m", "options": {"a": 1}}},
    ):
        assert Settings.model_validate({**COMPLETE, **change}).fingerprint != fingerprint


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "no method was given"),
        ({"method": "m", "epoch": 3}, "no field 'epoch'. Did you mean 'epochs'?"),
        ({"method": "m", "epochs": 0}, "epochs: input should be greater than or equal to 1"),
        ({"method": "m", "time_limit": "soon"}, "must be a time such as 90s, 15m or 2h"),
        ({"method": "m", "device": "GPU 1"}, "must be a device"),
        ({"method": "m", "seed": -1}, "seed"),
        ({"method": {"name": "m", "opts": {}}}, "method.opts"),
        ({"method": 3}, "method"),
    ],
)
def test_wrong_fields_are_named(fields, told):
    with pytest.raises(UsageError) as error:
        RunSpec.parse(fields)
    assert told in error.value.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), (" 2 d ", 172800), (7, 7)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@given(st.integers(1, 5000))
def test_default_steps_divide_the_images(images_per_class):
    steps = default_steps(images_per_class)
    assert images_per_class % steps == 0
    assert 1 <= steps <= 10
    assert steps == 10 or images_per_class % 10


def test_assignments_go_where_they_belong():
    fields = {"method": "m", "init": {"name": "random", "options": {"scheme": "xavier"}}}
    placed = place_assignments(fields, {"rate": 2, "init.scheme": "kaiming", "epochs": 5}, {"rate"})
    assert placed["method"] == {"name": "m", "options": {"rate": 2}}
    assert placed["init"] == {"name": "random", "options": {"scheme": "kaiming"}}
    assert placed["epochs"] == 5
    # The method's own option of the same name comes first, and an unknown name is the method's to reject.
    assert place_assignments(fields, {"epochs": 5}, {"epochs"})["method"]["options"] == {"epochs": 5}
    assert place_assignments(fields, {"epoch": 5}, set())["method"]["options"] == {"epoch": 5}


def test_assignments_to_nowhere():
    with pytest.raises(UsageError, match="no part 'inti' of a run. Did you mean 'init'"):
        place_assignments({"method": "m"}, {"inti.scheme": "kaiming"}, set())
    with pytest.raises(UsageError, match="no network was named"):
        place_assignments({"method": "m"}, {"network.width": 3}, set())


def test_run_ids_are_file_names():
    spec = Settings.model_validate({**COMPLETE, "dataset": "folder:/a b/ü"})
    assert spec.run_id == f"m-folder_a_b-ipc3-{spec.fingerprint[:6]}"

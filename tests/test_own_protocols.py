"""Protocols of the field's other lineages, and those of a user's own that stand in a file."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ddbench
from ddbench import ExampleSet
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import RunSpec
from ddbench.engine.kernels import relu_ntk
from ddbench.errors import UsageError
from ddbench.pipeline import baselines
from ddbench.pipeline.plan import plan_run
from ddbench.protocols import PROTOCOLS, get_protocol, protocol_hash, protocol_of
from ddbench.protocols.krr import KRR_V1
from ddbench.protocols.own import content_of
from ddbench.protocols.train import TRAIN_DSA_RATE_V1, TRAIN_DSA_V1, TRAIN_IMAGENET_V1, TRAIN_V1
from ddbench.protocols.views import augmented, cut_mixed, resized_crops


def real(prepared, per_class: int = 2, lrs: torch.Tensor | None = None) -> DistilledSet:
    chosen = prepared.train.random_subset(per_class, torch.Generator().manual_seed(0))
    return DistilledSet(chosen.inputs[None], chosen.labels[None], lrs)


def test_the_rate_of_the_set_is_the_rate_of_training(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=1)
    short = dataclasses.replace(TRAIN_DSA_RATE_V1, epochs=4)
    scalar = short.evaluate([real(prepared, lrs=torch.tensor(0.03))], prepared.setting, 2, Silent())
    several = short.evaluate([real(prepared, lrs=torch.tensor([[0.02], [0.04]]))], prepared.setting, 2, Silent())
    assert scalar == several
    # The same training with the number as the protocol's own rate; its name decides about the seeds.
    fixed = dataclasses.replace(TRAIN_DSA_V1, name=short.name, epochs=4, rate=0.03)
    expected = fixed.evaluate([real(prepared)], prepared.setting, 2, Silent())
    assert scalar.scores["loss"] == pytest.approx(expected.scores["loss"], rel=1e-5)
    with pytest.raises(UsageError, match="needs the rate of the set"):
        short.evaluate([real(prepared)], prepared.setting, 2, Silent())


def test_companions_bring_no_rate_and_train_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path))
    (tmp_path / "short.toml").write_text('rate = "set"\nepochs = 100\n')
    spec = RunSpec(
        method="dm", network="linear", images_per_class=2, eval_networks=2, protocol=f"file:{tmp_path / 'short.toml'}"
    )

    def choose(examples: ExampleSet) -> DistilledSet:
        return DistilledSet(examples.inputs[None, :20], examples.labels[None, :20], torch.tensor(0.03))

    def scored() -> float:
        _, scores = ddbench.evaluate(choose, spec)
        return scores.companions["random_subset"].mean

    assert scored() > 0.4
    monkeypatch.setattr(baselines, "RATE", 1e-9)
    shutil.rmtree(tmp_path / "companions")
    assert scored() < 0.2


def test_kernel_regression_against_linear_algebra(make_prepared):
    prepared = make_prepared(images_per_class=2, steps=1, protocol="krr/v1")
    setting, distilled = prepared.setting, real(prepared)
    rows, labels = distilled.flat()
    rows, inputs = rows.flatten(1).double(), setting.test.inputs.flatten(1).double()
    kernel = relu_ntk(rows)
    ridge = 1e-6 * kernel.trace() / len(rows) * torch.eye(len(rows))
    answers = relu_ntk(inputs, rows) @ torch.linalg.solve(kernel + ridge, F.one_hot(labels, 10).double() - 0.1)
    evaluation = KRR_V1.evaluate([distilled], setting, 5, Silent())
    assert evaluation.scores["accuracy"] == [
        pytest.approx(float((answers.argmax(1) == setting.test.labels).float().mean()))
    ]
    assert evaluation.scores["accuracy"][0] > 0.5
    assert evaluation.before["loss"] == [pytest.approx(2.302585, rel=1e-5)]
    assert prepared.plan.protocol.networks_needed(5) == {}
    # Weight 0 leaves an example out; a soft label of all mass on a class is that class.
    soft = DistilledSet(distilled.inputs, F.one_hot(distilled.labels, 10).float())
    assert KRR_V1.evaluate([soft], setting, 1, Silent()) == evaluation
    weights = torch.ones(1, 20)
    weights[0, 1::2] = 0
    half = DistilledSet(distilled.inputs[:, ::2], distilled.labels[:, ::2])
    without = DistilledSet(distilled.inputs, distilled.labels, weights=weights)
    values = [KRR_V1.evaluate([each], setting, 1, Silent()).scores["loss"][0] for each in (half, without)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_kernel_regression_ignores_networks_and_steps(make_prepared):
    distilled = real(make_prepared(images_per_class=2, steps=1))
    assert KRR_V1.ignores == {"steps", "epochs", "eval_network", "eval_init"}
    settings = [
        make_prepared(images_per_class=2, **fields).setting
        for fields in ({"steps": 1}, {"steps": 2, "epochs": 5, "network": "mlp"})
    ]
    first, second = (KRR_V1.evaluate([distilled], setting, 2, Silent()) for setting in settings)
    assert first == second


def test_windows_of_whole_area_are_the_images_and_small_ones_lie_inside():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 8, 8, generator=generator)
    ramp = torch.arange(32.0).expand(200, 1, 32, 32) / 31
    crops = resized_crops(ramp, 0.08, generator)
    assert crops.shape == ramp.shape and crops.min() >= 0 and crops.max() <= 1
    widths = (crops[..., 0, -1] - crops[..., 0, 0]).flatten() * 31 / 31
    assert widths.min() > 0.08**0.5 / (4 / 3) ** 0.5 - 0.1 and widths.max() <= 1
    torch.testing.assert_close(resized_crops(images[:1], 1.0, generator).mean(), images[:1].mean(), atol=0.05, rtol=0)


def test_cutmix_mixes_labels_by_the_area_that_it_pastes():
    generator = torch.Generator().manual_seed(1)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 8, 8)
    shares = set()
    for _ in range(30):
        mixed, labels = cut_mixed(images, torch.eye(6), generator)
        torch.testing.assert_close(labels.sum(1), torch.ones(6))
        # An image's pixels are its number, so the mean of the mixture is that of its label.
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels @ torch.arange(6.0))
        shares.add(round(float(labels.min(1).values.max() + labels.diag().min()), 3))
    assert len(shares) > 5


def test_grey_images_are_never_flipped():
    generator = torch.Generator().manual_seed(0)
    grey, colour = torch.rand(20, 1, 4, 4), torch.rand(20, 3, 4, 4)
    assert augmented(grey, "flip", generator).equal(grey)
    assert not augmented(colour, "flip", generator).equal(colour)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_labels_of_a_hot_teacher_under_cutmix(make_prepared, shape):
    prepared = make_prepared(images_per_class=1, steps=1, sample_shape=shape)
    generator = torch.Generator().manual_seed(0)
    states = [dataclasses.replace(state) for state in _drawn(prepared, generator)]
    setting = dataclasses.replace(prepared.setting, full_data=lambda patience: states)
    short = dataclasses.replace(TRAIN_IMAGENET_V1, epochs=2)
    distilled = real(prepared, 1)
    first = short.evaluate([distilled], setting, 2, Silent())
    shuffled = DistilledSet(distilled.inputs, distilled.labels.flip(1))
    assert short.evaluate([shuffled], setting, 2, Silent()) == first
    assert dataclasses.replace(short, temperature=1.0).evaluate([distilled], setting, 2, Silent()) != first


def _drawn(prepared, generator):
    from ddbench.networks import unstack

    return unstack(prepared.setting.module, prepared.setting.networks("train", generator).sample(2))


def test_cutmix_with_labels_of_the_set_is_for_classification(make_prepared):
    mixing = dataclasses.replace(TRAIN_V1, epochs=2, cutmix=True)
    prepared = make_prepared(images_per_class=2, steps=1)
    plain = dataclasses.replace(TRAIN_V1, epochs=2)
    scores = [p.evaluate([real(prepared)], prepared.setting, 1, Silent()).scores for p in (mixing, plain)]
    assert scores[0] != scores[1]
    with pytest.raises(UsageError, match="is for classification"):
        mixing.evaluate([real(prepared)], make_prepared(objective="least_squares").setting, 1, Silent())


def test_a_file_without_a_line_is_train_v1(tmp_path: Path):
    (tmp_path / "plain.toml").write_text("")
    protocol = get_protocol(f"file:{tmp_path / 'plain.toml'}")
    assert protocol.name == "file:plain"
    assert protocol.definition == PROTOCOLS["train/v1"].definition
    (tmp_path / "other.toml").write_text("rate = 0.02\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "plain.toml").write_text("rate = 0.02\n")
    another = get_protocol(f"file:{tmp_path / 'folder' / 'plain.toml'}")
    assert another.name == protocol.name and protocol_hash(another) != protocol_hash(protocol)


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if name.startswith("train")])
def test_every_training_can_be_written_as_a_file(tmp_path: Path, name: str):
    content = {key: value for key, value in content_of(PROTOCOLS[name]).items() if key != "name" and value is not None}
    if content["optimiser"] == "adamw":
        del content["momentum"]
    (tmp_path / "copy.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in content.items()))
    assert get_protocol(f"file:{tmp_path / 'copy.toml'}").definition == PROTOCOLS[name].definition


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs = -3", "mine.toml is invalid: epochs: input should be greater than or equal to 1, not -3."),
        ("epochs = = 3", "mine.toml is not TOML: invalid value"),
        ("epoch = 3", "mine.toml has an unknown field 'epoch'. Did you mean 'epochs'?"),
        ("name = 'x'", "mine.toml has an unknown field 'name'."),
        ("temperature = 3", 'mine.toml is invalid: temperature is for labels = "teacher" or "views".'),
        ("augment = 'flap'", "unknown operation 'flap'. Did you mean 'flip'?"),
        ("optimiser = 'adamw'\nmomentum = 0.5", "mine.toml gives adamw a momentum."),
        ("rate = inf", "mine.toml is invalid: rate: input should be a finite number"),
        (None, "mine.toml cannot be read: no such file or directory."),
    ],
)
def test_an_invalid_file_is_one_sentence(ddbench, tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "mine.toml").write_text(content)
    finished = ddbench("run", "--method", "random_subset", "--protocol", "file:mine.toml")
    assert finished.code == 2
    assert message in finished.message()


@pytest.mark.slow
def test_a_record_outlives_the_file_of_its_protocol(ddbench, tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 2\naugment = 'crop'\n")
    command = (
        "run",
        "--method",
        "random_subset",
        "--network",
        "linear",
        "--ipc",
        "1",
        "--eval-networks",
        "2",
        "--json",
    )
    ran = ddbench(*command, "--protocol", "file:mine.toml").json()
    assert ran["protocol"]["name"] == ran["settings"]["protocol"] == "file:mine"
    assert ran["asked"]["protocol"] == "file:mine.toml"
    file.write_text("epochs = 3\naugment = 'crop'\n")
    other = ddbench(*command, "--protocol", "file:mine.toml").json()
    assert other["fingerprint"] != ran["fingerprint"] and other["protocol"]["hash"] != ran["protocol"]["hash"]
    file.unlink()
    assert ddbench("leaderboard", "--check").code == 0
    assert "exactly" in ddbench("verify", ran["run_id"]).out
    assert ddbench("resume", ran["run_dir"]).code == 0
    again = ddbench("evaluate", ran["run_dir"], "--json").json()
    assert again["scores"]["accuracy"]["values"] == ran["scores"]["accuracy"]["values"]


def test_the_content_of_a_spec_belongs_to_its_protocol(catalog):
    content = content_of(dataclasses.replace(TRAIN_V1, name="file:mine", epochs=7))
    spec = RunSpec(method="random_subset", protocol="file:mine", protocol_content=content)
    assert protocol_of(spec).epochs == 7
    # Another name on top of it, as `evaluate --protocol` gives one, leaves the content behind.
    assert protocol_of(spec.model_copy(update={"protocol": "train/v1"})) == TRAIN_V1
    settings = plan_run(spec, catalog).settings
    assert settings.protocol_content == content and settings.asked().protocol_content == content
    assert settings.fingerprint != plan_run(RunSpec(method="random_subset"), catalog).settings.fingerprint


def test_the_command_of_a_row_holds_the_content_of_its_protocol(ddbench, catalog):
    from ddbench.render.site import _command

    content = content_of(dataclasses.replace(TRAIN_V1, name="file:mine", epochs=2, augment="crop"))
    spec = RunSpec(method="random_subset", protocol="file:mine", protocol_content=content)
    settings = plan_run(spec, catalog).settings
    command = shlex.split(_command(settings, "ddbench 0.1.0", catalog))
    planned = ddbench(*command[1:], "--dry-run", "--json").json()
    assert planned["settings"]["protocol_content"] == content

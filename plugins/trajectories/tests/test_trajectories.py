import json
import shutil
from dataclasses import replace

import pytest
import torch
from ddbench_trajectories import segments
from ddbench_trajectories.datm import choose_start, initial_logits, upper_bound
from torch import nn

import ddbench
from ddbench import State, Unsupported, UsageError
from ddbench.augment import DSA, DSA_DIGITS
from ddbench.contract.spec import RunSpec
from ddbench.pipeline.plan import plan_run
from tests.test_unroll_golden import Golden

METHODS = ("mtt", "tesla", "datm")
QUICK = {"outer_steps": 6, "inner_steps": 4, "experts": 2, "expert_epochs": 4, "span": 2, "expert_lr": 0.1}
every_method = pytest.mark.parametrize("method", METHODS)


ALONE = """
import ddbench, torch

@ddbench.dataset(classes=("only",), sample_shape=(1, 8, 8), network="linear")
def alone(root, download):
    '''Images of one class.'''
    images = torch.zeros((40, 1, 8, 8), dtype=torch.uint8)
    return ddbench.ImageSplits(images, torch.zeros(40, dtype=torch.int64), images, torch.zeros(40, dtype=torch.int64))

@ddbench.hookimpl
def ddbench_datasets():
    return [alone]
"""


def spec(method: str, **fields: object) -> dict:
    options = {**QUICK, **fields.pop("options", {})}
    return {
        "method": {"name": method, "options": options},
        "network": "linear",
        "images_per_class": 2,
        "eval_networks": 2,
        **fields,
    }


@pytest.fixture
def folders(tmp_path) -> dict:
    return {"runs": tmp_path / "runs", "leaderboards": tmp_path / "leaderboards"}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_batches_come_in_the_published_order(kind, monkeypatch):
    golden = Golden("mtt")
    permutations = iter(golden[f"permutations_{kind}"])
    monkeypatch.setattr(torch, "randperm", lambda n, generator: next(permutations))
    batches = segments.draw_batches(10, 4, 5, torch.Generator())
    assert batches.tolist() == golden[f"batch_indices_{kind}"].tolist()


def test_batches_without_a_size_hold_all_images():
    batches = segments.draw_batches(6, None, 3, torch.Generator().manual_seed(0))
    assert [sorted(row) for row in batches.tolist()] == [list(range(6))] * 3
    assert segments.draw_batches(6, 9, 3, torch.Generator()).shape == (3, 6)


def test_each_step_and_image_has_an_augmentation_of_its_own():
    generator = torch.Generator().manual_seed(0)
    indices = segments.draw_batches(6, 4, 9, generator)
    views = segments.draw_views("color_scale", indices, generator)
    assert views is not None
    same = torch.rand(1, 3, 8, 8).expand(4, 3, 8, 8)
    seen = [views(same[: int((row >= 0).sum())], step) for step, row in enumerate(indices)]
    assert all(len(images) == int((row >= 0).sum()) for images, row in zip(seen, indices, strict=True))
    assert len({tuple(images[0].flatten().tolist()) for images in seen}) == 9
    assert all(not torch.equal(images[0], images[1]) for images in seen)
    assert torch.equal(seen[3], views(same[: len(seen[3])], 3))
    assert segments.draw_views("", indices, generator) is None


class FewEpochs:
    """Experts whose weights are their number and epoch."""

    epochs = 4

    def __len__(self) -> int:
        return 3

    def start(self, expert: int, epoch: int) -> State:
        assert 0 <= epoch <= self.epochs
        return State({"w": torch.tensor([float(expert), float(epoch)])})


@pytest.mark.parametrize(
    ("first", "end", "span", "expected"),
    [
        (0, 2, 2, {(0, 2), (1, 3)}),
        (0, 25, 3, {(0, 3), (1, 4)}),
        (1, 3, 2, {(1, 3), (2, 4)}),
        (3, 9, 2, {(2, 4)}),
        (0, 9, 50, {(0, 4)}),
    ],
)
def test_segments_lie_within_the_bounds_and_the_training_of_the_experts(first, end, span, expected):
    generator = torch.Generator().manual_seed(0)
    drawn = [segments.draw_segment(FewEpochs(), first, end, span, generator) for _ in range(60)]
    epochs = {(int(start.params["w"][1]), int(target["w"][1])) for start, target in drawn}
    assert epochs == expected
    assert all(start.params["w"][0] == target["w"][0] for start, target in drawn)
    assert {int(start.params["w"][0]) for start, _ in drawn} == {0, 1, 2}


def test_the_window_of_datm_moves_as_in_the_authors_configs():
    """For 10 images: from 10 to 20 within 1000 of 10 000 updates, in whole epochs."""
    assert [upper_bound(step / 10_000, 10, 20, 0.1) for step in (0, 99, 101, 550, 1000, 9999)] == [
        10,
        10,
        11,
        15,
        20,
        20,
    ]
    assert upper_bound(0.5, 4, 4, 0.1) == 4


class Teachers:
    """Linear experts whose weights are given, trained for one epoch."""

    epochs = 1

    def __init__(self, *weights: torch.Tensor) -> None:
        self.weights = weights

    def __len__(self) -> int:
        return len(self.weights)

    def start(self, expert: int, epoch: int) -> State:
        assert epoch == self.epochs
        return State({"weight": self.weights[expert]})


def test_labels_of_datm_start_as_the_mean_of_the_experts_that_are_right():
    network = nn.Linear(2, 2, bias=False)
    info = ddbench.DatasetInfo("two", ("a", "b"), (2,), (0.0,), (1.0,), "text", "", False)
    images = ddbench.ExampleSet(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 0]), info)
    right, other, wrong = torch.eye(2), torch.tensor([[3.0, 0.0], [0.5, 0.1]]), torch.tensor([[0.0, 1.0], [1.0, 4.0]])
    logits = initial_logits(network, Teachers(right, other, wrong), images)
    assert logits[0].tolist() == pytest.approx([2.0, 0.25])  # `right` and `other`
    assert logits[1].tolist() == pytest.approx([1 / 3, 5.1 / 3])  # all three
    assert logits[2].tolist() == pytest.approx([2.0, 0.8])  # `right`, where a tie is the first class, and `other`
    alone = initial_logits(network, Teachers(wrong), images)
    assert alone[0].tolist() == [1.0, 0.0]  # it says class b: the two logits change places


def test_images_of_datm_start_as_those_that_an_expert_gets_right():
    network = nn.Linear(2, 2, bias=False)
    info = ddbench.DatasetInfo("two", ("a", "b"), (2,), (0.0,), (1.0,), "text", "", False)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(40, 2, generator=generator)
    train = ddbench.ExampleSet(inputs, torch.arange(40) % 2, info)

    class Networks:
        module = network

    def task(count: int) -> ddbench.Task:
        return ddbench.Task(train, None, Networks(), ddbench.Budget(count, 1, 1), info)  # type: ignore[arg-type]

    chosen = choose_start(task(4), Teachers(torch.eye(2)), generator)
    assert chosen.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(chosen.inputs.argmax(1), chosen.labels)
    # The second expert is asked for the rest; what none gets right comes last.
    always_b = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    rest = choose_start(task(20), Teachers(torch.eye(2), always_b), generator)
    first = rest.inputs[rest.labels == 0]
    assert len(torch.unique(rest.inputs, dim=0)) == 40
    count = int((train.inputs[::2].argmax(1) == 0).sum())
    assert 0 < count < 20
    assert (first.argmax(1) == 0).tolist() == [True] * count + [False] * (20 - count)
    with pytest.raises(UsageError, match="has 20 training images, fewer than 21"):
        choose_start(task(21), Teachers(torch.eye(2)), generator)


def test_recipes_are_the_published_settings(catalog):
    def options(method: str, dataset: str, count: int) -> dict:
        asked = {"method": method, "dataset": dataset, "images_per_class": count}
        return plan_run(RunSpec.parse(asked), catalog).settings.method.options

    names = ("inner_steps", "span", "max_start", "image_lr", "rate_lr", "rate")
    for count, expected in {
        1: (50, 2, 2, 100, 1e-7, 0.01),
        10: (30, 2, 20, 100, 1e-5, 0.001),
        50: (30, 2, 40, 1000, 1e-5, 0.001),
    }.items():
        mtt = options("mtt", "cifar10", count)
        assert tuple(mtt[name] for name in names) == expected
        assert (mtt["experts"], mtt["expert_epochs"], mtt["expert_lr"], mtt["augment"]) == (100, 50, 0.01, DSA)
    assert options("tesla", "cifar10", 1)["max_start"] == 5
    names = ("inner_steps", "first_max_start", "max_start", "image_lr", "label_lr", "rate_lr", "threshold", "ema")
    for count, expected in {
        1: (80, 4, 4, 100, 5, 1e-7, 1.1, 0.995),
        10: (80, 10, 20, 100, 2, 1e-5, 1, 0.9995),
        50: (80, 20, 40, 1000, 2, 1e-5, 1, 0.995),
    }.items():
        datm = options("datm", "cifar10", count)
        assert tuple(datm[name] for name in names) == expected
    assert [options(m, "mnist", 1)["augment"] for m in METHODS] == [DSA_DIGITS] * 3


def test_experiments_have_the_published_figures_and_their_protocol(catalog):
    experiments = [e for e in catalog.experiments() if e.spec["method"]["name"] in METHODS]
    figures = {e.name: (e.published.mean, e.published.std) for e in experiments if e.published}
    assert figures == {
        "cazenavette2022/cifar10-ipc1": (0.463, 0.008),
        "cazenavette2022/cifar10-ipc10": (0.653, 0.007),
        "cazenavette2022/cifar10-ipc50": (0.716, 0.002),
        "cui2023/cifar10-ipc1": (0.485, 0.008),
        "cui2023/cifar10-ipc10": (0.664, 0.008),
        "cui2023/cifar10-ipc50": (0.726, 0.007),
        "guo2024/cifar10-ipc1": (0.469, 0.005),
        "guo2024/cifar10-ipc10": (0.668, 0.002),
        "guo2024/cifar10-ipc50": (0.761, 0.003),
    }
    for experiment in experiments:
        plan = plan_run(RunSpec.parse(experiment.spec), catalog)
        assert plan.protocol.name == "train-dsa-rate/v1"
        if experiment.published:
            asked = RunSpec.parse({**experiment.spec, "method": plan.method.name})
            # What an experiment spells out is what the recipe gives.
            assert plan.settings.method.options == plan_run(asked, catalog).settings.method.options


@every_method
def test_runs_and_brings_images_labels_and_rate(method, folders, catalog):
    result = ddbench.run(spec(method, smoke=True), catalog=catalog, **folders)
    distilled = ddbench.DistilledSet.load(result.artifact.path)
    assert distilled.inputs.shape == (1, 20, 1, 8, 8)
    assert distilled.lrs is not None and distilled.lrs.shape == () and distilled.lrs > 0
    assert distilled.kind == ("logits" if method == "datm" else "class")
    assert result.pretrained


@pytest.mark.slow
@every_method
def test_the_loss_falls(method, folders, catalog):
    options = {"outer_steps": 40, "image_lr": 20.0, "rate": 0.05, "rate_lr": 1e-4, "max_start": 2, "augment": ""}
    if method == "datm":
        options |= {"first_max_start": 2, "ema": 0.5, "threshold": 2.0, "label_lr": 1.0}
    result = ddbench.run(spec(method, options=options), catalog=catalog, **folders)
    lines = (folders["runs"] / result.run_id / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.slow
@every_method
def test_a_diverging_rate_is_rolled_back_and_explained(method, ddbench):
    options = ["--set", "rate=1e30", "--set", "experts=2", "--set", "expert_epochs=4", "--set", "inner_steps=4"]
    failed = ddbench("run", "-m", method, "--network", "linear", "--smoke", *options)
    assert failed.code == 1, failed.err
    assert failed.err.count("Not finite (loss") == 5
    assert "the run diverged again after 5 roll-backs" in failed.message() and "Traceback" not in failed.err


def test_an_update_is_bounded():
    images, alpha = torch.zeros(2, 3, requires_grad=True), torch.tensor(0.01, requires_grad=True)
    optimizer = torch.optim.SGD([images, alpha], lr=1.0)

    def after(grad_images: float, grad_alpha: float) -> tuple[float, float]:
        with torch.no_grad():
            images.zero_()
            alpha.fill_(0.01)
        images.grad, alpha.grad = torch.full((2, 3), grad_images), torch.tensor(grad_alpha)
        segments.update(optimizer, images, alpha)
        return float(images.detach().mean()), float(alpha.detach())

    assert after(-0.02, 0.001) == pytest.approx((0.02, 0.009))
    assert after(-50.0, 7.0) == pytest.approx((segments.LARGEST_CHANGE, 0.005))
    assert after(0.0, -7.0) == pytest.approx((0.0, 0.02))


@every_method
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "span=9", "--set", "expert_epochs=4"], "a segment of 9 epochs does not fit into 4 epochs"),
        (["--set", "augment=colour"], "unknown operation 'colour'. Did you mean 'color'?"),
        (["--set", "memory=all"], "memory=all"),
        (["--ipc", "400", "--set", "experts=1", "--set", "expert_epochs=4"], "training images, fewer than 400"),
        (["--objective", "poisoning"], "matches experts that learn the real labels"),
    ],
)
def test_bad_input(method, arguments, sentence, ddbench):
    if method == "tesla" and "memory=all" in arguments:
        pytest.skip("tesla has no such option")
    refused = ddbench("run", "-m", method, "--network", "linear", *arguments)
    assert "Traceback" not in refused.err
    assert sentence in refused.out + refused.err
    assert refused.code == (0 if "poisoning" in arguments else 2)


@every_method
def test_a_single_class_is_skipped(method, tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    catalog = ddbench.Catalog([tmp_path / "alone.py"])
    planned = ddbench.dry_run({"method": method, "dataset": "alone", "network": "linear"}, catalog=catalog)
    assert planned.skipped.startswith(f"{method} needs two classes or more")


def test_examples_that_are_not_images_are_refused_under_augmentation():
    class Task:
        info = ddbench.DatasetInfo("text", ("a", "b"), (100,), (0.0,), (1.0,), "text", "", False)

        @staticmethod
        def experts(*arguments: object, **recipe: object) -> str:
            return "trained"

    options = {"experts": 1, "expert_epochs": 3, "expert_lr": 0.1, "span": 2}
    with pytest.raises(Unsupported, match="cannot be augmented"):
        segments.open_experts(Task(), augment=DSA, **options)
    assert segments.open_experts(Task(), augment="", **options) == "trained"


@every_method
def test_grey_images_take_augmentation_in_colour(method, folders, catalog):
    asked = spec(method, options={"augment": "color", "threshold": 9.0} if method == "datm" else {"augment": "color"})
    result = ddbench.run({**asked, "smoke": True}, catalog=catalog, **folders)
    assert result.score.n == 2


@every_method
def test_a_time_limit_does_not_count_the_experts(method, folders, catalog):
    """They are trained before the clock starts; the set of a run without an update is its start, and its rate."""
    result = ddbench.run({**spec(method, smoke=True), "time_limit": 0.001}, catalog=catalog, **folders)
    assert result.loop.steps == 0
    distilled = ddbench.DistilledSet.load(result.artifact.path)
    assert float(distilled.lrs) == pytest.approx(0.01)


def test_a_time_limit_within_the_experts_is_explained(make_prepared):
    """A task whose clock is over, as where a method trains its experts within the run."""
    prepared = make_prepared()
    late = replace(prepared.task(torch.Generator()), experts=prepared.experts.within(lambda: 0.0))
    with pytest.raises(ddbench.MissingPrerequisite, match="the time limit ended after 0 of 2 experts"):
        segments.open_experts(late, experts=2, expert_epochs=4, expert_lr=0.123, augment="", span=2)


@every_method
def test_a_file_with_an_expert_of_another_network_is_named(method, folders, catalog, cold_cache):
    ddbench.run(spec(method, smoke=True), catalog=catalog, **folders)
    [file] = cold_cache.glob("experts/*linear*/expert-00000.safetensors")
    ddbench.run(spec(method, smoke=True, network="mlp"), catalog=catalog, **folders)
    [other] = cold_cache.glob("experts/*mlp*/expert-00000.safetensors")
    shutil.copy(file, other)
    with pytest.raises(ddbench.DdbenchError, match="does not hold expert 0 of this network"):
        ddbench.run(spec(method, smoke=True, network="mlp", seed=1), catalog=catalog, **folders)

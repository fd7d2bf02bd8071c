"""IDC against the numbers of the authors' own code, its options, and what it says to tasks that it cannot take."""

import importlib
import json
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_matching.classwise import copy_state
from ddbench_matching.idc import coasting, cut_mixed, gradient_distance, mixed_tiles, restart, train_on_real
from torch import nn

from ddbench import DatasetInfo, DdbenchError, State, Unsupported, UsageError
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.contract.task import Task, cross_entropy
from ddbench.decoders import join_tiles
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.decoders import Decoders
from ddbench.networks import forward
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare

# The package has the method under the name of its module.
idc = importlib.import_module("ddbench_matching.idc")
GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "field_idc.npz"
SMALL = {"name": "convnet", "options": {"width": 8, "depth": 1}}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def distil(catalog, tmp_path):
    """Distil digits; return the set, its task and the logged losses."""

    def call(options: dict | None = None, change=lambda task: task, **fields: object):
        quick = {"outer_steps": 2, "network_images": 0, "real_batch": 8, **(options or {})}
        spec = {"method": {"name": "idc", "options": quick}, "network": SMALL, **fields}
        plan = plan_run(RunSpec.parse(spec), catalog)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run = Run(folder)
        task = change(prepare(plan, catalog).task(run.generator))
        distilled = plan.method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
        return distilled, task, [json.loads(line)["loss"] for line in run.log_path.read_text().splitlines()]

    return call


@pytest.fixture
def task(catalog) -> Task:
    plan = plan_run(RunSpec.parse({"method": "idc", "network": SMALL, "images_per_class": 2}), catalog)
    return prepare(plan, catalog).task(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        arrays = {key: file[key] for key in file.files if file[key].dtype.kind in "fi"}
    # Inputs are stored as float16; those are exactly the values used.
    return {k: torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a) for k, a in arrays.items()}


def network(golden: dict[str, torch.Tensor]) -> tuple[nn.Module, State]:
    """Return the network of the authors and its weights, stored with convolutions first, then norms."""
    width = int(golden["width"])
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, channels in enumerate((3, width, width), 1):
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"norm{block}"] = nn.GroupNorm(width, width)
        layers |= {f"relu{block}": nn.ReLU(), f"pool{block}": nn.AvgPool2d(2)}
    layers |= {"flatten": nn.Flatten(), "fc": nn.Linear(16 * width, 3)}
    module = nn.Sequential(layers).double()
    shapes = {name: weight.shape for name, weight in module.named_parameters()}
    names = sorted(shapes, key=lambda name: ("conv", "norm", "fc").index(name.split(".")[0].rstrip("123")))
    parts = golden["w0"].split([shapes[name].numel() for name in names])
    return module, State({name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)})


@pytest.mark.parametrize(
    ("decoding", "options", "metric"),
    [
        ("single", {}, "mse"),
        ("single", {}, "l1"),
        ("multi", {"undivided": True}, "l1"),
        ("bound", {"bound": 6}, "l1"),
    ],
)
def test_losses_and_gradients_are_those_of_the_authors(catalog, task, golden, decoding, options, metric):
    mean, std = (tuple(golden[name].tolist()) for name in ("mean", "std"))
    info = DatasetInfo("toy", ("a", "b", "c"), (3, 32, 32), mean, std, "image", "", False)
    task = replace(task, info=info, decode=partial(Decoders(catalog, info), **options))
    label, (module, state) = int(golden["class"]), network(golden)
    pixels = golden["data"][2 * label : 2 * label + 2].clone().requires_grad_()
    real = idc.normalised(task, golden["real_images"][label])
    images = idc.training_images(task, pixels, int(golden["factor"]))
    batches = [(x, torch.full((len(x),), label), cross_entropy) for x in (real, images)]
    loss = gradient_distance(module, state, *batches, metric)
    [grad] = torch.autograd.grad(loss, pixels)
    case = f"{decoding}_grad_{metric}"
    for value, expected in ((loss.detach(), golden[f"loss_{case}"]), (grad, golden[f"grad_data_{case}"])):
        assert float((value - expected).norm() / expected.norm()) < 1e-8


def test_the_start_is_that_of_the_authors(task, golden):
    """Two images of four tiles, here out of a class of eight known images in a known order."""
    images = golden["mix_images"].float()
    info = replace(task.info, sample_shape=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    known = replace(task.train, inputs=images, labels=torch.zeros(len(images), dtype=torch.int64), info=info)
    mixed = mixed_tiles(replace(task, train=known, info=info), 0, 2, torch.Generator().manual_seed(5))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    expected = join_tiles(images[order], 2, (32, 32))
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(join_tiles(images, 2, (32, 32)).double(), golden["mixed"])


def test_a_small_class_repeats_its_images_and_too_small_a_class_is_refused(task):
    few = replace(task, train=task.train[torch.cat([task.train.of_class(k)[:3] for k in range(10)])])
    pixels = mixed_tiles(few, 4, 2, torch.Generator().manual_seed(0))
    assert pixels.shape == (2, 1, 8, 8)
    assert pixels.min() >= 0 and pixels.max() <= 1
    greedy = replace(few, budget=replace(few.budget, images_per_class=4))
    with pytest.raises(UsageError, match="class '4' of digits has 3 training images, fewer than 4") as error:
        mixed_tiles(greedy, 4, 2, torch.Generator())
    assert error.value.hint.startswith("Ask for at most 3 of each class")


def test_one_step_for_all_classes_moves_images_as_steps_class_by_class_do():
    classes, rate, momentum = 4, 0.1, 0.5
    gradients = torch.randn(6, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, many = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    together = torch.optim.SGD([one], *coasting(rate, momentum, classes))
    in_turn = torch.optim.SGD([many], rate, momentum)
    for row in gradients:
        one.grad = row
        together.step()
        for label in range(classes):
            many.grad = torch.where(torch.arange(classes) == label, row, 0.0)
            in_turn.step()
        # The first class has coasted past all others when its next gradient is taken.
        torch.testing.assert_close(one[0], many[0])


def test_images_come_closer_in_gradients(distil):
    whole = {"outer_steps": 6, "real_batch": 1000, "augmentation": "", "image_rate": 0.05}
    _, _, losses = distil(whole, init="fixed")
    assert losses[-1] < 0.5 * losses[0]
    _, _, losses = distil({**whole, "metric": "l1", "image_rate": 0.005}, init="fixed")
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("augmentation", ["color", "color_crop_cutout", "color_crop_cutout_flip_scale_rotate"])
def test_real_and_synthetic_images_share_their_augmentation(distil, augmentation):
    """Where all real images of a class are the synthetic one, gradients differ only if views do; images are grey."""

    def single(task: Task) -> Task:
        firsts = torch.stack([task.train.of_class(label)[0] for label in range(10)])
        return replace(task, train=replace(task.train, inputs=task.train.inputs[firsts][task.train.labels]))

    options = {"factor": 1, "augmentation": augmentation, "outer_steps": 1}
    [matched] = distil(options, single, images_per_class=1)[2]
    [other] = distil(options, images_per_class=1)[2]
    assert matched < 1e-6 * other


def test_networks_train_between_updates_and_are_replaced(distil):
    alike = {"init": "fixed", "images_per_class": 1}
    still, trained = (distil({"network_images": count}, **alike)[2] for count in (0, 128))
    assert still[0] == trained[0] and still[1] != trained[1]
    kept, replaced = (distil({"network_steps": steps, "image_rate": 1e-9})[2] for steps in (2, 1))
    assert kept[0] == replaced[0] and kept[1] != replaced[1]


@pytest.mark.parametrize(("factor", "images"), [(2, 4), (3, 9)])
def test_a_set_stores_tiles_and_counts_as_few_images(distil, factor, images):
    """Sides of 8 pixels are not divisible by 3: grey is added where tiles are cut."""

    def flat_images(task: Task) -> Task:
        """Give all images of class k pixels of k / 10."""
        shades = idc.normalised(task, task.train.labels.div(10).view(-1, 1, 1, 1).expand_as(task.train.inputs))
        return replace(task, train=replace(task.train, inputs=shades))

    options = {"factor": factor, "image_rate": 1e-9}
    distilled, task, _ = distil(options, flat_images, images_per_class=2)
    assert (distilled.decoder, distilled.decoder_options) == ("tiles/v1", {"factor": factor})
    assert distilled.payload["images"].shape == (20, 1, 8, 8)
    assert distilled.stored_examples(task.info.sample_shape) == 20
    # Tile 0 of all stored images comes first, then tile 1.
    assert distilled.labels[0].view(images, 10, 2).eq(torch.arange(10)[:, None]).all()
    decoded = distilled.decoded(task.decode).inputs[0]
    assert decoded.shape == (20 * images, 1, 8, 8)
    # The first pixel of a tile, which no grey has reached.
    assert task.info.pixels(decoded)[:, 0, 0, 0].mul(10).round().eq(distilled.labels[0]).all()


def test_idc_i_stores_images_as_they_are(distil):
    distilled, _, _ = distil({"factor": 1}, images_per_class=3)
    assert (distilled.decoder, distilled.inputs.shape) == ("", (1, 30, 1, 8, 8))
    assert distilled.labels.tolist() == [[k for k in range(10) for _ in range(3)]]


def test_a_new_network_starts_over(task):
    start = task.networks.sample(1).network(0)
    student = copy_state(start)
    trainer = torch.optim.SGD(student.params.values(), 0.1, 0.9)
    train_on_real(task, student, trainer, 128, "", 0.0, torch.Generator().manual_seed(0))
    assert trainer.state
    assert not torch.equal(student.params["conv1.weight"], start.params["conv1.weight"])
    restart(student, trainer, start)
    assert not trainer.state
    assert torch.equal(student.params["conv1.weight"], start.params["conv1.weight"])


@pytest.mark.parametrize(("network_steps", "clamps"), [(1, True), (2, False)])
def test_pixels_are_clamped_where_a_new_network_starts(distil, monkeypatch, network_steps, clamps):
    largest, original = [], idc.training_images

    def watched(task, pixels, factor):
        largest.append(float(pixels.detach().abs().max()))
        return original(task, pixels, factor)

    monkeypatch.setattr(idc, "training_images", watched)
    distil({"network_steps": network_steps, "image_rate": 50.0})
    assert (max(largest) <= 1) == clamps


@pytest.mark.parametrize(("augmentation", "cutmix"), [("", 0), ("color_crop_cutout", 0), ("color_crop_cutout", 1)])
def test_networks_learn_from_real_images(task, augmentation, cutmix):
    student = copy_state(task.networks.sample(1).network(0))
    trainer = torch.optim.SGD(student.params.values(), 0.1, 0.9)

    def loss() -> float:
        return float(cross_entropy(forward(task.networks.module, student, task.train.inputs), task.train.labels))

    before = loss()
    train_on_real(task, student, trainer, 64 * 40, augmentation, cutmix, torch.Generator().manual_seed(0))
    assert loss() < 0.7 * before


def test_cutmix_weighs_labels_by_the_area_of_the_window():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 16, 16)
    labels = torch.arange(5)
    shares = []
    for seed in range(20):
        mixed, criterion = cut_mixed(
            images, labels, lambda z, y: y.double().dot(z), torch.Generator().manual_seed(seed)
        )
        foreign = mixed != images
        share = float(foreign.double().mean((1, 2, 3)).max())
        partner = torch.where(foreign.any(1), mixed[:, 0], images[:, 0]).sub(images[:, 0]).flatten(1)
        partner = labels + partner.gather(1, partner.abs().argmax(1, keepdim=True)).squeeze(1).long()
        logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = (1 - share) * labels.double().dot(logits) + share * partner.double().dot(logits)
        torch.testing.assert_close(criterion(logits, labels), expected)
        shares.append(share)
    assert min(shares) < 0.2 and max(shares) > 0.5


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        ("mnist", ("l1", 1e-4, 500)), ("fashion_mnist", ("l1", 1e-4, 500)), ("svhn", ("mse", 5e-3, 500)),
        ("cifar10", ("mse", 5e-3, 2000)), ("digits", ("mse", 5e-3, 2000)),
    ],
)  # fmt: skip
def test_the_recipe_is_the_published_one(catalog, dataset, options):
    plan = plan_run(RunSpec.parse({"method": "idc", "dataset": dataset, "images_per_class": 10}), catalog)
    chosen = plan.settings.method.options
    assert tuple(chosen[name] for name in ("metric", "image_rate", "network_images")) == options
    assert (chosen["outer_steps"], chosen["network_steps"], chosen["factor"]) == (200_000, 100, 2)
    asked = {"name": "idc", "options": {"metric": "l1"}}
    plan = plan_run(RunSpec.parse({"method": asked, "dataset": dataset, "images_per_class": 10}), catalog)
    assert plan.settings.method.options["metric"] == "l1"


def test_tasks_without_gradients_to_match_are_skipped_with_a_reason(distil):
    with pytest.raises(Unsupported, match="gradients of convolutions, and the network has none"):
        distil(network="mlp")

    def one_class(task: Task) -> Task:
        info = replace(task.info, classes=("0",))
        return replace(task, info=info, train=replace(task.train[task.train.of_class(0)], info=info))

    with pytest.raises(Unsupported, match="digits has one class only"):
        distil(change=one_class)
    with pytest.raises(Unsupported, match="takes images"):
        distil(change=lambda task: replace(task, info=replace(task.info, sample_shape=(64,))))
    with pytest.raises(Unsupported, match="differentiable loss"):
        distil(change=lambda task: replace(task, objective=replace(task.objective, loss=None)))


def test_options_that_do_not_fit_are_refused_with_advice(distil):
    with pytest.raises(UsageError, match="9 x 9 tiles do not fit into images of 8x8 pixels") as error:
        distil({"factor": 9})
    assert error.value.hint == "Set factor to 8 or less; 2 is usual."
    with pytest.raises(UsageError, match="unknown operation 'colour'"):
        distil({"augmentation": "colour_crop"})
    with pytest.raises(UsageError, match="fewer than 500"):
        distil(images_per_class=500)


def test_under_poisoning_the_attacked_class_has_the_targets_label(distil):
    poisoning = {"name": "poisoning", "options": {"attack_class": 3, "target_class": 8}}
    distilled, _, _ = distil({"network_images": 64}, objective=poisoning, images_per_class=1)
    assert torch.bincount(distilled.labels.flatten(), minlength=10).tolist() == [4, 4, 4, 0, 4, 4, 4, 4, 8, 4]


def test_a_diverging_rate_is_reported_after_roll_backs(distil):
    with pytest.raises(DdbenchError, match="diverged again after 5 roll-backs"):
        distil({"outer_steps": 40, "image_rate": 1e38})


def test_the_published_figures_have_experiments(catalog):
    experiments = [e for e in catalog.experiments() if e.spec["method"]["name"] == "idc"]
    figures = {e.name.removeprefix("kim2022/"): round(100 * e.published.mean, 1) for e in experiments}
    assert len(figures) == 24
    rows = {
        "cifar10-idc": [50.6, 67.5, 74.5], "mnist-idc": [94.2, 98.4, 99.1], "fashion-mnist-idc": [81.0, 86.0, 86.2],
        "svhn-idc": [68.5, 87.5, 90.1], "cifar10-idc-i": [36.7, 58.3, 69.5], "mnist-idc-i": [88.9, 98.0, 98.8],
        "fashion-mnist-idc-i": [70.7, 85.3, 89.1], "svhn-idc-i": [46.7, 77.0, 87.9],
    }  # fmt: skip
    for name, row in rows.items():
        assert [figures[f"{name}-ipc{count}"] for count in (1, 10, 50)] == row
    for experiment in experiments:
        factor = plan_run(RunSpec.parse(experiment.spec), catalog).settings.method.options["factor"]
        assert factor == (1 if "-idc-i-" in experiment.name else 2)

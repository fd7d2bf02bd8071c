"""DC, DSA and DM against the numbers of the authors' code, and what they tell users."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_matching import distributions, gradients
from torch import Tensor, nn

from ddbench import DatasetInfo, DdbenchError, Unsupported, UsageError, augment
from ddbench.builtin.networks import convnet
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.networks import State
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare

SMALL = {"name": "convnet", "options": {"width": 8, "depth": 1}}
GOLDEN = Path(__file__).parents[3] / "tests" / "golden"


def network_at(w0: Tensor, classes: int, norm: str = "instance") -> tuple[nn.Module, State]:
    """Return the ConvNet of both papers and its state at the flat weights `w0`."""
    info = DatasetInfo("x", tuple(map(str, range(classes))), (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)
    module = convnet(info, width=16, norm=norm).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}
    parts = torch.split(w0, [shape.numel() for shape in shapes.values()])
    return module, State({name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)})


def golden(name: str) -> dict[str, Tensor]:
    arrays = np.load(GOLDEN / f"field_{name}.npz")
    return {key: torch.tensor(array.astype(float)) for key, array in arrays.items() if array.dtype.kind == "f"}


def relative(actual: Tensor, reference: Tensor) -> float:
    return float((actual.detach() - reference).norm() / reference.norm())


def test_gradient_matching_equals_the_authors_code():
    numbers = golden("dc")
    module, state = network_at(numbers["w0"], 4)
    losses, grads = [], []
    for label, real in enumerate(numbers["real_images"]):
        images = numbers["syn_images"][2 * label : 2 * label + 2].requires_grad_()
        labels = torch.full((8,), label)
        loss = gradients.matching_loss(module, state, (real, labels), (images, labels[:2]))
        losses.append(loss.detach())
        grads += torch.autograd.grad(loss, images)
    assert relative(torch.stack(losses), numbers["loss_per_class_ours"]) < 1e-8
    assert relative(torch.stack(losses).sum(), numbers["loss_ours"]) < 1e-8
    assert relative(torch.cat(grads), numbers["grad_images_ours"]) < 1e-8


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_distribution_matching_equals_the_authors_code(norm):
    numbers, suffix = golden("dm"), "_batchnorm" if norm == "batch" else ""
    module, state = network_at(numbers[f"w0{suffix}"], 10, norm)
    images = numbers["syn_images"].requires_grad_()
    loss = distributions.matching_loss(module, state, list(numbers["real_images"]), list(images.split(2)))
    [grad] = torch.autograd.grad(loss, images)
    assert relative(loss, numbers[f"loss{suffix}"]) < 1e-8
    assert relative(grad, numbers[f"grad_images{suffix}"]) < 1e-8


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def distil(catalog, tmp_path):
    """Distil digits; return the set, its task and the run."""

    def call(method: str, options: dict | None = None, change=lambda task: task, steps=None, **fields: object):
        quick = {"outer_steps": 3} if method == "dm" else {"networks": 2, "updates": 2, "inner_epochs": 1}
        choice = {"name": method, "options": {**quick, "real_batch": 8, **(options or {})}}
        plan = plan_run(RunSpec.parse({"method": choice, "network": SMALL, **fields}), catalog)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run = Run(folder)
        task = change(prepare(plan, catalog).task(run.generator))
        distilled = plan.method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
        return distilled, task, run

    return call


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_images_of_every_class_move_from_real_ones_or_noise(distil, method):
    distilled, task, run = distil(method, {"start": "real"}, images_per_class=2)
    assert distilled.labels.flatten().bincount().tolist() == [2] * 10
    losses = [json.loads(line)["loss"] for line in run.log_path.read_text().splitlines()]
    assert all(loss > 0 for loss in losses)
    distances = torch.cdist(distilled.flat()[0].flatten(1), task.train.inputs.flatten(1)).min(1).values
    assert (distances > 0).all()
    noise, _, _ = distil(method, {"start": "noise"}, images_per_class=2)
    assert torch.cdist(noise.flat()[0].flatten(1), task.train.inputs.flatten(1)).min() > distances.max()


def test_the_network_of_dc_trains_on_the_images_between_updates_and_is_replaced(distil, monkeypatch):
    seen = []
    inner = gradients.matching_loss

    def recorded(network, state, *others):
        seen.append(torch.cat([w.flatten() for w in state.params.values()]))
        return inner(network, state, *others)

    monkeypatch.setattr(gradients, "matching_loss", recorded)
    distil("dc", {"networks": 2, "updates": 2, "network_rate": 1e-3})
    first, second, third = (torch.stack(seen[10 * i : 10 * i + 10]) for i in range(3))
    assert torch.equal(first[0], first[9])  # one network for all classes
    step, replaced = (second[0] - first[0]).norm(), (third[0] - second[0]).norm()
    assert 0 < step < replaced / 10


def test_batch_normalisation_takes_statistics_of_all_classes(distil):
    network = {"name": "convnet", "options": {"width": 8, "depth": 1, "norm": "batch"}}
    seen = {}

    def change(task):
        seen["module"] = task.networks.module
        return task

    distilled, task, _ = distil("dc", change=change, network=network)
    assert torch.isfinite(distilled.inputs).all()
    state = task.networks.sample(1).network(0)
    mixed = gradients.with_statistics(task, state, torch.Generator().manual_seed(0))
    assert not torch.equal(mixed.buffers["norm1.running_mean"], state.buffers["norm1.running_mean"])
    assert all(torch.equal(mixed.params[name], w) for name, w in state.params.items())


def test_views_are_drawn_for_each_class_and_shared_by_both_sides(distil, monkeypatch):
    applied = []
    apply = augment.apply
    monkeypatch.setattr(augment, "apply", lambda images, params: applied.append(params) or apply(images, params))
    distil("dm", {"outer_steps": 1})
    assert len(applied) == 20
    assert all(applied[i] is applied[i + 1] for i in range(0, 20, 2))
    assert len({id(params) for params in applied}) == 10


@pytest.mark.parametrize("method", ["dsa", "dm"])
def test_published_settings_follow_dataset_and_images(catalog, method):
    def settings(dataset: str, images: int) -> dict:
        spec = {"method": method, "dataset": dataset, "network": "convnet", "images_per_class": images}
        return plan_run(RunSpec.parse(spec), catalog).settings.method.options

    assert "flip" not in settings("mnist", 1)["augmentation"]
    assert "flip" in settings("cifar10", 1)["augmentation"]
    if method == "dm":
        assert [settings("cifar10", images)["image_rate"] for images in (50, 100)] == [1, 10]
    else:
        loops = [(s["updates"], s["inner_epochs"]) for s in (settings("cifar10", images) for images in (1, 10, 50))]
        assert loops == [(1, 1), (10, 50), (50, 10)]


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_a_task_that_cannot_be_served_is_named(distil, method):
    def one_class(task):
        info = replace(task.info, classes=("zero",))
        return replace(task, info=info, train=replace(task.train[task.train.of_class(0)], info=info))

    with pytest.raises(Unsupported, match="one class only"):
        distil(method, change=one_class)
    with pytest.raises(UsageError, match="fewer than 500"):
        distil(method, {"start": "real"}, images_per_class=500)
    with pytest.raises(DdbenchError, match="diverged"):
        distil(method, {"image_rate": 1e38, "networks": 5} if method != "dm" else {"image_rate": 1e38})


@pytest.mark.parametrize("method", ["dsa", "dm"])
def test_colours_of_grey_images_are_no_trouble_and_an_unknown_operation_is(distil, method):
    assert torch.isfinite(distil(method, {"augmentation": "color"})[0].inputs).all()
    with pytest.raises(UsageError, match="unknown operation 'colour'"):
        distil(method, {"augmentation": "colour"})


def test_dm_needs_features(distil):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10, 1))

        def forward(self, images):
            return images.flatten(1)[:, :10] * self.scale.flatten()

    def without_layer(task):
        task.networks.module = Bare()
        return task

    with pytest.raises(Unsupported, match="no last linear layer"):
        distil("dm", change=without_layer)

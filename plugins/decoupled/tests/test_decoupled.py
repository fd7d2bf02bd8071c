"""Methods with teachers against the authors' numbers, and what they tell users."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_decoupled import activations, batch_statistics, crops
from ddbench_decoupled.labelled import herd
from ddbench_decoupled.teacher import answers
from torch import Tensor, nn

from ddbench import DatasetInfo, State, Unsupported, UsageError
from ddbench.contract.run import Run
from ddbench.contract.spec import Choice, RunSpec
from ddbench.decoders import join_tiles
from ddbench.discovery.catalog import Catalog
from ddbench.engine.views import read_views
from ddbench.networks import TrainedNetworks
from ddbench.pipeline.plan import plan_run, reason_to_skip
from ddbench.pipeline.prepare import prepare
from ddbench.pipeline.teachers import imagenet_numbers

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
SMALL = {"name": "convnet", "options": {"width": 8, "depth": 1, "norm": "batch"}}


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"field_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files if file[key].dtype.kind in "fi"}
    # Inputs are stored as float16; those are exactly the values used.
    return {k: torch.from_numpy(np.asarray(a, np.float64 if a.dtype.kind == "f" else None)) for k, a in arrays.items()}


def relative(actual: Tensor, reference: Tensor) -> float:
    assert actual.shape == reference.shape
    return float((actual.detach() - reference).norm() / reference.norm())


def teacher(numbers: dict[str, Tensor], classes: int) -> tuple[nn.Module, State]:
    width, layers, channels = int(numbers["width"]), OrderedDict[str, nn.Module](), 3
    for block in (1, 2, 3):
        layers |= {f"conv{block}": nn.Conv2d(channels, width, 3, padding=1), f"norm{block}": nn.BatchNorm2d(width)}
        layers |= {f"relu{block}": nn.ReLU(), f"pool{block}": nn.AvgPool2d(2)}
        channels = width
    layers |= {"flatten": nn.Flatten(), "fc": nn.Linear(16 * channels, classes)}
    module = nn.Sequential(layers).double().eval()
    own = dict(module.named_parameters())
    # The authors' order: all convolutions, then all norms, then fc.
    order = [name for kind in ("conv", "norm", "fc") for name in own if name.startswith(kind)]
    parts = numbers["w0"].split([own[name].numel() for name in order])
    params = {name: part.view(own[name].shape) for name, part in zip(order, parts, strict=True)}
    buffers = {name: numbers[name] for name, _ in module.named_buffers() if name in numbers}
    return module, State(params, buffers)


@pytest.mark.parametrize("case", ["plain", "imagenet", "priors"])
def test_sre2l_equals_the_authors_code(case):
    numbers = golden("sre2l")
    module, state = teacher(numbers, 6)
    images = numbers["images"].requires_grad_()
    first, weight, smoothness, length = numbers[f"hyper_{case}"].tolist()
    value = batch_statistics.terms(module, state, images, numbers["labels"])
    assert relative(torch.stack(list(value.layers)), numbers["loss_per_layer"]) < 1e-8
    assert relative(value.variation, numbers["image_prior_l1_l2"][1]) < 1e-8
    assert relative(value.length, numbers["mean_image_l2"]) < 1e-8
    assert relative(value.cross_entropy, numbers[f"loss_ce_{case}"]) < 1e-8
    matched = value.statistics(first)
    assert relative(matched, numbers[f"loss_bn_{case}"]) < 1e-8
    loss = value.cross_entropy + weight * matched + smoothness * value.variation + length * value.length
    assert relative(loss, numbers[f"loss_{case}"]) < 1e-8
    grad_bn, grad = (torch.autograd.grad(part, [images], retain_graph=True)[0] for part in (matched, loss))
    if case != "priors":  # its part of the statistics is that of imagenet
        assert relative(grad_bn, numbers[f"grad_bn_{case}"]) < 1e-8
    assert relative(grad, numbers[f"grad_images_{case}"]) < 1e-8


def test_sre2l_clips_to_the_range_of_pixels():
    numbers = golden("sre2l")
    info = DatasetInfo("x", ("a", "b"), (3, 8, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "image", "", True)
    assert relative(batch_statistics.clipped(numbers["clip_in"], info), numbers["clip_out"]) < 1e-8


def test_rded_chooses_as_the_authors_code():
    numbers = golden("rded")
    module, state = teacher(numbers, 5)
    scores = crops.scores(module, state, numbers["crops"], numbers["labels"], (32, 32))
    assert relative(scores, numbers["scores"]) < 1e-8
    images, chosen = crops.select(scores, int(numbers["keep"]))
    assert images.tolist() == numbers["selected_image"].tolist()
    assert chosen.tolist() == numbers["selected_crop"].tolist()
    selected = numbers["crops"][images, chosen]
    assert torch.equal(selected, numbers["selected"])
    assert torch.equal(join_tiles(selected, 2, (32, 32)), numbers["mixed"])
    assert torch.equal(join_tiles(numbers["mix3_in"], 3, (32, 32)), numbers["mix3_out"])


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def distil(catalog, tmp_path):
    """Distil digits; return the set and its task."""

    def call(method: str, options: dict | None = None, **fields: object):
        quick = {
            "rded": {"candidates": 20, "teacher_steps": 30},
            "sre2l": {"outer_steps": 3, "teacher_steps": 30},
            "activation_statistics": {"outer_steps": 3, "teacher_steps": 30},
            "teacher_labels": {"epochs": 1},
            "ensemble_labels": {"count": 2, "teacher_steps": 30},
        }
        choice = {"name": method, "options": {**quick[method], **(options or {})}}
        plan = plan_run(RunSpec.parse({"method": choice, "network": SMALL, **fields}), catalog)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run = Run(folder)
        prepared = prepare(plan, catalog)
        task = prepared.task(run.generator)
        distilled = plan.method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
        return distilled, task, prepared

    return call


def teacher_named(prepared) -> TrainedNetworks:
    """Return the teacher that the method of a prepared run takes its labels from."""
    return prepared.plan.method.facts["needs"](prepared.task(torch.Generator()), **prepared.settings.method.options)


METHODS = ("activation_statistics", "ensemble_labels", "rded", "sre2l", "teacher_labels")


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_views_belong_to_the_images(method, distil):
    distilled, task, prepared = distil(method, {"labels": "views", "view_epochs": 2}, images_per_class=2)
    images, classes = distilled.flat()[0], len(task.info.classes)
    views, logits = read_views(distilled.extras, images, classes)
    asked = prepared.asked_by_method()
    assert len(asked) == 1
    needed = prepared.plan.method.facts["needs"](task, **prepared.settings.method.options)
    teachers = [needed] if isinstance(needed, TrainedNetworks) else needed
    for epoch in range(2):
        for place, seen in views.batches(images, epoch):
            expected = answers(teachers, seen)
            torch.testing.assert_close(logits[epoch, place], expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(UsageError, match="belong to other images"):
        read_views(distilled.extras, images + 1, classes)
    with pytest.raises(UsageError, match="damaged"):
        read_views({**distilled.extras, "view_order": distilled.extras["view_order"] * 0}, images, classes)


def test_rded_takes_crops_that_the_teacher_finds_easier_than_random_ones(distil):
    distilled, task, prepared = distil("rded", {"candidates": 100}, images_per_class=2, steps=1)
    trained = teacher_named(prepared)
    chosen = crops.scores(trained.module, trained[0], distilled.inputs.transpose(0, 1), distilled.labels[0], (8, 8))
    real = task.train.random_subset(2, torch.Generator().manual_seed(0))
    others = crops.scores(trained.module, trained[0], real.inputs[:, None], real.labels, (8, 8))
    assert chosen.mean() < 0.8 * others.mean()


def test_sre2l_lowers_its_loss_and_leaves_no_pixel_outside(distil):
    few, task, _ = distil("sre2l", {"outer_steps": 1})
    many, _, prepared = distil("sre2l", {"outer_steps": 60})
    trained = teacher_named(prepared)
    parts = [batch_statistics.terms(trained.module, trained[0], *made.flat()) for made in (few, many)]
    first, last = (float(part.cross_entropy + part.statistics(1.0)) for part in parts)
    assert last < 0.5 * first
    assert -1e-5 <= float(task.info.pixels(many.inputs).min()) <= float(task.info.pixels(many.inputs).max()) <= 1 + 1e-5


def test_activation_statistics_are_those_of_the_class():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    state = State({name: w.detach() for name, w in module.named_parameters()})
    images = torch.randn(40, 1, 2, 3)
    trained = TrainedNetworks(module, (state,))
    hidden, top = activations.record(trained, lambda: images.split(7), False)
    below, above = activations.activations(trained, images)
    torch.testing.assert_close(hidden.mean, below.mean(0).detach())
    torch.testing.assert_close(hidden.root, below.std(0, correction=0).detach())
    torch.testing.assert_close(top.root @ top.root.T, torch.cov(above.T, correction=0).detach(), rtol=1e-4, atol=1e-5)
    [only] = activations.record(trained, lambda: images.split(7), True)
    assert torch.equal(only.mean, top.mean)
    drawn = top.draw(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(above.T).detach(), rtol=0.1, atol=0.01)
    # One unit off by 2 above zero; one by 4 below zero, where relu hides it in all layers but the last.
    off, target = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, -5.0]])
    assert float(activations.distance([off], [target])) == 10.0
    assert float(activations.distance([off, off], [target, target])) == 12.0
    assert float(activations.distance([off, target], [target])) == 0.0


def test_images_of_activation_statistics_have_their_class(distil):
    for layers in ("top_layer", "all_layers"):
        options = {"outer_steps": 100, "layers": layers, "teacher_steps": 200}
        distilled, _, _ = distil("activation_statistics", options, images_per_class=2, steps=1)
        answered = distilled.labels.argmax(-1)[0]
        assert (answered == torch.arange(10).repeat_interleave(2)).float().mean() > 0.7
        assert distilled.kind == "distribution"


def test_herding_keeps_the_mean():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    chosen = herd(features, 10)
    assert len(set(chosen.tolist())) == 10
    assert (features[chosen].mean(0) - features.mean(0)).norm() < 0.2 * features.std()


def test_more_teachers_and_architectures_mix_their_answers(distil):
    options = {"count": 2, "networks": ["linear", SMALL]}
    distilled, _, prepared = distil("ensemble_labels", options)
    assert [facts["networks"] for facts in prepared.asked_by_method().values()] == [2, 2]
    assert distilled.kind == "distribution"
    with pytest.raises(UsageError, match="no network called 'nonesuch'"):
        distil("ensemble_labels", {"networks": ["nonesuch"]})


def test_what_cannot_be_done_is_said(distil, catalog):
    with pytest.raises(Unsupported, match="running statistics of batch normalisation, and the teacher has none"):
        distil("sre2l", {"teacher": "linear"})
    with pytest.raises(UsageError, match="crops do not fit"):
        distil("rded", {"factor": 9})
    with pytest.raises(UsageError, match="fewer than"):
        distil("rded", {"factor": 8}, images_per_class=10)
    plan = plan_run(RunSpec.parse({"method": "rded", "objective": "poisoning"}), catalog)
    assert "labels from a classifier" in reason_to_skip(plan)


def write_weights(path: Path, classes: int = 10, **options: object) -> Path:
    info = DatasetInfo("x", tuple(map(str, range(classes))), (1, 8, 8), (0.0,), (1.0,), "image", "", True)
    component, choice = Catalog().resolve("network", Choice.from_name({"name": "convnet", "options": options}), info)
    torch.save(component.call(choice.options, info).state_dict(), path)
    return path


@pytest.mark.parametrize("options", [{"width": 8, "depth": 1, "norm": "batch"}])
def test_a_teacher_from_a_file_is_in_the_record(options, distil, tmp_path):
    path = write_weights(tmp_path / "teacher.pth", **options)
    _, _, prepared = distil("rded", {"weights": str(path), "labels": "teacher"})
    [(name, facts)] = prepared.asked_by_method().items()
    assert name == "teachers/teacher.pth"
    assert facts["classes"] == 10 and len(facts["sha256"]) == 64 and 0 <= facts["accuracy"] <= 1
    trained = teacher_named(prepared)
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in trained[0].params.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": 7, "width": 8, "depth": 1, "norm": "batch"}, "knows 7 classes, and digits has 10"),
        ({"width": 9, "depth": 1, "norm": "batch"}, "belongs to another network: it has another shape of"),
        ({"width": 8, "depth": 2, "norm": "batch"}, "belongs to another network"),
        ({"classes": 1000, "width": 8, "depth": 1, "norm": "batch"}, "and '0' is not among them"),
    ],
)  # fmt: skip
def test_a_file_of_another_teacher_is_refused(content, message, distil, tmp_path):
    path = write_weights(tmp_path / "teacher.pth", **content)
    with pytest.raises(UsageError, match=message):
        distil("rded", {"weights": str(path)})


def test_files_without_weights_are_refused(distil, tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        distil("rded", {"weights": str(tmp_path / "nothing.pth")})
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UsageError, match=r"text\.pth"):
        distil("rded", {"weights": str(tmp_path / "text.pth")})


def test_classes_of_imagenet_are_found_by_number_and_by_name():
    assert imagenet_numbers(["n01440764", "English springer", "parachute"]) == [0, 217, 701]
    with pytest.raises(UsageError, match="'teapots' is not among them"):
        imagenet_numbers(["tench", "teapots"])

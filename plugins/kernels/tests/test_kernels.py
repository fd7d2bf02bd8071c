"""KIP, label solve and FRePo against published numbers, and what they tell users."""

import copy
import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_kernels import feature_regression, inducing_points, solved_labels
from ddbench_kernels.pool import Pool, half_squared_error
from ddbench_kernels.targets import balanced_batch, centred
from torch import Tensor, nn

from ddbench import DdbenchError, ExampleSet, State, Unsupported, UsageError
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.kernels import predictions, relu_ntk, ridge_coefficients
from ddbench.networks import features, forward
from ddbench.pipeline.plan import plan_run, reason_to_skip
from ddbench.pipeline.prepare import prepare
from ddbench.protocols.krr import KRR_V1, predict

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
METHODS = ("kip", "label_solve", "frepo")
SMALL = {"name": "convnet", "options": {"width": 8, "depth": 1}}


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"field_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files if file[key].dtype.kind in "fi"}
    # Inputs are stored as float16; those are exactly the values used.
    return {k: torch.from_numpy(np.asarray(a, np.float64 if a.dtype.kind == "f" else None)) for k, a in arrays.items()}


def relative(actual: Tensor, reference: Tensor) -> float:
    assert actual.shape == reference.shape
    return float((actual.detach() - reference).norm() / reference.norm())


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def distil(catalog, tmp_path):
    """Distil digits; return the set, its task and the logged losses."""

    def call(method: str, options: dict | None = None, change=lambda task: task, **fields: object):
        quick = {
            "kip": {"outer_steps": 3, "real_batch": 200},
            "label_solve": {},
            "frepo": {"outer_steps": 3, "real_batch": 64, "pool": 2},
        }
        choice = {"name": method, "options": {**quick[method], **(options or {})}}
        plan = plan_run(RunSpec.parse({"method": choice, "network": SMALL, **fields}), catalog)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run = Run(folder)
        task = change(prepare(plan, catalog).task(run.generator))
        distilled = plan.method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
        logged = [json.loads(line) for line in run.log_path.read_text().splitlines()]
        return distilled, task, [line.get("loss") for line in logged]

    return call


def own_score(distilled, task) -> float:
    """Return the accuracy under krr/v1 on the training images."""
    answers = predict(distilled, task.train.inputs, len(task.info.classes))
    return float((answers.argmax(1) == task.train.labels).double().mean())


@pytest.mark.parametrize("block", [inducing_points.BLOCK, 24, 1])
@pytest.mark.parametrize("depth", [1, 2])
def test_kip_equals_the_published_formula_in_blocks_of_any_size(depth, block):
    numbers = golden("kip")
    loss, grad_images, grad_labels = inducing_points.loss_and_gradients(
        numbers["syn_images"],
        numbers["syn_labels_centred"],
        numbers["real_images"],
        numbers["real_labels_centred"],
        depth=depth,
        ridge=float(numbers["reg"]),
        block=block,
    )
    assert relative(loss, numbers[f"loss_depth{depth}"]) < 1e-8
    assert relative(grad_images, numbers[f"grad_images_depth{depth}"]) < 1e-8
    assert relative(grad_labels, numbers[f"grad_labels_depth{depth}"]) < 1e-8


def frepo_network(numbers: dict[str, Tensor]) -> tuple[nn.Module, State]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block in range(3):
        width = int(numbers["width"]) * 2**block
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers |= {f"relu{block}": nn.ReLU(), f"pool{block}": nn.AvgPool2d(2)}
        channels = width
    layers |= {"flatten": nn.Flatten(), "fc": nn.Linear(16 * channels, 6)}
    module = nn.Sequential(layers).double()
    convolutions = {name: w for name, w in module.named_parameters() if name.startswith("conv")}
    parts = numbers["w0"].split([w.numel() for w in convolutions.values()])
    params = {name: part.view(w.shape) for (name, w), part in zip(convolutions.items(), parts, strict=True)}
    return module, State({**params, **{n: w.detach() for n, w in module.named_parameters() if n not in params}})


@pytest.mark.parametrize("case", ["", "_flip", "_reg1e-2"])
def test_frepo_equals_the_authors_code(case):
    numbers = golden("frepo")
    module, state = frepo_network(numbers)
    images = numbers["syn_images"].requires_grad_()
    labels = numbers["syn_labels_centred"].requires_grad_()
    views, view_labels = feature_regression.with_mirrored(images, labels) if case == "_flip" else (images, labels)
    real = features(module, state, numbers["real_images"]).detach()
    error = feature_regression.regression_loss(
        features(module, state, views),
        view_labels,
        real,
        centred(numbers["real_classes"], int(numbers["num_classes"])),
        1e-2 if case == "_reg1e-2" else float(numbers["reg"]),
    )
    assert relative(error, numbers[f"kernel_loss{case}"]) < 1e-8
    if case == "_reg1e-2":
        [grad_images] = torch.autograd.grad(error, [images])
        assert relative(grad_images, numbers[f"grad_images{case}"]) < 1e-8
        return
    margin = feature_regression.margin_loss(labels)
    assert relative(margin, numbers[f"label_loss{case}"]) < 1e-8
    assert relative(error + margin, numbers[f"loss{case}"]) < 1e-8
    grad_images, grad_labels = torch.autograd.grad(error + margin, [images, labels])
    assert relative(grad_images, numbers[f"grad_images{case}"]) < 1e-8
    assert relative(grad_labels, numbers[f"grad_labels{case}"]) < 1e-8


def test_equal_images_give_a_finite_gradient():
    """Images start as real ones, which batches hold too: there, the angle of the kernel has no derivative."""
    numbers = golden("kip")
    images = numbers["real_images"][[0, 0, 1, 2]]
    targets = numbers["real_labels_centred"]
    loss, grad_images, _ = inducing_points.loss_and_gradients(
        images, targets[[0, 0, 1, 2]], numbers["real_images"], targets, depth=2
    )
    assert torch.isfinite(loss) and torch.isfinite(grad_images).all()
    step = 1e-3 * grad_images / grad_images.norm()
    lower, *_ = inducing_points.loss_and_gradients(
        images - step, targets[[0, 0, 1, 2]], numbers["real_images"], targets, depth=2
    )
    assert lower < loss


def test_solved_labels_are_the_best_for_the_regression():
    numbers = golden("kip")
    rows, real = numbers["syn_images"].flatten(1), numbers["real_images"].flatten(1)
    kernel, cross, targets = relu_ntk(rows), relu_ntk(real, rows), numbers["real_labels_centred"]
    labels = solved_labels.solved(kernel, cross.T @ cross, cross.T @ targets, 1e-6)
    answers = predictions(real, rows, ridge_coefficients(kernel, labels, 1e-6))
    expected = cross @ torch.linalg.lstsq(cross, targets).solution
    torch.testing.assert_close(answers, expected, rtol=1e-6, atol=1e-6)
    other = predictions(real, rows, ridge_coefficients(kernel, numbers["syn_labels_centred"], 1e-6))
    assert (answers - targets).norm() < 0.9 * (other - targets).norm()


def test_labels_are_solved_in_blocks_as_at_once(distil, monkeypatch):
    whole, _, logged = distil("label_solve", images_per_class=10)
    assert len(logged) == 1
    monkeypatch.setattr(solved_labels, "BLOCK", 1)
    parts, _, logged = distil("label_solve", images_per_class=10)
    assert len(logged) > 10
    torch.testing.assert_close(parts.labels, whole.labels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"depth": 2}])
def test_label_solve_keeps_real_images_and_beats_their_own_labels(distil, options):
    distilled, task, _ = distil("label_solve", options, images_per_class=3)
    assert distilled.kind == "regression" and distilled.labels.shape == (1, 30, 10)
    real = task.train.inputs.flatten(1)
    assert (distilled.inputs[0].flatten(1)[:, None] == real).all(2).any(1).all()
    hard = replace(distilled, labels=torch.arange(10).repeat_interleave(3)[None], label_kind="class")
    if options.get("depth", 1) == 1:
        assert own_score(distilled, task) > own_score(hard, task) + 0.02


@pytest.mark.parametrize("learn_labels", [False, True])
def test_kip_brings_its_loss_down_and_its_score_up(distil, learn_labels):
    options = {"outer_steps": 20, "real_batch": 500, "learn_labels": learn_labels}
    first, task, _ = distil("kip", {**options, "outer_steps": 1, "rate": 1e-9}, images_per_class=2)
    distilled, _, losses = distil("kip", options, images_per_class=2)
    assert losses[-1] < 0.8 * losses[0]
    assert own_score(distilled, task) > own_score(first, task) + 0.05
    assert distilled.kind == ("regression" if learn_labels else "class")
    assert not torch.equal(distilled.inputs, first.inputs)


def test_learned_labels_are_scored_as_if_centred(distil):
    """One number added to all values moves all predictions alike: neither accuracy nor loss of krr/v1 changes."""
    distilled, task, _ = distil("kip", {"learn_labels": True}, images_per_class=1)
    assert distilled.labels.min() == 0
    centred_set = replace(distilled, labels=distilled.labels - distilled.labels.mean())
    answers, expected = (predict(part, task.train.inputs, 10) for part in (distilled, centred_set))
    torch.testing.assert_close(answers.softmax(1), expected.softmax(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(answers.argmax(1), expected.argmax(1))
    assert KRR_V1.definition["depth"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["lamb", "adam"])
def test_frepo_learns_images_and_labels(distil, optimiser):
    rate = 0.02 if optimiser == "lamb" else 0.05
    options = {"outer_steps": 20, "real_batch": 500, "optimiser": optimiser, "rate": rate, "network_rate": 1e-9}
    distilled, _, losses = distil("frepo", options, images_per_class=1, init="fixed")
    assert losses[-1] < losses[0] - 0.05
    assert distilled.kind == "regression"
    start, _, _ = distil("frepo", {**options, "outer_steps": 1, "rate": 1e-9}, images_per_class=1, init="fixed")
    assert (distilled.labels - start.labels).abs().max() > 1e-3
    fixed, _, _ = distil("frepo", {**options, "learn_labels": False}, images_per_class=1, init="fixed")
    assert fixed.kind == "class" and fixed.labels[0].tolist() == list(range(10))


def test_lamb_moves_each_tensor_in_proportion_to_its_length():
    small, large = (torch.full((4,), value, requires_grad=True) for value in (0.1, 10.0))
    optimizer = feature_regression.optimizer_of("lamb", [small, large], 0.01)
    small.grad, large.grad = torch.ones(4) * 1e3, torch.ones(4) * 1e-3
    optimizer.step()
    torch.testing.assert_close(small.detach(), torch.full((4,), 0.1 * 0.99))
    torch.testing.assert_close(large.detach(), torch.full((4,), 10.0 * 0.99), rtol=1e-4, atol=0)


@pytest.fixture
def networks(catalog):
    """Networks with batch normalisation, and digits to train them on."""
    network = {"name": "convnet", "options": {"width": 4, "depth": 1, "norm": "batch"}}
    plan = plan_run(RunSpec.parse({"method": "frepo", "network": network}), catalog)
    task = prepare(plan, catalog).task(torch.Generator().manual_seed(0))
    return task.networks, task.train.inputs[:40], centred(task.train.labels[:40], 10)


def test_members_of_the_pool_train_grow_old_and_are_replaced(networks):
    source, images, labels = networks
    pool = Pool(source, 3, 6, 1e-2, torch.Generator().manual_seed(0))
    assert [member.age for member in pool.members] == [0, 2, 4]
    assert len({id(pool.draw()) for _ in range(50)}) == 3
    member = pool.members[0]
    before = member.network

    def loss() -> float:
        return float(half_squared_error(forward(source.module, member.network, images), labels.float()))

    start = loss()
    for _ in range(7):
        pool.train(member, images, labels)
    assert member.age == 7 and loss() < 0.9 * start
    assert not torch.equal(member.network.buffers["norm1.running_mean"], before.buffers["norm1.running_mean"])
    assert member.adam["state"][0]["step"] == 7
    trained = member.network
    pool.train(member, images, labels)
    assert member.age == 0 and member.adam == {}
    assert not torch.equal(member.network.params["conv1.weight"], trained.params["conv1.weight"])


def test_a_pool_goes_on_from_its_state(networks):
    source, images, labels = networks
    first = Pool(source, 2, 9, 1e-2, torch.Generator().manual_seed(0))
    first.train(first.members[1], images, labels)
    second = Pool(source, 2, 9, 1e-2, torch.Generator().manual_seed(0))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for pool in (first, second):
        pool.train(pool.members[1], images, labels)
    for name, weight in first.members[1].network.params.items():
        assert torch.equal(weight, second.members[1].network.params[name])


def test_batches_are_balanced(distil):
    _, task, _ = distil("label_solve", images_per_class=1)
    batch = balanced_batch(task.train, 200, torch.Generator().manual_seed(0))
    assert batch.labels.bincount().tolist() == [20] * 10
    assert len(balanced_batch(task.train, 10**6, torch.Generator())) == len(task.train)


@pytest.mark.parametrize(
    ("dataset", "images", "flip"),
    [("mnist", 1, False), ("fashion_mnist", 1, False), ("cifar10", 10, True), ("cifar100", 1, True),
     ("cifar100", 10, False), ("digits", 1, False)],
)  # fmt: skip
def test_the_recipe_mirrors_as_published(catalog, dataset, images, flip):
    spec = {"method": "frepo", "dataset": dataset, "network": "convnet", "images_per_class": images}
    settings = plan_run(RunSpec.parse(spec), catalog).settings.method.options
    assert settings["flip"] is flip
    asked = {**spec, "method": {"name": "frepo", "options": {"flip": not flip}}}
    assert plan_run(RunSpec.parse(asked), catalog).settings.method.options["flip"] is not flip


@pytest.mark.parametrize("method", METHODS)
def test_predicted_memory_grows_with_the_set_and_stays_within_blocks(catalog, method):
    def predicted(images: int, **options: object) -> int:
        choice = {"name": method, "options": options}
        plan = plan_run(RunSpec.parse({"method": choice, "network": SMALL, "images_per_class": images}), catalog)
        peak = prepare(plan, catalog).peak_memory(plan.method, plan.settings.method.options)
        assert peak is not None and peak[1]
        return peak[0]

    assert 0 < predicted(1) < predicted(50)
    if method == "kip":
        assert predicted(1, real_batch=10**6) < 3e8


@pytest.mark.parametrize("method", METHODS)
def test_tasks_that_are_no_regression_on_classes_are_refused_with_a_reason(catalog, distil, method):
    plan = plan_run(RunSpec.parse({"method": method, "objective": "poisoning"}), catalog)
    assert "--objective classification" in reason_to_skip(plan)

    def one_class(task):
        info = replace(task.info, classes=("zero",))
        return replace(task, info=info, train=replace(task.train[task.train.of_class(0)], info=info))

    with pytest.raises(Unsupported, match="one class only"):
        distil(method, change=one_class)

    def broken(task):
        inputs = task.train.inputs.clone()
        inputs[3] = torch.nan
        return replace(task, train=replace(task.train, inputs=inputs))

    with pytest.raises(UsageError, match="hold NaN or infinite values"):
        distil(method, change=broken)
    with pytest.raises(UsageError, match="fewer than 500"):
        distil(method, images_per_class=500)


@pytest.mark.parametrize("method", METHODS)
def test_flat_vectors_are_learned_too(distil, method):
    def flat(task):
        info = replace(task.info, sample_shape=(64,), mean=(0.0,), std=(1.0,))
        train = ExampleSet(task.train.inputs.flatten(1), task.train.labels, info)
        return replace(task, info=info, train=train)

    options = {"flip": False} if method == "frepo" else {}
    distilled, _, _ = distil(method, options, flat, network="mlp", images_per_class=2)
    assert distilled.inputs.shape == (1, 20, 64)


def test_mirroring_vectors_is_refused_with_advice(distil):
    def flat(task):
        info = replace(task.info, sample_shape=(64,), mean=(0.0,), std=(1.0,))
        return replace(task, info=info, train=ExampleSet(task.train.inputs.flatten(1), task.train.labels, info))

    with pytest.raises(Unsupported, match="cannot be mirrored") as error:
        distil("frepo", {"flip": True}, flat, network="mlp")
    assert error.value.hint == "Write --set flip=false."


def test_a_kernel_that_cannot_be_inverted_is_one_sentence(distil):
    def equal(task):
        return replace(task, train=replace(task.train, inputs=torch.ones_like(task.train.inputs)))

    with pytest.raises(DdbenchError, match="kernel of the examples cannot be inverted") as error:
        distil("kip", {"ridge": 1e-300}, equal, images_per_class=2)
    assert "larger" in error.value.hint
    distilled, _, _ = distil("kip", {}, equal, images_per_class=2)
    assert torch.isfinite(distilled.inputs).all()


def test_frepo_needs_features(distil):
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
        distil("frepo", change=without_layer)


def test_published_figures_have_experiments(catalog):
    experiments = {e.name: e for e in catalog.experiments() if e.spec["method"]["name"] in METHODS}
    figures = {name: e.published.mean for name, e in experiments.items() if e.published is not None}
    assert figures == {
        "nguyen2021/mnist-ipc1": 0.855, "nguyen2021/mnist-ipc10": 0.972, "nguyen2021/mnist-ipc50": 0.984,
        "nguyen2021/cifar10-ipc1": 0.405, "nguyen2021/cifar10-ipc10": 0.531, "nguyen2021/cifar10-ipc50": 0.586,
        "zhou2022/cifar10-ipc1": 0.468, "zhou2022/cifar10-ipc10": 0.655, "zhou2022/cifar10-ipc50": 0.717,
    }  # fmt: skip
    protocols = {name: e.spec["protocol"] for name, e in experiments.items()}
    assert all(protocols[name] == ("krr/v1" if name.startswith("nguyen") else "train-dsa/v1") for name in figures)

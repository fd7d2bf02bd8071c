"""Scores of one shared training, against what autograd and the definitions say."""

import dataclasses
from pathlib import Path

import pytest
import torch
from ddbench_coreset import dynamics, gradients
from ddbench_coreset import trace as tracing
from ddbench_coreset.choosing import compute_features
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import ddbench
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.contract.task import Networks
from ddbench.discovery.catalog import Catalog
from ddbench.machine.folders import cache_dir
from ddbench.networks import State
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare

EPOCHS = 6
SCORED = ["forgetting", "el2n", "grand", "aum", "uncertainty", "ccs", "craig", "grad_match", "example_value"]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return cache_dir()


def prepared_of(catalog: Catalog, network: str = "mlp", method: str = "el2n", count: int = 2, **options):
    spec = {"method": {"name": method, "options": options}, "network": network, "images_per_class": count}
    return prepare(plan_run(RunSpec.parse(spec), catalog), catalog)


def distilled(catalog: Catalog, folder: Path, method: str, count: int = 2, seed: int = 0, network="mlp", **options):
    prepared = prepared_of(catalog, network, method, count, **options)
    folder.mkdir(exist_ok=True)
    run = Run(folder, seed=seed)
    task = prepared.task(run.generator)
    distilled_set = prepared.plan.method.call(prepared.settings.method.options, task, run)
    distilled_set.validate(task)
    return task, distilled_set


def traced(catalog: Catalog, folder: Path):
    """The trace that every method of these tests meets: networks are drawn first, from the run's own generator."""
    run = Run(folder)
    task = prepared_of(catalog).task(run.generator)
    return tracing.trace(task, run, 2, EPOCHS)


def places(task, distilled_set) -> list[int]:
    """Where the chosen stand among the training examples."""
    there = {image.numpy().tobytes(): i for i, image in enumerate(task.train.inputs)}
    return [there[image.numpy().tobytes()] for image in distilled_set.flat()[0]]


def test_margins_errors_and_gradients_by_their_definitions(catalog, cache, tmp_path):
    prepared, run = prepared_of(catalog), Run(tmp_path)
    task = prepared.task(run.generator)
    result = tracing.trace(task, run, 2, EPOCHS)
    module, examples = task.networks.module, task.train
    assert result.margins.shape == result.errors.shape == (2, EPOCHS, len(examples))
    assert (result.margins[:, -1] > 0).float().mean() > 0.9
    for net in range(2):
        weights = {name: tensor[net].requires_grad_() for name, tensor in result.last.params.items()}
        logits = functional_call(module, weights, (examples.inputs,))
        rows = torch.arange(len(examples))
        own = logits[rows, examples.labels]
        others = logits.clone()
        others[rows, examples.labels] = -torch.inf
        torch.testing.assert_close(result.margins[net, -1], own - others.amax(1))
        wrong = logits.softmax(1) - F.one_hot(examples.labels, 10)
        torch.testing.assert_close(result.errors[net, -1], wrong.norm(dim=1))
    norms = tracing.gradient_norms(task, result)
    assert result.early_epoch == 0
    for i in (0, 7, 500):
        each = []
        for net in range(2):
            weights = {name: tensor[net].detach().requires_grad_() for name, tensor in result.early.params.items()}
            x, y = examples.inputs[i : i + 1], examples.labels[i : i + 1]
            loss = F.cross_entropy(functional_call(module, weights, (x,)), y)
            grads = torch.autograd.grad(loss, list(weights.values()))
            each.append(torch.cat([g.flatten() for g in grads]).norm())
        torch.testing.assert_close(norms[i], torch.stack(each).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_scores_of_difficulty_cost_one_training_together(catalog, cache, tmp_path, monkeypatch):
    trained: list[int] = []
    train_epoch = tracing._train_epoch
    monkeypatch.setattr(tracing, "_train_epoch", lambda *arguments: (trained.append(1), train_epoch(*arguments))[1])
    for number, method in enumerate(SCORED):
        distilled(catalog, tmp_path / str(number), method, epochs=EPOCHS)
    assert len(trained) == 2 * EPOCHS
    assert len(list((cache / "traces").iterdir())) == 1
    distilled(catalog, tmp_path / "other", "aum", seed=1, epochs=EPOCHS)
    assert len(trained) == 4 * EPOCHS


def test_the_hardest_and_the_easiest(catalog, cache, tmp_path):
    task, hard = distilled(catalog, tmp_path / "hard", "aum", epochs=EPOCHS)
    _, easy = distilled(catalog, tmp_path / "easy", "aum", epochs=EPOCHS, keep="easy")
    margins = traced(catalog, tmp_path).margins.mean((0, 1))
    for label in range(10):
        members = task.train.of_class(label)
        in_order = members[margins[members].argsort()].tolist()
        of_class = [i for i in places(task, hard) if int(task.train.labels[i]) == label]
        assert of_class == in_order[:2]
        assert [i for i in places(task, easy) if int(task.train.labels[i]) == label] == in_order[::-1][:2]


def test_forgetting_counts_events(catalog, cache, tmp_path, monkeypatch):
    task, _ = distilled(catalog, tmp_path / "any", "el2n", epochs=EPOCHS)
    n = len(task.train)
    margins = torch.ones(1, 4, n)
    first = task.train.of_class(0)[:4].tolist()
    margins[0, 1, first[0]] = -1  # forgotten once
    margins[0, [1, 3], first[1]] = -1  # twice
    margins[0, :, first[2]] = -1  # never learned
    margins[0, 0, first[3]] = -1  # learned late, and kept
    invented = tracing.Trace(margins, margins, 0, State({}), State({}))
    monkeypatch.setattr(dynamics, "trace", lambda *arguments: invented)
    _, distilled_set = distilled(catalog, tmp_path / "counted", "forgetting", 3, epochs=4)
    assert [i for i in places(task, distilled_set) if int(task.train.labels[i]) == 0] == [first[2], first[1], first[0]]


def test_values_are_products_with_the_held_out_gradient(catalog, cache, tmp_path):
    prepared, run = prepared_of(catalog), Run(tmp_path)
    task = prepared.task(run.generator)
    result = traced(catalog, tmp_path)
    errors, features = gradients._last_layer(task, run, EPOCHS)
    module = task.networks.module
    weights = result.last.network(0).params
    names = list(weights)[-2:]
    for i in (0, 300):
        leaves = {name: weights[name].detach().requires_grad_() for name in names}
        logits = functional_call(module, {**weights, **leaves}, (task.train.inputs[i : i + 1],))
        kernel, bias = torch.autograd.grad(F.cross_entropy(logits, task.train.labels[i : i + 1]), list(leaves.values()))
        actual = errors[i][:, None] * features[i][None]
        torch.testing.assert_close(actual[:, :-1].float(), kernel, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(actual[:, -1].float(), bias, rtol=1e-3, atol=1e-6)
    distances = gradients._gradient_distances(errors[:20], features[:20])
    flat = (errors[:20, :, None] * features[:20, None]).flatten(1)
    torch.testing.assert_close(distances, torch.cdist(flat, flat), atol=1e-6, rtol=1e-6)


def test_examples_held_out_are_not_chosen(catalog, cache, tmp_path):
    task, distilled_set = distilled(catalog, tmp_path / "value", "example_value", 10, epochs=EPOCHS, held_out=0.5)
    # The same generator: networks are drawn first, then the order that says who is held out.
    run = Run(tmp_path)
    again = prepared_of(catalog).task(run.generator)
    tracing.trace(again, run, 2, EPOCHS)
    n = len(task.train)
    held_out = set(torch.randperm(n, generator=run.generator)[: n // 2].tolist())
    assert distilled_set.count == 100 and not held_out & set(places(task, distilled_set))
    with pytest.raises(ddbench.UsageError, match="Lower --set held_out|fewer than"):
        distilled(catalog, tmp_path / "few", "example_value", 120, epochs=EPOCHS, held_out=0.9)


@pytest.mark.parametrize("kind", ["trained", "drawn"])
def test_features_of_a_network(catalog, cache, tmp_path, kind):
    prepared, run = prepared_of(catalog), Run(tmp_path)
    task = prepared.task(run.generator)
    result = compute_features(task, run, kind, EPOCHS)
    assert result.shape == (len(task.train), 128)
    assert (result >= 0).all() and result.any()
    _, distilled_set = distilled(catalog, tmp_path / "herded", "herding", 2, features=kind, epochs=EPOCHS)
    _, pixels = distilled(catalog, tmp_path / "pixels", "herding", 2)
    assert not torch.equal(distilled_set.inputs, pixels.inputs)


def test_a_network_without_a_linear_layer_has_no_features(catalog, cache, tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten())
    with pytest.raises(ddbench.Unsupported, match="no last linear layer"):
        tracing.penultimate(module, State({}), torch.zeros(2, 3))


def test_running_statistics_are_each_networks_own(catalog, cache, tmp_path):
    prepared, run = prepared_of(catalog, "resnet20"), Run(tmp_path)
    task = prepared.task(run.generator)
    few = ddbench.ExampleSet(task.train.inputs[:200], task.train.labels[:200], task.info)
    task = ddbench.Task(few, task.objective, task.networks, task.budget, task.info)
    result = tracing.trace(task, run, 2, 2)
    means = result.last.buffers["bn1.running_mean"]
    assert means.shape[0] == 2 and not torch.equal(means[0], means[1])


def with_batch_norm(catalog: Catalog, run: Run) -> ddbench.Task:
    task = prepared_of(catalog).task(run.generator)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    def draw(request):
        return {
            name: 0.2 * torch.randn((request.n, *p.shape), generator=request.generator)
            for name, p in request.network.named_parameters()
        }

    networks = Networks(module, draw, task.info, run.generator, "train", None)
    return dataclasses.replace(task, networks=networks)


def test_early_in_training_weights_go_with_the_running_statistics_of_that_epoch(catalog, cache, tmp_path):
    epochs = 10
    run = Run(tmp_path)
    task = with_batch_norm(catalog, run)
    computed = tracing.trace(task, run, 2, epochs)
    again = Run(tmp_path / "again")
    result = tracing.trace(with_batch_norm(catalog, again), again, 2, epochs)
    assert again.steps_done == 0 and result.early_epoch == 1
    module, examples = task.networks.module.eval(), task.train
    norms = tracing.gradient_norms(task, result)
    expected = torch.zeros(2, 2)
    for net in range(2):
        weights = {name: tensor[net].requires_grad_() for name, tensor in result.early.params.items()}
        buffers = {name: tensor[net] for name, tensor in result.early.buffers.items()}
        assert not torch.equal(buffers["2.running_var"], result.last.buffers["2.running_var"][net])
        assert torch.equal(buffers["2.running_var"], computed.early.buffers["2.running_var"][net])
        logits = functional_call(module, (weights, buffers), (examples.inputs,))
        own = logits.gather(1, examples.labels[:, None])
        others = logits.scatter(1, examples.labels[:, None], -torch.inf).amax(1)
        torch.testing.assert_close(result.margins[net, 1], own[:, 0] - others)
        for place, i in enumerate((0, 500)):
            loss = F.cross_entropy(logits[i : i + 1], examples.labels[i : i + 1])
            grads = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
            expected[net, place] = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(norms[[0, 500]], expected.mean(0), rtol=1e-4, atol=1e-6)


def test_a_trace_of_another_format_is_not_used(catalog, cache, tmp_path, monkeypatch):
    distilled(catalog, tmp_path / "now", "aum", epochs=1)
    monkeypatch.setattr(tracing, "FORMAT", tracing.FORMAT + 1)
    distilled(catalog, tmp_path / "later", "aum", epochs=1)
    assert len(list((cache / "traces").iterdir())) == 2


def test_a_training_that_diverges_says_what_can_be_changed(catalog, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "RATE", 1e30)
    with pytest.raises(ddbench.DdbenchError, match="diverged in epoch 1 of 6") as error:
        distilled(catalog, tmp_path / "run", "aum", epochs=EPOCHS)
    assert error.value.hint == "Choose another --network, --init or --seed."
    assert not (cache / "traces").exists()


def test_whole_set_choice_takes_the_best_of_all_classes(catalog, cache, tmp_path):
    task, distilled_set = distilled(catalog, tmp_path / "whole", "el2n", 2, epochs=EPOCHS, per_class=False)
    errors = traced(catalog, tmp_path).errors[:, 0].mean(0)
    assert sorted(places(task, distilled_set)) == sorted(errors.argsort(descending=True, stable=True)[:20].tolist())


def test_damaged_traces_are_named(catalog, cache, tmp_path):
    distilled(catalog, tmp_path / "first", "aum", epochs=EPOCHS)
    [path] = (cache / "traces").iterdir()
    path.write_bytes(b"nothing")
    with pytest.raises(ddbench.UsageError, match="is damaged"):
        distilled(catalog, tmp_path / "second", "aum", epochs=EPOCHS)

"""The methods beside unrolled_gd on real digits: what they return, what they learn, and what they tell users."""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.linba import nearest_bases
from ddbench_unrolled_gd.soft_label_dd import initial_labels, takes_soft_labels

import ddbench
from ddbench import DdbenchError, DistilledSet, Task, Unsupported, UsageError
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from ddbench.unroll import Reverse

QUICK = {
    "soft_label_dd": {"networks": 1, "outer_lr": 0.05, "inner_lr": 0.1},
    "rat_bptt": {"inner_steps": 6, "window": 3, "inner_lr": 0.01, "outer_lr": 0.02},
    "linba": {"inner_steps": 5, "per_class": 2, "outer_lr": 1.0},
    "reversible_hypergradients": {"outer_lr": 0.05},
}
NEW = list(QUICK)
every_method = pytest.mark.parametrize("method", NEW)

DROPPING = """
import ddbench
from torch import nn
from torch.nn import functional as F

class Dropping(nn.Module):
    def __init__(self, info):
        super().__init__()
        self.layer = nn.Linear(64, len(info.classes))
    def forward(self, x):
        return self.layer(F.dropout(x.flatten(1), 0.5, training=True))

@ddbench.network
def dropping(info):
    '''A network whose dropout is always on.'''
    return Dropping(info)

@ddbench.hookimpl
def ddbench_networks():
    return [dropping]
"""


@pytest.fixture
def distil(catalog: Catalog, tmp_path) -> Callable[..., tuple[DistilledSet, Run, Task]]:
    """Return what runs a method: its set, validated, the run and the task."""

    def run_method(
        method: str, options: dict | None = None, change: Callable[[Task], Task] = lambda task: task, **fields: object
    ) -> tuple[DistilledSet, Run, Task]:
        quick = {"outer_steps": 4, "real_batch": 64, **QUICK[method], **(options or {})}
        spec = {"method": {"name": method, "options": quick}, "network": "linear", "images_per_class": 2, **fields}
        plan = plan_run(RunSpec.parse(spec), catalog)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run = Run(folder, seed=0)
        task = change(prepare(plan, catalog).task(run.generator))
        distilled = plan.method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
        return distilled, run, task

    return run_method


def losses(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log_path.read_text().splitlines()]


@pytest.mark.parametrize(("labels", "images"), [("one_hot", None), ("random", None), ("one_hot", 5)])
def test_soft_labels_are_free_numbers_for_any_number_of_images(labels, images, distil):
    options = {"labels": labels, "images": images, "outer_steps": 8}
    distilled, _, _ = distil("soft_label_dd", options, images_per_class=1, steps=1, epochs=2)
    n = images or 10
    assert distilled.inputs.shape == (1, n, 1, 8, 8)
    assert (distilled.labels.shape, distilled.kind) == ((1, n, 10), "regression")
    assert distilled.lrs.shape == (2, 1) and (distilled.lrs > 0).all()
    assert (distilled.labels < 0).any() and not torch.allclose(distilled.labels.sum(-1), torch.ones(1, n))


@pytest.mark.parametrize(
    ("images", "steps", "firsts"),
    [(5, 1, [[0, 1, 2, 3, 4]]), (4, 2, [[0, 1], [2, 3]]), (12, 1, [[*range(10), 0, 1]])],
)
def test_labels_start_with_the_first_classes(images, steps, firsts):
    labels = initial_labels("one_hot", steps, images, 10, torch.Generator())
    assert labels.argmax(-1).tolist() == firsts
    assert (labels.sum(-1) == 1).all()


def test_labels_are_learned(distil):
    options = {"outer_steps": 20, "outer_lr": 0.1, "schedule": "constant", "real_batch": 5000, "inner_lr": 0.5}
    distilled, run, _ = distil("soft_label_dd", options, init="fixed", images_per_class=1)
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    moved = distilled.labels - torch.eye(10)
    assert moved.abs().mean() > 0.1


def test_images_through_random_windows_have_no_rates(distil):
    distilled, run, _ = distil("rat_bptt", {"augment": "rotate"}, steps=2)
    assert (distilled.inputs.shape, distilled.lrs, distilled.kind) == ((2, 10, 1, 8, 8), None, "class")
    assert distilled.labels.tolist() == [list(range(10))] * 2
    assert len(losses(run)) == 4


@pytest.mark.parametrize(("inner_steps", "ends"), [(6, {3, 4, 5, 6}), (3, {3})])
def test_windows_end_at_every_step(inner_steps, ends, distil, monkeypatch):
    module = importlib.import_module("ddbench_unrolled_gd.rat_bptt")
    seen = set()
    gradient = module.window_gradient

    def watched(network, start, images, labels, rate, rows, window, *arguments, **settings):
        seen.add(len(rows))
        assert window == 3
        return gradient(network, start, images, labels, rate, rows, window, *arguments, **settings)

    monkeypatch.setattr(module, "window_gradient", watched)
    distil("rat_bptt", {"inner_steps": inner_steps, "outer_steps": 20, "augment": ""}, images_per_class=1)
    assert seen == ends


def test_rows_hold_images_of_every_class():
    rows = shared.draw_rows(3, 4, 2, 50, torch.Generator().manual_seed(0))
    assert rows.shape == (50, 6)
    assert all(sorted(row // 4) == [0, 0, 1, 1, 2, 2] and len(set(row.tolist())) == 6 for row in rows)
    assert rows.unique().tolist() == list(range(12))
    whole = shared.draw_rows(3, 4, None, 2, torch.Generator())
    assert [sorted(row) for row in whole.tolist()] == [list(range(12))] * 2


def test_a_gradient_is_bounded_by_its_running_norm():
    running = torch.zeros(())

    def clipped(norm: float) -> float:
        gradient = torch.tensor([norm, 0.0])
        assert float(shared.clip_by_running_norm(gradient, running, 2.0)) == norm
        return float(gradient[0])

    assert clipped(5.0) == 5.0  # the first one sets the norm
    assert clipped(9.0) == 9.0
    assert float(running) == pytest.approx(5.4)
    assert clipped(1000.0) == pytest.approx(10.8)  # a spike counts as it was clipped
    assert float(running) == pytest.approx(0.9 * 5.4 + 1.08)
    assert clipped(0.0) == 0.0


@pytest.mark.parametrize("start", ["real", "noise"])
def test_bases_keep_to_the_budget(start, distil):
    distilled, run, task = distil("linba", {"start": start})
    assert distilled.decoder == "linear_bases/v1"
    coefficients, bases = distilled.payload["coefficients"], distilled.payload["bases"]
    assert coefficients.shape == (distilled.count, len(bases)) and bases.shape[1:] == (1, 8, 8)
    assert distilled.count > 20 > len(bases)
    assert distilled.stored_examples((1, 8, 8)) == 20
    decoded = distilled.decoded(task.decode)
    assert decoded.inputs.shape == (1, distilled.count, 1, 8, 8)
    assert len(set(torch.bincount(decoded.labels[0], minlength=10).tolist())) == 1
    assert len(losses(run)) == 4


def test_bytes_bound_bases_and_images(distil):
    free, _, _ = distil("linba")
    bound, _, task = distil("linba", byte_budget=3000)
    assert task.budget.bytes == 3000
    assert 2500 < bound.nbytes <= 3000 < free.nbytes


def test_bases_are_the_nearest_to_real_images():
    images = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for count, exact in ((12, True), (3, False)):
        coefficients, bases = nearest_bases(images, count)
        products = torch.einsum("nk,kchw->nchw", coefficients, bases)
        assert torch.allclose(products, images, atol=1e-5) == exact
        assert torch.allclose(coefficients.square().mean(0), torch.ones(count), atol=1e-5)


def test_plain_images_under_momentum(distil):
    distilled, _, _ = distil("linba", {"bases": 0})
    assert (distilled.decoder, distilled.inputs.shape) == ("", (2, 10, 1, 8, 8))


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_training_is_learned_with_the_images(decay, distil):
    options = {"weight_decay": decay, "outer_steps": 6}
    distilled, _, _ = distil("reversible_hypergradients", options, epochs=4)
    assert distilled.inputs.shape == (2, 10, 1, 8, 8)
    names = {"momentum", "decay"} if decay else {"momentum"}
    assert distilled.extras.keys() == names
    for values, first in ((distilled.lrs, 0.18), (distilled.extras["momentum"], 0.5)):
        assert values.shape == (4, 2)
        # Velocities start from zero, so the first momentum does nothing.
        assert not torch.isclose(values.flatten()[1:], torch.tensor(first)).any()
    assert distilled.metadata["inner_optimiser"].startswith("sgd momentum=extras.momentum")


def test_going_back_in_other_ways_gives_the_same_images(distil):
    undone, kept = (
        distil("reversible_hypergradients", {"memory": memory, "outer_steps": 2})[0]
        for memory in ("reverse", "recompute")
    )
    torch.testing.assert_close(undone.inputs, kept.inputs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@every_method
def test_the_loss_falls(method, distil):
    options = {"outer_steps": 40, "real_batch": 2000, "networks": 1}
    if method in ("rat_bptt", "linba"):
        del options["networks"]
    if method == "rat_bptt":
        # A window at one place, so that losses compare.
        options |= {"inner_steps": 3, "augment": "", "outer_lr": 0.05, "inner_lr": 0.05}
    if method == "linba":
        options |= {"start": "noise", "outer_lr": 5.0, "inner_lr": 0.1}
    _, run, _ = distil(method, options, init="fixed")
    values = losses(run)
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


DIVERGING = {
    "soft_label_dd": {"inner_lr": 1e6, "outer_lr": 1e30},
    "linba": {"inner_lr": 1e6, "outer_lr": 1e38},
    "reversible_hypergradients": {"outer_lr": 1e4},
}


@pytest.mark.parametrize("method", DIVERGING)
def test_a_run_that_diverges_is_rolled_back_and_ended(method, distil):
    with pytest.raises(DdbenchError, match="diverged again after 5 roll-backs"):
        distil(method, {**DIVERGING[method], "outer_steps": 60})


def test_nan_in_the_inner_adam_is_rolled_back_and_ended(distil):
    def undefined(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels) * math.nan

    with pytest.raises(DdbenchError, match="diverged again after 5 roll-backs"):
        distil("rat_bptt", change=lambda t: replace(t, objective=replace(t.objective, inner_loss=undefined)))


@every_method
def test_an_objective_that_only_measures_is_skipped(method, distil):
    with pytest.raises(Unsupported, match=f"{method} needs an objective with a differentiable loss"):
        distil(method, change=lambda task: replace(task, objective=replace(task.objective, loss=None)))


def test_labels_that_networks_cannot_train_on_are_not_learned(distil):
    def numbers_only(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.multi_margin_loss(logits, labels)

    with pytest.raises(Unsupported, match="networks of this objective train on class numbers only") as error:
        distil("soft_label_dd", change=lambda t: replace(t, objective=replace(t.objective, inner_loss=numbers_only)))
    assert error.value.hint == "Take unrolled_gd, which keeps labels, or another --objective."
    assert not takes_soft_labels(lambda z, y: z.square().sum() * y.argmax(-1).sum(), 3)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("soft_label_dd", {"images": 21}, "21 images are more than the budget of 2 for each of 10 classes."),
        ("rat_bptt", {"window": 7, "inner_steps": 6}, "a window of 7 steps does not fit into 6 inner steps."),
        ("rat_bptt", {"augment": "colour"}, "unknown operation 'colour'"),
        ("linba", {"bases": 11, "composed": 1}, "11 bases are more than the 10 images that they compose."),
        ("linba", {"bases": 65}, "65 bases are more than the 64 values of an image."),
        ("linba", {"bases": 17}, "17 bases are more than the 10 images that the budget lets them compose."),
        ("linba", {"bases": 20}, "the budget does not hold K=20 bases"),
        ("linba", {"composed": 1000}, "the budget does not hold K=1 bases"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(method, options, sentence, distil):
    with pytest.raises(UsageError) as error:
        distil(method, options)
    assert sentence in error.value.message
    assert error.value.hint


def test_images_that_cannot_be_spread_are_skipped(catalog):
    for method, options, text in (
        ("soft_label_dd", {"images": 5}, "soft_label_dd spreads 5 images evenly over the steps: 2 does not divide it."),
        ("reversible_hypergradients", {}, "spreads 3 images per class evenly over the steps: 2 does not divide it."),
    ):
        spec = {"method": {"name": method, "options": options}, "images_per_class": 3, "steps": 2}
        assert ddbench.dry_run(spec, catalog=catalog).skipped.endswith(text)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ([], 1, "the network's gradients are not deterministic: training in reverse had another gradient"),
        (["--set", "inner_lr=1e6"], 1, "reached 1024, beyond the range of exactly reversible training"),
    ],
)
def test_steps_that_cannot_be_undone_are_explained(options, code, sentence, ddbench, tmp_path):
    (tmp_path / "dropping.py").write_text(DROPPING)
    network = ["--network", "linear"] if options else ["--network", "dropping", "--plugin", "dropping.py"]
    failed = ddbench("run", "-m", "reversible_hypergradients", *network, "--epochs", 10, "--smoke", *options)
    assert failed.code == code
    assert sentence in failed.message() and "--set memory=recompute" in failed.message()


def test_recipes_are_the_published_settings(catalog):
    def options(method: str, dataset: str) -> dict:
        asked = {"method": method, "dataset": dataset, "images_per_class": 1}
        return plan_run(RunSpec.parse(asked), catalog).settings.method.options

    soft = options("soft_label_dd", "mnist")
    assert (soft["outer_lr"], soft["schedule"], soft["inner_lr"], soft["labels"]) == (0.01, "step", 0.02, "one_hot")
    assert (soft["outer_steps"], soft["real_batch"], soft["clip"]) == (20_650, 1024, 0)
    assert options("soft_label_dd", "svhn")["outer_lr"] == 0.05
    assert options("soft_label_dd", "cifar10")["inner_lr"] == 0.001
    rat = options("rat_bptt", "cifar10")
    names = ("inner_steps", "window", "inner_lr", "outer_lr", "real_batch", "running_clip", "augment", "outer_steps")
    assert [rat[name] for name in names] == [200, 60, 1e-3, 1e-3, 5000, 2.0, "flip_rotate", 60_000]
    assert options("rat_bptt", "svhn")["augment"] == "rotate"
    names = ("inner_steps", "inner_lr", "momentum", "outer_lr", "per_class", "outer_steps")
    assert [options("linba", "cifar10")[name] for name in names] == [150, 0.01, 0.9, 0.1, 32, 500_000]
    reverse = options("reversible_hypergradients", "mnist")
    assert reverse["inner_lr"] == pytest.approx(math.exp(-1) * (1 - reverse["momentum"]), abs=0.005)
    assert reverse["memory"] == Reverse().name


def test_experiments_have_the_published_figures(catalog):
    experiments = {e.name: e for e in catalog.experiments() if e.spec["method"]["name"] in NEW}
    figures = {name: e.published.mean for name, e in experiments.items() if e.published}
    assert figures == {
        "sucholutsky2021/cifar10-fixed-100": 0.60,
        "sucholutsky2021/mnist-fixed-10": 0.96,
        "sucholutsky2021/mnist-fixed-5": 0.92,
    }
    assert {"deng2022/cifar10-ipc1", "feng2024/cifar10-ipc10"} <= experiments.keys()
    for name, experiment in experiments.items():
        plan = plan_run(RunSpec.parse(experiment.spec), catalog)
        if name.startswith("sucholutsky"):
            assert plan.settings.init.name == "fixed"

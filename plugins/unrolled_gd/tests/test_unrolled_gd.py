from typing import Any

import pytest
import torch
from ddbench_unrolled_gd.shared import WAYS_BACK, decay

import ddbench
from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog()


def distil(catalog: Catalog, tmp_path, options: dict | None = None, seed: int = 0, **fields: object):
    torch.set_num_threads(1)
    quick = {"outer_steps": 30, "networks": 2, "real_batch": 128, **(options or {})}
    spec = {"method": {"name": "unrolled_gd", "options": quick}, "network": "linear", **fields}
    plan = plan_run(RunSpec.parse(spec), catalog)
    prepared = prepare(plan, catalog)
    folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    run = Run(folder, seed=seed)
    task = prepared.task(run.generator)
    distilled_set = plan.method.call(plan.settings.method.options, task, run)
    distilled_set.validate(task)
    return distilled_set, run, prepared


def test_learns_images_and_rates_in_the_stated_shapes(catalog, tmp_path):
    distilled_set, run, _ = distil(catalog, tmp_path, images_per_class=4, steps=2, epochs=3)
    assert distilled_set.inputs.shape == (2, 20, 1, 8, 8)
    assert distilled_set.lrs.shape == (3, 2)
    assert distilled_set.labels.tolist() == [[label for label in range(10) for _ in range(2)]] * 2
    assert (distilled_set.lrs > 0).all()
    assert not torch.allclose(distilled_set.lrs, distilled_set.lrs[0, 0])
    lines = run.log_path.read_text().splitlines()
    assert len(lines) == 30
    assert all(word in lines[0] for word in ("loss", "gradient_norm", "train_accuracy"))


@pytest.mark.slow
@pytest.mark.parametrize("init", ["random", "fixed"])
def test_learns_to_classify_real_digits(catalog, tmp_path, init):
    from ddbench.contract.observer import Silent
    from ddbench.protocols import get_protocol

    distilled_set, _, prepared = distil(
        catalog, tmp_path, {"outer_steps": 200, "outer_lr": 0.05, "inner_lr": 0.1}, init=init
    )
    scores = get_protocol("replay/v1").evaluate([distilled_set], prepared.setting, 3, Silent()).scores["accuracy"]
    assert min(scores) > 0.75


def test_memory_modes_do_not_change_the_result(catalog, tmp_path):
    auto, *others = (distil(catalog, tmp_path, {"memory": m, "outer_steps": 5})[0].inputs for m in WAYS_BACK)
    assert len(others) == 3
    for other in others:
        torch.testing.assert_close(other, auto)


@pytest.mark.slow
def test_reports_the_engine_once(catalog, tmp_path):
    from ddbench.contract.observer import Silent

    lines = []

    class Reporter(Silent):
        def say(self, text):
            lines.append(text)

    for network in ("mlp", "resnet20"):
        prepared = prepare(plan_run(RunSpec.parse({"method": "unrolled_gd", "network": network}), catalog), catalog)
        folder = tmp_path / network
        folder.mkdir()
        run = Run(folder, most_steps=2, reporter=Reporter())
        options = {**prepared.settings.method.options, "real_batch": 8}
        prepared.plan.method.call(options, prepared.task(run.generator), run)
    assert lines == [
        "Engine   hand-derived chain, 2 networks per call, memory=store",
        "Engine   autograd, 1 network per call, memory=store",
    ]


def test_a_budget_that_cannot_be_spread_is_skipped(catalog):
    planned = ddbench.dry_run({"method": "unrolled_gd", "images_per_class": 3, "steps": 2}, catalog=catalog)
    assert planned.skipped.endswith("2 does not divide it.")
    assert ddbench.dry_run({"method": "unrolled_gd", "images_per_class": 4}, catalog=catalog).skipped == ""


def test_schedules():
    assert [decay("cosine", share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    # The paper's: halved every 40 of 400 epochs.
    assert [decay("step", share) for share in (0, 0.099, 0.1, 0.95)] == [1, 1, 0.5, 0.5**9]
    assert decay("constant", 0.9) == 1


def test_the_papers_experiments_are_complete_specs_with_published_figures(catalog):
    experiments = {e.name: e for e in catalog.experiments() if e.spec["method"]["name"] == "unrolled_gd"}
    figures = {
        name: (e.published.metric, e.published.mean, e.published.std) for name, e in experiments.items() if e.published
    }
    assert figures == {
        "wang2018/cifar10-fixed-10x3": ("accuracy", 0.54, None),
        "wang2018/cifar10-poisoning": ("attack_success", 0.459, 0.181),
        "wang2018/cifar10-random-10x3": ("accuracy", 0.368, 0.012),
        "wang2018/mnist-fixed-1x3": ("accuracy", 0.938, None),
        "wang2018/mnist-poisoning": ("attack_success", 0.714, 0.296),
        "wang2018/mnist-random-10x3": ("accuracy", 0.795, 0.081),
        "wang2018/svhn-to-mnist-random": ("accuracy", 0.852, 0.047),
        "wang2018/usps-to-mnist-random": ("accuracy", 0.927, 0.014),
    }
    for name, experiment in experiments.items():
        spec = plan_run(RunSpec.parse(experiment.spec), catalog).settings
        poisons = "poisoning" in name
        assert (spec.objective.name, spec.epochs) == (("poisoning", 1) if poisons else ("classification", 3))
        assert (spec.method.options["outer_lr"], spec.method.options["real_batch"]) == (0.02 if poisons else 0.01, 1024)
        assert ("to" in name.split("-")) == (spec.target is not None)


@pytest.mark.parametrize(
    ("asked", "start", "clip"),
    [
        ({"method": "unrolled_gd", "dataset": "svhn"}, "means", 0.1),
        ({"method": "unrolled_gd", "dataset": "digits"}, "noise", 1.0),
        ({"method": {"name": "unrolled_gd", "options": {"start": "noise"}}, "dataset": "svhn"}, "noise", 0.1),
        ({"experiment": "wang2018/mnist-random-10x3"}, "noise", 0.0),
    ],
)
def test_settings_follow_the_dataset_unless_they_are_named(
    catalog: Catalog, asked: dict[str, Any], start: str, clip: float
):
    name = asked.get("experiment")
    spec = RunSpec.parse(asked if name is None else catalog.experiment(name).spec)
    options = plan_run(spec, catalog).settings.method.options
    assert options["start"] == start and options["clip"] == clip

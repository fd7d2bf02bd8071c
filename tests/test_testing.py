"""Every check of the conformance kit: what ships passes it, and a plugin made faulty in one place is caught by it."""

import textwrap
from pathlib import Path

import pytest

from ddbench.contract.component import KINDS, plural
from ddbench.discovery.catalog import Catalog
from ddbench.testing import (
    CHECKS,
    DatasetTests,
    ExperimentTests,
    InitTests,
    MethodTests,
    NetworkTests,
    ObjectiveTests,
    conform,
    find,
)
from ddbench.testing.checks import Subject, outcome, title

HEAD = """
import random as python_random
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import ddbench
from ddbench import DistilledSet, ImageSplits, Metric, Objective

"""
METHOD = '''
kept = []

@ddbench.method
def mine(task, run):
    """Random real images, spread over the steps."""
    BODY
    inputs, labels = chosen.in_steps(task.budget.steps)
    return DistilledSet(inputs, labels)

@ddbench.hookimpl
def ddbench_methods():
    return [mine]
'''
GOOD = "chosen = task.train.random_subset(task.budget.images_per_class, run.generator)"
FAULTY_METHODS = {
    "honours shapes and budget": [
        "chosen = task.train",
        f"{GOOD}; return DistilledSet(chosen.inputs[None].double(), chosen.labels[None])",
        f"{GOOD}; return DistilledSet(chosen.inputs[None] * float('nan'), chosen.labels[None])",
        f"{GOOD}; return chosen.inputs",
    ],
    "same seed same bytes": [
        "kept.append(1); run.generator.manual_seed(len(kept)); " + GOOD,
    ],
    "another seed other bytes": ["run.generator.manual_seed(0); " + GOOD],
    "leaves global state alone": [
        f"torch.manual_seed(0); {GOOD}",
        f"np.random.rand(); {GOOD}",
        f"python_random.random(); {GOOD}",
        f"{GOOD}; torch.set_default_dtype(torch.float64)",
        f"{GOOD}; torch.set_grad_enabled(False)",
        f"{GOOD}; torch.use_deterministic_algorithms(True)",
    ],
    "leaves its task alone": [
        f"{GOOD}; task.train.inputs.mul_(2)",
        f"{GOOD}; task.train.labels.zero_()",
        f"{GOOD}; task.networks.module[0].weight.data.zero_()",
        f"{GOOD}; F.cross_entropy(task.networks.module(chosen.inputs), chosen.labels).backward()",
    ],
    "leaves running statistics alone": [
        f"{GOOD}; task.networks.module.train()(chosen.inputs); task.networks.module.eval()",
        f"{GOOD}; task.networks.module.train()",
        f"{GOOD}\n    for part in task.networks.module:\n        part.training = isinstance(part, nn.Dropout)",
    ],
    "writes only in its folder": [f"{GOOD}; Path('notes.txt').write_text('here')"],
    "reports progress": [
        f"import time; time.sleep(2.1); {GOOD}",
        f"{GOOD}\n    for step in run.loop(6, {{}}):\n        pass",
    ],
    "resumes to the same bytes": [
        f"{GOOD}\n    shift = torch.zeros(1)\n    for step in run.loop(6, {{}}):\n        shift += 1\n"
        "    chosen = ddbench.ExampleSet(chosen.inputs + shift, chosen.labels, chosen.info)",
        f"{GOOD}\n    for step in run.loop(6, {{}}):\n        pass\n"
        "    import itertools; kept.append(1)\n"
        "    chosen = ddbench.ExampleSet(chosen.inputs + run.steps_done * 0 + len(kept), chosen.labels, chosen.info)",
    ],
    "takes colour and two classes": [
        f"assert task.info.sample_shape[0] == 1; {GOOD}",
        f"assert len(task.info.classes) > 2; {GOOD}",
        f"{GOOD}\n    if len(task.info.classes) == 2: raise ddbench.Unsupported('no')",
    ],
    "does better than chance": [
        f"{GOOD}; chosen = ddbench.ExampleSet(chosen.inputs, (chosen.labels + 1) % 3, chosen.info)",
        f"{GOOD}; chosen = ddbench.ExampleSet(torch.zeros_like(chosen.inputs), chosen.labels, chosen.info)",
    ],
}
RECIPE = 'def published(request):\n    """Somebody 2020, Table 3."""\n'
WITH_RECIPE = (
    "@ddbench.method(recipe=published)\n"
    'def mine(task, run, *, size: Annotated[int, Field(le=9, description="size")] = 3):\n    """Random real images."""'
)
OTHERS = {
    ("method", "documented"): [
        '@ddbench.method\ndef mine(task, run):\n    """Images"""',
        '@ddbench.method\ndef mine(task, run, *, size: int = 3):\n    """Random real images, as many as asked for."""',
    ],
    ("method", "has a recipe for every dataset"): [
        f"{RECIPE}    return {{'size': request.budget.images_per_class}}\n{WITH_RECIPE}",
        f"{RECIPE}    return {{'sise': 3}}\n{WITH_RECIPE}",
        f"{RECIPE}    return {{'size': {{'digits': 3}}[request.dataset]}}\n{WITH_RECIPE}",
    ],
    ("init", "draws every weight"): [
        'return {"weight": torch.zeros(request.n, 2)}',
        "return {name: torch.zeros(p.shape) for name, p in request.network.named_parameters()}",
        "return {name: torch.full((request.n, *p.shape), torch.nan) for name, p in request.network.named_parameters()}",
        "return request.pool(count=1, held_out=1, steps=1, lr=0.1)",
        "return request.other('no_such_init')",
    ],
    ("init", "draws the same for the same seed"): [
        "return {name: torch.randn(request.n, *p.shape) for name, p in request.network.named_parameters()}",
        "g = torch.Generator().manual_seed(0)\n"
        "    return {name: torch.randn((request.n, *p.shape), generator=g) for name, p in request.network.named_parameters()}",
        "g = torch.Generator()\n    g.seed()\n"
        "    return replace(request, generator=g).pool(count=50, held_out=1, steps=1, lr=0.1)",
        "g = torch.Generator().manual_seed(0)\n"
        "    return replace(request, generator=g).pool(count=50, held_out=1, steps=1, lr=0.1)",
    ],
    ("init", "leaves the network alone"): [
        "with torch.no_grad(): [p.zero_() for p in request.network.parameters()]\n"
        "    return {name: torch.randn((request.n, *p.shape), generator=request.generator) for name, p in request.network.named_parameters()}",
        "torch.manual_seed(1)\n"
        "    return {name: torch.randn((request.n, *p.shape), generator=request.generator) for name, p in request.network.named_parameters()}",
    ],
    ("objective", "measures in numbers"): [
        'return Objective(F.cross_entropy, lambda z, y: {"other": 0.5}, (Metric("accuracy", "share"),))',
        'return Objective(F.cross_entropy, lambda z, y: {"accuracy": (z.argmax(1) == y).float().mean()}, (Metric("accuracy", "share"),))',
        'return Objective(F.cross_entropy, lambda z, y: {"accuracy": float("nan")}, (Metric("accuracy", "share"),))',
    ],
    ("objective", "can be descended"): [
        'return Objective(lambda z, y: (z.argmax(1) == y).float().mean(), lambda z, y: {"accuracy": 0.5}, (Metric("accuracy", "share"),))',
        'return Objective(lambda z, y: z.square(), lambda z, y: {"accuracy": 0.5}, (Metric("accuracy", "share"),))',
        'return Objective(None, lambda z, y: {"accuracy": 0.5}, (Metric("accuracy", "share"),), relabel=lambda y: y[:1])',
    ],
    ("target", "names what it adapts"): [
        'return ddbench.AdaptationTarget("mnist", "no_such_network")',
        "return None",
    ],
    ("target", "draws source weights"): [
        'return ddbench.AdaptationTarget("mnist", "lenet", lambda request: {})',
        'return ddbench.AdaptationTarget("mnist", "lenet", lambda request: '
        "request.pool(n=request.n + 1, count=5, held_out=5, steps=1, lr=0.1))",
    ],
    ("experiment", "says what it is"): ['summary = ""\nmethod = "herding"'],
    ("experiment", "is a complete spec"): [
        'dataset = "digits"',
        'method = "no_such_method"',
        'method = "herding"\nseed = 3',
        'method = {name = "herding", options = {no_option = 1}}',
        'method = "herding"\nprotocol = "replay/v0"',
        'method = "herding"\n[sweep]\naxes = [{keys = ["no_option"], values = [1, 2]}]',
    ],
    ("experiment", "published figure is sound"): [
        'method = "herding"\n[published]\nmetric = "acuracy"\nmean = 0.5\nsource = "Author et al. 2020"',
        'method = "herding"\n[published]\nmetric = "accuracy"\nmean = nan\nsource = "Author et al. 2020"',
        'method = "herding"\n[published]\nmetric = "accuracy"\nmean = 0.5\nstd = -1.0\nsource = "Author et al. 2020"',
        'method = "herding"\n[published]\nmetric = "accuracy"\nmean = 0.5\nsource = ""',
    ],
    ("decoder", "decodes its example"): [
        'return payload["images"].double()',
        'return payload["images"][:0]',
        'return payload["images"] / 0',
        'return payload["images"] + torch.rand(1)',
    ],
    ("decoder", "can be differentiated"): [
        'return payload["images"].detach()',
        'return payload["images"] + 0 * payload["other"].round()',
    ],
    ("decoder", "refuses other payloads"): ['return payload["images"] * payload["other"]'],
    ("tracker", "observes every end"): [
        "raise ValueError('none')",
        "return object()",
        "return Observer(finished=lambda result: result.artifact.path)",
    ],
    ("tracker", "continues a resumed run"): ["(folder / 'once').mkdir()\n    return Observer()"],
    ("tracker", "leaves the run alone"): [
        "return Observer(progress=lambda step, total, values: torch.rand(1))",
    ],
    ("dataset", "loads what it declares"): [
        "return ImageSplits(x.float(), y, x, y)",
        "return ImageSplits(x[:, :, :2], y, x, y)",
        "return ImageSplits(x, y * 0, x, y)",
        "return x",
    ],
    ("dataset", "loads the same again"): [
        "kept.append(1); return ImageSplits(x + len(kept), y, x, y)",
        "torch.rand(1); return ImageSplits(x, y, x, y)",
    ],
    ("network", "maps images to classes"): [
        "return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(info.sample_shape).numel(), 2))",
        "return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(info.sample_shape).numel(), 4), Noise())",
        "return lambda x: x",
        'raise ddbench.Unsupported("no size suits it")',
    ],
    ("network", "can be differentiated twice"): [
        "return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(info.sample_shape).numel(), 4), Once())",
    ],
    ("network", "leaves global state alone"): [
        "python_random.seed(3)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(info.sample_shape).numel(), 4))",
    ],
    ("modality", "makes examples"): [
        "return x, t",
        "return request.examples(splits, x / 0, t)",
        "return request.examples(splits, x.double(), t)",
        "train, test = request.examples(splits, x, t)\n    return replace(train, labels=1 - train.labels), test",
        "train, test = request.examples(splits, x, t)\n    return replace(train, info=replace(train.info, modality='image')), test",
    ],
    ("modality", "makes the same again"): ["return request.examples(splits, x + torch.rand(1), t)"],
    ("modality", "ignores the test split"): ["return request.examples(splits, x - t.mean(), t)"],
    ("modality", "presents a set"): [
        "shown[0] = 3\n    return request.examples(splits, x, t)",
        "shown[0] = ddbench.Presentation()\n    return request.examples(splits, x, t)",
        "shown[0] = ddbench.Presentation(pixels=torch.rand(1, 1, 4, 4))\n    return request.examples(splits, x, t)",
    ],
    ("modality", "refuses whitening"): ["return request.examples(splits, x, t)"],
}
FRAMES = {
    "init": '@ddbench.init\ndef mine(request):\n    """Weights from a made-up distribution."""\n    ',
    "experiment": "@ddbench.hookimpl\ndef ddbench_experiments():\n    ",
    "objective": '@ddbench.objective\ndef mine(info):\n    """An objective that is made up."""\n    ',
    "target": '@ddbench.target\ndef mine():\n    """A target that is made up."""\n    ',
    "tracker": (
        "class Observer(ddbench.Observer):\n    def __init__(self, **methods): vars(self).update(methods)\n\n"
        "@ddbench.hookimpl\ndef ddbench_observe(folder):\n    "
    ),
    "dataset": (
        'kept = []\n@ddbench.dataset(classes=("a", "b"), sample_shape=(1, 4, 4))\ndef mine(root, download):\n'
        '    """Images that are made up."""\n'
        "    x, y = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2\n    "
    ),
    "decoder": (
        "def example(info, generator):\n"
        '    return {"images": torch.randn((2, *info.sample_shape), generator=generator), "other": torch.ones(1)}\n\n'
        '@ddbench.decoder(version=1, example=example)\ndef mine(payload, info):\n    """Images that are made up."""\n    '
    ),
    "modality": (
        "shown = [ddbench.Presentation(lines=('seen',))]\n"
        "def few(generator):\n"
        "    values, labels = torch.rand(8, 3, generator=generator), torch.arange(8) % 2\n"
        "    return ddbench.Splits(values[:4], labels[:4], values[4:], labels[4:])\n\n"
        "@ddbench.modality(present=lambda distilled: shown[0], example=few)\ndef mine(splits, request):\n"
        '    """Numbers that are made up."""\n'
        "    x, t = splits.train_inputs, splits.test_inputs\n    "
    ),
    "network": (
        "class Noise(nn.Module):\n    def forward(self, x): return x + torch.rand_like(x)\n\n"
        "class _Cut(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x): return x * 2\n"
        "    @staticmethod\n    @torch.autograd.function.once_differentiable\n    def backward(ctx, g): return g * 2\n\n"
        "class Once(nn.Module):\n    def forward(self, x): return _Cut.apply(x)\n\n"
        '@ddbench.network\ndef mine(info):\n    """A network that is made up."""\n    '
    ),
}


def caught(tmp_path: Path, kind: str, source: str, only: str = "") -> dict[str, tuple[str, str]]:
    """Return the failed checks, or the one of `only` if it failed, each with its problem and advice."""
    path = tmp_path / "faulty.py"
    path.write_text(HEAD + textwrap.dedent(source))
    catalog = Catalog([path])
    assert not catalog.broken, catalog.broken
    thing = find(kind, {"tracker": "faulty", "decoder": "mine/v1"}.get(kind, "mine"), catalog)
    checks = [check for check in CHECKS[kind] if only in ("", title(check))]
    outcomes = [outcome(check, Subject(thing, catalog, tmp_path)) for check in checks]
    failures = {o.check: (o.text, o.advice) for o in outcomes if o.status == "failed"}
    assert all(text and advice for text, advice in failures.values()), "a failure has a problem and an advice"
    assert not Path("notes.txt").exists(), "the folder that a plugin is checked from stays clean"
    return failures


@pytest.mark.parametrize(
    ("check", "body"),
    [
        # A method that says nothing must take its time.
        pytest.param(check, body, marks=[pytest.mark.slow] if check == "reports progress" else [])
        for check, bodies in FAULTY_METHODS.items()
        for body in bodies
    ],
)
def test_a_faulty_method_is_caught(tmp_path, check, body):
    assert check in caught(tmp_path, "method", METHOD.replace("BODY", body), check)


@pytest.mark.parametrize(
    ("kind", "check", "body"), [(kind, check, body) for (kind, check), bodies in OTHERS.items() for body in bodies]
)
def test_faulty_plugins_of_other_kinds_are_caught(tmp_path, kind, check, body):
    if kind == "experiment":
        (tmp_path / "mine.toml").write_text(body if "summary" in body else f'summary = "A made-up experiment"\n{body}')
        body = f"return [{str(tmp_path / 'mine.toml')!r}]"
    source = FRAMES.get(kind, "") + body
    if kind == "method":
        source += f"\n    {GOOD}\n    return DistilledSet(*chosen.in_steps(task.budget.steps))"
    if kind not in ("experiment", "tracker"):
        source += f"\n\n@ddbench.hookimpl\ndef ddbench_{plural(kind)}():\n    return [mine]\n"
    failures = caught(tmp_path, kind, source, check)
    assert check in failures, failures


def test_shipped_experiments_conform(catalog):
    for experiment in catalog.experiments():
        assert [o for o in conform(experiment, catalog) if o.status == "failed"] == [], experiment.name


@pytest.mark.slow
def test_a_shipped_tracker_conforms():
    catalog = Catalog(["ddbench_trackers.tensorboard"])
    outcomes = list(conform(find("tracker", "ddbench_trackers.tensorboard", catalog), catalog))
    assert {o.status for o in outcomes} == {"passed"}, outcomes


def test_pretrained_inits_are_checked_and_not_skipped(catalog):
    for name in ("random_pretrained", "fixed_pretrained", "mixture"):
        assert {o.status for o in conform(catalog.get("init", name), catalog)} == {"passed"}


@pytest.mark.slow
def test_a_check_leaves_nothing_in_the_cache(ddbench, cold_cache):
    assert ddbench("check", "forgetting").code == 0
    assert ddbench("check", "random_pretrained").code == 0
    left = [path for path in cold_cache.rglob("*") if path.is_file() and path.parent.name != "index"]
    assert left == []


def test_a_sound_method_passes(tmp_path):
    assert caught(tmp_path, "method", METHOD.replace("BODY", GOOD)) == {}


def test_a_name_registered_twice_is_caught(ddbench, tmp_path):
    (tmp_path / "twice.py").write_text(HEAD + METHOD.replace("BODY", GOOD).replace("[mine]", "[mine, mine]"))
    assert ddbench("check", "mine", "--plugin", "twice.py").code == 4


def test_every_fault_has_its_check_and_every_check_its_fault():
    faults = {("method", check) for check in FAULTY_METHODS} | set(OTHERS)
    # A name that is registered twice cannot be looked up; files and options are the work of the harness.
    harness = {"registered once", "options are stable", "documented", "survives its file"}
    checks = {(kind, title(check)) for kind, kind_checks in CHECKS.items() for check in kind_checks}
    assert {pair for pair in checks if pair[1] not in harness} == {pair for pair in faults if pair[1] not in harness}


UNROLLED = ("linba", "rat_bptt", "reversible_hypergradients", "soft_label_dd", "unrolled_gd")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, component.name)
        for kind in KINDS
        for component in Catalog().components(kind)
        if component.name not in ("usps", "cifar10")
    ],
)
def test_what_ships_conforms(kind, name, catalog, ddbench):
    if name in ("optimised_real", "sre2l", *UNROLLED):
        # Types are checked at run time in these tests, and the checker draws from Python's random numbers.
        done = ddbench("check", name)
        assert done.code == 0, done.out
        return
    failed = [o for o in conform(catalog.get(kind, name), catalog) if o.status == "failed"]
    assert failed == []


@pytest.mark.slow
def test_the_command(ddbench, tmp_path):
    good = ddbench("check", "herding")
    assert (good.code, "0 failed" in good.out) == (0, True)
    (tmp_path / "faulty.py").write_text(HEAD + METHOD.replace("BODY", f"{GOOD}; task.train.inputs.mul_(2)"))
    bad = ddbench("check", "mine", "--plugin", "faulty.py")
    assert bad.code == 4
    assert "FAILED" in bad.out and "Clone the tensor before writing to it." in bad.out
    document = ddbench("check", "mine", "--plugin", "faulty.py", "--json")
    assert document.code == 4
    assert document.json()["status"] == "failed"
    assert ddbench("check", "nothing").code == 2


class TestHerding(MethodTests):
    name = "herding"


class TestLinearBound(ExperimentTests):
    name = "wang2018/linear-bound"


class TestRandom(InitTests):
    name = "random"


class TestClassification(ObjectiveTests):
    name = "classification"


class TestDigits(DatasetTests):
    name = "digits"


class TestLinear(NetworkTests):
    name = "linear"

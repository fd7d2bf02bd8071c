from pathlib import Path

import pytest
import torch

from ddbench.contract.spec import RunSpec, Settings
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, MissingPrerequisite, PluginError, UsageError
from ddbench.pipeline.data import split_validation
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from ddbench.pipeline.runner import run

PLUGIN = '''
"""Parts that fail, and a target."""
import torch
from torch import nn
import ddbench
from ddbench import AdaptationTarget, ImageSplits, Objective

@ddbench.network
def wrong_outputs(info):
    """Three outputs whatever the classes."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

@ddbench.network
def not_a_module(info):
    """Nothing."""
    return 3

@ddbench.init
def crashing(request):
    """Raises."""
    raise ZeroDivisionError("on purpose")

@ddbench.init
def nan(request):
    """NaN weights."""
    return {k: torch.full((request.n, *p.shape), torch.nan) for k, p in request.network.named_parameters()}

@ddbench.init
def short(request):
    """Without the leading dimension."""
    return {k: p.detach() for k, p in request.network.named_parameters()}

@ddbench.dataset(classes=("a", "b"), sample_shape=(1, 4, 4), network="linear")
def crashing_data(root, download):
    """Raises."""
    raise KeyError("on purpose")

@ddbench.dataset(classes=("a", "b"), sample_shape=(1, 4, 4), network="linear")
def no_splits(root, download):
    """Returns a pair."""
    return torch.zeros(1), torch.zeros(1)

def ones(request):
    return {k: torch.ones(1, *p.shape) for k, p in request.network.named_parameters()}

def broken_measure(logits, labels):
    raise KeyError("on purpose")

def objective(name, **changes):
    declared = {"loss": None, "measure": lambda logits, labels: {"error": 0.5}, "metrics": (ddbench.Metric("error"),)}

    def build(info):
        """An objective."""
        return Objective(**{**declared, **changes})

    build.__name__ = name
    return ddbench.objective(build)

@ddbench.target
def from_ones():
    """A pretrained network of ones, adapted to digits."""
    return AdaptationTarget(dataset="digits", network="linear", sample=ones)

@ddbench.hookimpl
def ddbench_networks():
    return [wrong_outputs, not_a_module]

@ddbench.hookimpl
def ddbench_inits():
    return [crashing, nan, short]

@ddbench.hookimpl
def ddbench_datasets():
    return [crashing_data, no_splits]

@ddbench.hookimpl
def ddbench_objectives():
    return [
        objective("raising", measure=broken_measure),
        objective("misnaming", measure=lambda logits, labels: {"accuracy": 0.5}),
        objective("wording", measure=lambda logits, labels: {"error": "low"}),
        objective("unranked", metrics=()),
    ]

@ddbench.hookimpl
def ddbench_targets():
    return [from_ones]
'''


@pytest.fixture
def faulty(tmp_path: Path) -> Catalog:
    (tmp_path / "faulty.py").write_text(PLUGIN)
    catalog = Catalog([tmp_path / "faulty.py"])
    assert catalog.broken == []
    return catalog


def completed(catalog: Catalog, **fields: object) -> Settings:
    return plan_run(RunSpec.parse({"method": "random_subset", **fields}), catalog).settings


def test_a_complete_spec_spells_everything_out(catalog: Catalog):
    spec = completed(catalog)
    assert (spec.network.name, spec.images_per_class, spec.steps, spec.epochs) == ("mlp", 1, 1, 3)
    assert spec.method.options == {"balanced": True}
    assert spec.init.options == {"scheme": "xavier", "distribution": "normal"}
    mnist = completed(catalog, dataset="mnist")
    assert (mnist.network.name, mnist.images_per_class, mnist.steps) == ("lenet", 10, 10)
    again = plan_run(spec.asked(), catalog).settings
    assert again.fingerprint == spec.fingerprint


@pytest.mark.parametrize("part", ["method", "dataset", "network", "init", "objective", "target", "protocol"])
def test_unknown_names(catalog: Catalog, part: str):
    with pytest.raises(UsageError, match="no.*'nonsense'"):
        completed(catalog, **{part: "nonsense"})


def test_data_is_split_and_the_test_split_is_not_in_the_task(make_prepared):
    prepared = make_prepared()
    assert (prepared.record.train, prepared.record.validation, prepared.record.test) == (1295, 142, 360)
    task = prepared.task(torch.Generator())
    held = {x.numpy().tobytes() for part in (prepared.setting.validation, prepared.setting.test) for x in part.inputs}
    # Digits holds a few images twice; all others are in one split only.
    assert sum(x.numpy().tobytes() in held for x in task.train.inputs) <= 2
    assert not any("test" in name or "validation" in name for name in vars(task))


def test_the_validation_slice_has_its_share_of_each_class(make_prepared):
    train = make_prepared(validation=0.1).train
    kept, held_out = split_validation(train, 0.25)
    assert len(kept) + len(held_out) == len(train)
    for label in range(10):
        members = len(train.of_class(label))
        assert len(held_out.of_class(label)) == round(0.25 * members)
    again = split_validation(train, 0.25)[1]
    assert torch.equal(held_out.inputs, again.inputs)


def test_smoke_runs_take_little_data(make_prepared):
    prepared = make_prepared(smoke=True)
    assert len(prepared.train) == 500
    assert len(prepared.setting.test) == 200


def test_targets_bring_dataset_network_and_weights(faulty: Catalog):
    plan = plan_run(RunSpec.parse({"method": "random_subset", "target": "from_ones"}), faulty)
    settings = plan.settings
    assert (settings.dataset.name, settings.network.name, settings.init.name) == ("digits", "linear", "from_ones")
    prepared = prepare(plan, faulty)
    drawn = prepared.task(torch.Generator()).networks.sample(5)
    assert drawn.params["classifier.bias"].tolist() == [[1.0] * 10]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "not_a_module"}, "'not_a_module' .* returned int, not an nn.Module"),
        ({"network": "wrong_outputs"}, r".* gives outputs \[3\] for 10 classes"),
        ({"dataset": "crashing_data"}, "'crashing_data' .* raised KeyError: 'on purpose'"),
        ({"objective": "raising"}, "'raising' .* raised KeyError: 'on purpose'"),
        ({"objective": "misnaming"}, "'misnaming' .* declares error and measures accuracy"),
        ({"objective": "wording"}, "'wording' .* raised ValueError: could not convert string"),
        ({"objective": "unranked"}, "'unranked' .* declares no metrics"),
        ({"dataset": "no_splits"}, "'no_splits' .* returned tuple, not ImageSplits"),
    ],
)
def test_faulty_parts_are_named(faulty: Catalog, fields, message):
    with pytest.raises(PluginError, match=message):
        prepare(plan_run(RunSpec.parse({"method": "random_subset", **fields}), faulty), faulty)


@pytest.mark.parametrize(
    ("init", "message"),
    [("crashing", "ZeroDivisionError: on purpose"), ("nan", "NaN or infinite"), ("short", "of shape")],
)
def test_faulty_inits_are_reported_when_they_draw(faulty: Catalog, init, message):
    prepared = prepare(plan_run(RunSpec.parse({"method": "random_subset", "init": init}), faulty), faulty)
    with pytest.raises(PluginError, match=message):
        prepared.task(torch.Generator()).networks.sample(2)


def test_networks_that_do_not_fit_the_images(catalog: Catalog):
    with pytest.raises(UsageError, match="lenet needs images of at least 12x12 pixels; digits has 8x8"):
        prepare(plan_run(RunSpec.parse({"method": "random_subset", "network": "lenet"}), catalog), catalog)


def test_devices():
    from ddbench.machine.environment import resolve_device

    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(MissingPrerequisite, match="'cuda' is not available"):
            resolve_device("cuda")
    with pytest.raises(UsageError, match="no device called 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(DdbenchError):
        resolve_device("meta")


def test_the_name_of_an_experiment_stays_where_its_task_does(catalog):
    def named(experiment: str, **changes: object) -> str:
        fields = {**catalog.experiment(experiment).spec, "experiment": experiment, **changes}
        return plan_run(RunSpec.parse(fields), catalog).settings.experiment

    method = {"name": "unrolled_gd", "options": {"outer_steps": 5}}
    assert named("wang2018/mnist-fixed-1x3", seed=4, method=method) == "wang2018/mnist-fixed-1x3"
    pool = {"name": "usps_to_mnist", "options": {"count": 6}}
    assert named("wang2018/usps-to-mnist-random", target=pool) == "wang2018/usps-to-mnist-random"
    assert named("wang2018/linear-bound", images_per_class=3) == "wang2018/linear-bound"
    for change in ({"images_per_class": 2}, {"method": "herding"}, {"protocol": "knn/v1"}, {"init": "random"}):
        assert named("wang2018/mnist-fixed-1x3", **change) == ""
    fixed = {"name": "usps_to_mnist", "options": {"fixed": True}}
    assert named("wang2018/usps-to-mnist-random", target=fixed) == ""
    assert plan_run(RunSpec.parse({"method": "herding", "experiment": "no/such"}), catalog).settings.experiment == ""


COUNTED = """
import ddbench
from ddbench import DistilledSet
from ddbench.builtin.datasets import digits as real

loads = []

@ddbench.dataset(classes=tuple("0123456789"), sample_shape=(1, 8, 8), network="linear", images_per_class=1)
def counted(root, download):
    \"\"\"Digits, counting how often they are loaded.\"\"\"
    loads.append(1)
    return real(root, download)

@ddbench.method
def scribbles(task, run):
    \"\"\"Return real images, after writing into one of them.\"\"\"
    task.train.inputs[0, 0, 0, 0] += 1
    return DistilledSet(task.train.inputs[None, :10].clone(), task.train.labels[None, :10])

@ddbench.hookimpl
def ddbench_datasets():
    return [counted]

@ddbench.hookimpl
def ddbench_methods():
    return [scribbles]
"""


@pytest.fixture
def counting(tmp_path: Path) -> Catalog:
    (tmp_path / "counted.py").write_text(COUNTED)
    catalog = Catalog([tmp_path / "counted.py"])
    assert catalog.broken == []
    return catalog


def loads_of(catalog: Catalog) -> list[int]:
    return catalog.get("dataset", "counted").function.__globals__["loads"]


@pytest.mark.slow
def test_a_run_with_pretrained_networks_loads_its_data_once(counting: Catalog, tmp_path: Path):
    init = {"name": "random_pretrained", "options": {"count": 2, "held_out": 2, "steps": 5}}
    spec = {"method": "random_subset", "dataset": "counted", "init": init, "eval_networks": 2, "protocol": "train/v1"}
    result = run(spec, catalog=counting, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    assert result.status == "ok"
    assert len(loads_of(counting)) == 1


def test_methods_are_given_the_data_themselves(make_prepared):
    prepared = make_prepared()
    task = prepared.task(torch.Generator())
    assert task.train.inputs.data_ptr() == prepared.train.inputs.data_ptr()


def test_a_method_that_writes_into_the_training_data_is_named(counting: Catalog, tmp_path: Path):
    spec = {"method": "scribbles", "dataset": "counted", "eval_networks": 2}
    with pytest.raises(PluginError, match="'scribbles' .* wrote into the training data"):
        run(spec, catalog=counting, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")


def test_a_set_may_be_scored_on_another_network(catalog: Catalog):
    spec = RunSpec.parse({"method": "random_subset", "network": "linear", "eval_network": "mlp"})
    plan = plan_run(spec, catalog)
    prepared = prepare(plan, catalog)
    assert "classifier.weight" in prepared.task(torch.Generator()).networks.sample(1).params
    scoring = prepared.setting.networks("evaluation", torch.Generator()).sample(1)
    assert "fc1.weight" in scoring.params
    same = plan_run(RunSpec.parse({"method": "random_subset", "network": "linear"}), catalog).settings
    assert same.eval_network == same.network
    assert '"eval_network":' not in same.canonical()
    assert '"eval_network":' in plan.settings.canonical()
    with pytest.raises(UsageError, match="brings its own scoring network"):
        plan_run(RunSpec.parse({"method": "random_subset", "target": "mnist_to_usps", "eval_network": "mlp"}), catalog)

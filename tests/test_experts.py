"""Expert trajectories and teachers: trained once, kept, shared, and never half a file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.contract.experts import ExpertRecipe
from ddbench.contract.observer import Silent
from ddbench.contract.spec import RunSpec
from ddbench.contract.task import Task
from ddbench.errors import DdbenchError, Interrupted, MissingPrerequisite, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import Prepared, prepare
from ddbench.pipeline.runner import resume, run
from ddbench.testing import conform
from ddbench.testing import tiny as small
from ddbench.testing.tiny import Tiny

pytestmark = pytest.mark.usefixtures("cold_cache")
PLUGIN = Path(__file__).parent / "small_mtt.py"
QUICK = {"epochs": 3, "lr": 0.05, "batch": 256}


@pytest.fixture(scope="module")
def with_mtt():
    from ddbench.discovery.catalog import Catalog

    return Catalog([PLUGIN])


@pytest.fixture
def task_of(make_prepared):
    def make(time_left=lambda: float("inf"), **fields: object) -> Task:
        return make_prepared(**fields).task(torch.Generator(), time_left)

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("expert-*.safetensors"))}


def test_a_trajectory_is_sgd_on_the_training_data(task_of):
    """Epoch by epoch the weights are those of a plain loop with torch's own SGD on the same batches."""
    task = task_of()
    recipe = {"epochs": 2, "lr": 0.05, "momentum": 0.9, "decay": 0.01, "batch": 200}
    experts = task.experts(2, **recipe)
    assert (len(experts), experts.epochs) == (2, 2)
    for expert in range(2):
        trajectory = experts.trajectory(expert)
        params = {name: t[0].clone().requires_grad_() for name, t in trajectory.items()}
        optimizer = torch.optim.SGD(list(params.values()), 0.05, 0.9, weight_decay=0.01)
        from ddbench.machine.seeds import derive_seed

        generator = torch.Generator().manual_seed(derive_seed("expert", expert, "order"))
        for epoch in (1, 2):
            order = torch.randperm(len(task.train), generator=generator)
            for part in order.split(200):
                logits = functional_call(task.networks.module, params, (task.train.inputs[part],))
                optimizer.zero_grad()
                F.cross_entropy(logits, task.train.labels[part]).backward()
                optimizer.step()
            for name, tensor in params.items():
                torch.testing.assert_close(trajectory[name][epoch], tensor.detach(), rtol=1e-4, atol=1e-6)
    first, second = (experts.start(expert, 0).params for expert in range(2))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


def test_an_epoch_is_a_part_of_the_trajectory(task_of):
    experts = task_of(network="mlp").experts(1, **QUICK)
    trajectory = experts.trajectory(0)
    for epoch in range(4):
        start = experts.start(0, epoch)
        assert all(torch.equal(trajectory[name][epoch], tensor) for name, tensor in start.params.items())
    # What an author writes into a state stays the author's.
    experts.start(0, 1).params["layers.0.weight" if "layers.0.weight" in trajectory else next(iter(trajectory))].zero_()
    assert all(torch.equal(trajectory[name][1], tensor) for name, tensor in experts.start(0, 1).params.items())


def test_experts_are_trained_once_for_all_seeds_and_grow(task_of, cold_cache):
    task_of(seed=1).experts(2, **QUICK)
    times = {path: path.stat().st_mtime_ns for path in cold_cache.rglob("expert-*")}
    assert len(times) == 2
    task_of(seed=2).experts(3, **QUICK)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    whole = files(cold_cache)
    for path in list(cold_cache.rglob("expert-*"))[1:]:
        path.unlink()
    task_of().experts(3, **QUICK)
    assert files(cold_cache) == whole


@pytest.mark.parametrize("fields", [{"network": "mlp"}, {"validation": 0.2}, {"sample_shape": [3, 8, 8]}])
def test_other_networks_and_data_have_other_experts(task_of, fields):
    assert task_of().experts(1, **QUICK).folder != task_of(**fields).experts(1, **QUICK).folder


@pytest.mark.parametrize(
    "change", [{"epochs": 2}, {"lr": 0.1}, {"batch": 128}, {"momentum": 0.5}, {"decay": 0.1}, {"augment": "crop"}]
)
def test_other_recipes_have_other_experts(task_of, change):
    task = task_of()
    assert task.experts(1, **QUICK).folder != task.experts(1, **{**QUICK, **change}).folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, "0 experts were asked for"),
        ({"epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
        ({"lr": -1.0}, "lr=-1.0: input should be greater than 0"),
        ({"batch": 0}, "batch=0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"epoch": 3}, "epoch=3"),
        ({"augment": "crop_blur"}, "unknown operation 'blur'"),
    ],
)
def test_recipes_that_are_invalid(task_of, arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        task_of().experts(**arguments)


def test_experts_and_epochs_beyond_the_last(task_of):
    experts = task_of().experts(1, **QUICK)
    for expert, epoch, sentence in (
        (1, 0, "1 experts; expert 1"),
        (-1, 0, "expert -1"),
        (0, 4, "epoch 4"),
        (0, -1, "epoch -1"),
    ):
        with pytest.raises(UsageError, match=sentence):
            experts.start(expert, epoch)
    with pytest.raises(UsageError, match="expert 1 was asked for"):
        experts.trajectory(1)


def test_damaged_and_foreign_files_are_named(task_of):
    experts = task_of().experts(2, **QUICK)
    whole = experts.path(1).read_bytes()
    for content, sentence in (
        (whole[:-100], r"expert-00001.safetensors is damaged"),
        (b"not a file of tensors", r"expert-00001.safetensors is damaged"),
        (experts.path(0).read_bytes(), "does not hold expert 1 of this network, dataset and recipe"),
        (task_of().experts(2, epochs=1).path(1).read_bytes(), "does not hold expert 1"),
        (task_of(network="mlp").experts(2, **QUICK).path(1).read_bytes(), "does not hold expert 1"),
        (safetensors.torch.save({"a": torch.zeros(1)}), "does not hold expert 1"),
    ):
        experts.path(1).write_bytes(content)
        with pytest.raises(DdbenchError, match=sentence) as raised:
            task_of().experts(2, **QUICK)
        assert raised.value.exit_code == 1
        assert "Remove the file" in raised.value.hint
    experts.path(1).unlink()
    assert task_of().experts(2, **QUICK).path(1).read_bytes() == whole


def test_an_expert_that_diverges_is_named_and_not_kept(task_of, cold_cache):
    with pytest.raises(DdbenchError, match="expert 0 diverged in epoch 1 of 3") as raised:
        task_of(network="mlp").experts(2, epochs=3, lr=1e30)
    assert "Lower the rate 1e+30" in raised.value.hint
    assert files(cold_cache) == {}


def test_the_time_limit_ends_the_training_and_keeps_what_is_done(task_of, cold_cache):
    experts = task_of().experts(1, **QUICK)
    trained = experts.path(0).stat().st_mtime_ns
    left: Iterator[float] = iter([1.0] * 20)
    with pytest.raises(MissingPrerequisite, match=r"the time limit ended after \d of 4 experts were trained") as raised:
        task_of(lambda: next(left, 0.0)).experts(5, **QUICK)
    assert (
        "ddbench pretrain --dataset digits --network linear --experts --count 5 --epochs 3 --lr 0.05"
        in raised.value.hint
    )
    assert experts.path(0).stat().st_mtime_ns == trained
    kept = len(files(cold_cache))
    assert 2 <= kept < 5
    task_of().experts(5, **QUICK)
    assert len(files(cold_cache)) == 5


def test_an_interruption_keeps_what_is_done(task_of, monkeypatch, cold_cache):
    def interrupt(self: Silent, done: int, *_: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Silent, "progress", interrupt)
        with pytest.raises(KeyboardInterrupt):
            task_of().experts(3, **QUICK)
    assert list(files(cold_cache)) == ["expert-00000.safetensors"]
    assert len(task_of().experts(3, **QUICK)) == 3


def test_what_a_method_declares_is_trained_before_its_clock_starts(with_mtt, tmp_path):
    """Under a limit that ends at once, its loop takes no step; without the declaration there are no experts."""
    spec = {"network": "linear", "smoke": True, "time_limit": 0.001}
    folders = {"runs": tmp_path / "runs", "leaderboards": tmp_path / "leaderboards", "catalog": with_mtt}
    with pytest.raises(MissingPrerequisite, match="the time limit ended after 0 of 2 experts"):
        run({"method": "hasty_mtt", **spec}, **folders)
    assert run({"method": "small_mtt", **spec}, **folders).loop.steps == 0


def test_a_full_disk_keeps_what_is_done(task_of, monkeypatch, cold_cache):
    from ddbench.pipeline import experts as module

    write, calls = module.atomic_write, []

    def fill(path: Path, data: bytes) -> None:
        calls.append(path)
        if path.name == "expert-00002.safetensors":
            raise DdbenchError(f"cannot write {path}: no space left on device.")
        write(path, data)

    monkeypatch.setattr(module, "atomic_write", fill)
    with pytest.raises(DdbenchError, match="no space left") as raised:
        task_of().experts(3, **QUICK)
    assert "Experts 0 to 1 are kept" in raised.value.hint and "DDBENCH_CACHE" in raised.value.hint
    assert list(files(cold_cache)) == ["expert-00000.safetensors", "expert-00001.safetensors"]


def test_a_smoke_run_trains_few_for_few_epochs(task_of):
    experts = task_of(smoke=True).experts(100, epochs=50)
    assert (len(experts), experts.epochs) == (2, 4)
    assert experts.folder != task_of().experts(2, epochs=4).folder


def test_looking_ahead_trains_nothing(with_mtt, cold_cache):
    plan = plan_run(RunSpec.parse({"method": "small_mtt", "network": "linear"}), with_mtt)
    with pytest.raises(MissingPrerequisite, match=r"3 experts would be trained first: 6 epochs .*about \d+ seconds"):
        prepare(plan, with_mtt, download=False).train_needs(plan.method, plan.settings.method.options)
    assert not (cold_cache / "experts").exists()


def test_the_second_seed_trains_nothing(with_mtt, tmp_path, cold_cache):
    """Two runs of a method share the experts; the record says which they were."""
    spec = {"method": "small_mtt", "network": "linear", "smoke": True}
    folders = {"runs": tmp_path / "runs", "leaderboards": tmp_path / "leaderboards", "catalog": with_mtt}
    first = run({**spec, "seed": 0}, **folders)
    trained = {path: path.stat().st_mtime_ns for path in cold_cache.rglob("expert-*")}
    assert len(trained) == 2
    second = run({**spec, "seed": 1}, **folders)
    assert {path: path.stat().st_mtime_ns for path in cold_cache.rglob("expert-*")} == trained
    assert first.artifact.sha256 != second.artifact.sha256
    [(name, facts)] = first.pretrained.items()
    assert name == next(cold_cache.glob("experts/*")).name
    assert facts == {"experts": 2, "dataset": "digits", "epochs": 4, "lr": 0.05, "batch": 128}
    assert second.pretrained == first.pretrained


def test_experts_of_a_set_stay_in_its_record(with_mtt, tmp_path, monkeypatch):
    """Scoring is interrupted, and resumed without a call of the method: the record names the experts all the same."""
    from ddbench.pipeline import runner

    folders = {"leaderboards": tmp_path / "leaderboards", "catalog": with_mtt}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "score", interrupted)
        with pytest.raises(Interrupted):
            run({"method": "hasty_mtt", "network": "linear", "smoke": True}, runs=tmp_path / "runs", **folders)
    [folder] = (tmp_path / "runs").iterdir()
    result = resume(folder, **folders)
    [facts] = result.pretrained.values()
    assert facts["experts"] == 2


@pytest.mark.slow
def test_running_statistics_are_kept_with_every_epoch(make_prepared):
    """A network with batch normalisation has them in its experts and its teachers."""
    prepared = make_prepared(network="resnet20", smoke=True)
    task = prepared.task(torch.Generator())
    experts = task.experts(1, epochs=2, batch=256)
    first, last = experts.start(0, 0), experts.start(0, 2)
    name = next(name for name in first.buffers if name.endswith("running_mean"))
    assert not first.buffers[name].any() and last.buffers[name].any()
    counter = name.replace("running_mean", "num_batches_tracked")
    steps = -(-len(prepared.train) // 256)
    assert int(last.buffers[counter]) == 2 * steps
    assert experts.trajectory(0).keys() == first.params.keys()
    [teacher] = task.teachers(1, steps=3)
    assert teacher.buffers[name].any()


def test_a_task_made_by_hand_has_none(make_prepared):
    whole = make_prepared().task(torch.Generator())
    task = Task(whole.train, whole.objective, whole.networks, whole.budget, whole.info)
    with pytest.raises(UsageError, match="this task has no experts"):
        task.experts(2)
    with pytest.raises(UsageError, match="this task has no teachers"):
        task.teachers()


def test_teachers_know_the_training_data(make_prepared, cold_cache):
    prepared: Prepared = make_prepared()
    task = prepared.task(torch.Generator())
    teachers = task.teachers(2, steps=60, lr=0.01)
    assert len(teachers) == 2 and teachers[0] is teachers.states[0]
    for teacher in teachers:
        logits = functional_call(teachers.module, (teacher.params, teacher.buffers), (task.train.inputs,))
        assert (logits.argmax(1) == task.train.labels).float().mean() > 0.85
    [(name, facts)] = prepared.asked_by_method().items()
    assert name.startswith("teachers/digits_linear-")
    assert facts["network"] == "linear" and facts["networks"] == 2 and facts["steps"] == 60
    times = {path: path.stat().st_mtime_ns for path in cold_cache.rglob("*.safetensors")}
    assert len(times) == 2
    make_prepared(seed=5).task(torch.Generator()).teachers(2, steps=60, lr=0.01)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_teachers_of_another_architecture(make_prepared):
    task = make_prepared().task(torch.Generator())
    teachers = task.teachers(1, network={"name": "mlp", "options": {"width": 8}}, steps=20)
    assert {tuple(p.shape) for p in teachers[0].params.values()} == {
        tuple(p.shape) for p in teachers.module.parameters()
    }
    for network, sentence in (("nothing_like_it", "nothing_like_it"), (3, "names no network")):
        with pytest.raises(UsageError, match=sentence):
            task.teachers(1, network=network)
    with pytest.raises(UsageError, match="0 teachers"):
        task.teachers(0)


def test_teachers_that_would_take_longer_than_there_is_time(task_of):
    with pytest.raises(MissingPrerequisite, match="training 2 networks would take about"):
        task_of(lambda: 0.0).teachers(2)


def test_the_kit_gives_experts_and_teachers(with_mtt):
    task = small.task(with_mtt, Tiny(), torch.Generator().manual_seed(0))
    experts = task.experts(100, epochs=50)
    assert (len(experts), experts.epochs) == (2, 4)
    teachers = task.teachers(2)
    assert len(teachers) == 2 and not torch.equal(*(next(iter(t.params.values())) for t in teachers))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_mtt", "confident"])
def test_methods_that_use_them_conform(with_mtt, name):
    failed = [outcome for outcome in conform(with_mtt.get("method", name), with_mtt) if outcome.status == "failed"]
    assert failed == []


@pytest.mark.slow
def test_the_command_line(ddbench, tmp_path):
    """Trained beforehand, listed, used without training, pruned; a limit within the training is explained."""
    limited = ddbench("run", "--plugin", PLUGIN, "-m", "hasty_mtt", "--network", "linear", "--time-limit", "0.01")
    assert limited.code == 3, limited.err
    assert "the time limit ended after 0 of 3 experts" in limited.message() and "ddbench pretrain" in limited.message()
    recipe = ["--epochs", 6, "--lr", 0.05, "--batch", 128]
    trained = ddbench("pretrain", "-d", "digits", "--network", "linear", "--experts", "--count", 3, *recipe)
    assert trained.code == 0, trained.err
    assert "linear on digits, 3 experts" in trained.out and "about" in trained.err
    [entry] = json.loads(ddbench("list", "pools", "--json").out)["pools"]
    facts = {"kind": "experts", "dataset": "digits", "network": "linear", "count": 3}
    assert entry["facts"].items() >= facts.items() and entry["facts"]["megabytes"] > 0
    used = ddbench("run", "--plugin", PLUGIN, "-m", "hasty_mtt", "--network", "linear", "--smoke", "--json")
    assert used.code == 0, used.err
    assert ddbench("prune", "--older-than", 1).out == "nothing is that old\n"
    for arguments in ([], ["nothing"], ["--older-than", "-1"]):
        assert ddbench("prune", *arguments).code == 2
    assert "removed" in ddbench("prune", entry["name"]).out
    assert entry["name"] not in ddbench("list", "pools").out
    assert not (tmp_path / "cache" / "experts" / entry["name"]).exists()


@pytest.mark.slow
def test_flags_that_would_be_ignored(ddbench):
    for flags in (["--experts", "--steps", 5], ["--experts", "--held-out", 5], ["--epochs", 3], ["--batch", 3]):
        refused = ddbench("pretrain", "-d", "digits", *flags)
        assert refused.code == 2 and "has no part in" in refused.message()
    none = ddbench("pretrain", "-d", "digits", "--experts", "--count", 0)
    assert none.code == 2 and "0 experts were asked for" in none.message()


@pytest.mark.slow
def test_a_small_disk(ddbench, tmp_path):
    """A limit on the size of a file stands in for a full disk."""
    arguments = ["pretrain", "-d", "digits", "--network", "linear", "--experts", "--count", 2, "--epochs", 20]
    full = ddbench(*arguments, file_limit=50_000)
    assert full.code == 1
    assert "cannot write" in full.message() and "DDBENCH_CACHE" in full.message()
    assert ddbench(*arguments).code == 0


def test_what_a_recipe_says():
    assert str(ExpertRecipe.parse()) == "50 epochs of SGD at rate 0.01, batches of 256"
    assert str(ExpertRecipe.parse(epochs=1, momentum=0.9)).endswith("batches of 256, momentum 0.9")

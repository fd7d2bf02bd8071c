import json
import shutil

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from ddbench.cli.app import app
from ddbench.contract.inits import InitRequest
from ddbench.contract.spec import RunSpec
from ddbench.contract.state import State
from ddbench.engine.fit import Recipe
from ddbench.errors import DdbenchError, UsageError
from ddbench.pipeline.data import Data
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.pools import Architecture, Pools
from ddbench.render.pools import pools as listed

pytestmark = pytest.mark.usefixtures("cold_cache")
QUICK = Recipe(steps=60, lr=0.01)


@pytest.fixture
def pools_of(catalog):
    def make(**fields: object) -> Pools:
        plan = plan_run(RunSpec.parse({"method": "random_subset", "network": "linear", **fields}), catalog)
        settings = plan.settings
        data = Data.load(
            plan.dataset, settings.dataset, settings.sample_shape, settings, download=False, catalog=catalog
        )
        network = Architecture(plan.network, settings.network)
        return Pools(settings, network, data, catalog, torch.device("cpu"))

    return make


def files(pool) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(pool.folder.glob("*.safetensors"))}


def test_a_pool_is_trained_once_and_grows(pools_of):
    pool = pools_of().open(2, 1, QUICK)
    first = files(pool)
    assert list(first) == ["evaluation-00000.safetensors", "train-00000.safetensors", "train-00001.safetensors"]
    assert len(set(first.values())) == 3
    assert min(pool.accuracies("train") + pool.accuracies("evaluation")) > 0.85
    times = {path: path.stat().st_mtime_ns for path in pool.folder.glob("*.safetensors")}
    larger = pools_of().open(3, 2, QUICK)
    assert larger.folder == pool.folder
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (larger.count("train"), larger.count("evaluation")) == (3, 2)
    assert [pool.name for pool in listed()] == [pool.folder.name]


def test_what_is_missing_is_trained_again_to_the_same_bytes(pools_of):
    pool = pools_of().open(3, 1, QUICK)
    whole = files(pool)
    pool.path("train", 1).unlink()
    pool.path("evaluation", 0).unlink()
    assert files(pools_of().open(3, 1, QUICK)) == whole
    shutil.rmtree(pool.folder)
    assert files(pools_of().open(3, 1, QUICK)) == whole


@pytest.mark.parametrize("other", [{"network": "mlp"}, {"validation": 0.2}, {"sample_shape": [3, 8, 8]}])
def test_other_networks_and_data_have_other_pools(pools_of, other):
    assert pools_of().open(1, 0, QUICK).folder != pools_of(**other).open(1, 0, QUICK).folder
    assert len(list(listed())) == 2


def test_sides_are_apart_and_draws_follow_the_generator(pools_of):
    pools = pools_of()

    def draw(side: str, n: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        request = InitRequest(None, None, n, generator, side, pools)
        return request.pool(count=4, held_out=3, steps=60, lr=0.01).params["classifier.weight"]

    train, held_out = draw("train", 4, 0), draw("evaluation", 3, 0)
    assert not any(torch.equal(a, b) for a in train for b in held_out)
    assert torch.equal(draw("train", 2, 5), draw("train", 2, 5))
    assert any(not torch.equal(draw("train", 2, 5), draw("train", 2, seed)) for seed in range(6, 12))
    assert torch.equal(draw("evaluation", 2, 1), draw("evaluation", 2, 2))
    [(_, used)] = pools.provenance().items()
    assert used == {"networks": 4, "held_out": 3, "dataset": "digits", "steps": 60, "lr": 0.01}


def test_too_few_networks(pools_of):
    for side, told in (("train", "4 networks to train on, fewer than the 5"), ("evaluation", "3 networks held out")):
        with pytest.raises(UsageError, match=told):
            InitRequest(None, None, 5, None, side, pools_of()).pool(count=4, held_out=3, steps=60, lr=0.01)
    assert list(listed()) == []


def test_a_damaged_network_is_named(pools_of):
    pool = pools_of().open(1, 0, QUICK)
    pool.path("train", 0).write_bytes(b"half")
    with pytest.raises(DdbenchError, match=r"train-00000.safetensors is damaged"):
        InitRequest(None, None, 1, None, "train", pools_of()).pool(count=1, held_out=0, steps=60, lr=0.01)


def test_networks_keep_running_statistics_of_their_own(pools_of):
    network = {"name": "convnet", "options": {"width": 4, "depth": 1, "norm": "batch"}}
    pool = pools_of(network=network).open(2, 1, QUICK)
    assert min(pool.accuracies("train") + pool.accuracies("evaluation")) > 0.7
    first, second = pool.weights("train", [0]).network(0), pool.weights("train", [1, 0]).network(0)
    assert sorted(first.buffers) == ["norm1.num_batches_tracked", "norm1.running_mean", "norm1.running_var"]
    assert first.buffers["norm1.num_batches_tracked"].dtype == torch.int64
    assert int(first.buffers["norm1.num_batches_tracked"]) == QUICK.steps
    assert not torch.equal(first.buffers["norm1.running_mean"], second.buffers["norm1.running_mean"])


def test_files_without_buffers_stay_readable(pools_of):
    pool = pools_of().open(2, 0, QUICK)
    tensors = safetensors.torch.load_file(pool.path("train", 0))
    assert sorted(tensors) == ["classifier.bias", "classifier.weight"]
    state = pool.weights("train", [0])
    pool.write("train", 1, State(state.network(0).params, {"count": torch.tensor(3)}), 0.5)
    fresh = pools_of().open(2, 0, QUICK)
    assert fresh.weights("train", [1]).buffers == {"count": torch.tensor([3])}
    assert fresh.weights("train", [0, 1]).buffers == {}


def test_a_pool_keeps_the_other_options_of_the_usual_network(monkeypatch: pytest.MonkeyPatch):
    trained = {}

    def train_pool(fields, **_):
        trained.update(fields)
        raise UsageError("enough")

    monkeypatch.setattr("ddbench.pipeline.pretrain.pretrain", train_pool)
    arguments = ["pretrain", "-d", "svhn", "--count", "1", "--set", "network.norm=instance"]
    CliRunner().invoke(app, arguments)
    assert trained["network"] == {"name": "convnet", "options": {"width": 32, "norm": "instance"}}


@pytest.mark.slow
def test_options_of_a_pool(ddbench):
    """Those of network and dataset make another pool; what would change nothing is refused."""
    made = ddbench("pretrain", "-d", "digits", "--count", 1, "--held-out", 0, "--steps", 2, "--set", "network.width=8")
    assert made.code == 0, made.err
    assert "mlp on digits, 1 networks" in made.out
    for setting in ("init.scheme=kaiming", "outer_steps=3"):
        refused = ddbench("pretrain", "-d", "digits", "--count", 1, "--set", setting)
        assert refused.code == 2 and "no part in a pool" in refused.message()


@pytest.mark.slow
def test_pretrain_and_list(ddbench):
    made = ddbench("pretrain", "-d", "digits", "--network", "linear", "--count", 2, "--held-out", 1, "--steps", 40)
    assert made.code == 0, made.err
    assert "linear on digits, 2 networks to train on and 1 held out" in made.out
    listed = json.loads(ddbench("list", "pools", "--json").out)["pools"]
    assert [entry["name"] for entry in listed] == [made.out.split(":")[0]]
    again = ddbench(
        "pretrain", "-d", "digits", "--network", "linear", "--count", 2, "--held-out", 1, "--steps", 40, "--json"
    )
    assert len(again.json()["accuracies"]["train"]) == 2
    assert "Training" not in again.err


@pytest.mark.slow
def test_a_fixed_network_is_never_one_that_is_held_out(catalog):
    """Distilled for one network of a pool, scored on those held out from the same pool."""
    from ddbench.pipeline.prepare import prepare

    options = {"steps": 60, "lr": 0.01}
    fields = {
        "init": {"name": "fixed_pretrained", "options": options},
        "eval_init": {"name": "random_pretrained", "options": {"count": 5, "held_out": 3, **options}},
    }
    prepared = prepare(
        plan_run(RunSpec.parse({"method": "random_subset", "network": "linear", **fields}), catalog), catalog
    )
    [made_for] = prepared.task(torch.Generator()).networks.sample(1).params["classifier.weight"]
    scored = prepared.setting.networks("evaluation", torch.Generator()).sample(3).params["classifier.weight"]
    assert not any(torch.equal(made_for, weight) for weight in scored)


@pytest.mark.slow
def test_looking_ahead_trains_nothing(ddbench, tmp_path):
    init = ["--init", "random_pretrained", "--set", "init.steps=40", "--network", "linear"]
    planned = ddbench("run", "-m", "unrolled_gd", *init, "--dry-run")
    assert planned.code == 0, planned.err
    assert "lacks networks that would be trained first" in planned.out
    assert list((tmp_path / "cache" / "pools").glob("*/*.safetensors")) == []
    smoke = ddbench("run", "-m", "unrolled_gd", *init, "--smoke", "--json")
    assert smoke.json()["status"] == "ok"
    assert len(list((tmp_path / "cache" / "pools").glob("*/*.safetensors"))) == 16


@pytest.mark.slow
def test_too_few_networks_are_told_before_anything_is_trained(ddbench, tmp_path):
    command = ["run", "-m", "unrolled_gd", "--init", "random_pretrained", "--network", "linear"]
    told = ddbench(*command, "--eval-networks", 50)
    assert told.code == 2
    assert "20 networks held out, fewer than the 50" in told.message()
    few = ddbench(*command, "--set", "init.count=4", "--set", "init.steps=20", "--set", "init.held_out=20")
    assert "4 networks to train on, fewer than the 5" in few.message()
    assert "Distilling" not in few.err


def test_rates_that_are_none(ddbench):
    for rate in ("0", "-1", "nan"):
        told = ddbench("pretrain", "-d", "digits", "--network", "linear", "--lr", rate)
        assert told.code == 2
        assert "error in ddbench" not in told.err


def test_a_network_that_diverged_is_not_kept(pools_of, monkeypatch):
    from ddbench.pipeline import pools

    def diverge(network, starts, seeds, examples, recipe, done):
        done(State({name: torch.full_like(tensor, torch.nan) for name, tensor in starts[0].params.items()}))

    monkeypatch.setattr(pools, "train_each", diverge)
    with pytest.raises(DdbenchError, match="diverged"):
        pools_of().open(1, 0, QUICK)
    assert [pool.summary for pool in listed()] == ["no networks yet"]

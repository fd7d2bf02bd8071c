"""Stacks of networks, as accelerators train them: the numbers of networks one by one, in float64."""

import dataclasses

import pytest
import torch
from torch import nn

from ddbench import DistilledSet, State
from ddbench.contract.experts import ExpertRecipe
from ddbench.contract.observer import Silent
from ddbench.contract.task import cross_entropy
from ddbench.engine.experts import train_experts
from ddbench.engine.fit import Recipe, train_each
from ddbench.engine.stacks import stack_size
from ddbench.protocols import PROTOCOLS
from ddbench.unroll import SGD, Adam, Checkpoint, Recompute, Reverse, Store, choose_engine, loss_on, meta_gradient
from tests.doubled import double

NETS = 3
ACCELERATOR = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


def run_both(monkeypatch: pytest.MonkeyPatch, function):
    """Return the results with networks one by one, and with stacks."""
    results = []
    for stacked in ("0", "1"):
        monkeypatch.setenv("DDBENCH_STACKED", stacked)
        results.append(function())
    return results


def assert_close(actual: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def network_and_states(make_prepared, network: str) -> tuple[nn.Module, State]:
    name, _, norm = network.partition("+")
    fields = dict(name=name, options={"norm": norm} if norm else {})
    small = {"width": 8, "depth": 2} if name == "convnet" else {}
    fields["options"] |= small
    shape = [3, 32, 32] if name in ("alexcifarnet", "resnet20") else [1, 28, 28] if name == "lenet" else [1, 8, 8]
    prepared = make_prepared(network=fields, dataset="digits", sample_shape=shape, images_per_class=1)
    module = prepared.setting.module.double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = State(
            {
                n: torch.randn(NETS, *p.shape, dtype=p.dtype) / max(1, p[0].numel()) ** 0.5
                for n, p in module.named_parameters()
            },
            {n: torch.stack([b.clone() for _ in range(NETS)]) for n, b in module.named_buffers()},
        )
    return module, state


@pytest.mark.parametrize("memory", [Store(), Recompute(), Checkpoint(), Reverse()], ids=lambda memory: memory.name)
@pytest.mark.parametrize(
    "network",
    [
        "linear", "mlp", "lenet", "convnet+instance", "convnet+batch",
        pytest.param("alexcifarnet", marks=pytest.mark.slow), pytest.param("resnet20", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_meta_gradients_are_those_of_single_networks(network: str, memory, make_prepared, monkeypatch):
    if (network, memory.name) == ("alexcifarnet", "reverse"):
        pytest.skip("momenta of these weights leave the range of exact reversal")
    module, state = network_and_states(make_prepared, network)
    shape = module_shape(module, network)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64)
    labels = torch.rand(2, 4, 10, generator=generator, dtype=torch.float64)
    real = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    outer = loss_on(cross_entropy, real, torch.arange(6))
    inner = SGD(torch.tensor([0.02, 0.03, 0.01], dtype=torch.float64), momentum=0.5)

    def gradient():
        return meta_gradient(module, state, inputs, labels, inner, outer, memory=memory, window=2)

    single, stacked = run_both(monkeypatch, gradient)
    assert stacked.engine == "stacked autograd" != single.engine
    # A momentum under reversal is rounded to a ratio, alike in both, but its fixed point rounds the weights.
    tolerance = dict(rtol=1e-6, atol=1e-9) if memory.name == "reverse" else dict(rtol=1e-10, atol=1e-12)
    for part in ("loss", "inputs", "labels", "lrs"):
        torch.testing.assert_close(getattr(stacked, part), getattr(single, part), **tolerance)
    assert single.inputs.abs().max() > 1e-6


def module_shape(module: nn.Module, network: str) -> tuple[int, ...]:
    return (3, 32, 32) if network in ("alexcifarnet", "resnet20") else (1, 28, 28) if network == "lenet" else (1, 8, 8)


def test_steps_of_adam_with_own_rows_and_views(make_prepared, monkeypatch):
    module, state = network_and_states(make_prepared, "convnet+batch")
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    rows = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 3, 5]])
    outer = loss_on(cross_entropy, inputs, torch.arange(6))

    def gradient():
        return meta_gradient(
            module, state, inputs, torch.arange(6), Adam(0.01), outer,
            indices=rows, transform=lambda images, t: images * (t + 1), memory=Store(),
        )  # fmt: skip

    single, stacked = run_both(monkeypatch, gradient)
    for part in ("loss", "inputs", "lrs"):
        assert_close(getattr(stacked, part), getattr(single, part))
    for name, value in single.start.items():
        assert_close(stacked.start[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("init", ["random", "fixed", "random_pretrained"])
@pytest.mark.parametrize(
    "protocol", [name for name in PROTOCOLS if name.startswith(("train", "replay")) and name != "train-views/v1"]
)
def test_every_protocol_scores_stacks_as_single_networks(protocol: str, init: str, make_prepared, monkeypatch):
    options = {"count": 6, "held_out": 3, "steps": 5} if init == "random_pretrained" else {}
    prepared = make_prepared(
        images_per_class=4, network="mlp", dataset="digits", init={"name": init, "options": options}
    )
    setting = double(prepared.setting)
    scored = PROTOCOLS[protocol]
    if protocol.startswith("train"):
        scored = dataclasses.replace(scored, epochs=6, batch=16)
    sets = []
    for seed in range(NETS):
        chosen = prepared.train.random_subset(4, torch.Generator().manual_seed(seed))
        inputs, labels = (part.view(2, 20, *part.shape[1:]) for part in (chosen.inputs.double(), chosen.labels))
        own = torch.full((3, 2), 0.02, dtype=torch.float64)
        extras = {"momentum": own * 9, "decay": own / 100} if protocol == "replay-momentum/v1" else {}
        needs_rate = extras or protocol == "train-dsa-rate/v1"
        sets.append(DistilledSet(inputs, labels, own if needs_rate else None, extras=extras))
    single, stacked = run_both(monkeypatch, lambda: scored.evaluate(sets, setting, NETS, Silent()))
    assert single.selected == stacked.selected
    assert stacked.scores["loss"] == pytest.approx(single.scores["loss"], rel=1e-9)
    assert stacked.before == single.before and stacked.scores["accuracy"] == single.scores["accuracy"]
    assert len(set(single.scores["loss"])) == NETS


def test_pools_and_experts_are_those_of_single_networks(make_prepared, monkeypatch):
    prepared = make_prepared(network={"name": "convnet", "options": {"norm": "batch", "width": 8, "depth": 2}})
    module, state = network_and_states(make_prepared, "convnet+batch")
    examples = dataclasses.replace(prepared.train[torch.arange(40)], inputs=prepared.train.inputs[:40].double())
    starts = [state.network(i) for i in range(NETS)]

    def pool() -> list[State]:
        trained: list[State] = []
        train_each(module, starts, range(NETS), examples, Recipe(steps=4, batch=16), trained.append)
        return trained

    def experts() -> list[State]:
        trained: list[State] = []
        recipe = ExpertRecipe(epochs=2, lr=0.05, momentum=0.5, batch=16, augment="crop")
        train_experts(module, list(enumerate(starts)), examples, recipe, trained.append)
        return trained

    for function in (pool, experts):
        for single, stacked in zip(*run_both(monkeypatch, function), strict=True):
            for part in ("params", "buffers"):
                for name, tensor in getattr(single, part).items():
                    assert_close(getattr(stacked, part)[name].double(), tensor.double())


def test_a_network_that_vmap_cannot_take_stays_single(monkeypatch):
    class Looks(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs * (1 if float(inputs.sum()) > 0 else 2))

    monkeypatch.setenv("DDBENCH_STACKED", "1")
    assert stack_size(Looks(4, 3), (5, 4), 8) == 1
    assert choose_engine(Looks(4, 3), torch.zeros(1, 5, 4), 8).name == "autograd"
    assert stack_size(nn.Linear(4, 3), (5, 4), 8) == 8


def test_a_stack_fits_into_memory(monkeypatch):
    monkeypatch.setenv("DDBENCH_STACKED", "1")
    network, batch = nn.Linear(1000, 1000), (10, 1000)
    step = 3 * 1000 * 1000 * 4
    monkeypatch.setattr("ddbench.engine.stacks.free_memory", lambda device: 10 * step)
    assert 1 < stack_size(network, batch, 100) < 20
    monkeypatch.setattr("ddbench.engine.stacks.free_memory", lambda device: 0)
    assert stack_size(network, batch, 100) == 1


def test_only_accelerators_stack_unasked(monkeypatch):
    from ddbench.engine.stacks import stacking

    monkeypatch.delenv("DDBENCH_STACKED", raising=False)
    assert not stacking(torch.device("cpu")) and stacking(torch.device("cuda")) and stacking(torch.device("mps"))
    monkeypatch.setenv("DDBENCH_STACKED", "0")
    assert not stacking(torch.device("cuda"))

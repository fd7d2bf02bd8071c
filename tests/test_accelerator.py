"""An accelerator gives the numbers of the CPU, networks stacked or one by one; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ddbench.contract.task import cross_entropy
from ddbench.engine.fit import Recipe, train_each
from ddbench.engine.stacks import stack_size
from ddbench.machine.environment import free_memory, precision, resolve_device
from ddbench.unroll import SGD, Checkpoint, Recompute, Store, choose_engine, loss_on, meta_gradient

DEVICE = resolve_device("auto")
pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(DEVICE.type == "cpu", reason="needs CUDA or MPS"),
]
NETS = 4


@pytest.fixture
def networks(make_prepared):
    """Return a network on the accelerator, a stack of states, and examples."""
    prepared = make_prepared(network={"name": "convnet", "options": {"width": 16, "depth": 2}}, dataset="digits")
    module = prepared.setting.module.to(DEVICE)
    networks = prepared.setting.networks("evaluation", torch.Generator().manual_seed(0))
    return module, networks.sample(NETS).to(DEVICE), prepared.train[torch.arange(60)].to(DEVICE)


@pytest.mark.parametrize("memory", [Store(), Recompute(), Checkpoint()], ids=lambda memory: memory.name)
def test_meta_gradients_are_those_of_the_cpu(networks, memory, monkeypatch):
    module, state, examples = networks
    inputs, labels = examples.inputs[:20].view(2, 10, 1, 8, 8), examples.labels[:20].view(2, 10)

    def gradient(device: torch.device):
        outer = loss_on(cross_entropy, examples.inputs.to(device), examples.labels.to(device))
        inner = SGD(torch.full((3, 2), 0.02, device=device))
        arguments = (state.to(device), inputs.to(device), labels.to(device), inner, outer)
        with precision("float32"):
            return meta_gradient(module.to(device), *arguments, memory=memory)

    stacked = gradient(DEVICE)
    assert stacked.engine == "stacked autograd"
    monkeypatch.setenv("DDBENCH_STACKED", "0")
    single, cpu = gradient(DEVICE), gradient(torch.device("cpu"))
    assert single.engine == "autograd" and cpu.engine == "chain"
    for part in ("loss", "inputs", "lrs"):
        expected = getattr(cpu, part)
        for other in (stacked, single):
            actual = getattr(other, part).cpu()
            assert (actual - expected).norm() < 1e-3 * expected.norm()


def test_training_is_that_of_the_cpu(networks, monkeypatch):
    module, state, examples = networks
    results = {}
    for name, device, stacked in (("stack", DEVICE, "1"), ("single", DEVICE, "0"), ("cpu", torch.device("cpu"), "0")):
        monkeypatch.setenv("DDBENCH_STACKED", stacked)
        results[name] = []
        starts = [state.network(i).to(device) for i in range(NETS)]
        with precision("float32"):
            data, recipe = examples.to(device), Recipe(steps=5, batch=16)
            train_each(module.to(device), starts, range(NETS), data, recipe, results[name].append)
    for stack, single, cpu in zip(results["stack"], results["single"], results["cpu"], strict=True):
        for name, tensor in cpu.params.items():
            torch.testing.assert_close(stack.params[name].cpu(), tensor, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(single.params[name].cpu(), tensor, rtol=1e-3, atol=1e-4)


def test_a_stack_stays_below_the_memory_that_it_was_predicted_to_take(networks):
    if DEVICE.type != "cuda":
        pytest.skip("only CUDA reports peaks")
    module, _, _ = networks
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10)).to(DEVICE)
    size = stack_size(wide, (256, 1, 8, 8), 10_000)
    assert size > 1
    assert stack_size(module, (10, 1, 8, 8), NETS) == NETS
    assert free_memory(DEVICE) > 0


def test_a_whole_run_takes_place_there(ddbench, tmp_path: Path):
    command = ("run", "-m", "unrolled_gd", "--network", "convnet", "--ipc", "1", "--eval-networks", "3")
    options = ("--set", "network.width=8", "--set", "outer_steps=3", "--protocol", "train/v1", "--device", str(DEVICE))
    done = ddbench(*command, *options, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["environment"]["device"] != "cpu"
    chosen = choose_engine(nn.Linear(64, 10).to(DEVICE), torch.empty(1, 10, 64, device="meta"), NETS)
    assert chosen.name == "stacked autograd"

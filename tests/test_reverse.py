import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.errors import DdbenchError
from ddbench.unroll import SGD, Adam, Recompute, Reverse, loss_on, meta_gradient

NETWORKS = {
    "chain": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    # Not a chain. The gradient of its normalisation is rounded in another way when it is to be differentiated.
    "autograd": lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 3)),
    "batch statistics, dropout": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Tanh(), nn.Linear(5, 3)
    ),
}


def problem(network: nn.Module, total: int, *, nets: int = 1, soft: bool = False, dtype=torch.float64, seed: int = 0):
    """A network, initial weights, inputs and labels of two batches, schedules `[T]`, and an outer loss."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    network = network.to(dtype)
    start = {name: 0.5 * normal(nets, *p.shape) for name, p in network.named_parameters()}
    labels = normal(2, 4, 3).softmax(-1) if soft else torch.randint(3, (2, 4), generator=generator)
    schedules = {
        "lrs": 0.02 + 0.05 * torch.rand(total, generator=generator, dtype=dtype),
        "momentum": 0.5 + 0.45 * torch.rand(total, generator=generator, dtype=dtype),
        "decay": 0.05 * torch.rand(total, generator=generator, dtype=dtype),
    }
    outer = loss_on(F.cross_entropy, normal(9, 6), torch.randint(3, (9,), generator=generator))
    return network, start, normal(2, 4, 6), labels, schedules, outer


def assert_close(actual, expected, rtol: float) -> None:
    for name in ("loss", "inputs", "labels", "lrs", "momentum", "decay"):
        left, right = getattr(actual, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert float((left - right).norm()) <= rtol * float(right.norm()), name


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(list(NETWORKS)),
    total=st.integers(1, 12).map(lambda half: 2 * half),
    nets=st.integers(1, 2),
    soft=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_agrees_with_recompute(kind, total, nets, soft, dtype, data):
    """Equal bytes after going forth and back are asserted by the way itself."""
    first = data.draw(st.integers(0, total - 1))
    end = data.draw(st.integers(first + 1, total))
    network, start, inputs, labels, schedules, outer = problem(
        NETWORKS[kind](), total, nets=nets, soft=soft, dtype=dtype, seed=data.draw(st.integers(0, 1000))
    )
    arguments = network, start, inputs, labels, SGD(**schedules), outer
    expected = meta_gradient(*arguments, memory=Recompute(), window=(first, end))
    actual = meta_gradient(*arguments, memory=Reverse(), window=(first, end))
    assert_close(actual, expected, 1e-7 if dtype == torch.float64 else 1e-2)  # the ratio of a momentum is rounded


def textbook_loss(network, start, inputs, labels, lrs, momentum, decay, outer) -> torch.Tensor:
    weights = {name: tensor[0] for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for t in range(len(lrs)):
        leaves = {name: w if w.requires_grad else w.detach().requires_grad_() for name, w in weights.items()}
        loss = F.cross_entropy(functional_call(network, leaves, (inputs[t % 2],)), labels[t % 2])
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for (name, w), g in zip(leaves.items(), gradient, strict=True):
            velocity[name] = momentum[t] * velocity[name] + g + decay[t] * w
            weights[name] = w - lrs[t] * velocity[name]
    return F.cross_entropy(functional_call(network, weights, (outer.inputs,)), outer.labels)


@pytest.mark.parametrize("memory", [Recompute(), Reverse()], ids=repr)
@pytest.mark.parametrize("kind", ["chain", "autograd"])
def test_derivatives_by_rates_momentum_and_decay_of_each_step(kind, memory):
    network, start, inputs, labels, schedules, outer = problem(NETWORKS[kind](), 8)
    result = meta_gradient(network, start, inputs, labels, SGD(**schedules), outer, memory=memory)

    variables = {name: values.clone().requires_grad_() for name, values in schedules.items()}
    loss = textbook_loss(network, start, inputs, labels, *variables.values(), outer)
    expected = torch.autograd.grad(loss, list(variables.values()))
    for name, reference in zip(variables, expected, strict=True):
        actual = getattr(result, name)
        # The steps of `Reverse` have the nearest ratio to each momentum.
        torch.testing.assert_close(actual, reference, rtol=1e-7, atol=1e-9)
        for t in (0, 3, 7):
            bump = torch.zeros(8, dtype=torch.float64)
            bump[t] = 1e-5
            above, below = (
                textbook_loss(
                    network, start, inputs, labels, *(schedules | {name: schedules[name] + s * bump}).values(), outer
                ).detach()
                for s in (1, -1)
            )
            assert float(actual[t]) == pytest.approx(float(above - below) / 2e-5, rel=1e-5, abs=1e-8)


class Noise(nn.Module):
    """Noise from the call number `quiet` on."""

    def __init__(self, quiet: int) -> None:
        super().__init__()
        self.calls, self.quiet = 0, quiet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + 0.1 * torch.randn_like(x) if self.calls > self.quiet else x


@pytest.mark.parametrize(("quiet", "symptom"), [(0, "when it was repeated"), (9, "on the way back|initial weights")])
def test_a_network_with_noise_is_noticed(quiet, symptom):
    network = nn.Sequential(nn.Linear(6, 5), Noise(quiet), nn.Tanh(), nn.Linear(5, 3))
    network, start, inputs, labels, schedules, outer = problem(network, 6)
    with pytest.raises(DdbenchError, match=f"not deterministic.*({symptom})") as error:
        meta_gradient(network, start, inputs, labels, SGD(**schedules), outer, memory=Reverse())
    assert "Recompute()" in error.value.hint


def test_numbers_out_of_range_are_refused():
    network, start, inputs, labels, schedules, outer = problem(NETWORKS["chain"](), 6)
    inner = SGD(schedules["lrs"] * 1e6, momentum=0.9)
    with pytest.raises(DdbenchError, match="reached 1024"):
        meta_gradient(network, start, inputs, labels, inner, outer, memory=Reverse())


def test_steps_without_momentum_cannot_be_undone():
    network, start, inputs, labels, schedules, outer = problem(NETWORKS["chain"](), 6)
    for inner in (SGD(schedules["lrs"]), SGD(schedules["lrs"], momentum=torch.tensor([0.9] * 5 + [0.0]))):
        with pytest.raises(ValueError, match="without momentum"):
            meta_gradient(network, start, inputs, labels, inner, outer, memory=Reverse())
    with pytest.raises(ValueError, match="not of Adam"):
        meta_gradient(network, start, inputs, labels, Adam(schedules["lrs"]), outer, memory=Reverse())


@pytest.mark.slow
def test_images_rates_and_momentum_are_learned_through_reversed_steps():
    path = Path(__file__).parent.parent / "benchmarks" / "reverse.py"
    spec = importlib.util.spec_from_file_location("reverse_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    losses = benchmark.learn(rounds=6)
    assert losses[-1] < losses[0] - 0.3

"""Ways of going back agree on random problems: networks, numbers of them, types, threads, windows, labels, optimisers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.engine.cpu import operators
from ddbench.networks import cross_entropy
from ddbench.unroll import SGD, Adam, Checkpoint, Recompute, Reverse, Store, distance_to, loss_on, meta_gradient

CLASSES, SIDE = 3, 8


def layers(kind: str, channels: int, width: int) -> list[nn.Module]:
    half, quarter = width * (SIDE // 2) ** 2, width * (SIDE // 4) ** 2
    first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    match kind:
        case "perceptron":
            return [nn.Flatten(), nn.Linear(channels * SIDE**2, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
        case "tanh":
            return [nn.Flatten(), nn.Linear(channels * SIDE**2, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
        case "lenet":
            middle = [nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2)]
            return [first, *middle, nn.Flatten(), nn.Linear(quarter, 7), nn.ReLU(), nn.Linear(7, CLASSES)]
        case "convnet":
            norms = [nn.GroupNorm(width, width), nn.GroupNorm(width, width)]
            middle = [norms[0], nn.ReLU(), nn.AvgPool2d(2), second, norms[1], nn.ReLU(), nn.AvgPool2d(2)]
            return [first, *middle, nn.Flatten(), nn.Linear(quarter, CLASSES)]
        case "batch norm":
            return [first, nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(half, CLASSES)]
        case "response norm":
            middle = [nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.LocalResponseNorm(4)]
            return [first, *middle, nn.Flatten(), nn.Linear(half, CLASSES)]
        case "wide":
            middle = [nn.GroupNorm(4, 40), nn.ReLU(), nn.Conv2d(40, 36, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
            wide = nn.Conv2d(channels, 40, 3, padding=1)
            return [wide, *middle, nn.Flatten(), nn.Linear(36 * (SIDE // 2) ** 2, CLASSES)]
    raise AssertionError(kind)


KINDS = ("perceptron", "tanh", "lenet", "convnet", "batch norm", "response norm", "wide")


class OwnParameters(nn.Module):
    """A network whose outputs, on examples that are not numbers, are its own parameters: a distance through logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1 and x.isnan().all():
            return torch.cat([p.flatten() for p in self.network.parameters()])[None]
        return self.network(x)


@dataclass
class Case:
    """The arguments of a meta-gradient, and what they were drawn from."""

    words: dict[str, object]
    network: nn.Module
    start: dict[str, torch.Tensor]
    arguments: tuple
    options: dict[str, object]
    memories: list


def draw(seed: int) -> Case:
    choice = random.Random(seed)
    torch.manual_seed(seed)
    words = {
        "seed": seed,
        "kind": choice.choice(KINDS),
        "dtype": choice.choice([torch.float32, torch.float64]),
        "threads": choice.choice([1, 2]),
        "nets": choice.choice([None, 1, 2, 3, 4]),
        "outer": choice.choice(["loss", "distance", "own parameters"]),
        "inner": choice.choice(["sgd", "momentum", "adam"]),
        "engine": choice.choice(["chosen", "autograd"]),
        "labels": choice.choice(["hard", "soft"]),
        "indices": choice.random() < 0.3,
    }
    dtype, channels, n = words["dtype"], choice.choice([1, 2]), choice.choice([2, 3, 10])
    steps, epochs = choice.choice([1, 2, 3]), choice.choice([1, 2, 4])
    total = steps * epochs
    network = nn.Sequential(*layers(words["kind"], channels, choice.choice([3, 6])))
    if words["outer"] == "own parameters":
        network = OwnParameters(network)
    network = network.to(dtype)
    lead = () if words["nets"] is None else (words["nets"],)
    start = {
        name: p.detach() + 0.1 * torch.randn(*lead, *p.shape, dtype=dtype) for name, p in network.named_parameters()
    }
    examples = (steps, n) if not words["indices"] else (5,)
    inputs = torch.randn(*examples, channels, SIDE, SIDE, dtype=dtype)
    soft = torch.randn(*examples, CLASSES, dtype=dtype).softmax(-1)
    labels = soft if words["labels"] == "soft" else soft.argmax(-1)
    lrs = torch.rand(epochs, steps, dtype=dtype) * choice.choice([0.02, 0.2])
    match words["inner"]:
        case "sgd":
            inner = SGD(lrs)
        case "momentum":
            inner = SGD(lrs, momentum=torch.full((total,), 0.9, dtype=dtype), decay=choice.choice([0.0, 5e-4]))
        case _:
            inner = Adam(lrs * 0.1, eps=1e-3)
    target = {name: torch.randn_like(p) for name, p in start.items()}
    if words["outer"] == "loss":
        outer = loss_on(F.cross_entropy, torch.randn(20, channels, SIDE, SIDE, dtype=dtype), torch.arange(20) % CLASSES)
    elif words["outer"] == "distance":
        outer = distance_to(target, start)
    else:
        flat = torch.cat([torch.randn(p.numel(), dtype=dtype) for p in network.parameters()])
        marker = torch.full((1, channels, SIDE, SIDE), torch.nan, dtype=dtype)
        outer = loss_on(lambda logits, _: (logits[0] - flat).square().sum(), marker, torch.zeros(1))
    options = {"inner_loss": cross_entropy if words["engine"] == "chosen" else F.cross_entropy}
    if words["indices"]:
        options["indices"] = torch.randint(5, (total, n))
    if choice.random() < 0.4:
        first = choice.randrange(total)
        options["window"] = (first, choice.randint(first + 1, total))
    memories = [Store(), Checkpoint(), Checkpoint(every=3), *([Reverse()] if words["inner"] == "momentum" else [])]
    return Case(words, network, start, (inputs, labels, inner, outer), options, memories)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def errors(case: Case) -> dict[str, float]:
    """Return the largest relative difference between `Recompute` and each other way."""
    torch.set_num_threads(case.words["threads"])
    results = {
        memory: meta_gradient(case.network, case.start, *case.arguments, memory=memory, **case.options)
        for memory in (Recompute(), *case.memories)
    }
    reference = results.pop(Recompute())
    largest = {}
    for memory, result in results.items():
        pairs = [
            (getattr(result, name), getattr(reference, name))
            for name in ("loss", "inputs", "labels", "lrs", "momentum")
            if getattr(reference, name) is not None
        ]
        if reference.start is not None:
            # As a whole: the gradient by a bias in front of a norm is nothing but rounding.
            pairs.append(tuple(torch.cat([w.flatten() for w in r.start.values()]) for r in (result, reference)))
        largest[repr(memory)] = max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
    return largest


def check(case: Case) -> None:
    tolerance = 1e-9 if case.words["dtype"] == torch.float64 else 1e-3
    worst = errors(case)
    assert max(worst.values()) < tolerance, (worst, case.words, case.options)


@pytest.mark.parametrize("seed", range(12))
def test_ways_of_going_back_agree(seed):
    check(draw(seed))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_ways_of_going_back_agree_on_many_problems(block, monkeypatch):
    if block % 2:
        # Pooling by whole windows, which is meant for many values.
        monkeypatch.setattr(operators, "MANY_VALUES", 1)
    for seed in range(1000 + 12 * block, 1012 + 12 * block):
        check(draw(seed))


def test_a_distance_is_that_through_a_network_of_its_own_parameters():
    torch.manual_seed(0)
    network = OwnParameters(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))).double()
    start = {name: torch.randn(2, *p.shape, dtype=torch.float64) for name, p in network.named_parameters()}
    target = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    flat = torch.cat([w.flatten() for w in target.values()])
    marker = torch.full((1, 1, 4, 4), torch.nan, dtype=torch.float64)
    inputs, labels = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64), torch.randint(3, (2, 3))
    inner = SGD(torch.full((2, 2), 0.3, dtype=torch.float64), momentum=0.9)
    through = loss_on(lambda logits, _: (logits[0] - flat).square().sum(), marker, torch.zeros(1))
    for memory in (Store(), Recompute(), Reverse()):
        one, other = (
            meta_gradient(network, start, inputs, labels, inner, outer, memory=memory)
            for outer in (distance_to(target), through)
        )
        torch.testing.assert_close(one.loss, other.loss)
        torch.testing.assert_close(one.inputs, other.inputs)
        torch.testing.assert_close(one.lrs, other.lrs)


class Shift(nn.Module):
    """Inputs plus a weight: the gradients by inputs and by outputs are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


class Sum(Shift):
    """The sum of the inputs times a weight: the gradient by inputs is one number, repeated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True) * self.w


@pytest.mark.parametrize("memory", [Store(), Recompute(), Checkpoint()], ids=repr)
@pytest.mark.parametrize("network", [Shift(), Sum()])
def test_gradients_that_share_memory_are_summed_apart(network, memory):
    torch.manual_seed(0)
    network = network.double()
    inputs, labels = (torch.randn(2, 5, 3, dtype=torch.float64) for _ in range(2))
    start = {"w": torch.randn(3, dtype=torch.float64)}
    lrs = torch.rand(3, 2, dtype=torch.float64)
    real, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(3, (7,))

    def inner_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits + labels).pow(3).mean()

    outer = loss_on(F.cross_entropy, real, y)
    result = meta_gradient(network, start, inputs, labels, SGD(lrs), outer, memory=memory, inner_loss=inner_loss)

    variables = [inputs.clone().requires_grad_(), labels.clone().requires_grad_()]
    weights = start["w"].clone().requires_grad_()
    for t, lr in enumerate(lrs.flatten()):
        loss = inner_loss(functional_call(network, {"w": weights}, (variables[0][t % 2],)), variables[1][t % 2])
        weights = weights - lr * torch.autograd.grad(loss, weights, create_graph=True)[0]
    loss = F.cross_entropy(functional_call(network, {"w": weights}, (real,)), y)
    by_inputs, by_labels = torch.autograd.grad(loss, variables)
    torch.testing.assert_close(result.inputs, by_inputs)
    torch.testing.assert_close(result.labels, by_labels)

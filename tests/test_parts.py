"""Large batches go through a network in parts on the CPU: outputs, gradients and second derivatives stay the same."""

import pytest
import torch
from torch import nn

from ddbench.engine import networks as engine_networks
from ddbench.networks import State, cross_entropy, features, fit, gradient, logits
from ddbench.unroll import SGD, Recompute, Store, distance_to, meta_gradient


def small(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), norm or nn.GroupNorm(6, 6), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 4)).double()


def state_of(network: nn.Module) -> State:
    params = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return State(params, {name: buffer.clone() for name, buffer in network.named_buffers()})


def batch(n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % 4


@pytest.fixture
def three_at_a_time(monkeypatch):
    """Let three examples of `small` fill a part."""
    monkeypatch.setattr(engine_networks, "PART_BYTES", 3 * 6 * 64 * 8)


def everything(network: nn.Module) -> dict[str, torch.Tensor]:
    state, (images, labels) = state_of(network), batch()
    images.requires_grad_()
    outputs = {"logits": logits(network, state, images), "features": features(network, state, images)}
    grads = gradient(network, state, images, labels, create_graph=True)
    outputs |= {f"gradient {name}": grad for name, grad in grads.items()}
    [outputs["second"]] = torch.autograd.grad(sum(g.square().sum() for g in grads.values()), images, retain_graph=True)
    trained = fit(network, state, [(images.detach(), labels)] * 3, lambda p: torch.optim.SGD(p, lr=0.1))
    return outputs | {f"trained {name}": tensor for name, tensor in {**trained.params, **trained.buffers}.items()}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_passes_and_training_in_parts(monkeypatch, norm):
    network = small(nn.BatchNorm2d(6) if norm == "batch" else None)
    whole = everything(network)
    monkeypatch.setattr(engine_networks, "PART_BYTES", 3 * 6 * 64 * 8)
    sizes = []
    handle = network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    parts = everything(network)
    handle.remove()
    # Statistics of a batch are those of the whole batch.
    assert max(sizes) == (11 if norm == "batch" else 3)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("memory", [Store(), Recompute()], ids=repr)
@pytest.mark.parametrize("way", ["indices", "cycled", "transform"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_chain_trains_on_parts_of_a_batch(monkeypatch, memory, way, soft):
    network = small()
    start, (images, labels) = state_of(network), batch()
    target = State({name: w + 0.1 for name, w in start.params.items()})
    if soft:
        labels = torch.nn.functional.one_hot(labels, 4).double() + 0.1 * torch.arange(4)
    options: dict = {}
    if way == "cycled":
        images, labels = images[None], labels[None]
    else:
        options["indices"] = torch.tensor([[*range(11)], [*range(5, 11), *[-1] * 5], [*range(10, -1, -1)]])
    if way == "transform":
        options["transform"] = lambda images, t: images * (1 + t)

    def run():
        return meta_gradient(
            network, start, images, labels, SGD(torch.full((3,), 0.1)), distance_to(target), memory=memory, **options
        )

    whole = run()
    assert whole.engine == "chain"
    monkeypatch.setattr(engine_networks, "PART_BYTES", 3 * 6 * 64 * 8)
    parts = run()
    for name in ("loss", "inputs", "lrs", *(["labels"] if soft else [])):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12, msg=name)


def test_a_mean_loss_over_unequal_parts(three_at_a_time):
    network, (images, labels) = small(), batch(4)
    grads = gradient(network, state_of(network), images, labels, cross_entropy)
    loss = cross_entropy(network(images), labels)
    for grad, expected in zip(grads.values(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
        torch.testing.assert_close(grad, expected)

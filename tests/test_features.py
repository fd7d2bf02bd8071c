"""Features and gradients, used as an author of DM or DC would, against numbers of the authors' own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench import Unsupported
from ddbench.builtin.networks import convnet
from ddbench.contract.examples import DatasetInfo
from ddbench.networks import State, features, fit, forward, gradient, logits

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    arrays = np.load(GOLDEN / f"field_{name}.npz")
    return {
        key: torch.tensor(value.astype(float) if value.dtype.kind == "f" else value)
        for key, value in arrays.items()
        if value.dtype.kind != "U"
    }


def network_at(w0: Tensor, classes: int, norm: str = "instance", width: int = 16) -> tuple[nn.Module, State]:
    """Return the ConvNet of both papers and its state at the flat weights `w0`."""
    names = tuple(map(str, range(classes)))
    info = DatasetInfo("x", names, (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)
    module = convnet(info, width=width, norm=norm).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}
    parts = torch.split(w0, [shape.numel() for shape in shapes.values()])
    params = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return module, State(params, {name: b.clone() for name, b in module.named_buffers()})


def relative(actual: Tensor, reference: Tensor) -> float:
    return float((actual.detach() - reference).norm() / reference.norm())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_distribution_matching(norm):
    """DM: the squared distance of the mean features of each class, summed."""
    numbers, suffix = golden("dm"), "_batchnorm" if norm == "batch" else ""
    module, state = network_at(numbers[f"w0{suffix}"], 10, norm)
    before = {name: buffer.clone() for name, buffer in state.buffers.items()}
    real, synthetic = numbers["real_images"], numbers["syn_images"].requires_grad_()

    with torch.no_grad():
        real_features = features(module, state, real.flatten(0, 1)).view(4, 8, -1)
    synthetic_features = features(module, state, synthetic)
    difference = real_features.mean(1) - synthetic_features.view(4, 2, -1).mean(1)
    loss = difference.square().sum()

    assert relative(synthetic_features[:2], numbers[f"embedding_syn{suffix}"]) < 1e-8
    assert relative(loss, numbers[f"loss{suffix}"]) < 1e-8
    [grad_images] = torch.autograd.grad(loss, synthetic)
    assert relative(grad_images, numbers[f"grad_images{suffix}"]) < 1e-8
    for name, buffer in before.items():
        assert torch.equal(state.buffers[name], buffer)
        assert torch.equal(dict(module.named_buffers())[name], buffer)


def rows(g: Tensor) -> Tensor:
    return g.flatten(1) if g.dim() > 1 else g[:0, None]


def by_rows(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """One minus the cosine of each output channel's gradient; biases do not count."""
    total = torch.zeros((), dtype=torch.float64)
    for r, s in zip(map(rows, real), map(rows, synthetic), strict=True):
        total = total + (1 - (r * s).sum(1) / (r.norm(dim=1) * s.norm(dim=1) + 1e-6)).sum()
    return total


def joined(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def squared(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    return (joined(real) - joined(synthetic)).square().sum()


def cosine(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    r, s = joined(real), joined(synthetic)
    return 1 - (r * s).sum() / (r.norm() * s.norm() + 1e-6)


@pytest.mark.parametrize(("metric", "distance"), [("ours", by_rows), ("mse", squared), ("cos", cosine)])
def test_gradient_matching(metric, distance):
    """DC: the distance of the gradients of each class, summed."""
    numbers = golden("dc")
    module, state = network_at(numbers["w0"], 4)
    synthetic, losses = numbers["syn_images"].requires_grad_(), []
    for label, real in enumerate(numbers["real_images"]):
        chosen = numbers["syn_labels"] == label
        wanted = gradient(module, state, real, torch.full((len(real),), label))
        matched = gradient(module, state, synthetic[chosen], numbers["syn_labels"][chosen], create_graph=True)
        assert not any(g.requires_grad for g in wanted.values())
        losses.append(distance(list(wanted.values()), list(matched.values())))
    loss = torch.stack(losses)

    assert relative(loss, numbers[f"loss_per_class_{metric}"]) < 1e-8
    assert relative(loss.sum(), numbers[f"loss_{metric}"]) < 1e-8
    [grad_images] = torch.autograd.grad(loss.sum(), synthetic)
    assert relative(grad_images, numbers[f"grad_images_{metric}"]) < 1e-8


def with_batch_norm() -> tuple[nn.Module, State, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    inputs = 2 + 3 * torch.randn(6, 4)
    state = State({name: p.detach() for name, p in module.named_parameters()})
    state = fit(module, state, [(inputs, torch.arange(6) % 3)], lambda leaves: torch.optim.SGD(leaves, lr=0.1))
    return module, state, inputs


def test_modes_of_a_pass():
    """Batch statistics as in a training step, running statistics as in evaluation; dropout off in both."""
    module, state, inputs = with_batch_norm()
    w = state.params
    hidden = F.linear(inputs, w["0.weight"], w["0.bias"])
    scaled = F.batch_norm(hidden, None, None, w["1.weight"], w["1.bias"], training=True)
    torch.testing.assert_close(features(module, state, inputs), scaled)
    torch.testing.assert_close(logits(module, state, inputs), F.linear(scaled, w["3.weight"], w["3.bias"]))
    evaluated = logits(module, state, inputs, batch_statistics=False)
    torch.testing.assert_close(evaluated, forward(module, state, inputs))
    assert not torch.allclose(evaluated, logits(module, state, inputs))
    # Without buffers those of the module are meant, and stay as they are too.
    logits(module, State(w), inputs)
    assert module.training and not module[1].running_mean.any() and int(module[1].num_batches_tracked) == 0
    assert int(state.buffers["1.num_batches_tracked"]) == 1


def test_gradients_by_everything_differentiable():
    module, state, inputs = with_batch_norm()
    soft = torch.rand(6, 3).requires_grad_()
    params = {name: w.clone().requires_grad_() for name, w in state.params.items()}
    with torch.no_grad():
        grads = gradient(module, State(params, state.buffers), inputs, soft, create_graph=True)
    assert list(grads) == list(params)
    total = sum(g.square().sum() for g in grads.values())
    assert all(g.any() for g in torch.autograd.grad(total, [soft, params["0.weight"]]))


def test_a_network_may_offer_features_of_its_own():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Conv2d(6, 3, 1)

        def features(self, x: Tensor) -> Tensor:
            return self.body(x)[:, :, None, None]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x)).flatten(1)

    module, x = Own(), torch.randn(5, 4)
    state = State({name: 2 * p.detach() for name, p in module.named_parameters()})
    torch.testing.assert_close(features(module, state, x), 2 * module.body(x).detach())


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()),
        nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (8, 1)), nn.Conv1d(8, 3, 1), nn.Flatten()),
    ],
)
def test_networks_without_a_last_linear_layer_have_no_features(module):
    state = State({name: p.detach() for name, p in module.named_parameters()})
    with pytest.raises(Unsupported, match="no last linear layer whose input") as error:
        features(module, state, torch.randn(2, 4))
    assert "method features(inputs)" in error.value.hint


def test_features_of_a_library_network():
    import timm

    module = timm.create_model("test_resnet", num_classes=3).eval()
    state = State({name: p.detach() for name, p in module.named_parameters()}, dict(module.named_buffers()))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        penultimate = module.forward_head(module.forward_features(x), pre_logits=True)
    torch.testing.assert_close(features(module, state, x, batch_statistics=False), penultimate)

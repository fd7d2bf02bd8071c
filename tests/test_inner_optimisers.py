"""Meta-gradients with every inner optimiser, against training written out, torch's optimisers and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.networks import State
from ddbench.unroll import SGD, Adam, Checkpoint, Recompute, Store, distance_to, loss_on, meta_gradient, train

MEMORIES = (Store(), Recompute(), Checkpoint(), Checkpoint(every=2))
T, EXAMPLES, CLASSES = 5, 6, 3


def network(kind: str) -> nn.Module:
    middle = nn.ReLU() if kind == "chain" else nn.Tanh()
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, CLASSES)).double()


class Problem:
    """Numbers of a small problem in float64: two networks, examples chosen by indices, some places empty."""

    def __init__(self, seed: int, kind: str = "autograd", nets: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.network = network(kind)
        shapes = {name: p.shape for name, p in self.network.named_parameters()}
        self.start, self.target = ({name: 0.5 * normal(nets, *s) for name, s in shapes.items()} for _ in range(2))
        self.inputs, self.labels = normal(EXAMPLES, 4), normal(EXAMPLES, CLASSES)
        self.indices = torch.randint(-1, EXAMPLES, (T, 3), generator=generator)
        self.indices[:, 0].clamp_(min=0)
        self.lrs = 0.05 + 0.1 * normal(T).square()
        self.momentum, self.decay = 0.5 + 0.1 * normal(T).tanh(), 0.01 * normal(T).square()
        self.real = normal(7, 4), torch.randint(CLASSES, (7,), generator=generator)
        self.nets = nets

    @property
    def variables(self) -> list[Tensor]:
        return [self.inputs, self.labels, self.lrs, self.momentum, self.decay, *self.start.values()]


def turned(images: Tensor, t: int) -> Tensor:
    """Return a differentiable function of images and step."""
    return images.roll(t, 1) * (1 + t) / 2 + images.square() / 4


def root(v: Tensor) -> Tensor:
    """Return the square root, with slope 0 where v is 0."""
    return torch.where(v > 0, torch.where(v > 0, v, 1).sqrt(), 0)


def textbook(p: Problem, optimiser: str, variables: list[Tensor], outer: str, transform=None, first: int = 0) -> Tensor:
    """Return the mean outer loss of training written out; steps before `first` are constants."""
    inputs, labels, lrs, momentum, decay, *start = variables
    losses = []
    for net in range(p.nets):
        w = {name: tensor[net] for name, tensor in zip(p.start, start, strict=True)}
        m, v = ({name: torch.zeros_like(tensor) for name, tensor in w.items()} for _ in range(2))
        for t in range(T):
            rows = p.indices[t][p.indices[t] >= 0]
            leaves = {name: tensor if tensor.requires_grad else tensor.requires_grad_() for name, tensor in w.items()}
            x = inputs[rows] if transform is None else transform(inputs[rows], t)
            loss = -(labels[rows] * functional_call(p.network, leaves, (x,)).log_softmax(1)).sum(1).mean()
            g = dict(zip(w, torch.autograd.grad(loss, list(leaves.values()), create_graph=True), strict=True))
            if optimiser == "sgd":
                v = {k: momentum[t] * v[k] + g[k] + decay[t] * w[k] for k in w}
                w = {k: w[k] - lrs[t] * v[k] for k in w}
            else:
                m = {k: 0.9 * m[k] + 0.1 * g[k] for k in w}
                v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in w}
                first_correction, second = 1 - 0.9 ** (t + 1), (1 - 0.999 ** (t + 1)) ** 0.5
                if t >= first:
                    step = {k: second / first_correction * m[k] / (root(v[k]) + 1e-3) for k in w}
                else:
                    step = {k: m[k] / first_correction / (root(v[k]) / second + 1e-3) for k in w}
                w = {k: w[k] - lrs[t] * step[k] for k in w}
            if t + 1 == first:
                w, m, v = ({k: tensor.detach() for k, tensor in part.items()} for part in (w, m, v))
        if outer == "loss":
            losses.append(F.cross_entropy(functional_call(p.network, w, (p.real[0],)), p.real[1]))
        else:
            target, before = ({k: t[net].detach() for k, t in part.items()} for part in (p.target, p.start))
            losses.append(
                sum((w[k] - target[k]).square().sum() for k in w)
                / sum((before[k] - target[k]).square().sum() for k in w)
            )
    return torch.stack(losses).mean()


def inner(p: Problem, optimiser: str):
    return SGD(p.lrs, p.momentum, p.decay) if optimiser == "sgd" else Adam(p.lrs, eps=1e-3)


def outer_loss(p: Problem, outer: str):
    return loss_on(F.cross_entropy, *p.real) if outer == "loss" else distance_to(p.target, p.start)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    optimiser=st.sampled_from(["sgd", "adam"]),
    outer=st.sampled_from(["loss", "distance"]),
    kind=st.sampled_from(["chain", "autograd"]),
    transform=st.sampled_from([None, turned]),
    window=st.sampled_from([None, 3]),
    memory=st.sampled_from(MEMORIES),
)
def test_every_gradient_is_that_of_training_written_out(seed, optimiser, outer, kind, transform, window, memory):
    p = Problem(seed, kind)
    result = meta_gradient(
        p.network,
        State(p.start),
        p.inputs,
        p.labels,
        inner(p, optimiser),
        outer_loss(p, outer),
        indices=p.indices,
        transform=transform,
        window=window,
        memory=memory,
    )
    assert result.engine == kind
    variables = [tensor.clone().requires_grad_() for tensor in p.variables]
    loss = textbook(p, optimiser, variables, outer, transform, 0 if window is None else T - window)
    expected = torch.autograd.grad(loss, variables, allow_unused=True, materialize_grads=True)
    actual = [result.inputs, result.labels, result.lrs, result.momentum, result.decay]
    actual += list(result.start.values()) if result.start else []
    assert (result.start is None) == (window is not None)
    torch.testing.assert_close(result.loss.mean(), loss.detach(), rtol=1e-11, atol=0)
    for value, reference in zip(actual, expected, strict=False):
        if value is not None:
            torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-11)
    assert (result.momentum is None) == (result.decay is None) == (optimiser == "adam")


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_every_gradient_is_that_of_finite_differences(optimiser):
    p = Problem(3)
    result = meta_gradient(
        p.network, p.start, p.inputs, p.labels, inner(p, optimiser), outer_loss(p, "loss"), indices=p.indices
    )
    actual = [result.inputs, result.labels, result.lrs, result.momentum, result.decay, *result.start.values()]
    for number, gradient in enumerate(actual):
        if gradient is None:
            continue
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

        def loss(step: float, number: int = number, direction: Tensor = direction) -> float:
            moved = [tensor.clone() for tensor in p.variables]
            moved[number] += step * direction
            return float(textbook(p, optimiser, moved, "loss").detach())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_training_is_that_of_torch(optimiser):
    p = Problem(4, nets=1)
    start = {name: tensor[0] for name, tensor in p.start.items()}
    hard = p.labels.argmax(1)
    chosen = SGD(0.1, momentum=0.9, decay=0.05) if optimiser == "sgd" else Adam(0.1)
    after = train(p.network, start, p.inputs, hard, chosen, indices=p.indices)
    p.network.load_state_dict(start)
    steps = {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.05),
        "adam": lambda w: torch.optim.Adam(w, lr=0.1),
    }[optimiser](p.network.parameters())
    for row in p.indices:
        rows = row[row >= 0]
        steps.zero_grad()
        F.cross_entropy(p.network(p.inputs[rows]), hard[rows]).backward()
        steps.step()
    for name, parameter in p.network.named_parameters():
        torch.testing.assert_close(after.params[name], parameter.detach(), rtol=1e-10, atol=1e-12)


def test_one_number_for_all_steps_has_one_derivative():
    p = Problem(5)

    def gradient(*hyperparameters: Tensor):
        return meta_gradient(
            p.network, p.start, p.inputs, p.labels, SGD(*hyperparameters), outer_loss(p, "loss"), indices=p.indices
        )

    values = [torch.tensor(value, dtype=torch.float64) for value in (0.1, 0.8, 0.02)]
    single, each = gradient(*values), gradient(*(value.expand(T) for value in values))
    for name in ("lrs", "momentum", "decay"):
        assert getattr(single, name).shape == ()
        assert getattr(each, name).shape == (T,)
        torch.testing.assert_close(getattr(single, name), getattr(each, name).sum())
    # Shapes may differ from one to the other.
    mixed = gradient(p.lrs, values[1], p.decay)
    assert (mixed.lrs.shape, mixed.momentum.shape, mixed.decay.shape) == ((T,), (), (T,))
    # Plain numbers are constants.
    numbers = gradient(values[0], 0.8, 0.02)
    assert numbers.momentum is None
    assert numbers.decay is None
    assert torch.equal(numbers.inputs, single.inputs)


def test_a_single_rate_takes_one_pass_or_as_many_steps_as_stated():
    p = Problem(6)
    batches, labels = p.inputs.view(3, 2, 4), p.labels.view(3, 2, CLASSES)

    def gradient(inner: SGD, **settings: int):
        return meta_gradient(p.network, p.start, batches, labels, inner, outer_loss(p, "loss"), **settings)

    for steps, settings_ in ((3, {}), (7, {"steps": 7})):
        torch.testing.assert_close(gradient(SGD(0.1), **settings_).loss, gradient(SGD(torch.full((steps,), 0.1))).loss)
    # Cycled batches are those of the indices written out.
    indices = (torch.arange(7) % 3)[:, None] * 2 + torch.arange(2)
    cycled = gradient(SGD(0.1), steps=7)
    chosen = meta_gradient(p.network, p.start, p.inputs, p.labels, SGD(0.1), outer_loss(p, "loss"), indices=indices)
    torch.testing.assert_close(cycled.inputs.view(EXAMPLES, 4), chosen.inputs)
    torch.testing.assert_close(cycled.labels.view(EXAMPLES, CLASSES), chosen.labels)


def test_an_unused_weight_and_adam_have_a_finite_gradient():
    """A unit that is off has v = 0, where the slope of the root would be infinite."""
    p = Problem(7, "chain")
    for name, tensor in p.start.items():
        if name == "0.bias":
            tensor[:, 0] = -100.0
    result = meta_gradient(
        p.network, p.start, p.inputs, p.labels, Adam(p.lrs), outer_loss(p, "loss"), indices=p.indices
    )
    assert result.inputs.isfinite().all()
    assert result.inputs.any()


def test_a_distance_does_not_run_the_network():
    p = Problem(8)
    calls = []
    p.network.register_forward_hook(lambda *_: calls.append(1))
    target = {name: tensor[0] for name, tensor in p.target.items()}
    result = meta_gradient(
        p.network,
        {name: tensor[0] for name, tensor in p.start.items()},
        p.inputs,
        p.labels,
        SGD(0.1),
        distance_to(State(target)),
        indices=p.indices,
        memory=Store(),
    )
    assert len(calls) == T
    after = train(p.network, State(p.start).network(0), p.inputs, p.labels, SGD(0.1), indices=p.indices)
    assert float(result.loss) == pytest.approx(
        float(sum((after.params[name] - w).square().sum() for name, w in target.items()))
    )


def test_running_statistics_begin_from_the_state():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    p = Problem(9)
    params = {name: tensor.detach() for name, tensor in module.named_parameters()}
    shifted = State(params, {"1.running_mean": torch.ones(5, dtype=torch.float64)})
    indices, outer = p.indices.clamp(min=0), outer_loss(p, "loss")
    own, moved = (
        meta_gradient(module, start, p.inputs, p.labels, SGD(0.1), outer, indices=indices)
        for start in (params, shifted)
    )
    assert not torch.allclose(own.loss, moved.loss)
    after = train(module, shifted, p.inputs, p.labels, SGD(0.1), indices=indices)
    assert after.buffers["1.running_mean"].abs().sum() > 1
    assert int(module[1].num_batches_tracked) == 0


@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_that_do_not_belong_together():
    p = Problem(10)

    def gradient(inner: object = SGD(0.1), outer=None, labels=p.labels, **settings: object):
        outer = outer or outer_loss(p, "loss")
        return meta_gradient(p.network, p.start, p.inputs, labels, inner, outer, **{"indices": p.indices, **settings})

    for message, arguments in {
        "inner must be SGD": {"inner": 0.1},
        "same number of steps": {"inner": SGD(p.lrs[:2])},
        "momentum": {"inner": SGD(0.1, p.momentum[:2])},
        "from -1 to 5": {"indices": p.indices + 6},
        "without examples": {"indices": torch.full((T, 1), -1)},
        "\\[n\\] integers": {"labels": p.labels[:2]},
        "betas": {},
        "names|between parameters": {"outer": distance_to({"weight": p.inputs})},
        "target and start must": {"outer": distance_to({name: t[:1] for name, t in p.target.items()})},
        "real inputs have": {"outer": loss_on(F.cross_entropy, p.real[0], p.real[1][:2])},
    }.items():
        with pytest.raises(ValueError, match=message):
            gradient(**arguments) if arguments else Adam(0.1, betas=(1.0, 0.9))

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from ddbench.networks import evaluation_mode, inner_mode, unstack
from ddbench.unroll import SGD, Checkpoint, Recompute, Store, choose_engine, loss_on, meta_gradient, train

GOLDEN = Path(__file__).parent / "golden"
MEMORIES = (Store(), Recompute(), Checkpoint(), Checkpoint(every=3))


def golden_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def poisoned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, torch.where(labels == 0, 1, labels))


def relative(actual: torch.Tensor, reference: torch.Tensor) -> float:
    return float((actual - reference).norm() / reference.norm())


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
@pytest.mark.parametrize(("objective", "loss"), [("classification", F.cross_entropy), ("poisoning", poisoned)])
def test_gradient_of_the_authors_implementation(objective, loss, memory):
    """Float64 numbers of SsnL/dataset-distillation (see tests/golden), stored as float32."""
    golden = {
        key: torch.tensor(v)
        for key, v in np.load(GOLDEN / f"unrolled_lenet_{objective}.npz").items()
        if v.dtype.kind != "U"
    }
    network, params, offset = golden_lenet(), {}, 0
    for name, parameter in network.named_parameters():
        params[name] = golden["w0"][offset : offset + parameter.numel()].double().view(parameter.shape)
        offset += parameter.numel()
    raw = golden["raw_lrs"].double()
    images, real = golden["images"].double(), golden["real_images"].double()

    result = meta_gradient(
        network,
        params,
        images,
        golden["labels"],
        SGD(F.softplus(raw)),
        loss_on(loss, real, golden["real_labels"]),
        memory=memory,
    )

    assert float(result.loss) == pytest.approx(float(golden["loss"]), rel=1e-9)
    assert relative(result.inputs, golden["grad_images"].double()) < 1e-6
    assert relative(result.lrs * torch.sigmoid(raw), golden["grad_raw_lrs"]) < 1e-6
    after = train(network, params, images, golden["labels"], SGD(F.softplus(raw)))
    norm = torch.sqrt(sum(w.square().sum() for w in after.params.values()))
    assert float(norm) == pytest.approx(float(golden["w_final_norm"]), rel=1e-9)


def problem(seed: int, nets: int | None, steps: int, epochs: int, n: int, soft: bool):
    """A small smooth network and data in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    lead = () if nets is None else (nets,)
    params = {name: 0.5 * normal(*lead, *p.shape) for name, p in network.named_parameters()}
    labels = normal(steps, n, 3).softmax(-1) if soft else torch.randint(3, (steps, n), generator=generator)
    lrs = 0.1 + normal(epochs, steps).square()
    real_labels = torch.randint(3, (6,), generator=generator)
    return network, params, normal(steps, n, 4), labels, SGD(lrs), loss_on(F.cross_entropy, normal(6, 4), real_labels)


def textbook_loss(network, params, inputs, labels, lrs, outer) -> torch.Tensor:
    """Training written out, differentiable end to end by autograd: what the engine must agree with."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    for t, lr in enumerate(lrs.flatten()):
        batch = t % len(inputs)
        loss = F.cross_entropy(functional_call(network, weights, (inputs[batch],)), labels[batch])
        gradient = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), gradient, strict=True)}
    return outer.loss(functional_call(network, weights, (outer.inputs,)), outer.labels)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 3),
    epochs=st.integers(1, 3),
    n=st.integers(1, 3),
    soft=st.booleans(),
    memory=st.sampled_from(MEMORIES),
)
def test_agrees_with_autograd_and_finite_differences(seed, steps, epochs, n, soft, memory):
    network, params, inputs, labels, inner, *rest = problem(seed, None, steps, epochs, n, soft)
    result = meta_gradient(network, params, inputs, labels, inner, *rest, memory=memory)

    lrs = inner.lrs
    variables = [inputs.clone().requires_grad_(), lrs.clone().requires_grad_()]
    soft_labels = labels.clone().requires_grad_() if soft else labels
    loss = textbook_loss(network, params, variables[0], soft_labels, variables[1], *rest)
    expected = torch.autograd.grad(loss, [*variables, *([soft_labels] if soft else [])])
    for actual, reference in zip((result.inputs, result.lrs, result.labels), expected, strict=False):
        torch.testing.assert_close(actual, reference, rtol=1e-9, atol=1e-11)
    assert (result.labels is not None) == soft

    step = 1e-5
    bump = torch.zeros_like(inputs)
    bump.view(-1)[seed % inputs.numel()] = step
    above, below = (textbook_loss(network, params, inputs + s * bump, labels, lrs, *rest) for s in (1, -1))
    slope = float((above - below).detach() / (2 * step))
    assert float(result.inputs.flatten()[seed % inputs.numel()]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_ways_of_going_back_are_equal_to_the_last_digits():
    store, *others = (meta_gradient(*problem(1, 2, 3, 4, 2, soft=True), memory=memory) for memory in MEMORIES)
    for other in others:
        torch.testing.assert_close(other.inputs, store.inputs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other.lrs, store.lrs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other.labels, store.labels, rtol=1e-10, atol=1e-12)


def test_several_networks_give_the_mean_of_each_alone():
    network, params, *rest = problem(2, 3, 2, 2, 2, soft=False)
    joint = meta_gradient(network, params, *rest)
    alone = [meta_gradient(network, {k: v[i] for k, v in params.items()}, *rest) for i in range(3)]
    torch.testing.assert_close(joint.inputs, sum(g.inputs for g in alone) / 3)
    torch.testing.assert_close(joint.lrs, sum(g.lrs for g in alone) / 3)
    torch.testing.assert_close(joint.loss, torch.cat([g.loss for g in alone]))


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_window_truncates_to_the_last_steps(memory):
    network, params, inputs, labels, inner, *rest = problem(3, None, 2, 3, 2, soft=False)
    exact = meta_gradient(network, params, inputs, labels, inner, *rest)
    whole = meta_gradient(network, params, inputs, labels, inner, *rest, window=6, memory=memory)
    torch.testing.assert_close(whole.inputs, exact.inputs)

    # The last two steps make up the last epoch: start there, with the weights as they are by then.
    last = meta_gradient(network, params, inputs, labels, inner, *rest, window=2, memory=memory)
    by_then = train(network, params, inputs, labels, SGD(inner.lrs[:2]))
    expected = meta_gradient(network, by_then.params, inputs, labels, SGD(inner.lrs[2:]), *rest)
    torch.testing.assert_close(last.inputs, expected.inputs)
    torch.testing.assert_close(last.lrs[2:], expected.lrs)
    assert not last.lrs[:2].any()
    torch.testing.assert_close(last.loss, exact.loss)


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_a_window_on_the_way_takes_the_loss_where_it_ends(memory):
    network, params, inputs, labels, inner, *rest = problem(3, None, 2, 3, 2, soft=True)
    exact = meta_gradient(network, params, inputs, labels, inner, *rest)
    whole = meta_gradient(network, params, inputs, labels, inner, *rest, window=(0, 6), memory=memory)
    torch.testing.assert_close(whole.inputs, exact.inputs)

    # Steps 2 and 3 are the second epoch.
    middle = meta_gradient(network, params, inputs, labels, inner, *rest, window=(2, 4), memory=memory)
    by_then = train(network, params, inputs, labels, SGD(inner.lrs[:1]))
    expected = meta_gradient(network, by_then.params, inputs, labels, SGD(inner.lrs[1:2]), *rest)
    for actual, reference in ((middle.inputs, expected.inputs), (middle.labels, expected.labels)):
        torch.testing.assert_close(actual, reference)
    torch.testing.assert_close(middle.lrs[1:2], expected.lrs)
    assert not middle.lrs[[0, 2]].any()
    torch.testing.assert_close(middle.loss, expected.loss)

    # One step: the other batch has no gradient.
    one = meta_gradient(network, params, inputs, labels, inner, *rest, window=(3, 4), memory=memory)
    assert not one.inputs[0].any()
    assert not one.labels[0].any()
    assert one.inputs[1].any()


def test_train_is_plain_gradient_descent():
    network, params, inputs, labels, inner, *_ = problem(4, None, 2, 2, 3, soft=False)
    after = train(network, params, inputs, labels, inner)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(params[name])
    for t, lr in enumerate(inner.lrs.flatten().tolist()):
        optimizer = torch.optim.SGD(network.parameters(), lr=lr)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[t % 2]), labels[t % 2]).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(after.params[name], parameter.detach())


def test_running_statistics_follow_the_inner_steps_and_leave_the_network_alone():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), StochasticDepth(0.5, "row"), nn.Linear(5, 3)
    )
    params = {name: p.detach().clone() for name, p in network.named_parameters()}
    inputs = torch.randn((2, 6, 4), generator=generator)
    labels = torch.randint(3, (2, 6), generator=generator)
    inner = SGD(torch.full((3, 2), 0.1))
    outer = loss_on(
        F.cross_entropy, torch.randn((8, 4), generator=generator), torch.randint(3, (8,), generator=generator)
    )

    after = train(network, params, inputs, labels, inner)
    assert int(after.buffers["1.num_batches_tracked"]) == 6
    assert int(network[1].num_batches_tracked) == 0
    results = [meta_gradient(network, params, inputs, labels, inner, outer, memory=m) for m in MEMORIES]
    for other in results[1:]:
        torch.testing.assert_close(other.inputs, results[0].inputs)
    assert network.training
    assert int(network[1].num_batches_tracked) == 0


def test_modes_are_put_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    network[0].eval()
    with inner_mode(network):
        assert not any(module.training for module in network.modules())
    with evaluation_mode(network):
        assert not network[1].training
    assert [m.training for m in network.modules()] == [True, False, True]


@pytest.mark.usefixtures("without_shape_checks")
def test_shapes_that_do_not_belong_together():
    network, params, inputs, labels, inner, *rest = problem(5, 2, 2, 2, 2, soft=False)
    with pytest.raises(ValueError, match="lrs"):
        meta_gradient(network, params, inputs, labels, SGD(inner.lrs[:, :1]), *rest)
    with pytest.raises(ValueError, match="labels"):
        meta_gradient(network, params, inputs, labels[:1], inner, *rest)
    with pytest.raises(ValueError, match="window"):
        meta_gradient(network, params, inputs, labels, inner, *rest, window=0)
    with pytest.raises(ValueError, match="Store\\(\\)"):
        meta_gradient(network, params, inputs, labels, inner, *rest, memory="store")
    with pytest.raises(ValueError, match="every must be at least 1"):
        Checkpoint(every=0)
    with pytest.raises(ValueError, match="leading"):
        list(unstack(network, {name: tensor[:, :1] for name, tensor in params.items()}))
    with pytest.raises(ValueError, match="params name"):
        list(unstack(network, {"0.weight": params["0.weight"]}))


def test_the_engine_is_known_before_and_named_after():
    network, params, inputs, labels, inner, *rest = problem(6, 3, 2, 2, 2, soft=False)
    assert str(choose_engine(network, inputs, 3)) == "autograd, 1 network per call"
    assert meta_gradient(network, params, inputs, labels, inner, *rest).engine == "autograd"

    chain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    before = choose_engine(chain, inputs.to("meta"), 3)
    assert (before.name, before.stack, str(before)) == ("chain", 3, "hand-derived chain, 3 networks per call")
    assert meta_gradient(chain, params, inputs, labels, inner, *rest).engine == "chain"

    # Another inner loss has no hand-derived steps.
    other = meta_gradient(chain, params, inputs, labels, inner, *rest, inner_loss=F.cross_entropy)
    assert other.engine == choose_engine(chain, inputs, 3, F.cross_entropy).name == "autograd"

"""Weights and running statistics go together: drawn, trained, scored, and refused where they are not valid."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import ddbench
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.task import Networks
from ddbench.discovery.catalog import Catalog
from ddbench.errors import PluginError
from ddbench.networks import State, forward, measure, unstack
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare
from ddbench.protocols import get_protocol
from ddbench.unroll import SGD, loss_on, meta_gradient, train

BATCH_NORM = {"name": "convnet", "options": {"width": 4, "depth": 1, "norm": "batch"}}


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def state_of(module: nn.Module, nets: int) -> State:
    """Return a stack whose network i has running means i + 1."""
    params = {name: torch.randn(nets, *p.shape) for name, p in module.named_parameters()}
    buffers = {name: torch.stack([b] * nets) for name, b in module.named_buffers()}
    buffers["1.running_mean"] = torch.arange(1.0, nets + 1)[:, None].expand(nets, 5).clone()
    return State(params, buffers)


def networks_of(module: nn.Module, drawn: object) -> Networks:
    return Networks(module, lambda request: drawn, None, torch.Generator(), "train", None)


def test_a_state_is_drawn_as_it_is(module):
    state = state_of(module, 2)
    state.buffers["1.num_batches_tracked"] += 7
    drawn = networks_of(module, state).sample(3)
    assert drawn.count == 2
    for part, other in ((drawn.params, state.params), (drawn.buffers, state.buffers)):
        assert part.keys() == other.keys() and all(torch.equal(part[name], other[name]) for name in part)
    assert drawn.buffers["1.num_batches_tracked"].dtype == torch.int64


def test_parameters_alone_start_with_the_modules_buffers(module):
    module[1].running_mean.fill_(0.5)
    drawn = networks_of(module, state_of(module, 2).params).sample(2)
    assert drawn.buffers["1.running_mean"].tolist() == [[0.5] * 5] * 2
    drawn.buffers["1.running_mean"][0].zero_()
    assert (drawn.buffers["1.running_mean"][1] == 0.5).all() and (module[1].running_mean == 0.5).all()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("1.running_var", torch.ones(2, 4), r"1.running_var of shape \[2, 4\]"),
        ("1.running_var", torch.ones(1, 5), r"1.running_var of shape \[1, 5\]"),
        ("1.running_var", torch.full((2, 5), torch.nan), "NaN or infinite values in 1.running_var"),
        ("2.running_var", torch.ones(2, 5), "the buffer '2.running_var', which the network does not have"),
    ],
)
def test_buffers_that_do_not_fit_are_named(module, name, tensor, message):
    state = state_of(module, 2)
    state.buffers[name] = tensor
    with pytest.raises(PluginError, match=message):
        networks_of(module, state).sample(2)


def test_an_init_of_the_older_form_is_named():
    with pytest.raises(PluginError, match="init 'older' does not take one argument") as error:

        @ddbench.init
        def older(network, info, n, generator, side):
            """Weights."""

    assert "def older(request: InitRequest" in error.value.hint


def test_unstacking(module):
    state = state_of(module, 2)
    first, second = unstack(module, state)
    assert (first.buffers["1.running_mean"] == 1).all() and (second.buffers["1.running_mean"] == 2).all()
    [single] = unstack(module, second)
    assert single == second
    for alone in unstack(module, state.params):
        assert torch.equal(alone.buffers["1.running_var"], module[1].running_var)
    state.buffers["1.running_mean"] = state.buffers["1.running_mean"][0]
    with pytest.raises(ValueError, match="same leading"):
        list(unstack(module, state))


def test_inner_steps_start_from_the_running_statistics_of_the_state(module):
    state = state_of(module, 2)
    inputs, labels, lrs = torch.randn(1, 6, 4), torch.arange(6)[None] % 3, torch.full((1, 1), 0.1)
    for number in range(2):
        start = state.network(number)
        after = train(module, start, inputs, labels, SGD(lrs))
        hidden = inputs[0] @ start.params["0.weight"].T + start.params["0.bias"]
        torch.testing.assert_close(after.buffers["1.running_mean"], 0.9 * (number + 1) + 0.1 * hidden.mean(0))
        assert int(after.buffers["1.num_batches_tracked"]) == 1
        assert (start.buffers["1.running_mean"] == number + 1).all()

    def losses(start: object) -> torch.Tensor:
        outer = loss_on(nn.functional.cross_entropy, inputs[0], labels[0])
        return meta_gradient(module, start, inputs, labels, SGD(lrs), outer).loss

    # The outer loss is taken in evaluation mode.
    torch.testing.assert_close(losses(state), torch.cat([losses(state.network(0)), losses(state.network(1))]))
    assert not torch.allclose(losses(state), losses(state.params))


TARGET = '''
import ddbench
from ddbench import AdaptationTarget

@ddbench.target
def batch_norm():
    """Adapt networks with batch normalisation from the digits to the digits."""
    def sample(request):
        return request.pool(count=5, held_out=2, steps=80, lr=0.01, dataset="digits")
    return AdaptationTarget("digits", "convnet", sample)

@ddbench.hookimpl
def ddbench_targets():
    return [batch_norm]
'''


@pytest.mark.slow
def test_networks_with_batch_normalisation_are_like_any_other(tmp_path: Path):
    """A pool of them is adapted, gives the upper bound and teaches; poisoning is measured on them."""
    (tmp_path / "batch_norm.py").write_text(TARGET)
    catalog = Catalog([tmp_path / "batch_norm.py"])
    fields = {"method": "random_subset", "target": "batch_norm", "network": BATCH_NORM, "objective": "poisoning"}
    prepared = prepare(plan_run(ddbench.RunSpec.parse(fields), catalog), catalog)
    setting = prepared.setting
    drawn = prepared.task(torch.Generator()).networks.sample(5)
    counts = drawn.buffers["norm1.num_batches_tracked"]
    assert counts.tolist() == [80] * 5

    chosen = prepared.train.random_subset(10, torch.Generator().manual_seed(0))
    distilled = DistilledSet(chosen.inputs[None], setting.objective.relabel(chosen.labels)[None])
    replayed = get_protocol("replay/v1").evaluate([distilled], setting, 2, Silent())
    assert min(replayed.before["accuracy"]) > 0.8
    assert min(replayed.scores["attack_success"]) > max(replayed.before["attack_success"])

    classify = prepare(plan_run(ddbench.RunSpec.parse({**fields, "objective": "classification"}), catalog), catalog)
    full = classify.setting.full_data(float("inf"))
    accuracies = [
        measure(setting.module, state, setting.test, classify.setting.objective)["accuracy"] for state in full
    ]
    assert min(accuracies) > 0.85
    teachers = dataclasses.replace(get_protocol("train-teacher/v1"), epochs=60)
    taught = teachers.evaluate([distilled], classify.setting, 2, Silent())
    assert min(taught.scores["accuracy"]) > 0.8


def test_large_images_are_measured_in_smaller_batches():
    module = nn.Sequential(nn.Conv2d(1, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state = State({name: p.detach() for name, p in module.named_parameters()})
    batches: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    large = torch.empty(1, 1, 1).expand(5, 1, 1024, 1024)  # 256 MB for an activation of one image
    forward(module, state, large)
    forward(module, state, torch.zeros(5, 1, 8, 8))
    assert batches == [2, 2, 1, 5]

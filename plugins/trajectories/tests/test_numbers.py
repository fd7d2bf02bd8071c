"""MTT, DATM and TESLA against the numbers of the authors' own code."""

import pytest
import torch
from ddbench_trajectories import segments
from ddbench_trajectories.datm import gradient_with_logits
from ddbench_trajectories.mtt import matching_gradient
from ddbench_trajectories.tesla import constant_weights_gradient
from torch import nn

from ddbench import State
from ddbench.augment import DSA
from ddbench.unroll import MEMORIES
from tests.test_unroll_golden import Golden, assert_close, convnet

norms = pytest.mark.parametrize("norm", ["group", "instance"])


def ends(golden: Golden, network: nn.Module) -> tuple[State, dict]:
    return State(golden.params(network, golden["w0"])), golden.params(network, golden["target"])


@norms
@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.name)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_mtt_by_the_authors_numbers(kind, memory, norm):
    golden, network = Golden("mtt"), convnet(5, 8, norm)
    inputs = golden["syn_images"], golden[f"{kind}_labels"], golden["syn_lr"], golden[f"batch_indices_{kind}"]
    result = matching_gradient(network, *ends(golden, network), *inputs, memory=memory)
    assert_close(result.loss, golden[f"loss_{kind}"][None])
    assert_close(result.inputs, golden[f"grad_images_{kind}"])
    assert_close(result.lrs, golden[f"grad_lr_{kind}"])
    if kind == "soft":
        assert_close(result.labels, golden["grad_labels_soft"])


@norms
def test_datm_by_the_authors_numbers(norm):
    golden, network = Golden("datm"), convnet(5, 8, norm)
    inputs = golden["syn_images"], golden["label_logits"], golden["syn_lr"], golden["batch_indices"]
    result, grad_logits = gradient_with_logits(network, *ends(golden, network), *inputs)
    assert_close(result.loss, golden["loss_exact"][None])
    assert_close(result.inputs, golden["grad_images_exact"])
    assert_close(result.lrs, golden["grad_lr_exact"])
    assert_close(grad_logits, golden["grad_logits_exact"])


@norms
def test_tesla_by_the_authors_numbers_which_are_not_those_of_the_exact_gradient(norm):
    golden, network = Golden("datm"), convnet(5, 8, norm)
    logits = golden["label_logits"].clone().requires_grad_()
    labels = logits.softmax(-1)
    inputs = golden["syn_images"], labels.detach(), golden["syn_lr"], golden["batch_indices"]
    result = constant_weights_gradient(network, *ends(golden, network), *inputs)
    labels.backward(result.labels)
    assert_close(result.loss, golden["loss_tesla"][None])
    assert_close(result.inputs, golden["grad_images_tesla"])
    assert_close(result.lrs, golden["grad_lr_tesla"])
    assert_close(logits.grad, golden["grad_logits_tesla"])
    exact = golden["grad_images_exact"]
    assert float((result.inputs - exact).norm() / exact.norm()) == pytest.approx(0.365, abs=1e-3)
    assert float(result.lrs / golden["grad_lr_exact"]) == pytest.approx(1.63, abs=0.01)


def test_tesla_is_exact_for_a_single_step():
    torch.manual_seed(0)
    network = convnet(5, 8)
    start = State({name: p.detach() for name, p in network.named_parameters()})
    target = {name: p + 0.01 * torch.randn_like(p) for name, p in start.params.items()}
    images, labels, rate = torch.randn(4, 3, 32, 32).double(), torch.arange(4), torch.tensor(0.03).double()
    views = segments.draw_views(DSA, torch.arange(4)[None], torch.Generator().manual_seed(3))
    inputs = images, labels, rate, torch.arange(4)[None], views
    tesla, mtt = (f(network, start, target, *inputs) for f in (constant_weights_gradient, matching_gradient))
    assert_close(tesla.inputs, mtt.inputs)
    assert_close(tesla.lrs, mtt.lrs)
    assert tesla.labels is None

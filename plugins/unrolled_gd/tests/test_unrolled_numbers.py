"""The gradients of the unrolled methods, in float64, against numbers of the authors' own code."""

import numpy as np
import pytest
import torch
from ddbench_unrolled_gd.linba import momentum_gradient
from ddbench_unrolled_gd.rat_bptt import window_gradient
from ddbench_unrolled_gd.reversible import schedule_gradient, schedule_of
from ddbench_unrolled_gd.unrolled_gd import descent_gradient
from torch.nn import functional as F

from ddbench import DatasetInfo
from ddbench.builtin.decoders import linear_bases
from ddbench.unroll import MEMORIES, Memory, Recompute, Reverse, loss_on
from tests.test_unroll_golden import GOLDEN, Golden, assert_close, convnet, lenet

memories = pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.name)
norms = pytest.mark.parametrize("norm", ["group", "instance"])


@memories
def test_soft_labels_by_the_authors_numbers(memory: Memory):
    golden, network = Golden("soft_labels"), lenet()
    outer = loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"])
    start = golden.params(network, golden["w0"])
    result, grad_raw = descent_gradient(
        network, start, golden["images"], golden["labels"], golden["raw_lrs"], outer, memory=memory
    )
    assert_close(result.loss, golden["loss_raw"][None])
    assert_close(result.inputs, golden["grad_images_raw"])
    assert_close(result.labels, golden["grad_labels_raw"])
    assert_close(grad_raw, golden["grad_raw_lrs_raw"])


@pytest.mark.parametrize("task", ["classification", "poisoning"])
def test_hard_labels_by_the_authors_numbers(task):
    """The file stores float32."""
    network = lenet()
    arrays = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / f"unrolled_lenet_{task}.npz").items()
              if array.dtype.kind in "fi"}  # fmt: skip
    flat = torch.split(arrays["w0"].double(), [p.numel() for p in network.parameters()])
    start = {name: part.view(p.shape) for (name, p), part in zip(network.named_parameters(), flat, strict=True)}
    real_labels = arrays["real_labels"].long()
    if task == "poisoning":
        real_labels = torch.where(real_labels == 0, 1, real_labels)
    outer = loss_on(F.cross_entropy, arrays["real_images"].double(), real_labels)
    result, grad_raw = descent_gradient(
        network, start, arrays["images"].double(), arrays["labels"].long(), arrays["raw_lrs"].double(), outer
    )
    for actual, name in ((result.inputs, "grad_images"), (grad_raw, "grad_raw_lrs")):
        expected = arrays[name].double()
        assert float((actual - expected).norm() / expected.norm()) < 1e-6


@norms
@memories
@pytest.mark.parametrize("case", ["adam_window3", "adam_full6"])
def test_windows_of_adam_by_the_authors_numbers(case, memory: Memory, norm):
    golden, network = Golden("rat_bptt"), convnet(4, 8, norm)
    rows, window = golden[f"batch_indices_{case}"], int(golden[f"window_{case}"])
    outer = loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"])
    start = golden.params(network, golden["w0"])
    images, labels, rate = golden["syn_images"], golden["syn_labels"], golden[f"lr_{case}"]
    result = window_gradient(network, start, images, labels, rate, rows, window, outer, memory=memory)
    assert_close(result.loss, golden[f"loss_{case}"][None])
    assert_close(result.inputs, golden[f"grad_images_{case}"])


@pytest.mark.parametrize("memory", [*MEMORIES, Reverse()], ids=lambda memory: memory.name)
@pytest.mark.parametrize("kind", ["images", "basis"])
def test_momentum_and_bases_by_the_authors_numbers(kind, memory: Memory):
    golden, network = Golden("linba"), convnet(4, 8)
    payload = {"coefficients": golden["coefficients"].requires_grad_(), "bases": golden["basis"].requires_grad_()}
    info = DatasetInfo("x", tuple("0123"), (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)
    images = golden["syn_images"] if kind == "images" else linear_bases(payload, info)
    outer = loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"])
    result = momentum_gradient(
        network, golden.params(network, golden["w0"]), images.detach(), golden["syn_labels"], golden["lr"],
        float(golden["momentum"]), golden["batch_indices"], outer, memory=memory,
    )  # fmt: skip
    assert_close(result.loss, golden[f"loss_{kind}"][None])
    if kind == "images":
        assert_close(result.inputs, golden["grad_images"])
        return
    grads = torch.autograd.grad(images, list(payload.values()), result.inputs)
    assert_close(grads[0], golden["grad_coefficients"])
    assert_close(grads[1], golden["grad_basis"])


@pytest.fixture
def small() -> tuple:
    """A network, its start, images [2, 3, 6], labels, the raw numbers of 3 x 2 steps, and the outer loss."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    start = {name: 0.5 * normal(*p.shape) for name, p in network.named_parameters()}
    raw = {"lrs": normal(3, 2) - 1, "momentum": normal(3, 2), "decay": normal(3, 2) - 3}
    outer = loss_on(F.cross_entropy, normal(12, 6), torch.arange(12) % 3)
    return network, start, normal(2, 3, 6), torch.arange(3).repeat(2, 1), raw, outer


@pytest.mark.parametrize("names", [("lrs", "momentum"), ("lrs", "momentum", "decay")])
def test_undone_steps_have_the_gradient_of_stored_ones(small, names):
    network, start, images, labels, raw, outer = small
    # The momentum of an undone step is the nearest ratio of small integers.
    momenta = torch.tensor([[0.5, 0.75], [0.8, 0.25], [0.9, 0.6]], dtype=torch.float64)
    raw = {name: raw[name] for name in names} | {"momentum": momenta.logit()}
    undone, stored = (
        schedule_gradient(network, start, images, labels, raw, outer, memory=memory)
        for memory in (Reverse(), Recompute())
    )
    assert_close(undone[0].loss, stored[0].loss)
    assert_close(undone[0].inputs, stored[0].inputs)
    assert undone[1].keys() == set(names)
    for name in names:
        assert_close(undone[1][name], stored[1][name])


def test_gradients_by_rates_momenta_and_decays_are_those_of_finite_differences(small):
    network, start, images, labels, raw, outer = small
    _, grads = schedule_gradient(network, start, images, labels, raw, outer, memory=Recompute())
    for name, tensor in raw.items():
        for place in ((0, 0), (1, 1), (2, 0)):
            losses = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved[place] += sign * 1e-5
                result, _ = schedule_gradient(
                    network, start, images, labels, {**raw, name: moved}, outer, memory=Recompute()
                )
                losses.append(float(result.loss))
            difference = (losses[0] - losses[1]) / 2e-5
            assert float(grads[name][place]) == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_raw_numbers_are_those_of_a_training():
    values = schedule_of({"lrs": torch.tensor([-50.0, 1.0]), "momentum": torch.tensor([0.0]), "decay": torch.zeros(1)})
    assert (values["lrs"] > 0).all()
    assert values["momentum"].tolist() == [0.5]
    assert values["decay"].tolist() == pytest.approx([0.6931], abs=1e-4)

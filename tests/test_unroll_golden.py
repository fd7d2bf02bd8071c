"""Meta-gradients of the field's methods, in float64, against numbers of their authors' code (see tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.unroll import (
    SGD,
    Adam,
    Checkpoint,
    MetaGradient,
    Recompute,
    Reverse,
    Store,
    distance_to,
    loss_on,
    meta_gradient,
    train,
)

GOLDEN = Path(__file__).parent / "golden"
memories = pytest.mark.parametrize("memory", [Store(), Recompute(), Checkpoint()], ids=lambda memory: memory.name)
norms = pytest.mark.parametrize("norm", ["group", "instance"])


class Golden:
    """One file of reference numbers; floats are widened to float64."""

    def __init__(self, name: str) -> None:
        arrays = np.load(GOLDEN / f"field_{name}.npz")
        tensors = {key: torch.from_numpy(a) for key, a in arrays.items() if a.dtype.kind in "fi"}
        self.tensors = {key: t.double() if t.is_floating_point() else t for key, t in tensors.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def params(self, network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
        """Return flat parameters, which are in the order of the network's layers, by name."""
        parts = torch.split(flat, [parameter.numel() for parameter in network.parameters()])
        return {name: part.view(p.shape) for (name, p), part in zip(network.named_parameters(), parts, strict=True)}


def convnet(classes: int, width: int, norm: str = "group") -> nn.Module:
    """Three blocks on 3 x 32 x 32. With `group` it is a chain for the engine, with `instance` it goes by autograd."""

    def block(channels: int) -> list[nn.Module]:
        normal = nn.GroupNorm(width, width) if norm == "group" else nn.InstanceNorm2d(width, affine=True)
        return [nn.Conv2d(channels, width, 3, padding=1), normal, nn.ReLU(), nn.AvgPool2d(2)]

    return nn.Sequential(*block(3), *block(width), *block(width), nn.Flatten(), nn.Linear(16 * width, classes)).double()


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).double()  # fmt: skip


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).norm() / expected.norm()) < 1e-8


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in params.values()])


def matched(golden: Golden, network: nn.Module, labels: Tensor, indices: Tensor, **settings: object) -> MetaGradient:
    start, target = golden.params(network, golden["w0"]), golden.params(network, golden["target"])
    return meta_gradient(
        network,
        start,
        golden["syn_images"],
        labels,
        SGD(golden["syn_lr"]),
        distance_to(target, start),
        indices=indices,
        **settings,
    )


@memories
@norms
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_trajectory_matching(kind, norm, memory):
    """Cazenavette et al. 2022 (MTT): the short piece of a permutation leaves places empty."""
    golden, network = Golden("mtt"), convnet(5, 8, norm)
    indices = golden[f"batch_indices_{kind}"]
    assert (indices == -1).any()
    result = matched(golden, network, golden[f"{kind}_labels"], indices, memory=memory)
    assert result.engine == ("chain" if norm == "group" else "autograd")
    assert_close(result.loss, golden[f"loss_{kind}"][None])
    assert_close(result.inputs, golden[f"grad_images_{kind}"])
    assert_close(result.lrs, golden[f"grad_lr_{kind}"])
    if kind == "soft":
        assert_close(result.labels, golden["grad_labels_soft"])
    else:
        assert result.labels is None


@memories
def test_learned_label_logits(memory):
    """Guo et al. 2024 (DATM): targets are a softmax; the chain rule through it is the author's."""
    golden, network = Golden("datm"), convnet(5, 8)
    logits = golden["label_logits"].clone().requires_grad_()
    labels = logits.softmax(-1)
    result = matched(golden, network, labels, golden["batch_indices"], memory=memory)
    labels.backward(result.labels)
    assert_close(result.loss, golden["loss_exact"][None])
    assert_close(result.inputs, golden["grad_images_exact"])
    assert_close(result.lrs, golden["grad_lr_exact"])
    assert_close(logits.grad, golden["grad_logits_exact"])


@memories
@pytest.mark.parametrize("kind", ["raw", "softmax"])
def test_learned_soft_labels(kind, memory):
    """Sucholutsky and Schonlau 2021: labels need be neither positive nor of sum one."""
    golden, network = Golden("soft_labels"), lenet()
    learned = golden["labels"].clone().requires_grad_()
    labels = learned if kind == "raw" else learned.softmax(-1)
    raw = golden["raw_lrs"].clone().requires_grad_()
    inner, outer = SGD(F.softplus(raw)), loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"])
    start = golden.params(network, golden["w0"])
    result = meta_gradient(network, start, golden["images"], labels, inner, outer, memory=memory)
    torch.autograd.backward([inner.lrs, labels], [result.lrs, result.labels])
    assert_close(result.loss, golden[f"loss_{kind}"][None])
    assert_close(result.inputs, golden[f"grad_images_{kind}"])
    assert_close(learned.grad, golden[f"grad_labels_{kind}"])
    assert_close(raw.grad, golden[f"grad_raw_lrs_{kind}"])
    after = train(network, start, golden["images"], labels, inner)
    assert_close(flat(after.params).norm(), golden[f"w_final_norm_{kind}"])


@pytest.mark.parametrize("memory", [Store(), Recompute(), Checkpoint(), Reverse()], ids=lambda memory: memory.name)
@pytest.mark.parametrize("kind", ["images", "basis"])
def test_momentum_images_and_bases(kind, memory):
    """Deng and Russakovsky 2022 (LinBa): images may be products, through which the chain rule is the author's."""
    golden, network = Golden("linba"), convnet(4, 8)
    basis, coefficients = (golden[name].clone().requires_grad_() for name in ("basis", "coefficients"))
    images = golden["syn_images"] if kind == "images" else torch.einsum("nk,kchw->nchw", coefficients, basis)
    result = meta_gradient(
        network,
        golden.params(network, golden["w0"]),
        images,
        golden["syn_labels"],
        SGD(golden["lr"], momentum=float(golden["momentum"])),
        loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"]),
        indices=golden["batch_indices"],
        memory=memory,
    )
    assert_close(result.loss, golden[f"loss_{kind}"][None])
    if kind == "images":
        assert_close(result.inputs, golden["grad_images"])
        assert_close(flat(result.start), golden["grad_w0_images"])
    else:
        images.backward(result.inputs)
        assert_close(basis.grad, golden["grad_basis"])
        assert_close(coefficients.grad, golden["grad_coefficients"])


@memories
@norms
@pytest.mark.parametrize("case", ["adam_window3", "adam_full6", "sgd_window3"])
def test_windows_with_an_inner_optimiser(case, norm, memory):
    """Feng et al. 2023 (RaT-BPTT): moments go on through the steps before the window, and are constants to it."""
    golden, network = Golden("rat_bptt"), convnet(4, 8, norm)
    lr = golden[f"lr_{case}"]
    result = meta_gradient(
        network,
        golden.params(network, golden["w0"]),
        golden["syn_images"],
        golden["syn_labels"],
        Adam(lr) if case.startswith("adam") else SGD(lr, momentum=0.9, decay=5e-4),
        loss_on(F.cross_entropy, golden["real_images"], golden["real_labels"]),
        indices=golden[f"batch_indices_{case}"],
        window=int(golden[f"window_{case}"]),
        memory=memory,
    )
    assert_close(result.loss, golden[f"loss_{case}"][None])
    assert_close(result.inputs, golden[f"grad_images_{case}"])

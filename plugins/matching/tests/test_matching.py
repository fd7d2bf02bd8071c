"""DC, DSA and DM against the numbers of the authors' code, and what they tell users."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ddbench_matching import distributions, gradients
from torch import Tensor, nn

from ddbench import DatasetInfo
from ddbench.builtin.networks import convnet
from ddbench.networks import State

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"


def network_at(w0: Tensor, classes: int, norm: str = "instance") -> tuple[nn.Module, State]:
    """Return the ConvNet of both papers and its state at the flat weights `w0`."""
    info = DatasetInfo("x", tuple(map(str, range(classes))), (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)
    module = convnet(info, width=16, norm=norm).double()
    shapes = {name: p.shape for name, p in module.named_parameters()}
    parts = torch.split(w0, [shape.numel() for shape in shapes.values()])
    return module, State({name: part.view(s) for (name, s), part in zip(shapes.items(), parts, strict=True)})


def golden(name: str) -> dict[str, Tensor]:
    arrays = np.load(GOLDEN / f"field_{name}.npz")
    return {key: torch.tensor(array.astype(float)) for key, array in arrays.items() if array.dtype.kind == "f"}


def relative(actual: Tensor, reference: Tensor) -> float:
    return float((actual.detach() - reference).norm() / reference.norm())


def test_gradient_matching_equals_the_authors_code():
    numbers = golden("dc")
    module, state = network_at(numbers["w0"], 4)
    losses, grads = [], []
    for label, real in enumerate(numbers["real_images"]):
        images = numbers["syn_images"][2 * label : 2 * label + 2].requires_grad_()
        labels = torch.full((8,), label)
        loss = gradients.matching_loss(module, state, (real, labels), (images, labels[:2]))
        losses.append(loss.detach())
        grads += torch.autograd.grad(loss, images)
    assert relative(torch.stack(losses), numbers["loss_per_class_ours"]) < 1e-8
    assert relative(torch.stack(losses).sum(), numbers["loss_ours"]) < 1e-8
    assert relative(torch.cat(grads), numbers["grad_images_ours"]) < 1e-8


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_distribution_matching_equals_the_authors_code(norm):
    numbers, suffix = golden("dm"), "_batchnorm" if norm == "batch" else ""
    module, state = network_at(numbers[f"w0{suffix}"], 10, norm)
    images = numbers["syn_images"].requires_grad_()
    loss = distributions.matching_loss(module, state, list(numbers["real_images"]), list(images.split(2)))
    [grad] = torch.autograd.grad(loss, images)
    assert relative(loss, numbers[f"loss{suffix}"]) < 1e-8
    assert relative(grad, numbers[f"grad_images{suffix}"]) < 1e-8

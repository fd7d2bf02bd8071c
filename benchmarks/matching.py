"""Seconds per iteration of DC, DSA and DM: the methods against the published loops, by turns.

The published loops are written out with stock modules (Zhao et al. 2021 and 2023): one call for each class, all real
images of it at once. Setting: CIFAR-10's shape, ConvNet-3, 10 images per class, 256 real images of each class; an
iteration of DC and DSA is an update of the images and 50 epochs of the network on them. Both sides have the same
numbers, which are compared.
"""

from dataclasses import dataclass
from functools import partial

import torch
from ddbench_matching import classwise, distributions, gradients
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stock import info_of
from benchmarks.turns import Case, Sides
from ddbench import State, augment
from ddbench.builtin import networks
from ddbench.networks import fit

CLASSES, PER_CLASS, REAL, EPOCHS = 10, 10, 256, 50


@dataclass
class Iteration:
    """Random images of every class, one draw of augmentation for each class, and a network."""

    network: nn.Module
    real: Tensor
    images: Tensor
    views: list[augment.Augmentation | None]
    epochs: int

    @property
    def state(self) -> State:
        """The initial weights."""
        return State({name: parameter.detach() for name, parameter in self.network.named_parameters()})

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The real and the synthetic images of each class, augmented alike."""
        images = zip(self.real, self.images, self.views, strict=True)
        return [(classwise.view(real, view), classwise.view(own, view)) for real, own, view in images]

    def plain_dm(self) -> Tensor:
        """Return the gradient by the images, class by class in whole batches."""
        embed = nn.Sequential(*list(self.network.children())[:-1])
        loss = torch.zeros(())
        for real, own in self.pairs:
            target = embed(real).detach().mean(0)
            loss = loss + (embed(own).mean(0) - target).square().sum()
        return torch.autograd.grad(loss, self.images)[0]

    def method_dm(self) -> Tensor:
        """Return the same from the plugin."""
        real, synthetic = zip(*self.pairs, strict=True)
        loss = distributions.matching_loss(self.network, self.state, list(real), list(synthetic))
        return torch.autograd.grad(loss, self.images)[0]

    def plain_dc(self) -> Tensor:
        """Return the gradient by the images, class by class in whole batches, and train the network with stock SGD."""
        parameters = list(self.network.parameters())
        loss = torch.zeros(())
        for label, (real, own) in enumerate(self.pairs):
            labels = torch.full((len(real),), label)
            target = torch.autograd.grad(F.cross_entropy(self.network(real), labels), parameters)
            outputs = self.network(own)
            grads = torch.autograd.grad(F.cross_entropy(outputs, labels[: len(own)]), parameters, create_graph=True)
            for a, b in zip(grads, target, strict=True):
                if b.dim() > 1:
                    a, b = a.flatten(1), b.detach().flatten(1)
                    loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        [grad] = torch.autograd.grad(loss, self.images)
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        inputs, labels = (
            self.images.detach().flatten(0, 1),
            torch.arange(CLASSES).repeat_interleave(self.images.shape[1]),
        )
        for _ in range(self.epochs):
            optimizer.zero_grad()
            F.cross_entropy(self.network(inputs), labels).backward()
            optimizer.step()
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
        return grad

    def method_dc(self) -> Tensor:
        """Return the same from the plugin's functions."""
        grads = []
        for label, (real, own) in enumerate(zip(self.real, self.images, strict=True)):
            labels, view = torch.full((len(real),), label), self.views[label]
            own = own.detach().requires_grad_()
            sides = (classwise.view(real, view), labels), (classwise.view(own, view), labels[: len(own)])
            grads += torch.autograd.grad(gradients.matching_loss(self.network, self.state, *sides), own)
        inputs, labels = (
            self.images.detach().flatten(0, 1),
            torch.arange(CLASSES).repeat_interleave(self.images.shape[1]),
        )
        fit(self.network, self.state, [(inputs, labels)] * self.epochs, lambda w: torch.optim.SGD(w, lr=0.01))
        return torch.stack(grads)


def sides(method: str) -> Sides:
    """Return both sides on the same random data."""
    torch.manual_seed(0)
    info = info_of("convnet")
    generator = torch.Generator().manual_seed(0)
    views = [None if method == "dc" else augment.draw(augment.DSA, generator) for _ in range(CLASSES)]
    real, images = (torch.randn(CLASSES, n, *info.sample_shape) for n in (REAL, PER_CLASS))
    iteration = Iteration(networks.convnet(info), real, images.requires_grad_(), views, EPOCHS)
    if method == "dm":
        return {"baseline": iteration.plain_dm, "ddbench": iteration.method_dm}
    return {"baseline": iteration.plain_dc, "ddbench": iteration.method_dc}


CASES = {
    name: Case(
        f"an iteration of {name.upper()} at {PER_CLASS} images per class, ConvNet-3", "the published loop",
        partial(sides, name), goal=2,
    )
    for name in ("dc", "dsa", "dm")
}  # fmt: skip

"""Seconds and peak memory of an outer iteration of MTT: the method against the published loop, by turns.

The published loop is written out: a flat vector of weights, a student's steps with `create_graph=True`, and one
backward pass of autograd through all of them (Cazenavette et al. 2022, Algorithm 1). Both sides have the same segment,
batches and augmentations, and their gradients are compared. Peak memory is that beyond what
a process of each side's own held before.
"""

from dataclasses import dataclass
from functools import partial

import torch
from ddbench_trajectories import segments
from ddbench_trajectories.mtt import matching_gradient
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.stock import info_of
from benchmarks.turns import Case, Sides
from ddbench import State
from ddbench.augment import DSA
from ddbench.builtin import networks
from ddbench.unroll import Memory, Transform, fastest_fitting

PER_CLASS = 10
RATE = 0.001
"""The published initial rate for 10 images per class."""


@dataclass
class Iteration:
    """One outer iteration on random images: a segment, its batches and augmentations."""

    network: nn.Module
    start: State
    target: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Transform

    @classmethod
    def draw(cls, width: int, steps: int) -> "Iteration":
        """Draw an iteration on images of the size of CIFAR-10's."""
        info = info_of("convnet")
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        network = networks.convnet(info, width=width)
        start = State({name: parameter.detach() for name, parameter in network.named_parameters()})
        target = {name: w + 0.01 * torch.randn_like(w) for name, w in start.params.items()}
        labels = torch.arange(10).repeat_interleave(PER_CLASS)
        indices = segments.draw_batches(len(labels), None, steps, generator)
        views = segments.draw_views(DSA, indices, generator)
        assert views is not None
        return cls(network, start, target, torch.randn(len(labels), 3, 32, 32), labels, indices, views)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Return the gradients by images and rate, by autograd through the published loop."""
        names, shapes = list(self.start.params), [w.shape for w in self.start.params.values()]
        start, target = (torch.cat([ws[name].flatten() for name in names]) for ws in (self.start.params, self.target))
        images, rate = self.images.clone().requires_grad_(), torch.tensor(RATE, requires_grad=True)
        student = start.clone().requires_grad_()
        for step, batch in enumerate(self.indices):
            parts = torch.split(student, [shape.numel() for shape in shapes])
            weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            outputs = functional_call(self.network, weights, (self.views(images[batch], step),))
            [gradient] = torch.autograd.grad(F.cross_entropy(outputs, self.labels[batch]), student, create_graph=True)
            student = student - rate * gradient
        loss = F.mse_loss(student, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
        grad_images, grad_rate = torch.autograd.grad(loss, [images, rate])
        return grad_images, grad_rate

    def method(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the same gradients as the method mtt computes them."""
        rate = torch.tensor(RATE)
        result = matching_gradient(
            self.network,
            self.start,
            self.target,
            self.images,
            self.labels,
            rate,
            self.indices,
            self.views,
            memory=memory,
        )
        return result.inputs, result.lrs


def sides(width: int, steps: int, memory: str) -> Sides:
    """Return both sides on the same random segment; `auto` takes the way of going back that the method chooses."""
    iteration = Iteration.draw(width, steps)
    shape, among = (1, *iteration.images.shape), segments.WAYS_BACK[memory]
    way, _ = fastest_fitting(iteration.network, 1, shape, steps, 0, torch.device("cpu"), among=among)
    return {"baseline": lambda: iteration.plain()[0], "ddbench": lambda: iteration.method(way)[0]}


CASES = {
    "mtt": Case(
        f"an iteration of MTT, 4 steps of a student of width 128 on {10 * PER_CLASS} images", "the published loop",
        partial(sides, 128, 4, "auto"), goal=2,
    ),
    "mtt-memory": Case(
        f"an iteration of MTT, 50 steps of a student of width 16 on {10 * PER_CLASS} images, each step taken twice",
        "the published loop", partial(sides, 16, 50, "recompute"),
    ),
}  # fmt: skip

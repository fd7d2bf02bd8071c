"""Seconds and peak memory of an outer iteration of MTT: the method against the published loop, by turns.

The published loop is written out: a flat vector of weights, a student's steps with `create_graph=True`, and one
backward pass of autograd through all of them (Cazenavette et al. 2022, Algorithm 1). Both sides have the same segment,
batches and augmentations, and their gradients are compared. Peak memory is that beyond what
a process of each side's own held before.

    python benchmarks/trajectories.py
    python benchmarks/trajectories.py --width 16 --steps 5 --rounds 3
    python benchmarks/trajectories.py --memory recompute
"""

import argparse
from dataclasses import dataclass

import torch
from ddbench_trajectories import segments
from ddbench_trajectories.mtt import matching_gradient
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from turns import Sides, compare

from ddbench import DatasetInfo, State
from ddbench.augment import DSA
from ddbench.builtin import networks
from ddbench.unroll import MEMORIES, Memory, Transform, choose_engine, fastest_fitting

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
    def draw(cls, args: argparse.Namespace) -> "Iteration":
        """Draw an iteration on images of the size of CIFAR-10's."""
        info = DatasetInfo("benchmark", tuple("0123456789"), (3, 32, 32), (0.0,) * 3, (1.0,) * 3, "image", "", False)
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        network = networks.convnet(info, width=args.width)
        start = State({name: parameter.detach() for name, parameter in network.named_parameters()})
        target = {name: w + 0.01 * torch.randn_like(w) for name, w in start.params.items()}
        labels = torch.arange(10).repeat_interleave(args.ipc)
        indices = segments.draw_batches(len(labels), None, args.steps, generator)
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


def way_back(args: argparse.Namespace, iteration: Iteration) -> Memory:
    """Return the way of going back that is asked for, or that the method chooses."""
    shape = (1, *iteration.images.shape)
    among = segments.WAYS_BACK[args.memory]
    return fastest_fitting(iteration.network, 1, shape, args.steps, 0, torch.device("cpu"), among=among)[0]


def sides(args: argparse.Namespace) -> Sides:
    """Return both sides on the same random segment."""
    iteration = Iteration.draw(args)
    memory = way_back(args, iteration)
    return {"plain": lambda: iteration.plain()[0], "method": lambda: iteration.method(memory)[0]}


def main() -> None:
    """Print seconds and peak memory of both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50, help="steps of a student")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=["auto", *(memory.name for memory in MEMORIES)], default="auto")
    args = parser.parse_args()
    iteration = Iteration.draw(args)
    print(f"mtt, convnet of width {args.width}, {len(iteration.labels)} images, {args.steps} steps")
    engine = choose_engine(iteration.network, iteration.images[None], 1)
    print(f"engine {engine}, memory={way_back(args, iteration).name}", flush=True)
    compare(sides, args, args.rounds)


if __name__ == "__main__":
    main()

"""Inner steps, w - lr grad loss, to go back through: by autograd, or several networks at a time as a chain."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.contract.task import Loss
from ddbench.engine.cpu import Chain
from ddbench.engine.cpu.operators import FastOperators

Params = Mapping[str, Tensor]


@contextmanager
def inner_mode(network: nn.Module) -> Iterator[None]:
    """Normalisation by the statistics of the batch, all else (dropout, stochastic depth) as in evaluation.

    So a step is a function of weights and batch alone, and can be gone through again.
    """
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = isinstance(module, nn.modules.batchnorm._NormBase)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@runtime_checkable
class Step(Protocol):
    """One inner step of one or several networks: its gradient, and the way back through it."""

    @property
    def gradient(self) -> Sequence[Tensor]:
        """d loss / dw."""
        ...

    def pull(self, v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        """d<gradient, v> with respect to weights, inputs and, where they are soft, labels."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """Inner steps of one or several networks at a time; `weights` is a list of tensors of its own making."""

    start: list[Tensor]
    buffers: dict[str, Tensor]
    labels: Tensor

    def step(self, batch: int, weights: list[Tensor], buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        """The step on one batch; without a graph it is asked for its gradient alone."""
        ...

    def apart(self, weights: list[Tensor]) -> list[dict[str, Tensor]]:
        """Each network's own weights by name."""
        ...

    def together(self, gradients: list[dict[str, Tensor]]) -> list[Tensor]:
        """The reverse of `apart`."""
        ...

    def of_inputs(self, gradients: Sequence[Tensor]) -> Tensor:
        """Gradient of all inputs from what `pull` gave for each batch, summed over networks."""
        ...


def chain_of(network: nn.Module, inputs: Tensor, inner_loss: Loss) -> Chain | None:
    """The network as a chain, where it is one and is trained by cross-entropy."""
    return Chain.of(network, inputs) if inner_loss is F.cross_entropy else None


def trainer(
    network: nn.Module, starts: Sequence[Params], inputs: Tensor, labels: Tensor, inner_loss: Loss = F.cross_entropy
) -> Trainer:
    """Whoever can take the inner steps of these networks; of several at a time only where they are a chain."""
    chain = chain_of(network, inputs, inner_loss)
    if chain is not None:
        return _Chained(chain, starts, inputs, labels)
    [start] = starts
    return _Alone(network, start, inputs, labels, inner_loss)


class _Chained:
    """Networks that are chains of simple layers, several at a time."""

    def __init__(self, chain: Chain, starts: Sequence[Params], inputs: Tensor, labels: Tensor) -> None:
        self.chain, self.labels = chain, labels.detach()
        self.shapes = {name: starts[0][name].shape for name in chain.names}
        self.start = self.together([dict(start) for start in starts])
        self.buffers: dict[str, Tensor] = {}
        self.first, self.of_inputs = chain.first_inputs(inputs.detach())

    def step(self, batch: int, weights: list[Tensor], buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        return self.chain.step(weights[0], self.first[batch], self.labels[batch])

    def apart(self, weights: list[Tensor]) -> list[dict[str, Tensor]]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        named = list(zip(self.shapes.items(), torch.split(weights[0], sizes, 1), strict=True))
        return [{name: part[net].view(shape) for (name, shape), part in named} for net in range(len(weights[0]))]

    def together(self, gradients: list[dict[str, Tensor]]) -> list[Tensor]:
        return [torch.stack([torch.cat([own[name].detach().flatten() for name in self.shapes]) for own in gradients])]


class _Alone:
    """Any one network, by autograd."""

    def __init__(self, network: nn.Module, start: Params, inputs: Tensor, labels: Tensor, inner_loss: Loss) -> None:
        self.network, self.names, self.inner_loss = network, list(start), inner_loss
        self.inputs, self.labels = inputs.detach(), labels.detach()
        self.start = [tensor.detach() for tensor in start.values()]
        self.buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}

    def step(self, batch: int, weights: list[Tensor], buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        leaves = [w.detach().requires_grad_() for w in weights]
        inputs = self.inputs[batch].detach().requires_grad_(with_graph)
        labels = self.labels[batch].detach()
        if labels.is_floating_point():
            labels.requires_grad_(with_graph)
        with torch.enable_grad(), inner_mode(self.network), FastOperators():
            named = dict(zip(self.names, leaves, strict=True))
            logits = functional_call(self.network, (named, buffers), (inputs,))
            loss = self.inner_loss(logits, labels)
            gradient = torch.autograd.grad(
                loss, leaves, create_graph=with_graph, allow_unused=True, materialize_grads=True
            )
        return _AutogradStep(leaves, inputs, labels, gradient)

    def apart(self, weights: list[Tensor]) -> list[dict[str, Tensor]]:
        return [dict(zip(self.names, weights, strict=True))]

    def together(self, gradients: list[dict[str, Tensor]]) -> list[Tensor]:
        return [gradients[0][name] for name in self.names]

    def of_inputs(self, gradients: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(gradients))


@dataclass(frozen=True)
class _AutogradStep:
    """`gradient` is a differentiable function of weights, inputs and labels."""

    weights: list[Tensor]
    inputs: Tensor
    labels: Tensor
    gradient: Sequence[Tensor]

    def pull(self, v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        soft = [self.labels] if self.labels.is_floating_point() else []
        wanted = [*self.weights, self.inputs, *soft]
        back = torch.autograd.grad(self.gradient, wanted, list(v), allow_unused=True, materialize_grads=True)
        count = len(self.weights)
        return back[:count], back[count], back[-1] if soft else None

"""Inner steps of networks and the reverse pass through each of them: by autograd, or as a hand-derived chain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.state import Params, State
from ddbench.contract.task import CrossEntropy, Loss, cross_entropy
from ddbench.engine.cpu import Chain
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.networks import inner_mode

Weights = list[Tensor]
"""The weights of all networks of a call, in the layout of the trainer: by parameter, or flat `[nets, parameters]`."""

STACK = 4
"""Maximum number of networks per batched call of a chain; more overflow a core's cache."""


@runtime_checkable
class Step(Protocol):
    """One inner step of the networks of a call: the gradient of the inner loss, and the derivative of that gradient."""

    @property
    def gradient(self) -> Sequence[Tensor]:
        """The gradient g = d loss / dw, in the layout of the weights."""
        ...

    def vjp(self, v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        """Return the gradients of <g, v> with respect to weights, inputs and, for soft labels, labels."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """A maker of inner steps for the networks of a call."""

    start: Weights
    buffers: dict[str, Tensor]
    labels: Tensor

    def step(self, batch: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        """Take the step on one batch; without a graph only its gradient may be read."""
        ...

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        """Return the weights of each network by name."""
        ...

    def stack(self, networks: Sequence[Params]) -> Weights:
        """Return the weights (or gradients) of all networks in the trainer's layout: the inverse of `unstack`."""
        ...

    def stack_inputs(self, grad_inputs: Sequence[Tensor]) -> Float[Tensor, "steps n *sample"]:
        """Return the gradient of all inputs from those of each batch that `vjp` gave, summed over networks."""
        ...


class Engine(Protocol):
    """A way to carry out inner steps; `str()` of it is a phrase for people."""

    @property
    def name(self) -> str:
        """A word such as `autograd`."""
        ...

    @property
    def stack(self) -> int:
        """Networks per call."""
        ...

    def trainer(
        self, network: nn.Module, starts: Sequence[State], inputs: Tensor, labels: Tensor, inner_loss: Loss
    ) -> Trainer:
        """Return a trainer of up to `stack` networks from their initial weights."""
        ...


def choose_engine(
    network: nn.Module,
    inputs: Shaped[Tensor, "steps n *sample"],
    networks: int,
    inner_loss: Loss = cross_entropy,
) -> Engine:
    """Return the engine that `meta_gradient` takes for so many networks; `inputs` may be on the meta device.

    This is the one place that decides between one network at a time and stacks.
    A stack is as large as leaves no worker idle.
    """
    chain = Chain.from_network(network, inputs) if isinstance(inner_loss, CrossEntropy) else None
    if chain is None:
        return Autograd()
    return HandDerivedChain(chain, max(1, min(STACK, math.ceil(networks / torch.get_num_threads()))))


@dataclass(frozen=True)
class Autograd:
    """Any network and inner loss, one network per call, differentiated twice by `torch.autograd`."""

    name: ClassVar[str] = "autograd"
    stack: ClassVar[int] = 1

    def __str__(self) -> str:
        return "autograd, 1 network per call"

    def trainer(
        self,
        network: nn.Module,
        starts: Sequence[State],
        inputs: Float[Tensor, "steps n *sample"],
        labels: Shaped[Tensor, "steps n *classes"],
        inner_loss: Loss,
    ) -> Trainer:
        """See `Engine.trainer`."""
        [start] = starts
        return _AutogradTrainer(network, start, inputs, labels, inner_loss)


@dataclass(frozen=True)
class HandDerivedChain:
    """Networks that are chains of simple layers under cross-entropy, `stack` of them per call (`engine.cpu`)."""

    chain: Chain
    stack: int
    name: ClassVar[str] = "chain"

    def __str__(self) -> str:
        return f"hand-derived chain, {self.stack} network{'s' if self.stack > 1 else ''} per call"

    def trainer(
        self,
        network: nn.Module,
        starts: Sequence[State],
        inputs: Float[Tensor, "steps n *sample"],
        labels: Shaped[Tensor, "steps n *classes"],
        inner_loss: Loss,
    ) -> Trainer:
        """See `Engine.trainer`."""
        return _ChainTrainer(self.chain, starts, inputs, labels)


class _AutogradTrainer:
    """Inner steps of one network by autograd; weights are a list of its parameters."""

    def __init__(
        self,
        network: nn.Module,
        start: State,
        inputs: Float[Tensor, "steps n *sample"],
        labels: Shaped[Tensor, "steps n *classes"],
        inner_loss: Loss,
    ) -> None:
        self.network, self.names, self.inner_loss = network, list(start.params), inner_loss
        self.inputs, self.labels = inputs.detach(), labels.detach()
        self.start = [tensor.detach() for tensor in start.params.values()]
        self.buffers = {name: buffer.detach().clone() for name, buffer in start.buffers.items()}

    def step(self, batch: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        leaves = [w.detach().requires_grad_() for w in weights]
        inputs = self.inputs[batch].detach().requires_grad_(with_graph)
        labels = self.labels[batch].detach()
        if labels.is_floating_point():
            labels.requires_grad_(with_graph)
        with torch.enable_grad(), inner_mode(self.network), fast_operators():
            params = dict(zip(self.names, leaves, strict=True))
            loss = self.inner_loss(functional_call(self.network, (params, buffers), (inputs,)), labels)
            gradient = torch.autograd.grad(
                loss, leaves, create_graph=with_graph, allow_unused=True, materialize_grads=True
            )
        return _AutogradStep(leaves, inputs, labels, gradient)

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        return [dict(zip(self.names, weights, strict=True))]

    def stack(self, networks: Sequence[Params]) -> Weights:
        return [networks[0][name] for name in self.names]

    def stack_inputs(self, grad_inputs: Sequence[Tensor]) -> Float[Tensor, "steps n *sample"]:
        return torch.stack(list(grad_inputs))


@dataclass(frozen=True)
class _AutogradStep:
    """A step whose `gradient` is a differentiable function of weights, inputs and labels."""

    weights: Weights
    inputs: Tensor
    labels: Tensor
    gradient: Sequence[Tensor]

    def vjp(self, v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        soft = [self.labels] if self.labels.is_floating_point() else []
        variables = [*self.weights, self.inputs, *soft]
        grads = torch.autograd.grad(self.gradient, variables, list(v), allow_unused=True, materialize_grads=True)
        count = len(self.weights)
        return grads[:count], grads[count], grads[-1] if soft else None


class _ChainTrainer:
    """Inner steps of several networks as a chain; weights are one flat tensor `[nets, parameters]`."""

    def __init__(
        self,
        chain: Chain,
        starts: Sequence[State],
        inputs: Float[Tensor, "steps n *sample"],
        labels: Shaped[Tensor, "steps n *classes"],
    ) -> None:
        self.chain, self.labels = chain, labels.detach()
        self.shapes = {name: starts[0].params[name].shape for name in chain.names}
        self.start = self.stack([start.params for start in starts])
        self.buffers: dict[str, Tensor] = {}
        self.batches, self.stack_inputs = chain.first_inputs(inputs.detach())

    def step(self, batch: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        return self.chain.step(weights[0], self.batches[batch], self.labels[batch])

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = list(zip(self.shapes.items(), torch.split(weights[0], sizes, 1), strict=True))
        return [{name: part[net].view(shape) for (name, shape), part in parts} for net in range(len(weights[0]))]

    def stack(self, networks: Sequence[Params]) -> Weights:
        flat = [torch.cat([params[name].detach().flatten() for name in self.shapes]) for params in networks]
        return [torch.stack(flat)]

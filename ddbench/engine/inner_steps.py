"""Inner steps of networks and the reverse pass through each of them: by autograd, or as a hand-derived chain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.state import Params, State
from ddbench.contract.task import CrossEntropy, Loss, cross_entropy
from ddbench.engine.batches import Batches, Totals
from ddbench.engine.cpu import Chain, ChainStep
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.networks import cut, inner_mode
from ddbench.engine.stacks import stack_size, stack_states, stacked_gradient, stacking
from ddbench.machine import processes

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

    def step(self, t: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        """Take step `t`; without a graph only its gradient may be read."""
        ...

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        """Return the weights of each network by name."""
        ...

    def unstack_buffers(self, buffers: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the buffers of each network by name."""
        ...

    def stack(self, networks: Sequence[Params]) -> Weights:
        """Return the weights (or gradients) of all networks in the trainer's layout: the inverse of `unstack`."""
        ...

    def totals(self) -> Totals:
        """Return zeros to add the gradients to that `vjp` gives by inputs and labels."""
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

    def trainer(self, network: nn.Module, starts: Sequence[State], batches: Batches, inner_loss: Loss) -> Trainer:
        """Return a trainer of up to `stack` networks from their initial states."""
        ...


def choose_engine(
    network: nn.Module,
    inputs: Shaped[Tensor, "steps n *sample"],
    networks: int,
    inner_loss: Loss = cross_entropy,
) -> Engine:
    """Return the engine that `meta_gradient` takes for so many networks; `inputs` may be on the meta device.

    This is the one place that decides between one network at a time and stacks. On the CPU a stack is one of a
    hand-derived chain, as large as leaves no worker idle. Where networks are stacked (`engine.stacks`), all of them
    share a call.
    """
    device = next(network.parameters(), torch.empty(0)).device
    if stacking(device):
        return StackedAutograd(size) if (size := stack_size(network, inputs.shape[1:], networks)) > 1 else Autograd()
    on_cpu = device.type in ("cpu", "meta")
    chain = Chain.from_network(network, inputs) if on_cpu and isinstance(inner_loss, CrossEntropy) else None
    if chain is None:
        return Autograd()
    # A stack rounds otherwise than single networks, and a run must not depend on the number of its processes.
    together = 1 if processes.started() else math.ceil(networks / torch.get_num_threads())
    return HandDerivedChain(chain, max(1, min(STACK, together)))


@dataclass(frozen=True)
class Autograd:
    """Any network and inner loss, one network per call, differentiated twice by `torch.autograd`."""

    name: ClassVar[str] = "autograd"
    stack: ClassVar[int] = 1

    def __str__(self) -> str:
        return "autograd, 1 network per call"

    def trainer(self, network: nn.Module, starts: Sequence[State], batches: Batches, inner_loss: Loss) -> Trainer:
        """See `Engine.trainer`."""
        [start] = starts
        return _AutogradTrainer(network, start, batches, inner_loss)


@dataclass(frozen=True)
class StackedAutograd:
    """Any network that `vmap` takes and any inner loss, `stack` networks per call, differentiated twice by autograd."""

    stack: int
    name: ClassVar[str] = "stacked autograd"

    def __str__(self) -> str:
        return f"stacked autograd, {self.stack} networks per call"

    def trainer(self, network: nn.Module, starts: Sequence[State], batches: Batches, inner_loss: Loss) -> Trainer:
        """See `Engine.trainer`."""
        return _StackedTrainer(network, starts, batches, inner_loss)


@dataclass(frozen=True)
class HandDerivedChain:
    """Networks that are chains of simple layers under cross-entropy, `stack` of them per call (`engine.cpu`)."""

    chain: Chain
    stack: int
    name: ClassVar[str] = "chain"

    def __str__(self) -> str:
        return f"hand-derived chain, {self.stack} network{'s' if self.stack > 1 else ''} per call"

    def trainer(self, network: nn.Module, starts: Sequence[State], batches: Batches, inner_loss: Loss) -> Trainer:
        """See `Engine.trainer`."""
        return _ChainTrainer(self.chain, network, starts, batches)


class _AutogradTrainer:
    """Inner steps of one network by autograd; weights are a list of its parameters."""

    def __init__(self, network: nn.Module, start: State, batches: Batches, inner_loss: Loss) -> None:
        self.network, self.names, self.batches, self.inner_loss = network, list(start.params), batches, inner_loss
        self.start = [tensor.detach() for tensor in start.params.values()]
        self.buffers = {name: buffer.detach().clone() for name, buffer in start.buffers.items()}

    def step(self, t: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        leaves = [w.detach().requires_grad_() for w in weights]
        inputs, labels = self.batches.examples(t)
        inputs.requires_grad_(with_graph)
        if labels.is_floating_point():
            labels.requires_grad_(with_graph)
        with torch.enable_grad(), inner_mode(self.network), fast_operators():
            params = dict(zip(self.names, leaves, strict=True))
            outputs = functional_call(self.network, (params, buffers), (self.batches.transformed(inputs, t),))
            loss = self.inner_loss(outputs, labels)
            gradient = torch.autograd.grad(
                loss, leaves, create_graph=with_graph, allow_unused=True, materialize_grads=True
            )
        return _AutogradStep(leaves, inputs, labels, gradient)

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        return [dict(zip(self.names, weights, strict=True))]

    def unstack_buffers(self, buffers: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [buffers]

    def stack(self, networks: Sequence[Params]) -> Weights:
        return [networks[0][name] for name in self.names]

    def totals(self) -> Totals:
        return Totals(self.batches)


class _StackedTrainer:
    """Inner steps of several networks on the same batches by autograd; weights are a list of `[nets, *shape]`."""

    def __init__(self, network: nn.Module, starts: Sequence[State], batches: Batches, inner_loss: Loss) -> None:
        stack = stack_states(network, starts)
        self.network, self.names, self.batches, self.inner_loss = network, list(stack.params), batches, inner_loss
        self.nets, self.start, self.buffers = len(starts), list(stack.params.values()), stack.buffers

    def step(self, t: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        leaves = [w.detach().requires_grad_() for w in weights]
        inputs, labels = self.batches.examples(t)
        inputs.requires_grad_(with_graph)
        if labels.is_floating_point():
            labels.requires_grad_(with_graph)
        params = dict(zip(self.names, leaves, strict=True))
        with torch.enable_grad():
            view = self.batches.transformed(inputs, t)
        _, gradient = stacked_gradient(
            self.network, params, buffers, view, labels, self.inner_loss, shared=True, create_graph=with_graph
        )
        return _AutogradStep(leaves, inputs, labels, gradient)

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        return [{name: w[net] for name, w in zip(self.names, weights, strict=True)} for net in range(self.nets)]

    def unstack_buffers(self, buffers: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{name: buffer[net] for name, buffer in buffers.items()} for net in range(self.nets)]

    def stack(self, networks: Sequence[Params]) -> Weights:
        return [torch.stack([params[name] for params in networks]) for name in self.names]

    def totals(self) -> Totals:
        return Totals(self.batches)


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
    """Inner steps of several networks as a chain; weights are one flat tensor `[nets, parameters]`.

    A batch whose activations leave the cache is trained on in parts: gradients are means over examples, so those of
    the parts add up. Other fixed batches go through the stem once; their gradients are summed behind it.
    """

    def __init__(self, chain: Chain, network: nn.Module, starts: Sequence[State], batches: Batches) -> None:
        self.chain, self.network, self.batches = chain, network, batches
        self.shapes = {name: starts[0].params[name].shape for name in chain.names}
        self.start = self.stack([start.params for start in starts])
        self.buffers: dict[str, Tensor] = {}
        self.fixed = batches.fixed and len(cut(network, batches.inputs[0])) == 1
        if self.fixed:
            self.first, self.pull = chain.first_inputs(batches.inputs)

    def step(self, t: int, weights: Weights, buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        inputs, labels = self.batches.examples(t)
        if self.fixed:
            return self.chain.step(weights[0], self.first[t % len(self.first)], labels)
        with torch.enable_grad():
            view = self.batches.transformed(inputs.requires_grad_(with_graph), t)
        parts = cut(self.network, view.detach())
        steps, pulls = [], []
        for part, part_labels in zip(parts, torch.split(labels, len(parts[0])), strict=True):
            [first], pull = self.chain.first_inputs(part[None])
            steps.append(self.chain.step(weights[0], first, part_labels))
            pulls.append(pull)
        return _ChainStepInParts(steps, pulls, inputs, view)

    def unstack(self, weights: Weights) -> list[dict[str, Tensor]]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = list(zip(self.shapes.items(), torch.split(weights[0], sizes, 1), strict=True))
        return [{name: part[net].view(shape) for (name, shape), part in parts} for net in range(len(weights[0]))]

    def unstack_buffers(self, buffers: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [buffers] * len(self.start[0])

    def stack(self, networks: Sequence[Params]) -> Weights:
        flat = [torch.cat([params[name].detach().flatten() for name in self.shapes]) for params in networks]
        return [torch.stack(flat)]

    def totals(self) -> Totals:
        return _TotalsBehindStem(self.batches, self.first, self.pull) if self.fixed else Totals(self.batches)


class _ChainStepInParts:
    """A step on a `view` of the stored `inputs`, made for this step, as the steps on parts of it.

    With shares s_i of the examples, g = sum s_i g_i, and likewise for every derivative of <g, v>. `pulls` take
    gradients of the parts back through the stem.
    """

    def __init__(
        self,
        steps: Sequence[ChainStep],
        pulls: Sequence[Callable[[Sequence[Tensor]], Tensor]],
        inputs: Tensor,
        view: Tensor,
    ) -> None:
        self.steps, self.pulls, self.inputs, self.view = steps, pulls, inputs, view
        self.shares = [len(step.targets) / len(inputs) for step in steps]
        self.gradient: Sequence[Tensor] = [_weighted_sum([step.gradient[0] for step in steps], self.shares)]

    def vjp(self, v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
        grads_w, grads_view, grads_y = [], [], []
        for step, pull, share in zip(self.steps, self.pulls, self.shares, strict=True):
            [grad_w], grad_first, grad_y = step.vjp(v)
            grads_w.append(grad_w)
            grads_view.append(pull([grad_first])[0] * share)
            grads_y.append(grad_y * share)
        grad_view = torch.cat(grads_view)
        [grad_x] = torch.autograd.grad(self.view, self.inputs, grad_view, allow_unused=True, materialize_grads=True)
        return [_weighted_sum(grads_w, self.shares)], grad_x, torch.cat(grads_y)


def _weighted_sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    first, *others = tensors
    total = first * factors[0] if others else first
    for tensor, factor in zip(others, factors[1:], strict=True):
        total.add_(tensor, alpha=factor)
    return total


class _TotalsBehindStem(Totals):
    """Totals whose gradients by inputs are summed behind the stem, batch by batch, and taken back through it once."""

    def __init__(self, batches: Batches, first: Sequence[Tensor], pull: Callable[[Sequence[Tensor]], Tensor]) -> None:
        super().__init__(batches)
        self.sums, self.pull = [torch.zeros_like(x) for x in first], pull

    def add(self, t: int, grad_x: Float[Tensor, " 1 *stem"], grad_y: Float[Tensor, " n classes"] | None) -> None:
        self.sums[t % len(self.sums)].add_(grad_x)
        self.add_labels(t, grad_y)

    def inputs(self) -> Float[Tensor, " *inputs"]:
        return self.pull(self.sums)

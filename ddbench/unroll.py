"""Differentiable training: the exact gradient of a loss after training, with respect to what was trained on.

Notation (Wang et al. 2018, arXiv 1811.10959, Section 3). Weights `w_0` are trained on `steps` batches, cycled
`epochs` times, by plain gradient descent with one rate per step:

    w_{t+1} = w_t - lr_t * g_t,     g_t = grad_w CE(network(x_t; w_t), y_t),     t = 0 .. T-1,  T = epochs * steps

The outer loss L is evaluated at `w_T`. Going back from `a_T = dL/dw_T`, each step costs one Hessian-vector product:

    dL/dlr_t = -<a_{t+1}, g_t>
    dL/dx_t  = d/dx <g_t, -lr_t a_{t+1}>       (labels likewise, when they are soft)
    a_t      = a_{t+1} + d/dw <g_t, -lr_t a_{t+1}>
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.operators import FastOperators
from ddbench.parallel import for_each_network

Params = Mapping[str, Tensor]
OuterLoss = Callable[[Tensor, Tensor], Tensor]
Memory = Literal["store", "recompute", "checkpoint"]

OUTER_CHUNK = 128
"""Real examples that go through a network at a time: what they leave behind stays in the processor's cache."""


@dataclass(frozen=True)
class MetaGradient:
    """Gradients of the mean outer loss over the networks, each in the shape of its argument.

    `loss`: `[nets]`, the outer loss of each network after its last step. `labels` is None for hard labels.
    """

    loss: Float[Tensor, " nets"]
    inputs: Float[Tensor, "steps n *sample"]
    labels: Float[Tensor, "steps n classes"] | None
    lrs: Float[Tensor, "epochs steps"]


def meta_gradient(
    network: nn.Module,
    params: Params,
    inputs: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    lrs: Float[Tensor, "epochs steps"],
    outer_loss: OuterLoss,
    real_inputs: Float[Tensor, " batch *sample"],
    real_labels: Shaped[Tensor, " batch"],
    *,
    memory: Memory = "recompute",
    window: int | None = None,
) -> MetaGradient:
    """Exact gradient of the outer loss after training on `inputs`, averaged over the networks.

    `params` holds the initial weights, `{name: [nets, *shape]}` (as `torch.func.stack_module_state` gives) or
    `{name: shape}` for one network. The inner steps normalise by batch statistics and leave dropout and its like off
    (`inner_mode`); the outer loss is `outer_loss(logits, real_labels)` in evaluation mode. Running statistics, where a
    network has them, follow the inner steps and are constants to the gradient.

    `memory` trades memory for time at equal results: `"store"` keeps every step's graph, `"recompute"` keeps the
    weights of each step and rebuilds one graph at a time, `"checkpoint"` keeps every k-th weights (k about
    sqrt(T)) and trains again in between. `window=k` stops the reverse pass after the last k steps: truncated
    back-propagation, no longer exact.

    On the CPU several networks go through at a time (`ddbench.parallel`), so `outer_loss` may be called from several
    threads at once. Raises `ValueError` for shapes that do not belong together.
    """
    _check(inputs, labels, lrs, memory, window)
    first = 0 if window is None else max(0, lrs.numel() - window)

    def one(own: nn.Module, start: Params) -> tuple[Tensor, list[Tensor]]:
        trajectory = _Trajectory(own, start, inputs, labels, lrs, memory, first)
        loss, adjoint = _outer(own, trajectory, outer_loss, real_inputs, real_labels)
        return loss, _reverse(trajectory, adjoint)

    losses, gradients = zip(*for_each_network(one, network, list(unstack(network, params))), strict=True)
    # Summed in the order of the networks, so that the number of workers does not show in the last digits.
    of_lrs, of_inputs, *of_labels = (torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True))
    return MetaGradient(torch.stack(losses), of_inputs, of_labels[0] if of_labels else None, of_lrs.view(lrs.shape))


def train(
    network: nn.Module,
    params: Params,
    inputs: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    lrs: Float[Tensor, "epochs steps"],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and buffers of one network after the inner steps, without a graph. `params`: `{name: shape}`."""
    trajectory = _Trajectory(network, params, inputs, labels, lrs, "checkpoint", lrs.numel())
    return dict(zip(params, trajectory.final, strict=True)), trajectory.buffers


def unstack(network: nn.Module, params: Params) -> Iterator[dict[str, Tensor]]:
    """Each network's own weights from `params` stacked along a first dimension (or of one network as it is)."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    if params.keys() != shapes.keys():
        raise ValueError(f"params name {sorted(params)}; the network has {sorted(shapes)}")
    if all(params[name].shape == shape for name, shape in shapes.items()):
        yield dict(params)
        return
    counts = {tensor.shape[0] for tensor in params.values()}
    if len(counts) != 1 or any(params[name].shape[1:] != shape for name, shape in shapes.items()):
        raise ValueError("params must have the network's shapes, or those with the same leading [nets] dimension")
    for index in range(counts.pop()):
        yield {name: tensor[index] for name, tensor in params.items()}


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


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a `with` block."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class _Step:
    """One inner step with its graph: `gradient` is a differentiable function of weights, inputs and labels."""

    weights: list[Tensor]
    inputs: Tensor
    labels: Tensor
    lr: Tensor
    gradient: Sequence[Tensor]

    def next_weights(self) -> list[Tensor]:
        return [w.detach() - self.lr * g.detach() for w, g in zip(self.weights, self.gradient, strict=True)]


class _Trajectory:
    """The weights `w_0 .. w_T` of one network, kept as `memory` says, and any step of it with its graph.

    Steps from `first` on can be asked for again; the earlier ones are only gone through.
    """

    def __init__(
        self,
        network: nn.Module,
        params: Params,
        inputs: Tensor,
        labels: Tensor,
        lrs: Tensor,
        memory: Memory,
        first: int,
    ) -> None:
        self.network = network
        self.names = list(params)
        self.inputs, self.labels, self.lrs = inputs.detach(), labels.detach(), lrs.detach().reshape(-1)
        self.buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
        self.first = first
        total = len(self.lrs)
        self.stride = max(1, math.isqrt(total - first)) if memory == "checkpoint" else 1
        self.kept: dict[int, list[Tensor]] = {}
        self.graphs: dict[int, _Step] = {}

        weights = [tensor.detach() for tensor in params.values()]
        for t in range(total):
            if t >= first and (t - first) % self.stride == 0:
                self.kept[t] = weights
            step = self._build(t, weights, self.buffers, with_graph=memory == "store" and t >= first)
            if memory == "store" and t >= first:
                self.graphs[t] = step
            weights = step.next_weights()
        self.final = weights

    def step(self, t: int) -> _Step:
        """Step `t` with its graph. Ask in falling order of `t`: what lies above is let go."""
        if t in self.graphs:
            return self.graphs.pop(t)
        start = self.first + (t - self.first) // self.stride * self.stride
        scratch = {name: buffer.clone() for name, buffer in self.buffers.items()}
        if t not in self.kept:
            weights = self.kept[start]
            for s in range(start, t):
                weights = self._build(s, weights, scratch, with_graph=False).next_weights()
                self.kept[s + 1] = weights
        return self._build(t, self.kept.pop(t), scratch, with_graph=True)

    def _build(self, t: int, weights: list[Tensor], buffers: dict[str, Tensor], *, with_graph: bool) -> _Step:
        batch = t % len(self.inputs)
        leaves = [w.detach().requires_grad_() for w in weights]
        inputs = self.inputs[batch].detach().requires_grad_(with_graph)
        labels = self.labels[batch].detach()
        if labels.is_floating_point():
            labels.requires_grad_(with_graph)
        with torch.enable_grad(), inner_mode(self.network), FastOperators():
            named = dict(zip(self.names, leaves, strict=True))
            logits = functional_call(self.network, (named, buffers), (inputs,))
            loss = F.cross_entropy(logits, labels)
            gradient = torch.autograd.grad(
                loss, leaves, create_graph=with_graph, allow_unused=True, materialize_grads=True
            )
        return _Step(leaves, inputs, labels, self.lrs[t], gradient)


def _reverse(trajectory: "_Trajectory", adjoint: list[Tensor]) -> list[Tensor]:
    """Back from `a_T` to the first step that counts: gradients of flat rates, inputs and, where soft, labels."""
    soft = trajectory.labels.is_floating_point()
    lrs, inputs = torch.zeros_like(trajectory.lrs), torch.zeros_like(trajectory.inputs)
    labels = torch.zeros_like(trajectory.labels) if soft else None
    for t in reversed(range(trajectory.first, len(lrs))):
        step = trajectory.step(t)
        lrs[t] -= _dot(adjoint, step.gradient)
        scaled = [-step.lr * a for a in adjoint]
        wanted = [*step.weights, step.inputs, *([step.labels] if soft else [])]
        back = torch.autograd.grad(step.gradient, wanted, scaled, allow_unused=True, materialize_grads=True)
        adjoint = [a + b for a, b in zip(adjoint, back, strict=False)]
        inputs[t % len(inputs)] += back[len(adjoint)]
        if labels is not None:
            labels[t % len(inputs)] += back[-1]
    return [lrs, inputs] if labels is None else [lrs, inputs, labels]


def _outer(
    network: nn.Module, trajectory: _Trajectory, outer_loss: OuterLoss, real_inputs: Tensor, real_labels: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The outer loss at the last weights and its gradient with respect to them, `a_T`."""
    leaves = [w.detach().requires_grad_() for w in trajectory.final]
    with torch.enable_grad(), evaluation_mode(network), FastOperators():
        named = dict(zip(trajectory.names, leaves, strict=True))
        chunks = torch.split(real_inputs, OUTER_CHUNK if real_inputs.device.type == "cpu" else len(real_inputs))
        logits = torch.cat([functional_call(network, (named, trajectory.buffers), (chunk,)) for chunk in chunks])
        loss = outer_loss(logits, real_labels)
        gradient = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), list(gradient)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b.detach()).sum() for a, b in zip(left, right, strict=True)]).sum()


def _check(inputs: Tensor, labels: Tensor, lrs: Tensor, memory: str, window: int | None) -> None:
    steps, n = inputs.shape[:2]
    if labels.shape[:2] != (steps, n) or labels.dim() != (3 if labels.is_floating_point() else 2):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit inputs {tuple(inputs.shape)}: "
            "[steps, n] integers or [steps, n, classes] floats are needed"
        )
    if lrs.dim() != 2 or lrs.shape[1] != steps:
        raise ValueError(f"lrs {tuple(lrs.shape)} must be [epochs, {steps}]")
    if memory not in ("store", "recompute", "checkpoint"):
        raise ValueError(f"memory must be store, recompute or checkpoint, not {memory!r}")
    if window is not None and window < 1:
        raise ValueError("window must be at least 1")

"""Differentiable training: the exact gradient of a loss after training, with respect to what was trained on.

Notation (Wang et al. 2018, arXiv 1811.10959, Section 3). Weights `w_0` are trained on `steps` batches, cycled
`epochs` times, by plain gradient descent with one rate per step:

    w_{t+1} = w_t - lr_t * g_t,     g_t = grad_w loss(network(x_t; w_t), y_t),     t = 0 .. T-1,  T = epochs * steps

The outer loss L is evaluated at `w_T`. Going back from `a_T = dL/dw_T`, each step costs one Hessian-vector product:

    dL/dlr_t = -<a_{t+1}, g_t>
    dL/dx_t  = d/dx <g_t, -lr_t a_{t+1}>       (labels likewise, when they are soft)
    a_t      = a_{t+1} + d/dw <g_t, -lr_t a_{t+1}>
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ddbench.contract.task import Loss
from ddbench.engine.cpu.operators import FastOperators
from ddbench.engine.inner_steps import Params, Step, Trainer, chain_of, trainer
from ddbench.engine.workers import for_each_network

Memory = Literal["store", "recompute", "checkpoint"]

TOGETHER = 4
"""Networks of a chain that go through one call at most: more no longer fit into a core's cache."""
OUTER_VALUES = 100_000
"""Values of real examples that go through a network at a time: what they leave behind stays in the cache."""


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
    outer_loss: Loss,
    real_inputs: Float[Tensor, " batch *sample"],
    real_labels: Shaped[Tensor, " batch"],
    *,
    memory: Memory = "recompute",
    window: int | tuple[int, int] | None = None,
    inner_loss: Loss = F.cross_entropy,
) -> MetaGradient:
    """Exact gradient of the outer loss after training on `inputs`, averaged over the networks.

    `params` holds the initial weights, `{name: [nets, *shape]}` (as `torch.func.stack_module_state` gives) or
    `{name: shape}` for one network. The inner steps normalise by batch statistics and leave dropout and its like off
    (`inner_mode`); the outer loss is `outer_loss(logits, real_labels)` in evaluation mode. Running statistics, where a
    network has them, follow the inner steps and are constants to the gradient.

    `memory` trades memory for time at equal results: `"store"` keeps every step's graph, `"recompute"` keeps the
    weights of each step and rebuilds one graph at a time, `"checkpoint"` keeps every k-th weights (k about
    sqrt(T)) and trains again in between. `window=k` stops the reverse pass after the last k steps;
    `window=(first, end)` takes the outer loss after `end` steps, on the way, and goes back to `first` (random windows
    as in Feng et al. 2023, arXiv 2311.07025): truncated back-propagation, no longer exact.

    `inner_loss(logits, labels)` is what the inner steps descend: a mean over the batch.

    On the CPU several networks go through at a time (`ddbench.parallel`), so `outer_loss` may be called from several
    threads at once. Raises `ValueError` for shapes that do not belong together.
    """
    _check(inputs, labels, lrs, memory)
    first, end = _window(window, lrs.numel())

    def one(own: nn.Module, starts: Sequence[Params]) -> tuple[list[Tensor], list[Tensor]]:
        steps = trainer(own, starts, inputs, labels, inner_loss)
        trajectory = _Trajectory(steps, lrs, memory, first, end)
        losses, adjoints = [], []
        for weights in steps.apart(trajectory.final):
            loss, adjoint = _outer(own, weights, trajectory.buffers, outer_loss, real_inputs, real_labels)
            losses.append(loss)
            adjoints.append(adjoint)
        return losses, _reverse(trajectory, steps.together(adjoints))

    starts = list(unstack(network, params))
    together = group_size(network, inputs, len(starts), inner_loss)
    groups = [starts[i : i + together] for i in range(0, len(starts), together)]
    losses, gradients = zip(*for_each_network(one, network, groups), strict=True)
    of_lrs, of_inputs, *of_labels = (torch.stack(parts).sum(0) / len(starts) for parts in zip(*gradients, strict=True))
    loss = torch.stack([loss for group in losses for loss in group])
    return MetaGradient(loss, of_inputs, of_labels[0] if of_labels else None, of_lrs.view(lrs.shape))


def group_size(
    network: nn.Module,
    inputs: Shaped[Tensor, "steps n *sample"],
    networks: int,
    inner_loss: Loss = F.cross_entropy,
) -> int:
    """Networks that one worker trains at a time: as many as leave no worker idle, where they can share calls."""
    if chain_of(network, inputs, inner_loss) is None:
        return 1
    return max(1, min(TOGETHER, math.ceil(networks / torch.get_num_threads())))


def train(
    network: nn.Module,
    params: Params,
    inputs: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    lrs: Float[Tensor, "epochs steps"],
    inner_loss: Loss = F.cross_entropy,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and buffers of one network after the inner steps, without a graph. `params`: `{name: shape}`."""
    steps = trainer(network, [params], inputs, labels, inner_loss)
    trajectory = _Trajectory(steps, lrs, "checkpoint", lrs.numel(), lrs.numel())
    [weights] = steps.apart(trajectory.final)
    return weights, trajectory.buffers


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
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a `with` block."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Trajectory:
    """The weights `w_0 .. w_end`, kept as `memory` says, and any step of it with its graph.

    Steps from `first` on can be asked for again; the earlier ones are only gone through.
    """

    def __init__(self, trainer: Trainer, lrs: Tensor, memory: Memory, first: int, end: int) -> None:
        self.trainer, self.first, self.end = trainer, first, end
        self.rates = lrs.flatten().tolist()
        self.buffers = {name: buffer.clone() for name, buffer in trainer.buffers.items()}
        self.stride = max(1, math.isqrt(end - first)) if memory == "checkpoint" else 1
        self.kept: dict[int, list[Tensor]] = {}
        self.graphs: dict[int, Step] = {}
        places = range(first, end, self.stride) if memory != "store" else range(0)
        # One block: weights kept one by one between what comes and goes would leave holes as large as themselves.
        block = [w.new_empty((len(places), *w.shape)) for w in trainer.start]

        weights = trainer.start
        for t in range(end):
            if t in places:
                self.kept[t] = [part[places.index(t)].copy_(w) for part, w in zip(block, weights, strict=True)]
            step = self._step(t, weights, self.buffers, with_graph=memory == "store" and t >= first)
            if memory == "store" and t >= first:
                self.graphs[t] = step
            weights = self._next(t, weights, step)
        self.final = weights

    def step(self, t: int) -> Step:
        """Step `t` with its graph. Ask in falling order of `t`: what lies above is let go."""
        if t in self.graphs:
            return self.graphs.pop(t)
        start = self.first + (t - self.first) // self.stride * self.stride
        scratch = {name: buffer.clone() for name, buffer in self.buffers.items()}
        if t not in self.kept:
            weights = self.kept[start]
            for s in range(start, t):
                weights = self._next(s, weights, self._step(s, weights, scratch, with_graph=False))
                self.kept[s + 1] = weights
        return self._step(t, self.kept.pop(t), scratch, with_graph=True)

    def _step(self, t: int, weights: list[Tensor], buffers: dict[str, Tensor], *, with_graph: bool) -> Step:
        return self.trainer.step(t % len(self.trainer.labels), weights, buffers, with_graph=with_graph)

    def _next(self, t: int, weights: list[Tensor], step: Step) -> list[Tensor]:
        return [w.detach().add(g.detach(), alpha=-self.rates[t]) for w, g in zip(weights, step.gradient, strict=True)]


def _reverse(trajectory: _Trajectory, adjoint: Sequence[Tensor]) -> list[Tensor]:
    """Back from `a_T` to the first step that counts: gradients of flat rates, inputs and, where soft, labels."""
    batches = trajectory.trainer.labels
    lrs = adjoint[0].new_zeros(len(trajectory.rates))
    inputs: dict[int, Tensor] = {}
    labels: dict[int, Tensor] = {}
    for t in reversed(range(trajectory.first, trajectory.end)):
        step, batch = trajectory.step(t), t % len(batches)
        lrs[t] -= _dot(adjoint, step.gradient)
        back, of_inputs, of_labels = step.pull([-trajectory.rates[t] * a for a in adjoint])
        adjoint = [a + b for a, b in zip(adjoint, back, strict=True)]
        inputs[batch] = inputs[batch].add_(of_inputs) if batch in inputs else of_inputs
        if of_labels is not None:
            labels[batch] = labels[batch].add_(of_labels) if batch in labels else of_labels
    zero = torch.zeros_like(of_inputs)
    found = [lrs, trajectory.trainer.of_inputs([inputs.get(batch, zero) for batch in range(len(batches))])]
    if batches.is_floating_point():
        found.append(torch.stack([labels.get(batch, torch.zeros_like(batches[0])) for batch in range(len(batches))]))
    return found


def _outer(
    network: nn.Module,
    weights: Params,
    buffers: Params,
    outer_loss: Loss,
    real_inputs: Tensor,
    real_labels: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The outer loss of one network at its last weights and its gradient with respect to them, `a_T`."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    on_cpu = real_inputs.device.type == "cpu"
    size = max(8, OUTER_VALUES // real_inputs[0].numel()) if on_cpu else len(real_inputs)
    with torch.enable_grad(), evaluation_mode(network), FastOperators():
        parts = [functional_call(network, (leaves, dict(buffers)), (part,)) for part in torch.split(real_inputs, size)]
        loss = outer_loss(torch.cat(parts), real_labels)
        gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, gradient, strict=True))


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b.detach()).sum() for a, b in zip(left, right, strict=True)]).sum()


def _check(inputs: Tensor, labels: Tensor, lrs: Tensor, memory: str) -> None:
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


def _window(window: int | tuple[int, int] | None, total: int) -> tuple[int, int]:
    """The first step that counts and the one after the last."""
    if window is None:
        return 0, total
    first, end = (max(0, total - window), total) if isinstance(window, int) else window
    if not 0 <= first < end <= total:
        raise ValueError(f"window {window} does not lie within the {total} steps")
    return first, end

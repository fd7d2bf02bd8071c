"""Differentiable training: the exact gradient of a loss after training, with respect to the examples trained on.

Notation (Wang et al. 2018, arXiv 1811.10959, Section 3). Weights `w_0` are trained on `steps` batches, cycled
`epochs` times, by plain gradient descent with one rate per step:

    w_{t+1} = w_t - lr_t * g_t,     g_t = grad_w loss(network(x_t; w_t), y_t),     t = 0 .. T-1,  T = epochs * steps

The outer loss L is evaluated at `w_T`. Going back from `a_T = dL/dw_T`, each step costs one Hessian-vector product:

    dL/dlr_t = -<a_{t+1}, g_t>
    dL/dx_t  = d/dx <g_t, -lr_t a_{t+1}>       (labels likewise, when they are soft)
    a_t      = a_{t+1} + d/dw <g_t, -lr_t a_{t+1}>
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ddbench.contract.state import Params, State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.cpu.operators import fast_operators
from ddbench.engine.inner_steps import Weights, choose_engine
from ddbench.engine.memory import InnerLoop, Memory, Recompute, Tape
from ddbench.engine.networks import evaluation_mode, unstack
from ddbench.engine.workers import for_each_network

OUTER_VALUES = 100_000
"""Values of real examples per forward pass of the outer loss on the CPU: the graph of a pass stays in the cache."""


def _go_forward(loop: InnerLoop, tape: Tape) -> Weights:
    """Return `w_end`, the weights after the inner steps."""
    weights = loop.trainer.start
    for t in range(loop.end):
        step = tape.record(t, weights)
        weights = loop.update(t, weights, step.gradient)
    return weights


def _go_back(loop: InnerLoop, tape: Tape, adjoint: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of rates `[T]`, inputs and, where soft, labels, from `a_end`."""
    labels = loop.trainer.labels
    grad_lrs = adjoint[0].new_zeros(len(loop.rates))
    grad_inputs: list[Tensor | None] = [None] * len(labels)
    grad_labels: list[Tensor | None] = [None] * len(labels)
    for t in reversed(range(loop.first, loop.end)):
        step, batch = tape.replay(t), loop.batch(t)
        grad_lrs[t] -= _dot(adjoint, step.gradient)
        grad_w, grad_x, grad_y = step.vjp([-loop.rates[t] * a for a in adjoint])
        adjoint = [a + g for a, g in zip(adjoint, grad_w, strict=True)]
        grad_inputs[batch] = _add(grad_inputs[batch], grad_x)
        grad_labels[batch] = _add(grad_labels[batch], grad_y)
    # Outside of the window a batch may have no step: its gradient is zero.
    zero = torch.zeros_like(grad_x)
    gradients = [grad_lrs, loop.trainer.stack_inputs([zero if g is None else g for g in grad_inputs])]
    if labels.is_floating_point():
        gradients.append(torch.stack([torch.zeros_like(labels[0]) if g is None else g for g in grad_labels]))
    return gradients


@dataclass(frozen=True)
class MetaGradient:
    """Gradients of the mean outer loss over the networks, each in the shape of its argument.

    `loss` is the outer loss of each network after its last step. `labels` is None for hard labels.
    `engine` names the engine that carried out the inner steps: `autograd` or `chain` (see `choose_engine`).
    """

    loss: Float[Tensor, " nets"]
    inputs: Float[Tensor, "steps n *sample"]
    labels: Float[Tensor, "steps n classes"] | None
    lrs: Float[Tensor, "epochs steps"]
    engine: str


def meta_gradient(
    network: nn.Module,
    start: State | Params,
    inputs: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    lrs: Float[Tensor, "epochs steps"],
    outer_loss: Loss,
    real_inputs: Float[Tensor, " batch *sample"],
    real_labels: Shaped[Tensor, " batch"],
    *,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    window: int | tuple[int, int] | None = None,
    inner_loss: Loss = cross_entropy,
) -> MetaGradient:
    """Return the exact gradient of the outer loss after training on `inputs`, averaged over the networks.

    `start` holds the initial networks: a `State`, or parameters alone, `{name: [nets, *shape]}` (as
    `torch.func.stack_module_state` gives) or `{name: shape}` for one network. The inner steps normalise by batch
    statistics and leave dropout and its like off (`inner_mode`); the outer loss is `outer_loss(logits, real_labels)` in
    evaluation mode. Running statistics, where a network has them, follow the inner steps and are constants to the
    gradient.

    `memory` trades memory for time at equal results: `Store()`, `Recompute()` or `Checkpoint(every)`.
    `window=k` stops the reverse pass after the last k steps; `window=(first, end)` takes the outer loss after `end`
    steps, on the way, and goes back to `first` (random windows as in Feng et al. 2023, arXiv 2311.07025).
    Such truncated back-propagation is no longer exact.

    `inner_loss(logits, labels)` is the loss that the inner steps descend, a mean over the batch.
    Networks that are chains of simple layers have hand-derived steps under `ddbench.networks.cross_entropy`;
    all others go through autograd.

    On the CPU several networks are trained at a time, so `outer_loss` may be called from several threads at once.
    Raises `ValueError` for shapes that do not belong together.
    """
    _check(inputs, labels, lrs, memory)
    first, end = _window(window, lrs.numel())
    rates = lrs.flatten().tolist()
    starts = list(unstack(network, start))
    engine = choose_engine(network, inputs, len(starts), inner_loss)

    def gradients(replica: nn.Module, group: Sequence[State]) -> tuple[list[Tensor], list[Tensor]]:
        trainer = engine.trainer(replica, group, inputs, labels, inner_loss)
        loop = InnerLoop(trainer, rates, first, end)
        tape = memory.tape(loop)
        losses, adjoints = [], []
        for weights in trainer.unstack(_go_forward(loop, tape)):
            state = State(weights, loop.buffers)
            loss, adjoint = _outer_gradient(replica, state, outer_loss, real_inputs, real_labels)
            losses.append(loss)
            adjoints.append(adjoint)
        return losses, _go_back(loop, tape, trainer.stack(adjoints))

    groups = [starts[i : i + engine.stack] for i in range(0, len(starts), engine.stack)]
    losses, parts = zip(*for_each_network(gradients, network, groups), strict=True)
    grad_lrs, grad_inputs, *grad_labels = (torch.stack(part).sum(0) / len(starts) for part in zip(*parts, strict=True))
    loss = torch.stack([loss for group in losses for loss in group])
    return MetaGradient(
        loss, grad_inputs, grad_labels[0] if grad_labels else None, grad_lrs.view(lrs.shape), engine.name
    )


def train(
    network: nn.Module,
    start: State | Params,
    inputs: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    lrs: Float[Tensor, "epochs steps"],
    inner_loss: Loss = cross_entropy,
) -> State:
    """Return the state of one network after the inner steps, without a graph. `start`: `{name: shape}`."""
    [single] = unstack(network, start)
    trainer = choose_engine(network, inputs, 1, inner_loss).trainer(network, [single], inputs, labels, inner_loss)
    loop = InnerLoop(trainer, lrs.flatten().tolist(), lrs.numel(), lrs.numel())
    weights = trainer.start
    for t in range(loop.end):
        step = loop.step(t, weights, loop.buffers, with_graph=False)
        weights = loop.update(t, weights, step.gradient)
    [params] = trainer.unstack(weights)
    return State(params, loop.buffers)


def _outer_gradient(
    network: nn.Module, state: State, outer_loss: Loss, real_inputs: Tensor, real_labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outer loss of one network at its last weights and `a_T`, its gradient with respect to them."""
    leaves = {name: w.detach().requires_grad_() for name, w in state.params.items()}
    on_cpu = real_inputs.device.type == "cpu"
    size = max(8, OUTER_VALUES // real_inputs[0].numel()) if on_cpu else len(real_inputs)
    with torch.enable_grad(), evaluation_mode(network), fast_operators():
        parts = [functional_call(network, (leaves, state.buffers), (x,)) for x in torch.split(real_inputs, size)]
        loss = outer_loss(torch.cat(parts), real_labels)
        gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(leaves, gradient, strict=True))


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b.detach()).sum() for a, b in zip(left, right, strict=True)]).sum()


def _add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Return the sum, in place where there is one already."""
    if total is None or part is None:
        return part
    return total.add_(part)


def _check(inputs: Tensor, labels: Tensor, lrs: Tensor, memory: object) -> None:
    steps, n = inputs.shape[:2]
    if labels.shape[:2] != (steps, n) or labels.dim() != (3 if labels.is_floating_point() else 2):
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit inputs {tuple(inputs.shape)}: "
            "[steps, n] integers or [steps, n, classes] floats are needed"
        )
    if lrs.dim() != 2 or lrs.shape[1] != steps:
        raise ValueError(f"lrs {tuple(lrs.shape)} must be [epochs, {steps}]")
    if not isinstance(memory, Memory):
        raise ValueError(f"memory must be Store(), Recompute() or Checkpoint() of ddbench.unroll, not {memory!r}")


def _window(window: int | tuple[int, int] | None, total: int) -> tuple[int, int]:
    """Return the first step of the window and the one after its last."""
    if window is None:
        return 0, total
    first, end = (max(0, total - window), total) if isinstance(window, int) else window
    if not 0 <= first < end <= total:
        raise ValueError(f"window {window} does not lie within the {total} steps")
    return first, end

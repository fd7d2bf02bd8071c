"""Differentiable training: the exact gradient of a loss after training, with respect to all that training depends on.

Notation (Wang et al. 2018, arXiv 1811.10959, Section 3). Weights `w_0` are trained on batches `x_t`, `y_t` by an inner
optimiser, in the simplest case plain gradient descent with one rate per step:

    w_{t+1} = w_t - lr_t * g_t,     g_t = grad_w loss(network(x_t; w_t), y_t),     t = 0 .. T-1

The outer loss L is evaluated at `w_T`. Going back from `a_T = dL/dw_T`, each step costs one Hessian-vector product:

    dL/dlr_t = -<a_{t+1}, g_t>
    dL/dx_t  = d/dx <g_t, -lr_t a_{t+1}>       (labels likewise, when they are soft)
    a_t      = a_{t+1} + d/dw <g_t, -lr_t a_{t+1}>

With another optimiser, `-lr_t a_{t+1}` is `dL/dg_t`, from the adjoint of its update (`inner_optimisers`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ddbench.contract.state import Params, State
from ddbench.contract.task import Loss, cross_entropy
from ddbench.engine.batches import Batches, Totals, Transform
from ddbench.engine.inner_optimisers import SGD, InnerOptimiser, InnerState
from ddbench.engine.inner_steps import Weights, choose_engine
from ddbench.engine.memory import InnerLoop, Memory, Recompute, Tape
from ddbench.engine.networks import unstack
from ddbench.engine.outer_losses import OuterLoss
from ddbench.engine.stacks import stack_states, stacked_gradient
from ddbench.engine.workers import for_each_network


def _go_forward(loop: InnerLoop, tape: Tape) -> Weights:
    """Return `w_end`, the weights after the inner steps."""
    state = loop.start
    for t in range(loop.end):
        state = tape.advance(t, state)
    return state.weights


def _go_back(loop: InnerLoop, tape: Tape, a_end: Weights) -> tuple[Totals, dict[str, Tensor], Weights]:
    """Return the gradients by examples, by the hyper-parameters of each step `[T]`, and by the weights `w_first`."""
    optimiser, totals = loop.optimiser, loop.trainer.totals()
    by_step = {name: a_end[0].new_zeros(loop.end) for name in optimiser.hyperparameters}
    adjoint = optimiser.start(a_end)
    for t in reversed(range(loop.first, loop.end)):
        state, step = tape.replay(t)
        update = optimiser.adjoint(t, state, [g.detach() for g in step.gradient], adjoint)
        grad_w, grad_x, grad_y = step.vjp(update.gradient)
        adjoint = InnerState([a + g for a, g in zip(update.state.weights, grad_w, strict=True)], update.state.moments)
        totals.add(t, grad_x, grad_y)
        for name, derivative in update.hyperparameters.items():
            by_step[name][t] = derivative
    return totals, by_step, adjoint.weights


@dataclass(frozen=True)
class MetaGradient:
    """Gradients of the mean outer loss over the networks, each in the shape of its argument.

    Attributes:
        loss: the outer loss of each network, `[nets]`.
        inputs: the gradient by the inputs; zero for examples that no differentiated step used.
        labels: the gradient by soft labels; None for hard ones.
        lrs: the gradient by the rates of the inner optimiser. One rate for all steps has one derivative.
        momentum: the gradient by the momentum of `SGD`, where it is a tensor; else None.
        decay: the gradient by the weight decay of `SGD`, where it is a tensor; else None.
        start: the gradient by the initial parameters; None under a window that begins after the first step.
        engine: the engine of the inner steps: `autograd`, `stacked autograd` or `chain` (see `choose_engine`).
    """

    loss: Float[Tensor, " nets"]
    inputs: Float[Tensor, " *inputs"]
    labels: Float[Tensor, " *labels"] | None
    lrs: Float[Tensor, "..."]
    momentum: Float[Tensor, "..."] | None
    decay: Float[Tensor, "..."] | None
    start: Mapping[str, Tensor] | None
    engine: str


def meta_gradient(
    network: nn.Module,
    start: State | Params,
    inputs: Float[Tensor, " *inputs"],
    labels: Shaped[Tensor, " *labels"],
    inner: InnerOptimiser,
    outer: OuterLoss,
    *,
    indices: Int[Tensor, "T b"] | None = None,
    transform: Transform | None = None,
    steps: int | None = None,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    window: int | tuple[int, int] | None = None,
    inner_loss: Loss = cross_entropy,
) -> MetaGradient:
    """Return the exact gradient of the outer loss after training on `inputs`, averaged over the networks.

    `start` holds the initial networks: a `State` or parameters alone, `{name: [nets, *shape]}` (as
    `torch.func.stack_module_state` gives) or `{name: shape}` for one network. The inner steps normalise by batch
    statistics and leave dropout and its like off (`inner_mode`). Running statistics, where a network has them, follow
    the inner steps and are constants to the gradient.

    `inputs [steps, n, *sample]` are batches, which are cycled. With `indices [T, b]`, step `t` trains on the examples
    `indices[t]` of `inputs [n, *sample]`; -1 leaves a place empty. `labels` are classes, `[steps, n]` or `[n]`, or soft
    with one more dimension `classes`: any numbers y for the loss `-sum_k y_k log p_k`. An author who learns logits z
    of labels passes `z.softmax(-1)`, and applies the chain rule by `y.backward(gradient.labels)` or
    `torch.autograd.grad(y, z, gradient.labels)`, for `y = z.softmax(-1)` with a graph.
    `transform(images, t)` is what step `t` sees of its images, such as an augmentation. It is differentiated through,
    may be called several times for a step, from several threads at once, and must return the same each time.

    `inner` is the optimiser, `SGD(lrs, momentum, decay)` or `Adam(lrs, betas, eps)`. The number of steps T is that of
    `lrs`; for a single rate it is `steps`, or else the length of `indices`, or else one pass over the batches.
    `outer` is `loss_on(loss, real_inputs, real_labels)` or `distance_to(parameters, start)`.

    `memory` trades memory for time at equal results: `Store()`, `Recompute()` or `Checkpoint(every)`.
    `Reverse()` undoes the steps of `SGD` with momentum instead, at results that are equal but for rounding.
    `window=k` stops the reverse pass after the last k steps; `window=(first, end)` takes the outer loss after `end`
    steps, on the way, and goes back to `first` (random windows as in Feng et al. 2023, arXiv 2311.07025).
    Such truncated back-propagation is no longer exact: weights and moments at `first` are constants.

    `inner_loss(logits, labels)` is the loss that the inner steps descend, a mean over the batch.
    Networks that are chains of simple layers have hand-derived steps under `ddbench.networks.cross_entropy`;
    all others go through autograd.
    Raises `ValueError` for arguments that do not belong together.
    """
    if not isinstance(memory, Memory):
        raise ValueError(
            f"memory must be Store(), Recompute(), Checkpoint() or Reverse() of ddbench.unroll, not {memory!r}"
        )
    batches = Batches.from_arguments(inputs, labels, indices, transform)
    total = _total(inner, batches, steps)
    first, end = _window(window, total)
    starts = list(unstack(network, start))
    outer.check(starts)
    engine = choose_engine(network, batches.like(), len(starts), inner_loss)

    def gradients(replica: nn.Module, group: range) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        trainer = engine.trainer(replica, [starts[i] for i in group], batches, inner_loss)
        loop = InnerLoop(trainer, inner, first, end)
        tape = memory.tape(loop)
        losses, adjoints = [], []
        last = trainer.unstack(_go_forward(loop, tape))
        for index, params, buffers in zip(group, last, trainer.unstack_buffers(loop.buffers), strict=True):
            loss, adjoint = outer.gradient(replica, State(params, buffers), index)
            losses.append(loss)
            adjoints.append(adjoint)
        totals, by_step, a_first = _go_back(loop, tape, trainer.stack(adjoints))
        labels = [] if totals.labels is None else [totals.labels]
        return losses, [totals.inputs(), *by_step.values(), *labels], trainer.unstack(a_first)

    groups = [range(i, min(i + engine.stack, len(starts))) for i in range(0, len(starts), engine.stack)]
    losses, parts, by_start = zip(*for_each_network(gradients, network, groups), strict=True)
    grad_inputs, *rest = (torch.stack(part).sum(0) / len(starts) for part in zip(*parts, strict=True))
    by_hyperparameter = {
        name: _in_shape_of(value, by_step, total)
        for (name, value), by_step in zip(inner.hyperparameters.items(), rest, strict=False)
    }
    return MetaGradient(
        loss=torch.stack([loss for group in losses for loss in group]),
        inputs=grad_inputs,
        labels=rest[-1] if batches.soft else None,
        lrs=by_hyperparameter["lrs"],
        momentum=by_hyperparameter.get("momentum"),
        decay=by_hyperparameter.get("decay"),
        start=_stacked_as(start, [params for group in by_start for params in group]) if first == 0 else None,
        engine=engine.name,
    )


def train(
    network: nn.Module,
    start: State | Params,
    inputs: Float[Tensor, " *inputs"],
    labels: Shaped[Tensor, " *labels"],
    inner: InnerOptimiser,
    *,
    indices: Int[Tensor, "T b"] | None = None,
    transform: Transform | None = None,
    steps: int | None = None,
    inner_loss: Loss = cross_entropy,
) -> State:
    """Return the state of one network after the inner steps, without a graph; arguments as in `meta_gradient`."""
    batches = Batches.from_arguments(inputs, labels, indices, transform)
    total = _total(inner, batches, steps)
    [single] = unstack(network, start)
    trainer = choose_engine(network, batches.like(), 1, inner_loss).trainer(network, [single], batches, inner_loss)
    loop = InnerLoop(trainer, inner, total, total)
    state = loop.start
    for t in range(total):
        state = loop.update(t, state, loop.step(t, state, loop.buffers, with_graph=False))
    [params] = trainer.unstack(state.weights)
    return State(params, loop.buffers)


def train_stack(
    network: nn.Module,
    starts: Sequence[State],
    inputs: Sequence[Float[Tensor, "steps n *sample"]],
    labels: Sequence[Shaped[Tensor, "steps n *classes"]],
    inner: Sequence[SGD],
    *,
    inner_loss: Loss = cross_entropy,
) -> list[State]:
    """Return the state of each network after `train` on its own batches by its own SGD, all in one call a step.

    All have the same shapes and the same number of steps.
    """
    stack = stack_states(network, starts)
    params = {name: tensor.detach().requires_grad_() for name, tensor in stack.params.items()}
    images, targets = torch.stack(list(inputs), 1), torch.stack(list(labels), 1)
    totals = {_total(each, Batches(x, y), None) for each, x, y in zip(inner, inputs, labels, strict=True)}
    if len(totals) != 1:
        raise ValueError(f"networks of one stack take the same number of steps, not {sorted(totals)}")
    [total] = totals
    # Numbers of each step and network: [3, T, nets].
    schedules = torch.tensor([each.schedules(total) for each in inner], dtype=torch.float64).permute(1, 2, 0)
    velocities = [torch.zeros_like(tensor) for tensor in params.values()]
    with_momentum, with_decay = (bool(part.any()) for part in schedules[1:])
    schedules = schedules.to(images.device, images.dtype)
    for t in range(total):
        batch = t % len(images)
        _, gradient = stacked_gradient(network, params, stack.buffers, images[batch], targets[batch], inner_loss)
        with torch.no_grad():
            for w, v, g in zip(params.values(), velocities, gradient, strict=True):
                lr, momentum, decay = (part[t].view(-1, *[1] * (w.dim() - 1)) for part in schedules)
                h = g + decay * w if with_decay else g
                h = v.mul_(momentum).add_(h) if with_momentum else h
                w.sub_(lr * h)
    trained = State({name: tensor.detach() for name, tensor in params.items()}, stack.buffers)
    return [trained.network(index) for index in range(len(starts))]


def _total(inner: InnerOptimiser, batches: Batches, steps: int | None) -> int:
    """Return the number of steps T."""
    if not isinstance(inner, InnerOptimiser):
        raise ValueError(f"inner must be SGD(lrs) or Adam(lrs) of ddbench.unroll, not {inner!r}")
    lrs = inner.lrs
    stated = [count for count in (steps, None if batches.rows is None else len(batches.rows)) if count is not None]
    total = lrs.numel() if lrs.dim() else (stated or [batches.length])[0]
    if any(count != total for count in stated) or total < 1:
        raise ValueError(f"lrs {tuple(lrs.shape)}, indices and steps do not state the same number of steps")
    if lrs.dim() > 2 or (lrs.dim() == 2 and batches.rows is None and lrs.shape[1] != batches.length):
        raise ValueError(f"lrs {tuple(lrs.shape)} must be [epochs, {batches.length}], [T] or one rate")
    for name, value in inner.hyperparameters.items():
        if value.dim() and value.numel() != total:
            raise ValueError(f"{name} {tuple(value.shape)} must have a value for each of {total} steps, or one")
    return total


def _window(window: int | tuple[int, int] | None, total: int) -> tuple[int, int]:
    """Return the first step of the window and the one after its last."""
    if window is None:
        return 0, total
    first, end = (max(0, total - window), total) if isinstance(window, int) else window
    if not 0 <= first < end <= total:
        raise ValueError(f"window {window} does not lie within the {total} steps")
    return first, end


def _in_shape_of(value: Tensor, by_step: Float[Tensor, " end"], total: int) -> Float[Tensor, "..."]:
    """Return the gradient by a hyper-parameter from those by its value in each step; none after `end` counts."""
    if not value.dim():
        return by_step.sum()
    return torch.cat([by_step, by_step.new_zeros(total - len(by_step))]).view(value.shape)


def _stacked_as(start: State | Params, gradients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the gradients by the initial parameters of the mean over the networks, in the shape of `start`."""
    params = start.params if isinstance(start, State) else start
    return {
        name: torch.stack([gradient[name] for gradient in gradients]).view(tensor.shape) / len(gradients)
        for name, tensor in params.items()
    }

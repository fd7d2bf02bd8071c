"""Learning data and the training on it by exact reversal (Maclaurin, Duvenaud and Adams 2015, arXiv 1502.03492)."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import ddbench
from ddbench import DdbenchError, DistilledSet, Run, State, Task
from ddbench.networks import Loss, Params, cross_entropy
from ddbench.unroll import SGD, Checkpoint, Memory, MetaGradient, OuterLoss, Recompute, Reverse, meta_gradient
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.shared import Count, InnerRate, Networks, Positive, RealBatch

MOMENTS = 1
"""Tensors that SGD with momentum keeps for each weight."""
WAYS: dict[str, Memory] = {memory.name: memory for memory in (Reverse(), Recompute(), Checkpoint())}
"""The ways of going back by the value of the option `memory`."""
VALUES: dict[str, Callable[[Tensor], Tensor]] = {"lrs": F.softplus, "momentum": torch.sigmoid, "decay": F.softplus}
"""The functions that make rates, momenta and weight decays of the raw numbers that are learned."""
LARGEST_RAW_MOMENTUM = 7.0
"""Bound of raw momenta, sigmoid(7) = 0.999: a step with momentum 0 cannot be undone, one with 1 never forgets."""


def schedule_of(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return rates, momenta and, where they are learned, weight decays from raw numbers of any size."""
    return {name: VALUES[name](tensor) for name, tensor in raw.items()}


def schedule_gradient(
    network: nn.Module,
    start: State | Params,
    images: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    raw: Mapping[str, Tensor],
    outer: OuterLoss,
    *,
    memory: Memory = Reverse(),  # noqa: B008, a frozen value
    inner_loss: Loss = cross_entropy,
) -> tuple[MetaGradient, dict[str, Tensor]]:
    """Return the outer loss after training by a schedule with its gradients, and those by the raw numbers of it.

    `raw` holds `lrs`, `momentum` and perhaps `decay`, each `[epochs, steps]`; see `schedule_of`. Step t is

        v_{t+1} = m_t v_t + g_t + d_t w_t,        w_{t+1} = w_t - lr_t v_{t+1}

    On the way back, `Reverse` undoes it exactly, w_t = w_{t+1} + lr_t v_{t+1}, then v_t = (v_{t+1} - g_t - d_t w_t) /
    m_t. With the adjoints a of w and b of v, where a_T = dL/dw_T and b_T = 0 (Algorithm 2 of the paper),

        c = b_{t+1} - lr_t a_{t+1},    dL/dlr_t = -<a_{t+1}, v_{t+1}>,    dL/dm_t = <c, v_t>,    dL/dd_t = <c, w_t>,
        dL/dx_t = d/dx <g_t, c>,       a_t = a_{t+1} + d_t c + d/dw <g_t, c>,    b_t = m_t c
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in raw.items()}
    values = schedule_of(leaves)
    inner = SGD(**{name: value.detach() for name, value in values.items()})
    gradient = meta_gradient(network, start, images, labels, inner, outer, memory=memory, inner_loss=inner_loss)
    by_values = [getattr(gradient, name) for name in values]
    grads = torch.autograd.grad(list(values.values()), list(leaves.values()), by_values)
    return gradient, dict(zip(leaves, grads, strict=True))


def _peak_memory(task: Task, *, networks: int, real_batch: int, memory: str, **others: object) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, and the way of going back."""
    count, steps, shape = task.networks.sample(networks).count, task.budget.total_steps, shared.step_shape(task)
    _, peak = shared.fitting_memory(task, count, shape, steps, real_batch, (WAYS[memory],), MOMENTS)
    return peak, f"memory={memory}"


@ddbench.method(peak_memory=_peak_memory, supports=shared.uneven_steps)
def reversible_hypergradients(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of images, rates, momenta and decays")] = 200,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for images and for the raw numbers")] = 0.1,
    inner_lr: InnerRate = 0.18,
    momentum: Annotated[float, Field(ge=0.001, le=0.999, description="initial momentum of every inner step")] = 0.5,
    weight_decay: Annotated[
        float, Field(ge=0, le=1, description="initial weight decay of every inner step; 0 for none, which stays none")
    ] = 0.0,
    networks: Networks = 1,
    real_batch: RealBatch = 512,
    clip: Annotated[float, Field(ge=0, description="bound on the norm of each gradient; 0 for none")] = 1.0,
    memory: Annotated[
        Literal["reverse", "recompute", "checkpoint"],
        Field(description="way of going back: undo the steps, or keep or repeat them"),
    ] = "reverse",
) -> DistilledSet:
    """Learn images together with the rate, the momentum and the weight decay of each step of training on them.

    Networks train by `steps` x `epochs` steps of SGD with momentum, each with numbers of its own. The gradient by all
    of these goes back by undoing the steps exactly, in fixed point: memory does not hold the weights of the steps, so
    hundreds of them fit, such as --ipc 1 --epochs 200. It needs gradients that are the same when a step is repeated.

    The set brings its rates, and its momenta and decays as extras: score it under --protocol replay-momentum/v1, which
    trains by them; replay/v1 takes the rates alone. Defaults are those of the authors' experiment on ten digits, in
    which the rate is multiplied by 1 - momentum; they made 15 updates of 20 steps.
    A small setting, which took 31 seconds of a core with its scoring on digits with the network mlp: --ipc 1
    --epochs 50 --set outer_steps=60 --set outer_lr=0.05.
    """
    shared.check_objective(task, "reversible_hypergradients")
    budget, classes = task.budget, len(task.info.classes)
    shape = shared.step_shape(task)
    labels = torch.arange(classes, device=run.device).repeat_interleave(shape[1] // classes).repeat(budget.steps, 1)
    images = torch.randn(shape, generator=run.generator).to(run.device).requires_grad_()
    initial = {"lrs": shared.raw_rate(inner_lr), "momentum": math.log(momentum / (1 - momentum))}
    if weight_decay:
        initial["decay"] = shared.raw_rate(weight_decay)
    raw = {
        name: torch.full((budget.epochs, budget.steps), value, device=run.device, requires_grad=True)
        for name, value in initial.items()
    }
    learned = [images, *raw.values()]
    optimizer = torch.optim.Adam(learned, lr=outer_lr, betas=(0.5, 0.999))
    shared.report_engine(task, run, networks, shape, WAYS[memory])

    for step in run.loop(outer_steps, {"images": images, **raw, "optimizer": optimizer}):
        start = task.networks.sample(networks)
        real = shared.RealLoss(task, task.train.minibatch(real_batch, run.generator))
        try:
            gradient, raw_grads = schedule_gradient(
                task.networks.module, start, images.detach(), labels, raw, real.outer,
                memory=WAYS[memory], inner_loss=task.objective.inner_loss,
            )  # fmt: skip
        except DdbenchError as error:
            if not step:
                raise DdbenchError(
                    error.message, "Keep the steps by --set memory=recompute, or lower --set inner_lr."
                ) from error
            # Steps that were undone before cannot be now: what was learned in between left the range of numbers.
            run.log(loss=math.nan)
            continue
        images.grad = gradient.inputs
        for name, tensor in raw.items():
            tensor.grad = raw_grads[name]
        if clip:
            for tensor in learned:
                torch.nn.utils.clip_grad_norm_([tensor], clip)
        optimizer.step()
        raw["momentum"].data.clamp_(-LARGEST_RAW_MOMENTUM, LARGEST_RAW_MOMENTUM)
        norm = torch.linalg.vector_norm(gradient.inputs)
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **real.shown())

    schedule = {name: value.detach() for name, value in schedule_of(raw).items()}
    distilled = DistilledSet(images.detach(), labels, schedule.pop("lrs"), extras=schedule)
    return distilled.described(inner_optimiser=f"sgd {' '.join(f'{name}=extras.{name}' for name in schedule)}")

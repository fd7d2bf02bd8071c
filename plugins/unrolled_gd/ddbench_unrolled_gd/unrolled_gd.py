"""Dataset distillation by unrolled gradient descent (Wang, Zhu, Torralba and Efros 2018, arXiv 1811.10959)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import BornLater, DistilledSet, RecipeRequest, Run, State, Task
from ddbench.networks import Loss, Params, cross_entropy
from ddbench.unroll import SGD, Memory, MetaGradient, OuterLoss, Recompute, meta_gradient
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.shared import WAYS_BACK, Count, Decay, InnerRate, Networks, Positive, RealBatch, Way


def descent_gradient(
    network: nn.Module,
    start: State | Params,
    images: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    raw_lrs: Float[Tensor, "epochs steps"],
    outer: OuterLoss,
    *,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    window: int | tuple[int, int] | None = None,
    inner_loss: Loss = cross_entropy,
) -> tuple[MetaGradient, Float[Tensor, "epochs steps"]]:
    """Return the outer loss after gradient descent with its gradients, and its gradient by the raw rates r.

    Step t is w_{t+1} = w_t - softplus(r_t) g_t on batch t modulo `steps`, where g_t is the gradient of the inner loss.
    Going back from a_T = dL/dw_T,

        dL/dr_t = -sigmoid(r_t) <a_{t+1}, g_t>        dL/dx_t = d/dx <g_t, -lr_t a_{t+1}>        and so by soft labels
    """
    inner = SGD(shared.rates(raw_lrs))
    gradient = meta_gradient(
        network, start, images, labels, inner, outer, memory=memory, window=window, inner_loss=inner_loss
    )
    return gradient, shared.gradient_by_raw(gradient.lrs, raw_lrs)


def _peak_memory(
    task: Task, *, networks: int, real_batch: int, memory: str, window: int | None, **others: object
) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, and the way of going back."""
    count, total = task.networks.sample(networks).count, task.budget.total_steps
    steps = total if window is None else min(window, total)
    way, peak = shared.fitting_memory(task, count, shared.step_shape(task), steps, real_batch, WAYS_BACK[memory])
    return peak, f"memory={way.name}"


TUNED = ("mnist", "fashion_mnist", "usps", "svhn", "cifar10")
"""Datasets of larger images than `digits`, which the defaults suit; on MNIST they diverge in long runs."""


def tuned(request: RecipeRequest) -> Mapping[str, Any]:
    """Chosen for ddbench on validation images of MNIST; measured on those of USPS and Fashion-MNIST."""
    if request.dataset not in TUNED:
        return {}
    return dict(outer_lr=0.01, start="means", clip=0.1)


@ddbench.method(peak_memory=_peak_memory, supports=shared.uneven_steps, recipe=tuned)
def unrolled_gd(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the distilled images and rates")] = 600,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for images and raw rates")] = 0.05,
    schedule: Decay = "cosine",
    start: Annotated[
        Literal["noise", "means"],
        Field(description="images start as normal noise, or as the class means with noise of half that size"),
    ] = "noise",
    inner_lr: InnerRate = 0.02,
    networks: Networks = 2,
    real_batch: RealBatch = 512,
    clip: Annotated[
        float, Field(ge=0, description="bound on the norms of the images' and of the rates' gradient; 0 for none")
    ] = 1.0,
    running_clip: Annotated[
        float,
        Field(ge=0, description="bound the images' and the rates' gradient by this multiple of its running norm"),
        BornLater(),
    ] = 0.0,
    window: Annotated[int | None, Field(ge=1, description="go back through this many steps only")] = None,
    window_at: Annotated[
        Literal["end", "random"],
        Field(description="end of the window, where the outer loss is taken: the last step, or a random one each time"),
    ] = "end",
    memory: Way = "auto",
) -> DistilledSet:
    """Learn images and a rate for each gradient step by differentiating through training (the reference method).

    Each outer step draws networks and a real batch and trains the networks on the distilled images by `steps` x
    `epochs` steps of gradient descent. It then follows the exact gradient of the loss on the real batch, back through
    those steps (Algorithm 1 and Section 3.4 of the paper). Labels are fixed, with the same number of images of each
    class in every step; rates stay positive as softplus of a learned number.
    """
    shared.check_objective(task, "unrolled_gd")
    budget, classes = task.budget, len(task.info.classes)
    per_step = budget.images_per_class // budget.steps
    labels = torch.arange(classes, device=run.device).repeat_interleave(per_step).repeat(budget.steps, 1)
    images = torch.randn(shared.step_shape(task), generator=run.generator).to(run.device)
    if start == "means":
        means = torch.stack([task.train.inputs[task.train.of_class(label)].mean(0) for label in range(classes)])
        images = means[labels] + images / 2
    return learn(
        task,
        run,
        images,
        labels,
        outer_steps=outer_steps,
        outer_lr=outer_lr,
        schedule=schedule,
        inner_lr=inner_lr,
        networks=networks,
        real_batch=real_batch,
        clip=clip,
        running_clip=running_clip,
        window=window,
        window_at=window_at,
        memory=memory,
    )


def learn(
    task: Task,
    run: Run,
    images: Float[Tensor, "steps n *sample"],
    labels: Shaped[Tensor, "steps n *classes"],
    *,
    outer_steps: int,
    outer_lr: float,
    schedule: str,
    inner_lr: float,
    networks: int,
    real_batch: int,
    clip: float,
    running_clip: float = 0.0,
    window: int | None = None,
    window_at: str = "end",
    memory: str = "auto",
) -> DistilledSet:
    """Return images, rates and, where they are soft, labels, learned together by one Adam (Algorithm 1).

    Soft labels y are any numbers, for the inner loss -sum_k y_k log p_k. Options are those of `unrolled_gd`.
    """
    soft = labels.is_floating_point()
    images = images.clone().requires_grad_()
    labels = labels.clone().requires_grad_(soft)
    budget, module = task.budget, task.networks.module
    raw_lrs = torch.full(
        (budget.epochs, budget.steps), shared.raw_rate(inner_lr), device=run.device, requires_grad=True
    )
    learned = [images, raw_lrs, *([labels] if soft else [])]
    optimizer = torch.optim.Adam(learned, lr=outer_lr, betas=(0.5, 0.999))
    state: dict[str, object] = dict(images=images, raw_lrs=raw_lrs, optimizer=optimizer)
    if soft:
        state["labels"] = labels
    running_norms = torch.zeros(len(learned), device=run.device)
    if running_clip:
        state["running_norms"] = running_norms
    way: Memory | None = None

    for _ in run.loop(outer_steps, state):
        for group in optimizer.param_groups:
            group["lr"] = outer_lr * shared.decay(schedule, run.share_done)
        start = task.networks.sample(networks)
        if way is None:
            steps = budget.total_steps if window is None else min(window, budget.total_steps)
            shape = tuple(images.shape)
            way, _ = shared.fitting_memory(task, start.count, shape, steps, real_batch, WAYS_BACK[memory])
            shared.report_engine(task, run, start.count, shape, way)
        real = shared.RealLoss(task, task.train.minibatch(real_batch, run.generator))
        gradient, raw_lrs.grad = descent_gradient(
            module,
            start,
            images.detach(),
            labels.detach(),
            raw_lrs.detach(),
            real.outer,
            memory=way,
            window=shared.draw_window(window, window_at, budget.total_steps, run.generator),
            inner_loss=task.objective.inner_loss,
        )
        images.grad, labels.grad = gradient.inputs, gradient.labels
        norm = torch.linalg.vector_norm(gradient.inputs)
        if running_clip:
            for tensor, running_norm in zip(learned, running_norms, strict=True):
                assert tensor.grad is not None
                shared.clip_by_running_norm(tensor.grad, running_norm, running_clip)
        if clip:
            for tensor in learned:
                torch.nn.utils.clip_grad_norm_([tensor], clip)
        optimizer.step()
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **real.shown())

    return DistilledSet(
        images.detach(), labels.detach(), shared.rates(raw_lrs), label_kind="regression" if soft else None
    )

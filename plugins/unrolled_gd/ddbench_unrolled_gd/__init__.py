"""Dataset distillation by unrolled gradient descent (Wang, Zhu, Torralba and Efros 2018, arXiv 1811.10959)."""

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DistilledSet, Run, Task, Unsupported
from ddbench.unroll import MEMORIES, Memory, choose_engine, fastest_fitting, meta_gradient

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


WAYS_BACK = {"auto": MEMORIES, **{memory.name: (memory,) for memory in MEMORIES}}
"""The ways of going back that each value of the option `memory` allows, the fastest first."""


def _fitting(task: Task, networks: int, real_batch: int, memory: str, window: int | None) -> tuple[Memory, int]:
    """Return the way of going back and its predicted peak in bytes."""
    total = task.budget.total_steps
    return fastest_fitting(
        task.networks.module,
        networks,
        _shape(task),
        len(task.info.classes),
        total if window is None else min(window, total),
        min(real_batch, len(task.train)),
        task.train.inputs.device,
        among=WAYS_BACK[memory],
        inner_loss=task.objective.inner_loss,
    )


def _shape(task: Task) -> tuple[int, ...]:
    """Return the shape of the distilled images, `[steps, n, *sample]`."""
    budget = task.budget
    n = len(task.info.classes) * budget.images_per_class // budget.steps
    return (budget.steps, n, *task.info.sample_shape)


def _peak_memory(
    task: Task, *, networks: int, real_batch: int, memory: str, window: int | None, **others: object
) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, and the way of going back."""
    way, peak = _fitting(task, task.networks.sample(networks).count, real_batch, memory, window)
    return peak, f"memory={way.name}"


@ddbench.method(peak_memory=_peak_memory)
def unrolled_gd(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the distilled images and rates")] = 600,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for images and raw rates")] = 0.05,
    schedule: Annotated[
        Literal["cosine", "step", "constant"],
        Field(description="decay of outer_lr: along a cosine to zero, halved every tenth of the run, or none"),
    ] = "cosine",
    start: Annotated[
        Literal["noise", "means"],
        Field(description="images start as normal noise, or as the class means with noise of half that size"),
    ] = "noise",
    inner_lr: Annotated[Positive, Field(le=1e6, description="initial rate of every inner step")] = 0.02,
    networks: Annotated[Count, Field(description="networks an outer step averages over (a fixed init has one)")] = 2,
    real_batch: Annotated[Count, Field(description="real images per evaluation of the outer loss")] = 512,
    clip: Annotated[
        float, Field(ge=0, description="bound on the norms of the images' and of the rates' gradient; 0 for none")
    ] = 1.0,
    window: Annotated[int | None, Field(ge=1, description="go back through this many steps only")] = None,
    window_at: Annotated[
        Literal["end", "random"],
        Field(description="end of the window, where the outer loss is taken: the last step, or a random one each time"),
    ] = "end",
    memory: Annotated[
        Literal["auto", "store", "recompute", "checkpoint"],
        Field(description="way of going back, at equal results; auto takes the fastest that fits into memory"),
    ] = "auto",
) -> DistilledSet:
    """Learn images and a rate for each gradient step by differentiating through training (the reference method).

    Each outer step draws networks and a real batch and trains the networks on the distilled images by `steps` x
    `epochs` steps of gradient descent. It then follows the exact gradient of the loss on the real batch, back through
    those steps (Algorithm 1 and Section 3.4 of the paper). Labels are fixed, with the same number of images of each
    class in every step; rates stay positive as softplus of a learned number.
    """
    if task.objective.loss is None:
        raise Unsupported(
            f"unrolled_gd needs an objective with a differentiable loss; {task.objective.primary} has none."
        )
    budget, classes = task.budget, len(task.info.classes)
    if budget.images_per_class % budget.steps:
        raise Unsupported(
            f"unrolled_gd spreads {budget.images_per_class} images per class evenly over the steps: "
            f"{budget.steps} does not divide it."
        )
    per_step = budget.images_per_class // budget.steps
    labels = torch.arange(classes, device=run.device).repeat_interleave(per_step).repeat(budget.steps, 1)
    noise = torch.randn(_shape(task), generator=run.generator)
    images = noise.to(run.device)
    if start == "means":
        means = torch.stack([task.train.inputs[task.train.of_class(label)].mean(0) for label in range(classes)])
        images = means[labels] + images / 2
    images.requires_grad_()
    # softplus(raw) = inner_lr, written so that nothing overflows.
    raw = inner_lr + math.log(-math.expm1(-inner_lr))
    raw_lrs = torch.full((budget.epochs, budget.steps), raw, device=run.device, requires_grad=True)
    way: Memory | None = None
    optimizer = torch.optim.Adam([images, raw_lrs], lr=outer_lr, betas=(0.5, 0.999))

    for _ in run.loop(outer_steps, dict(images=images, raw_lrs=raw_lrs, optimizer=optimizer)):
        for group in optimizer.param_groups:
            group["lr"] = outer_lr * _decay(schedule, run.share_done)
        start_networks = task.networks.sample(networks)
        if way is None:
            count = start_networks.count
            way, _ = _fitting(task, count, real_batch, memory, window)
            engine = choose_engine(task.networks.module, images.detach(), count, task.objective.inner_loss)
            run.say(f"Engine   {engine}, memory={way.name}")
        real = task.train.minibatch(real_batch, run.generator)
        metrics: list[dict[str, float]] = []

        def outer_loss(logits: Tensor, labels: Tensor, metrics: list[dict[str, float]] = metrics) -> Tensor:
            assert task.objective.loss is not None
            metrics.append(task.objective.measure(logits.detach(), labels))
            return task.objective.loss(logits, labels)

        gradient = meta_gradient(
            task.networks.module,
            start_networks,
            images.detach(),
            labels,
            F.softplus(raw_lrs.detach()),
            outer_loss,
            real.inputs,
            real.labels,
            memory=way,
            window=_window(window, window_at, budget.total_steps, run.generator),
            inner_loss=task.objective.inner_loss,
        )
        images.grad = gradient.inputs
        # The chain rule through softplus: d lr / d raw = sigmoid(raw).
        raw_lrs.grad = gradient.lrs * torch.sigmoid(raw_lrs.detach())
        norm = torch.linalg.vector_norm(gradient.inputs)
        if clip:
            torch.nn.utils.clip_grad_norm_([images], clip)
            torch.nn.utils.clip_grad_norm_([raw_lrs], clip)
        optimizer.step()
        primary = task.objective.primary
        current = math.fsum(m[primary] for m in metrics) / len(metrics)
        # NaN where the batch has nothing to measure: no reason to roll back.
        shown = {f"train_{primary}": current} if math.isfinite(current) else {}
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **shown)

    return DistilledSet(images.detach(), labels, F.softplus(raw_lrs.detach()))


def _window(size: int | None, where: str, total: int, generator: torch.Generator) -> int | tuple[int, int] | None:
    """Return the steps to go back through, for `meta_gradient`."""
    if size is None or size >= total or where == "end":
        return size
    end = int(torch.randint(size, total + 1, (), generator=generator))
    return end - size, end


def _decay(schedule: str, done: float) -> float:
    """Return the factor on the outer rate when a share `done` of the run is over."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.5 ** int(10 * done) if schedule == "step" else 1.0


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [unrolled_gd]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

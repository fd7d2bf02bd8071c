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
from ddbench.engine.memory import fitting_memory
from ddbench.engine.meta_gradient import Memory, meta_gradient
from ddbench.machine.environment import free_memory

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _fitting(task: Task, networks: int, real_batch: int, memory: str, window: int | None) -> tuple[Memory, int]:
    """The memory mode to go back with and the bytes it will take at its peak."""
    budget, classes = task.budget, len(task.info.classes)
    module, total = task.networks.module, budget.total_steps
    return fitting_memory(
        module,
        networks,
        (budget.steps, classes * budget.images_per_class // budget.steps, *task.info.sample_shape),
        classes,
        total if window is None else min(window, total),
        min(real_batch, len(task.train)),
        free_memory(task.train.inputs.device),
        memory=None if memory == "auto" else memory,  # type: ignore[arg-type]
        inner_loss=task.objective.inner_loss,
    )


def _peak_memory(
    task: Task, *, networks: int, real_batch: int, memory: str, window: int | None, **others: object
) -> tuple[int, str]:
    """Bytes the method will take at its peak, and how."""
    drawn = len(next(iter(task.networks.sample(networks).values())))
    mode, peak = _fitting(task, drawn, real_batch, memory, window)
    return peak, f"memory={mode}"


@ddbench.method(peak_memory=_peak_memory)
def unrolled_gd(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the distilled images and rates")] = 600,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for images and raw rates")] = 0.05,
    schedule: Annotated[
        Literal["cosine", "step", "constant"],
        Field(description="how outer_lr falls: along a cosine to zero, halved every tenth of the run, or not"),
    ] = "cosine",
    start: Annotated[
        Literal["noise", "means"],
        Field(description="images start as normal noise, or as the class means with noise of half that size"),
    ] = "noise",
    inner_lr: Annotated[Positive, Field(le=1e6, description="rate that every inner step starts from")] = 0.02,
    networks: Annotated[Count, Field(description="networks an outer step averages over (a fixed init has one)")] = 2,
    real_batch: Annotated[Count, Field(description="real images the outer loss is taken on")] = 512,
    clip: Annotated[
        float, Field(ge=0, description="bound on the norms of the images' and of the rates' gradient; 0 for none")
    ] = 1.0,
    window: Annotated[int | None, Field(ge=1, description="go back through so many steps only")] = None,
    window_at: Annotated[
        Literal["end", "random"],
        Field(description="where a window ends: at the last step, or each time elsewhere (the outer loss with it)"),
    ] = "end",
    memory: Annotated[
        Literal["auto", "store", "recompute", "checkpoint"],
        Field(description="what the reverse pass keeps, at equal numbers; auto takes the fastest that fits"),
    ] = "auto",
) -> DistilledSet:
    """Learn images and a rate for each gradient step by differentiating through training (the reference method).

    Each outer step draws networks and a real batch, trains the networks on the distilled images by `steps` x
    `epochs` steps of gradient descent, and follows the exact gradient of the loss on the real batch back through
    those steps (Algorithm 1 and Section 3.4 of the paper). Labels are fixed, the same number of images of each class
    in every step; rates stay positive as softplus of a learned number.
    """
    if task.objective.loss is None:
        raise Unsupported(
            f"unrolled_gd needs an objective with a differentiable loss; {task.objective.primary} has none."
        )
    budget, classes, shape = task.budget, len(task.info.classes), task.info.sample_shape
    if budget.images_per_class % budget.steps:
        raise Unsupported(
            f"unrolled_gd spreads {budget.images_per_class} images per class evenly over the steps: "
            f"{budget.steps} does not divide it."
        )
    per_step = budget.images_per_class // budget.steps
    labels = torch.arange(classes, device=run.device).repeat_interleave(per_step).repeat(budget.steps, 1)
    noise = torch.randn((budget.steps, classes * per_step, *shape), generator=run.generator)
    images = noise.to(run.device)
    if start == "means":
        means = torch.stack([task.train.inputs[task.train.of_class(label)].mean(0) for label in range(classes)])
        images = means[labels] + images / 2
    images.requires_grad_()
    # softplus(raw) = inner_lr, written so that nothing overflows.
    raw = inner_lr + math.log(-math.expm1(-inner_lr))
    raw_lrs = torch.full((budget.epochs, budget.steps), raw, device=run.device, requires_grad=True)
    mode: Memory | None = None
    optimizer = torch.optim.Adam([images, raw_lrs], lr=outer_lr, betas=(0.5, 0.999))

    for _ in run.loop(outer_steps, dict(images=images, raw_lrs=raw_lrs, optimizer=optimizer)):
        for group in optimizer.param_groups:
            group["lr"] = outer_lr * _decay(schedule, run.share_done)
        weights = task.networks.sample(networks)
        if mode is None:
            mode, _ = _fitting(task, len(next(iter(weights.values()))), real_batch, memory, window)
        real = task.train.minibatch(real_batch, run.generator)
        figures: list[dict[str, float]] = []

        def outer_loss(logits: Tensor, labels: Tensor, figures: list[dict[str, float]] = figures) -> Tensor:
            assert task.objective.loss is not None
            figures.append(task.objective.measure(logits.detach(), labels))
            return task.objective.loss(logits, labels)

        gradient = meta_gradient(
            task.networks.module,
            weights,
            images.detach(),
            labels,
            F.softplus(raw_lrs.detach()),
            outer_loss,
            real.inputs,
            real.labels,
            memory=mode,
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
        current = math.fsum(f[primary] for f in figures) / len(figures)
        # NaN where the batch had nothing to measure: no reason to roll back.
        shown = {f"train_{primary}": current} if math.isfinite(current) else {}
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **shown)

    return DistilledSet(images.detach(), labels, F.softplus(raw_lrs.detach()))


def _window(size: int | None, where: str, total: int, generator: torch.Generator) -> int | tuple[int, int] | None:
    """The steps to go back through, for `meta_gradient`."""
    if size is None or size >= total or where == "end":
        return size
    end = int(torch.randint(size, total + 1, (), generator=generator))
    return end - size, end


def _decay(schedule: str, done: float) -> float:
    """Factor on the outer rate when a share `done` of the run is over."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.5 ** int(10 * done) if schedule == "step" else 1.0


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [unrolled_gd]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

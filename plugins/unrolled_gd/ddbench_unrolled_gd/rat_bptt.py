"""Random truncated back-propagation through time, RaT-BPTT (Feng, Vedantam and Kempe 2024, arXiv 2311.07025)."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, ExampleSet, RecipeRequest, Run, State, Task, UsageError
from ddbench.augment import refuse
from ddbench.networks import Loss, Params, cross_entropy
from ddbench.unroll import Adam, Memory, MetaGradient, OuterLoss, Recompute, Transform, meta_gradient
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.shared import WAYS_BACK, Count, InnerRate, Positive, RealBatch, Start, Way

MOMENTS = 2
"""Tensors that Adam keeps for each weight."""
DIGITS = ("digits", "mnist", "svhn", "usps")
"""Datasets whose images mean something else, or nothing, in a mirror."""


def window_gradient(
    network: nn.Module,
    start: State | Params,
    images: Float[Tensor, " n *sample"],
    labels: Int[Tensor, " n"],
    rate: Float[Tensor, "..."] | float,
    rows: Int[Tensor, "T b"],
    window: int | tuple[int, int],
    outer: OuterLoss,
    views: Transform | None = None,
    *,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    inner_loss: Loss = cross_entropy,
) -> MetaGradient:
    """Return the outer loss at the end of a window of Adam's steps, and its gradient by the images through the window.

    Step t trains on the images `rows[t]`. A window (first, end) has the outer loss after `end` steps; the steps before
    `first` run without a graph, and their weights and moments are constants (Section 3.2). A number is the length of a
    window at the end of all steps.
    """
    inner = Adam(rate)
    return meta_gradient(
        network, start, images, labels, inner, outer,
        indices=rows, transform=views, window=window, memory=memory, inner_loss=inner_loss,
    )  # fmt: skip


def seen(real: ExampleSet, augment: str, generator: torch.Generator) -> ExampleSet:
    """Return real images under an augmentation, each with amounts of its own."""
    views = shared.draw_views(augment, torch.arange(len(real))[None], generator)
    return real if views is None else ExampleSet(views(real.inputs, 0), real.labels, real.info)


def published(request: RecipeRequest) -> Mapping[str, Any]:
    """Feng et al. 2024, settings of the authors' code; no flips of digits, no augmentation of what is no image."""
    if request.modality != "image":
        return {"augment": ""}
    return {"augment": "rotate"} if request.dataset in DIGITS else {}


def _peak_memory(
    task: Task, *, window: int, per_class: int | None, real_batch: int, memory: str, **others: object
) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, and the way of going back."""
    way, peak = shared.fitting_memory(task, 1, _shape(task, per_class), window, real_batch, WAYS_BACK[memory], MOMENTS)
    return peak, f"memory={way.name}"


def _shape(task: Task, per_class: int | None) -> tuple[int, ...]:
    count = min(per_class or task.budget.images_per_class, task.budget.images_per_class)
    return (1, count * len(task.info.classes), *task.info.sample_shape)


@ddbench.method(peak_memory=_peak_memory, recipe=published)
def rat_bptt(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the images")] = 60_000,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for the images")] = 1e-3,
    inner_steps: Annotated[Count, Field(description="inner steps T, the latest end of a window")] = 200,
    window: Annotated[Count, Field(description="inner steps that are gone back through")] = 60,
    inner_lr: InnerRate = 1e-3,
    per_class: Annotated[
        int | None, Field(ge=1, description="images of each class in an inner step; None for all")
    ] = None,
    start: Start = "real",
    real_batch: RealBatch = 5000,
    running_clip: Annotated[
        float, Field(ge=0, description="bound the images' gradient by this multiple of its running norm; 0 for none")
    ] = 2.0,
    augment: Annotated[
        str, Field(description="operations on distilled and real images, joined by underscores; empty for none")
    ] = "flip_rotate",
    memory: Way = "auto",
) -> DistilledSet:
    """Learn images through a random window of a long training by Adam.

    Each update draws a network, which takes up to `inner_steps` steps of Adam on the images. The loss on a real batch
    is taken at a random step, and its gradient goes back through the `window` steps before it: through fewer steps
    than the training has, so that memory, time and the size of the gradient stay bounded, and through early and late
    steps in turn. It is not the gradient of the loss after the whole training.

    Rates of Adam say nothing about gradient descent, so the set has no rates, and its score is that of a training of
    the protocol's own: --protocol train/v1. The published figures use --whitening zca, and
    count 60 000 epochs where ddbench counts updates. The running norm that bounds a gradient is that of the bounded
    ones, so that a spike does not lift the bound; the authors' code counts norms before that. A small setting, which
    took 24 seconds of a core with its scoring on digits with the network mlp: --ipc 1 --set outer_steps=60
    --set outer_lr=0.02 --set inner_lr=0.003 --set inner_steps=60 --set window=20 --set real_batch=256.
    """
    shared.check_objective(task, "rat_bptt")
    _check(task, inner_steps, window, augment)
    module, classes, n = task.networks.module, len(task.info.classes), task.budget.images_per_class
    labels = task.objective.relabel(torch.arange(classes, device=run.device).repeat_interleave(n))
    images = shared.initial_images(task, start, run.generator).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=outer_lr)
    running_norm = torch.zeros((), device=run.device)
    shape = _shape(task, per_class)
    way, _ = shared.fitting_memory(task, 1, shape, window, real_batch, WAYS_BACK[memory], MOMENTS)
    shared.report_engine(task, run, 1, shape, way)

    for _ in run.loop(outer_steps, dict(images=images, optimizer=optimizer, running_norm=running_norm)):
        network = task.networks.sample(1)
        real = shared.RealLoss(task, seen(task.train.minibatch(real_batch, run.generator), augment, run.generator))
        end = int(torch.randint(window, inner_steps + 1, (), generator=run.generator))
        rows = shared.draw_rows(classes, n, per_class, end, run.generator)
        views = shared.draw_views(augment, rows, run.generator)
        gradient = window_gradient(
            module, network, images.detach(), labels, inner_lr, rows, window, real.outer, views,
            memory=way, inner_loss=task.objective.inner_loss,
        )  # fmt: skip
        images.grad, norm = gradient.inputs, torch.linalg.vector_norm(gradient.inputs)
        if running_clip:
            shared.clip_by_running_norm(images.grad, running_norm, running_clip)
        optimizer.step()
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **real.shown())

    return shared.flat_set(task, images.detach())


def _check(task: Task, inner_steps: int, window: int, augment: str) -> None:
    """Raise `UsageError` for a window that is longer than the training, `Unsupported` for examples without pixels."""
    if window > inner_steps:
        raise UsageError(
            f"a window of {window} steps does not fit into {inner_steps} inner steps.",
            f"Write --set window={inner_steps} or less, or --set inner_steps={window} or more.",
        )
    refuse(augment, task.info)

"""Soft-label dataset distillation (Sucholutsky and Schonlau 2021, arXiv 1910.02551)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import BornLater, DistilledSet, Plan, RecipeRequest, Run, Task, Unsupported, UsageError
from ddbench.networks import Loss
from ddbench.unroll import MEMORIES
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.shared import Count, Decay, InnerRate, Networks, Positive, RealBatch
from ddbench_unrolled_gd.unrolled_gd import learn


def image_count(images: int | None, classes: int, images_per_class: int) -> int:
    """Return the number of images in all. Raises `UsageError` where it is above the budget."""
    most = classes * images_per_class
    if images is not None and images > most:
        raise UsageError(
            f"{images} images are more than the budget of {images_per_class} for each of {classes} classes.",
            f"Write --set images={most} or less, or raise --ipc.",
        )
    return images or most


def initial_labels(
    start: str, steps: int, images: int, classes: int, generator: torch.Generator
) -> Float[Tensor, "steps n classes"]:
    """Return the labels to start from, as many as there are `images`.

    `one_hot` goes through the classes in turn, so that fewer images than classes have the first ones (as in the
    authors' code); `random` draws normal numbers.
    """
    shape = (steps, images // steps)
    if start == "random":
        return torch.randn(*shape, classes, generator=generator)
    return torch.eye(classes)[torch.arange(images) % classes].view(*shape, classes)


def takes_soft_labels(loss: Loss, classes: int) -> bool:
    """Return True where `loss(logits, labels)` takes soft labels and has a gradient by them."""
    logits, labels = torch.zeros(2, classes), torch.full((2, classes), 1 / classes, requires_grad=True)
    try:
        [gradient] = torch.autograd.grad(loss(logits, labels), labels, allow_unused=True)
    except Exception:  # losses of others may raise anything for labels that they do not expect
        return False
    return gradient is not None


def _peak_memory(
    task: Task, *, images: int | None, networks: int, real_batch: int, **others: object
) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, and the way of going back."""
    budget = task.budget
    n = image_count(images, len(task.info.classes), budget.images_per_class) // budget.steps
    count, shape = task.networks.sample(networks).count, (budget.steps, max(1, n), *task.info.sample_shape)
    way, peak = shared.fitting_memory(task, count, shape, budget.total_steps, real_batch, MEMORIES)
    return peak, f"memory={way.name}"


def _supports(plan: Plan) -> str | None:
    """Return why the images cannot be spread over the steps. Raises `UsageError` for more images than the budget."""
    settings, asked = plan.settings, plan.settings.method.options["images"]
    count = image_count(asked, len(plan.dataset.facts["classes"]), settings.images_per_class)
    if count % settings.steps == 0:
        return None
    return f"soft_label_dd spreads {count} images evenly over the steps: {settings.steps} does not divide it."


PUBLISHED = {"mnist": (20_650, 0.02), "cifar10": (17_150, 0.001)}
"""Updates of 350 epochs, and the initial rate of inner steps, of the datasets of images in the paper."""


def published(request: RecipeRequest) -> Mapping[str, Any]:
    """Sucholutsky and Schonlau 2021, README of the authors' code."""
    if request.dataset not in PUBLISHED:
        return {}
    outer_steps, inner_lr = PUBLISHED[request.dataset]
    shared_settings = dict(outer_lr=0.01, schedule="step", networks=4, real_batch=1024, clip=0.0)
    return {"outer_steps": outer_steps, "inner_lr": inner_lr, **shared_settings}


@ddbench.method(peak_memory=_peak_memory, supports=_supports, recipe=published)
def soft_label_dd(
    task: Task,
    run: Run,
    *,
    images: Annotated[
        int | None, Field(ge=1, description="images in all, also fewer than classes; None for those of the budget")
    ] = None,
    labels: Annotated[
        Literal["one_hot", "random"], Field(description="labels start as class numbers, or as normal noise")
    ] = "one_hot",
    outer_steps: Annotated[Count, Field(description="updates of images, labels and rates")] = 600,
    outer_lr: Annotated[Positive, Field(description="Adam's rate for images, labels and raw rates")] = 0.05,
    schedule: Decay = "cosine",
    inner_lr: InnerRate = 0.02,
    networks: Networks = 2,
    real_batch: RealBatch = 512,
    clip: Annotated[
        float, Field(ge=0, description="bound on the norm of the gradient by images, by labels and by rates; 0: none")
    ] = 1.0,
    running_clip: Annotated[
        float,
        Field(ge=0, description="bound each of these gradients by this multiple of its running norm; 0: none"),
        BornLater(),
    ] = 0.0,
) -> DistilledSet:
    """Learn images, soft labels and rates together, by differentiating through training.

    As unrolled_gd, and the labels are learned too. A label is a vector y of any numbers, for the inner loss
    -sum_k y_k log p_k, so one image can teach several classes, and a set may have fewer images than classes:
    --ipc 1 --set images=5 makes five images for ten classes.

    MNIST and CIFAR-10 have the settings of the authors' code, whose 350 epochs are counted in updates; defaults are
    those of unrolled_gd. A small setting, which took 26 seconds of processor time with companions on digits with the
    network mlp: --ipc 1 --set images=5 --set outer_steps=150 --set inner_lr=0.1 --set real_batch=256. Its five images
    reached 47 %, ten random ones 51 %.
    """
    shared.check_objective(task, "soft_label_dd")
    classes, budget = len(task.info.classes), task.budget
    if not takes_soft_labels(task.objective.inner_loss, classes):
        raise Unsupported(
            "soft_label_dd learns labels, but networks of this objective train on class numbers only.",
            "Take unrolled_gd, which keeps labels, or another --objective.",
        )
    count = image_count(images, classes, budget.images_per_class)
    noise = torch.randn(budget.steps, count // budget.steps, *task.info.sample_shape, generator=run.generator)
    start = initial_labels(labels, budget.steps, count, classes, run.generator)
    return learn(
        task,
        run,
        noise.to(run.device),
        start.to(run.device),
        outer_steps=outer_steps,
        outer_lr=outer_lr,
        schedule=schedule,
        inner_lr=inner_lr,
        networks=networks,
        real_batch=real_batch,
        clip=clip,
        running_clip=running_clip,
    )

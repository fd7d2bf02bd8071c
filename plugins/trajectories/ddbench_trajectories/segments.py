"""Segments of expert trajectories, and all that a student needs to follow one: batches, views, a way of going back.

Notation (Cazenavette et al. 2022, arXiv 2203.11932, Section 3). An expert has the weights `theta*_e` after epoch e of
training on the real data. A segment leads from `theta*_t` to `theta*_{t+M}`. A student starts at `theta*_t` and takes N
steps of gradient descent at the rate `alpha` on batches of the synthetic images:

    theta_{i+1} = theta_i - alpha g_i,    g_i = grad_theta CE(network(A_i(x[b_i]); theta_i), y[b_i]),    i = 0 .. N-1
    loss = |theta_N - theta*_{t+M}|^2 / |theta*_t - theta*_{t+M}|^2

`A_i` is the differentiable augmentation of step i, and `b_i` are the indices of its batch.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ddbench import DistilledSet, Plan, RecipeRequest, Run, State, Task, UsageError
from ddbench.augment import DSA_DIGITS, Augmentation, apply, draw, refuse
from ddbench.networks import Params, Trajectories
from ddbench.unroll import MEMORIES, Memory, MetaGradient, Transform, choose_engine, fastest_fitting

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

WAYS_BACK = {"auto": MEMORIES, **{memory.name: (memory,) for memory in MEMORIES}}
"""The ways of going back that each value of the option `memory` allows, the fastest first."""

FAR = 2.0
"""Loss above which a segment changes the students' rate alone, not the images.

At published settings students travel less far than experts, and DATM's authors leave out segments above 1.
"""
LARGEST_CHANGE = 0.1
"""Largest root mean square of the change that an update makes to the normalised pixels."""

DIGITS = ("mnist", "svhn", "usps", "digits")
"""Datasets whose images must not be mirrored."""


def supports(plan: Plan) -> str | None:
    """Return why there is no trajectory to match."""
    name = plan.method.name
    if plan.adaptation is not None:
        return f"{name} matches experts that start from random weights; run it without --target."
    if plan.settings.objective.name != "classification":
        return f"{name} matches experts that learn the real labels; run it with --objective classification."
    if len(plan.dataset.facts["classes"]) < 2:
        return f"{name} needs two classes or more: with a single one, experts have nothing to learn."
    return None


def augmentation_of(request: RecipeRequest) -> dict[str, object]:
    """Return the option `augment` of digits, without flip (README of Zhao and Bilen 2021); {} for other images.

    What is no image is not augmented.
    """
    if request.modality != "image":
        return {"augment": ""}
    return {"augment": DSA_DIGITS} if request.dataset in DIGITS else {}


def open_experts(
    task: Task, *, experts: int, expert_epochs: int, expert_lr: float, augment: str, span: int, **others: object
) -> Trajectories:
    """Return the experts of a run; this is what the methods declare as `needs`.

    Raises `UsageError` for a segment that is longer than the training of an expert, `Unsupported` where the examples
    are not images and are to be augmented.
    """
    if span > expert_epochs:
        raise UsageError(
            f"a segment of {span} epochs does not fit into {expert_epochs} epochs of an expert.",
            f"Write --set span={expert_epochs} or less, or train experts longer by --set expert_epochs={span}.",
        )
    refuse(augment, task.info)
    return task.experts(experts, epochs=expert_epochs, lr=expert_lr, augment=augment)


def draw_segment(
    trained: Trajectories, first: int, end: int, span: int, generator: torch.Generator
) -> tuple[State, Params]:
    """Return `theta*_t` and `theta*_{t+M}` of a random expert, with t from `first` to `end - 1` and M = `span`.

    Segments end with the training of the expert, so t may be bounded further; a smoke run has few epochs.
    """
    span = min(span, trained.epochs)
    end = max(1, min(end, trained.epochs - span + 1))
    expert = int(torch.randint(len(trained), (), generator=generator))
    epoch = int(torch.randint(min(first, end - 1), end, (), generator=generator))
    return trained.start(expert, epoch), trained.start(expert, epoch + span).params


def draw_batches(images: int, batch: int | None, steps: int, generator: torch.Generator) -> Int[Tensor, "N b"]:
    """Return the indices of each step's batch, in the published order; -1 leaves a place empty.

    A permutation of the images is cut into batches, and these are taken from the end, so that a shorter one comes
    first. The next permutation follows when none is left. Without `batch`, each step takes all images.
    """
    size = min(batch or images, images)
    rows: list[Tensor] = []
    while len(rows) < steps:
        rows += reversed(torch.split(torch.randperm(images, generator=generator), size))
    return torch.stack([F.pad(row, (0, size - len(row)), value=-1) for row in rows[:steps]])


def draw_views(strategy: str, indices: Int[Tensor, "N b"], generator: torch.Generator) -> Transform | None:
    """Return the augmentation `A_i` of each step: one random operation a batch, with an amount for each image.

    So the published code does. The draws are made beforehand, because the reverse pass repeats the steps.
    """
    if not strategy:
        return None
    views: list[Augmentation] = [draw(strategy, generator, images=int((row >= 0).sum())) for row in indices]

    def augmented(images: Float[Tensor, "b c h w"], step: int) -> Float[Tensor, "b c h w"]:
        return apply(images, views[step])

    return augmented


def fitting_memory(task: Task, batch: int | None, inner_steps: int, memory: str) -> tuple[Memory, int]:
    """Return the way of going back and its predicted peak in bytes."""
    images = task.budget.images_per_class * len(task.info.classes)
    shape = (1, min(batch or images, images), *task.info.sample_shape)
    device = task.train.inputs.device
    return fastest_fitting(task.networks.module, 1, shape, inner_steps, 0, device, among=WAYS_BACK[memory])


def peak_memory(task: Task, *, batch: int | None, inner_steps: int, memory: str, **others: object) -> tuple[int, str]:
    """Return the bytes that a method needs at its peak, and the way of going back."""
    way, peak = fitting_memory(task, batch, inner_steps, memory)
    return peak, f"memory={way.name}"


Follow = Callable[[State, Params, Tensor, Tensor, Tensor, Tensor, Transform | None], MetaGradient]
"""`(start, target, images, labels, rate, indices, views)` to the loss of a segment and its gradients."""


def learn_images(
    task: Task,
    run: Run,
    trained: Trajectories,
    follow: Follow,
    *,
    outer_steps: int,
    inner_steps: int,
    span: int,
    max_start: int,
    image_lr: float,
    rate_lr: float,
    rate: float,
    batch: int | None,
    augment: str,
) -> DistilledSet:
    """Return images and rate after so many updates along the gradients that `follow` gives (Algorithm 1).

    Labels are class numbers, and images start as real ones. Both are updated by SGD with momentum 0.5.
    """
    real = task.train.random_subset(task.budget.images_per_class, run.generator)
    images, labels = real.inputs.clone().requires_grad_(), real.labels
    alpha = torch.tensor(rate, device=run.device, requires_grad=True)
    groups = [{"params": [images], "lr": image_lr}, {"params": [alpha], "lr": rate_lr}]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    followed = torch.zeros(2, dtype=torch.int64)
    for _ in run.loop(outer_steps, dict(images=images, alpha=alpha, optimizer=optimizer, followed=followed)):
        start, target = draw_segment(trained, 0, max_start, span, run.generator)
        indices = draw_batches(len(images), batch, inner_steps, run.generator)
        views = draw_views(augment, indices, run.generator)
        gradient = follow(start, target, images.detach(), labels, alpha.detach(), indices, views)
        loss = gradient.loss.mean()
        images.grad, alpha.grad = gradient.inputs if loss <= FAR else None, gradient.lrs
        update(optimizer, images, alpha)
        followed += torch.tensor([int(loss <= FAR), 1])
        run.log(loss=loss, rate=alpha.detach())
    report_left_out(run, followed, FAR)
    return DistilledSet(images.detach()[None], labels[None], alpha.detach())


def update(optimizer: torch.optim.Optimizer, images: Tensor, alpha: Tensor) -> None:
    """Take a step of the optimiser, bounded: the rate by a factor of two, the images by `LARGEST_CHANGE`.

    The bounds are not published. Where experts move little, as on few examples, steps are many times larger than in
    the published settings: without bounds the rate turns negative, and the images grow for ever.
    """
    images_before, alpha_before = images.detach().clone(), alpha.detach().clone()
    optimizer.step()
    with torch.no_grad():
        change = images - images_before
        images.copy_(images_before + change * (LARGEST_CHANGE / change.square().mean().sqrt()).clamp(max=1))
        alpha.clamp_(alpha_before / 2, alpha_before * 2)


def report_left_out(run: Run, followed: Int[Tensor, "2"], largest: float) -> None:
    """Say so where most segments changed no image: `followed` counts those that did, and all."""
    some, all_ = followed.tolist()
    if 2 * some < all_:
        run.say(
            f"The images changed in {some} of {all_} updates: in others the loss was above {largest:g}, as students "
            "moved too far. Lower --set rate, or let experts move further by --set span."
        )


def report_engine(task: Task, run: Run, batch: int | None, way: Memory) -> None:
    """Print how the steps of students are carried out."""
    images = task.budget.images_per_class * len(task.info.classes)
    shape = (1, min(batch or images, images), *task.info.sample_shape)
    run.say(f"Engine   {choose_engine(task.networks.module, torch.empty(shape, device='meta'), 1)}, memory={way.name}")

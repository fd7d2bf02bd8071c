"""Matching training trajectories, MTT (Cazenavette, Wang, Torralba, Efros and Zhu 2022, arXiv 2203.11932)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, RecipeRequest, Run, State, Task
from ddbench.augment import DSA
from ddbench.networks import Loss, Params, cross_entropy
from ddbench.unroll import SGD, Memory, MetaGradient, Recompute, Transform, choose_engine, distance_to, meta_gradient
from ddbench_trajectories import segments
from ddbench_trajectories.segments import Count, Positive, Way


def matching_gradient(
    network: nn.Module,
    start: State,
    target: Params,
    images: Float[Tensor, "n *sample"],
    labels: Shaped[Tensor, "n *classes"],
    rate: Float[Tensor, ""],
    indices: Int[Tensor, "N b"],
    transform: Transform | None = None,
    *,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    inner_loss: Loss = cross_entropy,
) -> MetaGradient:
    """Return the loss of a segment and its exact gradient by images, soft labels and rate.

    The loss is |theta_N - target|^2 / |start - target|^2 for a student that takes N steps (equation 2; see `segments`
    for the notation). `inputs`, `labels` and `lrs` of the result are the gradients. `memory` changes no result.
    """
    return meta_gradient(
        network,
        start,
        images,
        labels,
        SGD(rate),
        distance_to(target, start),
        indices=indices,
        transform=transform,
        memory=memory,
        inner_loss=inner_loss,
    )


def published(request: RecipeRequest) -> Mapping[str, Any]:
    """dc_benchmark (Cui et al. 2022), for CIFAR-10 at 1, 10, 50 images; DSA's README for digits, which are not flipped."""
    images = request.budget.images_per_class
    if images < 10:
        settings = dict(inner_steps=50, span=2, max_start=2, image_lr=100.0, rate_lr=1e-7, rate=0.01)
    elif images < 50:
        settings = dict(inner_steps=30, span=2, max_start=20, image_lr=100.0, rate_lr=1e-5, rate=0.001)
    else:
        settings = dict(inner_steps=30, span=2, max_start=40, image_lr=1000.0, rate_lr=1e-5, rate=0.001)
    return settings | segments.augmentation_of(request)


@ddbench.method(
    needs=segments.open_experts, recipe=published, supports=segments.supports, peak_memory=segments.peak_memory
)
def mtt(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of images and rate")] = 5000,
    inner_steps: Annotated[Count, Field(description="steps N of a student")] = 20,
    span: Annotated[Count, Field(description="epochs M of an expert that a student is to follow")] = 3,
    max_start: Annotated[Count, Field(description="segments start before this epoch of an expert")] = 25,
    image_lr: Annotated[Positive, Field(description="rate of SGD on the images")] = 1000.0,
    rate_lr: Annotated[float, Field(ge=0, description="rate of SGD on the students' rate")] = 1e-5,
    rate: Annotated[Positive, Field(description="initial rate of the students")] = 0.01,
    batch: Annotated[int | None, Field(ge=1, description="images in a step of a student; None for all")] = None,
    augment: Annotated[
        str, Field(description="differentiable augmentation of experts and students; empty for none")
    ] = DSA,
    experts: Annotated[Count, Field(description="networks trained on the real data")] = 100,
    expert_epochs: Annotated[Count, Field(description="epochs of an expert")] = 50,
    expert_lr: Annotated[Positive, Field(description="rate of the experts")] = 0.01,
    memory: Annotated[
        Way, Field(description="way of going back, at equal results; auto takes the fastest that fits into memory")
    ] = "auto",
) -> DistilledSet:
    """Learn images on which a student gets from an epoch of an expert to a later one (Cazenavette et al. 2022).

    Each update draws an expert, one of its first epochs t, and a student that starts from its weights and takes N steps
    on the images, each under an augmentation of its own. The squared distance of the student to the expert's weights
    M epochs later, as a share of what the expert itself moved, is differentiated exactly through all N steps, by the
    pixels and by the students' rate, which is learned too (Algorithm 1). Labels are class numbers; images start as real
    ones. The set brings its rate: score it under train-dsa-rate/v1, as published.

    Published figures of 1 and 10 images use ZCA whitening, which ddbench does not have. They are the best of many
    evaluations on test data; ddbench takes the last images. A useful picture in minutes on two cores:
    --set experts=5 --set expert_epochs=10 --set max_start=5 --set inner_steps=10 --set outer_steps=300.
    """
    trained = segments.open_experts(
        task, experts=experts, expert_epochs=expert_epochs, expert_lr=expert_lr, augment=augment, span=span
    )
    real = task.train.random_subset(task.budget.images_per_class, run.generator)
    images, labels = real.inputs.clone().requires_grad_(), real.labels
    alpha = torch.tensor(rate, device=run.device, requires_grad=True)
    optimizer = torch.optim.SGD(
        [{"params": [images], "lr": image_lr}, {"params": [alpha], "lr": rate_lr}], momentum=0.5
    )
    way, _ = segments.fitting_memory(task, batch, inner_steps, memory)
    engine = choose_engine(task.networks.module, images.detach()[None, :batch], 1, task.objective.inner_loss)
    run.say(f"Engine   {engine}, memory={way.name}")

    for _ in run.loop(outer_steps, dict(images=images, alpha=alpha, optimizer=optimizer)):
        start, target = segments.draw_segment(trained, 0, max_start, span, run.generator)
        indices = segments.draw_batches(len(images), batch, inner_steps, run.generator)
        views = segments.draw_views(augment, indices, run.generator)
        gradient = matching_gradient(
            task.networks.module,
            start,
            target,
            images.detach(),
            labels,
            alpha.detach(),
            indices,
            views,
            memory=way,
            inner_loss=task.objective.inner_loss,
        )
        images.grad, alpha.grad = gradient.inputs, gradient.lrs
        optimizer.step()
        # A rate that is not positive trains nothing: the run goes back as it does for a loss that is not finite.
        run.log(loss=gradient.loss.mean(), rate=alpha if alpha > 0 else math.nan)

    return DistilledSet(images.detach()[None], labels[None], alpha.detach())

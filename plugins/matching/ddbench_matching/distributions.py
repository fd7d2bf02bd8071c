"""Matching distributions: DM (Zhao and Bilen 2023, arXiv 2110.04181)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, RecipeRequest, Run, State, Task, augment
from ddbench.augment import DSA
from ddbench.networks import features
from ddbench_matching import classwise
from ddbench_matching.classwise import Count, Positive


def matching_loss(
    network: nn.Module, state: State, real: Sequence[Tensor], synthetic: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return sum_c |mean f(real[c]) - mean f(synthetic[c])|^2, differentiable in the synthetic images (equation 4).

    `real` and `synthetic` hold images `[n, *sample]` of each class; f are the features of the network at `state`. Each
    side goes through it as one batch, which batch normalisation takes its statistics from.
    """
    with torch.no_grad():
        targets = _class_means(network, state, real)
    return (_class_means(network, state, synthetic) - targets).square().sum()


def _class_means(network: nn.Module, state: State, classes: Sequence[Tensor]) -> Float[Tensor, "classes d"]:
    outputs = features(network, state, torch.cat(list(classes)))
    return torch.stack([part.mean(0) for part in torch.split(outputs, [len(images) for images in classes])])


def published(request: RecipeRequest) -> dict[str, object]:
    """Zhao and Bilen 2023, the authors' code by dataset and images per class; no augmentation of what is no image."""
    if request.modality != "image":
        return {"augmentation": ""}
    rate = {"image_rate": 10.0} if request.budget.images_per_class >= 100 else {}
    return {**rate, "augmentation": classwise.strategy_for(request)}


@ddbench.method(recipe=published)
def dm(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the images, each with a random network")] = 20_000,
    real_batch: Annotated[Count, Field(description="real images of each class in an update")] = 256,
    image_rate: Annotated[Positive, Field(description="rate of SGD, momentum 0.5, on the images")] = 1.0,
    start: Annotated[
        Literal["noise", "real"], Field(description="images start as normal noise or as real images")
    ] = "real",
    augmentation: Annotated[
        str, Field(description="operations to draw one of, joined by underscores; empty for none")
    ] = DSA,
) -> DistilledSet:
    """Match the mean features of each class in random networks, without training any (DM, Zhao and Bilen 2023).

    Each update draws a network and, for each class, real images and one augmentation for these and the synthetic ones
    (Algorithm 1). Sets are scored with the same augmentation: `--protocol train-dsa/v1`.
    A small setting, which took 7 minutes with its scoring on one core at one image per class of CIFAR-10 and
    width 32: `--set outer_steps=200 --set real_batch=64`.
    """
    classwise.check(task, augmentation)
    images = classwise.initial_images(task, start, run.generator).requires_grad_()
    optimizer = torch.optim.SGD([images], lr=image_rate, momentum=0.5)
    for _ in run.loop(outer_steps, dict(images=images, optimizer=optimizer)):
        real, synthetic = [], []
        for label, class_images in enumerate(images):
            params = augment.draw(augmentation, run.generator) if augmentation else None
            batch = task.train.minibatch(real_batch, run.generator, label)
            real.append(classwise.view(batch.inputs, params))
            synthetic.append(classwise.view(class_images, params))
        loss = matching_loss(task.networks.module, task.networks.sample(1).network(0), real, synthetic)
        [images.grad] = torch.autograd.grad(loss, images)
        optimizer.step()
        run.log(loss=loss)
    return classwise.distilled(task, images)

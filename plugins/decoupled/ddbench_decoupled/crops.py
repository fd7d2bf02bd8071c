"""Crops of real images chosen by a teacher: RDED (Sun et al. 2024, arXiv 2312.03526)."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import ddbench
from ddbench import DistilledSet, ExampleSet, Run, State, Task, UsageError
from ddbench.augment import crop, draw_windows
from ddbench.decoders import join_tiles
from ddbench.networks import forward
from ddbench_decoupled.teacher import (
    SMALLEST,
    TEACHER_STEPS,
    Count,
    Labels,
    Steps,
    TeacherNetwork,
    Temperature,
    ViewEpochs,
    Weights,
    check_images,
    labelled,
    supports,
    teacher_of,
)

Crops = Float[Tensor, "n crops channels h w"]
IMAGES_AT_A_TIME = 50
"""Images whose crops are in memory together."""
LARGEST_SMALL = 64
"""Side of the largest images that hold one crop each (Sun et al. 2024)."""


def scores(
    module: nn.Module, state: State, crops: Crops, labels: Int[Tensor, " n"], size: tuple[int, int]
) -> Float[Tensor, "n crops"]:
    """Return the cross-entropy of the teacher on each crop, in the middle of zeros of `size` (height, width)."""
    height, width = (total - part for total, part in zip(size, crops.shape[3:], strict=True))
    margins = (width // 2, width - width // 2, height // 2, height - height // 2)
    logits = forward(module, state, F.pad(crops.flatten(0, 1), margins))
    losses = F.cross_entropy(logits, labels.repeat_interleave(crops.shape[1]), reduction="none")
    return losses.view(crops.shape[:2])


def select(scores: Float[Tensor, "n crops"], keep: int) -> tuple[Int[Tensor, " keep"], Int[Tensor, " keep"]]:
    """Return the numbers of `keep` images and their crops: the best of each image, lowest score first."""
    best, crop_numbers = scores.min(1)
    images = torch.argsort(best, stable=True)[:keep]
    return images, crop_numbers[images]


def needs(task: Task, **options: object) -> object:
    """Ask for the teacher."""
    return teacher_of(task, **options)  # type: ignore[arg-type]


def labels_of(task: Task, distilled: DistilledSet, generator: torch.Generator, **options: object) -> DistilledSet:
    """Return a set with the labels that the options ask for."""
    chosen = {name: options[name] for name in ("labels", "temperature", "view_epochs")}
    return labelled(distilled, [teacher_of(task, **options)], generator=generator, **chosen)  # type: ignore[arg-type]


@ddbench.method(supports=supports, needs=needs, labels=labels_of)
def rded(
    task: Task,
    run: Run,
    *,
    factor: Annotated[
        Count | None, Field(description="crops along each side of an image; None for 1 up to 64 pixels a side, else 2")
    ] = None,
    candidates: Annotated[Count, Field(description="real images of each class to crop")] = 300,
    crops: Annotated[Count, Field(description="random crops of each of them")] = 5,
    teacher: TeacherNetwork = "",
    weights: Weights = "",
    teacher_steps: Steps = TEACHER_STEPS,
    labels: Labels = "class",
    temperature: Temperature = 1.0,
    view_epochs: ViewEpochs = 300,
) -> DistilledSet:
    """Keep the crops of real images that a teacher finds easiest, several in one image (RDED, Sun et al. 2024).

    A crop is a square of 8 to 100 % of the area. Of each image the crop of least cross-entropy is kept, of each class
    the images with the least. Published numbers have labels by the teacher: `--protocol train-imagenet/v1` asks
    teachers while students train; `--set labels=views --protocol train-views/v1` stores the answers in the set.
    """
    check_images(task, "rded")
    count, (height, width) = task.budget.images_per_class, task.info.sample_shape[1:]
    if factor is None:  # as in the authors' code
        factor = 1 if height <= LARGEST_SMALL else 2
    if factor > min(height, width):
        raise UsageError(
            f"{factor} x {factor} crops do not fit into images of {height}x{width} pixels.", "Lower --set factor."
        )
    trained = teacher_of(task, teacher=teacher, weights=weights, teacher_steps=teacher_steps)
    keep = count * factor**2
    size = (-(-height // factor), -(-width // factor))
    images: list[Tensor] = []
    for label in range(len(task.info.classes)):
        members = task.train.of_class(label, keep)
        order = torch.randperm(len(members), generator=run.generator)[: max(candidates, keep)].to(members.device)
        best, losses = [], []
        for part in torch.split(members[order], IMAGES_AT_A_TIME):
            drawn = random_crops(task.train.inputs[part], crops, size, run.generator)
            loss, number = scores(trained.module, trained[0], drawn, task.train.labels[part], (height, width)).min(1)
            best.append(drawn[torch.arange(len(part), device=number.device), number])
            losses.append(loss)
        chosen, _ = select(torch.cat(losses)[:, None], keep)
        images.append(join_tiles(torch.cat(best)[chosen], factor, (height, width)))
    numbers = torch.arange(len(images), device=run.device).repeat_interleave(count)
    inputs, classes = ExampleSet(torch.cat(images), numbers, task.info).in_steps(task.budget.steps)
    result = DistilledSet(inputs, classes)
    return labelled(result, [trained], labels, run.generator, temperature=temperature, view_epochs=view_epochs)


def random_crops(
    images: Float[Tensor, "n channels height width"], crops: int, size: tuple[int, int], generator: torch.Generator
) -> Crops:
    """Return `crops` random squares of each image, resized to `size` with antialiasing."""
    repeated = images.repeat_interleave(crops, 0)
    drawn = crop(repeated, draw_windows(len(repeated), SMALLEST, generator, ratio=1.0))
    if tuple(drawn.shape[2:]) != size:
        drawn = F.interpolate(drawn, size, mode="bilinear", antialias=True)
    return drawn.view(len(images), crops, images.shape[1], *size)

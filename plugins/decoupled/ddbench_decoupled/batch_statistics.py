"""Images that match the statistics in batch normalisation: SRe2L (Yin, Xing and Shen 2023, arXiv 2306.13092)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import ddbench
from ddbench import DatasetInfo, DistilledSet, ExampleSet, Run, State, Task, Unsupported
from ddbench.augment import crop, draw_windows
from ddbench.networks import evaluation_mode
from ddbench_decoupled.crops import labels_of, needs
from ddbench_decoupled.teacher import (
    SMALLEST,
    TEACHER_STEPS,
    Count,
    Labels,
    Positive,
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

Images = Float[Tensor, "n channels height width"]
JITTER = 7
"""Images are moved by up to this part of their side: 32 pixels of 224."""


@dataclass(frozen=True)
class Terms:
    """The parts of the loss of a batch.

    Attributes:
        cross_entropy: that of the teacher with the classes.
        layers: `|m - mean| + |v - var|` of each batch normalisation, 2-norms over channels; m and v are mean and biased
            variance of its input over batch and pixels, mean and var its running statistics.
        variation: the sum of the 2-norms of the differences of neighbours, in four directions.
        length: the mean over images of their 2-norm.
    """

    cross_entropy: Float[Tensor, ""]
    layers: Sequence[Float[Tensor, ""]]
    variation: Float[Tensor, ""]
    length: Float[Tensor, ""]

    def statistics(self, first: float) -> Float[Tensor, ""]:
        """Return the sum over layers, the first of them weighed by `first`."""
        head, *rest = self.layers
        return first * head + sum(rest, torch.zeros_like(head))


def terms(module: nn.Module, state: State, images: Images, labels: Int[Tensor, " n"]) -> Terms:
    """Return the parts of the loss, differentiable by the images (equations 6 to 8)."""
    layers: list[Tensor] = []

    def compare(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
        axes = [axis for axis in range(arguments[0].dim()) if axis != 1]
        mean, var = arguments[0].mean(axes), arguments[0].var(axes, unbiased=False)
        layers.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    handles = [layer.register_forward_pre_hook(compare) for layer in module.modules() if has_statistics(layer)]
    try:
        with evaluation_mode(module):
            logits = functional_call(module, {**state.params, **state.buffers}, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return Terms(F.cross_entropy(logits, labels), layers, variation(images), images.flatten(1).norm(dim=1).mean())


def has_statistics(layer: nn.Module) -> bool:
    """Return True for batch normalisation that keeps running statistics."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def variation(images: Images) -> Float[Tensor, ""]:
    """Return the total variation: 2-norms of all horizontal, vertical and both diagonal differences, added."""
    right, down = images[:, :, :, :-1] - images[:, :, :, 1:], images[:, :, :-1] - images[:, :, 1:]
    falling = images[:, :, :-1, :-1] - images[:, :, 1:, 1:]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    differences = (right, down, falling, rising)
    return torch.stack([torch.linalg.vector_norm(part) for part in differences]).sum()


def clipped(images: Images, info: DatasetInfo) -> Images:
    """Return normalised images without what lies outside the range of pixels."""
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    return torch.maximum(torch.minimum(images, (1 - mean) / std), -mean / std)


def moved(images: Images, mirror: bool, generator: torch.Generator) -> Images:
    """Return a random window of the batch, mirrored or not, moved in a circle: one draw for all images."""
    view = crop(images, draw_windows(1, SMALLEST, generator))
    if mirror and float(torch.rand((), generator=generator)) < 0.5:
        view = view.flip(3)
    shifts = [int(torch.randint(side // JITTER + 1, (), generator=generator)) for side in images.shape[2:]]
    return torch.roll(view, shifts, (2, 3))


@ddbench.method(supports=supports, needs=needs, labels=labels_of)
def sre2l(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of each batch of images")] = 1000,
    batch: Annotated[Count, Field(description="images that are matched together, one of each class in turn")] = 100,
    rate: Annotated[Positive, Field(description="rate of Adam on the images; falls to 0 along a cosine")] = 0.25,
    statistics: Annotated[float, Field(ge=0, description="weight of the statistics in the loss")] = 0.01,
    first: Annotated[float, Field(ge=0, description="weight of the first layer among them")] = 10.0,
    smoothness: Annotated[float, Field(ge=0, description="weight of the total variation")] = 0.0,
    length: Annotated[float, Field(ge=0, description="weight of the mean length of an image")] = 0.0,
    teacher: TeacherNetwork = "",
    weights: Weights = "",
    teacher_steps: Steps = TEACHER_STEPS,
    labels: Labels = "class",
    temperature: Temperature = 1.0,
    view_epochs: ViewEpochs = 300,
) -> DistilledSet:
    """Recover images from a teacher with batch normalisation: its classes, and its running statistics (SRe2L).

    Yin, Xing and Shen 2023. Images start as noise and see no real image. Each update takes a random window of them,
    mirrored or not (grey images are not), and moves it. Published numbers have labels by the teacher, as with `rded`.
    The teacher needs batch normalisation, such as `--set network.norm=batch` with `convnet`, or `resnet18`.
    """
    check_images(task, "sre2l")
    trained = teacher_of(task, teacher=teacher, weights=weights, teacher_steps=teacher_steps)
    module, state = trained.module, trained[0]
    if not any(has_statistics(layer) for layer in module.modules()):
        raise Unsupported(
            "sre2l matches the running statistics of batch normalisation, and the teacher has none: take convnet with "
            "--set network.norm=batch, or --network resnet18, or name another teacher with --set method.teacher.",
        )
    classes, count = len(task.info.classes), task.budget.images_per_class
    # One image of each class in turn: each batch then holds all classes, as the statistics are of all classes.
    numbers = torch.arange(classes).repeat(count).to(run.device)
    noise = torch.randn(len(numbers), *task.info.sample_shape, generator=run.generator).to(run.device)
    parts = list(zip(torch.split(noise, batch), torch.split(numbers, batch), strict=True))
    made = []
    for start, part in parts:
        images = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([images], lr=rate, betas=(0.5, 0.9), eps=1e-8)
        for _ in run.loop(outer_steps, dict(images=images, optimizer=optimizer), share=1 / len(parts)):
            value = terms(module, state, moved(images, images.shape[1] > 1, run.generator), part)
            matched = value.statistics(first)
            loss = value.cross_entropy + statistics * matched + smoothness * value.variation + length * value.length
            [images.grad] = torch.autograd.grad(loss, [images])
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * run.share_done))
            optimizer.step()
            with torch.no_grad():
                images.copy_(clipped(images, task.info))
            run.log(loss=loss, cross_entropy=value.cross_entropy, statistics=matched)
        made.append(clipped(images.detach(), task.info))
    inputs, targets = ExampleSet(torch.cat(made), numbers, task.info).in_steps(task.budget.steps)
    result = DistilledSet(inputs, targets)
    return labelled(result, [trained], labels, run.generator, temperature=temperature, view_epochs=view_epochs)

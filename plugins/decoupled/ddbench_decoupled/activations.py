"""Images from statistics of activations, without real images (Lopes, Fenu and Starner 2017, arXiv 1710.07535)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

import ddbench
from ddbench import DistilledSet, ExampleSet, Run, Task, Unsupported
from ddbench.networks import TrainedNetworks, evaluation_mode
from ddbench_decoupled.crops import labels_of, needs
from ddbench_decoupled.teacher import (
    TEACHER_STEPS,
    Count,
    Labels,
    Positive,
    Steps,
    TeacherNetwork,
    Temperature,
    ViewEpochs,
    Weights,
    labelled,
    supports,
    teacher_of,
)

START_MEAN, START_STD = 0.15, 0.1
"""Mean and standard deviation of the pixels that images start from."""
READ_AT_A_TIME = 500

Activations = list[Tensor]
"""Of each layer `[n, units]`."""


def activations(trained: TrainedNetworks, images: Float[Tensor, " n *sample"]) -> Activations:
    """Return the outputs of all linear and convolutional layers before any activation function, in order of calls."""
    outputs: list[Tensor] = []

    def remember(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output.flatten(1))

    layers = [part for part in trained.module.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(remember) for layer in layers]
    try:
        with evaluation_mode(trained.module):
            functional_call(trained.module, {**trained[0].params, **trained[0].buffers}, (images,))
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise Unsupported("the teacher has no linear or convolutional layer, whose activations could be recorded.")
    return outputs


@dataclass(frozen=True)
class Statistics:
    """A normal distribution of the activations of one layer for the images of one class.

    Attributes:
        mean: `[units]`.
        root: `[units, units]`, a square root of the covariance; or `[units]`, standard deviations.
    """

    mean: Float[Tensor, " units"]
    root: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n units"]:
        """Draw activations for `n` images."""
        noise = torch.randn(n, len(self.mean), generator=generator).to(self.mean)
        return self.mean + (noise * self.root if self.root.dim() == 1 else noise @ self.root.T)


def record(trained: TrainedNetworks, images: Callable[[], Sequence[Tensor]], top_only: bool) -> list[Statistics]:
    """Return the statistics of each layer over batches of images: the covariance of the top, variances below it.

    With `top_only` they are those of the last layer alone.
    """
    count, sums, squares, products = 0, dict[int, Tensor](), dict[int, Tensor](), None
    for part in images():
        with torch.no_grad():
            outputs = activations(trained, part)
        count += len(part)
        for number, values in enumerate(outputs):
            wide = values.double()
            sums[number] = sums.get(number, 0) + wide.sum(0)
            squares[number] = squares.get(number, 0) + wide.square().sum(0)
        top = outputs[-1].double()
        products = (0 if products is None else products) + top.T @ top
    assert products is not None
    layers = []
    for number, total in sums.items():
        mean = total / count
        if number < len(sums) - 1:
            if not top_only:
                layers.append(Statistics(mean.float(), (squares[number] / count - mean**2).clamp_min(0).sqrt().float()))
            continue
        covariance = products / count - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        layers.append(Statistics(mean.float(), (vectors * values.clamp_min(0).sqrt()).float()))
    return layers


def distance(outputs: Activations, targets: Activations) -> Float[Tensor, ""]:
    """Return the sum over images and layers of the mean over units of (relu(target) - relu(activation))^2.

    The last layer, which no relu follows, is compared as it is: where all logits are negative, relu passes no gradient.
    """
    *hidden, top = zip(targets, outputs[-len(targets) :], strict=True)
    differences = [target.relu() - output.relu() for target, output in hidden] + [top[0] - top[1]]
    return torch.stack([difference.square().mean(1).sum() for difference in differences]).sum()


@ddbench.method(supports=supports, needs=needs, labels=labels_of)
def activation_statistics(
    task: Task,
    run: Run,
    *,
    layers: Annotated[
        Literal["top_layer", "all_layers"], Field(description="layers whose drawn activations images must have")
    ] = "all_layers",
    outer_steps: Annotated[Count, Field(description="updates of the images")] = 1000,
    rate: Annotated[Positive, Field(description="rate of Adam on pixels in [0, 1]")] = 0.07,
    teacher: TeacherNetwork = "",
    weights: Weights = "",
    teacher_steps: Steps = TEACHER_STEPS,
    labels: Labels = "teacher",
    temperature: Temperature = 1.0,
    view_epochs: ViewEpochs = 300,
) -> DistilledSet:
    """Make images from statistics of a teacher's activations, for each class and layer (Lopes et al. 2017).

    Only the statistics are kept of the real data: for each class the mean activations of each layer, their variances,
    and the covariance of the last layer. Each image gets activations that are drawn from them, and is optimised from
    noise until the teacher has these. The teacher labels it then, as a student by distillation would learn it.
    """
    trained = teacher_of(task, teacher=teacher, weights=weights, teacher_steps=teacher_steps)
    count, classes = task.budget.images_per_class, len(task.info.classes)
    drawn: list[Activations] = []
    for label in range(classes):
        members = task.train.of_class(label, 2)

        def batches(members: Tensor = members) -> list[Tensor]:
            return [task.train.inputs[part] for part in torch.split(members, READ_AT_A_TIME)]

        known = record(trained, batches, layers == "top_layer")
        drawn.append([layer.draw(count, run.generator) for layer in known])
    targets = [torch.cat(layer) for layer in zip(*drawn, strict=True)]

    shape = (classes * count, *task.info.sample_shape)
    noise = torch.randn(shape, generator=run.generator)
    pixels = (START_MEAN + START_STD * noise).to(run.device).requires_grad_()
    axes = (-1, *[1] * (len(shape) - 2))
    mean, std = (torch.tensor(values, device=run.device).view(axes) for values in (task.info.mean, task.info.std))
    optimizer = torch.optim.Adam([pixels], lr=rate)
    for _ in run.loop(outer_steps, dict(pixels=pixels, optimizer=optimizer)):
        loss = distance(activations(trained, (pixels - mean) / std), targets)
        [pixels.grad] = torch.autograd.grad(loss, [pixels])
        optimizer.step()
        run.log(loss=loss / len(pixels))
    images = ((pixels - mean) / std).detach()
    numbers = torch.arange(classes, device=run.device).repeat_interleave(count)
    inputs, targets_of_set = ExampleSet(images, numbers, task.info).in_steps(task.budget.steps)
    result = DistilledSet(inputs, targets_of_set)
    return labelled(result, [trained], labels, run.generator, temperature=temperature, view_epochs=view_epochs)

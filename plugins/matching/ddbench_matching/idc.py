"""Gradient matching for images that store several tiles: IDC (Kim et al. 2022, arXiv 2205.14959)."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, RecipeRequest, Run, State, Task, Unsupported, UsageError, augment
from ddbench.decoders import join_tiles
from ddbench.networks import Loss, gradient
from ddbench_matching.classwise import Count, Images, Positive, copy_state, overwrite, view

MOMENTUM = 0.5
"""Momentum of the images."""
NETWORK_RATE, NETWORK_MOMENTUM, NETWORK_DECAY, NETWORK_BATCH = 0.01, 0.9, 5e-4, 64
"""SGD that networks are trained with on real images."""

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda difference: difference.square().sum(),
    "l1": lambda difference: difference.abs().sum(),
}


def published(request: RecipeRequest) -> dict[str, object]:
    """Kim et al. 2022, settings of the authors' code for each dataset, and those for speech for sounds."""
    if request.modality == "sound":
        return {"metric": "l1", "image_rate": 3e-3, "augmentation": "", "cutmix": 0.0}
    if request.dataset in ("mnist", "fashion_mnist"):
        return {"metric": "l1", "image_rate": 1e-4, "network_images": 500}
    if request.dataset in ("svhn", "cifar10"):
        images = 2000 if request.dataset == "cifar10" else 500
        return {"metric": "mse", "image_rate": 5e-3, "network_images": images}
    return {}


@ddbench.method(recipe=published)
def idc(
    task: Task,
    run: Run,
    *,
    factor: Annotated[
        int, Field(ge=1, description="tiles along each side of a stored image, of sounds along time; 1 is IDC-I")
    ] = 2,
    metric: Annotated[Literal["mse", "l1"], Field(description="squared or absolute distance of gradients")] = "mse",
    outer_steps: Annotated[Count, Field(description="updates of the images")] = 200_000,
    network_steps: Annotated[Count, Field(description="updates of the images before a new network is drawn")] = 100,
    image_rate: Annotated[Positive, Field(description="rate of the images' SGD, for pixels in [0, 1]")] = 5e-3,
    real_batch: Annotated[Count, Field(description="real images per class and update")] = 64,
    synthetic_batch: Annotated[Count, Field(description="most training images per class and update")] = 128,
    network_images: Annotated[
        int, Field(ge=0, description="real images that the network trains on after each update")
    ] = 2000,
    augmentation: Annotated[
        str, Field(description="operations that all run, joined by underscores; empty for none")
    ] = "color_crop_cutout",
    cutmix: Annotated[float, Field(ge=0, le=1, description="probability of CutMix when the network trains")] = 0.5,
) -> DistilledSet:
    """Match gradients of tiles and of real images, in networks that train on real images (IDC, Kim et al. 2022).

    A stored image holds `factor` x `factor` tiles; each is a training image once it is enlarged. For each class, an
    update follows the distance of two gradients of a network: of the loss on real images and on training images, under
    the same draw of augmentation. Then the network takes steps on real images, because its gradients would soon vanish
    on the few synthetic ones. Images start as mixtures of real ones.

    This follows the published code: gradients of convolution weights alone count, `metric` depends on the dataset, and
    images coast between updates (see `coasting`). Its students are scored with CutMix, which `train-dsa/v1` has not.
    The published settings, 2000 networks of 100 updates each, are meant for GPUs. A small setting, which distilled one
    image per class of MNIST in about 5 minutes on a busy core, is `outer_steps=200`, `network_steps=20`,
    `real_batch=32`, `network_images=128` and `network.width=32`.
    """
    check(task, factor)
    augment.refuse(augmentation, task.info)
    module, objective, classes = task.networks.module, task.objective, range(len(task.info.classes))
    assert objective.loss is not None
    pixels = torch.cat([mixed_tiles(task, label, factor, run.generator) for label in classes])
    rate, momentum = coasting(image_rate, MOMENTUM, len(classes))
    optimizer = torch.optim.SGD([pixels], rate, momentum)
    student = copy_state(task.networks.sample(1).network(0))
    trainer = torch.optim.SGD(student.params.values(), NETWORK_RATE, NETWORK_MOMENTUM, weight_decay=NETWORK_DECAY)

    state = {"pixels": pixels, "optimizer": optimizer, "trainer": trainer}
    for step in run.loop(outer_steps, {**state, **student.params, **student.buffers}):
        if step % network_steps == 0:
            if task.info.modality == "image":
                pixels.clamp_(0, 1)
            if step:
                restart(student, trainer, task.networks.sample(1).network(0))
        distances: list[Tensor] = []
        grads: list[Tensor] = []
        for label, stored in zip(classes, torch.split(pixels, task.budget.images_per_class), strict=True):
            stored = stored.detach().requires_grad_()
            real = task.train.minibatch(real_batch, run.generator, label)
            images = training_images(task, stored, factor)
            images = images[torch.randperm(len(images), generator=run.generator)[:synthetic_batch].to(run.device)]
            labels = objective.relabel(real.labels.new_full((len(images),), label))
            params = augment.draw(augmentation, run.generator, every=True) if augmentation else None
            distance = gradient_distance(
                module,
                student,
                (view(real.inputs, params), real.labels, objective.loss),
                (view(images, params), labels, objective.inner_loss),
                metric,
            )
            grads += torch.autograd.grad(distance, stored)
            distances.append(distance.detach())
        pixels.grad = torch.cat(grads)
        optimizer.step()
        train_on_real(task, student, trainer, network_images, augmentation, cutmix, run.generator)
        run.log(loss=torch.stack(distances).sum())

    labels = objective.relabel(torch.tensor(classes, device=run.device)).repeat_interleave(task.budget.images_per_class)
    images = normalised(task, pixels)
    if factor == 1:
        return DistilledSet(images[None], labels[None])
    tiles = labels.repeat(math.prod(factors_of(task, factor)))
    return DistilledSet.encoded("tiles/v1", {"images": images}, tiles[None], tile_options(task, factor))


Batch = tuple[Float[Tensor, "_ c h w"], Int[Tensor, " _"], Loss]
"""Images, labels and the mean loss of logits and labels."""


def gradient_distance(network: nn.Module, state: State, real: Batch, synthetic: Batch, metric: str) -> Tensor:
    """Return D = sum_l d(g_l(synthetic) - g_l(real)), differentiable in the synthetic images.

    g_l is the gradient of the mean loss of a batch (images, labels, loss) by the weights of convolution l. d is the
    sum of squares (`mse`, as the authors call it) or of absolute values (`l1`).
    """
    target = gradient(network, state, *real)
    own = gradient(network, state, *synthetic, create_graph=True)
    return torch.stack([DISTANCES[metric](own[name] - target[name]) for name in convolutions(network)]).sum()


def convolutions(network: nn.Module) -> list[str]:
    """Return the names of the weights `[out, in, h, w]` of convolutions."""
    return [name for name, weight in network.named_parameters() if weight.dim() == 4]


def training_images(task: Task, pixels: Images, factor: int) -> Float[Tensor, "m c h w"]:
    """Return the m = factor^2 n tiles of n stored images with pixels in [0, 1], enlarged and normalised."""
    images = normalised(task, pixels)
    return images if factor == 1 else task.decode("tiles/v1", {"images": images}, **tile_options(task, factor))


def factors_of(task: Task, factor: int) -> tuple[int, int]:
    """Return the rows and columns of tiles: sounds are divided along time alone."""
    return (1, factor) if task.info.modality == "sound" else (factor, factor)


def tile_options(task: Task, factor: int) -> dict[str, object]:
    """Return the options of the decoder of tiles."""
    return {"factor": factor, **({"along": "width"} if task.info.modality == "sound" else {})}


def normalised(task: Task, pixels: Images) -> Images:
    """Return images with mean 0 and deviation 1 in each channel of the dataset; the inverse of `DatasetInfo.pixels`."""
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (task.info.mean, task.info.std))
    return (pixels - mean) / std


def coasting(rate: float, momentum: float, classes: int) -> tuple[float, float]:
    """Return the rate and the momentum of one step for all classes that equal published steps class by class.

    The published code has one SGD for the images of all C classes, which takes a step after each class. So an image
    takes a step with its gradient, v <- m v + g, x <- x - r v, and C - 1 steps with a gradient of zero, which move it
    on by r (m + ... + m^(C-1)) v. Together this is SGD of rate r (1 - m^C) / (1 - m) and momentum m^C.
    """
    return rate * (1 - momentum**classes) / (1 - momentum), momentum**classes


def mixed_tiles(task: Task, label: int, factor: int, generator: torch.Generator) -> Images:
    """Return images in [0, 1] to start a class from, each made of `factor^2` random real images of the class.

    A class with too few real images repeats them. Raises `UsageError` where it has fewer than images per class.
    """
    members = task.train.of_class(label, task.budget.images_per_class)
    factors = factors_of(task, factor)
    needed = math.prod(factors) * task.budget.images_per_class
    orders = [torch.randperm(len(members), generator=generator) for _ in range(math.ceil(needed / len(members)))]
    real = task.train[members[torch.cat(orders)[:needed].to(members.device)]].inputs
    height, width = task.info.sample_shape[1:]
    return task.info.pixels(join_tiles(real, factors, (height, width)))


def train_on_real(
    task: Task,
    student: State,
    trainer: torch.optim.SGD,
    count: int,
    augmentation: str,
    cutmix: float,
    generator: torch.Generator,
) -> None:
    """Train the network on about `count` real images, each under a draw of augmentation of its own.

    With `cutmix`, a batch is mixed with this probability, and cut-out is left out of the augmentation.
    """
    loss = task.objective.loss
    assert loss is not None
    strategy = "_".join(name for name in augmentation.split("_") if name != "cutout" or not cutmix)
    batches = task.train.batches(NETWORK_BATCH, generator)
    for images, labels in itertools.islice(batches, math.ceil(count / NETWORK_BATCH)):
        if strategy:
            images = augment.apply(images, augment.draw(strategy, generator, len(images), every=True))
        mixes = float(torch.rand((), generator=generator)) < cutmix
        images, criterion = cut_mixed(images, labels, loss, generator) if mixes else (images, loss)
        grads = gradient(task.networks.module, student, images, labels, criterion)
        for name, weight in student.params.items():
            weight.grad = grads[name]
        trainer.step()


def cut_mixed(images: Images, labels: Int[Tensor, " n"], loss: Loss, generator: torch.Generator) -> tuple[Images, Loss]:
    """Return images with a window of another image of the batch, and the loss (1 - s) l(z, y) + s l(z, y').

    y' are the labels of the other images, and s is the share of the window, which is uniform in [0, 1] before the edges
    of the image cut it off. All images have one window (Yun et al. 2019, arXiv 1905.04899, eq. 1 and 2).
    """
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    share, *centre = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    spans = []
    for side, place in zip(images.shape[2:], centre, strict=True):
        middle, half = int(place * side), int(side * math.sqrt(share)) // 2
        spans.append(slice(max(middle - half, 0), middle + half))
    rows, columns = spans
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
    window = mixed[0, 0, rows, columns].numel() / mixed[0, 0].numel()

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        return (1 - window) * loss(logits, labels) + window * loss(logits, labels[partner])

    return mixed, criterion


def restart(student: State, trainer: torch.optim.SGD, start: State) -> None:
    """Put the network back to initial weights, and its optimiser to no momentum."""
    overwrite(student, start)
    trainer.state.clear()


def check(task: Task, factor: int) -> None:
    """Raise `Unsupported` or `UsageError` for a task without the gradients or the tiles that are matched."""
    if task.objective.loss is None:
        raise Unsupported(f"idc needs an objective with a differentiable loss; {task.objective.primary} has none.")
    if len(task.info.classes) < 2:
        raise Unsupported(
            f"{task.info.name} has one class only: the gradients that idc matches are all zero.",
            "Take a dataset of two classes or more.",
        )
    if len(task.info.sample_shape) != 3:
        raise Unsupported(f"idc takes images; an example of {task.info.name} has shape {task.info.sample_shape}.")
    if not convolutions(task.networks.module):
        raise Unsupported(
            "idc matches gradients of convolutions, and the network has none.",
            "Choose another, such as --network convnet.",
        )
    if factor > min(task.info.sample_shape[1:]):
        height, width = task.info.sample_shape[1:]
        raise UsageError(
            f"{factor} x {factor} tiles do not fit into images of {height}x{width} pixels.",
            f"Set factor to {min(height, width)} or less; 2 is usual.",
        )

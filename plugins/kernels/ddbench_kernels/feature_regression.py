"""Neural feature regression with pooling, FRePo (Zhou, Nezhadarya and Ba 2022, arXiv 2206.00719)."""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import DistilledSet, RecipeRequest, Run, Task, Unsupported
from ddbench.kernels import ridge_coefficients
from ddbench.networks import features
from ddbench_kernels.pool import Pool
from ddbench_kernels.targets import Count, LearnLabels, Positive, Ridge, centred, check, distilled, supports

LAST_RATE = 0.1
"""Share of the rate of images and labels that is left at the end of its cosine."""
UNMIRRORED = ("mnist", "fashion_mnist", "digits", "svhn", "usps")
"""Datasets whose images are not mirrored: as published for the first two, and because mirrored digits are none."""


def regression_loss(
    synthetic: Float[Tensor, "n d"],
    labels: Float[Tensor, "n classes"],
    real: Float[Tensor, "m d"],
    targets: Float[Tensor, "m classes"],
    ridge: float = 1e-6,
) -> Float[Tensor, ""]:
    """Return the loss of a regression on features F of synthetic images with labels y, differentiable by both.

    With features G of m real examples, which have the targets t (equations 3 and 4):

        K    = F F^T
        loss = |G F^T (K + ridge trace(K) / n I)^-1 y - t|^2 / (2 m)

    In float64, whatever the features are. Raises `DdbenchError` where K cannot be inverted.
    """
    synthetic = synthetic.double()
    alpha = ridge_coefficients(synthetic @ synthetic.T, labels.double(), ridge)
    return 0.5 * (real.double() @ (synthetic.T @ alpha) - targets).square().sum(1).mean()


def margin_loss(labels: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """Return the mean of -min(y1 - y2, 1 / classes), where y1 and y2 are the two largest values of a label."""
    first, second = labels.topk(2).values.unbind(1)
    return -(first - second).clamp(max=1 / labels.shape[1]).mean()


def published(request: RecipeRequest) -> dict[str, object]:
    """Zhou et al. 2022, settings of the authors' code by dataset and images per class."""
    many = request.dataset == "cifar100" and request.budget.images_per_class >= 10
    return {"flip": False} if many or request.dataset in UNMIRRORED or request.modality != "image" else {}


def peak_memory(task: Task, *, pool: int, real_batch: int, flip: bool, **others: object) -> tuple[int, str]:
    """Return the bytes that an update needs at its peak, and what takes them."""
    images = task.budget.images_per_class * len(task.info.classes) * (2 if flip else 1)
    module = task.networks.module
    sample = torch.zeros(1, *task.info.sample_shape, device=task.train.inputs.device)
    kept: list[int] = []
    hooks = [
        part.register_forward_hook(lambda layer, inputs, output: kept.append(output.numel()))
        for part in module.modules()
        if not list(part.children())
    ]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(parameter.numel() for parameter in module.parameters())
    # Activations of synthetic images are kept for the gradient, those of real ones layer by layer.
    activations = 2 * images * sum(kept) + real_batch * 2 * max(kept)
    return 4 * (activations + 3 * weights * (pool + 1)) + 32 * images**2, f"{pool} networks in the pool"


@ddbench.method(recipe=published, supports=supports, peak_memory=peak_memory)
def frepo(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of images and labels")] = 500_000,
    real_batch: Annotated[Count, Field(description="real images in an update")] = 1024,
    rate: Annotated[Positive, Field(description="rate of images and labels; falls to a tenth along a cosine")] = 3e-4,
    optimiser: Annotated[Literal["lamb", "adam"], Field(description="optimiser of images and labels")] = "lamb",
    learn_labels: LearnLabels = True,
    flip: Annotated[bool, Field(description="regress on the mirrored synthetic images too")] = True,
    pool: Annotated[Count, Field(description="networks that train on the set meanwhile")] = 10,
    network_steps: Annotated[Count, Field(description="steps of a network until a new one replaces it")] = 100,
    network_rate: Annotated[Positive, Field(description="rate of Adam on the networks")] = 3e-4,
    ridge: Ridge = 1e-6,
) -> DistilledSet:
    """Learn images and labels whose regression on features of networks predicts real labels (FRePo, Zhou et al. 2022).

    An update draws a network of the pool and follows `regression_loss` of its penultimate features, plus `margin_loss`
    of the labels. Then the network takes a step on the set, or a random one replaces it. Only the last layer is
    trained to the end, in closed form; the gradient does not go back through the steps of a network.

    This follows the published code. Its images have --whitening zca-kip except on MNIST and Fashion-MNIST, its students
    train with the squared error and augmentation, and its network doubles in width from layer to layer.
    A small setting, which distilled one image per class of MNIST in 3 minutes on a busy core: `--set outer_steps=200`,
    `--set real_batch=256`, `--set rate=0.003` and `--set network.width=16`, with the ConvNet.
    """
    check(task)
    if flip and ("flip" not in task.info.augmentations or len(task.info.sample_shape) != 3):
        raise Unsupported(
            "examples that are not images of channels, height and width cannot be mirrored.", "Write --set flip=false."
        )
    classes, count, module = len(task.info.classes), task.budget.images_per_class, task.networks.module
    chosen = task.train.random_subset(count, run.generator)
    images = chosen.inputs.clone().requires_grad_()
    # The published scale: it keeps labels of many classes as short as those of ten.
    labels = (centred(chosen.labels, classes) / math.sqrt(classes / 10)).requires_grad_(learn_labels)
    leaves = [images, labels] if learn_labels else [images]
    optimizer = optimizer_of(optimiser, leaves, rate)
    networks = Pool(task.networks, pool, network_steps, network_rate, run.generator)

    for _ in run.loop(outer_steps, dict(images=images, labels=labels, optimizer=optimizer, pool=networks)):
        member = networks.draw()
        real = task.train.minibatch(real_batch, run.generator)
        with torch.no_grad():
            goal = features(module, member.network, real.inputs, batch_statistics=False)
        views, view_labels = with_mirrored(images, labels) if flip else (images, labels)
        current = features(module, member.network, views, batch_statistics=False)
        error = regression_loss(current, view_labels, goal, centred(real.labels, classes), ridge)
        loss = error + margin_loss(labels)
        for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = grad
        for group in optimizer.param_groups:
            group["lr"] = rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * run.share_done)) / 2)
        optimizer.step()
        networks.train(member, images, labels)
        run.log(loss=loss, error=error)
    if not learn_labels:
        return DistilledSet(images.detach()[None], chosen.labels[None])
    return distilled(images, labels)


def with_mirrored(
    images: Float[Tensor, "n c h w"], labels: Float[Tensor, "n classes"]
) -> tuple[Float[Tensor, "m c h w"], Float[Tensor, "m classes"]]:
    """Return the images with their mirror images behind them, and the labels twice."""
    return torch.cat([images, images.flip(3)]), torch.cat([labels, labels])


def optimizer_of(name: str, leaves: list[Tensor], rate: float) -> torch.optim.Optimizer:
    """Return Adam, or LAMB without weight decay and without a bound on the gradient (You et al. 2020, 1904.00962)."""
    if name == "adam":
        return torch.optim.Adam(leaves, lr=rate)
    from timm.optim.lamb import Lamb  # loads torchvision too

    return Lamb(leaves, lr=rate, weight_decay=0.0, max_grad_norm=None, always_adapt=True)

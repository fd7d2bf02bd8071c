"""Kernel inducing points, KIP (Nguyen, Chen and Lee 2021, arXiv 2011.00050)."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import DistilledSet, Run, Task
from ddbench.kernels import relu_ntk, ridge_coefficients
from ddbench_kernels.targets import (
    BLOCK,
    Count,
    Depth,
    LearnLabels,
    Positive,
    Ridge,
    balanced_batch,
    centred,
    check,
    distilled,
    supports,
)


def loss_and_gradients(
    images: Float[Tensor, " n *sample"],
    labels: Float[Tensor, "n classes"],
    real: Float[Tensor, " m *sample"],
    targets: Float[Tensor, "m classes"],
    *,
    depth: int = 1,
    ridge: float = 1e-6,
    block: int = BLOCK,
) -> tuple[Float[Tensor, ""], Float[Tensor, " n *sample"], Float[Tensor, "n classes"]]:
    """Return the loss of a regression on the set (S, y), with its gradients by S and by y, in float64.

    With the kernel K of `relu_ntk`, m real examples T with targets t and C classes (equation 7):

        alpha = (K(S, S) + ridge trace(K(S, S)) / n I)^-1 y
        loss  = |K(T, S) alpha - t|^2 / (2 m C)

    Real examples are taken in blocks of about `block` entries of K(T, S), which bounds the memory. The gradient goes
    from each block to S and alpha, and from alpha through the solve to S and y.
    Raises `DdbenchError` where the kernel of S cannot be inverted.
    """
    rows, labels = images.detach().double().flatten(1).requires_grad_(), labels.detach().double().requires_grad_()
    alpha = ridge_coefficients(relu_ntk(rows, depth=depth), labels, ridge)
    leaves = [rows, alpha.detach().requires_grad_()]
    loss, grads = rows.new_zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    size = max(1, block // len(rows))
    for inputs, outputs in zip(torch.split(real.flatten(1), size), torch.split(targets, size), strict=True):
        errors = relu_ntk(inputs.double(), rows, depth) @ leaves[1] - outputs
        part = errors.square().sum() / (2 * targets.numel())
        loss += part.detach()
        for total, grad in zip(grads, torch.autograd.grad(part, leaves), strict=True):
            total += grad
    through_alpha, grad_labels = torch.autograd.grad(alpha, [rows, labels], grads[1])
    return loss, (grads[0] + through_alpha).view_as(images), grad_labels


def peak_memory(task: Task, *, real_batch: int, depth: int, **others: object) -> tuple[int, str]:
    """Return the bytes that an update needs at its peak, and how the kernel is held."""
    images = task.budget.images_per_class * len(task.info.classes)
    features = torch.Size(task.info.sample_shape).numel()
    block = min(max(BLOCK, images), images * min(real_batch, len(task.train)))
    # Matrices that the gradient of a kernel keeps, by measurement; real examples; images, gradients and moments.
    kernel = 8 * (4 + 12 * depth) * (block + images**2)
    return kernel + 12 * features * (min(real_batch, len(task.train)) + 4 * images), f"{block:,} entries of the kernel"


@ddbench.method(supports=supports, peak_memory=peak_memory)
def kip(
    task: Task,
    run: Run,
    *,
    outer_steps: Annotated[Count, Field(description="updates of the images")] = 1000,
    real_batch: Annotated[Count, Field(description="real images in an update, equally many of each class")] = 5000,
    rate: Annotated[Positive, Field(description="rate of Adam on the images, and on labels that are learned")] = 0.04,
    learn_labels: LearnLabels = False,
    depth: Depth = 1,
    ridge: Ridge = 1e-6,
    start: Annotated[
        Literal["real", "noise"], Field(description="images start as real images or as normal noise")
    ] = "real",
) -> DistilledSet:
    """Learn images on which kernel ridge regression predicts real labels (KIP, Nguyen et al. 2021).

    An update follows the squared error of the regression on a batch of real images: see `loss_and_gradients`. The
    kernel is the tangent kernel of a fully connected ReLU network of infinite width, in closed form, so that no network
    takes part. Score the set with that kernel: `--protocol krr/v1`.
    A small setting, which took 92 seconds on a busy core at one image per class of MNIST and scored 87.8 %:
    `--set outer_steps=100`.
    """
    check(task)
    classes, count = len(task.info.classes), task.budget.images_per_class
    chosen = task.train.random_subset(count, run.generator)
    images, labels = chosen.inputs.clone(), centred(chosen.labels, classes)
    if start == "noise":
        images = torch.randn(images.shape, generator=run.generator).to(images)
    optimizer = torch.optim.Adam([images, labels] if learn_labels else [images], lr=rate)
    for _ in run.loop(outer_steps, dict(images=images, labels=labels, optimizer=optimizer)):
        batch = balanced_batch(task.train, real_batch, run.generator)
        loss, grad_images, labels.grad = loss_and_gradients(
            images, labels, batch.inputs, centred(batch.labels, classes), depth=depth, ridge=ridge
        )
        images.grad = grad_images.to(images)
        optimizer.step()
        run.log(loss=loss)
    return distilled(images, labels) if learn_labels else DistilledSet(images[None], chosen.labels[None])

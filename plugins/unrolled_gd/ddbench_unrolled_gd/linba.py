"""Momentum inside and shared bases, LinBa (Deng and Russakovsky 2022, "Remember the Past", arXiv 2206.02916)."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

import ddbench
from ddbench import DistilledSet, Run, State, Task, UsageError
from ddbench.networks import Loss, Params, cross_entropy
from ddbench.unroll import SGD, Memory, MetaGradient, OuterLoss, Recompute, meta_gradient
from ddbench_unrolled_gd import shared
from ddbench_unrolled_gd.shared import WAYS_BACK, Count, InnerRate, Positive, RealBatch, Start, Way

DECODER = "linear_bases/v1"
MOMENTS = 1
"""Tensors that SGD with momentum keeps for each weight."""
SHARE = 0.4
"""Share of the budget that bases take (the authors' 16 bases of half the side, for ten images)."""
VALUE, LABEL = 4, 8
"""Bytes of a stored value, and of a class number."""


def momentum_gradient(
    network: nn.Module,
    start: State | Params,
    images: Float[Tensor, " n *sample"],
    labels: Int[Tensor, " n"],
    rate: Float[Tensor, "..."] | float,
    momentum: float,
    rows: Int[Tensor, "T b"],
    outer: OuterLoss,
    *,
    memory: Memory = Recompute(),  # noqa: B008, a frozen value
    inner_loss: Loss = cross_entropy,
) -> MetaGradient:
    """Return the outer loss after T steps of SGD with momentum on the images `rows[t]`, with its exact gradients.

    v_{t+1} = momentum v_t + g_t,  w_{t+1} = w_t - rate v_{t+1}, so an image acts on all steps behind its own.
    """
    inner = SGD(rate, momentum=momentum)
    return meta_gradient(
        network, start, images, labels, inner, outer, indices=rows, memory=memory, inner_loss=inner_loss
    )


def sizes(task: Task, bases: int | None, composed: int | None) -> tuple[int, int]:
    """Return the number K of bases and the number of images of each class that they compose, within the budget.

    K bases of D values with n images take K (D + n) values, which the budget counts as images and, where it has bytes,
    as bytes, together with the labels. Without `bases`, they take `SHARE` of the budget; without `composed`, the
    coefficients take the rest, up to as many images as the smallest class has.
    Raises `UsageError` for more bases than images or than the budget holds.
    """
    budget, classes, size = task.budget, len(task.info.classes), math.prod(task.info.sample_shape)
    values = budget.images_per_class * classes * size
    free = math.inf if budget.bytes is None else budget.bytes

    def fits(count: int, images: int) -> bool:
        taken = count * (size + images)
        return taken <= values and VALUE * taken + LABEL * images <= free

    limit = size if composed is None else min(size, composed * classes)
    if bases is not None and bases > limit:
        what = f"{limit} values of an image" if limit == size else f"{limit} images that they compose"
        raise UsageError(
            f"{bases} bases are more than the {what}.",
            f"Write --set bases={limit} or less, or learn plain images by --set bases=0.",
        )
    per_class = composed or 1
    count = bases or min(limit, max(1, round(SHARE * min(values, free / VALUE) / size)))
    while bases is None and count > 1 and not fits(count, per_class * classes):
        count -= 1
    if not fits(count, per_class * classes):
        images = per_class * classes
        raise UsageError(
            f"the budget does not hold K={count} bases with the coefficients and labels of {images} images.",
            "Raise the budget, or lower --set bases and --set composed.",
        )
    if composed is None:
        most = min(len(task.train.of_class(label)) for label in range(classes))
        while per_class < most and fits(count, (per_class + 1) * classes):
            per_class += 1
        count = min(count, per_class * classes) if bases is None else count
        if count > per_class * classes:
            raise UsageError(
                f"{count} bases are more than the {per_class * classes} images that the budget lets them compose.",
                "Lower --set bases, or learn plain images by --set bases=0.",
            )
    return count, per_class


def nearest_bases(
    images: Float[Tensor, " n *sample"], count: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k *sample"]]:
    """Return coefficients and bases whose products are nearest to `images` by squared distance (truncated SVD).

    The columns of the coefficients have mean square one.
    """
    left, sizes, right = torch.linalg.svd(images.flatten(1), full_matrices=False)
    scale = math.sqrt(len(images))
    bases = sizes[:count, None] * right[:count] / scale
    return left[:, :count] * scale, bases.view(-1, *images.shape[1:])


def random_bases(
    task: Task, images: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k *sample"]]:
    """Return uniform coefficients and bases of the size that Glorot and Bengio 2010 give matrices (authors' code)."""
    coefficients, bases = torch.empty(images, count), torch.empty(count, math.prod(task.info.sample_shape))
    for tensor in (coefficients, bases):
        nn.init.xavier_uniform_(tensor, generator=generator)
    like = task.train.inputs
    return coefficients.to(like), bases.view(count, *task.info.sample_shape).to(like)


def _peak_memory(
    task: Task, *, inner_steps: int, per_class: int, real_batch: int, memory: str, **others: object
) -> tuple[int, str]:
    """Return the bytes that the method needs at its peak, at most, and the way of going back."""
    shape = (1, per_class * len(task.info.classes), *task.info.sample_shape)
    way, peak = shared.fitting_memory(task, 1, shape, inner_steps, real_batch, WAYS_BACK[memory], MOMENTS)
    return peak, f"memory={way.name}"


@ddbench.method(peak_memory=_peak_memory)
def linba(
    task: Task,
    run: Run,
    *,
    bases: Annotated[
        int | None, Field(ge=0, description="bases K; None for two fifths of the budget, 0 for plain images")
    ] = None,
    composed: Annotated[
        int | None, Field(ge=1, description="images of each class that the bases compose; None for the rest")
    ] = None,
    outer_steps: Annotated[Count, Field(description="updates of bases and coefficients, or of images")] = 500_000,
    outer_lr: Annotated[Positive, Field(description="rate of SGD, momentum 0.5, on what is learned")] = 0.1,
    inner_steps: Annotated[Count, Field(description="inner steps T, all gone back through")] = 150,
    inner_lr: InnerRate = 0.01,
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the inner steps")] = 0.9,
    per_class: Annotated[Count, Field(description="images of each class in an inner step, at most")] = 32,
    start: Start = "real",
    real_batch: RealBatch = 1024,
    clip: Annotated[float, Field(ge=0, description="bound on the norm of each gradient; 0 for none")] = 1.0,
    memory: Way = "auto",
) -> DistilledSet:
    """Learn shared bases and their coefficients through a long training with momentum.

    Image n is the sum over k of coefficients[n, k] bases[k]. All classes share the bases, so a budget of few images
    holds the bases of many. Each update draws a network, trains it by T steps of SGD with momentum on batches of the
    composed images, and goes back through all of them. Momentum carries the gradient to early steps, where that of
    plain gradient descent fades.

    The set stores bases and coefficients for the decoder linear_bases/v1, within the budget of images and of bytes
    (--byte-budget), and is ranked apart from plain images. It has no rates: --protocol train/v1 trains with the same
    momentum and rate as the defaults here. Defaults are those of the authors' code. It starts from small random
    numbers (`start=noise`), stores bases at half the side, which the decoder has not, and does not bound gradients.
    Real bases are those nearest to random real images. A small setting, which took 21 seconds of a core with its
    scoring on digits with the network mlp: --ipc 1 --set outer_steps=40 --set outer_lr=3 --set inner_steps=50
    --set per_class=3 --set real_batch=256.
    """
    shared.check_objective(task, "linba")
    module, classes = task.networks.module, len(task.info.classes)
    count, each = sizes(task, bases, composed) if bases != 0 else (0, task.budget.images_per_class)
    n = each * classes
    labels = task.objective.relabel(torch.arange(classes, device=run.device).repeat_interleave(each))
    if not count:
        learned = {"images": shared.initial_images(task, start, run.generator)}
    else:
        if start == "real":
            coefficients, vectors = nearest_bases(task.train.random_subset(each, run.generator).inputs, count)
        else:
            coefficients, vectors = random_bases(task, n, count, run.generator)
        learned = {"coefficients": coefficients, "bases": vectors}
    for tensor in learned.values():
        tensor.requires_grad_()
    optimizer = torch.optim.SGD(learned.values(), lr=outer_lr, momentum=0.5)
    shape = (1, min(per_class, each) * classes, *task.info.sample_shape)
    way, _ = shared.fitting_memory(task, 1, shape, inner_steps, real_batch, WAYS_BACK[memory], MOMENTS)
    shared.report_engine(task, run, 1, shape, way)
    if count:
        run.say(f"Bases    {count}, composing {each} images of each class")

    for _ in run.loop(outer_steps, {**learned, "optimizer": optimizer}):
        images = task.decode(DECODER, learned) if count else learned["images"]
        network = task.networks.sample(1)
        real = shared.RealLoss(task, task.train.minibatch(real_batch, run.generator))
        rows = shared.draw_rows(classes, each, per_class, inner_steps, run.generator)
        gradient = momentum_gradient(
            module, network, images.detach(), labels, inner_lr, momentum, rows, real.outer,
            memory=way, inner_loss=task.objective.inner_loss,
        )  # fmt: skip
        grads = torch.autograd.grad(images, list(learned.values()), gradient.inputs)
        for tensor, grad in zip(learned.values(), grads, strict=True):
            tensor.grad = grad
            if clip:
                torch.nn.utils.clip_grad_norm_([tensor], clip)
        optimizer.step()
        norm = torch.linalg.vector_norm(gradient.inputs)
        run.log(loss=gradient.loss.mean(), gradient_norm=norm, **real.shown())

    payload = {name: tensor.detach() for name, tensor in learned.items()}
    return DistilledSet.encoded(DECODER, payload, labels[None]) if count else shared.flat_set(task, payload["images"])

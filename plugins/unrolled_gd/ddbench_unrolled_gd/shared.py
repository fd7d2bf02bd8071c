"""The parts that the unrolled methods share.

Notation: networks start at `w_0` and take T inner steps on distilled images with their labels, `w_1 .. w_T`. The outer
loss L is that of `w_T` on a batch of real images, and a method follows the gradient of L by all that it learns.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ddbench import DistilledSet, ExampleSet, Plan, Run, Task, Unsupported
from ddbench.augment import Augmentation, apply, draw
from ddbench.networks import gather
from ddbench.unroll import MEMORIES, Memory, OuterLoss, Transform, choose_engine, fastest_fitting, loss_on

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
InnerRate = Annotated[Positive, Field(le=1e6, description="initial rate of every inner step")]
Networks = Annotated[Count, Field(description="networks an outer step averages over (a fixed init has one)")]
RealBatch = Annotated[Count, Field(description="real images per evaluation of the outer loss")]
Decay = Annotated[
    Literal["cosine", "step", "constant"],
    Field(description="decay of outer_lr: along a cosine to zero, halved every tenth of the run, or none"),
]
Start = Annotated[Literal["noise", "real"], Field(description="images start as normal noise or as real images")]
Way = Annotated[
    Literal["auto", "store", "recompute", "checkpoint"],
    Field(description="way of going back, at equal results; auto takes the fastest that fits into memory"),
]

WAYS_BACK = {"auto": MEMORIES, **{memory.name: (memory,) for memory in MEMORIES}}
"""The ways of going back that each value of the option `memory` allows, the fastest first."""
AVERAGING = 0.9
"""Weight that the running norm of a gradient keeps in an outer step (Feng et al. 2023)."""


def check_objective(task: Task, method: str) -> None:
    """Raise `Unsupported` for a task whose objective has no differentiable loss."""
    if task.objective.loss is None:
        raise Unsupported(f"{method} needs an objective with a differentiable loss; {task.objective.primary} has none.")


def initial_images(task: Task, start: str, generator: torch.Generator) -> Float[Tensor, " n *sample"]:
    """Return images to start from, class by class: random `real` ones, or normal `noise`.

    Raises `UsageError` where a class has fewer real images than the budget.
    """
    n = task.budget.images_per_class
    if start == "real":
        return task.train.random_subset(n, generator).inputs.clone()
    noise = torch.randn(n * len(task.info.classes), *task.info.sample_shape, generator=generator)
    return noise.to(task.train.inputs)


def flat_set(task: Task, images: Float[Tensor, " n *sample"]) -> DistilledSet:
    """Return the set of images that lie class by class, spread over the steps of the budget, without rates.

    Labels are those that the objective gives.
    """
    labels = torch.arange(len(task.info.classes), device=images.device).repeat_interleave(task.budget.images_per_class)
    inputs, labels = ExampleSet(images, labels, task.info).in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


def step_shape(task: Task) -> tuple[int, ...]:
    """Return the shape `[steps, n, *sample]` of images of which each step has as many of each class."""
    budget = task.budget
    n = len(task.info.classes) * budget.images_per_class // budget.steps
    return (budget.steps, n, *task.info.sample_shape)


def uneven_steps(plan: Plan) -> str | None:
    """Return why the images of a class cannot be spread over the steps."""
    images, steps = plan.settings.images_per_class, plan.settings.steps
    if images % steps == 0:
        return None
    return f"{plan.method.name} spreads {images} images per class evenly over the steps: {steps} does not divide it."


def fitting_memory(
    task: Task,
    networks: int,
    shape: tuple[int, ...],
    steps: int,
    real_batch: int,
    among: Sequence[Memory],
    moments: int = 0,
) -> tuple[Memory, int]:
    """Return the first way of `among` to go back that fits into memory, and its peak in bytes.

    It goes through `steps` steps on images `[steps, n, *sample]`. `moments` is the number of tensors that the inner
    optimiser keeps for each weight.
    """
    return fastest_fitting(
        task.networks.module,
        networks,
        shape,
        steps,
        min(real_batch, len(task.train)),
        task.train.inputs.device,
        among=among,
        moments=moments,
        inner_loss=task.objective.inner_loss,
    )


def report_engine(task: Task, run: Run, networks: int, shape: tuple[int, ...], way: Memory) -> None:
    """Print how the inner steps on images `[steps, n, *sample]` are carried out."""
    engine = choose_engine(task.networks.module, torch.empty(shape, device="meta"), networks, task.objective.inner_loss)
    run.say(f"Engine   {engine}, memory={way.name}")


class RealLoss:
    """The outer loss on a batch of real examples, and the metrics of the networks that it is taken of."""

    def __init__(self, task: Task, real: ExampleSet) -> None:
        self.objective = task.objective
        self.metrics: list[dict[str, float]] = []
        self.outer: OuterLoss = loss_on(self._measured, real.inputs, real.labels)

    def _measured(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert self.objective.loss is not None
        self.metrics.append(self.objective.measure(logits.detach(), labels))
        return self.objective.loss(logits, labels)

    def shown(self) -> dict[str, float]:
        """Return the mean of the primary metric, to log; nothing where the batch has nothing to measure.

        NaN there is no reason to roll back.
        """
        primary = self.objective.primary
        values = gather([metrics[primary] for metrics in self.metrics])
        current = math.fsum(values) / len(values)
        return {f"train_{primary}": current} if math.isfinite(current) else {}


def draw_window(size: int | None, where: str, total: int, generator: torch.Generator) -> int | tuple[int, int] | None:
    """Return the steps to go back through, for `meta_gradient`: the last ones, or some that end at a random step."""
    if size is None or size >= total or where == "end":
        return size
    end = int(torch.randint(size, total + 1, (), generator=generator))
    return end - size, end


def draw_rows(
    classes: int, images_per_class: int, per_class: int | None, steps: int, generator: torch.Generator
) -> Int[Tensor, "T b"]:
    """Return the images of each step: `per_class` random ones of each class, or all; images lie class by class."""
    count = min(per_class or images_per_class, images_per_class)
    order = torch.rand(steps, classes, images_per_class, generator=generator).argsort(-1)[..., :count]
    return (order + images_per_class * torch.arange(classes)[:, None]).flatten(1)


def draw_views(strategy: str, rows: Int[Tensor, "T b"], generator: torch.Generator) -> Transform | None:
    """Return the augmentation of each inner step, with all operations of `strategy`; None where it is empty.

    Each image has amounts of its own. They are drawn beforehand, because the reverse pass repeats the steps.
    """
    if not strategy:
        return None
    views: list[Augmentation] = [draw(strategy, generator, images=len(row), every=True) for row in rows]

    def augmented(images: Float[Tensor, "b c h w"], step: int) -> Float[Tensor, "b c h w"]:
        return apply(images, views[step])

    return augmented


def clip_by_running_norm(
    gradient: Float[Tensor, "..."], running_norm: Float[Tensor, ""], multiple: float
) -> Float[Tensor, ""]:
    """Bound a gradient, in place, by a multiple of its running norm, and return the norm that it had.

    The running norm is an exponential average of the norms of clipped gradients, so that a spike does not lift the
    bound for those behind it. Zero stands for none yet: then the gradient stays as it is. `running_norm` is updated.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if running_norm > 0:
        clipped = torch.minimum(norm, multiple * running_norm)
        gradient.mul_(clipped / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        running_norm.lerp_(clipped, 1 - AVERAGING)
    else:
        running_norm.copy_(norm)
    return norm


def decay(schedule: str, done: float) -> float:
    """Return the factor on the outer rate when a share `done` of the run is over."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.5 ** int(10 * done) if schedule == "step" else 1.0


def raw_rate(rate: float) -> float:
    """Return the number r with softplus(r) = `rate`, written so that nothing overflows."""
    return rate + math.log(-math.expm1(-rate))


def gradient_by_raw(grad_lrs: Float[Tensor, "..."], raw_lrs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the gradient by r from that by the rates softplus(r), with d lr / d r = sigmoid(r)."""
    return grad_lrs * torch.sigmoid(raw_lrs)


def rates(raw_lrs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the positive rates softplus(r)."""
    values: Tensor = F.softplus(raw_lrs.detach())
    return values

"""Label solve: the best labels of given images, by one linear solve (Nguyen, Chen and Lee 2021, arXiv 2011.00050)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

import ddbench
from ddbench import DistilledSet, Run, Task
from ddbench.kernels import relu_ntk, ridge_coefficients
from ddbench_kernels.targets import BLOCK, Depth, Ridge, centred, check, distilled, supports

JITTER = 1e-12
"""Share of the mean diagonal that keeps the normal equations solvable, where images are equal for example."""


def solved(
    kernel: Float[Tensor, "n n"], gram: Float[Tensor, "n n"], moments: Float[Tensor, "n classes"], ridge: float
) -> Float[Tensor, "n classes"]:
    """Return the labels y of n images S on which the regression fits m real examples T with targets t best.

    y minimises |K(T, S) (K(S, S) + r I)^-1 y - t|^2 with r = ridge trace(K(S, S)) / n (equation 9). By the normal
    equations, with `gram` = K(S, T) K(T, S) and `moments` = K(S, T) t,

        y = (K(S, S) + r I) gram^-1 moments

    Raises `DdbenchError` where `gram` cannot be inverted.
    """
    alpha = ridge_coefficients(gram, moments, JITTER)
    return kernel @ alpha + ridge * kernel.trace() / len(kernel) * alpha


def block_rows(images: int) -> int:
    """Return the number of real examples in a block: at least as many as images, so that one block can be solved."""
    return max(images, BLOCK // images)


def peak_memory(task: Task, *, depth: int, **others: object) -> tuple[int, str]:
    """Return the bytes that a block needs at its peak, and how the kernel is held."""
    images = task.budget.images_per_class * len(task.info.classes)
    rows = min(block_rows(images), len(task.train))
    features = torch.Size(task.info.sample_shape).numel()
    return 8 * (8 * rows * images + 5 * images**2 + 2 * rows * features), f"{rows * images:,} entries of the kernel"


@ddbench.method(supports=supports, peak_memory=peak_memory)
def label_solve(
    task: Task,
    run: Run,
    *,
    depth: Depth = 1,
    ridge: Ridge = 1e-6,
) -> DistilledSet:
    """Keep random real images and solve for the labels on which kernel regression fits all training data best (LS).

    See `solved` for the equations. The kernel is that of `kip`, and the set is scored with it: `--protocol krr/v1`.
    The matrices of the solve are summed over blocks of the training data (Nguyen et al. 2021, Section 2.2).
    """
    check(task)
    classes, count = len(task.info.classes), task.budget.images_per_class
    train = task.train
    chosen = train.random_subset(count, run.generator)
    rows, order = chosen.inputs.double().flatten(1), torch.randperm(len(train), generator=run.generator)
    gram, moments = rows.new_zeros(len(rows), len(rows)), rows.new_zeros(len(rows), classes)
    size = block_rows(len(rows))
    for step in run.loop(math.ceil(len(train) / size), dict(gram=gram, moments=moments)):
        batch = train[order[step * size : (step + 1) * size]]
        block = relu_ntk(batch.inputs.double().flatten(1), rows, depth)
        gram += block.T @ block
        moments += block.T @ centred(batch.labels, classes)
        run.log(examples=min((step + 1) * size, len(train)))
    if not gram.any():  # The time limit was over before the first block.
        return distilled(chosen.inputs, centred(chosen.labels, classes))
    return distilled(chosen.inputs, solved(relu_ntk(rows, depth=depth), gram, moments, ridge))

"""Baselines of Wang, Zhu, Torralba and Efros 2018 (arXiv 1811.10959, Section 4): images computed from real ones."""

import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import DdbenchError, DistilledSet, ExampleSet, Run, State, Task
from ddbench.networks import for_each_network, forward, unstack
from ddbench.unroll import train

Count = Annotated[int, Field(ge=1)]
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@ddbench.method
def average_real(task: Task, run: Run) -> DistilledSet:
    """Return the mean image of each class, used in every step: one image per class, whatever the budget."""
    real, classes = task.train, len(task.info.classes)
    means = [real.inputs[real.of_class(label, at_least=1)].mean(0) for label in range(classes)]
    labels = torch.arange(len(means), device=run.device)
    return DistilledSet(torch.stack(means)[None], task.objective.relabel(labels)[None])


@ddbench.method
def k_means(
    task: Task,
    run: Run,
    *,
    iterations: Annotated[Count, Field(description="maximum number of Lloyd's iterations")] = 100,
) -> DistilledSet:
    """Compute the centroids of k-means in normalised pixels for each class, spread over the steps.

    Lloyd's iterations start from k-means++ (Arthur and Vassilvitskii 2007). Distances are in pixels, so that a
    centroid is an image.
    """
    from sklearn.cluster import KMeans

    count, centroids = task.budget.images_per_class, []
    for label in range(len(task.info.classes)):
        images = task.train.inputs[task.train.of_class(label, count)].flatten(1).cpu().double().numpy()
        seed = int(torch.randint(2**31, (), generator=run.generator))
        clusters = KMeans(count, init="k-means++", n_init=1, max_iter=iterations, random_state=seed).fit(images)
        centroids.append(torch.from_numpy(clusters.cluster_centers_).float().view(count, *task.info.sample_shape))
    inputs = torch.cat(centroids).to(run.device)
    labels = torch.arange(len(centroids), device=run.device).repeat_interleave(count)
    inputs, labels = ExampleSet(inputs, labels, task.info).in_steps(task.budget.steps)
    return DistilledSet(inputs, task.objective.relabel(labels))


@ddbench.method
def optimised_real(
    task: Task,
    run: Run,
    *,
    candidates: Annotated[Count, Field(description="number of random sets to choose from")] = 50,
    networks: Annotated[Count, Field(description="number of networks that each set is tried on")] = 4,
    real_batch: Annotated[Count, Field(description="number of training images that trials are scored on")] = 1000,
) -> DistilledSet:
    """Choose the best of many random sets of real images, by the objective's primary metric on training data.

    Each candidate trains the same networks by gradient descent at each of six fixed rates; its best rate counts.
    The paper reports the mean over the best fifth of its sets; here a run returns one set, the best.
    """
    objective = task.objective
    starts = list(unstack(task.networks.module, task.networks.sample(networks)))
    real = task.train.minibatch(real_batch, run.generator)
    shape = task.train.random_subset(task.budget.images_per_class, torch.Generator()).in_steps(task.budget.steps)[0]
    best_inputs, best_labels = torch.zeros_like(shape), torch.zeros(shape.shape[:2], dtype=torch.long)
    best_labels, best, any_finite = best_labels.to(run.device), torch.zeros(()), torch.tensor(False)

    def primary(module: torch.nn.Module, trial: tuple[State, float, Tensor, Tensor]) -> float:
        start, rate, inputs, labels = trial
        steps = len(inputs)
        lrs = torch.full((task.budget.total_steps // steps, steps), rate, device=run.device)
        state = train(module, start, inputs, labels, lrs, objective.inner_loss)
        return objective.measure(forward(module, state, real.inputs), real.labels)[objective.primary]

    # Checkpoints name the flag `found`.
    state = dict(inputs=best_inputs, labels=best_labels, best=best, found=any_finite)
    for _ in run.loop(candidates, state):
        subset = task.train.random_subset(task.budget.images_per_class, run.generator)
        inputs, labels = subset.in_steps(task.budget.steps)
        labels = objective.relabel(labels)
        trials = [(start, rate, inputs, labels) for rate in RATES for start in starts]
        values = torch.tensor(for_each_network(primary, task.networks.module, trials)).view(len(RATES), -1).mean(1)
        sign = 1 if objective.higher_is_better else -1
        value = sign * (sign * values.nan_to_num(-sign * math.inf)).max()
        if value.isfinite() and (not any_finite or sign * value > sign * best):
            best_inputs.copy_(inputs)
            best_labels.copy_(labels)
            best.copy_(value)
            any_finite.fill_(True)
        run.log(**{f"best_train_{objective.primary}": best})
    if not any_finite:
        raise DdbenchError(
            f"none of the random sets gave a finite {objective.primary}.", "Raise --set real_batch or --set candidates."
        )
    return DistilledSet(best_inputs, best_labels)


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [average_real, k_means, optimised_real]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

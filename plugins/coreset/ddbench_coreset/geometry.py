"""Coresets by geometry: the position of the chosen examples among the rest in a space of features."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

import ddbench
from ddbench import DistilledSet, Run, Task
from ddbench_coreset import selection
from ddbench_coreset.choosing import Epochs, Features, PerClass, check_memory, choose, compute_features

Seeding = Annotated[
    Literal["mean", "random", "farthest"],
    Field(description="the first: nearest the mean, at random, or farthest from the mean"),
]


@ddbench.method(coreset=True)
def herding(
    task: Task, run: Run, *, features: Features = "pixels", epochs: Epochs = 10, per_class: PerClass = True
) -> DistilledSet:
    """Greedily keep the mean of the chosen images closest to the mean of all (Welling 2009).

    Image t minimises the distance between the mean and the mean of the first t chosen images, none chosen twice (the
    form of Rebuffi et al. 2017, iCaRL, Algorithm 4); ties go to the first.
    """
    space = compute_features(task, run, features, epochs)
    return choose(task, lambda members, count: selection.herd(space[members], count), per_class=per_class)


@ddbench.method(coreset=True)
def k_center(
    task: Task,
    run: Run,
    *,
    features: Features = "pixels",
    epochs: Epochs = 10,
    seeding: Seeding = "mean",
    per_class: PerClass = True,
) -> DistilledSet:
    """Greedily add the image farthest from those chosen (Gonzalez 1985; Sener and Savarese 2018).

    Euclidean distance; ties go to the first.
    """
    space = compute_features(task, run, features, epochs)

    def rule(members: Tensor, count: int) -> Tensor:
        candidates = space[members]
        if seeding == "random":
            first = int(torch.randint(len(candidates), (), generator=run.generator))
        else:
            distances = torch.linalg.vector_norm(candidates - candidates.mean(0), dim=1)
            first = int(distances.argmin() if seeding == "mean" else distances.argmax())
        return selection.greedy_k_center(candidates, count, first)

    return choose(task, rule, per_class=per_class)


@ddbench.method(coreset=True)
def k_medoids(
    task: Task,
    run: Run,
    *,
    features: Features = "pixels",
    epochs: Epochs = 10,
    iterations: Annotated[int, Field(ge=0, description="maximum number of Voronoi iterations")] = 100,
    per_class: PerClass = True,
) -> DistilledSet:
    """Keep the images that make the sum of distances to the nearest of them small.

    Greedy start (BUILD of Kaufman and Rousseeuw 1990), then Voronoi iteration (Park and Jun 2009), Euclidean distance.
    """
    space = compute_features(task, run, features, epochs)

    def rule(members: Tensor, count: int) -> Tensor:
        return selection.k_medoids(pairwise_distances(space[members]), count, iterations)

    return choose(task, rule, per_class=per_class)


@ddbench.method(coreset=True)
def facility_location(
    task: Task, run: Run, *, features: Features = "pixels", epochs: Epochs = 10, per_class: PerClass = True
) -> DistilledSet:
    """Keep images such that every image is similar to one of them: facility location (Cornuejols et al. 1977).

    Maximised by lazy greedy choice. Similarity is the largest distance between any two less the distance.
    """
    space = compute_features(task, run, features, epochs)

    def rule(members: Tensor, count: int) -> Tensor:
        distances = pairwise_distances(space[members])
        return selection.facility_location(distances.max() - distances, count)

    return choose(task, rule, per_class=per_class)


@ddbench.method(coreset=True)
def graph_cut(
    task: Task,
    run: Run,
    *,
    features: Features = "pixels",
    epochs: Epochs = 10,
    penalty: Annotated[float, Field(ge=0, description="weight of similarity among the chosen")] = 0.5,
    per_class: PerClass = True,
) -> DistilledSet:
    """Greedily add the image that is similar to all and not to those chosen: graph cut (Iyer et al. 2021).

    Similarity is the cosine of features.
    """
    space = F.normalize(compute_features(task, run, features, epochs), dim=1)
    return choose(task, lambda members, count: selection.graph_cut(space[members], count, penalty), per_class=per_class)


def pairwise_distances(features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Return Euclidean distances, exactly symmetric and zero on the diagonal."""
    # The matrix, its mirror image and their mean.
    check_memory("distances", len(features), 3 * len(features) ** 2, features.device)
    distances = torch.cdist(features.double(), features.double())
    distances = (distances + distances.T) / 2
    return distances.fill_diagonal_(0.0)

"""A method, a dataset and an init distribution, as somebody else would publish them."""

from typing import Annotated

import torch
from pydantic import Field

import ddbench
from ddbench import DistilledSet, ImageSplits, Run, Task


@ddbench.method
def class_means(task: Task, run: Run) -> DistilledSet:
    """The mean image of each class."""
    means = [task.train.inputs[task.train.of_class(label)].mean(0) for label in range(len(task.info.classes))]
    return DistilledSet(torch.stack(means)[None], torch.arange(len(means))[None])


@ddbench.dataset(classes=("even", "odd"), sample_shape=(1, 8, 8), network="linear", images_per_class=1)
def parity(root, download: bool) -> ImageSplits:
    """Handwritten digits, even or odd."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images, labels = torch.from_numpy(loaded.images * 15).byte()[:, None], torch.from_numpy(loaded.target) % 2
    return ImageSplits(images[:1400], labels[:1400], images[1400:], labels[1400:])


@ddbench.init
def small(request, *, std: Annotated[float, Field(gt=0, description="standard deviation")] = 0.01):
    """Normal weights of one small standard deviation."""
    return {
        name: std * torch.randn((request.n, *p.shape), generator=request.generator)
        for name, p in request.network.named_parameters()
    }


@ddbench.hookimpl
def ddbench_methods():
    return [class_means]


@ddbench.hookimpl
def ddbench_datasets():
    return [parity]


@ddbench.hookimpl
def ddbench_inits():
    return [small]

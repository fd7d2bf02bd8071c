"""Components made real: a dataset's examples, loaded, converted and split, and a network built for them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ddbench.data import DatasetInfo, ExampleSet, ImageSplits, normalise
from ddbench.environment import data_dir, derive_seed, free_memory
from ddbench.errors import DdbenchError, PluginError, UsageError
from ddbench.options import Component
from ddbench.spec import Choice
from ddbench.unroll import evaluation_mode

Shape = tuple[int, int, int]


def info_from_facts(dataset: Component, sample_shape: tuple[int, ...] | None = None) -> DatasetInfo:
    """What is known of a dataset before it is loaded."""
    facts = dataset.facts
    return DatasetInfo(
        name=dataset.name,
        classes=tuple(facts["classes"]),
        sample_shape=sample_shape or tuple(facts["sample_shape"]),
        mean=(0.0,),
        std=(1.0,),
        modality=facts.get("modality", "image"),
        content_hash="",
        partial=False,
    )


def load_data(
    dataset: Component, choice: Choice, sample_shape: Shape | None, *, download: bool
) -> tuple[ExampleSet, ExampleSet]:
    """Train and test examples of a dataset, converted to `sample_shape` where one is given, and normalised.

    Raises `PluginError` when the dataset's plugin fails or gives what is no data, `UsageError` for a shape that images
    cannot be converted to.
    """
    splits = dataset.call(choice.options, data_dir(), download)
    if not isinstance(splits, ImageSplits):
        raise PluginError(
            f"{dataset.who} returned {type(splits).__name__}, not ImageSplits.", "Return a ddbench.ImageSplits."
        )
    classes = tuple(dataset.facts["classes"])
    # What is declared holds for the default options; others, such as a size, may change it.
    plain = dataset.validated(choice.options) == dataset.validated({})
    splits.validate(dataset.who, len(classes), tuple(dataset.facts["sample_shape"]) if plain else None)
    if sample_shape is not None:
        _check_memory(dataset.name, splits, sample_shape)
        splits = converted(splits, sample_shape)
    return normalise(dataset.facts.get("label", dataset.name), splits, classes, dataset.facts.get("modality", "image"))


def _check_memory(name: str, splits: ImageSplits, shape: Shape) -> None:
    """Raise `DdbenchError` where the examples as float32, and the copy a method is given, cannot fit."""
    needed = (2 * len(splits.train_images) + len(splits.test_images)) * math.prod(shape) * 4
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DdbenchError(
            f"{name} at {shape[1]}x{shape[2]} pixels takes {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Convert to fewer pixels, such as --set target.size=64.",
        )


def conversion(given: Shape, wanted: Shape) -> str:
    """What is done to images of one shape to give them another, in words; empty when nothing is."""
    steps = []
    if given[0] != wanted[0]:
        steps.append("grey to RGB" if (given[0], wanted[0]) == (1, 3) else "RGB to grey")
    if given[1:] != wanted[1:]:
        steps.append(f"{given[1]}x{given[2]} to {wanted[1]}x{wanted[2]} pixels")
    return ", ".join(steps)


def converted(splits: ImageSplits, shape: Shape) -> ImageSplits:
    """The same images in another shape: grey in all three channels, colour to luma (ITU-R BT.601), resized.

    Resizing is bilinear with antialiasing. Raises `UsageError` for channels other than 1 and 3.
    """
    given = splits.train_images.shape[1]
    if shape[0] != given and {shape[0], given} != {1, 3}:
        raise UsageError(f"images of {given} channels cannot be converted to {shape[0]}.", "Give 1 (grey) or 3 (RGB).")

    def one(images: torch.Tensor) -> torch.Tensor:
        # In float, in parts: a resized dataset as float32 at once can be larger than memory.
        parts = []
        for part in torch.split(images, 1000):
            pixels = part.float()
            if shape[0] < given:
                pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
            if tuple(pixels.shape[2:]) != shape[1:]:
                pixels = F.interpolate(pixels, shape[1:], mode="bilinear", antialias=True)
            parts.append(pixels.round().clamp(0, 255).to(torch.uint8).expand(-1, shape[0], -1, -1))
        return torch.cat(parts)

    return ImageSplits(
        one(splits.train_images), splits.train_labels, one(splits.test_images), splits.test_labels, splits.partial
    )


def split_validation(train: ExampleSet, share: float) -> tuple[ExampleSet, ExampleSet]:
    """Train without the validation slice, and the slice: `share` of each class, the same whatever the run's seed."""
    generator = torch.Generator().manual_seed(derive_seed("validation slice"))
    kept, held_out = [], []
    for label in range(len(train.info.classes)):
        members = train.of_class(label)
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), max(0, len(members) - 1))
        held_out.append(members[:count])
        kept.append(members[count:])
    return train[torch.cat(kept).sort().values], train[torch.cat(held_out).sort().values]


def build(component: Component, choice: Choice, info: DatasetInfo) -> nn.Module:
    """The network for `info`. Raises `PluginError` where it is none, or does not take the dataset's examples."""
    with torch.random.fork_rng(devices=[]):
        module = component.call(choice.options, info)
    check_network(module, component.who, info)
    assert isinstance(module, nn.Module)
    return module


def check_network(module: object, who: str, info: DatasetInfo) -> None:
    """Raise `PluginError` unless `module` maps examples of the dataset to one number for each class."""
    if not isinstance(module, nn.Module):
        raise PluginError(f"{who} returned {type(module).__name__}, not an nn.Module.", "Return a torch.nn.Module.")
    try:
        with torch.no_grad(), evaluation_mode(module):
            shape = tuple(module(torch.zeros(2, *info.sample_shape)).shape)
    except Exception as error:
        raise PluginError(
            f"{who} does not work on examples of shape {list(info.sample_shape)}: {error}.",
            "Choose another with --network; `ddbench list networks` names them.",
        ) from error
    if shape != (2, len(info.classes)):
        raise PluginError(
            f"{who} gives outputs {list(shape[1:])} for {len(info.classes)} classes.", "Give one number for each class."
        )

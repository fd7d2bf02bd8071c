"""Images: conversion to another shape, and normalisation per channel."""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from ddbench.contract.component import modality
from ddbench.contract.examples import (
    IMAGE_AUGMENTATIONS,
    DatasetInfo,
    ExampleSet,
    ExamplesRequest,
    ImageSplits,
    Splits,
)
from ddbench.contract.presentation import Presentation
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Whitening
from ddbench.contract.stored_images import StoredImages
from ddbench.errors import DdbenchError, PluginError, UsageError
from ddbench.machine.environment import free_memory
from ddbench.machine.files import sha256
from ddbench.modalities.whitening import whiten

Shape = tuple[int, int, int]
MEASURED = 1000
"""Images that mean and deviation are measured on where the images stay in their files."""


def pixels_of(distilled: DistilledSet) -> Presentation:
    """Return the images of a set as pixels."""
    return Presentation(pixels=distilled.pixels())


def random_images(generator: torch.Generator) -> ImageSplits:
    """Return a few images of noise, as an example of this modality."""
    pixels = torch.randint(256, (8, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(8) % 2
    return ImageSplits(pixels[:4], labels[:4], pixels[4:], labels[4:])


@modality(present=pixels_of, example=random_images, augmentations=IMAGE_AUGMENTATIONS)
def image(splits: ImageSplits | Splits, request: ExamplesRequest) -> tuple[ExampleSet, ExampleSet]:
    """Images of one size: uint8 pixels, converted to another size where it is asked for, normalised per channel."""
    if not isinstance(splits, ImageSplits):
        raise PluginError(
            f"{request.name} holds images and gives {type(splits).__name__}.", "Return a ddbench.ImageSplits."
        )
    if request.sample_shape is not None:
        channels, height, width = request.sample_shape
        _check_memory(request.name, splits, (channels, height, width))
        splits = converted(splits, (channels, height, width))
    return normalise(request.name, splits, request.classes, request.modality, request.whitening)


def _check_memory(name: str, splits: ImageSplits, shape: Shape) -> None:
    """Raise `DdbenchError` where the examples as float32, and their split, cannot fit."""
    needed = (2 * len(splits.train_images) + len(splits.test_images)) * math.prod(shape) * 4
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DdbenchError(
            f"{name} at {shape[1]}x{shape[2]} pixels takes {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Convert to fewer pixels, such as --set target.size=64.",
        )


def conversion(before: Shape, after: Shape) -> str:
    """Describe in words how images of one shape become images of another; the same shape gives an empty text."""
    steps = []
    if before[0] != after[0]:
        steps.append("grey to RGB" if (before[0], after[0]) == (1, 3) else "RGB to grey")
    if before[1:] != after[1:]:
        steps.append(f"{before[1]}x{before[2]} to {after[1]}x{after[2]} pixels")
    return ", ".join(steps)


def resized(pixels: Float[Tensor, "n c h w"], shape: Shape) -> Float[Tensor, "n c2 h2 w2"]:
    """Return images in `shape` (channels, height, width), in the scale that they have.

    Grey is repeated in three channels, colour becomes luma (ITU-R BT.601). Resizing is bilinear with antialiasing.
    Raises `UsageError` for channels other than 1 and 3.
    """
    channels = pixels.shape[1]
    if shape[0] != channels and {shape[0], channels} != {1, 3}:
        raise UsageError(
            f"images of {channels} channels cannot be converted to {shape[0]}.", "Give 1 (grey) or 3 (RGB)."
        )
    if shape[0] < channels:
        pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    if tuple(pixels.shape[2:]) != shape[1:]:
        pixels = F.interpolate(pixels, shape[1:], mode="bilinear", antialias=True)
    return pixels.expand(-1, shape[0], -1, -1)


def converted(splits: ImageSplits, shape: Shape) -> ImageSplits:
    """Convert the images of both splits to `shape` as `resized` does. Raises as it does."""

    if isinstance(splits.train_images, StoredImages):
        raise UsageError(
            "images that are read in batches from disk are not converted to another shape.",
            "Give their size to the dataset: --set dataset.size=64",
        )

    def convert(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c2 h2 w2"]:
        # In parts: a whole resized dataset as float32 can be larger than memory.
        parts = (resized(part.float(), shape) for part in torch.split(images, 1000))
        return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])

    return ImageSplits(
        convert(splits.train_images),
        splits.train_labels,
        convert(splits.test_images),
        splits.test_labels,
        splits.partial,
    )


def normalise(
    name: str, splits: ImageSplits, classes: tuple[str, ...], modality: str, whitening: Whitening | None = None
) -> tuple[ExampleSet, ExampleSet]:
    """Normalise both splits: the training images get mean zero and variance one in each channel.

    With `whitening` they are ZCA-whitened instead. They are then another dataset, with a name and a content hash of
    its own; `mean` and `std` are 0 and 1, as no numbers per channel lead back to pixels.
    """
    first, second = splits.train_images, splits.test_images
    if isinstance(first, StoredImages) and isinstance(second, StoredImages):
        if whitening is not None:
            raise UsageError(
                f"{name} is read in batches from disk: it cannot be whitened, which takes all images at once.",
                "Leave --whitening out, or take smaller images with --set dataset.size=32.",
            )
        return _from_files(name, splits, (first, second), classes, modality)
    if whitening is not None:
        return _whitened(name, splits, classes, modality, whitening)
    train = splits.train_images.float() / 255
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3)).clamp_min(1e-6)
    info = _info(name, splits, classes, modality, mean, std)

    def examples(pixels: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> ExampleSet:
        # In place: a second copy of the dataset may not fit into memory.
        return ExampleSet(pixels.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), labels, info)

    return examples(train, splits.train_labels), examples(splits.test_images.float() / 255, splits.test_labels)


def _info(
    name: str, splits: ImageSplits, classes: tuple[str, ...], modality: str, mean: Tensor, std: Tensor
) -> DatasetInfo:
    """Return the facts about images that are normalised by mean and deviation of each channel."""
    return DatasetInfo(
        name=name,
        classes=classes,
        sample_shape=tuple(splits.train_images.shape[1:]),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        modality=modality,
        content_hash=splits.content_hash(),
        partial=splits.partial,
    )


def _from_files(
    name: str,
    splits: ImageSplits,
    stored: tuple[StoredImages, StoredImages],
    classes: tuple[str, ...],
    modality: str,
) -> tuple[ExampleSet, ExampleSet]:
    """Normalise images that stay in their files by mean and deviation of `MEASURED` of them, evenly spread."""
    train, test = stored
    places = torch.linspace(0, len(train) - 1, min(MEASURED, len(train))).long()
    count, sums, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in torch.split(places, 100):
        pixels = train.pixels(part).double() / 255
        count += pixels[:, 0].numel()
        sums, squares = sums + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    mean = sums / count
    std = ((squares - count * mean**2) / (count - 1)).clamp_min(0).sqrt().clamp_min(1e-6)
    info = _info(name, splits, classes, modality, mean, std)
    both = ((train, splits.train_labels), (test, splits.test_labels))
    first, second = (ExampleSet(images.normalised(info.mean, info.std), labels, info) for images, labels in both)
    return first, second


def _whitened(
    name: str, splits: ImageSplits, classes: tuple[str, ...], modality: str, kind: Whitening
) -> tuple[ExampleSet, ExampleSet]:
    train, test = whiten(kind, splits.train_images.float() / 255, splits.test_images.float() / 255)
    channels = train.shape[1]
    info = DatasetInfo(
        name=f"{name}+{kind}",
        classes=classes,
        sample_shape=tuple(train.shape[1:]),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        modality=modality,
        content_hash=sha256(f"{splits.content_hash()} {kind}".encode()),
        partial=splits.partial,
    )
    return ExampleSet(train, splits.train_labels, info), ExampleSet(test, splits.test_labels, info)

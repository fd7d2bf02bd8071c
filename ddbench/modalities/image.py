"""Images: converted to another shape, and normalised per channel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ddbench.contract.sets import DatasetInfo, ExampleSet, ImageSplits
from ddbench.errors import UsageError

Shape = tuple[int, int, int]


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


def normalise(name: str, splits: ImageSplits, classes: tuple[str, ...], modality: str) -> tuple[ExampleSet, ExampleSet]:
    """Train and test examples with zero mean and unit variance per channel over the training images."""
    train = splits.train_images.float() / 255
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3)).clamp_min(1e-6)
    info = DatasetInfo(
        name=name,
        classes=classes,
        sample_shape=tuple(train.shape[1:]),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        modality=modality,
        content_hash=splits.content_hash(),
        partial=splits.partial,
    )

    def prepared(images: Tensor, labels: Tensor) -> ExampleSet:
        centred = images.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        return ExampleSet(centred, labels, info)

    return prepared(train, splits.train_labels), prepared(splits.test_images.float() / 255, splits.test_labels)

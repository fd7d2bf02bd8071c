"""Differentiable augmentation of images: draw an operation and its amounts, then apply them to any batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ddbench.contract.component import did_you_mean
from ddbench.contract.examples import DatasetInfo
from ddbench.errors import Unsupported, UsageError

DSA = "color_crop_cutout_flip_scale_rotate"
"""The strategy published for photographs."""
DSA_DIGITS = "color_crop_cutout_scale_rotate"
"""The strategy published for digits: a mirrored digit is another digit or none."""

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT = 0.125, 0.5
SCALE, ROTATION, FLIP = 1.2, 15.0, 0.5


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One draw: the operations to run and the random numbers that they need. It lives on the CPU.

    The same draw transforms any batch of any side, so real and synthetic images can share it (hence "Siamese").

    Attributes:
        operations: names of operations, in the order in which they run.
        draws: `[numbers, n]` float64, uniform in [0, 1), in the order in which the operations consume them. With
            n = 1 all images share one amount, otherwise n is the number of images.
    """

    operations: tuple[str, ...]
    draws: Float[Tensor, "numbers n"]


def check(strategy: str) -> list[str]:
    """Return the names that a strategy joins. Raises `UsageError` for an unknown one."""
    names = strategy.split("_")
    for name in names:
        if name not in STRATEGIES:
            raise UsageError(
                f"the augmentation strategy {strategy!r} holds an unknown operation {name!r}."
                f"{did_you_mean(name, STRATEGIES)}",
                f"Join any of {', '.join(STRATEGIES)} by underscores.",
            )
    return names


def refuse(strategy: str, info: DatasetInfo) -> None:
    """Raise `Unsupported` where the operations of a strategy make no sense for the examples of a dataset.

    An empty strategy always does. Raises `UsageError` for an unknown name.
    """
    names = check(strategy) if strategy else []
    unsuited = [name for name in names if name not in info.augmentations or len(info.sample_shape) != 3]
    if unsuited:
        raise Unsupported(
            f"the examples of {info.name}, which are {info.modality} of shape {list(info.sample_shape)}, "
            f"cannot be augmented by {', '.join(unsuited)}.",
            "Write --set augment= or --set augmentation= for none, or name others.",
        )


def draw(strategy: str, generator: torch.Generator, images: int = 1, *, every: bool = False) -> Augmentation:
    """Draw one operation of `strategy` and its amounts (Zhao and Bilen 2021, arXiv 2102.08259, Section 3).

    `strategy` joins names by underscores, such as `DSA`: color (brightness, saturation and contrast), crop, cutout,
    flip, scale, rotate. The batch shares one amount; with `images=n` each of n images has its own. With `every=True`
    all operations run in order. Raises `UsageError` for an unknown name.
    """
    names = check(strategy)
    if not every:
        names = [names[int(torch.randint(len(names), (), generator=generator))]]
    operations = tuple(operation for name in names for operation in STRATEGIES[name])
    numbers = sum(OPERATIONS[operation][1] for operation in operations)
    return Augmentation(operations, torch.rand(numbers, images, generator=generator, dtype=torch.float64))


def apply(
    images: Float[Tensor, "n channels height width"], params: Augmentation
) -> Float[Tensor, "n channels height width"]:
    """Return the images under a draw, differentiable in them.

    Zeros fill what lies outside, which is the mean colour of normalised images. Raises `UsageError` where the draw was
    made for another number of images.
    """
    shared = params.draws.shape[1]
    if shared not in (1, len(images)):
        raise UsageError(
            f"an augmentation drawn for {shared} images was applied to {len(images)}.",
            "Draw it with images=n for a batch of n, or without for one amount that all images share.",
        )
    position = 0
    for name in params.operations:
        operation, numbers = OPERATIONS[name]
        images = operation(images, params.draws[position : position + numbers])
        position += numbers
    return images


def definition() -> dict[str, float | str]:
    """Return every number that fixes what the operations do, as JSON takes it."""
    return {
        "brightness": BRIGHTNESS, "saturation": SATURATION, "contrast": CONTRAST, "crop": CROP, "cutout": CUTOUT,
        "scale": SCALE, "rotate": ROTATION, "flip": FLIP, "coordinates": "pixel centres at half-integers",
    }  # fmt: skip


def _brightness(images: Tensor, u: Tensor) -> Tensor:
    return images + _per_image(images, (u[0] - 0.5) * BRIGHTNESS)


def _saturation(images: Tensor, u: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return (images - grey) * _per_image(images, u[0] * SATURATION) + grey


def _contrast(images: Tensor, u: Tensor) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * _per_image(images, u[0] + CONTRAST) + mean


def _flip(images: Tensor, u: Tensor) -> Tensor:
    return torch.where(_per_image(images, u[0]) < FLIP, images.flip(3), images)


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Move the window by up to an eighth of the side: `out[i, j] = x[i + dy, j + dx]`."""
    height, width = images.shape[2:]
    up, left = (_rounded(length * CROP) for length in (height, width))
    padded = F.pad(images, (left, left, up, up))
    rows = _whole(u[0], 2 * up + 1)[:, None] + torch.arange(height)
    columns = _whole(u[1], 2 * left + 1)[:, None] + torch.arange(width)
    if len(rows) == 1:  # one window for all images is a view
        return padded[:, :, rows[0, 0] : rows[0, -1] + 1, columns[0, 0] : columns[0, -1] + 1]
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle of half the side around a random centre to zero, as far as it lies in the image."""
    inside = []
    for amounts, length in zip(u, images.shape[2:], strict=True):
        hole = _rounded(length * CUTOUT)
        first = _whole(amounts, length + (1 - hole % 2))[:, None] - hole // 2
        position = torch.arange(length)
        inside.append((position >= first) & (position < first + hole))
    return images.masked_fill((inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device), 0.0)


def _scale(images: Tensor, u: Tensor) -> Tensor:
    x, y = u * (SCALE - 1 / SCALE) + 1 / SCALE
    zero = torch.zeros_like(x)
    return _warp(images, torch.stack([x, zero, zero, zero, y, zero], 1))


def _rotate(images: Tensor, u: Tensor) -> Tensor:
    angle = torch.deg2rad((2 * u[0] - 1) * ROTATION)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1))


def _warp(images: Tensor, affine: Tensor) -> Tensor:
    """Read the images bilinearly where `affine` sends each pixel; pixel centres lie at half-integers.

    The published code was written before torch 1.3 changed the default of `align_corners` and is run with later
    versions, so False is what published numbers come from.
    """
    theta = affine.view(-1, 2, 3).to(images).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def _per_image(images: Tensor, amounts: Tensor) -> Tensor:
    return amounts.to(images).view(-1, 1, 1, 1)


def _whole(u: Tensor, count: int) -> Tensor:
    """Return whole numbers from 0 to `count - 1`, all equally likely."""
    return (u * count).long()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "brightness": (_brightness, 1), "saturation": (_saturation, 1), "contrast": (_contrast, 1), "crop": (_crop, 2),
    "cutout": (_cutout, 2), "flip": (_flip, 1), "scale": (_scale, 2), "rotate": (_rotate, 1),
}  # fmt: skip
"""Each operation with the number of random numbers that it needs."""

STRATEGIES: dict[str, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    **{name: (name,) for name in ("crop", "cutout", "flip", "scale", "rotate")},
}

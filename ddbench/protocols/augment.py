"""Differentiable siamese augmentation for scoring networks (Zhao and Bilen 2021, arXiv 2102.08259)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ROTATION, SCALE, SHIFT, CUTOUT = 15.0, 1.2, 0.125, 0.5
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
AMOUNTS = {
    "rotation": ROTATION, "scale": SCALE, "shift": SHIFT, "cutout": CUTOUT, "brightness": BRIGHTNESS,
    "saturation": SATURATION, "contrast": CONTRAST,
}  # fmt: skip


def siamese(
    images: Float[Tensor, "n channels height width"], generator: torch.Generator
) -> Float[Tensor, "n channels height width"]:
    """Return normalised images under one of colour, crop, cut-out, flip, scale and rotate.

    The operation is drawn for the batch, the amount for each image. The amounts are those of the paper: rotation up to
    15 degrees, scale from 1/1.2 to 1.2, crops of an image padded by an eighth, cut-outs of half the side, brightness,
    saturation and contrast of strength 1, 2 and .5. Grey images are not flipped: digits have a handedness.
    """
    operations = [_colour, _crop, _cut_out, _scale, _rotate] + ([_flip] if images.shape[1] == 3 else [])
    operation = operations[int(torch.randint(len(operations), (), generator=generator))]
    return operation(images, lambda *shape: torch.rand(*shape, generator=generator).to(images))


Draw = Callable[..., Tensor]


def _flip(images: Tensor, draw: Draw) -> Tensor:
    return torch.where(draw(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def _rotate(images: Tensor, draw: Draw) -> Tensor:
    angle = torch.deg2rad((draw(len(images)) - 0.5) * 2 * ROTATION)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3))


def _scale(images: Tensor, draw: Draw) -> Tensor:
    height, width = (draw(len(images)) * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2))
    zero = torch.zeros_like(height)
    return _warp(images, torch.stack([height, zero, zero, zero, width, zero], 1).view(-1, 2, 3))


def _warp(images: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


def _crop(images: Tensor, draw: Draw) -> Tensor:
    """Return windows of the images' size from the images padded by an eighth of zeros."""
    n, _, height, width = images.shape
    up, left = int(height * SHIFT + 0.5), int(width * SHIFT + 0.5)
    padded = F.pad(images, (left, left, up, up))
    rows = (draw(n) * (2 * up + 1)).long().clamp(max=2 * up)[:, None] + torch.arange(height, device=images.device)
    columns = (draw(n) * (2 * left + 1)).long().clamp(max=2 * left)[:, None] + torch.arange(width, device=images.device)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, draw: Draw) -> Tensor:
    """Return images with a square of half the side, anywhere in the image, set to zero (the mean colour)."""
    n, _, height, width = images.shape
    sizes = int(height * CUTOUT + 0.5), int(width * CUTOUT + 0.5)
    inside = []
    for length, size in zip((height, width), sizes, strict=True):
        centre = (draw(n) * (length + (1 - size % 2))).long()
        positions = torch.arange(length, device=images.device)
        first = (centre - size // 2)[:, None]
        inside.append((positions >= first) & (positions < first + size))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _colour(images: Tensor, draw: Draw) -> Tensor:
    """Return images with changed brightness, then saturation, then contrast."""
    n = len(images)
    images = images + (draw(n, 1, 1, 1) - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (draw(n, 1, 1, 1) * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (draw(n, 1, 1, 1) + CONTRAST) + mean

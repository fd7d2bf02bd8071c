"""Differentiable siamese augmentation for scoring (Zhao and Bilen 2021, arXiv 2102.08259)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROTATION, SCALE, SHIFT, CUTOUT = 15.0, 1.2, 0.125, 0.5
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
AMOUNTS = {
    "rotation": ROTATION, "scale": SCALE, "shift": SHIFT, "cutout": CUTOUT, "brightness": BRIGHTNESS,
    "saturation": SATURATION, "contrast": CONTRAST,
}  # fmt: skip


def siamese(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one of colour, crop, cut-out, flip, scale and rotate, drawn for the batch; its amount is each image's own.

    `images` `[n, channels, height, width]`, normalised. The amounts are those of the paper: rotation up to 15 degrees,
    scale from 1/1.2 to 1.2, crops of an image padded by an eighth, cut-outs of half the side, brightness, saturation
    and contrast of strength 1, 2 and .5. Grey images are not flipped: digits have a handedness.
    """
    choices = [_colour, _crop, _cut_out, _scale, _rotate] + ([_flip] if images.shape[1] == 3 else [])
    chosen = choices[int(torch.randint(len(choices), (), generator=generator))]
    return chosen(images, lambda *shape: torch.rand(*shape, generator=generator).to(images))


Draw = Callable[..., Tensor]


def _flip(images: Tensor, draw: Draw) -> Tensor:
    return torch.where(draw(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def _rotate(images: Tensor, draw: Draw) -> Tensor:
    angle = torch.deg2rad((draw(len(images)) - 0.5) * 2 * ROTATION)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _moved(images, torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3))


def _scale(images: Tensor, draw: Draw) -> Tensor:
    high, wide = (draw(len(images)) * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2))
    zero = torch.zeros_like(high)
    return _moved(images, torch.stack([high, zero, zero, zero, wide, zero], 1).view(-1, 2, 3))


def _moved(images: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


def _crop(images: Tensor, draw: Draw) -> Tensor:
    """Cut a window of the image's size out of the image with an eighth of zeros around it."""
    n, _, high, wide = images.shape
    up, left = int(high * SHIFT + 0.5), int(wide * SHIFT + 0.5)
    padded = F.pad(images, (left, left, up, up))
    rows = (draw(n) * (2 * up + 1)).long().clamp(max=2 * up)[:, None] + torch.arange(high, device=images.device)
    columns = (draw(n) * (2 * left + 1)).long().clamp(max=2 * left)[:, None] + torch.arange(wide, device=images.device)
    each = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, draw: Draw) -> Tensor:
    """Set a square of half the side, its middle anywhere in the image, to zero (the mean colour)."""
    n, _, high, wide = images.shape
    sizes = int(high * CUTOUT + 0.5), int(wide * CUTOUT + 0.5)
    inside = []
    for length, size in zip((high, wide), sizes, strict=True):
        middle = (draw(n) * (length + (1 - size % 2))).long()
        places = torch.arange(length, device=images.device)
        first = (middle - size // 2)[:, None]
        inside.append((places >= first) & (places < first + size))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _colour(images: Tensor, draw: Draw) -> Tensor:
    """Change brightness, then saturation, then contrast."""
    n = len(images)
    images = images + (draw(n, 1, 1, 1) - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (draw(n, 1, 1, 1) * SATURATION) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (draw(n, 1, 1, 1) + CONTRAST) + mean

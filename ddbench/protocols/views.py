"""Views of the images of a training batch: augmented, cropped and resized, mixed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ddbench.engine import augment

RATIO = 4 / 3
"""Largest ratio of the sides of a random window to each other, and its inverse the smallest."""

Images = Float[Tensor, "n channels height width"]


def augmented(images: Images, strategy: str, generator: torch.Generator) -> Images:
    """Return images under one operation of a strategy, each with an amount of its own; grey images are not flipped."""
    names = [name for name in strategy.split("_") if name != "flip" or images.shape[1] > 1]
    if not names:
        return images
    return augment.apply(images, augment.draw("_".join(names), generator, images=len(images)))


def resized_crops(images: Images, smallest: float, generator: torch.Generator) -> Images:
    """Return a random window of each image, resized to its size (Szegedy et al. 2015, arXiv 1409.4842, Section 6).

    The area of a window is uniform between the share `smallest` and 1 of the image. The logarithm of the ratio of its
    sides is uniform up to that of `RATIO`; a side that would be longer than the image's is as long. Bilinear.
    """
    area, shape, *place = torch.rand(4, len(images), generator=generator, dtype=torch.float64)
    area, stretch = smallest + area * (1 - smallest), ((shape - 0.5) * math.log(RATIO)).exp()
    sides = [(area.sqrt() * side).clamp(max=1) for side in (stretch, 1 / stretch)]
    x, y = ((1 - side) * (2 * u - 1) for side, u in zip(sides, place, strict=True))
    zero = torch.zeros_like(x)
    affine = torch.stack([sides[0], zero, x, zero, sides[1], y], 1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def cut_mixed(
    images: Images, labels: Float[Tensor, "n classes"], generator: torch.Generator
) -> tuple[Images, Float[Tensor, "n classes"]]:
    """Return images with a window of another image of the batch, and labels mixed by area (arXiv 1905.04899, eq. 1).

    The share of the window is uniform in [0, 1] and its centre in the image, which cuts it off; both are the same for
    the whole batch.
    """
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    share, *centre = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    spans = []
    for length, place in zip(images.shape[2:], centre, strict=True):
        half, middle = int(length * math.sqrt(share)) // 2, int(place * length)
        spans.append(slice(max(middle - half, 0), min(middle + half, length)))
    mixed = images.clone()
    mixed[:, :, spans[0], spans[1]] = images[partner][:, :, spans[0], spans[1]]
    window = math.prod(span.stop - span.start for span in spans) / math.prod(images.shape[2:])
    return mixed, labels * (1 - window) + labels[partner] * window

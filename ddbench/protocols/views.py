"""Views of the images of a training batch: augmented, cropped and resized, mixed."""

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.engine import augment
from ddbench.engine.views import RATIO, Images, Mix, crop, draw_windows

__all__ = ["RATIO", "augmented", "cut_mixed", "resized_crops"]


def augmented(images: Images, strategy: str, generator: torch.Generator) -> Images:
    """Return images under one operation of a strategy, each with an amount of its own; grey images are not flipped."""
    names = [name for name in strategy.split("_") if name != "flip" or images.shape[1] > 1]
    if not names:
        return images
    return augment.apply(images, augment.draw("_".join(names), generator, images=len(images)))


def resized_crops(images: Images, smallest: float, generator: torch.Generator) -> Images:
    """Return a random window of each image, resized to its size; see `draw_windows`."""
    return crop(images, draw_windows(len(images), smallest, generator))


def cut_mixed(
    images: Images, labels: Float[Tensor, "n classes"], generator: torch.Generator
) -> tuple[Images, Float[Tensor, "n classes"]]:
    """Return images with a window of another image of the batch, and labels mixed by area; see `Mix`."""
    side = (images.shape[2], images.shape[3])
    mix = Mix.draw(len(images), side, generator)
    share = mix.share(side)
    return mix.apply(images), labels * (1 - share) + labels[mix.partners.to(labels.device)] * share

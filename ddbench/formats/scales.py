"""Scales of stored images, and the published means and deviations by which the field's repositories normalise.

The code of a repository normalises the real images that it scores on by its own numbers, so a set for that code has to
be normalised by the same numbers. They are copied from `get_dataset` in `utils.py` of each repository:

- DC, DSA and DM: https://github.com/VICO-UoE/DatasetCondensation, commit 306245d. The earlier commit 131a5a5 has the
  numbers of CIFAR-10 for CIFAR-100 too; files of that time are normalised by these.
- MTT: https://github.com/GeorgeCazenavette/mtt-distillation, commit 0c42493, without `--zca`. DATM (commit bdb24b3 of
  https://github.com/NUS-HPC-AI-Lab/DATM) has the same numbers. Neither loads MNIST, Fashion-MNIST or SVHN.

Compared with the training images that were at hand, as mean, std over all pixels, and mean over images of the std of
each image:

- MNIST, all 60 000 images: .1307, .3081, .3015. The published numbers are mean and std over all pixels.
- Fashion-MNIST, a part of 10 000: .2868, .3541, .3216. They are mean and std over all pixels, up to the part.
- CIFAR-10, a part of 15 000: (.4913, .4820, .4463), (.2475, .2440, .2626), (.2023, .1991, .2009). The published std is
  the mean over images, about .8 of the std over all pixels.
- SVHN, a part of 7000: (.4540, .4545, .4716), (.2205, .2274, .2294), (.1242, .1298, .1154). The published std is nearer
  to the one over all pixels, but this part is too unlike the rest to confirm a number.
- CIFAR-100: no images were at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.contract.examples import DatasetInfo


@dataclass(frozen=True)
class Scale:
    """A scale of stored values: (pixel in [0, 1] - mean) / std.

    Attributes:
        mean: one number, or one for each channel.
        std: likewise.
        source: whose numbers they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.7g}" for value in values) for values in (self.mean, self.std))
        return f"mean ({mean}) and std ({std})"

    @property
    def pixels(self) -> bool:
        """True for pixels in [0, 1], which nothing normalised."""
        return (self.mean, self.std) == (PIXELS.mean, PIXELS.std)

    @property
    def bytes(self) -> bool:
        """True for pixels from 0 to 255."""
        return (self.mean, self.std) == (BYTES.mean, BYTES.std)

    @property
    def described(self) -> str:
        """The scale in words."""
        if self.pixels:
            return "pixels in [0, 1]"
        return "pixels from 0 to 255" if self.bytes else f"(pixel - mean) / std with {self}, {self.source}"


PIXELS = Scale((0.0,), (1.0,))
BYTES = Scale((0.0,), (1 / 255,))

_AUTHORS = "the numbers of the authors' code"
_CIFAR10 = Scale((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), _AUTHORS)

DC: Mapping[str, Scale] = {
    "mnist": Scale((0.1307,), (0.3081,), _AUTHORS),
    "fashion_mnist": Scale((0.2861,), (0.3530,), _AUTHORS),
    "svhn": Scale((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), _AUTHORS),
    "cifar10": _CIFAR10,
    "cifar100": Scale((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), _AUTHORS),
}
"""The numbers of DC, DSA and DM, by the name of a dataset in ddbench."""

MTT: Mapping[str, Scale] = {"cifar10": _CIFAR10, "cifar100": _CIFAR10}
"""The numbers of MTT and DATM, likewise."""


def own_scale(info: DatasetInfo) -> Scale:
    """Return the scale of normalised examples of a dataset."""
    return Scale(info.mean, info.std, f"the numbers of {info.name}")


def to_scale(images: Float[Tensor, "n c h w"], before: Scale, after: Scale) -> Float[Tensor, "n c h w"]:
    """Return images of one scale in another; of the same scale as they are, to the last bit."""
    if (before.mean, before.std) == (after.mean, after.std):
        return images
    a_mean, a_std, b_mean, b_std = (
        torch.tensor(values).view(-1, 1, 1) for values in (before.mean, before.std, after.mean, after.std)
    )
    return (images * a_std + a_mean - b_mean) / b_std

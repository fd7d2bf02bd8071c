"""Published means and standard deviations, by which the field's repositories normalise images.

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
from typing import NamedTuple


class Scale(NamedTuple):
    """The numbers that images were normalised by: `(pixels - mean) / std`, for pixels in [0, 1].

    Attributes:
        mean: one number for each channel.
        std: one number for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.7g}" for value in values) for values in self)
        return f"mean ({mean}) and std ({std})"


_CIFAR10 = Scale((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

DC: Mapping[str, Scale] = {
    "mnist": Scale((0.1307,), (0.3081,)),
    "fashion_mnist": Scale((0.2861,), (0.3530,)),
    "svhn": Scale((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": _CIFAR10,
    "cifar100": Scale((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""The numbers of DC, DSA and DM, by the name of a dataset in ddbench."""

MTT: Mapping[str, Scale] = {"cifar10": _CIFAR10, "cifar100": _CIFAR10}
"""The numbers of MTT and DATM, likewise."""

"""Scales of stored images: the numbers that the field's code normalises by, and a check of a file against them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.contract.examples import DatasetInfo


@dataclass(frozen=True)
class Scale:
    """What stored values are: (pixel in [0, 1] - mean) / std.

    Attributes:
        mean: one number, or one for each channel.
        std: likewise.
        source: whose numbers they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __str__(self) -> str:
        if (self.mean, self.std) == (PIXELS.mean, PIXELS.std):
            return "pixels in [0, 1]"
        if (self.mean, self.std) == (BYTES.mean, BYTES.std):
            return "pixels from 0 to 255"
        return f"(pixel - mean) / std with mean {numbers(self.mean)} and std {numbers(self.std)}, {self.source}"


PIXELS = Scale((0.0,), (1.0,), "")
BYTES = Scale((0.0,), (1 / 255,), "")

# Of CIFAR-10 the deviations are the mean over images of each image's own; all others are those over all pixels.
# MNIST, Fashion-MNIST and CIFAR-10 agree with the data to .003, SVHN's with the full training split.
_AUTHORS = "the numbers of the authors' code"
CONDENSATION: Mapping[str, Scale] = {
    "mnist": Scale((0.1307,), (0.3081,), _AUTHORS),
    "fashion_mnist": Scale((0.2861,), (0.3530,), _AUTHORS),
    "svhn": Scale((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), _AUTHORS),
    "cifar10": Scale((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), _AUTHORS),
    "cifar100": Scale((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), _AUTHORS),
}
"""Normalisation in the code of DC, DSA and DM (github.com/VICO-UoE/DatasetCondensation, utils.py), by dataset."""

TRAJECTORIES: Mapping[str, Scale] = {**CONDENSATION, "cifar100": CONDENSATION["cifar10"]}
"""Normalisation in the code of MTT (github.com/GeorgeCazenavette/mtt-distillation), which differs in CIFAR-100."""


def numbers(values: tuple[float, ...] | list[float]) -> str:
    """Return numbers as text, apart by blanks."""
    return " ".join(f"{value:.4g}" for value in values)


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


def check(
    images: Float[Tensor, "n c h w"],
    assumed: Scale,
    expected_mean: list[float],
    expected_std: list[float],
    info: DatasetInfo,
) -> Iterator[str]:
    """Yield a line of the statistics of stored images beside those of real ones, and a warning where they disagree.

    `expected_mean` and `expected_std` are those of real training images in the assumed scale, one for each channel.
    A warning is about what hardly can be: pixels read as normalised values or the reverse, and a spread that is off by
    more than a factor of three. Distilled images may well differ from real ones by less.
    """
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    low, high = (float(value) for value in images.aminmax())
    yield (
        f"Values in the file: mean {numbers(mean.tolist())}, std {numbers(std.tolist())}, {low:.3g} to {high:.3g}. "
        f"Real images would have mean {numbers(expected_mean)}, std {numbers(expected_std)}."
    )
    normalised = (assumed.mean, assumed.std) not in ((PIXELS.mean, PIXELS.std), (BYTES.mean, BYTES.std))
    ratio = [own / real for own, real in zip(std.tolist(), expected_std, strict=True)]
    outside = float(((images < -0.5) | (images > 1.5)).float().mean())
    if normalised and low >= -0.02 and high <= 1.02 and min(expected_mean) < 0.1:
        yield _warning("they look like pixels in [0, 1]", "--file-mean 0 --file-std 1")
    elif low > -0.5 and high > 30 and (assumed.mean, assumed.std) != (BYTES.mean, BYTES.std):
        yield _warning("they look like pixels from 0 to 255", f"--file-mean 0 --file-std {1 / 255:.8f}")
    elif not normalised and assumed.std == PIXELS.std and outside > 0.1:
        share = f"{100 * outside:.0f} % of them are far outside [0, 1]"
        own = f"--file-mean {_commas(info.mean)} --file-std {_commas(info.std)}"
        yield _warning(f"{share}, as normalised images are", own)
    elif not all(1 / 3 < value < 3 for value in ratio):
        far = max(ratio, key=lambda value: abs(math.log(max(value, 1e-12))))
        yield _warning(
            f"their spread is {far:.2g} times that of real images", "--file-mean, --file-std or --file-whitening"
        )


def _commas(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _warning(what: str, flags: str) -> str:
    return f"Warning: the values do not fit the assumed scale: {what}. If so, say {flags}."

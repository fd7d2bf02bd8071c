"""A check of stored images against the scale that they are taken to have."""

import math
from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from ddbench.contract.examples import DatasetInfo
from ddbench.formats.scales import Scale


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
        f"Values in the file: mean {_numbers(mean.tolist())}, std {_numbers(std.tolist())}, {low:.3g} to {high:.3g}. "
        f"Real images would have mean {_numbers(expected_mean)}, std {_numbers(expected_std)}."
    )
    normalised = not (assumed.pixels or assumed.bytes)
    ratio = [own / real for own, real in zip(std.tolist(), expected_std, strict=True)]
    outside = float(((images < -0.5) | (images > 1.5)).float().mean())
    if normalised and low >= -0.02 and high <= 1.02 and min(expected_mean) < 0.1:
        yield _warning("they look like pixels in [0, 1]", "--file-mean 0 --file-std 1")
    elif low > -0.5 and high > 30 and not assumed.bytes:
        yield _warning("they look like pixels from 0 to 255", f"--file-mean 0 --file-std {1 / 255:.8f}")
    elif assumed.pixels and outside > 0.1:
        share = f"{100 * outside:.0f} % of them are far outside [0, 1]"
        own = f"--file-mean {_commas(info.mean)} --file-std {_commas(info.std)}"
        yield _warning(f"{share}, as normalised images are", own)
    elif not all(1 / 3 < value < 3 for value in ratio):
        far = max(ratio, key=lambda value: abs(math.log(max(value, 1e-12))))
        yield _warning(
            f"their spread is {far:.2g} times that of real images", "--file-mean, --file-std or --file-whitening"
        )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" if abs(value) > 5e-5 else "0" for value in values)


def _commas(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _warning(what: str, flags: str) -> str:
    return f"Warning: the values do not fit the assumed scale: {what}. If so, say {flags}."

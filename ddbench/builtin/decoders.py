"""Decoders: what payloads of parametrised sets stand for."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

import ddbench
from ddbench import BornLater, DatasetInfo, UsageError
from ddbench.decoders import split_tiles

Payload = Mapping[str, Tensor]
Inputs = Float[Tensor, "n *sample"]


def _random_images(info: DatasetInfo, generator: torch.Generator, **options: object) -> Payload:
    return {"images": torch.randn((2, *info.sample_shape), generator=generator)}


@ddbench.decoder(version=1, example=_random_images)
def tiles(
    payload: Payload,
    info: DatasetInfo,
    *,
    factor: Annotated[int, Field(ge=1, description="tiles along each side of a stored image")] = 2,
    undivided: Annotated[bool, Field(description="also the stored images as they are, before their tiles")] = False,
    bound: Annotated[
        int | None, Field(ge=1, description="inputs in all up to which images are divided; the rest stay undivided")
    ] = None,
    along: Annotated[
        Literal["both", "width"],
        Field(description="sides that tiles divide: of spectrograms, the width is time"),
        BornLater(),
    ] = "both",
) -> Inputs:
    """Cut each stored image into factor x factor tiles, enlarged to full size (Kim et al. 2022, IDC).

    The payload is `images [n, channels, height, width]`, normalised. Tile 0 of all images comes first, then tile 1 of
    all images; see `ddbench.decoders.split_tiles`. Where the sides are not divisible, grey (pixel 0.5) is added. With
    `bound`, the first `(bound - n) // factor^2` images are divided and the others follow as they are.
    """
    images = _member(payload, "images", (-1, *info.sample_shape))
    if images.dim() != 4:
        raise UsageError(f"tiles are for images; an example of {info.name} has {images.dim() - 1} axes.", _ADVICE)
    shape = (-1, 1, 1)
    grey = (0.5 - images.new_tensor(info.mean).view(shape)) / images.new_tensor(info.std).view(shape)
    n = len(images)
    factors = (factor, factor) if along == "both" else (1, factor)
    divided = n if bound is None else max(0, min((bound - n) // math.prod(factors), n))
    parts = [images] if undivided else []
    if divided:
        parts.append(split_tiles(images[:divided], factors, grey))
    return torch.cat([*parts, images[divided:]])


def _random_bases(info: DatasetInfo, generator: torch.Generator, **options: object) -> Payload:
    bases = torch.randn((2, *info.sample_shape), generator=generator)
    return {"coefficients": torch.randn((3, 2), generator=generator), "bases": bases}


@ddbench.decoder(version=1, example=_random_bases)
def linear_bases(payload: Payload, info: DatasetInfo) -> Inputs:
    """Compose each input of shared bases: input n = sum_k coefficients[n, k] bases[k] (Deng and Russakovsky 2022).

    The payload is `coefficients [n, k]` and `bases [k, *sample_shape]`, in normalised values.
    """
    bases = _member(payload, "bases", (-1, *info.sample_shape))
    coefficients = _member(payload, "coefficients", (-1, len(bases)))
    return torch.einsum("nk,k...->n...", coefficients, bases)


_ADVICE = "Take a set that was made for this dataset, or another decoder."


def _member(payload: Payload, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a floating-point tensor of the payload, of `shape` (-1: any length). Raises `UsageError` for another."""
    tensor = payload.get(name)
    wanted = f"{name} [{', '.join('n' if length < 0 else str(length) for length in shape)}]"
    if tensor is None:
        raise UsageError(f"the payload has no {wanted}, but: {', '.join(sorted(payload)) or 'nothing'}.", _ADVICE)
    same = tensor.dim() == len(shape) and all(
        length in (-1, own) for length, own in zip(shape, tensor.shape, strict=True)
    )
    if not same:
        raise UsageError(f"the payload has {name} of shape {list(tensor.shape)} where {wanted} is expected.", _ADVICE)
    # Half precision is a way of storing; networks train in float32.
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@ddbench.hookimpl
def ddbench_decoders() -> list[object]:
    return [tiles, linear_bases]

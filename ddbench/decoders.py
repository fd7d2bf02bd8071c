"""Tiles for authors of methods: images that hold several smaller ones, as parametrised sets store them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["join_tiles", "split_tiles"]


def split_tiles(
    images: Float[Tensor, "n c h w"], factor: int | tuple[int, int], pad: float | Float[Tensor, "c 1 1"] = 0.0
) -> Float[Tensor, "m c h w"]:
    """Return the `factor * factor` tiles of each image, enlarged to its size: `[factor^2 * n, channels, h, w]`.

    Tile 0 of all images comes first, then tile 1 of all images, ..., in row-major order: with `labels [n]` of the
    images, `labels.repeat(factor**2)` are those of the tiles. Tiles are enlarged bilinearly with half-pixel centres.
    A pair of factors is that of rows and of columns: spectrograms are cut along time alone by (1, factor).
    Where `factor` does not divide a side, rows and columns of `pad` are added at the bottom and the right.
    (Kim et al. 2022, arXiv 2205.14959, Section 4, and the code of its authors, IDC.)
    """
    height, width = images.shape[2:]
    rows_of_tiles, columns_of_tiles = (factor, factor) if isinstance(factor, int) else factor
    size = math.ceil(height / rows_of_tiles), math.ceil(width / columns_of_tiles)
    margin = (0, columns_of_tiles * size[1] - width, 0, rows_of_tiles * size[0] - height)
    # Padding with a value for each channel: pad what differs from it by zeros.
    padded = F.pad(images - pad, margin) + pad if any(margin) else images
    rows = padded.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
    tiles = rows.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    return F.interpolate(tiles, (height, width), mode="bilinear", align_corners=False)


def join_tiles(
    images: Float[Tensor, "m c tile_h tile_w"], factor: int | tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "n c h w"]:
    """Return images of `size`, height and width, each made of `factor * factor` of the given ones.

    Tile t of image i is number `t * n + i` of the `n * factor^2` given images, reduced by nearest neighbour. Where
    `factor` does not divide a side, the first tiles are a pixel longer. This is how parametrised sets start from real
    images (Kim et al. 2022, IDC) and how crops are joined (Sun et al. 2024, arXiv 2312.03526, RDED).
    Raises `ValueError` where the number of images is not a multiple of `factor^2`.
    """
    factors = (factor, factor) if isinstance(factor, int) else factor
    if len(images) % math.prod(factors):
        raise ValueError(f"{len(images)} images do not make images of {factors[0]} x {factors[1]} tiles")
    groups = iter(images.reshape(math.prod(factors), -1, *images.shape[1:]))
    heights, widths = (_lengths(side, count) for side, count in zip(size, factors, strict=True))
    rows = []
    for height in heights:
        tiles = [F.interpolate(next(groups), (height, width), mode="nearest") for width in widths]
        rows.append(torch.cat(tiles, 3))
    return torch.cat(rows, 2)


def _lengths(side: int, factor: int) -> list[int]:
    return [side // factor + (i < side % factor) for i in range(factor)]

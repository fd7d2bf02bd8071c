"""ZCA-whitening of images, as two lines of the field do it: fitted on the training split, applied to both splits.

Two kinds, which differ in what is whitened:

- `zca`: pixels in [0, 1] around their mean image m. With C = U diag(s) U' their covariance,
  z = U diag((s + eps)^-1/2) U' (x - m), eps = .1 (kornia's `ZCAWhitening`, as used by Cazenavette et al. 2022).
- `zca-kip`: images with mean zero and deviation one in each channel, flat; each less its own mean and divided by its
  own norm. With C = U diag(s) U' the second moment of the first 45 000 of them and r = .1 trace(C) / d,
  z = U diag((s + r)^-1/2) U' x (Nguyen et al. 2021, KIP; Zhou et al. 2022, FRePo).

The first is linear and can be undone. The second forgets mean and norm of each image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ddbench.contract.spec import Whitening
from ddbench.errors import DdbenchError
from ddbench.machine.environment import free_memory

EPS = 0.1
KIP_RIDGE = 0.1
KIP_IMAGES = 45_000
MATRICES = 4
"""Matrices of float64 that are held at a time: covariance, eigenvectors, their product and work space."""

Images = Float[Tensor, "n c h w"]
Training = Float[Tensor, "m c h w"]


def whiten(kind: Whitening, train: Training, test: Images) -> tuple[Training, Images]:
    """Return both splits whitened by the training split. Both are pixels in [0, 1].

    Raises `DdbenchError` where the covariance of so many values does not fit into memory.
    """
    _check_memory(train[0].numel())
    if kind == "zca":
        mean, forward, _ = _zca(train)
        return _apply(train, mean, forward), _apply(test, mean, forward)
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3)).clamp_min(1e-6)
    flat = [_own_mean_and_norm(images, mean, std) for images in (train, test)]
    first = flat[0][:KIP_IMAGES].double()
    moment = first.T @ first / len(first)
    values, vectors = torch.linalg.eigh(moment)
    ridge = KIP_RIDGE * moment.trace() / len(moment)
    matrix = (vectors * (values.clamp(min=0) + ridge).rsqrt() @ vectors.T).float()
    return (flat[0] @ matrix).view_as(train), (flat[1] @ matrix).view_as(test)


def unwhiten(images: Images, train: Training) -> Images:
    """Return the pixels of images that were whitened by `zca`; `train` are the training images in [0, 1].

    x = m + U diag((s + eps)^1/2) U' z. Raises as `whiten` does.
    """
    _check_memory(train[0].numel())
    mean, _, backward = _zca(train)
    pixels: Tensor = images.flatten(1) @ backward + mean
    return pixels.view_as(images)


def _check_memory(values: int) -> None:
    needed, free = MATRICES * values**2 * 8, free_memory(torch.device("cpu"))
    if needed > free:
        raise DdbenchError(
            f"whitening images of {values} values takes {needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free.",
            "Convert them to fewer pixels, such as --set sample_shape=[3,32,32].",
        )


def _zca(train: Images) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Return the mean image, the whitening matrix, and its inverse."""
    flat = train.flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(centred)).double())
    deviations = (values.clamp(min=0) + EPS).sqrt()
    forward, backward = (vectors * scale @ vectors.T for scale in (1 / deviations, deviations))
    return mean, forward.float(), backward.float()


def _apply(images: Images, mean: Float[Tensor, " d"], matrix: Float[Tensor, "d d"]) -> Images:
    whitened: Tensor = (images.flatten(1) - mean) @ matrix
    return whitened.view_as(images)


def _own_mean_and_norm(images: Images, mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> Float[Tensor, "n d"]:
    flat = ((images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    norms: Tensor = flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return flat / norms

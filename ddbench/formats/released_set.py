"""Images and labels as a released file holds them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.scales import BYTES, PIXELS, Scale


@dataclass(frozen=True)
class ReleasedSet:
    """A set as its file holds it.

    Attributes:
        images: `[n, channels, height, width]` float32, or `[n, values]`, flat images of the dataset's shape.
        labels: `[n]` int64 class numbers, or `[n, classes]` float32.
        scale: what the values of the images are, where the file itself shows it.
        lrs: `[epochs, steps]` float32, or a scalar: the learning rates in the file.
        steps: images belong to so many steps, in order.
        notices: one line for each part of the file that is not used as it stands.
    """

    images: Float[Tensor, " n *sample"]
    labels: Shaped[Tensor, " n *classes"]
    scale: Scale | None = None
    lrs: Float[Tensor, " *epochs_steps"] | None = None
    steps: int = 1
    notices: tuple[str, ...] = ()

    @classmethod
    def checked(cls, path: Path, images: object, labels: object, *, flat: bool = False) -> "ReleasedSet":
        """Build the set from the content of `path`; `flat` images are rows of values.

        Images with channels last, images of whole numbers (pixels from 0 to 255), and class numbers stored as floats
        are converted, with a notice. Raises `UsageError` for content that cannot be scored at all.
        """
        images, labels = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in (images, labels))
        if (
            not isinstance(images, Tensor)
            or not isinstance(labels, Tensor)
            or not all(t.layout == torch.strided and not t.is_quantized for t in (images, labels))
            or images.dim() != (2 if flat else 4)
            or labels.dim() not in (1, 2)
            or len(images) != len(labels)
        ):
            raise UsageError(
                f"{path} has no images [n, channels, height, width] with one label each.",
                "See: ddbench evaluate --help",
            )
        if not images.numel() or not labels.numel():
            raise UsageError(f"{path} holds an empty set.", "Fetch it again.")
        if images.is_complex() or images.dtype == torch.bool:
            raise UsageError(f"the images in {path} are {_dtype(images)}.", "Save them as float32.")
        if labels.is_complex() or labels.dtype == torch.bool:
            raise UsageError(f"the labels in {path} are {_dtype(labels)}.", "Save class numbers [n] as int64.")
        for name, tensor in (("images", images), ("labels", labels)):
            if not torch.isfinite(tensor.float()).all():
                raise UsageError(f"the {name} in {path} have NaN or infinite values.", "Fetch it again.")
        images, labels, notices, scale = images.detach(), labels.detach(), [], None
        if not flat and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
            images = images.permute(0, 3, 1, 2)
            notices.append("Channels are last in the file: moved to the front.")
        if not images.is_floating_point():
            scale = BYTES
            notices.append(f"Images are whole numbers ({_dtype(images)}): taken as pixels from 0 to 255.")
        labels, said = _plain_labels(path, labels)
        notices += said
        return cls(images.float().contiguous(), labels, scale, notices=tuple(notices))

    def noting(self, *notices: str) -> "ReleasedSet":
        """Return the same set with more notices."""
        return replace(self, notices=(*self.notices, *notices))

    def as_pixels(self) -> "ReleasedSet":
        """Return the same set, whose values are known to be pixels in [0, 1] unless they are whole numbers."""
        return self if self.scale is not None else replace(self, scale=PIXELS)


def _plain_labels(path: Path, labels: Tensor) -> tuple[Tensor, list[str]]:
    """Return class numbers `[n]` as int64, or labels `[n, classes]` as float32, and what was converted."""
    said = []
    if labels.dim() == 2 and labels.shape[1] == 1:
        if labels.is_floating_point() and not torch.equal(labels, labels.round()):
            raise UsageError(
                f"the labels in {path} are one number each, for a network with one output.",
                "ddbench scores networks with one output for each class; save labels [n, classes].",
            )
        labels = labels[:, 0]
    if labels.dim() == 1 and labels.is_floating_point():
        if not torch.equal(labels, labels.round()):
            raise UsageError(
                f"the labels in {path} are fractions, one for each image.",
                "Save class numbers [n] as int64, or labels [n, classes] as float32.",
            )
        said.append(f"Labels are whole numbers stored as {_dtype(labels)}: taken as class numbers.")
        labels = labels.long()
    if labels.dim() == 2 and not labels.is_floating_point():
        onehot = bool(labels.sum(1).eq(1).all()) and bool(labels.ge(0).all())
        if not onehot:
            raise UsageError(
                f"the labels in {path} are {_dtype(labels)} {list(labels.shape)}.",
                "Save class numbers [n] as int64, or labels [n, classes] as float32.",
            )
        said.append("Labels are one-hot: taken as class numbers.")
        labels = labels.argmax(1)
    return (labels.float() if labels.dim() == 2 else labels.long()), said


def are_distributions(labels: Shaped[Tensor, "n classes"]) -> bool:
    """Return True where each row is a probability distribution, up to the rounding of stored numbers."""
    return bool(labels.ge(-1e-6).all()) and bool((labels.sum(-1) - 1).abs().le(1e-3).all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

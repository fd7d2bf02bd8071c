"""Images and labels as a released file holds them, and their conversion to a `DistilledSet`."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ddbench.contract.examples import DatasetInfo
from ddbench.contract.sets import DistilledSet
from ddbench.errors import UsageError

ZCA_EPS = 0.1


@dataclass(frozen=True)
class ReleasedSet:
    """A set as its file holds it.

    Attributes:
        images: `[n, channels, height, width]`, any real number type.
        labels: `[n]` int64, or `[n, classes]` float: probabilities, or logits of a teacher.
        pixels: True where images are known to lie in [0, 1]; False where they were normalised.
        classes: names of the folders that hard labels number; empty where the file has no names.
        notices: one line for each part of the file that is not used as it stands.
    """

    images: Shaped[Tensor, "n c h w"]
    labels: Shaped[Tensor, " n *classes"]
    pixels: bool = False
    classes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @classmethod
    def checked(cls, path: Path, images: object, labels: object, notices: tuple[str, ...] = ()) -> "ReleasedSet":
        """Build the set from the content of `path`. Raises `UsageError` for content that cannot be scored at all."""
        if (
            not isinstance(images, Tensor)
            or not isinstance(labels, Tensor)
            or not all(t.layout == torch.strided and not t.is_quantized for t in (images, labels))
            or images.dim() != 4
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
        soft = labels.dim() == 2
        if labels.is_complex() or labels.dtype == torch.bool or soft != labels.is_floating_point():
            raise UsageError(
                f"the labels in {path} are {_dtype(labels)} {list(labels.shape)}.",
                "Save class numbers [n] as int64, or labels [n, classes] as float32.",
            )
        for name, tensor in (("images", images), ("labels", labels)):
            if not torch.isfinite(tensor.float()).all():
                raise UsageError(f"the {name} in {path} have NaN or infinite values.", "Fetch it again.")
        return cls(images.detach(), labels.detach().float() if soft else labels.long(), notices=notices)

    def to_distilled(
        self,
        info: DatasetInfo,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        whitened_by: Float[Tensor, "m c h w"] | None = None,
        logits: bool = False,
    ) -> DistilledSet:
        """Convert to a plain set of one step, normalised by the statistics of `info`.

        `mean` and `std` are the statistics that the file's images were normalised by, one number or one per channel;
        left out, they are those of `info`. `whitened_by` are the training images in [0, 1] that the file's images
        were ZCA-whitened by. `logits` declares labels to be logits of a teacher, not probabilities.
        Raises `UsageError` for images and labels that contradict these arguments or do not fit the dataset.
        """
        if tuple(self.images.shape[1:]) != info.sample_shape:
            raise UsageError(
                f"the images are {_by(self.images.shape[1:])}, those of {info.name} {_by(info.sample_shape)}.",
                "Name the dataset they were made for, or convert it: --set sample_shape=[3,32,32]",
            )
        self._check_normalisation(mean, std, whitened_by is not None)
        images = self.images.float()
        if whitened_by is not None:
            images = _unwhiten(images, whitened_by)
        if self.pixels or whitened_by is not None:
            mean, std = (0.0,), (1.0,)
        if mean is not None and std is not None:
            shape = (-1, 1, 1)
            raw = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
            images = (raw - torch.tensor(info.mean).view(shape)) / torch.tensor(info.std).view(shape)
        labels = self._soft_labels(info, logits) if self.labels.is_floating_point() else self._hard_labels(info, logits)
        return DistilledSet(images[None], labels[None])

    def _check_normalisation(
        self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, whitened: bool
    ) -> None:
        channels = self.images.shape[1]
        if (mean is None) != (std is None) or any(len(v) not in (1, channels) for v in (mean, std) if v):
            raise UsageError(
                f"mean and std must both be given, as one number each or as {channels}.",
                "Such as --file-mean 0.491,0.482,0.447 --file-std 0.247,0.243,0.262",
            )
        if not all(map(math.isfinite, (mean or ()) + (std or ()))) or any(value <= 0 for value in std or ()):
            raise UsageError(
                "mean and std of the file must be finite, the std above zero.",
                "Give the numbers of the file's authors by --file-mean and --file-std.",
            )
        if self.pixels and (whitened or mean is not None):
            raise UsageError(
                "the images in folders are pixels, neither normalised nor whitened.",
                "Leave out --file-mean, --file-std and --file-zca.",
            )
        if not self.images.is_floating_point() and mean is None:
            raise UsageError(
                f"the images are whole numbers ({_dtype(self.images)}), so they are not normalised.",
                "Give the scale to pixels in [0, 1]; for 0 to 255: --file-mean 0 --file-std 0.00392157",
            )

    def _soft_labels(self, info: DatasetInfo, logits: bool) -> Float[Tensor, "n classes"]:
        labels = self.labels.float()
        if labels.shape[1] != len(info.classes):
            raise UsageError(
                f"the labels are of {labels.shape[1]} classes, {info.name} has {len(info.classes)}.",
                "Name the dataset they were made for.",
            )
        if logits:
            return labels.softmax(-1)
        if not are_distributions(labels):
            # Logits look like damaged probabilities: only the user knows.
            raise UsageError(
                "the soft labels are not probabilities: they must not be negative and sum to one.",
                "If they are logits of a teacher, add: --file-labels logits",
            )
        labels = labels.clamp(min=0)
        return labels / labels.sum(-1, keepdim=True)

    def _hard_labels(self, info: DatasetInfo, logits: bool) -> Int[Tensor, " n"]:
        if logits:
            raise UsageError("each label is a class number, not logits.", "Leave out --file-labels logits.")
        count = len(info.classes)
        labels = self._labels_of_folders(info)[self.labels] if self.classes else self.labels
        if not 0 <= labels.min() <= labels.max() < count:
            raise UsageError(
                f"the labels are {int(labels.min())} to {int(labels.max())}, the {count} classes of {info.name} are "
                f"0 to {count - 1}.",
                "Name the dataset they were made for.",
            )
        missing = torch.nonzero(labels.bincount(minlength=count) == 0).flatten().tolist()
        if missing:
            raise UsageError(
                f"class {info.classes[missing[0]]!r} has no image in this file.",
                f"Name the dataset it was made for, or take a file with images of every class of {info.name}.",
            )
        return labels

    def _labels_of_folders(self, info: DatasetInfo) -> Int[Tensor, " folders"]:
        unknown = [name for name in self.classes if name not in info.classes]
        if unknown:
            raise UsageError(
                f"folder {unknown[0]!r} is not a class of {info.name}.", f"It has {', '.join(info.classes[:10])}."
            )
        return torch.tensor([info.classes.index(name) for name in self.classes])


def are_distributions(labels: Shaped[Tensor, "n classes"]) -> bool:
    """Return True where each row is a probability distribution, up to the rounding of stored numbers."""
    return bool(labels.ge(-1e-6).all()) and bool((labels.sum(-1) - 1).abs().le(1e-3).all())


def _unwhiten(images: Float[Tensor, "n c h w"], training: Float[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
    """Invert the ZCA-whitening by `training`.

    With C = U diag(s) U' the covariance of the flat training images around their mean m, whitening is z = W (x - m)
    with W = U diag((s + eps)^-1/2) U', so x = m + U diag((s + eps)^1/2) U' z. eps = .1, as in Cazenavette et al. 2022.
    """
    flat = training.flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    inverse = vectors * (values.clamp(min=0) + ZCA_EPS).sqrt() @ vectors.T
    pixels: Tensor = images.flatten(1) @ inverse + mean
    return pixels.view_as(images)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

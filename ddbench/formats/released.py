"""Distilled sets that others made: folders of images, and the files that the field's public repositories release.

No code of theirs is run: tensors are read with `weights_only=True`, arrays without pickles.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from ddbench.contract.sets import DatasetInfo, DistilledSet
from ddbench.errors import UsageError
from ddbench.machine.files import load_tensors

ZCA_EPS = 0.1
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ForeignSet:
    """Images `[n, channels, height, width]` and labels `[n]` or `[n, classes]` as a file holds them.

    `pixels` says that images are in [0, 1]; else they were normalised. `classes` names the folders that labels stand
    for. `told` are lines on what in the file was not taken as it stands.
    """

    images: Tensor
    labels: Tensor
    pixels: bool = False
    classes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def as_set(
        self,
        info: DatasetInfo,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        whitened_by: Tensor | None = None,
        logits: bool = False,
    ) -> DistilledSet:
        """The set, normalised as `info` says.

        `mean` and `std` are what the file's images were normalised by; by the dataset's own when left out.
        `whitened_by` says that they were ZCA-whitened instead, by training images `[n, channels, height, width]` in
        [0, 1]. `logits` says that labels are logits of a teacher, not probabilities. Raises `UsageError` for images
        and labels that are not as these say, or do not fit the dataset.
        """
        if tuple(self.images.shape[1:]) != info.sample_shape:
            raise UsageError(
                f"the images are {'x'.join(map(str, self.images.shape[1:]))}, those of {info.name} "
                f"{'x'.join(map(str, info.sample_shape))}.",
                "Name the dataset they were made for, or convert it: --set sample_shape=[3,32,32]",
            )
        self._check_normalisation(mean, std, whitened_by is not None)
        images = self.images.float()
        if whitened_by is not None:
            images = _unwhitened(images, whitened_by)
        if self.pixels or whitened_by is not None:
            mean, std = (0.0,), (1.0,)
        if mean is not None and std is not None:
            shape = (-1, 1, 1)
            raw = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
            images = (raw - torch.tensor(info.mean).view(shape)) / torch.tensor(info.std).view(shape)
        labels = self._soft(info, logits) if self.labels.is_floating_point() else self._hard(info, logits)
        return DistilledSet(images[None], labels[None])

    def _check_normalisation(
        self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, whitened: bool
    ) -> None:
        channels = self.images.shape[1]
        if (mean is None) != (std is None) or any(len(v) not in (1, channels) for v in (mean, std) if v):
            raise UsageError(
                f"mean and std must both be given, one number each or {channels}.",
                "Such as --file-mean 0.491,0.482,0.447 --file-std 0.247,0.243,0.262",
            )
        if not all(map(math.isfinite, (mean or ()) + (std or ()))) or any(value <= 0 for value in std or ()):
            raise UsageError(
                "what the images were normalised by must be finite, the std above zero.",
                "Give it by --file-mean and --file-std as the file's authors did.",
            )
        if self.pixels and (whitened or mean is not None):
            raise UsageError(
                "the images in folders are pixels, neither normalised nor whitened.",
                "Leave out --file-mean, --file-std and --file-zca.",
            )
        if not self.images.is_floating_point() and mean is None:
            raise UsageError(
                f"the images are whole numbers ({_dtype(self.images)}), so they are not normalised.",
                "Say what makes pixels in [0, 1] of them; for 0 to 255: --file-mean 0 --file-std 0.00392157",
            )

    def _soft(self, info: DatasetInfo, logits: bool) -> Tensor:
        labels = self.labels.float()
        if labels.shape[1] != len(info.classes):
            raise UsageError(
                f"the labels are of {labels.shape[1]} classes, {info.name} has {len(info.classes)}.",
                "Name the dataset they were made for.",
            )
        if logits:
            return labels.softmax(-1)
        if not _distributions(labels):
            # Logits cannot be told from labels that went wrong.
            raise UsageError(
                "the soft labels are not probabilities: they must not be negative and sum to one.",
                "If they are logits of a teacher, say so: --file-labels logits",
            )
        labels = labels.clamp(min=0)
        return labels / labels.sum(-1, keepdim=True)

    def _hard(self, info: DatasetInfo, logits: bool) -> Tensor:
        if logits:
            raise UsageError("each label is the number of a class, not logits.", "Leave out --file-labels logits.")
        count = len(info.classes)
        labels = self._named(info)[self.labels] if self.classes else self.labels
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

    def _named(self, info: DatasetInfo) -> Tensor:
        """The dataset's label of each folder."""
        unknown = [name for name in self.classes if name not in info.classes]
        if unknown:
            raise UsageError(
                f"folder {unknown[0]!r} is no class of {info.name}.", f"It has {', '.join(info.classes[:10])}."
            )
        return torch.tensor([info.classes.index(name) for name in self.classes])


def _unwhitened(images: Tensor, training: Tensor) -> Tensor:
    """Pixels from images that ZCA-whitening by `training` gave.

    With C = U diag(s) U' the covariance of the flat training images around their mean m, whitening is z = W (x - m)
    with W = U diag((s + eps)^-1/2) U', so x = m + U diag((s + eps)^1/2) U' z. eps = .1, as in Cazenavette et al. 2022.
    """
    flat = training.flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    back = vectors * (values.clamp(min=0) + ZCA_EPS).sqrt() @ vectors.T
    pixels: Tensor = images.flatten(1) @ back + mean
    return pixels.view_as(images)


class _Unread:
    """What stands in for a numpy value in a file of tensors: nothing of it is read, and no code of numpy's is run."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Forget it."""


# Result files keep accuracies as numpy scalars beside the images, pickled by names of numpy 1 or of numpy 2.
_NUMPY = ["numpy.dtype", "numpy.ndarray"]
_NUMPY += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]


def _tensors(path: Path) -> Any:
    with safe_globals([(_Unread, name) for name in _NUMPY]):
        return load_tensors(path)


def read(path: Path, repetition: int = 0) -> ForeignSet:
    """The set in `path`: a folder of a folder of images per class, or with `images_best.pt` and `labels_best.pt`
    (trajectory matching); a `.pt` file whose `data` is a list of [images, labels] (gradient and distribution matching),
    of which `repetition` is taken; an `.npz` file with `images` and `labels` (kernel inducing points).

    Raises `UsageError` where it is none of these.
    """
    if repetition and (path.is_dir() or path.suffix == ".npz"):
        raise UsageError(f"{path} holds one set.", "Leave out --repetition.")
    if path.is_dir():
        return _matched_trajectories(path) if (path / "images_best.pt").exists() else _folders(path)
    if path.suffix == ".npz":
        return _inducing_points(path)
    content = _tensors(path)
    repetitions = content.get("data") if isinstance(content, dict) else None
    if not isinstance(repetitions, list) or not repetitions:
        raise UsageError(f"{path} holds no list of [images, labels] under 'data'.", "See: ddbench evaluate --help")
    if not 0 <= repetition < len(repetitions):
        raise UsageError(f"{path} holds {len(repetitions)} repetitions.", f"Give 0 to {len(repetitions) - 1}.")
    pair = repetitions[repetition]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UsageError(f"repetition {repetition} of {path} is no pair [images, labels].", "Fetch the file again.")
    return _checked(ForeignSet(*pair), path)


def _matched_trajectories(folder: Path) -> ForeignSet:
    images, labels = _tensors(folder / "images_best.pt"), _tensors(folder / "labels_best.pt")
    told = []
    path = folder / "lr_best.pt"
    if path.exists():
        rate = _tensors(path)
        rate = torch.as_tensor(rate) if isinstance(rate, Tensor | float) else torch.empty(0)
        if rate.numel() != 1 or not rate.is_floating_point():
            raise UsageError(f"{path} holds no learned rate.", "Remove it, or fetch it again; it is not used.")
        told.append(f"The learned rate {rate.item():g} of {path} is not used: the protocol brings its own.")
    return _checked(ForeignSet(images, labels, told=tuple(told)), folder)


def _inducing_points(path: Path) -> ForeignSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except Exception as error:
        # What the reader stumbles over in a file of another kind is as various as such files.
        raise UsageError(f"{path} holds no arrays images and labels: {error}.", "Fetch it again.") from error
    # Channels last.
    images = images.permute(0, 3, 1, 2) if images.dim() == 4 and images.shape[-1] in (1, 3) else images
    found = _checked(ForeignSet(images, labels), path)
    if not labels.is_floating_point() or not _distributions(labels + 1 / labels.shape[1]):
        return found
    # Targets of the kernel regression: one-hot or learned labels less their mean, 1 / classes.
    labels = labels + 1 / labels.shape[1]
    if bool(labels.amax(-1).ge(1 - 1e-3).all()):
        told = f"Labels of {path} are one-hot less 1/classes: taken as hard labels."
        return replace(found, labels=labels.argmax(-1), told=(told,))
    told = f"Labels of {path} are probabilities less 1/classes: taken as soft labels, with it added again."
    return replace(found, labels=labels, told=(told,))


def _folders(path: Path) -> ForeignSet:
    from PIL import Image

    folders = sorted(child for child in path.iterdir() if child.is_dir())
    images, labels = [], []
    for label, folder in enumerate(folders):
        for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES):
            try:
                with Image.open(file) as picture:
                    array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise UsageError(f"{file} is no picture.", "Remove it, or fetch it again.") from error
            images.append(torch.from_numpy(array.copy()).view(*array.shape[:2], -1).permute(2, 0, 1).float() / 255)
            labels.append(label)
    if not images:
        raise UsageError(f"{path} has no folders of images.", "Lay them out as PATH/CLASS/IMAGE.png.")
    if len({image.shape for image in images}) > 1:
        raise UsageError(f"the images in {path} differ in size or in channels.", "Make them alike.")
    classes = tuple(folder.name for folder in folders)
    return ForeignSet(torch.stack(images), torch.tensor(labels), pixels=True, classes=classes)


def _checked(found: ForeignSet, path: Path) -> ForeignSet:
    """The same, its labels whole numbers or rows of floats. Raises `UsageError` for what could not be scored at all."""
    images, labels = found.images, found.labels
    if (
        not all(isinstance(t, Tensor) and t.layout == torch.strided and not t.is_quantized for t in (images, labels))
        or images.dim() != 4
        or labels.dim() not in (1, 2)
        or len(images) != len(labels)
    ):
        raise UsageError(
            f"{path} holds no images [n, channels, height, width] with a label each.", "See: ddbench evaluate --help"
        )
    if not images.numel() or not labels.numel():
        raise UsageError(f"{path} holds an empty set.", "Fetch it again.")
    if images.is_complex() or images.dtype == torch.bool:
        raise UsageError(f"the images in {path} are {_dtype(images)}.", "Save them as float32.")
    soft = labels.dim() == 2
    if labels.is_complex() or labels.dtype == torch.bool or soft != labels.is_floating_point():
        raise UsageError(
            f"the labels in {path} are {_dtype(labels)} {list(labels.shape)}.",
            "Save whole numbers [n], each of a class, or float32 [n, classes].",
        )
    for what, tensor in (("images", images), ("labels", labels)):
        if not torch.isfinite(tensor.float()).all():
            raise UsageError(f"the {what} in {path} have NaN or infinite values.", "Fetch it again.")
    return replace(found, images=images.detach(), labels=labels.detach().float() if soft else labels.long())


def _distributions(labels: Tensor) -> bool:
    """Whether each row is not negative and sums to one, as far as stored numbers do."""
    return bool(labels.ge(-1e-6).all()) and bool((labels.sum(-1) - 1).abs().le(1e-3).all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

"""Distilled sets that others made: folders of images, and the files that the field's public repositories release.

No code of theirs is run: tensors are read with `weights_only=True`, arrays without pickles.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddbench.data import DatasetInfo, DistilledSet
from ddbench.errors import UsageError
from ddbench.files import load_tensors

ZCA_EPS = 0.1
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ForeignSet:
    """Images `[n, channels, height, width]` and labels `[n]` or `[n, classes]` as a file holds them.

    `pixels` says that images are in [0, 1]; else they were normalised. `classes` names the folders that labels stand
    for.
    """

    images: Tensor
    labels: Tensor
    pixels: bool = False
    classes: tuple[str, ...] = ()

    def as_set(
        self,
        info: DatasetInfo,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        whitened_by: Tensor | None = None,
    ) -> DistilledSet:
        """The set, normalised as `info` says.

        `mean` and `std` are what the file's images were normalised by; by the dataset's own when left out.
        `whitened_by` says that they were ZCA-whitened instead, by training images `[n, channels, height, width]` in
        [0, 1]. Raises `UsageError` for images of another shape or folders that are no classes of the dataset.
        """
        if tuple(self.images.shape[1:]) != info.sample_shape:
            raise UsageError(
                f"the images are {'x'.join(map(str, self.images.shape[1:]))}, those of {info.name} "
                f"{'x'.join(map(str, info.sample_shape))}.",
                "Name the dataset they were made for, or convert it: --set sample_shape=[3,32,32]",
            )
        images = self.images.float()
        if (mean is None) != (std is None) or any(len(v) not in (1, images.shape[1]) for v in (mean, std) if v):
            raise UsageError(
                f"mean and std must both be given, one number each or {images.shape[1]}.",
                "Such as --file-mean 0.491,0.482,0.447 --file-std 0.247,0.243,0.262",
            )
        if whitened_by is not None:
            images = _unwhitened(images, whitened_by)
        if self.pixels or whitened_by is not None:
            mean, std = (0.0,), (1.0,)
        if mean is not None and std is not None:
            shape = (-1, 1, 1)
            raw = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
            images = (raw - torch.tensor(info.mean).view(shape)) / torch.tensor(info.std).view(shape)
        labels = self.labels
        if labels.is_floating_point():
            # Repositories of trajectory matching release logits of a teacher as well as probabilities.
            is_share = bool(labels.ge(0).all()) and bool((labels.sum(-1) - 1).abs().le(1e-3).all())
            labels = labels.float() / labels.float().sum(-1, keepdim=True) if is_share else labels.float().softmax(-1)
        elif self.classes:
            labels = self._named(info)[labels]
        return DistilledSet(images[None], labels[None])

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


def read(path: Path, repetition: int = 0) -> ForeignSet:
    """The set in `path`: a folder of a folder of images per class, or with `images_best.pt` and `labels_best.pt`
    (trajectory matching); a `.pt` file whose `data` is a list of [images, labels] (gradient and distribution matching),
    of which `repetition` is taken; an `.npz` file with `images` and `labels` (kernel inducing points).

    Raises `UsageError` where it is none of these.
    """
    if path.is_dir():
        return _matched_trajectories(path) if (path / "images_best.pt").exists() else _folders(path)
    if path.suffix == ".npz":
        return _inducing_points(path)
    content = load_tensors(path)
    repetitions = content.get("data") if isinstance(content, dict) else None
    if not isinstance(repetitions, list) or not repetitions:
        raise UsageError(f"{path} holds no list of [images, labels] under 'data'.", "See: ddbench evaluate --help")
    if not 0 <= repetition < len(repetitions):
        raise UsageError(f"{path} holds {len(repetitions)} repetitions.", f"Give 0 to {len(repetitions) - 1}.")
    images, labels = repetitions[repetition]
    return _checked(ForeignSet(images, labels), path)


def _matched_trajectories(folder: Path) -> ForeignSet:
    images, labels = load_tensors(folder / "images_best.pt"), load_tensors(folder / "labels_best.pt")
    return _checked(ForeignSet(images, labels), folder)


def _inducing_points(path: Path) -> ForeignSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} holds no arrays images and labels: {error}.", "Fetch it again.") from error
    # Channels last, and labels centred around zero, one column a class.
    images = images.permute(0, 3, 1, 2) if images.dim() == 4 and images.shape[-1] in (1, 3) else images
    return _checked(ForeignSet(images, labels.argmax(-1) if labels.dim() == 2 else labels), path)


def _folders(path: Path) -> ForeignSet:
    from PIL import Image

    folders = sorted(child for child in path.iterdir() if child.is_dir())
    images, labels = [], []
    for label, folder in enumerate(folders):
        for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES):
            try:
                with Image.open(file) as picture:
                    array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            except OSError as error:
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
    images, labels = found.images, found.labels
    if (
        not (isinstance(images, Tensor) and isinstance(labels, Tensor))
        or images.dim() != 4
        or len(images) != len(labels)
    ):
        raise UsageError(f"{path} holds no images [n, channels, height, width] with a label each.")
    if not labels.is_floating_point():
        found = ForeignSet(images, labels.long(), found.pixels, found.classes)
    return found

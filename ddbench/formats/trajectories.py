"""Folders of trajectory matching: MTT, TESLA, and the methods built on their code, such as DATM.

`images_best.pt` holds `[n, channels, height, width]`, `labels_best.pt` holds `[n]` int64 (MTT) or the logits
`[n, classes]` (DATM), as written by `distill.py` of https://github.com/GeorgeCazenavette/mtt-distillation and of
https://github.com/NUS-HPC-AI-Lab/DATM; other checkpoints have a number in place of `best`. Large sets come in parts,
`images_best_0.pt` and so on. Images are normalised by the numbers of the code, or whitened where the authors used
`--zca`, which the file does not say; `images_zca_NUMBER.pt` are whitened images turned back into pixels.
DATM adds `lr_best.pt`, the learned rate as a scalar. MTT and TESLA learn a rate and do not save it.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.scales import MTT, PIXELS
from ddbench.formats.tensor_files import load

_IMAGES = re.compile(r"images_(?P<zca>zca_)?(?P<which>best|\d+)(_(?P<part>\d+))?\.pt")
RATE = "lr_{}.pt"


def images_of(path: Path) -> list[Path]:
    """Return the files of images that a folder, or the path of one of them, stands for: the parts of one set."""
    if path.is_file():
        match = _IMAGES.fullmatch(path.name)
        if match is None or match["part"] is None:
            return [path] if match else []
        return _parts(path.parent, match["which"])
    if (path / "images_best.pt").exists():
        return [path / "images_best.pt"]
    return _parts(path, "best")


def _parts(folder: Path, which: str) -> list[Path]:
    found = [(match, file) for file in folder.glob(f"images_{which}_*.pt") if (match := _IMAGES.fullmatch(file.name))]
    ordered = sorted(((int(match["part"]), file) for match, file in found if match["part"]))
    numbers = [number for number, _ in ordered]
    if numbers != list(range(len(numbers))):
        raise UsageError(
            f"{folder} has the parts {', '.join(map(str, numbers))} of a set: some are missing.", "Fetch all of them."
        )
    return [file for _, file in ordered]


def named(path: Path) -> str:
    """Return the family of files that `images_of` finds: `datm` where labels are numbers for each class."""
    labels = _labels_of(images_of(path)[0])
    soft = labels.exists() and isinstance(found := load(labels), Tensor) and found.dim() == 2 and found.shape[1] > 1
    return "datm" if soft else "mtt"


def _labels_of(images: Path) -> Path:
    return images.with_name(images.name.replace("images_zca_", "images_").replace("images_", "labels_"))


def _read(source: Source) -> ReleasedSet:
    """Read images, labels and the learned rate. Raises `UsageError` where one of the files is missing or damaged."""
    source.one_set()
    files = images_of(source.path)
    if not files:
        raise UsageError(f"{source.path} has no images_best.pt.", "Name the folder with images_best.pt.")
    images, labels = [], []
    for file in files:
        beside = _labels_of(file)
        if not beside.exists():
            raise UsageError(f"there is no {beside.name} beside {file}.", "Fetch the labels of these images too.")
        images.append(load(file))
        labels.append(load(beside))
    if len(files) > 1:
        released = ReleasedSet.checked(source.path, _joined(files[0], images), _joined(files[0], labels))
        released = released.noting(f"The set comes in {len(files)} parts, which are joined.")
    else:
        released = ReleasedSet.checked(source.path, images[0], labels[0])
    match = _IMAGES.fullmatch(files[0].name)
    assert match is not None, "images_of returns files of this name"
    if match["zca"]:
        released = replace(released, scale=PIXELS).noting("Files named images_zca hold pixels: whitening is undone.")
    rate = files[0].with_name(RATE.format(match["which"]))
    return replace(released, lrs=_rate(rate)) if rate.exists() else released


def _joined(path: Path, parts: list[object]) -> Tensor:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) < len(parts) or len({(part.dtype, part.shape[1:]) for part in tensors}) > 1:
        raise UsageError(f"the parts beside {path} are not tensors of one shape.", "Fetch them again.")
    return torch.cat(tensors)


def _rate(path: Path) -> Tensor:
    content = load(path)
    rate = torch.as_tensor(content) if isinstance(content, Tensor | float) else torch.empty(0)
    if rate.numel() != 1 or not rate.is_floating_point() or not (torch.isfinite(rate) & (rate > 0)).all():
        raise UsageError(f"{path} does not hold one learned rate.", "Remove it, or fetch it again.")
    return rate.detach().float().reshape(())


def _trained_at_own_rate(source: Source, released: ReleasedSet) -> Reading:
    scale = MTT.get(source.dataset)
    notes = () if scale else (f"The authors' numbers for {source.dataset} are not known: the dataset's are assumed.",)
    if released.lrs is not None:
        return Reading(scale=scale, protocol="train-dsa-rate/v1", notes=notes)
    rate = (
        "The authors train at a rate learned with the images, which their files do not have; name it by --file-rate "
        "to score under train-dsa-rate/v1."
    )
    zca = "If they are whitened, as the CIFAR sets of 1 and 10 images are, say --file-whitening zca."
    return Reading(scale=scale, protocol="train-dsa/v1", notes=(*notes, rate, zca))


def _datm(source: Source, released: ReleasedSet) -> Reading:
    reading = _trained_at_own_rate(source, released)
    if source.dataset.startswith("cifar"):
        reading = replace(reading, whitening="zca", notes=())
    return replace(reading, labels="logits" if released.labels.is_floating_point() else None)


FAMILIES = (
    Family("mtt", "trajectory matching (Cazenavette et al. 2022)", _read, _trained_at_own_rate),
    Family("tesla", "trajectory matching at constant memory (Cui et al. 2023)", _read, _trained_at_own_rate),
    Family("datm", "difficulty-aligned trajectory matching (Guo et al. 2024)", _read, _datm),
)

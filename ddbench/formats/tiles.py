"""Files of methods that store several images in one: IDC, DREAM, NCFM.

`data.pt` holds the list `[images, targets]`: pixels of about [0, 1], neither normalised nor clipped, and class numbers
int64, as written by `condense.py` of https://github.com/snu-mllab/Efficient-Dataset-Condensation. Each image holds
factor x factor tiles; the factor is not in the file (2; 3 for ImageNet). A large set comes as one folder for each
group of classes, whose names end in `phase0`, `phase1` and so on.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.tensor_files import load

_PHASE = re.compile(r".*phase_?(\d+)")


def matches(content: Any) -> bool:
    """Return True for a list of two tensors."""
    return isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(x, Tensor) for x in content)


def phases(path: Path) -> list[Path]:
    """Return the files of the groups of classes in a folder, in order."""
    found = [(match, child) for child in path.iterdir() if (match := _PHASE.fullmatch(child.name))]
    ordered = sorted(((int(match[1]), child / "data.pt") for match, child in found))
    return [file for _, file in ordered if file.is_file()]


def _read(source: Source) -> ReleasedSet:
    source.one_set()
    if source.path.is_file():
        return ReleasedSet.checked(source.path, *_pair(source.path)).as_pixels()
    files = phases(source.path) or [file for file in [source.path / "data.pt"] if file.exists()]
    if not files:
        raise UsageError(f"{source.path} has no data.pt.", "Name the file with the list [images, targets].")
    parts = [ReleasedSet.checked(file, *_pair(file)) for file in files]
    if len({tuple(part.images.shape[1:]) for part in parts}) > 1 or any(part.labels.dim() > 1 for part in parts):
        raise UsageError(f"the groups of classes in {source.path} do not go together.", "Fetch them again.")
    labels, said = _all_labels([part.labels for part in parts], len(source.classes))
    joined = ReleasedSet.checked(source.path, torch.cat([part.images for part in parts]), labels)
    return joined.as_pixels().noting(*parts[0].notices, *([said] if len(parts) > 1 else []))


def _pair(path: Path) -> tuple[Any, Any]:
    content = load(path)
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise UsageError(f"{path} is not a list [images, targets].", "Fetch it again.")
    return content[0], content[1]


def _all_labels(parts: list[Tensor], classes: int) -> tuple[Tensor, str]:
    """Return the labels of all groups: counted on where every group starts at class 0."""
    width = int(max(part.max() for part in parts)) + 1
    said = f"The classes come in {len(parts)} groups, which are joined"
    if len(parts) > 1 and all(int(part.min()) == 0 for part in parts) and width * len(parts) == classes:
        shifted = [part + width * number for number, part in enumerate(parts)]
        return torch.cat(shifted), f"{said}; group i has the classes from {width} i on."
    return torch.cat(parts), f"{said}."


def _tiles(source: Source, released: ReleasedSet) -> Reading:
    factor = 3 if source.dataset.startswith("imagenet") else 2
    notes = (
        f"The file does not say its tiles: {factor} x {factor} is usual; --file-tiles 1 takes whole images.",
        "The authors train students with CutMix too, which this protocol has not.",
    )
    return Reading(tiles=factor, protocol="train-dsa/v1", notes=notes)


FAMILIES = (
    Family("idc", "tiles, gradient matching (Kim et al. 2022)", _read, _tiles),
    Family("dream", "tiles, representative matching (Liu et al. 2023)", _read, _tiles),
    Family("ncfm", "tiles, characteristic functions (Wang et al. 2025)", _read, _tiles),
)

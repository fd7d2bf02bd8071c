"""Files of dataset condensation: DC and DSA (gradients), DM (distributions), and the methods built on their code.

A `.pt` file from `torch.save({"data": [[images, labels], ...], "accs_all_exps": {...}})`, as written by `main.py` and
`main_DM.py` of https://github.com/VICO-UoE/DatasetCondensation. `data` has one pair for each repetition of the
experiment: images `[n, channels, height, width]`, normalised by that code's own numbers (`scales.DC`), and
labels `[n]` int64. DataDAM's files hold one pair in place of the list. Recorded accuracies are not read.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.scales import DC
from ddbench.formats.tensor_files import load

DIGITS = ("mnist", "svhn", "usps")


def matches(content: Any) -> bool:
    """Return True for a dict with a list, or a pair, under `data`."""
    return isinstance(content, dict) and isinstance(content.get("data"), list | tuple)


def _read(source: Source) -> ReleasedSet:
    """Read one pair. Raises `UsageError` where the file has no such pair."""
    path, content = source.path, load(source.path)
    repetitions = content.get("data") if isinstance(content, dict) else None
    if not isinstance(repetitions, list | tuple) or not repetitions:
        raise UsageError(f"{path} has no list of [images, labels] under 'data'.", "See: ddbench evaluate --help")
    if _is_pair(repetitions):
        source.one_set()
        return ReleasedSet.checked(path, *repetitions)
    number = source.repetition or 0
    if not 0 <= number < len(repetitions):
        raise UsageError(f"{path} holds {len(repetitions)} repetitions.", f"Give 0 to {len(repetitions) - 1}.")
    pair = repetitions[number]
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UsageError(f"repetition {number} of {path} is not a pair [images, labels].", "Fetch the file again.")
    released = ReleasedSet.checked(path, *pair)
    if len(repetitions) > 1 and source.repetition is None:
        return released.noting(f"The file holds {len(repetitions)} sets: this is number 0. Choose by --repetition.")
    return released


def _is_pair(content: list[Any] | tuple[Any, ...]) -> bool:
    """Return True for images and labels themselves, where a list of pairs is usual."""
    return len(content) == 2 and all(hasattr(part, "dim") for part in content) and content[0].dim() == 4


def _normalised(source: Source, released: ReleasedSet) -> Reading:
    scale = DC.get(source.dataset)
    unknown = f"The authors' numbers for {source.dataset} are not known: those of the dataset are assumed."
    return Reading(scale=scale, protocol="train-dsa/v1", notes=() if scale else (unknown,))


def _without_augmentation(source: Source, released: ReleasedSet) -> Reading:
    """DC's students are trained without augmentation, except on MNIST (README of the repository)."""
    reading = _normalised(source, released)
    return reading if source.dataset in DIGITS[:1] else replace(reading, protocol="train/v1")


def _idm(source: Source, released: ReleasedSet) -> Reading:
    note = "Each image is taken as 2 x 2 tiles, as IDM's published sets are; --file-tiles 1 takes whole images."
    reading = _normalised(source, released)
    return replace(reading, tiles=2, notes=(*reading.notes, note))


def _datadam(source: Source, released: ReleasedSet) -> Reading:
    reading = _normalised(source, released)
    return replace(reading, whitening="zca") if source.dataset.startswith("cifar") else reading


FAMILIES = (
    Family("dc", "gradient matching (Zhao et al. 2021)", _read, _without_augmentation),
    Family("dsa", "gradient matching under augmentation (Zhao and Bilen 2021)", _read, _normalised),
    Family("dm", "distribution matching (Zhao and Bilen 2023)", _read, _normalised),
    Family("cafe", "feature alignment (Wang et al. 2022)", _read, _without_augmentation),
    Family("idm", "improved distribution matching (Zhao et al. 2023)", _read, _idm),
    Family("datadam", "attention matching (Sajedi et al. 2023)", _read, _datadam),
)
_BY_NAME = {"res_dsa": "dsa", "res_dm": "dm", "res_cafe": "cafe", "res_idm": "idm", "syn_data": "datadam"}


def named(path: Path) -> str:
    """Return the family that the name of a file stands for: `dc` where it says nothing."""
    return next((family for start, family in _BY_NAME.items() if path.name.lower().startswith(start)), "dc")

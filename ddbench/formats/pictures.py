"""Folders of images: `PATH/CLASS/IMAGE.png`, as SRe2L, RDED, D4M and Minimax release them, or anybody arranges them.

A sub-folder is a class: by its name, by its number (`new007`, `00007`, `7`), or by its number in WordNet (`n01440764`).
Sub-folders and images are in numeric order. Pixels lie in [0, 1]: nothing was normalised.
"""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.reading import Family, Reading, Source
from ddbench.formats.released_set import ReleasedSet
from ddbench.modalities.image import resized

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

WORDNET = {
    "n01440764": "tench", "n02102040": "english springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "french horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
"""Names of the classes of Imagenette by their numbers in WordNet."""


def named(path: Path) -> str | None:
    """Return the family of a folder by the names in it; None where it has no sub-folders with pictures."""
    folders = _folders(path)
    first = next((file for folder in folders for file in _pictures(folder)), None)
    if first is None:
        return None
    folder = first.parent.name
    if re.fullmatch(r"new\d+", folder):
        return "sre2l"
    if re.fullmatch(r"\d{5}", folder) and first.name.startswith("class"):
        return "rded"
    if folder.isdigit() and "-image" in first.name:
        return "d4m"
    if re.fullmatch(r"n\d{8}", folder) and first.stem.isdigit():
        return "minimax"
    return "folder"


def _read(source: Source) -> ReleasedSet:
    """Read the images of each sub-folder. Raises `UsageError` where there are none, or where one is no picture."""
    source.one_set()
    folders = [folder for folder in _folders(source.path) if _pictures(folder)] if source.path.is_dir() else []
    if not folders:
        raise UsageError(f"{source.path} has no folders of images.", "Arrange them as PATH/CLASS/IMAGE.png.")
    numbers, said = _class_numbers([folder.name for folder in folders], source)
    images: list[Tensor] = []
    labels: list[int] = []
    for folder, label in zip(folders, numbers, strict=True):
        for file in _pictures(folder):
            images.append(_picture(file))
            labels.append(label)
    sizes = {tuple(image.shape) for image in images}
    notices = [said] if said else []
    if len(sizes) > 1:
        channels, height, width = source.sample_shape
        images = [resized(image[None], (channels, height, width))[0] for image in images]
        notices.append(f"The images have {len(sizes)} shapes: all are resized to {channels}x{height}x{width}.")
    return ReleasedSet.checked(source.path, torch.stack(images), torch.tensor(labels)).as_pixels().noting(*notices)


def _folders(path: Path) -> list[Path]:
    return sorted((child for child in path.iterdir() if child.is_dir()), key=_numeric)


def _pictures(folder: Path) -> list[Path]:
    return sorted((file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES), key=_numeric)


def _numeric(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key: numbers in a name count as numbers, so that 10 comes behind 2."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _class_numbers(names: list[str], source: Source) -> tuple[list[int], str]:
    """Return the class of each sub-folder, and what is to be said of how it was found."""
    known = {name.lower(): number for number, name in enumerate(source.classes)}
    if all(name.lower() in known for name in names):
        return [known[name.lower()] for name in names], ""
    by_wordnet = [known.get(WORDNET.get(name, "").lower(), -1) for name in names]
    if all(number >= 0 for number in by_wordnet):
        return by_wordnet, "Folders are WordNet numbers: mapped to the names of their classes."
    digits = [re.fullmatch(r"(?:new|class)?_?(\d+)", name) for name in names]
    if all(digits):
        numbers = [int(match[1]) for match in digits if match]
        if max(numbers) >= len(source.classes):
            raise UsageError(
                f"folder {names[numbers.index(max(numbers))]!r} is beyond the {len(source.classes)} classes of "
                f"{source.dataset}.",
                "Name the dataset they were made for.",
            )
        return numbers, "Folders are numbers: taken as class numbers, from 0."
    unknown = next(name for name in names if name.lower() not in known)
    raise UsageError(
        f"folder {unknown!r} is not a class of {source.dataset}.", f"It has {', '.join(source.classes[:10])}."
    )


def _picture(file: Path) -> Float[Tensor, "c h w"]:
    """Return a picture as pixels in [0, 1]: one channel where it is grey, else three."""
    try:
        with Image.open(file) as picture:
            array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} is not a picture.", "Remove it, or fetch it again.") from error
    return torch.from_numpy(array.copy()).view(*array.shape[:2], -1).permute(2, 0, 1).float() / 255


def _by_teacher(source: Source, released: ReleasedSet) -> Reading:
    note = "The authors' labels come from a teacher of their own; here from networks trained on the full data."
    return Reading(protocol="train-imagenet/v1", resize=True, notes=(note,))


def _rded(source: Source, released: ReleasedSet) -> Reading:
    reading = _by_teacher(source, released)
    if min(released.images.shape[2:]) < 64:
        return reading
    note = "Large images of RDED hold 2 x 2 crops, which students see as one image; so they do here."
    return Reading(protocol=reading.protocol, resize=True, notes=(*reading.notes, note))


def _whole(source: Source, released: ReleasedSet) -> Reading:
    return Reading(protocol="train-dsa/v1", resize=True)


def _assumed(source: Source, released: ReleasedSet) -> Reading:
    return Reading()


FAMILIES = (
    Family("sre2l", "images of batch-norm statistics (Yin et al. 2023), CDA", _read, _by_teacher),
    Family("rded", "crops chosen by a teacher (Sun et al. 2024)", _read, _rded),
    Family("d4m", "images of a diffusion model (Su et al. 2024)", _read, _by_teacher),
    Family("minimax", "images of a diffusion model (Gu et al. 2024)", _read, _whole),
    Family("folder", "folders of images, one for each class", _read, _assumed),
)

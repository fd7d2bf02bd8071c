"""Find the family that a released file belongs to, and refuse by name what cannot be scored."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ddbench.contract.component import did_you_mean
from ddbench.errors import UsageError
from ddbench.formats import (
    condensation,
    kernels,
    pictures,
    plain,
    replayed,
    rows,
    tiles,
    trajectories,
)
from ddbench.formats.arrays import array_names
from ddbench.formats.reading import Family
from ddbench.formats.tensor_files import load

_MODULES = (condensation, trajectories, tiles, kernels, rows, pictures, replayed, plain)
FAMILIES: dict[str, Family] = {family.name: family for module in _MODULES for family in module.FAMILIES}


def family_of(path: Path, name: str | None = None) -> Family:
    """Return the family `name`, or the one that the content and the name of a path show.

    Raises `UsageError` for a name that no family has, and for a path that belongs to none or cannot be scored.
    """
    if name is not None:
        if name not in FAMILIES:
            raise UsageError(
                f"there is no family of releases called {name!r}.{did_you_mean(name, FAMILIES)}",
                f"--from takes {', '.join(FAMILIES)}.",
            )
        return FAMILIES[name]
    return FAMILIES[_folder(path) if path.is_dir() else _file(path)]


def _folder(path: Path) -> str:
    files = {child.name for child in path.iterdir()}
    if "weights_best.pt" in files:
        raise UsageError(
            f"{path} is a release of HaBa: bases and networks that make images of them.",
            "Make the images with its authors' code, and score them as a folder of images.",
        )
    if trajectories.images_of(path):
        return trajectories.named(path)
    if "data.pt" in files or tiles.phases(path):
        return "idc"
    if any(path.rglob("batch_*.tar")):
        raise UsageError(
            f"{path} holds labels of a teacher for crops (FKD), not images.",
            "Score the folder of images they belong to; its labels come from networks trained here.",
        )
    name = pictures.named(path)
    if name is None:
        raise UsageError(
            f"{path} is a folder of no known layout: neither images_best.pt, nor data.pt, nor folders of images.",
            "Arrange images as PATH/CLASS/IMAGE.png, or name the file itself.",
        )
    return name


def _file(path: Path) -> str:
    if path.suffix == ".npz":
        return kernels.named(array_names(path))
    if path.suffix in rows.SUFFIXES:
        return "rat_bptt"
    if path.suffix in (".pkl", ".pickle"):
        raise UsageError(
            f"{path} is a pickle, which could run code; it was not loaded.",
            "Where you trust it, load it in Python and save {'images': ..., 'labels': ...} with torch.save.",
        )
    if path.suffix in (".msgpack", ".flax") or path.name.startswith("checkpoint_"):
        raise UsageError(
            f"{path} is a checkpoint of flax, which ddbench does not read.",
            "Take the release's np/step*.npz, or save x_proto as image and y_proto as label with numpy.savez.",
        )
    if path.suffix == ".tar":
        raise UsageError(
            f"{path} is an archive; of releases, these hold labels of a teacher for crops (FKD), not images.",
            "Unpack it where it holds images, and name the folder.",
        )
    if trajectories.images_of(path):
        return trajectories.named(path)
    return _content(path, load(path))


def _content(path: Path, content: Any) -> str:
    if condensation.matches(content):
        return condensation.named(path)
    if replayed.matches(content):
        return "wang2018"
    if tiles.matches(content):
        return "idc"
    if isinstance(content, dict) and "compressor" in content:
        raise UsageError(
            f"{path} is a release of LinBa: bases and the matrices that make images of them.",
            "Make the images with its authors' code, and save {'images': ..., 'labels': ...} with torch.save.",
        )
    if rows.matches(content):
        return "rat_bptt"
    if plain.names_in(content) is not None:
        return "plain"
    if isinstance(content, Tensor):
        raise UsageError(
            f"{path} holds one tensor, without labels.",
            "Name the folder that has labels_best.pt beside images_best.pt.",
        )
    raise UsageError(
        f"{path} is of no known layout: it holds neither [images, labels] under 'data', nor a pair, nor steps.",
        "See: ddbench evaluate --help",
    )

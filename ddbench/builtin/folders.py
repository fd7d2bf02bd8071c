"""Datasets from folders of images or sounds: `folder:PATH`, one sub-folder per class.

They may lie below train and test folders. A folder whose first file of a known kind is a sound holds sounds.

An index of the files is kept in the cache. Images that would take much memory stay in their files.
"""

import contextlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch

import ddbench
from ddbench import (
    BornLater,
    Component,
    DdbenchError,
    ImageSplits,
    MissingPrerequisite,
    Splits,
    StoredImages,
    UsageError,
)
from ddbench.builtin import sound
from ddbench.builtin.labels import choose_splits, in_test_split
from ddbench.builtin.pictures import (
    NETWORK,
    SUFFIXES,
    Picture,
    PicturesOnDisk,
    Size,
    load_splits,
    sample_shape,
)
from ddbench.cache import atomic_write, cache_dir, sha256

SOUNDS = sound.SUFFIXES
IN_MEMORY = 2**31
"""Bytes of all images, as float32, up to which they are loaded into memory; more are read in batches from disk."""
FORM = 1
"""Form of an index in the cache."""
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
"""The classes of Imagenette: WordNet numbers, which name the folders, and names."""

SkipDamaged = Annotated[
    bool, pydantic.Field(description="leave out files that cannot be read, with a notice"), BornLater(False)
]


@dataclass(frozen=True)
class Files:
    """The image files of one split: paths below the folder, their sizes in bytes, and the number of the class of each.

    Attributes:
        names: paths relative to the folder of the dataset.
        sizes: bytes of each file.
        labels: number of the class of each.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    labels: Sequence[int]

    def pictures(self, root: Path) -> list[Picture]:
        """Return the files as pictures that are not read yet."""
        return [Picture.at(root / name, label) for name, label in zip(self.names, self.labels, strict=True)]


@dataclass(frozen=True)
class Index:
    """The files of a folder, as the cache keeps them.

    Attributes:
        classes: names of the class folders, in order.
        train: files of the training split.
        test: files of the test split.
        shape: channels, height and width of the first image; one channel where all are grey.
        identity: SHA-256 over names and sizes of all files.
    """

    classes: tuple[str, ...]
    train: Files
    test: Files
    shape: tuple[int, int, int]
    identity: str


@ddbench.hookimpl
def ddbench_find_dataset(name: str) -> Component | None:
    if name == "imagenet":
        return _imagenet()
    if not name.startswith("folder:"):
        return None
    text = name.removeprefix("folder:")
    if not text:
        raise UsageError("folder: names no folder.", "Give the path of one: --dataset folder:PATH")
    path = Path(text).expanduser()
    if _holds_sound(path):
        return _clips(path).named(name)
    index = indexed(path)

    # Rows are shared, so they carry the folder's name and not its path.
    @ddbench.dataset(
        classes=index.classes, sample_shape=index.shape, network=NETWORK, label=f"folder:{path.resolve().name}"
    )
    def folder(root: Path, download: bool, *, size: Size = None, skip_damaged: SkipDamaged = False) -> ImageSplits:
        """Load images in folders, one per class, below `train` and `test`, or split 80/20 by a hash of the name.

        More than 2 GB of images, as float32, stay on disk and are read in batches.
        """
        return load(path, index, size, skip_damaged)

    return ddbench.component_of(folder, "dataset").named(name)


def _holds_sound(path: Path) -> bool:
    """Return True for a folder in which the first file of a known kind is a sound; it stops there."""
    for _, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES or suffix in SOUNDS:
                return suffix in SOUNDS
    return False


def _clips(path: Path) -> Component:
    """Return the dataset of the sounds in a folder. Raises as `_listings`."""
    listings = _listings(path, {}, SOUNDS)
    train, test = (
        [(path / name, label) for label, files in enumerate(listing.values()) for name, _ in files]
        for listing in listings
    )

    @ddbench.dataset(
        classes=tuple(listings[0]),
        sample_shape=(1, sound.SIZE, sound.SIZE),
        network=sound.NETWORK,
        modality="sound",
        label=f"folder:{path.resolve().name}",
    )
    def folder_of_sounds(
        root: Path,
        download: bool,
        *,
        size: sound.Size = sound.SIZE,
        rate: sound.Rate = 16_000,
        seconds: sound.Seconds = 1.0,
    ) -> Splits:
        """Load wav and flac files in folders, one per class, below `train` and `test`, or split 80/20 by the name."""
        return sound.load_clips(train, test, size=size, rate=rate, seconds=seconds)

    return ddbench.component_of(folder_of_sounds, "dataset")


def _imagenet() -> Component:
    """Return ImageNet-1k from the folder `imagenet`; classes are WordNet numbers, whose order numbers the classes."""
    path = _present(ddbench.data_dir() / "imagenet", "imagenet")
    index = indexed(path)

    @ddbench.dataset(classes=index.classes, sample_shape=(3, 64, 64), network=NETWORK, label="imagenet")
    def imagenet(root: Path, download: bool, *, size: Size = 64, skip_damaged: SkipDamaged = False) -> ImageSplits:
        """ImageNet-1k: 1 281 167 and 50 000 photographs of a thousand classes (Deng et al. 2009), from a local folder.

        The folder `imagenet` has torchvision's layout: `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`. Images are
        resized to squares of `size`, and stay on disk.
        """
        return load(path, index, size, skip_damaged)

    return ddbench.component_of(imagenet, "dataset")


@ddbench.dataset(
    classes=tuple(IMAGENETTE.values()),
    sample_shape=(3, 64, 64),
    network={"name": "convnet", "options": {"width": 32, "depth": 4}},
)
def imagenette(root: Path, download: bool, *, size: Size = 64, skip_damaged: SkipDamaged = False) -> ImageSplits:
    """Imagenette: ten classes of ImageNet, 9469 and 3925 photographs (fastai), from a local folder `imagenette`.

    The folder has `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, and so on. Images are resized to squares of
    `size`. A copy with fewer images is ranked by its content.
    """
    path = _present(root / "imagenette", "imagenette")
    index = indexed(path)
    if index.classes != tuple(IMAGENETTE):
        raise UsageError(
            f"{path} does not hold the ten class folders of Imagenette.",
            f"They are {', '.join(IMAGENETTE)}; other images are --dataset folder:{path}",
        )
    return load(path, index, size, skip_damaged)


@ddbench.hookimpl
def ddbench_datasets() -> list[object]:
    return [imagenette]


def _present(path: Path, name: str) -> Path:
    if not path.is_dir():
        raise MissingPrerequisite(
            f"{name} is not in {path}.",
            "Put its train and val folders there, one folder per class, or set DDBENCH_DATA.",
        )
    return path


def load(path: Path, index: Index, size: int | None, skip_damaged: bool) -> ImageSplits:
    """Load the images of an index into memory, or leave them on disk where they take more than `IN_MEMORY` bytes."""
    channels = index.shape[0]
    shape = index.shape if size is None else (channels, size, size)
    count = len(index.train.names) + len(index.test.names)
    needed = 4 * count * math.prod(shape)
    if needed <= IN_MEMORY:
        train, test = (files.pictures(path) for files in (index.train, index.test))
        return load_splits(train, test, channels, size, skip_damaged=skip_damaged)
    parts: list[tuple[StoredImages, torch.Tensor]] = []
    notices = [f"read in batches from disk: {count} files would take {needed / 1e9:.0f} GB"]
    for files in (index.train, index.test):
        read = PicturesOnDisk(path, files.names, files.sizes, channels, size, shape, _kept(path))
        chosen = torch.arange(len(files.names))
        if skip_damaged:
            damaged = {number for number in chosen.tolist() if read.problem(number) is not None}
            chosen = torch.tensor([number for number in chosen.tolist() if number not in damaged])
            if damaged:
                first = files.names[min(damaged)]
                notices.append(f"{len(damaged)} left out because they cannot be read, such as {first}")
        images = StoredImages.make(read, chosen, shape, f"{index.identity} {size}")
        parts.append((images, torch.tensor(files.labels)[chosen]))
    return ImageSplits(*parts[0], *parts[1], partial=True, notices=(", ".join(notices),))


def indexed(path: Path) -> Index:
    """Return the index of a folder: from the cache where no directory has changed since, made anew otherwise.

    A directory changes when files in it are added, removed or renamed. Raises `UsageError` for folders arranged in
    another way.
    """
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}.", "Give the path of a folder with one sub-folder of images per class."
        )
    kept = _kept(path)
    try:
        content = json.loads(kept.read_text())
        if content["form"] == FORM and all(_changed(path / name) == when for name, when in content["folders"].items()):
            return _index_of(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    content = _made(path)
    # A cache that cannot be written costs time, not the run.
    with contextlib.suppress(DdbenchError):
        atomic_write(kept, json.dumps(content))
    return _index_of(content)


def _kept(path: Path) -> Path:
    """Return the file of the index of a folder in the cache."""
    return cache_dir() / "folders" / f"{sha256(str(path.resolve()).encode())[:16]}.json"


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _index_of(content: Mapping[str, Any]) -> Index:
    train, test = (
        Files(content[split]["names"], content[split]["sizes"], content[split]["labels"]) for split in _SPLITS
    )
    return Index(tuple(content["classes"]), train, test, tuple(content["shape"]), content["identity"])


_SPLITS = ("train", "test")


def _made(path: Path) -> dict[str, Any]:
    """List the folder, and return its index as JSON takes it."""
    folders: dict[str, int] = {}
    listings = _listings(path, folders, SUFFIXES)
    content: dict[str, Any] = {"form": FORM, "classes": list(listings[0]), "folders": folders}
    for split, listing in zip(_SPLITS, listings, strict=True):
        files = [(name, size, label) for label, found in enumerate(listing.values()) for name, size in found]
        content[split] = {
            "names": [name for name, _, _ in files],
            "sizes": [size for _, size, _ in files],
            "labels": [label for _, _, label in files],
        }
    both = [content[split] for split in _SPLITS]
    content["identity"] = sha256(json.dumps([content["classes"], both]).encode())
    pictures = [Picture.at(path / name, 0) for part in both for name in part["names"]]
    content["shape"] = list(sample_shape(pictures))
    return content


Found = list[tuple[str, int]]
"""Paths below the folder of the dataset, and bytes."""
Listing = Mapping[str, Found]


def _listings(path: Path, folders: dict[str, int], suffixes: Collection[str]) -> tuple[Listing, Listing]:
    """List the files of each class, for both splits; note in `folders` when each directory changed last.

    Raises `UsageError` for folders arranged in another way.
    """
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}.", "Give the path of a folder with one sub-folder of images per class."
        )
    folders["."] = _changed(path)
    train_name, test_name = choose_splits([entry.name for entry in path.iterdir() if entry.is_dir()])
    if train_name and test_name:
        parent, test = path / train_name, _by_class(path, test_name, folders, suffixes)
        classes = train = _by_class(path, train_name, folders, suffixes)
    else:
        parent, classes = path, _by_class(path, ".", folders, suffixes)
        train = {name: [f for f in files if not _in_test_split(Path(f[0]))] for name, files in classes.items()}
        test = {name: [f for f in files if _in_test_split(Path(f[0]))] for name, files in classes.items()}
    noun = "sounds" if suffixes is SOUNDS else "images"
    for name, files in classes.items() if len(classes) > 1 else ():
        if not files:
            raise UsageError(
                f"the class folder {parent / name} holds no {noun}.",
                f"Add {noun} ({', '.join(sorted(suffixes))}), or remove the folder.",
            )
        if not train[name]:
            raise UsageError(
                f"every image of {parent / name} falls into the fifth that is held out for testing.",
                "Add more images, or arrange them as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png.",
            )
    if len(classes) < 2 or not any(test.values()):
        raise UsageError(
            f"{path} does not hold at least two class folders with training and test images.",
            "Arrange it as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png.",
        )
    untrained = sorted(name for name, files in test.items() if files and name not in train)
    if untrained:
        raise UsageError(
            f"{path} has test images of classes without training images: {untrained}.",
            f"Add training images of these classes to {parent}, or remove their test folders.",
        )
    return train, {name: test.get(name, []) for name in train}


def _by_class(root: Path, split: str, folders: dict[str, int], suffixes: Collection[str]) -> dict[str, Found]:
    """List the files of each sub-folder of a split, sorted, hidden folders excluded."""
    folders[split] = _changed(root / split)
    classes = sorted(e.name for e in (root / split).iterdir() if e.is_dir() and not e.name.startswith("."))
    return {name: _files(root, f"{split}/{name}" if split != "." else name, folders, suffixes) for name in classes}


def _files(root: Path, below: str, folders: dict[str, int], suffixes: Collection[str]) -> Found:
    """List the files of a folder and of folders in it, sorted."""
    found: Found = []
    folders[below] = _changed(root / below)
    with os.scandir(root / below) as entries:
        for entry in entries:
            name = f"{below}/{entry.name}"
            if entry.is_dir():
                found += _files(root, name, folders, suffixes)
            elif Path(entry.name).suffix.lower() in suffixes:
                try:
                    size = entry.stat().st_size
                except OSError:  # a link that leads nowhere is an image that cannot be read
                    size = 0
                found.append((name, size))
    return sorted(found, key=lambda file: file[0].split("/"))


def _in_test_split(file: Path) -> bool:
    return in_test_split(f"{file.parent.name}/{file.name}")

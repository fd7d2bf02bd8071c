"""Datasets from folders of images or sounds: `folder:PATH`, one sub-folder per class.

They may lie below train and test folders. A folder with wav or flac files and no images holds sounds.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import ddbench
from ddbench import Component, ImageSplits, Splits, UsageError
from ddbench.builtin import sound
from ddbench.builtin.labels import choose_splits, in_test_split
from ddbench.builtin.pictures import NETWORK, SUFFIXES, Picture, Size, load_splits, sample_shape

Listing = Mapping[str, list[Path]]
SOUNDS = sound.SUFFIXES


@ddbench.hookimpl
def ddbench_find_dataset(name: str) -> Component | None:
    if not name.startswith("folder:"):
        return None
    text = name.removeprefix("folder:")
    if not text:
        raise UsageError("folder: names no folder.", "Give the path of one: --dataset folder:PATH")
    path = Path(text).expanduser()
    if _holds_sound(path):
        return _clips(path).named(name)
    listings = _listings(path, SUFFIXES)
    train, test = (
        [Picture.at(file, label) for label, files in enumerate(listing.values()) for file in files]
        for listing in listings
    )
    shape = sample_shape([*train, *test])

    # Rows are shared, so they carry the folder's name and not its path.
    @ddbench.dataset(
        classes=tuple(listings[0]), sample_shape=shape, network=NETWORK, label=f"folder:{path.resolve().name}"
    )
    def folder(root: Path, download: bool, *, size: Size = None) -> ImageSplits:
        """Load images in folders, one per class, below `train` and `test`, or split 80/20 by a hash of the name."""
        return load_splits(train, test, shape[0], size)

    return ddbench.component_of(folder, "dataset").named(name)


def _holds_sound(path: Path) -> bool:
    """Return True for a folder in which the first file of a known kind is a sound."""
    known = (file.suffix.lower() for file in sorted(path.rglob("*")) if file.suffix.lower() in {*SUFFIXES, *SOUNDS})
    return path.is_dir() and next(known, "") in SOUNDS


def _clips(path: Path) -> Component:
    """Return the dataset of the sounds in a folder. Raises as `_listings`."""
    listings = _listings(path, SOUNDS)
    train, test = (
        [(file, label) for label, files in enumerate(listing.values()) for file in files] for listing in listings
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


def _listings(path: Path, suffixes: Collection[str]) -> tuple[Listing, Listing]:
    """List the files of each class, for both splits. Raises `UsageError` for folders arranged in another way."""
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}.", "Give the path of a folder with one sub-folder of images per class."
        )
    train_name, test_name = choose_splits([entry.name for entry in path.iterdir() if entry.is_dir()])
    if train_name and test_name:
        parent, test = path / train_name, _by_class(path / test_name, suffixes)
        classes = train = _by_class(parent, suffixes)
    else:
        parent, classes = path, _by_class(path, suffixes)
        train = {name: [f for f in files if not _in_test_split(f)] for name, files in classes.items()}
        test = {name: [f for f in files if _in_test_split(f)] for name, files in classes.items()}
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


def _by_class(path: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """List the files of each sub-folder, sorted, hidden folders excluded."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {f.name: sorted(file for file in f.rglob("*") if file.suffix.lower() in suffixes) for f in folders}


def _in_test_split(file: Path) -> bool:
    return in_test_split(f"{file.parent.name}/{file.name}")

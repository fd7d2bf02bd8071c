"""Datasets from folders of images: `folder:PATH`, one sub-folder per class, optionally below train and test folders."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

import ddbench
from ddbench import Component, DdbenchError, ImageSplits, UsageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
TEST_SHARE = 0.2
NETWORK = {"name": "convnet", "options": {"width": 32}}

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")

Listing = Mapping[str, list[Path]]


@ddbench.hookimpl
def ddbench_find_dataset(name: str) -> Component | None:
    if not name.startswith("folder:"):
        return None
    text = name.removeprefix("folder:")
    if not text:
        raise UsageError("folder: names no folder.", "Give the path of one: --dataset folder:PATH")
    path = Path(text).expanduser()
    train, test = _listings(path)
    classes = tuple(train)
    with _open(next(iter(train.values()))[0]) as first:
        size = first.size
    files = [file for listing in (train, test) for members in listing.values() for file in members]
    channels = 1 if all(_is_grey(file) for file in files) else 3

    # Rows are shared, so they carry the folder's name and not its path.
    @ddbench.dataset(
        classes=classes,
        sample_shape=(channels, size[1], size[0]),
        network=NETWORK,
        label=f"folder:{path.resolve().name}",
    )
    def folder(
        root: Path,
        download: bool,
        *,
        size: Annotated[
            int | None,
            pydantic.Field(
                ge=4,
                le=1024,
                description="resize images to squares of this many pixels a side; by default they keep their size",
            ),
        ] = None,
    ) -> ImageSplits:
        """Load images in folders, one per class, below `train` and `test`, or split 80/20 by a hash of the name."""
        train_images, train_labels = _load(train, channels, size)
        test_images, test_labels = _load(test, channels, size)
        # The name of a folder identifies no images, so rows carry their content hash.
        return ImageSplits(train_images, train_labels, test_images, test_labels, partial=True)

    return ddbench.component_of(folder, "dataset").named(name)


def _listings(path: Path) -> tuple[Listing, Listing]:
    """List the image files of each class, for both splits. Raises `UsageError` for folders arranged in another way."""
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {path}.", "Give the path of a folder with one sub-folder of images per class."
        )
    folders = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
    train_folder = next((folders[name] for name in TRAIN_NAMES if name in folders), None)
    test_folder = next((folders[name] for name in TEST_NAMES if name in folders), None)
    if train_folder and test_folder:
        parent, test = train_folder, _by_class(test_folder)
        classes = train = _by_class(parent)
    else:
        parent, classes = path, _by_class(path)
        train = {name: [f for f in files if not _in_test_split(f)] for name, files in classes.items()}
        test = {name: [f for f in files if _in_test_split(f)] for name, files in classes.items()}
    for name, files in classes.items() if len(classes) > 1 else ():
        if not files:
            raise UsageError(
                f"the class folder {parent / name} holds no images.",
                f"Add images ({', '.join(sorted(SUFFIXES))}), or remove the folder.",
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


def _by_class(path: Path) -> dict[str, list[Path]]:
    """List the image files of each sub-folder, sorted, hidden folders excluded."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {f.name: sorted(file for file in f.rglob("*") if file.suffix.lower() in SUFFIXES) for f in folders}


def _in_test_split(file: Path) -> bool:
    """Return True for a fixed fifth of all files, by a hash of the name: a new file never moves another."""
    digest = hashlib.sha256(f"{file.parent.name}/{file.name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < TEST_SHARE


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
        return image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DdbenchError(f"{file} cannot be read as an image.", "Remove or replace it.") from error


def _is_grey(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode in ("1", "L", "LA", *SIXTEEN_BIT)
    except (OSError, ValueError, Image.DecompressionBombError):
        return True  # The error with the file's name comes when it is loaded.


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale the values of 16-bit images to 0 to 255; the conversion of PIL would clip them."""
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)) if image.mode in SIXTEEN_BIT else image


def _load(listing: Listing, channels: int, size: int | None) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """Load images and labels. Raises `UsageError` where images differ in size and `size` is None."""
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for label, files in enumerate(listing.values()):
        for file in files:
            with _open(file) as image:
                picture = _eight_bit(image).convert("L" if channels == 1 else "RGB")
                if size is not None:
                    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
                array = np.asarray(picture).reshape(picture.height, picture.width, channels)
            if arrays and array.shape != arrays[0].shape:
                raise UsageError(
                    f"{file} is {array.shape[1]}x{array.shape[0]} pixels, others are "
                    f"{arrays[0].shape[1]}x{arrays[0].shape[0]}.",
                    "Resize them all with --set dataset.size=32.",
                )
            arrays.append(array)
            labels.append(label)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

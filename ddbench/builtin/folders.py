"""Your own images: `folder:PATH`, one sub-folder per class, with or without train and test folders above them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from PIL import Image

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
    path = Path(name.removeprefix("folder:")).expanduser()
    train, test = _listings(path)
    classes = tuple(train)
    with _opened(next(iter(train.values()))[0]) as first:
        size = first.size
    files = [file for listing in (train, test) for listed in listing.values() for file in listed]
    channels = 1 if all(_is_grey(file) for file in files) else 3

    # Rows are shared; the path of a folder on somebody's machine is not.
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
        size: Annotated[int | None, pydantic.Field(ge=4, le=1024, description="resize to squares of this size")] = None,
    ) -> ImageSplits:
        """Images in folders, one folder per class, under `train` and `test` (or split 80/20 by file name)."""
        train_images, train_labels = _load(train, channels, size)
        test_images, test_labels = _load(test, channels, size)
        # Nobody else has these images under this name, so rows name them by their content.
        return ImageSplits(train_images, train_labels, test_images, test_labels, partial=True)

    return ddbench.component_of(folder, "dataset").named(name)


def _listings(path: Path) -> tuple[Listing, Listing]:
    """Image files by class of the two splits. Raises `UsageError` where the folder is not laid out that way."""
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}.", "Name one that holds a folder of images per class.")
    folders = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
    train_folder = next((folders[name] for name in TRAIN_NAMES if name in folders), None)
    test_folder = next((folders[name] for name in TEST_NAMES if name in folders), None)
    if train_folder and test_folder:
        parent, test = train_folder, _by_class(test_folder)
        given = train = _by_class(parent)
    else:
        parent, given = path, _by_class(path)
        train = {name: [f for f in files if not _held_out(f)] for name, files in given.items()}
        test = {name: [f for f in files if _held_out(f)] for name, files in given.items()}
    for name, files in given.items() if len(given) > 1 else ():
        if not files:
            raise UsageError(
                f"the class folder {parent / name} holds no images.",
                f"Put some into it ({', '.join(sorted(SUFFIXES))}), or remove it.",
            )
        if not train[name]:
            raise UsageError(
                f"every image of {parent / name} falls into the fifth that is held out for testing.",
                "Add more, or lay it out as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png.",
            )
    if len(given) < 2 or not any(test.values()):
        raise UsageError(
            f"{path} does not hold at least two class folders with training and test images.",
            "Lay it out as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or PATH/CLASS/*.png.",
        )
    untrained = sorted(name for name, files in test.items() if files and name not in train)
    if untrained:
        raise UsageError(
            f"{path} has test images of classes without training images: {untrained}.",
            f"Add training images of them to {parent}, or remove their test folders.",
        )
    return train, {name: test.get(name, []) for name in train}


def _by_class(path: Path) -> dict[str, list[Path]]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {f.name: sorted(file for file in f.rglob("*") if file.suffix.lower() in SUFFIXES) for f in folders}


def _held_out(file: Path) -> bool:
    """A fixed fifth of all files, whatever else is in the folder: a new file never moves another."""
    digest = hashlib.sha256(f"{file.parent.name}/{file.name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < TEST_SHARE


def _opened(file: Path) -> Image.Image:
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
        return True  # told with its name when it is loaded


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with values of 0 to 255; conversion alone would clip those of 16 bits."""
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)) if image.mode in SIXTEEN_BIT else image


def _load(listing: Listing, channels: int, size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`uint8 [n, channels, height, width]` and labels; without `size` all images must have the same one."""
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for label, files in enumerate(listing.values()):
        for file in files:
            with _opened(file) as image:
                plain = _eight_bit(image).convert("L" if channels == 1 else "RGB")
                if size is not None:
                    plain = plain.resize((size, size), Image.Resampling.BILINEAR)
                array = np.asarray(plain).reshape(plain.height, plain.width, channels)
            if arrays and array.shape != arrays[0].shape:
                raise UsageError(
                    f"{file} is {array.shape[1]}x{array.shape[0]} pixels, others are "
                    f"{arrays[0].shape[1]}x{arrays[0].shape[0]}.",
                    "Bring them to one size with --set dataset.size=32.",
                )
            arrays.append(array)
            labels.append(label)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)

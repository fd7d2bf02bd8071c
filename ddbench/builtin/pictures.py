"""Image files of any kind, read into uint8 images of one size: what `folder:`, `csv:` and `hf:` share."""

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import pydantic
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ddbench import DdbenchError, ImageSplits, UsageError

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""Suffixes of image files, with the format of each. Other formats are not opened: PIL starts a program for some."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
NETWORK = {"name": "convnet", "options": {"width": 32}}
"""The network of a run that names none, as a fact of `ddbench.dataset`."""

GREY = ("1", "L", "LA", "La")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
ROTATED = "turned upright as their EXIF orientation says"
TRANSPARENT = "with transparent pixels laid on white"
DEEP = "of 16 bits scaled to 8"

Shape = tuple[int, int, int]
Size = Annotated[
    int | None,
    pydantic.Field(
        ge=4,
        le=1024,
        description="resize images to squares of this many pixels a side; by default they keep their size",
    ),
]


@dataclass(frozen=True)
class Picture:
    """An image file that is not read yet.

    Attributes:
        name: the path, or the row of a table, as errors name it.
        label: the number of its class.
        open: opens the bytes of the file.
    """

    name: str
    label: int
    open: Callable[[], IO[bytes]]

    @classmethod
    def at(cls, path: Path, label: int) -> "Picture":
        """Return the picture in the file `path`."""
        return cls(str(path), label, lambda: path.open("rb"))


def sample_shape(pictures: Sequence[Picture]) -> tuple[int, int, int]:
    """Return channels, height and width of the first picture; one channel if all of them are grey, else three.

    Pictures that cannot be read are passed by. Raises `DdbenchError` if none of them can be.
    """
    first: DdbenchError | None = None
    for picture in pictures:
        try:
            width, height = _read(picture, Counter()).size
        except DdbenchError as error:
            first = first or error
            continue
        return (1 if all(_is_grey(picture) for picture in pictures) else 3, height, width)
    assert first is not None
    raise first


def load_splits(
    train: Sequence[Picture],
    test: Sequence[Picture],
    channels: int,
    size: int | None,
    notices: tuple[str, ...] = (),
    *,
    skip_damaged: bool = False,
) -> ImageSplits:
    """Load the pictures of both splits, with a notice on what was changed in them.

    Args:
        train: the training pictures.
        test: the test pictures.
        channels: 1 for grey images, 3 for RGB.
        size: the side in pixels that images are resized to; None keeps their size.
        notices: what the source has to say besides.
        skip_damaged: leave out files that cannot be read, with a notice, instead of raising.

    Raises `UsageError` for pictures that differ in size where `size` is None, `DdbenchError` for a file that cannot be
    read.
    """
    pictures = [*train, *test]
    changes: Counter[str] = Counter()
    images: np.ndarray | None = None
    damaged: list[DdbenchError] = []
    whole: list[int] = []
    for number, picture in enumerate(pictures):
        try:
            array = as_array(picture, channels, size, changes)
        except DdbenchError as error:
            damaged.append(error)
            continue
        whole.append(number)
        if images is None:
            images = np.empty((len(pictures), *array.shape), np.uint8)
        if array.shape != images.shape[1:]:
            raise UsageError(
                f"{picture.name} is {array.shape[2]}x{array.shape[1]} pixels, others are "
                f"{images.shape[3]}x{images.shape[2]}.",
                "Resize them all with --set dataset.size=32.",
            )
        images[number] = array
    if damaged:
        check_damaged(damaged, skip_damaged)
        changes[f"left out because they cannot be read, such as {damaged[0].message.partition(' ')[0]}"] = len(damaged)
    assert images is not None
    cut = sum(number < len(train) for number in whole)
    labels = torch.tensor([pictures[number].label for number in whole])
    tensor = torch.from_numpy(images[whole] if damaged else images)
    said = ", ".join(f"{count} {change}" for change, count in sorted(changes.items()))
    return ImageSplits(
        tensor[:cut],
        labels[:cut],
        tensor[cut:],
        labels[cut:],
        # The name of a file identifies no images, so rows carry their content hash.
        partial=True,
        notices=(*notices, said) if said else notices,
    )


class PicturesOnDisk:
    """Pictures in files of one folder, read in batches by worker threads: decoding releases the interpreter's lock."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        sizes: Sequence[int],
        channels: int,
        size: int | None,
        shape: Shape,
        index: Path,
    ) -> None:
        self._root, self._names, self._sizes, self._index = root, names, sizes, index
        self._channels, self._size, self._shape = channels, size, shape
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the pictures of these numbers, `[n, channels, height, width]` uint8.

        Raises `DdbenchError` for a file that cannot be read, or that has changed since the folder was listed,
        `UsageError` for one of another size than the first.
        """
        if self._pool is None:  # Threads do not survive a fork, so they start with the first batch.
            self._pool = ThreadPoolExecutor(os.cpu_count())
        images = np.empty((len(indices), *self._shape), np.uint8)

        def read(place: int, number: int) -> None:
            images[place] = self._array(number)

        for done in [self._pool.submit(read, *pair) for pair in enumerate(indices.tolist())]:
            done.result()
        return torch.from_numpy(images)

    def problem(self, number: int) -> DdbenchError | None:
        """Return why a picture cannot be read; None where it can."""
        try:
            self._array(number)
        except DdbenchError as error:
            return error
        return None

    def _array(self, number: int) -> np.ndarray:
        path = self._root / self._names[number]
        try:
            changed = path.stat().st_size != self._sizes[number]
        except OSError:
            changed = True
        if changed:
            # The folder is listed anew by the next run.
            self._index.unlink(missing_ok=True)
            raise DdbenchError(
                f"{path} was changed or removed after the folder had been listed.",
                "Leave the folder alone while ddbench works on it, and start again.",
            )
        array = as_array(Picture.at(path, 0), self._channels, self._size, Counter())
        if array.shape != self._shape:
            raise UsageError(
                f"{path} is {array.shape[2]}x{array.shape[1]} pixels, others are {self._shape[2]}x{self._shape[1]}.",
                "Resize them all with --set dataset.size=64.",
            )
        return array


def as_array(picture: Picture, channels: int, size: int | None, changes: Counter[str]) -> np.ndarray:
    """Return a picture as uint8 `[channels, height, width]`, resized to squares of `size`. Raises as `_read`."""
    image = _read(picture, changes).convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def check_damaged(damaged: Sequence[DdbenchError], skip: bool) -> None:
    """Raise `DdbenchError` for files that cannot be read: the first by its name, and how many there are."""
    if skip or not damaged:
        return
    first = damaged[0]
    if len(damaged) == 1:
        raise first
    raise DdbenchError(
        f"{first.message.rstrip('.')}, and {len(damaged) - 1} more.",
        "Remove or replace them, or leave them out with --set dataset.skip_damaged=true.",
    )


@contextlib.contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Open a picture. Raises `DdbenchError` for anything that reading it raises, also in the body."""
    try:
        # PIL warns of files that it then reads or refuses.
        with (
            warnings.catch_warnings(action="ignore"),
            picture.open() as stream,
            Image.open(stream, formats=FORMATS) as image,
        ):
            yield image
    except (DdbenchError, MemoryError):
        raise
    except Exception as error:
        # A damaged file can make the decoders raise any type of exception.
        raise DdbenchError(f"{picture.name} cannot be read as an image.", "Remove or replace it.") from error


def _is_grey(picture: Picture) -> bool:
    """Return True if the header says that a picture is grey, or nothing that can be read."""
    try:
        with _opened(picture) as image:
            return image.mode in GREY or image.mode in SIXTEEN_BIT
    except DdbenchError:
        return True


def _read(picture: Picture, changes: Counter[str]) -> Image.Image:
    """Return a picture upright, without transparency and with 8 bits per channel; count in `changes` what was done."""
    with _opened(picture) as image:
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
            changes[ROTATED] += 1
        upright = ImageOps.exif_transpose(image)
        if upright.mode in SIXTEEN_BIT or upright.mode == "F":
            changes[DEEP] += 1
            return _eight_bit(upright, picture.name)
        if not upright.has_transparency_data:
            return upright
        layer = upright.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            changes[TRANSPARENT] += 1
        background = Image.new("RGBA", layer.size, "white")
        background.alpha_composite(layer)
        return background.convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale the values of a 16-bit image to 0 to 255; the conversion of PIL would clip them."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DdbenchError(f"{name} has pixels of more than 16 bits.", "Save it with 8 or 16 bits per channel.")
    return Image.fromarray((values / 257).round().astype(np.uint8))

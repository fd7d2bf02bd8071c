"""Datasets from arrays: `npz:PATH`, a numpy archive of `x_train`, `y_train`, `x_test` and `y_test`.

Arrays that look like pixels are images. Any others that hold numbers are examples of the modality `array`.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddbench
from ddbench import Component, DdbenchError, ImageSplits, Splits, UsageError
from ddbench.builtin.labels import Labels, label_text, number_labels
from ddbench.builtin.pictures import NETWORK

IMAGES, LABELS = ("x_train", "x_test"), ("y_train", "y_test")
SHAPES = "Give images [n, height, width], [n, height, width, c] or [n, c, height, width], c being 1 or 3."
REMEDY = "Put examples of every class into x_train and y_train, and some into x_test and y_test."


def find_arrays(name: str) -> Component:
    """Return the dataset of `npz:PATH`; of the images, only the shapes are read.

    Raises `UsageError` for an archive that cannot be read, and for arrays that are not images and labels.
    """
    path = Path(name.removeprefix("npz:")).expanduser()
    with _opened(path) as archive:
        shapes = [_shape(archive, path, key) for key in IMAGES]
        for key in LABELS:
            _shape(archive, path, key)
        train, test = (_class_names(path, key, archive[key]) for key in LABELS)
    for key, shape, labels in zip(IMAGES, shapes, (train, test), strict=True):
        if shape[:1] != (len(labels),):
            raise UsageError(
                f"{path} has {key} of shape {list(shape)} for {len(labels)} labels.", "Give each image one label."
            )
    numbered = number_labels(str(path), train, test, REMEDY)
    if shapes[0][1:] != shapes[1][1:]:
        raise UsageError(
            f"{path} has images of shape {list(shapes[0][1:])} in x_train and {list(shapes[1][1:])} in x_test.",
            "Give the images of both splits one shape.",
        )
    if _holds_vectors(path, shapes[0]):
        return _vectors(path, shapes[0][1:], numbered).named(name)
    axis = _channel_axis(path, shapes[0])
    height, width = (length for number, length in enumerate(shapes[0]) if number not in (0, axis))
    channels = 1 if axis is None else shapes[0][axis]

    # Rows are shared, so they carry the file's name and not its path.
    @ddbench.dataset(
        classes=numbered.classes,
        sample_shape=(channels, height, width),
        network=NETWORK,
        label=f"npz:{path.resolve().name}",
    )
    def arrays(root: Path, download: bool) -> ImageSplits:
        """Load images and labels from the arrays x_train, y_train, x_test and y_test of a numpy archive."""
        with _opened(path) as archive:
            pixels, notice = _eight_bit(path, {key: archive[key] for key in IMAGES})
        images = [
            torch.from_numpy(array[:, None] if axis is None else np.moveaxis(array, axis, 1)).contiguous()
            for array in pixels
        ]
        train_labels, test_labels = torch.tensor(numbered.train), torch.tensor(numbered.test)
        notices = (notice,) if notice else ()
        # The name of a file identifies no images, so rows carry their content hash.
        return ImageSplits(images[0], train_labels, images[1], test_labels, partial=True, notices=notices)

    return ddbench.component_of(arrays, "dataset").named(name)


def _vectors(path: Path, shape: tuple[int, ...], numbered: Labels) -> Component:
    """Return the dataset of examples of any shape, whose numbers are no pixels."""

    @ddbench.dataset(
        classes=numbered.classes,
        sample_shape=shape,
        network="linear" if len(shape) == 1 else "mlp",
        modality="array",
        label=f"npz:{path.resolve().name}",
    )
    def arrays(root: Path, download: bool) -> Splits:
        """Load examples of any shape and labels from the arrays x_train, y_train, x_test and y_test of an archive."""
        with _opened(path) as archive:
            train, test = (torch.from_numpy(np.asarray(archive[key], np.float32)) for key in IMAGES)
        said = f"examples of shape {list(shape)} are taken as numbers, not as pixels"
        notices = (said,) if len(shape) in (2, 3) else ()
        return Splits(train, torch.tensor(numbered.train), test, torch.tensor(numbered.test), notices=notices)

    return ddbench.component_of(arrays, "dataset")


def _holds_vectors(path: Path, shape: tuple[int, ...]) -> bool:
    """Return True for numbers that are no pixels: by their shape, or floats that leave [0, 1] and are not whole."""
    with _opened(path) as archive:
        if any(_dtype(archive, key).kind not in "iuf" for key in IMAGES) or 0 in shape or len(shape) < 2:
            return False
        if len(shape) not in (3, 4):
            return True
        if any(_dtype(archive, key).kind != "f" for key in IMAGES):
            return False
        if len(shape) == 4 and not {shape[1], shape[3]} & {1, 3}:
            return True
        arrays = [archive[key] for key in IMAGES]
    # NaN is refused with the images: it is no number of either kind.
    lowest, highest = min(array.min() for array in arrays), max(array.max() for array in arrays)
    whole = all((array == np.rint(array)).all() for array in arrays)
    pixels = lowest >= 0 and (highest <= 1 or (highest <= 255 and whole))
    return bool(np.isfinite([lowest, highest]).all()) and not pixels


@contextmanager
def _opened(path: Path) -> Iterator["np.lib.npyio.NpzFile"]:
    """Open an archive; nothing in it is unpickled. Raises `UsageError` where it is missing or damaged, also later."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}.", "Give the path of an archive: --dataset npz:PATH")
    remedy = "Write it with np.savez(PATH, x_train=..., y_train=..., x_test=..., y_test=...)."
    try:
        if not zipfile.is_zipfile(path):
            raise UsageError(f"{path} is not an npz archive, or it is cut off.", remedy)
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (DdbenchError, MemoryError):
        raise
    except Exception as error:
        # A damaged archive can make its readers raise any type of exception.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"{path} is damaged: {reason}.", remedy) from error


def _header(archive: "np.lib.npyio.NpzFile", key: str) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Return shape and type of an array, from its header."""
    assert archive.zip is not None
    with archive.zip.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return tuple(shape), dtype


def _dtype(archive: "np.lib.npyio.NpzFile", key: str) -> "np.dtype[Any]":
    return _header(archive, key)[1]


def _shape(archive: "np.lib.npyio.NpzFile", path: Path, key: str) -> tuple[int, ...]:
    """Return the shape of an array from its header. Raises `UsageError` if it is missing or holds Python objects."""
    if key not in archive.files:
        raise UsageError(
            f"{path} has no array {key}; it has {', '.join(archive.files) or 'none'}.",
            "Name the arrays x_train, y_train, x_test and y_test.",
        )
    shape, dtype = _header(archive, key)
    if dtype.hasobject:
        raise UsageError(
            f"{key} of {path} holds Python objects, which could run code; it was not loaded.",
            "Save numbers or text: np.array(values, dtype=str).",
        )
    return shape


def _class_names(path: Path, key: str, labels: np.ndarray) -> list[str]:
    """Return labels `[n]` or `[n, 1]`, whole numbers or strings, as names of classes."""
    if labels.shape[1:] not in ((), (1,)) or not labels.ndim:
        raise UsageError(
            f"{key} of {path} has the shape {list(labels.shape)}.",
            "Give one label for each image; of one-hot rows, np.argmax(y, axis=1).",
        )
    return [label_text(label, f"example {i} of {key} in {path}") for i, label in enumerate(labels.ravel().tolist())]


def _channel_axis(path: Path, shape: tuple[int, ...]) -> int | None:
    """Return which axis of `[n, ...]` holds the channels; None for `[n, h, w]`. Raises `UsageError` if none can."""
    if len(shape) == 3 and 0 not in shape:
        return None
    axes = [axis for axis in (1, 3) if len(shape) == 4 and 0 not in shape and shape[axis] in (1, 3)]
    if len(axes) != 1:
        either = "channels could be first or last" if axes else "none is an axis of one or three channels"
        raise UsageError(f"x_train of {path} has the shape {list(shape)}: {either}.", SHAPES)
    return axes[0]


def _eight_bit(path: Path, images: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Return the images as uint8, and what was converted. Raises `UsageError` for values that are not clearly pixels.

    Fractions in [0, 1] are scaled by 255; whole numbers from 0 to 255 of another type keep their values.
    """
    arrays = list(images.values())
    if all(array.dtype == np.uint8 for array in arrays):
        return arrays, ""
    types = " and ".join(dict.fromkeys(str(array.dtype) for array in arrays))
    if all(array.dtype.kind in "iuf" for array in arrays):
        # NaN is neither below nor above, and so no pixel.
        lowest, highest = min(array.min() for array in arrays), max(array.max() for array in arrays)
        if lowest >= 0 and highest <= 1 and all(array.dtype.kind == "f" for array in arrays):
            return [np.rint(array * 255).astype(np.uint8) for array in arrays], f"{types} in [0, 1] scaled to 0 .. 255"
        if lowest >= 0 and highest <= 255 and all((array == np.rint(array)).all() for array in arrays):
            return [array.astype(np.uint8) for array in arrays], f"{types} of whole numbers taken as pixels 0 .. 255"
        types += f" from {lowest:g} to {highest:g}"
    raise UsageError(
        f"the images of {path} are of type {types}.", "Give uint8 pixels from 0 to 255, or fractions in [0, 1]."
    )

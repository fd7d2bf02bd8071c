"""Datasets of Hugging Face on disk: `hf:PATH`, read by the optional library `datasets`, never from the network."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

import pydantic

import ddbench
from ddbench import Component, DdbenchError, ImageSplits, MissingPrerequisite, UsageError
from ddbench.builtin.labels import choose_splits, find_column, in_test_split, label_text, number_labels
from ddbench.builtin.pictures import NETWORK, Picture, Size, load_splits, sample_shape

SAVED = ("dataset_dict.json", "state.json")
"""Files by one of which a folder shows that `save_to_disk` wrote it."""
REMEDY = "Save a DatasetDict with the splits train and test, and with each class in the training split."

ImageColumn = Annotated[
    str | None, pydantic.Field(description="column of the images; by default the only one of type Image")
]
LabelColumn = Annotated[
    str | None, pydantic.Field(description="column of the labels; by default the only one of type ClassLabel")
]


@dataclass(frozen=True)
class _Rows:
    """Rows of a split: its name, its table, and the numbers of the rows in it."""

    split: str
    table: Any
    numbers: Sequence[int]

    def where(self, path: Path, number: int) -> str:
        return f"row {number} of {self.split} in {path}"


def find_saved(name: str, options: Mapping[str, Any]) -> Component:
    """Return the dataset of `hf:PATH`. `options` may name the columns.

    Raises `MissingPrerequisite` without the library, `UsageError` for a folder that it cannot read or that has no
    images with labels.
    """
    path = Path(name.removeprefix("hf:")).expanduser()
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}.", "Give the folder that save_to_disk wrote: --dataset hf:PATH")
    train, test, notices = _two_splits(path, _splits(path))
    image, label = _columns(path, train.table, options)
    for column in (image, label):
        if test.table.features.get(column) != train.table.features[column]:
            raise UsageError(f"the splits of {path} differ in the column {column}.", REMEDY)
    classes = getattr(train.table.features[label], "names", None)
    numbered = number_labels(str(path), _labels(path, train, label), _labels(path, test, label), REMEDY, classes)
    train_pictures = _pictures(path, train, image, numbered.train)
    test_pictures = _pictures(path, test, image, numbered.test)
    shape = sample_shape([*train_pictures, *test_pictures])

    # Rows are shared, so they carry the folder's name and not its path.
    @ddbench.dataset(classes=numbered.classes, sample_shape=shape, network=NETWORK, label=f"hf:{path.resolve().name}")
    def saved(
        root: Path,
        download: bool,
        *,
        size: Size = None,
        image_column: ImageColumn = None,
        label_column: LabelColumn = None,
    ) -> ImageSplits:
        """Load a Hugging Face dataset from a folder, by its splits, or split 80/20 by a hash of the row number."""
        return load_splits(train_pictures, test_pictures, shape[0], size, notices)

    return ddbench.component_of(saved, "dataset").named(name)


def _splits(path: Path) -> dict[str, Any]:
    """Return the table of each split. Raises `MissingPrerequisite` without the library, `UsageError` where it fails."""
    try:
        from datasets import Dataset, disable_progress_bars, load_dataset, load_from_disk
    except ImportError as error:
        raise MissingPrerequisite("hf:PATH needs the package datasets.", "pip install 'ddbench[hf]'") from error
    disable_progress_bars()
    try:
        if any((path / file).exists() for file in SAVED):
            loaded = load_from_disk(path)
        else:
            # The reader is named, since the folder could otherwise name one in its README, with addresses to fetch.
            reader = next((kind for kind in ("parquet", "arrow") if any(path.rglob(f"*.{kind}"))), "imagefolder")
            loaded = load_dataset(reader, data_dir=str(path.resolve()))
    except Exception as error:
        # A damaged folder can make the library raise any type of exception.
        reason = textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 160).rstrip(".!")
        raise UsageError(
            f"{path} cannot be read as a Hugging Face dataset: {reason}.", "Write it with dataset.save_to_disk(PATH)."
        ) from error
    return {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)


def _two_splits(path: Path, splits: Mapping[str, Any]) -> tuple[_Rows, _Rows, tuple[str, ...]]:
    """Return the rows of the training and of the test split, and notices of splits that are not used.

    Of a single split, a fixed fifth of the rows is held out. Raises `UsageError` where several have other names.
    """
    if len(splits) == 1:
        [(name, table)] = splits.items()
        held_out = [in_test_split(str(number)) for number in range(len(table))]
        kept, cut = ([i for i, held in enumerate(held_out) if held is wanted] for wanted in (False, True))
        return _Rows(name, table, kept), _Rows(name, table, cut), ()
    train, test = choose_splits(list(splits))
    if train is None or test is None:
        raise UsageError(f"{path} has the splits {', '.join(splits) or 'of no name'}, not train and test.", REMEDY)
    rows = [_Rows(name, splits[name], range(len(splits[name]))) for name in (train, test)]
    unused = [name for name in splits if name not in (train, test)]
    return rows[0], rows[1], tuple(f"{len(splits[name])} of the split {name} are not used" for name in unused)


def _columns(path: Path, table: Any, options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the columns of images and of labels, by their types unless an option names them."""
    from datasets import ClassLabel, Image, Value

    features = table.features

    def column(what: str, usual: type, possible: tuple[type, ...]) -> str:
        option = f"{what}_column"
        name = find_column(
            str(path), list(features), options.get(option), lambda c: isinstance(features[c], usual), f"{what}s", option
        )
        remedy = f"Its columns are {', '.join(features)}; name one: --set dataset.{option}=NAME"
        if name is None:
            raise UsageError(f"{path} has no column of type {usual.__name__}.", remedy)
        if not isinstance(features[name], possible):
            raise UsageError(f"the column {name} of {path} holds no {what}s.", remedy)
        return name

    return column("image", Image, (Image,)), column("label", ClassLabel, (ClassLabel, Value))


def _labels(path: Path, rows: _Rows, column: str) -> list[str]:
    """Return the name of the class of each row. Raises `UsageError` for a row without a label."""
    values = rows.table.select_columns([column])[:][column]
    names = getattr(rows.table.features[column], "names", None)
    if names is None:
        return [label_text(values[number], rows.where(path, number)) for number in rows.numbers]
    # Unlabelled examples have the number -1.
    known = [value if value is not None and value >= 0 else None for value in values]
    return [names[known[i]] if known[i] is not None else label_text(None, rows.where(path, i)) for i in rows.numbers]


def _pictures(path: Path, rows: _Rows, column: str, labels: Sequence[int]) -> list[Picture]:
    """Return the pictures of the rows, as the bytes that the table holds or refers to."""
    from datasets import Image

    table = rows.table.select_columns([column]).cast_column(column, Image(decode=False))
    return [
        Picture(rows.where(path, number), label, partial(_open, table, number, column, rows.where(path, number)))
        for number, label in zip(rows.numbers, labels, strict=True)
    ]


def _open(table: Any, number: int, column: str, where: str) -> IO[bytes]:
    image = table[number][column]
    if image is None:
        raise DdbenchError(f"{where} has no image.", "Remove the row.")
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else Path(image["path"]).open("rb")

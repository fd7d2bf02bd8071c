"""Datasets from tables: `csv:PATH`, a CSV file with a column of image paths or of sentences, and one of labels.

A further column may say which split a row belongs to.
"""

import os.path
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

import ddbench
from ddbench import Component, ImageSplits, Splits, UsageError
from ddbench.builtin.labels import (
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    find_column,
    in_test_split,
    label_text,
    number_labels,
)
from ddbench.builtin.pictures import NETWORK, Picture, Size, load_splits, sample_shape
from ddbench.builtin.text import DIM, LENGTH, Dim, Length, Vectors, Words, splits_of
from ddbench.builtin.text import NETWORK as TEXT_NETWORK

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "text": ("text", "sentence", "question", "review"),
    "label": ("label", "class", "target"),
    "split": ("split",),
}
"""Kinds of columns with their usual names. An option `path_column`, ... names a column that is called otherwise."""

MORE_ROWS = "Give each class more rows, or add a column split that says train or test in each row."

PathColumn = Annotated[
    str | None, pydantic.Field(description="column of the image paths; by default path, file, filename or image")
]
TextColumn = Annotated[
    str | None, pydantic.Field(description="column of the sentences; by default text, sentence, question or review")
]
LabelColumn = Annotated[
    str | None, pydantic.Field(description="column of the labels; by default label, class or target")
]
SplitColumn = Annotated[
    str | None, pydantic.Field(description="column that says train or test; by default split, if there is one")
]


def find_table(name: str, options: Mapping[str, Any]) -> Component:
    """Return the dataset of `csv:PATH`. `options` may name the columns.

    Raises `UsageError` for a table that cannot be read, and for rows that are no examples.
    """
    path = Path(name.removeprefix("csv:")).expanduser()
    table = _read(path)
    if _holds_text(list(table.columns), options):
        return _table_of_sentences(path, table, options).named(name)
    paths, labels, splits = (_column(path, table, what, options) for what in ("path", "label", "split"))
    assert paths is not None and labels is not None
    files = _files(path, paths)
    names = [label_text(label, f"{file} in {path}") for label, file in zip(labels, paths, strict=True)]
    train, test, unused = _split(path, paths, splits)
    numbered = number_labels(
        str(path),
        [names[i] for i in train],
        [names[i] for i in test],
        MORE_ROWS,
    )
    train_pictures = [Picture.at(files[i], label) for i, label in zip(train, numbered.train, strict=True)]
    test_pictures = [Picture.at(files[i], label) for i, label in zip(test, numbered.test, strict=True)]
    shape = sample_shape([*train_pictures, *test_pictures])

    # Rows are shared, so they carry the file's name and not its path.
    @ddbench.dataset(classes=numbered.classes, sample_shape=shape, network=NETWORK, label=f"csv:{path.resolve().name}")
    def table_of_images(
        root: Path,
        download: bool,
        *,
        size: Size = None,
        path_column: PathColumn = None,
        label_column: LabelColumn = None,
        split_column: SplitColumn = None,
    ) -> ImageSplits:
        """Load the images that a CSV file lists, split by a column of it, or 80/20 by a hash of the path."""
        notices = (f"{unused} of the validation split are not used",) if unused else ()
        return load_splits(train_pictures, test_pictures, shape[0], size, notices)

    return ddbench.component_of(table_of_images, "dataset").named(name)


def _holds_text(columns: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Return True where a column of sentences is named, or there is one and none of image paths."""
    if options.get("text_column") or options.get("path_column"):
        return bool(options.get("text_column"))
    usual = {column.lower() for column in columns}
    return bool(usual & set(COLUMNS["text"])) and not usual & set(COLUMNS["path"])


def _table_of_sentences(path: Path, table: "DataFrame", options: Mapping[str, Any]) -> Component:
    """Return the dataset of the sentences of a table. Raises as `find_table`."""
    sentences, labels, splits = (_column(path, table, what, options) for what in ("text", "label", "split"))
    assert sentences is not None and labels is not None
    names = [label_text(label, f"row {row} of {path}") for row, label in enumerate(labels, start=1)]
    train, test, unused = _split(path, sentences, splits)
    numbered = number_labels(str(path), [names[i] for i in train], [names[i] for i in test], MORE_ROWS)

    @ddbench.dataset(
        classes=numbered.classes,
        sample_shape=(LENGTH, DIM),
        network=TEXT_NETWORK,
        modality="text",
        label=f"csv:{path.resolve().name}",
    )
    def table_of_sentences(
        root: Path,
        download: bool,
        *,
        length: Length = LENGTH,
        dim: Dim = None,
        words: Words = 5000,
        vectors: Vectors = None,
        text_column: TextColumn = None,
        label_column: LabelColumn = None,
        split_column: SplitColumn = None,
    ) -> Splits:
        """Load the sentences of a CSV file, split by a column of it, or 80/20 by a hash of the sentence."""
        notices = (f"{unused} of the validation split are not used",) if unused else ()
        chosen = ([sentences[i] for i in train], numbered.train), ([sentences[i] for i in test], numbered.test)
        return splits_of(*chosen, length, dim, words, vectors, notices)

    return ddbench.component_of(table_of_sentences, "dataset")


def _read(path: Path) -> "DataFrame":
    """Read a CSV file, every value as text. Raises `UsageError` where it is missing or damaged."""
    import pandas

    if not path.is_file():
        raise UsageError(f"there is no file {path}.", "Give the path of a CSV file: --dataset csv:PATH")
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header would be cut.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            table = pandas.read_csv(
                path, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False, encoding="utf-8-sig"
            )
    except (OSError, ValueError, pandas.errors.ParserWarning) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if isinstance(error, pandas.errors.ParserWarning):
            reason = "a row is longer than the header"
        raise UsageError(
            f"{path} cannot be read as a CSV file: {reason}.", "Save it as UTF-8, with one header and commas."
        ) from error
    return table.fillna("").rename(columns=lambda column: str(column).strip())


def _column(path: Path, table: "DataFrame", what: str, options: Mapping[str, Any]) -> list[str] | None:
    """Return the values of the column of `what`; None for splits that the table does not state."""
    columns, option = list(table.columns), f"{what}_column"
    plural = {"path": "image paths", "text": "sentences", "label": "labels", "split": "splits"}[what]
    column = find_column(
        str(path), columns, options.get(option), lambda name: name.lower() in COLUMNS[what], plural, option
    )
    if column is None and what != "split":
        *others, last = COLUMNS[what]
        raise UsageError(
            f"{path} has no column of {plural} called {', '.join(others)} or {last}.",
            f"Its columns are {', '.join(columns)}; name one: --set dataset.{option}=NAME",
        )
    return None if column is None else [value.strip() for value in table[column]]


def _files(path: Path, paths: Sequence[str]) -> list[Path]:
    """Return the image files of the rows. Raises `UsageError` for one that is missing, outside or listed twice."""
    folder, files, rows = path.parent, list[Path](), dict[str, int]()
    for row, text in enumerate(paths, start=1):
        relative = os.path.normpath(os.path.relpath(text, folder) if Path(text).is_absolute() else text)
        if not text:
            raise UsageError(f"row {row} of {path} has no image path.", "Write one, or remove the row.")
        if Path(relative).parts[0] == os.pardir or "\0" in text:
            raise UsageError(
                f"{text} in {path} leads out of the folder of the table.", "Put the images beside the table or below."
            )
        if not (folder / relative).is_file():
            raise UsageError(
                f"{path} lists {text}, which does not exist.", f"Paths are relative to {folder}, the table's folder."
            )
        if relative in rows:
            raise UsageError(
                f"{path} lists {text} twice, in rows {rows[relative]} and {row}.", "Keep one row for each image."
            )
        rows[relative] = row
        files.append(folder / relative)
    return files


def _split(path: Path, paths: Sequence[str], splits: Sequence[str] | None) -> tuple[list[int], list[int], int]:
    """Return the rows of the training and of the test split, and how many are of neither.

    Without `splits`, a fixed fifth of the paths is held out. Rows of a validation split are used only where no row is
    of a test split, as it is with folders. Raises `UsageError` for another name of a split.
    """
    if splits is None:
        held_out = [in_test_split(os.path.normpath(text)) for text in paths]
        rows = range(len(paths))
        return [i for i in rows if not held_out[i]], [i for i in rows if held_out[i]], 0
    names = [split.lower() for split in splits]
    for text, split in zip(paths, names, strict=True):
        if split not in TRAIN_NAMES + TEST_NAMES + VALIDATION_NAMES:
            raise UsageError(
                f"{text} in {path} has the split {split!r}." if split else f"{text} in {path} has no split.",
                "Write train or test.",
            )
    test_names = TEST_NAMES if any(split in TEST_NAMES for split in names) else VALIDATION_NAMES
    train = [i for i, split in enumerate(names) if split in TRAIN_NAMES]
    test = [i for i, split in enumerate(names) if split in test_names]
    return train, test, len(names) - len(train) - len(test)

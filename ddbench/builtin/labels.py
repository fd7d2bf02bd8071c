"""Labels as people write them, as numbers of classes, and the share of examples that is held out for testing."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddbench import UsageError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Labels:
    """The labels of both splits as numbers of classes.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        train: the number of the class of each training example.
        test: the number of the class of each test example.
    """

    classes: tuple[str, ...]
    train: list[int]
    test: list[int]


def in_test_split(key: str) -> bool:
    """Return True for a fixed fifth of all keys, by their hash: a new example never moves another."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < TEST_SHARE


def choose_splits(names: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the names of the training and the test split among `names`, None for one that is not there.

    Case does not matter. A validation split serves as the test split where there is no other.
    """
    by_name: Mapping[str, str] = {name.lower(): name for name in names}
    train = next((by_name[name] for name in TRAIN_NAMES if name in by_name), None)
    test = next((by_name[name] for name in TEST_NAMES + VALIDATION_NAMES if name in by_name), None)
    return train, test


def label_text(value: object, where: str) -> str:
    """Return a label as the name of its class: text without blanks around it, a whole number without a fraction.

    `where` names the example in errors. Raises `UsageError` for an empty label, NaN, a fraction or another type.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, bool | np.bool_):
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text or text.lower() == "nan":
        raise UsageError(f"{where} has no label{' but NaN' if text else ''}.", "Give it a label, or remove it.")
    if not isinstance(value, str | int | float | np.integer | np.floating):
        raise UsageError(f"{where} has a label of type {type(value).__name__}.", "Write whole numbers or names.")
    if re.fullmatch(r"[+-]?\d+\.0*", text):
        return text.partition(".")[0]
    if not isinstance(value, str | int | np.integer) or re.fullmatch(r"[+-]?\d*\.\d+", text):
        raise UsageError(f"{where} has the label {text}, which is not a whole number.", "Write whole numbers or names.")
    return text


def number_labels(
    source: str, train: Sequence[str], test: Sequence[str], remedy: str, classes: Sequence[str] | None = None
) -> Labels:
    """Return the labels as numbers of classes. Classes that are whole numbers stand in their order, others by name.

    Args:
        source: the data, as errors name them.
        train: the name of the class of each training example.
        test: the name of the class of each test example.
        remedy: what to do where a split or a class has no examples, in one sentence.
        classes: names of the classes in their order; None takes those that occur.

    Raises `UsageError` unless there are two classes or more, training examples of each, and test examples.
    """
    names = list(classes) if classes is not None else _in_order(source, {*train, *test})
    for split, labels in (("training", train), ("test", test)):
        if not labels:
            raise UsageError(f"{source} has no {split} examples.", remedy)
    if len(names) < 2:
        raise UsageError(f"{source} has one class only: {', '.join(names)}.", "Give examples of at least two classes.")
    present = set(train)
    empty = [name for name in names if name not in present]
    if empty:
        raise UsageError(f"{source} has no training examples of {_listed('class', empty)}.", remedy)
    number = {name: i for i, name in enumerate(names)}
    return Labels(tuple(names), [number[name] for name in train], [number[name] for name in test])


def find_column(
    source: str, columns: Sequence[str], asked: object, fits: Callable[[str], bool], what: str, option: str
) -> str | None:
    """Return the column that the user asked for, or the only one of `columns` that `fits`; None if there is none.

    `what` says what the column holds, `option` is the option that names it. Raises `UsageError` for a column that does
    not exist, and where several fit.
    """
    setting = f"--set dataset.{option}"
    if asked is not None:
        if str(asked) not in columns:
            raise UsageError(
                f"{source} has no column {str(asked)!r}.", f"Its columns are {', '.join(columns)}: {setting}=NAME"
            )
        return str(asked)
    fitting = [column for column in columns if fits(column)]
    if len(fitting) > 1:
        raise UsageError(
            f"{source} has several columns of {what}: {', '.join(fitting)}.", f"Name one: {setting}={fitting[0]}"
        )
    return fitting[0] if fitting else None


def _in_order(source: str, names: set[str]) -> list[str]:
    """Return names sorted, whole numbers by their value. Raises `UsageError` where some are numbers and others not."""
    numbers = {name for name in names if re.fullmatch(r"[+-]?\d+", name)}
    if numbers and numbers != names:
        raise UsageError(
            f"the labels of {source} are partly numbers and partly names: "
            f"{min(numbers)!r} beside {min(names - numbers)!r}.",
            "Write all of them as whole numbers or all as names.",
        )
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _listed(noun: str, names: Sequence[str]) -> str:
    """Return `class 'a'`, or `5 classes: 'a', 'b', 'c', ...`."""
    if len(names) == 1:
        return f"{noun} {names[0]!r}"
    return f"{len(names)} {noun}es: {', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"

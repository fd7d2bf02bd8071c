"""Open a distilled set that somebody made, and say where it is to be scored."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ddbench.contract.examples import ExampleSet
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice, RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.formats.families import read
from ddbench.pipeline.plan import plan_evaluation


@dataclass(frozen=True)
class Reading:
    """Options for reading a file that others released; None and False leave it to the kind of the file.

    Attributes:
        repetition: the number of the set in a file that holds several.
        mean: the mean of each channel that the images were normalised by.
        std: the standard deviation of each channel that the images were normalised by.
        whitened: its images are ZCA-whitened by the training images.
        logits: its soft labels are logits, not probabilities.
    """

    repetition: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    whitened: bool = False
    logits: bool | None = None

    def __post_init__(self) -> None:
        if self.whitened and (self.mean or self.std):
            raise UsageError("--file-zca goes without --file-mean and --file-std.", "Whitened images have neither.")

    @property
    def flags(self) -> list[str]:
        """The flags of the fields that are set."""
        options = {
            "--repetition": self.repetition is not None,
            "--file-mean": self.mean is not None,
            "--file-std": self.std is not None,
            "--file-zca": self.whitened,
            "--file-labels": self.logits is not None,
        }
        return [flag for flag, is_set in options.items() if is_set]


@dataclass(frozen=True)
class OpenedSet:
    """A distilled set from a file.

    Attributes:
        path: the file.
        distilled: the set, or a function that makes it of all training examples of its dataset.
        fields: the fields of the spec that it was made for.
        notices: a sentence for each part of the file that was not taken as it stands.
    """

    path: Path
    distilled: DistilledSet | Callable[[ExampleSet], DistilledSet]
    fields: dict[str, Any]
    notices: tuple[str, ...] = ()

    @property
    def network_field(self) -> str:
        """The field of the spec that names the network to score on; a set of ddbench also has one it was made for."""
        return "eval_network" if isinstance(self.distilled, DistilledSet) else "network"

    @property
    def classes(self) -> str | None:
        """The class names that the file itself states, as JSON."""
        return self.distilled.metadata.get("classes") if isinstance(self.distilled, DistilledSet) else None


def open_set(file: Path, dataset: Choice | None, reading: Reading, catalog: Catalog) -> OpenedSet:
    """Open a run folder, a file of ddbench, or a file that others released for `dataset`; no code in it is run.

    Raises `UsageError` where it is none of these, or does not go with `reading`.
    """
    path = file / "distilled.safetensors" if (file / "distilled.safetensors").exists() else file
    if path.suffix == ".safetensors":
        return _open_own(path, reading)
    if not path.exists():
        raise UsageError(f"there is no file {path}.", "Give the path of a distilled set.")
    if dataset is None:
        raise UsageError(f"{path} does not say what it was made for.", "Name its dataset: --dataset cifar10")
    released = read(path, reading.repetition or 0)
    component, _ = catalog.resolve("dataset", dataset)
    count, classes = len(released.images), len(component.facts["classes"])
    if count % classes:
        raise UsageError(
            f"{path} holds {count} images for the {classes} classes of {dataset.name}.",
            "Name the dataset it was made for.",
        )

    def for_dataset(train: ExampleSet) -> DistilledSet:
        pixels = train.info.pixels(train.inputs) if reading.whitened else None
        return released.to_distilled(train.info, reading.mean, reading.std, pixels, bool(reading.logits))

    fields = {"method": "foreign", "dataset": dataset.name, "protocol": "train/v1", "steps": 1}
    return OpenedSet(path, for_dataset, {**fields, "images_per_class": count // classes}, released.notices)


def _open_own(path: Path, reading: Reading) -> OpenedSet:
    for option in reading.flags:
        raise UsageError(f"{option} is about files that others made; {path} is ddbench's own.", f"Leave out {option}.")
    distilled = DistilledSet.load(path)
    try:
        fields = json.loads(distilled.metadata.get("spec", ""))
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{path} does not say what it was made for.", "Files that ddbench wrote carry their spec.")
    target = fields.get("target")
    if target and fields.get("eval_init") == target:
        # Scoring draws from the target, whatever its options are now.
        del fields["eval_init"]
    return OpenedSet(path, distilled, fields)


def scoring_places(
    opened: OpenedSet, spec: RunSpec, others: Iterable[dict[str, str]], catalog: Catalog
) -> list[tuple[dict[str, str], RunSpec]]:
    """Return what to score a set on, every place once: how it differs from `spec`, and its whole spec.

    `others` are differences, such as `{"eval_network": "mlp"}`. Raises `UsageError`, before anything is scored, for a
    name that does not exist, and for a dataset of other classes than the set says it was made for.
    """
    places, known = [], set()
    for place in ({}, *others):
        changed = {**spec.model_dump(exclude_unset=True), **place}
        # The same name keeps its options.
        kept = {name: getattr(spec, name) for name, value in place.items() if _name(spec, name) == value}
        one = RunSpec.parse({**changed, **kept})
        plan = plan_evaluation(one, catalog)
        if opened.classes is not None:
            _check_classes(opened.path, opened.classes, plan.settings.dataset.name, plan.dataset.facts["classes"])
        # The usual network of a dataset may have options, so names alone do not tell places apart.
        canonical = plan.settings.canonical()
        if canonical not in known:
            known.add(canonical)
            places.append((place, one))
    return places


def _name(spec: RunSpec, part: str) -> str | None:
    choice = getattr(spec, part)
    return None if choice is None else str(choice.name)


def _check_classes(path: Path, stated: str, dataset: str, classes: Sequence[object]) -> None:
    """Raise `UsageError` where a set's labels stand for other classes than the dataset's."""
    try:
        names = [str(name) for name in json.loads(stated)]
    except (json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{path} does not say what its classes are.", "Take a file as ddbench wrote it.") from error
    for label, pair in enumerate(zip_longest(names, map(str, classes))):
        if pair[0] != pair[1]:
            stated_name, other_name = ("no class" if name is None else repr(name) for name in pair)
            raise UsageError(
                f"label {label} is {stated_name} in {path} and {other_name} in {dataset}.",
                "Score it on a dataset with the same classes in the same order.",
            )

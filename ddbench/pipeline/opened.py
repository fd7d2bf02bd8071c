"""Open a distilled set that somebody made, and say where it is to be scored."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddbench.contract.examples import ExampleSet
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice, RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import UsageError
from ddbench.formats.conversion import convert
from ddbench.formats.families import family_of
from ddbench.formats.reading import Family, Overrides, Source
from ddbench.pipeline.data import info_from_facts
from ddbench.pipeline.plan import check_classes, plan_evaluation


@dataclass(frozen=True)
class OpenedSet:
    """A distilled set from a file.

    Attributes:
        path: the file.
        distilled: the set, or a function that makes it of all training examples of its dataset.
        fields: the fields of the spec that it was made for.
    """

    path: Path
    distilled: DistilledSet | Callable[[ExampleSet], DistilledSet]
    fields: dict[str, Any]

    @property
    def network_field(self) -> str:
        """The field of the spec that names the network to score on; a set of ddbench also has one it was made for."""
        return "eval_network" if isinstance(self.distilled, DistilledSet) else "network"

    @property
    def dataset_field(self) -> str:
        """The field of the spec that names another dataset to score on; a set of ddbench keeps its own beside it."""
        return "eval_dataset" if isinstance(self.distilled, DistilledSet) else "dataset"

    @property
    def classes(self) -> str | None:
        """The class names that the file itself states, as JSON."""
        return self.distilled.metadata.get("classes") if isinstance(self.distilled, DistilledSet) else None


def open_set(
    file: Path,
    dataset: Choice | None,
    overrides: Overrides,
    family: str | None,
    catalog: Catalog,
    say: Callable[[str], None],
) -> OpenedSet:
    """Open a run folder, a file of ddbench, or a file that others released for `dataset`; no code in it is run.

    A released file is read as its `family` does, or as the one that it shows, and what is known or assumed of it is
    said. Raises `UsageError` where it is none of these, or does not go with `overrides`.
    """
    path = file / "distilled.safetensors" if (file / "distilled.safetensors").exists() else file
    if path.suffix == ".safetensors":
        return _open_own(path, [*(["--from"] if family else []), *overrides.flags])
    if not path.exists():
        raise UsageError(f"there is no file {path}.", "Give the path of a distilled set.")
    if dataset is None:
        raise UsageError(f"{path} does not say what it was made for.", "Name its dataset: --dataset cifar10")
    return _open_released(path, dataset, overrides, family_of(path, family), catalog, say)


def _open_released(
    path: Path, dataset: Choice, overrides: Overrides, family: Family, catalog: Catalog, say: Callable[[str], None]
) -> OpenedSet:
    info = info_from_facts(catalog.resolve("dataset", dataset)[0])
    source = Source(path, info.name, info.classes, info.sample_shape, overrides.repetition)
    released = family.read(source)
    known = family.reading(source, released)
    # What the file itself shows comes before what its family usually does.
    reading = overrides.applied(known if released.scale is None else replace(known, scale=released.scale))
    if overrides.rate is not None and reading.protocol == "train-dsa/v1":
        reading = replace(reading, protocol="train-dsa-rate/v1")
    shape = "x".join(map(str, released.images.shape[1:]))
    say(f"Read as {family.name}, {family.summary}: {len(released.images)} images, {shape}.")
    for line in (*released.notices, *reading.notes):
        say(line)
    said = set()

    def for_dataset(train: ExampleSet) -> DistilledSet:
        # Scores on several networks use the same data: what is assumed is said once.
        again = train.info.content_hash in said
        said.add(train.info.content_hash)
        return convert(released, reading, train, (lambda line: None) if again else say)

    fields: dict[str, Any] = {"method": "foreign", "dataset": dataset.name, "protocol": reading.protocol}
    fields |= {"images_per_class": math.ceil(len(released.images) / len(info.classes)), "steps": released.steps}
    if released.lrs is not None and released.lrs.dim() == 2:
        fields["epochs"] = len(released.lrs)
    if reading.whitening is not None:
        fields["whitening"] = reading.whitening
    if overrides.resize == "dataset":
        if released.images.dim() != 4:
            raise UsageError("the images are rows of values, whose shape is the dataset's.", "Leave out --resize.")
        fields["sample_shape"] = list(released.images.shape[1:])
    return OpenedSet(path, for_dataset, fields)


def _open_own(path: Path, flags: Sequence[str]) -> OpenedSet:
    for option in flags:
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
    name that does not exist, for a dataset of other classes than the set says it was made for, and for data that are
    whitened where those of the set were not, or the reverse.
    """
    places, known = [], set()
    if spec.whitening != opened.fields.get("whitening"):
        raise UsageError(
            f"the images of {opened.path} are made for data with whitening {opened.fields.get('whitening') or 'none'}, "
            f"not {spec.whitening or 'none'}.",
            "Leave the whitening of the data as it is; of a released file, --file-whitening says it.",
        )
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
    return choice.name if isinstance(choice, Choice) else choice


def _check_classes(path: Path, stated: str, dataset: str, classes: Sequence[object]) -> None:
    """Raise `UsageError` where a set's labels stand for other classes than the dataset's."""
    try:
        names = [str(name) for name in json.loads(stated)]
    except (json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{path} does not say what its classes are.", "Take a file as ddbench wrote it.") from error
    check_classes(str(path), names, dataset, classes)

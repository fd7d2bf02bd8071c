"""Leaderboards: one CSV per objective, appended to by the program alone, one row per run."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from pydantic import ConfigDict, Field

from ddbench.contract.spec import Settings
from ddbench.errors import DdbenchError, UsageError
from ddbench.machine.files import atomic_write, locked
from ddbench.records.result import RunResult

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 2
# A row holds the raw value of every network; the csv module's own limit is reached at some 7000 of them.
csv.field_size_limit(2**31 - 1)


class Row(pydantic.BaseModel):
    """One run. Figures of the primary metric are in its own unit (fractions, for accuracies)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA, description="version of these columns")
    fingerprint: str = Field(description="SHA-256 of everything in the spec that can change the number")
    created: str = Field(description="when the row was written (UTC)")
    experiment: str = Field(description="named experiment that the run carries out; empty for none")
    method: str = Field(description="distillation method")
    method_options: str = Field(description="its options, as JSON")
    method_source: str = Field(
        description="package and version that the method came from; for a file, a digest of its code"
    )
    dataset: str = Field(description="dataset; with @ and a hash where the copy is not the full original")
    dataset_hash: str = Field(description="SHA-256 over all images and labels of both splits")
    dataset_options: str = Field(description="its options, as JSON")
    train_images: int = Field(description="training images the method saw")
    validation_images: int = Field(description="images held out of the training split, for selection")
    test_images: int = Field(description="images that scored")
    network: str = Field(description="architecture")
    network_options: str = Field(description="its options, as JSON")
    sample_shape: str = Field(description="channels x height x width of an image")
    init: str = Field(description="init distribution that was distilled for")
    init_options: str = Field(description="its options, as JSON")
    eval_init: str = Field(description="init distribution that scored")
    eval_init_options: str = Field(description="its options, as JSON")
    pretrained: str = Field(description="pools of pretrained networks and weights files that were drawn on, as JSON")
    objective: str = Field(description="objective")
    objective_options: str = Field(description="its options, as JSON")
    target: str = Field(description="pretrained-adaptation target; empty for none")
    target_options: str = Field(description="its options, as JSON")
    images_per_class: int = Field(description="images per class in all (IPC)")
    steps: int = Field(description="gradient steps with images of their own")
    epochs: int = Field(description="times the steps are cycled through")
    label_regime: str = Field(description="hard, stored soft or teacher online; never ranked together")
    protocol: str = Field(description="how the set was scored, with its version")
    protocol_hash: str = Field(description="beginning of a SHA-256 over every number the protocol is made of")
    selected_on: str = Field(description="what was chosen, and on which data")
    metric: str = Field(description="figure that ranks")
    higher_is_better: bool = Field(description="whether more of it is better")
    n: int = Field(description="networks (or sets) that scored")
    mean: float = Field(description="mean of the metric over them, as a fraction where it is a share")
    std: float | None = Field(description="standard deviation over them; empty for one")
    low: float | None = Field(description="lower end of the 95 % interval of the mean")
    high: float | None = Field(description="upper end of the 95 % interval of the mean")
    values: str = Field(description="the metric of every network, as JSON")
    before: float = Field(description="mean of the metric before any step on the set")
    metrics: str = Field(description="means of the other metrics, as JSON")
    companions: str = Field(description="mean, std and n of each baseline under the same protocol, as JSON")
    images: int = Field(description="images in the set")
    bytes: int = Field(description="bytes of images, labels and rates")
    outer_steps: int = Field(description="outer steps that were taken")
    stopped_by: str = Field(description="what ended the distillation early; empty for nothing")
    rollbacks: int = Field(description="times it went back to an earlier state after NaN or infinity")
    seconds_distill: float = Field(description="wall-clock seconds of distillation")
    seconds_evaluate: float = Field(description="wall-clock seconds of scoring, companions among them")
    peak_memory_mb: float = Field(description="peak memory of the whole process, in MB")
    environment: str = Field(description="versions, commit, device and threads, as JSON")
    seed: int = Field(description="seed of the distillation")
    artifact_sha256: str = Field(description="SHA-256 of the distilled set's file in artifacts/")
    run_id: str = Field(description="name of the run's folder")

    def companion_scores(self) -> dict[str, dict[str, float]]:
        """Mean, std and n of each companion."""
        found: dict[str, dict[str, float]] = json.loads(self.companions)
        return found


COLUMNS = tuple(Row.model_fields)


def row_of(result: RunResult, *, method_source: str, created: str) -> Row:
    """The row of a run that ended well."""
    spec, dataset, score, artifact, seconds = (
        result.spec,
        result.dataset,
        result.score,
        result.artifact,
        result.seconds,
    )
    assert dataset and score and artifact and seconds and result.peak_memory_mb is not None
    return Row(
        fingerprint=spec.fingerprint,
        created=created,
        experiment=spec.experiment,
        method=spec.method.name,
        method_options=_json(spec.method.options),
        method_source=method_source,
        dataset=dataset.name,
        dataset_hash=dataset.content_hash,
        dataset_options=_json(spec.dataset.options),
        train_images=dataset.train,
        validation_images=dataset.validation,
        test_images=dataset.test,
        network=spec.network.name,
        network_options=_json(spec.network.options),
        sample_shape="x".join(map(str, dataset.sample_shape)),
        init=spec.init.name,
        init_options=_json(spec.init.options),
        eval_init=spec.eval_init.name,
        eval_init_options=_json(spec.eval_init.options),
        pretrained=_json(result.pretrained),
        objective=spec.objective.name,
        objective_options=_json(spec.objective.options),
        target=spec.target.name if spec.target else "",
        target_options=_json(spec.target.options if spec.target else {}),
        images_per_class=spec.images_per_class,
        steps=spec.steps,
        epochs=spec.epochs,
        label_regime=artifact.label_regime,
        protocol=spec.protocol,
        protocol_hash=result.protocol_hash,
        selected_on=result.selected,
        metric=result.primary,
        higher_is_better=result.higher_is_better,
        n=score.n,
        mean=score.mean,
        std=score.std,
        low=score.low,
        high=score.high,
        values=_json(score.values),
        before=result.before[result.primary].mean,
        metrics=_json({name: s.mean for name, s in result.scores.items() if name != result.primary}),
        companions=_json({name: {"mean": s.mean, "std": s.std, "n": s.n} for name, s in result.companions.items()}),
        images=artifact.images,
        bytes=artifact.bytes,
        outer_steps=result.steps_done,
        stopped_by=result.stopped_by,
        rollbacks=result.rollbacks,
        seconds_distill=round(seconds.distill, 3),
        seconds_evaluate=round(seconds.evaluate, 3),
        peak_memory_mb=round(result.peak_memory_mb, 1),
        environment=_json(result.environment),
        seed=spec.seed,
        artifact_sha256=artifact.sha256,
        run_id=result.run_id,
    )


def path_for(folder: Path, spec: Settings) -> Path:
    """The CSV a run's row belongs to: adaptation runs have their own, others go by objective."""
    return folder / ("adaptation.csv" if spec.target else f"{spec.objective.name}.csv")


def check(path: Path) -> None:
    """Raise `DdbenchError` for a file that rows cannot be appended to, before any work is put into one."""
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder.", "Name another with --leaderboards.")
    _parse(path, _read_text(path))


def find(path: Path, row: Row) -> Row | None:
    """The row that is there for the same spec, data and version of the method, if any."""
    for existing in _parse(path, _read_text(path)):
        if identity(existing) == identity(row):
            return existing
    return None


def append(path: Path, row: Row) -> Row | None:
    """Append `row`, or return the row that is there for the same spec, data and version of the method.

    Holds a lock and replaces the file in one step, so that neither another process nor a full disk can leave half
    a row. Raises `DdbenchError` for a file that ddbench did not write.
    """
    with locked(path):
        existing = find(path, row)
        if existing is not None:
            return existing
        before = _read_text(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not before:
            writer.writerow(COLUMNS)
        writer.writerow(["" if value is None else value for value in row.model_dump().values()])
        gap = "\n" if before and not before.endswith("\n") else ""
        atomic_write(path, before + gap + text.getvalue())
    return None


def comparison(new: Row, existing: Row) -> str:
    """How a run compares with the row that the same spec has already."""
    when = existing.created[:10]
    if json.loads(new.values) == json.loads(existing.values):
        return f"Reproduced exactly: {existing.metric} {existing.mean:.4f}, as on {when}."
    gap = new.mean - existing.mean
    return f"This run: {new.metric} {new.mean:.4f}, {gap:+.4f} against {existing.mean:.4f} on {when}."


def read(folder: Path) -> list[Row]:
    """All rows of all leaderboards in `folder`. Raises `DdbenchError` naming the file and line at fault."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.", "Name one with --leaderboards, or run something first.")
    rows: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        if path.name != "published.csv":
            rows += _parse(path, _read_text(path))
    return rows


def read_sound(folder: Path) -> list[Row]:
    """All rows, for who looks into their cells. Raises `DdbenchError` naming the first that holds what it cannot."""
    rows = read(folder)
    for row in rows:
        for fault in cell_faults(row):
            raise DdbenchError(f"the row of {row.run_id} cannot be used: {fault}.", "See: ddbench leaderboard --check")
    return rows


def cell_faults(row: Row) -> Iterator[str]:
    """What is wrong with cells whatever they say: JSON of another kind than the column's, numbers that are none."""
    cells: dict[str, Any] = {}
    for column, kind in JSON_COLUMNS.items():
        try:
            cells[column] = json.loads(getattr(row, column))
        except ValueError:
            cells[column] = None
        if not isinstance(cells[column], kind):
            yield f"its {column} is not a JSON {'list' if kind is list else 'object'}"
            return
    if not cells["values"] or not all(map(_is_number, cells["values"])):
        yield "its values are not a list of numbers"
    figures: list[Any] = [row.mean, row.before, row.seconds_distill, row.seconds_evaluate, row.peak_memory_mb]
    for name, its in cells["companions"].items():
        if not isinstance(its, dict) or set(its) != {"mean", "std", "n"}:
            yield f"its companion {name} has no mean, std and n"
            return
        figures += [its["mean"], its["n"], *([] if its["std"] is None else [its["std"]])]
    figures += cells["metrics"].values()
    if not all(_is_number(v) and math.isfinite(v) for v in [*figures, *cells["values"]]):
        yield "not all of its figures are finite"
    if not re.fullmatch(r"\d+(x\d+)*", row.sample_shape):
        yield f"its sample_shape {row.sample_shape!r} is none"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load_leaderboard(folder: str | Path = "leaderboards") -> "DataFrame":
    """The rows of all leaderboards in `folder` as a pandas table, one column per `Row` field.

    What a cell holds as JSON (raw values, companions, other metrics, options, environment) is read: lists and mappings.
    Raises `DdbenchError` naming the file and line at fault.
    """
    import pandas

    table = pandas.DataFrame([row.model_dump() for row in read(Path(folder))], columns=list(COLUMNS))
    for column in JSON_COLUMNS:
        try:
            table[column] = [json.loads(cell) for cell in table[column]]
        except ValueError as error:
            what = f"column {column} of {folder} holds a cell that is not JSON: {error}."
            raise DdbenchError(what, "See which with: ddbench leaderboard --check") from error
    return table


class PublishedRow(pydantic.BaseModel):
    """A figure as its source reports it, as a fraction; nothing here was measured by ddbench."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    dataset: str
    images_per_class: int
    network: str
    setting: str
    metric: str
    mean: pydantic.FiniteFloat
    std: pydantic.FiniteFloat | None
    source: str


def published(folder: Path) -> list[PublishedRow]:
    """The figures of `published.csv`, which stand apart and are never ranked with measured ones."""
    path = folder / "published.csv"
    text = _read_text(path)
    try:
        lines = csv.DictReader(io.StringIO(text), strict=True)
        return [PublishedRow.model_validate({**line, "std": line["std"] or None}) for line in lines]
    except (csv.Error, KeyError, TypeError, pydantic.ValidationError) as error:
        raise _foreign(path, "it does not hold published figures") from error


def identity(row: Row) -> tuple[str, ...]:
    """What no two rows may share: spec, data, version of the method, and the networks drawn on."""
    return row.fingerprint, row.dataset_hash, row.method_source, row.pretrained


def _read_text(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _foreign(path, "it is not text") from error
    except OSError as error:
        raise _foreign(path, (error.strerror or str(error)).lower()) from error


def _parse(path: Path, text: str) -> list[Row]:
    if not text:
        return []
    if any(line.startswith(("<<<<<<<", ">>>>>>>")) for line in text.splitlines()):
        raise _foreign(path, "it holds both sides of a merge that was not finished")
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise _foreign(path, str(error)) from error
    if tuple(lines[0]) != COLUMNS:
        another = lines[0][:1] == ["schema_version"]
        raise _foreign(path, "its columns are those of another version" if another else "its header is not ddbench's")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            cells = dict(zip(COLUMNS, line, strict=True))
            rows.append(Row.model_validate({k: (v if v or k not in _OPTIONAL else None) for k, v in cells.items()}))
        except (ValueError, pydantic.ValidationError) as error:
            raise _foreign(path, f"row {number} is not a row ddbench wrote") from error
    return rows


_OPTIONAL = {"std", "low", "high"}
JSON_COLUMNS: dict[str, type] = {
    **dict.fromkeys(
        ("method_options", "dataset_options", "network_options", "init_options", "eval_init_options",
         "objective_options", "target_options", "pretrained", "metrics", "companions", "environment"), dict,
    ),
    "values": list,
}  # fmt: skip
"""Columns whose cells are JSON, and what it holds."""


def _foreign(path: Path, why: str) -> DdbenchError:
    return DdbenchError(
        f"{path} cannot be used as a leaderboard: {why}.",
        "It was left as it is. Mend or move it, or name another folder with --leaderboards.",
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

"""RunResult, the record of a run, and the run folder that it lies in."""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict

from ddbench.contract.metric import Metric
from ddbench.contract.spec import HARD, TEACHER_ONLINE, RunSpec, Settings
from ddbench.errors import UnknownFields, UsageError
from ddbench.machine.files import atomic_write
from ddbench.records.attacks import AttackRecord
from ddbench.records.migrations import VERSION, migrate
from ddbench.records.stats import Score

FULL_DATA, NO_ADAPTATION, BEST_CORESET = "full_data", "no_adaptation", "best_coreset"
"""Companions of the harness; all others are baselines, methods declared `companion=True`."""
TIME_LIMIT = "time limit"
"""`LoopRecord.stopped_by` of a run that the clock has ended."""
TEACHER = "+teacher"
"""End of a companion's name: its images with stored labels, by the run's teacher or by networks of `full_data`."""
LABELLER = "teacher"
"""Companion: the teacher itself, whose labels a method stores or whose statistics it matches."""

M = TypeVar("M", bound=pydantic.BaseModel)
Status = Literal["ok", "skipped", "failed", "interrupted"]


LOG_PLACE = ("loop", "step", "seconds")
"""Fields of a line in a run's log that say where it stands; all others are logged figures."""


class NewerRecord(ValueError):
    """A record of a newer version that this version cannot read."""


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRecord(_Part):
    """The data of a run.

    Attributes:
        name: name of the dataset; with `@` and the beginning of the content hash where the copy is partial.
        content_hash: SHA-256 over all examples and labels of both splits.
        partial: true where the copy is not known to be the full original.
        train: number of training examples that the method saw.
        validation: number of examples held out of the training split, for selection.
        test: number of examples that scored.
        sample_shape: channels, height and width.
    """

    name: str
    content_hash: str
    partial: bool
    train: int
    validation: int
    test: int
    sample_shape: tuple[int, ...] = ()


class TestRecord(_Part):
    """The data that scored, where they are of another dataset than the one that was distilled.

    Attributes:
        name: name of the dataset; with `@` and the beginning of the content hash where the copy is partial.
        content_hash: SHA-256 over all examples and labels of both splits, as they were converted.
        partial: true where the copy is not known to be the full original.
    """

    __test__ = False  # not a test of pytest

    name: str
    content_hash: str
    partial: bool


class ProtocolRecord(_Part):
    """The protocol that scored the set.

    Attributes:
        name: name and version.
        hash: beginning of a SHA-256 over every number that the protocol is made of.
        selected: what was selected, and on which data; `nothing` for nothing.
        ignores: fields of the settings that the score does not depend on; None in records of versions that did not
            write them.
    """

    name: str
    hash: str = ""
    selected: str = ""
    ignores: tuple[str, ...] | None = None


class Companion(Score):
    """The score of a companion in the metric that ranks.

    Attributes:
        label_regime: kind of labels that its networks were trained on; empty where they were trained on none, and in
            records of versions that did not write it.
        metrics: means of the other metrics; empty in records of versions that did not write them.
    """

    label_regime: str = ""
    metrics: dict[str, float] = pydantic.Field(default_factory=dict)

    def regime_beside(self, name: str, label_regime: str) -> str:
        """Return the label regime of the companion called `name`, beside a set of `label_regime`.

        Where a record does not hold it: all companions had hard labels, or those of the protocol's teacher.
        """
        if self.label_regime or name == NO_ADAPTATION:
            return self.label_regime
        return TEACHER_ONLINE if label_regime == TEACHER_ONLINE and name != FULL_DATA else HARD


class LoopRecord(_Part):
    """The outer loop of the method.

    Attributes:
        steps: number of outer steps taken.
        stopped_by: what ended the distillation early; empty for nothing.
        rollbacks: number of times the loop went back to an earlier state after NaN or infinity.
        empty: number of loops that took no step because the time or pass limit was over.
        passes: examples that went forward through networks (see `Run.passes`); None where they were not counted.
    """

    steps: int = 0
    stopped_by: str = ""
    rollbacks: int = 0
    empty: int = 0
    passes: int | None = None


class Artifact(_Part):
    """The distilled set on disk.

    Attributes:
        path: path of the file; empty in a leaderboard's record, where the hash names the file.
        sha256: SHA-256 of the file.
        bytes: size of every tensor that is stored, without the file's header.
        label_bytes: the part of them that labels take; None in records of versions that did not count them apart.
        images: number of images that are stored: of a payload, those that its values would fill.
        label_regime: `hard`, `stored soft` or `teacher online`.
        decoder: the decoder of a parametrised set; empty for a set that stores its images.
        decoded_images: number of images that the payload decodes to; None for a set that stores its images.
    """

    path: str = ""
    sha256: str
    bytes: int
    label_bytes: int | None = None
    images: int
    label_regime: str
    decoder: str = ""
    decoded_images: int | None = None


class Seconds(_Part):
    """Wall-clock seconds, interruptions left out.

    Attributes:
        distill: seconds of distillation.
        evaluate: seconds of scoring, the companions included.
        saved: seconds that other runs took for the cached results which the method read.
    """

    distill: float
    evaluate: float
    saved: float = 0.0


class RunResult(_Part):
    """The record of a run: what was asked for, what was used, and what came of it.

    Scores are on the test split, in the metric's own unit: a share is a fraction. In a leaderboard, `scores` keeps the
    values of every network for the metric that ranks alone.

    Attributes:
        version: version of the record.
        status: how the run ended.
        reason: why it ended so, where it is not `ok`.
        run_id: name of the run folder.
        run_dir: path of the run folder; empty in a leaderboard's record.
        created: time when the run ended (UTC, ISO 8601).
        asked: the spec that was asked for; None where it is not known.
        settings: the complete settings.
        fingerprint: SHA-256 of everything in the settings that can change the number.
        method_source: package and version that the method came from; for a file, a digest of its code.
        dataset: the data.
        eval_dataset: the data that scored where they are of another dataset; None where they are of the same.
        protocol: the protocol, and what was selected.
        metrics: the metrics of the objective with unit and direction; the first one ranks.
        scores: score by metric.
        before: score by metric before any step on the set.
        companions: score of each companion in the metric that ranks.
        attacks: attacks that the networks were scored under, each with a metric of its own.
        pretrained: pools of networks and weights files that were drawn on.
        loop: the outer loop.
        artifact: the distilled set.
        seconds: the time it took.
        peak_memory_mb: peak memory of the whole process, in MB.
        environment: versions, commit, device and threads.
    """

    version: int = VERSION
    status: Status
    reason: str = ""
    run_id: str
    run_dir: str = ""
    created: str = ""
    asked: RunSpec | None = None
    settings: Settings
    fingerprint: str
    method_source: str = ""
    dataset: DatasetRecord | None = None
    eval_dataset: TestRecord | None = None
    protocol: ProtocolRecord | None = None
    metrics: tuple[Metric, ...] = ()
    scores: dict[str, Score] = {}
    before: dict[str, Score] = {}
    companions: dict[str, Companion] = {}
    attacks: tuple[AttackRecord, ...] = ()
    pretrained: dict[str, dict[str, Any]] = {}
    loop: LoopRecord = LoopRecord()
    artifact: Artifact | None = None
    seconds: Seconds | None = None
    peak_memory_mb: float | None = None
    environment: dict[str, str] = {}

    @pydantic.field_serializer("asked")
    def _as_asked(self, asked: RunSpec | None) -> dict[str, Any] | None:
        return None if asked is None else asked.model_dump(mode="json", exclude_unset=True)

    @property
    def metric(self) -> Metric:
        """The metric that ranks."""
        return self.metrics[0]

    @property
    def primary(self) -> str:
        """The name of the metric that ranks; empty where no objective was built."""
        return self.metrics[0].name if self.metrics else ""

    @property
    def score(self) -> Score | None:
        """The score in the metric that ranks; None where there is none."""
        return self.scores.get(self.primary)

    @property
    def means(self) -> dict[str, float]:
        """The mean in each metric."""
        return {name: score.mean for name, score in self.scores.items()}

    def metric_of(self, name: str) -> Metric:
        """Return the metric of that name; a plain number where it is a figure that the method logged."""
        return next((metric for metric in self.metrics if metric.name == name), Metric(name))

    def document(self) -> dict[str, Any]:
        """Return the record as JSON values, with `primary` and `score` beside them."""
        fields = self.model_dump(mode="json")
        return {**fields, "primary": self.primary, "score": self.score.model_dump() if self.score else None}


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Types of pydantic's errors for fields that are not known: of models and of dataclasses."""


def parse(fields: dict[str, Any]) -> tuple[RunResult, set[str]]:
    """Return the record that `fields` of any version hold, and the names of fields that this version does not know.

    Raises `NewerRecord` for a record that only a newer version can read, and `ValueError` (such as pydantic's errors),
    `KeyError`, `TypeError` or `AttributeError` for what is not a record.
    """
    fields = migrate(fields)
    try:
        return validated(RunResult, fields)
    except ValueError as error:
        if isinstance(fields.get("version"), int) and fields["version"] > VERSION:
            reason = f"it is of version {fields['version']}, newer than this ddbench, which cannot read it"
            raise NewerRecord(reason) from error
        raise


def validated(model: type[M], fields: Mapping[str, Any]) -> tuple[M, set[str]]:
    """Return the model that `fields` hold, and the names of fields that it does not know, which are ignored.

    Raises `ValueError` (such as pydantic's errors) for other fields that are invalid.
    """
    fields = json.loads(json.dumps(fields))
    try:
        return model.model_validate(fields), set()
    except pydantic.ValidationError as error:
        unknown = {entry["loc"] for entry in error.errors() if entry["type"] in _UNKNOWN}
        if not unknown:
            raise
        for *parents, name in unknown:
            branch: Any = fields
            for step in parents:
                branch = branch[step]
            del branch[name]
        return model.model_validate(fields), {".".join(map(str, path)) for path in unknown}


def notice_unknown(source: object, names: Iterable[str]) -> None:
    """Issue one warning that names the fields that were ignored; none where there are no names."""
    listed = ", ".join(sorted(names))
    if listed:
        message = f"{source} holds fields that this version of ddbench does not know; they were ignored: {listed}."
        warnings.warn(UnknownFields(message), stacklevel=2)


class Origin(_Part):
    """The start of a run, besides its settings.

    Attributes:
        plugins: plugins named by hand.
        sources: the code behind each component: package and version, or a digest.
        asked: the spec that was asked for; None in a folder of version 2.
    """

    plugins: list[str] = []
    sources: dict[str, str] = {}
    asked: RunSpec | None = None

    @pydantic.field_serializer("asked")
    def _as_asked(self, asked: RunSpec | None) -> dict[str, Any] | None:
        return None if asked is None else asked.model_dump(mode="json", exclude_unset=True)


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.result = path / "result.json"
        self.artifact = path / "distilled.safetensors"
        self.log = path / "log.jsonl"
        self.journal = path / "scores.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.picture = path / "distilled.png"
        self.lines = path / "distilled.txt"
        self.origin = path / "origin.json"
        self.curve = path / "curve.png"

    def write_spec(self, settings: Settings) -> None:
        """Write spec.json."""
        atomic_write(self.spec, settings.model_dump_json(indent=2) + "\n")

    def read_spec(self) -> Settings:
        """Read spec.json.

        Raises `UsageError` where this is not a run folder, and for settings that this version does not know: a run
        cannot be continued without them.
        """
        try:
            fields = json.loads(self.spec.read_text())
            unknown = sorted(fields.keys() - Settings.model_fields.keys())
            if unknown:
                raise UsageError(
                    f"{self.spec} holds settings that this version of ddbench does not know: {', '.join(unknown)}.",
                    "Use the version of ddbench that the run was started with, or a later one.",
                )
            return Settings.model_validate(fields)
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is not a run folder: it has no spec.json.", "See the folders in runs/."
            ) from None
        except (ValueError, AttributeError, OSError) as error:
            raise UsageError(f"{self.spec} is damaged.", "Start the run anew with `ddbench run`.") from error

    def write_origin(self, origin: Origin) -> None:
        """Write origin.json."""
        atomic_write(self.origin, origin.model_dump_json(indent=2) + "\n")

    def read_origin(self) -> Origin:
        """Read origin.json; an empty one where there is none. Raises `UsageError` for a damaged file.

        Without it the plugins of the run, and the code that the run began with, are not known.
        """
        try:
            return Origin.model_validate_json(self.origin.read_text())
        except FileNotFoundError:
            return Origin()
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.origin} is damaged.", "Start the run anew with `ddbench run`.") from error

    def write_result(self, result: RunResult) -> None:
        """Write result.json."""
        atomic_write(self.result, result.model_dump_json(indent=2) + "\n")

    def read_result(self) -> RunResult | None:
        """Read result.json, of any version; None where there is none, because the run has not ended.

        Fields that this version does not know are ignored, with a warning. Raises `UsageError` for a file that is
        damaged, cannot be read, or is of a newer version that this one cannot read.
        """
        try:
            result, unknown = parse(json.loads(self.result.read_text()))
        except FileNotFoundError:
            return None
        except NewerRecord as error:
            raise UsageError(f"{self.result} cannot be used: {error}.", "Use a later version of ddbench.") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot read {self.result}: {reason}.", "Make it a file that you may read.") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            remedy = f"Remove it, and go on with: ddbench resume {self.path}"
            raise UsageError(f"{self.result} is damaged.", remedy) from error
        notice_unknown(self.result, unknown)
        return result.model_copy(update={"run_dir": str(self.path)})

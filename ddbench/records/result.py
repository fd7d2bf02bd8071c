"""RunResult and the run folder: what a run leaves behind, and where."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import ConfigDict

from ddbench.contract.spec import Settings
from ddbench.errors import UsageError
from ddbench.machine.files import atomic_write
from ddbench.records.stats import Score

FULL_DATA, NO_ADAPTATION, BEST_CORESET = "full_data", "no_adaptation", "best_coreset"
"""Companions of the harness; all others are baselines, methods declared `companion=True`."""

Status = Literal["ok", "skipped", "failed", "interrupted"]


class _Frozen(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRecord(_Frozen):
    """The data a run used: `name` carries the content hash when the copy is partial."""

    name: str
    content_hash: str
    partial: bool
    train: int
    validation: int
    test: int
    sample_shape: tuple[int, ...] = ()


class Artifact(_Frozen):
    """The distilled set on disk; `bytes` counts images, labels and rates, not the file's header."""

    path: str
    sha256: str
    bytes: int
    images: int
    label_regime: str


class Seconds(_Frozen):
    """Wall-clock seconds, interruptions left out."""

    distill: float
    evaluate: float


class RunResult(_Frozen):
    """The record of a run.

    Attributes:
        status: `ok`, `skipped` (the method does not support the task), `failed` or `interrupted`.
        reason: why the run did not succeed; empty if it did.
        run_id: name of the run folder.
        run_dir: path of the run folder.
        spec: the complete settings.
        dataset: name, content hash and sizes of the data.
        primary: name of the metric that ranks.
        higher_is_better: the direction of the primary metric.
        score: the primary metric on the test split, over the networks that scored.
        scores: every metric on the test split.
        before: the same with no training step applied.
        companions: the primary metric of each companion, by name.
        selected: what the protocol selected on the validation slice.
        protocol_hash: the beginning of a SHA-256 over the definition of the protocol.
        pretrained: the pools of networks and the weights files that were used.
        steps_done: outer steps of the method.
        stopped_by: `time limit`, or empty.
        rollbacks: how often the method returned to an earlier state because of NaN.
        artifact: the distilled set on disk.
        seconds: wall-clock seconds of distillation and evaluation.
        peak_memory_mb: the largest memory of the process, in 10^6 bytes.
        environment: device and versions.
        method_source: the package and version, or the file, of the method.
        row: the leaderboard row, if one was appended.
    """

    status: Status
    reason: str = ""
    run_id: str
    run_dir: str
    spec: Settings
    dataset: DatasetRecord | None = None
    primary: str = ""
    higher_is_better: bool = True
    score: Score | None = None
    scores: dict[str, Score] = {}
    before: dict[str, Score] = {}
    companions: dict[str, Score] = {}
    selected: str = ""
    protocol_hash: str = ""
    pretrained: dict[str, dict[str, Any]] = {}
    steps_done: int = 0
    stopped_by: str = ""
    rollbacks: int = 0
    artifact: Artifact | None = None
    seconds: Seconds | None = None
    peak_memory_mb: float | None = None
    environment: dict[str, str] = {}
    method_source: str = ""
    row: dict[str, Any] | None = None


class Origin(_Frozen):
    """What a run was started with besides its spec: plugins named by hand, and the code behind each part."""

    plugins: list[str] = []
    sources: dict[str, str] = {}


CURVE_POINTS = 200
"""Points of a run's curve that are kept beside its leaderboard row."""


def artifact_path(leaderboards: Path, artifact_sha256: str) -> Path:
    """Where the distilled set of a leaderboard row is kept."""
    return leaderboards / "artifacts" / f"{artifact_sha256}.safetensors"


def curve_path(leaderboards: Path, artifact_sha256: str) -> Path:
    """Where the curve of the run that made an artefact is kept."""
    return artifact_path(leaderboards, artifact_sha256).with_suffix(".curve.json")


def thinned(log: Path) -> list[dict[str, float]]:
    """The last loop of a run's log: `step`, `seconds` and figures, averaged over as many lines as leave 200 points."""
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if line["loop"] == lines[-1]["loop"]]
    size = max(1, math.ceil(len(lines) / CURVE_POINTS))
    points = []
    for first in range(0, len(lines), size):
        part = lines[first : first + size]
        means = {
            name: math.fsum(line[name] for line in part) / len(part)
            for name in part[0]
            if name not in ("loop", "step", "seconds") and all(name in line for line in part)
        }
        figures = {name: float(f"{value:.5g}") for name, value in means.items()}
        points.append({"step": part[-1]["step"] + 1, "seconds": round(part[-1]["seconds"], 1), **figures})
    return points


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
        self.origin = path / "origin.json"
        self.curve = path / "curve.png"

    def write_spec(self, spec: Settings) -> None:
        """Write spec.json."""
        atomic_write(self.spec, spec.model_dump_json(indent=2) + "\n")

    def read_spec(self) -> Settings:
        """Read spec.json. Raises `UsageError` where this is no run folder."""
        try:
            return Settings.model_validate_json(self.spec.read_text())
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is not a run folder: it has no spec.json.", "See the folders in runs/."
            ) from None
        except (pydantic.ValidationError, OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{self.spec} is damaged or of another version.", "Start the run anew with `ddbench run`."
            ) from error

    def write_origin(self, origin: Origin) -> None:
        """Write origin.json."""
        atomic_write(self.origin, origin.model_dump_json(indent=2) + "\n")

    def read_origin(self) -> Origin:
        """Read origin.json; an empty one where there is none or it is damaged."""
        try:
            return Origin.model_validate_json(self.origin.read_text())
        except (OSError, pydantic.ValidationError, UnicodeDecodeError):
            return Origin()

    def write_result(self, result: RunResult) -> None:
        """Write result.json."""
        atomic_write(self.result, result.model_dump_json(indent=2) + "\n")

    def read_result(self) -> RunResult | None:
        """What result.json holds, or None when the run has not ended."""
        try:
            return RunResult.model_validate_json(self.result.read_text())
        except (OSError, pydantic.ValidationError, UnicodeDecodeError):
            return None

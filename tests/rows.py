"""Records made up for tests, from the cells of a row."""

from pathlib import Path

from ddbench.contract.spec import PARTS
from ddbench.records.migrations import ABSENT_2, row_2_to_3
from ddbench.records.result import RunResult, parse
from ddbench.records.store import _path_of, _write, write_csv

CELLS = {
    **ABSENT_2,
    **dict.fromkeys(PARTS, "x"),
    **dict.fromkeys(
        ("fingerprint", "dataset_hash", "protocol", "protocol_hash", "metric", "artifact_sha256", "run_id"), "x"
    ),
    **dict.fromkeys(("train_images", "validation_images", "test_images", "images_per_class", "steps", "epochs"), 1),
    **dict.fromkeys(("images", "bytes", "seed", "outer_steps", "rollbacks"), 1),
    "created": "2026-01-01T00:00:00+00:00",
    "sample_shape": "1x8x8",
    "target": "",
    "objective": "classification",
    "metric": "accuracy",
    "before": 0.5,
    "mean": 0.5,
    "std": 0.1,
    "low": 0.4,
    "high": 0.6,
    "n": 2,
    "values": "[0.4, 0.6]",
    "companions": '{"random": {"mean": 0.2, "std": 0.1, "n": 2}}',
}


def make_record(**cells: object) -> RunResult:
    """Return the record of a row with these cells."""
    text = {name: "" if cell is None else str(cell) for name, cell in {**CELLS, **cells}.items()}
    return parse(row_2_to_3(text, None))[0]


def add(leaderboards: Path, record: RunResult) -> Path:
    """Put a record into a leaderboard, and return the record's file."""
    path = _path_of(leaderboards, record)
    _write(path, record)
    write_csv(leaderboards, path.parent.name)
    return path

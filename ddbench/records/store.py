"""Leaderboards on disk: one file per record, one CSV per board that is generated from them, and the distilled sets.

    leaderboards/records/<board>/<run>-<identity>.json     the records
    leaderboards/<board>.csv                               generated; for people and pandas
    leaderboards/artifacts/<sha256>.safetensors            the distilled sets, named by their hash

Nothing here takes a lock. A record is added by an atomic write of its own file, whose name depends on what no two
records may share. A CSV is written anew from all records, and again until no record was added meanwhile: whichever
process writes it last has seen every record.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydantic

from ddbench.contract.observer import Reporter
from ddbench.contract.spec import Settings
from ddbench.errors import DdbenchError, UsageError
from ddbench.machine.files import atomic_write, sha256
from ddbench.records.columns import COLUMNS
from ddbench.records.migrations import VERSION, row_2_to_3
from ddbench.records.result import RunFolder, RunResult, notice_unknown, parse
from ddbench.records.stats import Score

# A row holds the value of every network; the csv module's own limit is reached at some 7000 of them.
csv.field_size_limit(2**31 - 1)

ARTIFACT_LIMIT = 1_000_000
"""Largest distilled set, in bytes, that is kept beside its record."""
CURVE_POINTS = 200
"""Points of a run's curve that are kept beside its record."""
PUBLISHED = "published.csv"
_MARKERS = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")


def board_of(settings: Settings) -> str:
    """Return the name of the board that a run belongs to: the objective's, or `adaptation` where there is a target."""
    return "adaptation" if settings.target else settings.objective.name


def path_for(leaderboards: Path, settings: Settings) -> Path:
    """Return the CSV that a run's row belongs to."""
    return leaderboards / f"{board_of(settings)}.csv"


def artifact_path(leaderboards: Path, artifact_sha256: str) -> Path:
    """Return the path of a distilled set that is kept."""
    return leaderboards / "artifacts" / f"{artifact_sha256}.safetensors"


def curve_path(leaderboards: Path, artifact_sha256: str) -> Path:
    """Return the path of the curve of the run that made a distilled set."""
    return artifact_path(leaderboards, artifact_sha256).with_suffix(".curve.json")


def identity(record: RunResult) -> tuple[str, ...]:
    """Return what no two records may share: spec, data, version of the method, and the networks drawn on."""
    data = record.dataset.content_hash if record.dataset else ""
    return record.fingerprint, data, record.method_source, json.dumps(record.pretrained, sort_keys=True)


def ensure(leaderboards: Path, folder: RunFolder, result: RunResult, reporter: Reporter) -> bool:
    """Add the record of a finished run, unless the same spec, data and version of the method have one.

    The distilled set and the curve are copied from the run's folder, and the board's CSV is written anew. Returns
    whether a record was added; a smoke run and one that gave no score have none.

    Raises `DdbenchError` where the leaderboards cannot be written.
    """
    if result.status != "ok" or result.artifact is None:
        return False
    if result.settings.smoke:
        reporter.say("A smoke run leaves no record.")
        return False
    csv_path = path_for(leaderboards, result.settings)
    check(csv_path)
    convert_rows(leaderboards)
    path = _path_of(leaderboards, result)
    existing = next(path.parent.glob(f"*-{_digest(result)}.json"), None)
    if existing is not None:
        recorded = _load(existing)[0]
        if (recorded.run_id, recorded.created) != (result.run_id, result.created):
            reporter.say(f"No second record: {existing} is of this spec already. {comparison(result, recorded)}")
        return False
    raw = folder.artifact.read_bytes()
    if len(raw) <= ARTIFACT_LIMIT:
        atomic_write(artifact_path(leaderboards, result.artifact.sha256), raw)
    else:
        reporter.say(f"The distilled set is over {ARTIFACT_LIMIT / 1e6:.0f} MB and stays in the run folder alone.")
    points = thinned(folder.log)
    if points:
        atomic_write(curve_path(leaderboards, result.artifact.sha256), json.dumps(points) + "\n")
    _write(path, result)
    write_csv(leaderboards, path.parent.name)
    reporter.say(f"Record added: {path}; {csv_path} was written anew.")
    return True


def read(leaderboards: Path) -> list[RunResult]:
    """Return all records of all boards, by the time they were written, board by board.

    Rows of version 2 that have no record yet are carried over in memory. Fields that this version does not know are
    ignored, with one warning. Raises `DdbenchError` naming the file that is invalid.
    """
    if not leaderboards.is_dir():
        raise UsageError(f"there is no folder {leaderboards}.", "Name one with --leaderboards, or run something first.")
    records, unknown = [], set[str]()
    boards = {path.parent for path in leaderboards.glob("records/*/*.json")}
    for board in sorted(boards):
        for path in _files(board):
            record, names = _load(path)
            records.append(record)
            unknown |= names
    notice_unknown(leaderboards / "records", unknown)
    known = {identity(record) for record in records}
    records += [row for row in _old_rows(leaderboards) if identity(row) not in known]
    return sorted(records, key=lambda record: (board_of(record.settings), record.created, record.run_id))


def check(csv_path: Path) -> None:
    """Raise `DdbenchError` where a board's CSV could not be written anew, before any work is put into a run."""
    if csv_path.parent.exists() and not csv_path.parent.is_dir():
        raise UsageError(f"{csv_path.parent} is not a folder.", "Name another with --leaderboards.")
    _read_csv(csv_path)


def rebuild(leaderboards: Path) -> list[Path]:
    """Write every board's CSV anew from its records, whatever the CSV holds, and return their paths.

    Rows of version 2 become records first; those on both sides of a merge conflict, too. Raises `DdbenchError`.
    """
    convert_rows(leaderboards)
    boards = sorted({path.parent.name for path in leaderboards.glob("records/*/*.json")})
    return [write_csv(leaderboards, board) for board in boards]


def outdated(leaderboards: Path) -> list[Path]:
    """Return the CSVs that are not what their records give."""
    boards = {path.parent for path in leaderboards.glob("records/*/*.json")}
    expected = {leaderboards / f"{board.name}.csv": board for board in boards}
    present = {path for path in leaderboards.glob("*.csv") if path.name != PUBLISHED}
    return sorted(
        path
        for path in expected.keys() | present
        if path not in expected or read_text(path) != csv_text(_load(file)[0] for file in _files(expected[path]))
    )


def convert_rows(leaderboards: Path) -> int:
    """Write a record for each row of version 2 in the CSVs that has none, and return their number."""
    count = 0
    for record in _old_rows(leaderboards):
        path = _path_of(leaderboards, record)
        if not path.exists():
            _write(path, record)
            count += 1
    return count


def write_csv(leaderboards: Path, board: str) -> Path:
    """Write the CSV of a board anew from its records, and return its path."""
    path, folder, seen = leaderboards / f"{board}.csv", leaderboards / "records" / board, None
    _read_csv(path)
    # A record that another process adds meanwhile is seen here, or that process writes the CSV after this one.
    while seen != (files := _files(folder)):
        seen = files
        atomic_write(path, csv_text(_load(file)[0] for file in files))
    return path


def csv_text(records: Iterable[RunResult]) -> str:
    """Return the CSV of a board's records: one row each, by the time they were written, with raw values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in COLUMNS])
    for record in sorted(records, key=lambda record: (record.created, record.run_id)):
        cells = [column.cell(record) for column in COLUMNS]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def comparison(new: RunResult, existing: RunResult) -> str:
    """Return a sentence that compares a run with the record that the same spec has already."""
    score, recorded = new.scores[new.primary], existing.scores[existing.primary]
    when = existing.created[:10]
    if score.values == recorded.values:
        return f"Reproduced exactly: {existing.primary} {recorded.mean:.4f}, as on {when}."
    gap = score.mean - recorded.mean
    return f"This run: {new.primary} {score.mean:.4f}, {gap:+.4f} against {recorded.mean:.4f} on {when}."


def thinned(log: Path) -> list[dict[str, float]]:
    """Return the last loop of a run's log in at most 200 points: `step`, `seconds`, and averaged figures."""
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


def foreign(path: Path, why: str) -> DdbenchError:
    """Return the error for a file that is not as ddbench writes it."""
    return DdbenchError(
        f"{path} cannot be used: {why}.",
        "It was left as it is. Fix or move it, or name another folder with --leaderboards.",
    )


def read_text(path: Path) -> str:
    """Return the text of a file, empty where there is none. Raises `DdbenchError` for one that is not text."""
    if not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise foreign(path, "it is not text") from error
    except OSError as error:
        raise foreign(path, (error.strerror or str(error)).lower()) from error


def _path_of(leaderboards: Path, record: RunResult) -> Path:
    folder = leaderboards / "records" / board_of(record.settings)
    return folder / f"{record.settings.run_id}-{_digest(record)}.json"


def _digest(record: RunResult) -> str:
    return sha256("\n".join(identity(record)).encode())[:8]


def _files(board: Path) -> list[Path]:
    return sorted(path for path in board.glob("*.json") if not path.name.startswith("."))


def _write(path: Path, result: RunResult) -> None:
    """Write a record compactly: without paths of this machine, and raw values for the metric that ranks alone."""

    def summaries(scores: dict[str, Score], keep: str = "") -> dict[str, Score]:
        return {name: s if name == keep else s.model_copy(update={"values": []}) for name, s in scores.items()}

    record = result.model_copy(
        update={
            "run_dir": "",
            "scores": summaries(result.scores, keep=result.primary),
            "before": summaries(result.before),
            "companions": summaries(result.companions),
            "artifact": result.artifact and result.artifact.model_copy(update={"path": ""}),
        }
    )
    # A field a line: short enough to be kept, readable enough to be looked at, and a change shows in a diff.
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.model_dump(mode="json").items()]
    atomic_write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _load(path: Path) -> tuple[RunResult, set[str]]:
    """Return a record and the fields of it that are not known. Raises `DdbenchError` naming the file."""
    try:
        record, unknown = parse(json.loads(read_text(path)))
        parts = (record.dataset, record.protocol, record.score, record.artifact, record.seconds, record.peak_memory_mb)
        if record.status != "ok" or None in parts or record.primary not in record.before:
            raise ValueError("it is of a run that gave no score")
        return record, unknown
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise foreign(path, f"{'.'.join(map(str, first['loc']))} is invalid: {first['msg']}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise foreign(path, f"it is not a record ({error})") from error


def _old_rows(leaderboards: Path) -> Iterator[RunResult]:
    """Yield the rows of version 2 in the CSVs as records."""
    for path in sorted(leaderboards.glob("*.csv")):
        if path.name == PUBLISHED:
            continue
        unknown = set[str]()
        for number, cells in _read_csv(path):
            if not cells["schema_version"].isdigit() or int(cells["schema_version"]) >= VERSION:
                continue
            unknown |= {str(name) for name in cells.keys() - {column.name for column in COLUMNS}}
            try:
                spec = _spec_in(artifact_path(leaderboards, cells["artifact_sha256"]))
                record, _ = parse(row_2_to_3(cells, spec))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise foreign(path, f"row {number} is not a row ddbench wrote ({error})") from error
            yield record
        notice_unknown(path, unknown)


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a board's CSV with their numbers, from both sides of a merge that is not finished.

    Raises `DdbenchError` for a file that ddbench did not write.
    """
    lines = [line for line in read_text(path).splitlines(keepends=True) if not line.startswith(_MARKERS)]
    try:
        rows = list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise foreign(path, str(error)) from error
    if not rows:
        return []
    if "schema_version" not in rows[0]:
        raise foreign(path, "its header is not ddbench's")
    return [
        (number, dict(zip(rows[0], row, strict=False)))
        for number, row in enumerate(rows[1:], 2)
        if row and row != rows[0]
    ]


def _spec_in(artifact: Path) -> str | None:
    """Return the spec in the header of a distilled set's file, without torch; None where there is no file.

    The format is eight bytes of header length, little-endian, then the header as JSON.
    """
    if not artifact.exists():
        return None
    with artifact.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    spec: str = header["__metadata__"]["spec"]
    return spec

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pydantic

from ddbench.contract.observer import Reporter
from ddbench.contract.spec import Settings
from ddbench.errors import DdbenchError, UsageError
from ddbench.machine.files import atomic_write, sha256, tensor_file_header
from ddbench.records.attacks import with_attacks_of
from ddbench.records.columns import COLUMNS, Column
from ddbench.records.migrations import VERSION, row_2_to_3
from ddbench.records.result import LOG_PLACE, NewerRecord, RunFolder, RunResult, notice_unknown, parse
from ddbench.records.stats import Score

# A row holds the value of every network; the csv module's own limit is reached at some 7000 of them.
csv.field_size_limit(2**31 - 1)

ARTIFACT_LIMIT = 1_000_000
"""Largest distilled set, in bytes, that is kept beside its record."""
CURVE_POINTS = 200
"""Points of a run's curve that are kept beside its record."""
PUBLISHED = "published.csv"
ADAPTATION = "adaptation"
"""The board of all runs with a target."""
_MARKERS = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")


def board_of(settings: Settings) -> str:
    """Return the name of the board that a run belongs to: the objective's, or `adaptation` where there is a target.

    The board of an objective whose name is that of another file here is called `<name>-objective`.
    """
    if settings.target:
        return ADAPTATION
    name = settings.objective.name
    return f"{name}-objective" if name in (ADAPTATION, Path(PUBLISHED).stem) else name


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

    Such a record gets the metrics under attack that it lacks (`with_attacks_of`).
    The distilled set and the curve are copied from the run's folder, and the board's CSV is written anew, also where
    the record was there already and the CSV lacks it. Returns whether a record was added; a smoke run, one
    that was scored on the validation slice, and one that gave no score have none.

    Raises `DdbenchError` where the leaderboards cannot be written.
    """
    if result.status != "ok" or result.artifact is None:
        return False
    if result.settings.smoke:
        reporter.say("A smoke run leaves no record.")
        return False
    if result.settings.split != "test":
        reporter.say("A score on the validation slice leaves no record.")
        return False
    csv_path = path_for(leaderboards, result.settings)
    check(csv_path)
    convert_rows(leaderboards, csv_path.name)
    path = _path_of(leaderboards, result)
    existing = next(path.parent.glob(f"*-{_digest(result)}.json"), None)
    if existing is not None:
        recorded = _load(existing)[0]
        joined = with_attacks_of(recorded, result)
        if joined is not recorded:
            _write(existing, joined)
            write_csv(leaderboards, path.parent.name)
            reporter.say(f"{existing} has the metrics under attack too.")
        elif (recorded.run_id, recorded.created) != (result.run_id, result.created):
            reporter.say(f"No second record: {existing} is of this spec already. {comparison(result, recorded)}")
        if csv_path in outdated(leaderboards):
            # A process that was killed after it added the record did not come to the CSV.
            write_csv(leaderboards, path.parent.name)
            reporter.say(f"{csv_path} was written anew: it lacked records.")
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
    """Raise `DdbenchError` where no record can be added to a board, before any work is put into a run.

    A board's CSV is written anew from all of the board's records, so a damaged one prevents it.
    """
    leaderboards = csv_path.parent
    if leaderboards.exists() and not leaderboards.is_dir():
        raise UsageError(f"{leaderboards} is not a folder.", "Name another with --leaderboards.")
    for path in _files(leaderboards / "records" / csv_path.stem):
        _load(path)
    for _ in _old_rows(leaderboards, csv_path.name):
        pass


def rebuild(leaderboards: Path) -> list[Path]:
    """Write every board's CSV anew from its records, whatever the CSV holds, and return their paths.

    Rows of version 2 become records first; those on both sides of a merge conflict, too. Raises `DdbenchError`.
    """
    convert_rows(leaderboards)
    return [write_csv(leaderboards, board) for board in _boards(leaderboards)]


def outdated(leaderboards: Path) -> list[Path]:
    """Return the CSVs that are not what their records give, in the columns that both this version and they have."""
    return [path for path, state in _states(leaderboards) if state == "outdated"]


def of_other_columns(leaderboards: Path) -> list[Path]:
    """Return the CSVs that are what their records give, in other columns than those of this version."""
    return [path for path, state in _states(leaderboards) if state == "other columns"]


def _states(leaderboards: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and state of each board's CSV: `current`, `other columns` or `outdated`."""
    for board in _boards(leaderboards):
        path = leaderboards / f"{board}.csv"
        records = [_load(file)[0] for file in _files(leaderboards / "records" / board)]
        text = read_text(path)
        if text == csv_text(records):
            yield path, "current"
        else:
            yield path, "other columns" if _agrees(text, records) else "outdated"


def _agrees(text: str, records: Iterable[RunResult]) -> bool:
    """Return whether a CSV of other columns than this version's holds the records in the columns that both have."""
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error:
        return False
    if not rows or {len(row) for row in rows} != {len(rows[0])} or set(rows[0]) == {c.name for c in COLUMNS}:
        return False
    columns = [column for column in COLUMNS if column.name in rows[0]]
    places = [rows[0].index(column.name) for column in columns]
    cells = [[row[place] for place in places] for row in rows]
    return cells == list(csv.reader(io.StringIO(csv_text(records, columns))))


def _boards(leaderboards: Path) -> list[str]:
    """Return the names of all boards that have a record or a CSV."""
    csvs = {path.stem for path in leaderboards.glob("*.csv") if path.name != PUBLISHED}
    return sorted(csvs | {path.parent.name for path in leaderboards.glob("records/*/*.json")})


def convert_rows(leaderboards: Path, name: str = "*.csv") -> int:
    """Write a record for each row of version 2 in the CSVs (of that name) that has none, and return their number."""
    count = 0
    for record in _old_rows(leaderboards, name):
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


def csv_text(records: Iterable[RunResult], columns: Sequence[Column] | None = None) -> str:
    """Return the CSV of a board's records: one row each, by the time they were written, with raw values."""
    text = io.StringIO()
    columns = COLUMNS if columns is None else columns
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for record in sorted(records, key=lambda record: (record.created, record.run_id)):
        cells = [column.cell(record) for column in columns]
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
            if name not in LOG_PLACE and all(name in line for line in part)
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

    def summaries(scores: Mapping[str, Score], keep: str = "") -> dict[str, Score]:
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
    except NewerRecord as error:
        raise foreign(path, str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise foreign(path, f"it is not a record ({error})") from error


def _old_rows(leaderboards: Path, name: str = "*.csv") -> Iterator[RunResult]:
    """Yield the rows of version 2 in the CSVs, or in those of that name, as records."""
    for path in sorted(leaderboards.glob(name)):
        if path.name == PUBLISHED:
            continue
        unknown = set[str]()
        for number, cells in _read_csv(path):
            try:
                if not cells["schema_version"].isdigit() or int(cells["schema_version"]) >= VERSION:
                    continue
                unknown |= {str(name) for name in cells.keys() - {column.name for column in COLUMNS}}
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

    Raises `DdbenchError` for a file of another kind.
    """
    if not artifact.exists():
        return None
    try:
        spec: str = tensor_file_header(artifact)["__metadata__"]["spec"]
        return spec
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DdbenchError(
            f"the distilled set {artifact} is damaged, or a pointer of Git LFS.",
            "Get the file (`git lfs pull` where it is a pointer), or remove it: its row is read without it.",
        ) from error

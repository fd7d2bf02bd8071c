import csv
import json
import multiprocessing
import shutil
import warnings
from pathlib import Path

import pytest

import ddbench
from ddbench.cli.output import explained_failures
from ddbench.contract.metric import Metric
from ddbench.contract.observer import Silent
from ddbench.contract.spec import RunSpec, Settings
from ddbench.errors import DdbenchError, UnknownFields, UsageError
from ddbench.records.audit import audit
from ddbench.records.columns import COLUMNS
from ddbench.records.result import Artifact, LoopRecord, RunFolder, RunResult, notice_unknown
from ddbench.records.stats import summarise
from ddbench.records.store import (
    artifact_path,
    board_of,
    check,
    comparison,
    csv_text,
    ensure,
    outdated,
    path_for,
    read,
    rebuild,
)
from tests.rows import add, make_record

COMMITTED = Path(__file__).parents[1] / "leaderboards"


def finished(folder: Path, **cells: object):
    """Return the result of a run that has ended in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.artifact.write_bytes(b"a distilled set")
    run.log.write_text('{"loop": 0, "step": 0, "seconds": 0.1, "loss": 2.0}\n')
    record = make_record(**{"run_id": folder.name, **cells})
    artifact = Artifact(path=str(run.artifact), sha256="f" * 64, bytes=15, images=1, label_regime="hard")
    return record.model_copy(update={"run_dir": str(folder), "artifact": artifact})


class Listening(Silent):
    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, text: str) -> None:
        self._said.append(text)


def record(boards: Path, result: RunResult, said: list[str] | None = None) -> bool:
    return ensure(boards, RunFolder(Path(result.run_dir)), result, Listening([] if said is None else said))


def test_records_survive_the_file(tmp_path: Path):
    first = make_record(fingerprint="a", method_options='{"a": "x,\\n\\"y\\"", "window": null}')
    second = make_record(fingerprint="b", std=None, low=None, high=None, created="2026-01-02T00:00:00+00:00")
    for record in (first, second):
        add(tmp_path, record)
    assert read(tmp_path) == [first, second]
    [header, *rows] = csv.reader((tmp_path / "classification.csv").read_text().splitlines())
    assert header == [column.name for column in COLUMNS]
    assert [row[header.index("fingerprint")] for row in rows] == ["a", "b"]
    assert json.loads(rows[0][header.index("method_options")]) == {"a": 'x,\n"y"', "window": None}


def test_a_finished_run_has_one_record(tmp_path: Path):
    boards, said = tmp_path / "boards", []
    result = finished(tmp_path / "runs" / "first", fingerprint="a", dataset_hash="h")
    assert record(boards, result, said)
    assert "Record added" in said[0]
    [kept] = read(boards)
    assert kept.run_dir == "" and kept.artifact.path == ""
    assert kept == result.model_copy(update={"run_dir": "", "artifact": kept.artifact})
    assert artifact_path(boards, "f" * 64).read_bytes() == b"a distilled set"
    # The same run again says nothing; another run of the same spec is compared; another version has its own record.
    assert not record(boards, result, said) and len(said) == 1
    assert not record(boards, finished(tmp_path / "runs" / "again", fingerprint="a", dataset_hash="h"), said)
    assert "No second record" in said[1] and "Reproduced exactly" in said[1]
    assert read(boards) == [kept]
    newer = finished(tmp_path / "runs" / "newer", fingerprint="a", dataset_hash="h", method_source="p 2")
    assert record(boards, newer)
    assert len(read(boards)) == len((boards / "classification.csv").read_text().splitlines()) - 1 == 2


def test_runs_without_a_score_and_smoke_runs_have_none(tmp_path: Path):
    result, said = finished(tmp_path / "run"), []
    assert not record(tmp_path / "boards", result.model_copy(update={"status": "failed"}))
    smoke = result.settings.model_copy(update={"smoke": True})
    assert not record(tmp_path / "boards", result.model_copy(update={"settings": smoke}), said)
    assert said == ["A smoke run leaves no record."]
    assert not (tmp_path / "boards").exists()


def test_a_run_is_compared_with_its_record():
    record = make_record()
    assert "Reproduced exactly" in comparison(record, record)
    assert "+0.2000 against 0.5000" in comparison(make_record(mean=0.7, values="[0.7, 0.7]"), record)


def test_a_record_is_small_and_keeps_the_values_that_rank(tmp_path: Path):
    """Poisoning of ten classes on 200 networks, as a run holds it: with the values of every metric."""
    names = ["attack_success", *(f"accuracy_of_{i}" for i in range(10))]
    score = summarise([0.123456789012345 + i / 1e7 for i in range(200)])
    record = make_record().model_copy(
        update={
            "metrics": tuple(Metric(name, "share") for name in names),
            "scores": dict.fromkeys(names, score),
            "before": dict.fromkeys(names, score),
            "companions": dict.fromkeys(("random_subset", "full_data"), score),
            "asked": RunSpec.parse({"method": "any", "images_per_class": 3}),
            "loop": LoopRecord(steps=3),
        }
    )
    path = add(tmp_path, record)
    assert path.stat().st_size < 20_000
    [kept] = read(tmp_path)
    assert kept.score == score
    assert kept.scores["accuracy_of_3"] == score.model_copy(update={"values": []})
    assert kept.asked.model_fields_set == {"method", "images_per_class"}


def _add_many(boards: Path, runs: Path, name: str) -> None:
    for i in range(12):
        record(boards, finished(runs / f"{name}{i}", fingerprint=f"{name}{i}"))


@pytest.mark.slow
def test_two_processes_at_once_lose_nothing(tmp_path: Path):
    boards = tmp_path / "boards"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(boards, tmp_path / "runs", name)) for name in "ab"]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    wanted = sorted(f"{n}{i}" for n in "ab" for i in range(12))
    assert sorted(record.fingerprint for record in read(boards)) == wanted
    rows = csv.DictReader((boards / "classification.csv").read_text().splitlines())
    assert sorted(row["fingerprint"] for row in rows) == wanted


def test_a_merge_conflict_is_settled_by_writing_the_csv_anew(ddbench, tmp_path: Path):
    for name in "abc":
        add(tmp_path, make_record(fingerprint=name))
    path = tmp_path / "classification.csv"
    whole = path.read_text()
    header, *rows = whole.splitlines(keepends=True)
    ours, theirs = "<<<<<<< HEAD\n" + rows[1], "=======\n" + rows[2] + ">>>>>>> other\n"
    path.write_text(header + rows[0] + ours + theirs)
    assert len(read(tmp_path)) == 3
    assert outdated(tmp_path) == [path]
    checked = ddbench("leaderboard", "--check", "--leaderboards", tmp_path)
    assert checked.code == 1 and "it is not what its records give" in checked.out
    done = ddbench("leaderboard", "--rebuild", "--leaderboards", tmp_path)
    assert (done.code, done.out.strip()) == (0, f"Wrote {path}")
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("method,accuracy\nmine,99\n", "its header is not ddbench's"),
        ('schema_version,x\n2,"unclosed', "unexpected end of data"),
    ],
)
def test_files_of_others_are_left_alone(tmp_path: Path, text, reason):
    path = tmp_path / "classification.csv"
    path.write_text(text)
    for attempt in (
        lambda: check(path),
        lambda: read(tmp_path),
        lambda: add(tmp_path, make_record()),
        lambda: rebuild(tmp_path),
    ):
        with pytest.raises(DdbenchError, match=reason):
            attempt()
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:-9], "it is not a record"),
        (lambda text: "[]", "it is not a record"),
        (lambda text: text.replace('"status": "ok"', '"status": "failed"'), "it is of a run that gave no score"),
        (lambda text: text.replace('"mean": 0.5', '"mean": "high"'), "scores.accuracy.mean is invalid"),
        (lambda text: text.replace(' "fingerprint": "x",\n', ""), "fingerprint is invalid: Field required"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, damage, reason):
    path = add(tmp_path, make_record())
    path.write_text(damage(path.read_text()))
    with pytest.raises(DdbenchError, match=reason) as raised:
        read(tmp_path)
    assert str(path) in raised.value.message


def test_records_of_a_later_version_are_read_with_one_notice(tmp_path: Path):
    for name in "ab":
        path = add(tmp_path, make_record(fingerprint=name))
        fields = json.loads(path.read_text())
        fields |= {"version": 4, "colour": "blue"}
        fields["settings"]["teachers"] = {"count": 3}
        fields["metrics"][0]["symbol"] = "%"
        path.write_text(json.dumps(fields))
    with pytest.warns(UnknownFields) as notices:
        records = read(tmp_path)
    assert {record.fingerprint for record in records} == {"a", "b"}
    [notice] = notices
    assert str(notice.message).endswith("were ignored: colour, metrics.0.symbol, settings.teachers.")


def test_records_of_ten_thousand_networks(tmp_path: Path):
    values = [0.123456789012345678 + i / 1e6 for i in range(10_000)]
    add(tmp_path, make_record(values=json.dumps(values)))
    assert read(tmp_path)[0].score.values == values


def test_where_rows_go(tmp_path: Path):
    spec = {
        "method": "any",
        "objective": "poisoning",
        "network": "mlp",
        "eval_init": "random",
        "images_per_class": 1,
        "steps": 1,
    }
    assert path_for(tmp_path, Settings.model_validate(spec)).name == "poisoning.csv"
    assert path_for(tmp_path, Settings.model_validate({**spec, "target": "svhn_to_mnist"})).name == "adaptation.csv"
    with pytest.raises(UsageError, match="there is no folder"):
        read(tmp_path / "nothing")


def test_the_leaderboard_as_a_table(tmp_path: Path):
    add(tmp_path, make_record(fingerprint="a", mean=0.5, method_options='{"seed": 3}'))
    add(tmp_path, make_record(fingerprint="b", mean=0.75, std=None, created="2026-01-02T00:00:00+00:00"))
    table = ddbench.load_leaderboard(tmp_path)
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert table["mean"].tolist() == [0.5, 0.75]
    assert table["std"].isna().tolist() == [False, True]
    assert table["method_options"].tolist() == [{"seed": 3}, {}]
    assert table["values"].iloc[0] == [0.4, 0.6]
    assert table["companions"].iloc[0]["random"]["mean"] == 0.2
    (tmp_path / "empty").mkdir()
    assert list(ddbench.load_leaderboard(tmp_path / "empty").columns) == list(table.columns)
    with pytest.raises(UsageError, match="there is no folder"):
        ddbench.load_leaderboard(tmp_path / "elsewhere")


def test_columns_hold_what_they_say():
    """Every column of every committed record is of its type, and only optional figures are empty."""
    for record in read(COMMITTED):
        for column in COLUMNS:
            value = column.get(record)
            if value is None:
                single = column.name in ("std", "low", "high") and record.score.n == 1
                plain = column.name in ("byte_budget", "step_limit", "label_bytes", "passes") or (
                    column.name == "decoded_images" and not record.artifact.decoder
                )
                assert single or plain
            else:
                assert type(value) in ((int, float) if column.kind is float else (column.kind,)), column.name


def test_the_committed_csvs_are_what_the_records_give():
    assert outdated(COMMITTED) == []
    assert csv_text([]).count("\n") == 1


@pytest.mark.slow
def test_a_sweep_over_finished_runs_leaves_their_records(ddbench, tmp_path: Path):
    common = ("run", "-m", "random_subset", "--network", "linear", "--ipc", 1, "--eval-networks", 2)
    assert ddbench(*common, "--seed", 0, "--leaderboards", "first").code == 0
    swept = ddbench(*common, "--sweep", "seed=0,1", "--leaderboards", "second")
    assert swept.code == 0 and "seed 1: accuracy" in swept.err and "seed 0: accuracy" not in swept.err
    assert [record.settings.seed for record in read(tmp_path / "second")] == [0, 1]
    assert outdated(tmp_path / "second") == []


def test_a_damaged_record_stops_a_run_before_it_starts(tmp_path: Path):
    path = add(tmp_path, make_record())
    csv_path = tmp_path / "classification.csv"
    check(csv_path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DdbenchError, match="it is not a record"):
        check(csv_path)
    check(tmp_path / "adaptation.csv")


def test_a_csv_that_a_killed_process_left_behind_is_written(tmp_path: Path):
    boards, said = tmp_path / "boards", []
    add(boards, make_record(fingerprint="other"))
    before = (boards / "classification.csv").read_text()
    result = finished(tmp_path / "runs" / "first", fingerprint="a")
    assert record(boards, result)
    (boards / "classification.csv").write_text(before)
    assert not record(boards, result, said)
    assert outdated(boards) == []
    assert said == [f"{boards / 'classification.csv'} was written anew: it lacked records."]


def test_a_csv_without_records_is_settled_by_writing_it_anew(ddbench, tmp_path: Path):
    (tmp_path / "classification.csv").write_text("schema_version,fingerprint\n3,a\n")
    assert ddbench("leaderboard", "--check", "--leaderboards", tmp_path).code == 1
    both = ddbench("leaderboard", "--rebuild", "--check", "--leaderboards", tmp_path)
    assert (both.code, outdated(tmp_path)) == (0, []), both.out


def test_csvs_of_other_columns_are_compared_by_those_that_they_have(tmp_path: Path):
    add(tmp_path, make_record(fingerprint="a"))
    path = tmp_path / "classification.csv"
    header, row = csv.reader(path.read_text().splitlines())
    for cells in ([header[:-1], row[:-1]], [[*header, "colour"], [*row, "blue"]]):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(cells)
        assert outdated(tmp_path) == []
        assert [line for line in audit(tmp_path).notices if "other columns" in line]
        path.write_text(path.read_text().replace("accuracy", "loss"))
        assert outdated(tmp_path) == [path]


@pytest.mark.parametrize("name", ["published", "adaptation"])
def test_objectives_of_reserved_names_have_boards_of_their_own(tmp_path: Path, name):
    settings = make_record(objective=name).settings
    assert board_of(settings) == f"{name}-objective"
    assert board_of(make_record(objective="poisoning").settings) == "poisoning"


def old_row(boards: Path) -> Path:
    """Copy a leaderboard of version 2, and return the one distilled set in it."""
    shutil.copytree(Path(__file__).parent / "golden" / "v2" / "leaderboards", boards)
    [artifact] = (boards / "artifacts").glob("*.safetensors")
    return artifact


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    artifact = old_row(tmp_path / "boards")
    artifact.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DdbenchError, match="is damaged, or a pointer of Git LFS") as raised:
        read(tmp_path / "boards")
    assert str(artifact) in raised.value.message


def test_a_row_that_is_too_short_is_named(tmp_path: Path):
    (tmp_path / "classification.csv").write_text("a,schema_version\n1\n")
    with pytest.raises(DdbenchError, match="row 2 is not a row ddbench wrote"):
        read(tmp_path)


def test_fields_that_are_not_known_are_reported_once(ddbench, tmp_path: Path):
    path = add(tmp_path, make_record())
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 4, "colour": "blue"}))
    rebuild_and_check = ddbench("leaderboard", "--rebuild", "--check", "--leaderboards", tmp_path)
    assert rebuild_and_check.err.count("were ignored: colour.") == 1
    assert "UnknownFields" not in rebuild_and_check.err and ".py" not in rebuild_and_check.err


def test_a_warning_is_one_sentence_also_where_other_code_resets_filters(capsys: pytest.CaptureFixture[str]):
    with explained_failures():
        for _ in range(2):
            notice_unknown("file", ["colour"])
            warnings.simplefilter("ignore", ImportWarning)
    said = "Warning: file holds fields that this version of ddbench does not know; they were ignored: colour.\n"
    assert capsys.readouterr().err == said


def test_records_that_only_a_newer_version_can_read_are_named(tmp_path: Path):
    path = add(tmp_path, make_record())
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "version": 9, "settings": [fields["settings"]]}))
    with pytest.raises(DdbenchError, match="it is of version 9, newer than this ddbench"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "result.json is damaged"),
        ("{", "result.json is damaged"),
        ('{"version": 9, "status": "ok"}', "of version 9, newer than this ddbench"),
    ],
)
def test_results_that_cannot_be_read_are_refused(tmp_path: Path, text, reason):
    folder = RunFolder(tmp_path)
    assert folder.read_result() is None
    folder.result.write_text(text)
    with pytest.raises(UsageError, match=reason):
        folder.read_result()
    folder.result.unlink()
    folder.result.mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        folder.read_result()


def test_a_damaged_origin_is_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.read_origin().plugins == []
    folder.origin.write_text('{"plugins": ')
    with pytest.raises(UsageError, match=r"origin.json is damaged"):
        folder.read_origin()

"""Records outlive versions: goldens of each version, and a field and a column that are added."""

import json
import shutil
from pathlib import Path

import pydantic
import pytest
import torch

from ddbench.contract import spec
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Settings
from ddbench.errors import UnknownFields, UsageError
from ddbench.pipeline.runner import resume, run
from ddbench.pipeline.verify import verify
from ddbench.records import columns, migrations, result, store
from ddbench.records.audit import audit
from ddbench.records.result import RunFolder

GOLDEN = Path(__file__).parent / "golden"
COMMITTED = Path(__file__).parents[1] / "leaderboards"
VERSIONS = ["v2", "v3"]


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / request.param, tmp_path / "golden")


def test_there_is_a_golden_of_every_version():
    assert int(VERSIONS[-1].removeprefix("v")) == migrations.VERSION
    assert sorted(path.name for path in GOLDEN.glob("v*")) == VERSIONS


def test_a_golden_leaderboard_is_valid_and_reproduces(golden: Path, catalog):
    boards = golden / "leaderboards"
    [record] = store.read(boards)
    assert record.version == migrations.VERSION
    assert (record.settings.method.name, record.score.n, record.loop.steps) == ("unrolled_gd", 3, 40)
    verdict = verify(record, boards, catalog, Silent())
    # Other processors round otherwise.
    assert verdict.holds, verdict.how
    store.rebuild(boards)
    assert audit(boards).problems == []
    assert store.read(boards) == [record]


@pytest.mark.slow
def test_a_golden_run_folder_is_read(golden: Path, ddbench):
    folder = RunFolder(golden / "finished")
    ended = folder.read_result()
    assert (ended.status, ended.version, ended.primary) == ("ok", migrations.VERSION, "accuracy")
    assert ended.fingerprint == folder.read_spec().fingerprint == ended.settings.fingerprint
    assert ended.score.mean == store.read(golden / "leaderboards")[0].score.mean
    shown = ddbench("show", golden / "finished")
    assert shown.code == 0 and "unrolled_gd on digits" in shown.out
    assert ddbench("resume", golden / "finished").code == 0


@pytest.mark.slow
def test_a_golden_run_that_is_not_finished_ends_with_the_set_of_an_uninterrupted_one(golden: Path, tmp_path: Path):
    folder = RunFolder(golden / "unfinished")
    assert folder.read_result().status == "interrupted"
    settings = folder.read_spec()
    before = figures(folder)
    resumed = resume(folder.path, leaderboards=tmp_path / "boards")
    whole = run(settings, runs=tmp_path / "runs", leaderboards=tmp_path / "boards")
    assert resumed.loop.steps == whole.loop.steps == settings.method.options["outer_steps"]
    sets = [DistilledSet.load(result.artifact.path) for result in (resumed, whole)]
    torch.testing.assert_close(sets[0].inputs, sets[1].inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sets[0].lrs, sets[1].lrs, rtol=1e-3, atol=1e-3)
    # A processor that rounds as the one of the checkpoint logs the same figures up to there, and ends in the same bytes.
    if figures(RunFolder(Path(whole.run_dir)))[: len(before)] == before:
        assert resumed.artifact.sha256 == whole.artifact.sha256


def figures(folder: RunFolder) -> list[dict[str, float]]:
    """Return the figures of each outer step in the log, without the time."""
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_settings_that_are_not_known_are_not_resumed(golden: Path):
    folder = RunFolder(golden / "unfinished")
    fields = json.loads(folder.spec.read_text())
    folder.spec.write_text(json.dumps({**fields, "teachers": 3}))
    with pytest.raises(UsageError, match="settings that this version of ddbench does not know: teachers"):
        resume(folder.path)


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> type[Settings]:
    """Settings with one more optional field, and a table of columns with one more column: as on a branch."""

    class GrownSettings(Settings):
        temperature: float | None = pydantic.Field(None, description="temperature of the labels")

    class GrownResult(result.RunResult):
        settings: GrownSettings

    monkeypatch.setitem(spec.BORN_LATER, "temperature", None)
    column = columns.Column(
        "temperature", float, lambda r: r.settings.temperature, "temperature of the labels", "ranking"
    )
    monkeypatch.setattr(result, "RunResult", GrownResult)
    for module in ("migrations", "audit", "result"):
        monkeypatch.setattr(f"ddbench.records.{module}.Settings", GrownSettings)
    table = (*columns.COLUMNS, column)
    for module in ("columns", "store", "ranking", "audit", "leaderboard"):
        monkeypatch.setattr(f"ddbench.records.{module}.COLUMNS", table)
    return GrownSettings


@pytest.mark.slow
def test_a_field_and_a_column_invalidate_no_record(grown, tmp_path: Path):
    from ddbench.records.leaderboard import load_leaderboard
    from ddbench.records.ranking import groups

    boards = shutil.copytree(COMMITTED, tmp_path / "boards", copy_function=_link)
    records = store.read(boards)
    assert len(records) > 300 and all(isinstance(record.settings, grown) for record in records)
    assert {record.settings.fingerprint for record in records} == {record.fingerprint for record in records}
    # The CSVs lack the column, which is no fault, until they are written anew; the records stay as they are.
    before = audit(boards)
    assert before.problems == []
    assert len(before.notices) == len(list(boards.glob("*.csv"))) - (boards / "published.csv").exists()
    assert all("with other columns" in notice for notice in before.notices)
    store.rebuild(boards)
    checked = audit(boards)
    assert (checked.problems, checked.notices) == ([], [])
    assert load_leaderboard(boards)["temperature"].isna().all()
    assert groups(records)
    [old, *_] = records
    other = old.settings.model_copy(update={"temperature": 2.0})
    assert other.fingerprint != old.fingerprint
    assert len(groups([old, old.model_copy(update={"settings": other})])) == 2


def test_a_row_of_a_version_with_more_columns_is_read(grown, tmp_path: Path, monkeypatch):
    boards = shutil.copytree(GOLDEN / "v2" / "leaderboards", tmp_path / "boards")
    path = boards / "classification.csv"
    header, row = path.read_text().splitlines()
    path.write_text(f"{header},colour\n{row},blue\n")
    with pytest.warns(UnknownFields, match="were ignored: colour"):
        assert len(store.read(boards)) == 1
    # And of one with fewer: the default of that version fills the cell.
    path.write_text(f"{header.replace('rollbacks', 'elsewhere')}\n{row}\n")
    with pytest.warns(UnknownFields, match="elsewhere"):
        [record] = store.read(boards)
    assert record.loop.rollbacks == 0


def _link(source: str, target: str) -> str:
    shutil.copy(source, target) if source.endswith((".json", ".csv")) else Path(target).symlink_to(source)
    return target

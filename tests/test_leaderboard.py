import csv
import json
import multiprocessing
from pathlib import Path

import pytest

from ddbench.contract.spec import Settings
from ddbench.errors import DdbenchError, UsageError
from ddbench.records.leaderboard import COLUMNS, JSON_COLUMNS, append, comparison, path_for, read
from tests.rows import make_row


def test_rows_survive_the_file(tmp_path: Path):
    path = tmp_path / "classification.csv"
    first = make_row(fingerprint="a", method_options='{"a": "x,\\n\\"y\\""}')
    second = make_row(fingerprint="b", std=None, low=None, high=None)
    assert append(path, first) is None
    before = path.read_bytes()
    assert append(path, second) is None
    assert path.read_bytes().startswith(before)
    assert read(tmp_path) == [first, second]
    assert next(csv.reader(path.read_text().splitlines())) == list(COLUMNS)
    assert first.companion_scores()["random"]["mean"] == 0.2


def test_the_same_spec_on_the_same_data_has_one_row(tmp_path: Path):
    path = tmp_path / "classification.csv"
    row = make_row(fingerprint="a", dataset_hash="h")
    append(path, row)
    before = path.read_bytes()
    assert append(path, make_row(fingerprint="a", dataset_hash="h", mean=0.7)) == row
    assert path.read_bytes() == before
    assert append(path, make_row(fingerprint="a", dataset_hash="other")) is None
    assert append(path, make_row(fingerprint="a", dataset_hash="h", method_source="a newer version")) is None
    assert "Reproduced exactly" in comparison(row, row)
    assert "+0.2000 against 0.5000" in comparison(make_row(mean=0.7, values="[0.7, 0.7]"), row)


def _append_many(path: Path, name: str) -> None:
    for i in range(15):
        append(path, make_row(fingerprint=f"{name}{i}"))


def test_two_processes_appending_at_once_lose_nothing(tmp_path: Path):
    path = tmp_path / "classification.csv"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, name)) for name in "ab"]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert sorted(row.fingerprint for row in read(tmp_path)) == sorted(f"{n}{i}" for n in "ab" for i in range(15))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace("fingerprint", "id", 1), "its columns are those of another version"),
        (lambda text: text.replace("fingerprint,", "", 1), "its columns are those of another version"),
        (lambda text: text + "<<<<<<< HEAD\n=======\n>>>>>>> other\n", "both sides of a merge"),
        (lambda text: "method,accuracy\nmine,99\n", "its header is not ddbench's"),
        (lambda text: text[: len(text) - 3], "row 2 is not a row ddbench wrote"),
        (lambda text: text.replace(",0.5,", ",high,", 1), "row 2 is not a row ddbench wrote"),
        (lambda text: text + 'x,"unclosed', "unexpected end of data"),
    ],
)
def test_files_of_others_are_left_alone(tmp_path: Path, damage, told):
    path = tmp_path / "classification.csv"
    append(path, make_row())
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(DdbenchError, match=told):
        append(path, make_row(fingerprint="new"))
    with pytest.raises(DdbenchError, match=told):
        read(tmp_path)
    assert path.read_bytes() == before


def test_a_missing_last_newline_is_mended(tmp_path: Path):
    path = tmp_path / "classification.csv"
    append(path, make_row(fingerprint="a"))
    path.write_text(path.read_text().rstrip("\n"))
    append(path, make_row(fingerprint="b"))
    assert [row.fingerprint for row in read(tmp_path)] == ["a", "b"]


def test_rows_of_ten_thousand_networks(tmp_path: Path):
    values = json.dumps([0.123456789012345678 + i / 1e6 for i in range(10_000)])
    append(tmp_path / "classification.csv", make_row(values=values))
    assert read(tmp_path)[0].values == values


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


JSON_CELLS = dict.fromkeys(
    (
        "dataset_options", "network_options", "init_options", "eval_init_options", "objective_options", "target_options",
        "pretrained", "metrics", "environment",
    ),
    "{}",
)  # fmt: skip


def test_the_leaderboard_as_a_table(tmp_path: Path):
    import ddbench

    path = tmp_path / "classification.csv"
    append(path, make_row(fingerprint="a", mean=0.5, method_options='{"seed": 3}', **JSON_CELLS))
    append(path, make_row(fingerprint="b", mean=0.75, std=None, method_options="{}", **JSON_CELLS))
    table = ddbench.load_leaderboard(tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert table["mean"].tolist() == [0.5, 0.75]
    assert table["std"].isna().tolist() == [False, True]
    assert table["method_options"].tolist() == [{"seed": 3}, {}]
    assert table["values"].iloc[0] == [0.4, 0.6]
    assert table["companions"].iloc[0]["random"]["mean"] == 0.2
    (tmp_path / "classification.csv").unlink()
    assert list(ddbench.load_leaderboard(tmp_path).columns) == list(COLUMNS)
    with pytest.raises(UsageError, match="there is no folder"):
        ddbench.load_leaderboard(tmp_path / "elsewhere")


def test_every_column_of_json_is_read_by_the_table():
    """A row the program wrote: what parses as a list or a mapping is among the columns that are read."""
    rows = read(Path(__file__).parent.parent / "leaderboards")
    found = {
        name
        for row in rows
        for name, cell in row.model_dump().items()
        if isinstance(cell, str) and cell[:1] in ("{", "[")
    }
    assert found == set(JSON_COLUMNS)

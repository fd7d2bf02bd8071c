"""Scoring a set of a run on networks that it was not made for, and the rows that it leaves."""

import json
from pathlib import Path

import pytest
from PIL import Image

RUN = ("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2)


def rows(folder: Path) -> dict[str, dict]:
    records = (json.loads(path.read_text()) for path in folder.glob("leaderboards/records/*/*.json"))
    return {record["run_id"]: record for record in records}


@pytest.mark.slow
def test_scores_on_other_networks_leave_the_rows_of_runs(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    scored = ddbench("evaluate", made["run_dir"], "--cross-network", "mlp,linear", "--json")
    assert scored.code == 0, scored.err
    first, name = sorted(rows(tmp_path))
    assert first == made["run_id"] and name.startswith(f"{first}-on-mlp-")
    record = rows(tmp_path)[name]
    assert record["settings"]["network"]["name"] == "linear"
    assert record["settings"]["eval_network"]["name"] == "mlp"
    assert record["artifact"]["sha256"] == made["artifact"]["sha256"]
    assert ddbench("leaderboard", "--check").out == "2 records, none invalid.\n"
    assert "reproduced exactly" in ddbench("verify", name).out
    ranked = ddbench("leaderboard").out
    assert ranked.count("replay/v1") == 2, "scores on different networks are ranked apart"
    # A run that scores on the other network from the start is the same run.
    again = ddbench(*RUN, "--eval-network", "mlp")
    assert "Reproduced exactly" in again.err
    assert len(rows(tmp_path)) == 2


@pytest.mark.slow
def test_scores_on_other_data_leave_no_row(ddbench, tmp_path: Path):
    for split, count in (("train", 8), ("test", 3)):
        for label in ("a", "b"):
            folder = tmp_path / "own" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 20 * i + 100 * (label == "b")).save(folder / f"{i}.png")
    run = ("run", "-m", "random_subset", "--dataset", "folder:own", "--network", "linear", "--ipc", 1)
    made = ddbench(*run, "--eval-networks", 2, "--json").json()
    Image.new("L", (8, 8), 255).save(tmp_path / "own" / "test" / "a" / "0.png")
    scored = ddbench("evaluate", made["run_dir"], "--cross-network", "mlp")
    assert scored.code == 0, scored.err
    assert "No row for mlp: the data are not those of the run." in scored.err
    assert rows(tmp_path).keys() == {made["run_id"]}


def test_a_run_whose_row_cannot_be_added_is_complete_and_gets_it_later(ddbench, tmp_path: Path):
    blocked = tmp_path / "boards" / "artifacts"
    blocked.parent.mkdir()
    blocked.write_text("not a folder")
    failed = ddbench(*RUN, "--leaderboards", "boards", "--json")
    assert failed.code == 1
    [folder] = (tmp_path / "runs").iterdir()
    assert "The run is complete" in failed.json()["hint"]
    assert json.loads((folder / "result.json").read_text())["status"] == "ok"
    blocked.unlink()
    assert ddbench("resume", folder, "--leaderboards", "boards").code == 0
    assert len(list(tmp_path.glob("boards/records/*/*.json"))) == 1
    assert ddbench("leaderboard", "--check", "--leaderboards", "boards").out == "1 record, none invalid.\n"


def test_a_score_of_another_question_leaves_no_row(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    other = ddbench("evaluate", made["run_dir"], "--cross-network", "mlp", "--set", "epochs=2")
    assert other.code == 0, other.err
    assert "No row for mlp: more than the network, the test data and the protocol differs from the run." in other.err
    assert ddbench("evaluate", made["run_dir"], "--network", "mlp").code == 0
    assert ddbench("evaluate", made["run_dir"], "--protocol", "knn/v1").code == 0
    assert rows(tmp_path).keys() == {made["run_id"]}


def test_scores_under_other_protocols_leave_rows(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    scored = ddbench("evaluate", made["run_dir"], "--also-under", "knn/v1,krr/v1,replay/v1")
    assert scored.code == 0, scored.err
    first, *others = sorted(rows(tmp_path))
    assert [name.rpartition("-")[0] for name in others] == [f"{first}-under-k{x}_v1" for x in ("nn", "rr")]
    record = rows(tmp_path)[others[0]]
    assert record["protocol"]["name"] == record["settings"]["protocol"] == "knn/v1"
    assert record["artifact"]["sha256"] == made["artifact"]["sha256"]
    assert ddbench("leaderboard", "--check").out == "3 records, none invalid.\n"
    assert "reproduced exactly" in ddbench("verify", others[0]).out
    # A record that says another seed than its set is found, whatever protocol scored it.
    for path in tmp_path.glob("leaderboards/records/*/*.json"):
        if others[0] in path.read_text():
            path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert ddbench("leaderboard", "--check").code == 1

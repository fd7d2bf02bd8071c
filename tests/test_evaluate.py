"""Scoring a set of a run on networks that it was not made for, and the rows that it leaves."""

import json
from pathlib import Path

import pytest

RUN = ("run", "-m", "random_subset", "--network", "linear", "--eval-networks", 2)


def rows(folder: Path) -> dict[str, dict]:
    records = (json.loads(path.read_text()) for path in folder.glob("leaderboards/records/*/*.json"))
    return {record["run_id"]: record for record in records}


@pytest.mark.slow
def test_scores_on_other_networks_leave_the_rows_of_runs(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    scored = ddbench("evaluate", made["run_dir"], "--cross-network", "mlp,linear", "--json")
    assert scored.code == 0, scored.err
    name = f"{made['run_id']}-on-mlp"
    assert rows(tmp_path).keys() == {made["run_id"], name}
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


def test_a_score_of_another_question_leaves_no_row(ddbench, tmp_path: Path):
    made = ddbench(*RUN, "--json").json()
    other = ddbench("evaluate", made["run_dir"], "--cross-network", "mlp", "--protocol", "knn/v1")
    assert other.code == 0, other.err
    assert ddbench("evaluate", made["run_dir"], "--network", "mlp").code == 0
    assert rows(tmp_path).keys() == {made["run_id"]}

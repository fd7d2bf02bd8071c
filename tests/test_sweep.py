import csv
import io

import pytest

from ddbench.contract.spec import Axis, Sweep
from ddbench.errors import UsageError
from ddbench.pipeline.sweep import parse_axes


def test_axes():
    assert parse_axes(["steps,images_per_class=1,2,5", "init.scheme=xavier,kaiming"]) == [
        Axis(keys=["steps", "images_per_class"], values=[1, 2, 5]),
        Axis(keys=["init.scheme"], values=["xavier", "kaiming"]),
    ]
    points = list(Sweep(axes=parse_axes(["a,b=1,2", "c=x,y"])).assignments())
    assert points[1] == ((1, "y"), {"a": 1, "b": 1, "c": "y"})
    assert len(points) == 4


@pytest.mark.parametrize("text", ["steps", "steps=", "=1,2", "a b=1", "1x=2"])
def test_what_is_no_axis(text):
    with pytest.raises(UsageError, match="is not of the form KEY=VALUE"):
        parse_axes([text])


def test_three_axes_are_too_many():
    with pytest.raises(UsageError, match="one axis or two"):
        parse_axes(["a=1", "b=1", "c=1"])


@pytest.mark.slow
def test_a_sweep_runs_once_draws_and_leaves_rows(ddbench, tmp_path):
    command = ["run", "-m", "random_subset", "--network", "linear", "--eval-networks", 3]
    swept = ["--sweep", "images_per_class=1,4", "--sweep", "epochs=1,10"]
    done = ddbench(*command, *swept)
    assert done.code == 0, done.err
    [folder] = (tmp_path / "runs").glob("sweep-*")
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))
    assert [(row["images_per_class"], row["epochs"]) for row in rows] == [
        ("1", "1"),
        ("1", "10"),
        ("4", "1"),
        ("4", "10"),
    ]
    assert float(rows[3]["accuracy"]) > float(rows[0]["accuracy"])
    assert len((tmp_path / "leaderboards" / "classification.csv").read_text().splitlines()) == 5
    before = sorted(path.name for path in (tmp_path / "runs").iterdir())
    again = ddbench(*command, *swept, "--plot", "loss", "--json")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == before
    assert again.json()["plot"] == "loss"
    assert len(again.json()["points"]) == 4
    assert "no figure 'lost' to plot" in ddbench(*command, *swept, "--plot", "lost").message()
    planned = ddbench(*command, *swept, "--dry-run", "--json").json()
    assert [line["run"] for line in planned["runs"]] == [row["run_dir"].split("/")[1] for row in rows]

"""Suites: many runs in one command, the matrix that they give, and what happens when things go wrong."""

import json
import signal
import subprocess
import sys
import time

import pytest
import scipy.stats

from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.suites import read_suite
from ddbench.errors import PluginError
from ddbench.pipeline.jobs import Forecast, Job
from ddbench.pipeline.plan import plan_run
from ddbench.records.result import LoopRecord
from ddbench.records.stats import bootstrap, holm, signed_rank, summarise
from ddbench.records.suite_matrix import Runs, matrix
from tests.rows import make_record

DDBENCH = [sys.executable, "-c", "from ddbench.cli import main; main()"]
SUITE = """
summary = "Two tasks of digits"
methods = ["random_subset", "average_real"]
reference = "random_subset"

[task]
network = "linear"
eval_networks = 2

[tasks.one]
images_per_class = 1

[tasks.ten]
images_per_class = 10
"""

BROKEN = '''
import ddbench
from ddbench import DistilledSet, Run, Task, Unsupported

@ddbench.method(supports=lambda plan: "it makes ten images alone." if plan.settings.images_per_class != 10 else None)
def tens(task: Task, run: Run) -> DistilledSet:
    """Return the first images of each class, ten of each."""
    return DistilledSet.from_flat(task)

@ddbench.hookimpl
def ddbench_methods():
    return [tens]
'''


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(SUITE)
    return path


def test_a_suite_runs_what_is_missing_and_ends_with_the_matrix(ddbench, suite):
    first = ddbench("suite", "run", suite, "--method", "random_subset", "--json").json()
    assert [run["state"] for run in first["runs"]] == ["ok", "ok"]
    both = ddbench("suite", "run", suite, "--json").json()
    assert sorted(run["state"] for run in both["runs"]) == ["ok", "ok", "present", "present"]
    cells = both["matrix"]["cells"]["average_real"]
    means = {run["label"]: run["mean"] for run in both["runs"]}
    assert cells["one"]["score"]["mean"] == means["average_real on one, seed 0"]
    assert both["matrix"]["cells"]["random_subset"]["one"]["gain"] == 0
    assert both["matrix"]["aggregates"]["average_real"]["tasks"] == 2
    # A method that is not run now is shown with what is there of it.
    one = ddbench("suite", "run", suite, "--method", "average_real", "--json").json()
    assert len(one["runs"]) == 2 and one["matrix"] == both["matrix"]
    shown = ddbench("suite", "status", suite)
    assert "4 present" in shown.out and "mean rank" in shown.out
    # Records are enough: the run folders may be gone.
    assert "4 present" in ddbench("suite", "run", suite, "--runs", "elsewhere").out


def test_failures_and_tasks_that_a_method_declines_do_not_stop_a_suite(ddbench, suite, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    command = ["suite", "run", suite, "--plugin", "broken.py", "-m", "tens,random_subset"]
    done = ddbench(*command, "--json")
    assert done.code == 1
    states = {run["label"]: run["state"] for run in done.json()["runs"]}
    assert states == {
        "tens on one, seed 0": "skipped", "random_subset on one, seed 0": "ok",
        "tens on ten, seed 0": "failed", "random_subset on ten, seed 0": "ok",
    }  # fmt: skip
    again = ddbench(*command)
    assert "it makes ten images alone" in again.out and "from_flat" in again.message()
    assert "2 present" in again.out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "two.tom"], "no suite 'two.tom'"),
        (["run", "no.toml"], "no file no.toml"),
        (["run", "two.toml", "-m", "random_subste"], "Did you mean 'random_subset'?"),
        (["run", "two.toml", "--set", "images=3"], "--set METHOD.images=VALUE"),
        (["run", "two.toml", "--set", "dc.images=3"], "options were set for 'dc', which is not run"),
        (["run", "two.toml", "--on", "train"], "should be 'test' or 'validation'"),
        (["status", "two.toml", "-m", "nothing"], "no method called 'nothing'"),
    ],
)
def test_usage(ddbench, suite, arguments, what):
    done = ddbench("suite", *arguments)
    assert done.code == 2
    assert what in done.message()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[tasks.a]\ndataste = "digits"', "Did you mean 'dataset'"),
        ("[tasks.a]\nimages_per_class = 0", "images_per_class"),
        ("[tasks.a]\nseeds = []", "seeds"),
        ("[tasks.a]\nmethod = 'dc'", "the field 'method', which no task has"),
        ("", "tasks"),
        ("colour = 1\n[tasks.a]", "colour"),
        ("[tasks", "Correct the file"),
    ],
)
def test_what_is_no_suite(tmp_path, text, what):
    path = tmp_path / "bad.toml"
    path.write_text(f'summary = "x"\nmethods = ["dc"]\nreference = "random_subset"\n{text}')
    with pytest.raises(PluginError) as caught:
        read_suite(path)
    assert what in f"{caught.value.message} {caught.value.hint}"


def test_a_full_disk_ends_a_suite(ddbench, suite):
    done = ddbench("suite", "run", suite, file_limit=2000)
    assert done.code == 1
    assert "cannot write" in done.message()
    assert "2 of 4" not in done.err
    assert ddbench("suite", "run", suite).code == 0


@pytest.mark.slow
def test_two_commands_on_one_folder_share_the_runs(tmp_path, suite):
    command = [*DDBENCH, "suite", "run", str(suite), "--json"]
    pair = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    documents = [json.loads(process.communicate(timeout=120)[0]) for process in pair]
    states = [run["state"] for document in documents for run in document["runs"]]
    assert sorted(states) == ["ok"] * 4 + ["present"] * 4
    assert len([path for path in (tmp_path / "runs").iterdir() if path.name != ".claims"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_a_suite_that_is_stopped_goes_on_in_the_same_folder(tmp_path, suite, ddbench, kill, code):
    command = ["suite", "run", suite, "-m", "unrolled_gd", "--set", "unrolled_gd.outer_steps=300"]
    process = subprocess.Popen([*DDBENCH, *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE)
    for _ in range(900):
        if list(tmp_path.glob("runs/*/checkpoint.pt")):
            break
        time.sleep(0.1)
    process.send_signal(kill)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert "1 interrupted" in ddbench("suite", "status", suite, *command[3:]).out
    done = ddbench(*command, "--json")
    assert [run["state"] for run in done.json()["runs"]] == ["ok", "ok"]
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2


def row(values, companion=0.5, **cells):
    score = summarise(values).model_dump(exclude={"values"})
    companions = json.dumps({"reference": {"mean": companion, "std": 0.1, "n": 2}})
    return make_record(**score, values=json.dumps(values), companions=companions, **cells)


def test_ranks_gains_and_aggregates_by_hand():
    def cell(method, mean):
        return Runs([row([mean - 0.01, mean, mean + 0.01], method=method)])

    tasks = ("a", "b", "c")
    rows = {
        "good": {task: cell("good", 0.8) for task in tasks},
        "fair": {task: cell("fair", 0.7) for task in tasks},
        "partial": {"a": cell("partial", 0.9), "b": Runs([], "skipped", "too large."), "c": Runs([])},
    }
    made = matrix(rows, "reference", "cpu, 2 threads")
    assert {m: made.cells[m]["a"].rank for m in rows} == {"partial": 1, "good": 2, "fair": 3}
    assert made.cells["good"]["a"].gain == pytest.approx(0.3)
    assert made.aggregates["good"].rank.mean == pytest.approx((2 + 1 + 1) / 3)
    assert made.aggregates["good"].gain.mean == pytest.approx(0.3)
    assert (made.aggregates["partial"].tasks, made.aggregates["partial"].rank.low) == (1, None)
    assert made.cells["partial"]["b"].reason == "too large."
    pair = next(c for c in made.comparisons if (c.first, c.second) == ("good", "fair"))
    assert (pair.tasks, pair.wins, pair.losses) == (3, 3, 0)


def test_a_run_that_the_clock_ended_elsewhere_is_not_ranked():
    def cell(threads, stopped_by):
        record = row([0.7, 0.8])
        changes = {"loop": LoopRecord(stopped_by=stopped_by), "environment": {"device": "cpu", "threads": threads}}
        return {"a": Runs([record.model_copy(update=changes)])}

    rows = {"here": cell("2", "time limit"), "there": cell("64", "time limit"), "whole": cell("64", "")}
    made = matrix(rows, "reference", "cpu, 2 threads")
    assert {m: (made.cells[m]["a"].state, made.cells[m]["a"].rank) for m in rows} == {
        "here": ("ok", 1), "there": ("elsewhere", None), "whole": ("ok", 1)
    }  # fmt: skip
    assert "there" not in made.aggregates


def test_statistics_against_scipy_and_by_hand():
    values = [0.1, 0.4, 0.2, 0.9]
    own, usual = bootstrap(values), scipy.stats.bootstrap((values,), lambda v, axis: v.mean(axis), method="percentile")
    assert own.mean == pytest.approx(0.4)
    assert own.low == pytest.approx(usual.confidence_interval.low, abs=0.02)
    assert own.high == pytest.approx(usual.confidence_interval.high, abs=0.02)
    # Holm 1979: the smallest is multiplied by 4, the next by 3, and none is below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 2**5)
    assert (signed_rank([1.0]), signed_rank([0.0, 0.0])) == (None, 1.0)


def test_the_time_that_is_left(catalog: Catalog):
    def job(method, task, **fields):
        return Job("", task, plan_run(RunSpec.parse({"method": method, "network": "linear", **fields}), catalog))

    forecast = Forecast()
    known, other = job("random_subset", "a"), job("average_real", "a")
    assert forecast.left([known]) is None
    assert forecast.of(job("random_subset", "a", time_limit=30)) == 30
    forecast.add(known, 2)
    forecast.add(known, 4)
    forecast.add(job("random_subset", "b"), 9)
    assert forecast.of(known) == 3
    assert forecast.of(job("random_subset", "c")) == 5
    assert forecast.left([known, other]) == 3 + 5

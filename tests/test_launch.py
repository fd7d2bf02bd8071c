"""Runs in several processes: job files, workers, and what is left when one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUITE = """
summary = "Two tasks of digits"
methods = ["random_subset", "unrolled_gd"]
reference = "random_subset"

[task]
network = "linear"
eval_networks = 2

[options.unrolled_gd]
outer_steps = 400

[tasks.one]
images_per_class = 1

[tasks.two]
images_per_class = 2
"""
DDBENCH = [sys.executable, "-m", "ddbench"]


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "two.toml").write_text(SUITE)
    return tmp_path / "two.toml"


def records(folder: Path) -> int:
    return len(list(folder.glob("leaderboards/records/*/*.json")))


def test_emitted_jobs_are_carried_out_once_and_taken_by_the_suite(ddbench, suite, tmp_path):
    emitted = ddbench("suite", "run", suite, "-m", "random_subset", "--emit", "jobs", "--json").json()["jobs"]
    assert len(emitted) == 2
    assert json.loads((tmp_path / emitted[0]).read_text())["settings"]["method"]["name"] == "random_subset"
    first = ddbench("work", *emitted)
    assert first.code == 0
    assert first.out.count("accuracy") == 2
    assert ddbench("work", *emitted).out == ""
    again = ddbench("suite", "run", suite, "-m", "random_subset", "--emit", "more")
    assert "Wrote 0 jobs" in again.out
    assert records(tmp_path) == 2


def test_a_worker_of_another_version_is_refused_by_name(ddbench, suite, tmp_path):
    [first, second] = ddbench("suite", "run", suite, "-m", "random_subset", "--emit", "jobs", "--json").json()["jobs"]
    for path, old, new in ((first, "0.1.0 at", "0.0.9 at"), (second, '"ddbench 0.1.0"', '"ddbench 0.0.9"')):
        text = (tmp_path / path).read_text()
        assert old in text
        (tmp_path / path).write_text(text.replace(old, new, 1))
    done = ddbench("work", first, second)
    assert done.code == 1
    assert "this worker has ddbench of 0.1.0 at" in done.out and "the job was written with 0.0.9 at" in done.out
    assert "this worker has method 'random_subset' of ddbench 0.1.0" in done.out
    assert records(tmp_path) == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["work", "nothing.json"], "no file nothing.json"),
        (["work", "two.toml"], "is not a job that ddbench wrote"),
        (["suite", "run", "two.toml", "--launcher", "locl"], "Did you mean 'local'?"),
        (["suite", "run", "two.toml", "--launcher", "local:workers=0"], "greater than or equal to 1"),
        (["suite", "run", "two.toml", "--launcher", "local:workers"], "not of the form KEY=VALUE"),
        (["run", "-m", "random_subset", "--launcher", "local"], "--launcher is for several runs"),
    ],
)
def test_usage(ddbench, suite, arguments, what):
    done = ddbench(*arguments)
    assert done.code == 2
    assert what in done.message()


def children(parent: int) -> list[int]:
    text = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(word) for word in text.split()]


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_run_and_doubles_none(suite, tmp_path):
    command = [*DDBENCH, "suite", "run", str(suite), "--launcher", "local:workers=2", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_checkpoint(tmp_path)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [run["state"] for run in json.loads(out)["runs"]] == ["ok"] * 4
    assert records(tmp_path) == len(list(tmp_path.glob("runs/*/result.json"))) == 4


@pytest.mark.slow
def test_all_workers_end_with_the_command(suite, tmp_path, ddbench):
    command = [*DDBENCH, "suite", "run", str(suite), "--launcher", "local:workers=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    wait_for_checkpoint(tmp_path)
    workers = children(process.pid)
    assert workers
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "interrupted" in ddbench("suite", "status", suite).out
    assert ddbench("suite", "run", suite).code == 0
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4


def wait_for_checkpoint(folder: Path) -> None:
    for _ in range(1200):
        if list(folder.glob("runs/unrolled_gd*/checkpoint.pt")):
            return
        time.sleep(0.1)
    raise TimeoutError("no checkpoint")

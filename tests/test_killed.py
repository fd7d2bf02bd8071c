"""A run that is killed at any moment, over and over, ends in the bytes and the row of one that never was."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ddbench.contract.observer import Silent
from ddbench.discovery.catalog import Catalog
from ddbench.errors import Interrupted
from ddbench.pipeline import baselines, runner
from ddbench.protocols import PROTOCOLS
from ddbench.records.result import RunResult

SCRIPT = """
import json, os, random, signal, sys
from pathlib import Path
import torch
from ddbench.contract import run as loop
from ddbench.contract.journal import Journal
from ddbench.pipeline import baselines, runner
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError
from ddbench.records.columns import COLUMNS
from ddbench.records.result import RunFolder
from ddbench.records.store import read

torch.set_num_threads(1)
chance = random.Random(1)
baselines.PATIENCE = 0  # whether networks on the full data are trained must not depend on the clock
loop.CHECKPOINT_SHARE, loop.SNAPSHOT_EVERY = float("inf"), 2
catalog = Catalog()
import sklearn.datasets, torch._dynamo  # once, not in every child
spec = {
    "method": {"name": "unrolled_gd", "options": {"outer_steps": 60, "networks": 2, "real_batch": 64}},
    "network": "linear", "eval_networks": 3, "images_per_class": 1,
}

def live(folder, die_at):
    # A child works on the run until its n-th call that writes a file, where it is killed.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.environ["DDBENCH_CACHE"] = str(folder / "cache")
    count = 0
    def deadly(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    os.fsync, os.fdopen, Path.replace, Path.chmod = map(deadly, (os.fsync, os.fdopen, Path.replace, Path.chmod))
    Journal.put = deadly(Journal.put)
    code = 1
    try:
        begun = list(folder.glob("runs/*/spec.json"))
        if begun:
            runner.resume(begun[0].parent, catalog=catalog, leaderboards=folder / "boards")
        else:
            runner.run(spec, catalog=catalog, runs=folder / "runs", leaderboards=folder / "boards")
        code = 0
    except DdbenchError as error:
        print(error.message, file=sys.stderr)
    finally:
        os._exit(code)

def story(folder, most_deaths):
    # Most deaths are for the loop; the last ones come while networks are scored.
    distilling = scoring = 0
    while True:
        if any(folder.glob("runs/*/scores.jsonl")):
            die_at = chance.randint(2, 5) if scoring < min(5, most_deaths) else 0
        else:
            die_at = chance.randint(1, 40) if distilling < most_deaths else 0
        status = live(folder, die_at)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "a run that was killed could not go on"
            break
        if any(folder.glob("runs/*/scores.jsonl")):
            scoring += 1
        else:
            distilling += 1
    [run] = {path.parent for path in folder.glob("runs/*/spec.json")}
    [row] = read(folder / "boards")
    result = RunFolder(run).read_result()
    vary = ("created", "run_id", "seconds_distill", "seconds_evaluate", "peak_memory_mb")
    kept = {column.name: column.cell(row) for column in COLUMNS if column.name not in vary}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    for line in log + scores:
        del line["seconds"]
    outcome = {"sha256": result.artifact.sha256, "row": kept, "log": log, "scores": scores}
    return {"distilling": distilling, "scoring": scoring, "outcome": outcome}

stories = [story(Path(sys.argv[1]) / name, deaths) for name, deaths in (("whole", 0), ("killed", 40))]
print(json.dumps(stories, default=str))
"""


@pytest.mark.slow
def test_killed_at_many_moments_and_resumed_equals_never_interrupted(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    whole, killed = json.loads(done.stdout)
    assert (whole["distilling"], whole["scoring"]) == (0, 0)
    assert len(whole["outcome"]["log"]) == 60
    assert killed["distilling"] >= 8
    assert killed["scoring"] >= 5
    # No network is scored twice, whatever is killed in between.
    for part, value in whole["outcome"].items():
        assert killed["outcome"][part] == value, part


COUNTED = '''
import ddbench
from ddbench import DistilledSet

CALLS = []

@ddbench.method
def counted(task, run):
    """Some real images; counts its calls."""
    CALLS.append(run)
    chosen = task.train.random_subset(task.budget.images_per_class, run.generator)
    return DistilledSet(chosen.inputs[None], chosen.labels[None])

@ddbench.hookimpl
def ddbench_methods():
    return [counted]
'''


class Terminating(Silent):
    """Sends SIGTERM, as a scheduler does, once two networks of the set are scored."""

    def __init__(self) -> None:
        self.title = ""

    def stage(self, title: str) -> None:
        self.title = title

    def progress(self, done: int, total: int, values: object, seconds_left: float | None) -> None:
        if self.title == "Scoring under train/v1" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_while_scoring_keeps_the_scores_and_a_method_without_a_loop_is_not_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Whether networks on the full data are trained must not depend on the clock.
    monkeypatch.setattr(baselines, "PATIENCE", 0)
    monkeypatch.setitem(PROTOCOLS, "train/v1", replace(PROTOCOLS["train/v1"], epochs=2))
    (tmp_path / "counted.py").write_text(COUNTED)
    catalog = Catalog([tmp_path / "counted.py"])
    spec = {"method": "counted", "network": "linear", "eval_networks": 4, "protocol": "train/v1", "seed": 5}

    def calls() -> int:
        [component] = [method for method in catalog.components("method") if method.name == "counted"]
        return len(component.function.__globals__["CALLS"])

    def run(name: str, reporter: Silent) -> RunResult:
        places = {"runs": tmp_path / name, "leaderboards": tmp_path / f"{name}-boards"}
        return runner.run(spec, catalog=catalog, reporter=reporter, **places)

    whole = run("whole", Silent())
    with pytest.raises(Interrupted) as error:
        run("stopped", Terminating())
    [folder] = (tmp_path / "stopped").iterdir()
    assert error.value.hint == f"Go on with: ddbench resume {folder}"
    assert calls() == 2
    journal = (folder / "scores.jsonl").read_bytes()
    assert 2 <= journal.count(b"\n") < 4
    resumed = runner.resume(folder, catalog=catalog, leaderboards=tmp_path / "stopped-boards")
    assert calls() == 2
    assert (folder / "scores.jsonl").read_bytes().startswith(journal)
    assert (resumed.status, resumed.scores, resumed.companions) == ("ok", whole.scores, whole.companions)
    assert resumed.artifact.sha256 == whole.artifact.sha256

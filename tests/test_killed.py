"""A run that is killed at any moment, over and over, ends in the bytes and the row of one that never was."""

import json
import subprocess
import sys
from pathlib import Path

KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from ddbench.machine import files
from ddbench.contract import run as loop
from ddbench.pipeline import runner
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError
from ddbench.records.columns import COLUMNS
from ddbench.records.result import RunFolder
from ddbench.records.store import read

torch.set_num_threads(1)
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
loop.CHECKPOINT_SECONDS, loop.SNAPSHOT_EVERY = 0.0, 2
catalog = Catalog()
import sklearn.datasets, torch._dynamo  # once, not in every child
spec = {
    "method": {"name": "unrolled_gd", "options": {"outer_steps": 60, "networks": 2, "real_batch": 64}},
    "network": "linear", "eval_networks": 2, "images_per_class": 1,
}

def once(die_at):
    # A child that works on the run and, at its n-th system call that writes a file, is no more.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
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

deaths = 0
while True:
    status = once(chance.randint(1, 14) if deaths < 40 else 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "a run that was killed could not go on"
        break
    deaths += 1
[run] = {path.parent for path in folder.glob("runs/*/spec.json")}
[row] = read(folder / "boards")
result = RunFolder(run).read_result()
vary = ("created", "run_id", "seconds_distill", "seconds_evaluate", "peak_memory_mb")
kept = {column.name: column.cell(row) for column in COLUMNS if column.name not in vary}
log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
for line in log:
    del line["seconds"]
print(json.dumps({"deaths": deaths, "sha256": result.artifact.sha256, "row": kept, "log": log}, default=str))
"""


def story(folder: Path, seed: int, script: str = KILLED) -> dict:
    command = [sys.executable, "-c", script, str(folder), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_many_moments_and_resumed_equals_never_interrupted(tmp_path: Path):
    whole = story(tmp_path / "whole", 0, KILLED.replace("if deaths < 40", "if deaths < 0"))
    assert whole["deaths"] == 0
    assert len(whole["log"]) == 60
    killed = story(tmp_path / "killed", 1)
    assert killed["deaths"] >= 10
    for part in ("sha256", "row", "log"):
        assert killed[part] == whole[part]

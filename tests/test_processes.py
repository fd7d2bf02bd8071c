"""One run over several processes: the same bytes for any number of them, and none left behind when one ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RUN = ("run", "-m", "unrolled_gd", "--ipc", "1", "--network", "mlp", "--set", "network.width=16")


def torchrun(processes: int, folder: Path, *command: object) -> subprocess.Popen:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    places = ("--runs", folder / "runs", "--leaderboards", folder / "boards") if command[0] == "run" else ()
    words = [*start, "-m", "ddbench", *map(str, (*command, *places))]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DDBENCH_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path):
    digests, scores = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ("--set", "outer_steps=12", "--set", "networks=3", "--eval-networks", "3")
        running = torchrun(processes, folder, *RUN, *options)
        out, err = running.communicate(timeout=240)
        assert running.returncode == 0, err
        [run] = (folder / "runs").iterdir()
        digests.append(hashlib.sha256((run / "distilled.safetensors").read_bytes()).hexdigest())
        result = json.loads((run / "result.json").read_text())
        scores.append((result["scores"], result["companions"]))
        assert out.count("accuracy  ") == 1 and "Traceback" not in err
        # One row, one record, and nothing of the other process.
        assert len(list((folder / "boards" / "records").rglob("*.json"))) == 1
        logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert len(logged) == 12 and all(0 <= line["train_accuracy"] <= 1 for line in logged)
    assert digests[0] == digests[1] and scores[0] == scores[1]


def test_a_killed_process_ends_all_and_leaves_a_checkpoint(tmp_path: Path):
    running = torchrun(2, tmp_path, *RUN, "--set", "outer_steps=100000", "--set", "networks=2")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoint.pt")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.split()
    second = [pid for pid in children if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second[-1]), signal.SIGKILL)
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted", err
    assert "ddbench resume" in err
    alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert alive == []


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--time-limit", "10s"), "a time limit does not go with several processes"),
     (("--sweep", "outer_steps=1,2"), "several processes share one run, not a sweep")],
)  # fmt: skip
def test_what_processes_cannot_share_is_refused_once(options: tuple[str, ...], message: str, tmp_path: Path):
    running = torchrun(2, tmp_path, *RUN, *options)
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0 and err.count(message) == 1
    assert not (tmp_path / "runs").exists()

"""Launchers for clusters, tested on real ones of one machine; skipped where the engine is absent."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SUITE = """
summary = "One task of digits"
methods = ["unrolled_gd"]
reference = "random_subset"

[task]
network = "linear"
eval_networks = 2

[options.unrolled_gd]
outer_steps = 1000

[tasks.one]
images_per_class = 1

[tasks.two]
images_per_class = 2
"""
DDBENCH = [sys.executable, "-m", "ddbench"]
START = Path(__file__).parents[4] / "shared" / "slurm"


def require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "one.toml").write_text(SUITE)
    return tmp_path / "one.toml"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    for _ in range(int(10 * seconds)):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(f"no {what} after {seconds} s")


def begun(folder: Path) -> int:
    """Return how many runs have left a checkpoint."""
    return len(list(folder.glob("runs/unrolled_gd*/checkpoint.pt")))


def in_state(state: str) -> list[str]:
    """Return the jobs of Slurm in a state such as R (running) or PD (pending)."""
    command = ["squeue", "-h", "-t", state, "-o", "%A"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of this machine alone: the one that SLURM_CONF names, or one that is started for the test."""
    require("submitit")
    if shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("needs Slurm (slurm-wlm, munge) and root to start it")
    if "SLURM_CONF" in os.environ:
        yield Path(os.environ["SLURM_CONF"])
        return
    if not (START / "start").exists():
        pytest.skip("needs SLURM_CONF, or the script that starts a Slurm of one machine")
    folder = tmp_path / "slurm"
    subprocess.run(["bash", START / "start", folder], check=True, timeout=60)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield folder / "slurm.conf"
    subprocess.run(["bash", START / "stop", folder], check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_slurm_requeues_goes_on_from_its_checkpoint(slurm: Path, suite: Path, tmp_path: Path):
    command = [*DDBENCH, "suite", "run", str(suite), "--launcher", "slurm:workers=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: begun(tmp_path), "checkpoint")
    job = in_state("R")[0]
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_until(lambda: job in in_state("PD"), "requeued job")
    # Slurm would let it wait for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "2 ok" in out
    assert len(list((tmp_path / "runs").glob("unrolled_gd*/result.json"))) == 2
    assert len(list((tmp_path / "leaderboards").glob("records/*/*.json"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_loses_two_of_three_nodes_and_no_run(suite: Path, tmp_path: Path):
    require("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = [cluster.add_node(num_cpus=1) for _ in range(2)]
    suite.write_text(SUITE.replace("1000", "1500") + "[tasks.three]\nimages_per_class = 3\n")
    command = [*DDBENCH, "suite", "run", str(suite), "--launcher", f"ray:address={cluster.address}"]
    try:
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                wait_until(lambda: begun(tmp_path) == 3, "checkpoint of each run")
                assert not list(tmp_path.glob("runs/unrolled_gd*/result.json"))
                for node in lost:
                    cluster.remove_node(node, allow_graceful=False)
                out, _ = process.communicate(timeout=280)
            finally:
                process.kill()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, out
    assert b"3 ok" in out
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/unrolled_gd*/result.json")]
    assert [(result["status"], result["loop"]["steps"]) for result in results] == [("ok", 1500)] * 3
    assert len(list((tmp_path / "leaderboards").glob("records/*/*.json"))) == 3


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_that_is_absent(launcher: str, package: str, suite: Path, tmp_path: Path, ddbench):
    (tmp_path / f"{package}.py").write_text("raise ImportError")
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = ddbench("suite", "run", suite, "--launcher", launcher, PYTHONPATH=path)
    assert done.code == 3
    assert f"pip install 'ddbench[{launcher}]'" in done.message() or "no sbatch" in done.message()

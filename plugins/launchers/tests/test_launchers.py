"""Launchers for clusters, tested on real ones of one machine; skipped where the engine is absent."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
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


def wait_for(folder: Path, pattern: str, seconds: float = 120) -> Path:
    for _ in range(int(10 * seconds)):
        found = next(folder.glob(pattern), None)
        if found is not None:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"no {pattern} in {folder}")


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
    wait_for(tmp_path / "runs", "unrolled_gd*/checkpoint.pt")
    queue = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%A"], capture_output=True, text=True, check=True)
    subprocess.run(["scontrol", "requeue", queue.stdout.split()[0]], check=True)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "2 ok" in out
    assert len(list((tmp_path / "runs").glob("unrolled_gd*/result.json"))) == 2
    assert len(list((tmp_path / "leaderboards").glob("records/*/*.json"))) == 2


@pytest.mark.slow
def test_a_ray_cluster_carries_out_every_run_once(suite: Path, tmp_path: Path):
    require("ray")
    command = [*DDBENCH, "suite", "run", str(suite), "--launcher", "ray"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "leaderboards").glob("records/*/*.json"))) == 2


@pytest.mark.parametrize(
    ("launcher", "package", "what"), [("slurm", "submitit", "ddbench[slurm]"), ("ray", "ray", "ddbench[ray]")]
)
def test_an_engine_that_is_absent(launcher: str, package: str, what: str, suite: Path, ddbench):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is here")
    done = ddbench("suite", "run", suite, "--launcher", launcher)
    assert done.code == 3
    assert what in done.message() or "no sbatch" in done.message()

"""Faulty packages, built and installed beside good ones: the others work, and the culprit is named with a remedy."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
METHOD = '''
"""A plugin."""
import ddbench
from ddbench import DistilledSet

@ddbench.method
def NAME(task, run):
    """The first images."""
    n = task.budget.images_per_class * len(task.info.classes)
    return DistilledSet(task.train.inputs[None, :n], task.train.labels[None, :n])

@ddbench.hookimpl
def ddbench_methods():
    return [NAME]
'''
# Hooks that name fewer arguments than ddbench passes.
OLDER = (
    METHOD.replace("NAME", "older")
    + '''
import torch

@ddbench.init
def older_init(request):
    """Zeros."""
    return {name: torch.zeros(request.n, *p.shape) for name, p in request.network.named_parameters()}

@ddbench.hookimpl
def ddbench_inits():
    return [older_init]

@ddbench.hookimpl
def ddbench_observe():
    print("older saw the run start")
'''
)
PACKAGES = {
    "good": METHOD.replace("NAME", "good"),
    "older": OLDER,
    "raises": "raise RuntimeError('no licence')",
    "lacks": "import a_library_nobody_has",
    "misspelt": METHOD.replace("NAME", "misspelt").replace("def ddbench_methods", "def ddbench_metods"),
    "slow": "import time; time.sleep(2.5)" + METHOD.replace("NAME", "slow"),
    "claims": METHOD.replace("NAME", "good"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the packages are installed in."""
    where = tmp_path_factory.mktemp("packages")
    for name, text in PACKAGES.items():
        folder = where / name
        (folder / f"ddbench_{name}").mkdir(parents=True)
        (folder / f"ddbench_{name}" / "__init__.py").write_text(text)
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "ddbench-{name}"\nversion = "0.{len(name)}"\n'
            f'[project.entry-points.ddbench]\n{name} = "ddbench_{name}"\n'
        )
    build = "; ".join(
        ["import os", "from hatchling.build import build_wheel"]
        + [f"os.chdir({str(where / name)!r}); build_wheel({str(where)!r})" for name in PACKAGES]
    )
    subprocess.run([sys.executable, "-c", build], check=True, capture_output=True)
    for wheel in where.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(where / "site")
    return where / "site"


@pytest.fixture
def with_all(ddbench, site: Path):
    """`ddbench` where all the packages are installed."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return lambda *arguments, **environment: ddbench(*arguments, PYTHONPATH=path, **environment)


def test_culprits_are_named_and_the_others_work(with_all):
    found = with_all("plugins", "--json").json()
    broken = {b["name"]: f"{b['distribution']}: {b['error']}" for b in found["broken"]}
    assert broken == {
        "raises": "ddbench-raises 0.6: RuntimeError: no licence (ddbench_raises/__init__.py, line 1)",
        "lacks": "ddbench-lacks 0.5: ModuleNotFoundError: No module named 'a_library_nobody_has' (ddbench_lacks/__init__.py, line 1)",
        "misspelt": "ddbench-misspelt 0.8: there is no hook 'ddbench_metods'. Did you mean 'ddbench_methods'?",
    }
    seconds = {p["name"]: p["seconds"] for p in found["plugins"]}
    assert {"good", "older", "slow", "claims", "unrolled_gd", "random_subset"} <= set(seconds)
    assert seconds["slow"] >= 2.5
    told = with_all("doctor").out
    for name in (*broken, "slow"):
        assert f"plugin '{name}' (ddbench-{name} 0.{len(name)})" in told
    assert "Disable it with DDBENCH_DISABLE=slow." in " ".join(told.split())


def test_a_run_goes_on_beside_them_with_a_plugin_for_an_older_contract(with_all):
    run = with_all("run", "-m", "older", "--init", "older_init", "--network", "linear", "--smoke")
    assert run.code == 0, run.err
    assert "older saw the run start" in run.out
    for name in ("raises", "lacks", "misspelt", "slow"):
        assert f"Warning: plugin '{name}'" in run.err


def test_two_that_claim_a_name_are_both_named_and_one_can_be_left_out(with_all):
    run = with_all("run", "-m", "good", "--network", "linear", "--smoke")
    assert run.code == 4
    assert (
        "'good' is registered by both ddbench-claims 0.6 and ddbench-good 0.4. Uninstall or rename one of them"
        in run.message()
    )
    out = "claims, ddbench_slow,raises,lacks,misspelt"
    run = with_all("run", "-m", "good", "--network", "linear", "--smoke", DDBENCH_DISABLE=out)
    assert run.code == 0, run.err
    assert not [name for name in PACKAGES if f"Warning: plugin '{name}'" in run.err]
    gone = with_all("run", "-m", "slow", DDBENCH_DISABLE=out)
    assert gone.code == 2
    assert "DDBENCH_DISABLE disables: claims, lacks, misspelt, raises, slow." in gone.message()
    nobody = with_all("plugins", DDBENCH_DISABLE="slwo")
    assert "DDBENCH_DISABLE names 'slwo', but there is no such plugin." in nobody.out


def test_a_trace_prints_each_call_and_its_time(ddbench, tmp_path: Path):
    tracker = tmp_path / "tracker.py"
    tracker.write_text(
        "import ddbench\n\nclass Failing(ddbench.Observer):\n    def finished(self, result):\n        raise ValueError('gone')\n\n"
        "@ddbench.hookimpl\ndef ddbench_observe(plan):\n    return Failing()\n"
    )
    run = ddbench(
        "run", "-m", "random_subset", "--network", "linear", "--smoke", "--plugin", tracker, DDBENCH_TRACE="1"
    )
    lines = [line.split(maxsplit=3) for line in run.err.splitlines() if " s  " in line]
    calls = {(line[2], line[3]) for line in lines}
    assert ("unrolled_gd", "ddbench_methods") in calls
    assert {("tracker", "ddbench_observe"), ("tracker", "finished  raised ValueError: gone")} <= calls
    assert all(float(line[0]) >= 0 and line[1] == "s" for line in lines)

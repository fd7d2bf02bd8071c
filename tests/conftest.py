"""Fixtures: an isolated cache, the real data where it is there, and ddbench as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddbench.bench import Bench, complete, prepare
from ddbench.catalog import Catalog
from ddbench.spec import RunSpec

DDBENCH = Path(sys.executable).with_name("ddbench")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDBENCH_PLUGINS", raising=False)
    # Tiny networks run faster, and beside other tests steadier, on one thread.
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real datasets, or a skip."""
    root = os.environ.get("DDBENCH_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("needs DDBENCH_DATA with real MNIST, SVHN, CIFAR-10, USPS")
    return Path(root)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def make_bench(catalog: Catalog) -> Callable[..., Bench]:
    def make(**fields: object) -> Bench:
        spec, parts = complete(RunSpec.parse({"method": "random_subset", "network": "linear", **fields}), catalog)
        return prepare(spec, parts)

    return make


class Finished:
    """A `ddbench` process that has ended."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def json(self) -> dict:
        return json.loads(self.out)

    def told(self) -> str:
        """The error a person reads; fails on a traceback."""
        assert "Traceback" not in self.err, self.err
        return " ".join(self.err.split())


@pytest.fixture
def ddbench(tmp_path: Path) -> Callable[..., Finished]:
    """Run the console script in `tmp_path`, as a user does."""

    def run(*arguments: object, cwd: Path = tmp_path, **environment: str) -> Finished:
        done = subprocess.run(
            [DDBENCH, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        return Finished(done)

    return run

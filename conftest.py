"""Fixtures of all tests: a cache of the session, real data where there are any, and ddbench as a user starts it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import Prepared, prepare
from tests.forked import forecast, forked


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder that all tests and workers of the session share: companions and pools are computed once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ddbench-cache"


@pytest.fixture(autouse=True)
def _isolated(warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_CACHE", str(warm_cache))
    monkeypatch.delenv("DDBENCH_PLUGINS", raising=False)
    # The companion full_data depends on the size of the network, not on the load of the machine.
    monkeypatch.setattr("ddbench.pipeline.pools.forecast", forecast)
    # Tiny networks run faster, and beside other tests steadier, on one thread.
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def cold_cache(_isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own, for tests of the cache and of what they compute."""
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Turn off the shape checks that pytest adds, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
def make_prepared(catalog: Catalog) -> Callable[..., Prepared]:
    def make(**fields: object) -> Prepared:
        plan = plan_run(RunSpec.parse({"method": "random_subset", "network": "linear", **fields}), catalog)
        return prepare(plan, catalog)

    return make


class Finished:
    """A `ddbench` process that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> dict:
        return json.loads(self.out)

    def message(self) -> str:
        """Return the error that a person reads, on one line; fail on a traceback."""
        assert "Traceback" not in self.err, self.err
        return " ".join(self.err.split())


@pytest.fixture
def ddbench(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """Run a command line in `tmp_path`, in a forked process; `file_limit` stands in for a full disk."""
    streams = tmp_path_factory.mktemp("streams")
    out, err = streams / "out", streams / "err"

    def run(*arguments: object, cwd: Path = tmp_path, file_limit: int | None = None, **environment: str) -> Finished:
        words, env = list(map(str, arguments)), {**os.environ, "COLUMNS": "200", **environment}
        code = forked(words, cwd, env, out, err, file_limit)
        return Finished(code, out.read_text(), err.read_text())

    return run

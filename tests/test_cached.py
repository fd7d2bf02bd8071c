"""`run.cached`: one computation for all runs, whatever happens in between."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from ddbench.contract.run import Run
from ddbench.errors import DdbenchError, Interrupted, PluginError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "methods"


def a_run(folder: Path, **options: object) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, **options)
    run.said = []
    run.say = run.said.append
    run._cache._say = run.said.append
    return run


def files_of(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_what_one_run_computed_the_next_one_reads(cache: Path, tmp_path: Path):
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        time.sleep(0.05)
        grid = torch.arange(12).reshape(3, 4)
        return {"across": grid.T, "part": grid[1], "flags": grid > 3, "half": grid.half()}

    first, second = a_run(tmp_path / "1"), a_run(tmp_path / "2")
    key = {"version": 1, "options": [0.1, "x"]}
    computed, read = first.cached("grids", key, make), second.cached("grids", key, make)
    assert len(made) == 1
    for name, tensor in computed.items():
        assert torch.equal(tensor, read[name]) and tensor.dtype == read[name].dtype
    assert first.seconds_saved == 0 and 0.05 <= second.seconds_saved < 1
    assert first.said == [] and second.said[0].startswith("Cache    grids comes from an earlier run, which took")
    second.cached("grids", key, make)
    assert second.seconds_saved < 0.1 and len(second.said) == 1
    second.cached("grids", {**key, "version": 2}, make)
    second.cached("others", key, make)
    assert len(made) == 3 and len(files_of(cache)) == 3


def test_random_numbers_follow_from_the_key_and_leave_no_trace(cache: Path, tmp_path: Path):
    def draw(run: Run, key: str) -> list[float]:
        torch.manual_seed(run.seed)
        result = run.cached("noise", key, lambda: {"x": torch.rand(1) + torch.rand(1, generator=run.generator)})
        return [result["x"].item(), torch.rand(1).item(), torch.rand(1, generator=run.generator).item()]

    computed = draw(a_run(tmp_path / "1", seed=5), "a")
    assert draw(a_run(tmp_path / "2", seed=5), "a") == computed
    other_seed = draw(a_run(tmp_path / "3", seed=6), "a")
    assert other_seed[0] == computed[0] and other_seed[1:] != computed[1:]
    for file in files_of(cache):
        file.unlink()
    assert draw(a_run(tmp_path / "4", seed=6), "a") == other_seed
    assert draw(a_run(tmp_path / "5", seed=5), "b")[0] != computed[0]


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_file_is_computed_again(cache: Path, tmp_path: Path, damage: bytes | None):
    a_run(tmp_path / "1").cached("ones", "k", lambda: {"x": torch.ones(3)})
    [file] = files_of(cache)
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    run = a_run(tmp_path / "2")
    assert run.cached("ones", "k", lambda: {"x": torch.ones(3)})["x"].sum() == 3
    assert len(run.said) == 1 and "computed again" in run.said[0] and run.seconds_saved == 0
    assert a_run(tmp_path / "3").cached("ones", "k", dict)["x"].sum() == 3


def test_a_cache_that_cannot_be_written_costs_time_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "file"))
    run = a_run(tmp_path / "run")
    assert run.cached("ones", "k", lambda: {"x": torch.ones(3)})["x"].sum() == 3
    assert "is not kept for later runs" in run.said[0]


@pytest.mark.parametrize(
    ("name", "key", "result", "problem"),
    [
        ("../up", "k", {}, "cannot name a cached result"),
        ("x", object(), {}, "cannot be hashed"),
        ("x", torch.zeros(2), {}, "cannot be hashed"),
        ("x", "k", torch.zeros(2), "is Tensor, not tensors by name"),
        ("x", "k", {"a": 3}, "not tensors by name"),
    ],
)
def test_authors_learn_what_is_wrong(cache: Path, tmp_path: Path, name, key, result, problem: str):
    with pytest.raises(PluginError, match=problem):
        a_run(tmp_path / "run").cached(name, key, lambda: result)
    assert files_of(cache) == []


def two_halves(run: Run, stop: str = "") -> torch.Tensor:
    """A method whose first half, a loop, is cached; `stop` interrupts it in one of the halves."""

    def first_half() -> dict[str, torch.Tensor]:
        x = torch.zeros(1)
        for step in run.loop(6, dict(x=x)):
            x += torch.rand(1, generator=run.generator) + torch.rand(1)
            time.sleep(0.01)
            if stop == "first" and step == 3:
                signal.raise_signal(signal.SIGINT)
        return {"x": x}

    x, y = run.cached("half", ["v1"], first_half)["x"], torch.zeros(1)
    for step in run.loop(5, dict(y=y)):
        y += x * torch.rand(1, generator=run.generator)
        if stop == "second" and step == 2:
            signal.raise_signal(signal.SIGINT)
    return y


@pytest.mark.parametrize("stop", ["first", "second"])
@pytest.mark.parametrize("meanwhile", ["nothing", "computed by another run", "removed"])
def test_a_run_resumes_whatever_became_of_the_cache(cache: Path, tmp_path: Path, stop: str, meanwhile: str):
    torch.manual_seed(1)
    whole = two_halves(a_run(tmp_path / "whole"))
    if meanwhile != "computed by another run":
        for file in files_of(cache):
            file.unlink()
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        two_halves(a_run(tmp_path / "run"), stop if meanwhile != "computed by another run" else "second")
    if meanwhile == "removed":
        for file in files_of(cache):
            file.unlink()
    again = a_run(tmp_path / "run")
    assert torch.equal(two_halves(again), whole)
    own = meanwhile != "computed by another run"
    assert (again.seconds_saved == 0) == own


def test_an_interrupted_computation_is_kept_with_all_its_seconds(cache: Path, tmp_path: Path):
    with pytest.raises(Interrupted):
        two_halves(a_run(tmp_path / "run"), "first")
    time.sleep(0.3)
    two_halves(a_run(tmp_path / "run"))
    reader = a_run(tmp_path / "reader")
    two_halves(reader)
    # Six steps of 0.01 s, before and after the interruption, without the pause.
    assert 0.06 <= reader.seconds_saved < 0.3


@pytest.mark.parametrize("limits", [{"time_limit": 0.03}, {"most_steps": 3}])
def test_a_result_that_was_cut_short_is_not_kept(cache: Path, tmp_path: Path, limits: dict):
    two_halves(a_run(tmp_path / "run", **limits))
    assert files_of(cache) == []
    two_halves(a_run(tmp_path / "run", **limits))
    assert files_of(cache) == []


def test_an_exception_keeps_nothing_and_frees_the_lock(cache: Path, tmp_path: Path):
    def fail() -> dict[str, torch.Tensor]:
        raise DdbenchError("diverged.")

    with pytest.raises(DdbenchError, match="diverged"):
        a_run(tmp_path / "1").cached("half", "k", fail)
    assert a_run(tmp_path / "2").cached("half", "k", lambda: {"x": torch.ones(1)})["x"] == 1


def _compute_slowly(folder: Path, started) -> None:
    folder.mkdir()

    def make() -> dict[str, torch.Tensor]:
        started.set()
        time.sleep(0.5)
        return {"maker": torch.tensor(os.getpid())}

    Run(folder).cached("slow", "k", make)


@pytest.mark.slow
def test_another_process_waits_for_the_first(cache: Path, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_compute_slowly, args=(tmp_path / "other", started))
    process.start()
    assert started.wait(60)
    run = a_run(tmp_path / "run")
    result = run.cached("slow", "k", lambda: {"maker": torch.tensor(os.getpid())})
    process.join()
    assert result["maker"] == process.pid
    assert run.said[0] == "Cache    another process computes slow; waiting for it."

import json
from pathlib import Path

import pytest
import torch

import ddbench
from ddbench.contract.observer import Silent
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted, PluginError, UsageError
from ddbench.pipeline import runner
from ddbench.pipeline.evaluate import evaluate
from ddbench.records.result import RunFolder
from ddbench.records.store import artifact_path, read

METHODS = '''
"""Methods that end in every way a method can."""
import torch
import ddbench
from ddbench import DistilledSet, Unsupported

def chosen(task, run):
    return task.train.random_subset(task.budget.images_per_class, run.generator)

@ddbench.method
def nan_images(task, run):
    """NaN."""
    subset = chosen(task, run)
    return DistilledSet(subset.inputs[None] * torch.nan, subset.labels[None])

@ddbench.method
def greedy(task, run):
    """More images than asked for."""
    subset = task.train.random_subset(task.budget.images_per_class + 1, run.generator)
    return DistilledSet(subset.inputs[None], subset.labels[None])

@ddbench.method
def raises(task, run):
    """Raises."""
    raise ZeroDivisionError("on purpose")

@ddbench.method
def nothing(task, run):
    """Returns nothing."""

@ddbench.method
def picky(task, run):
    """Cannot serve this task."""
    raise Unsupported("needs at least three channels")

@ddbench.method
def slow(task, run, *, stop_at: int = -1):
    """Averages real images over a loop; can interrupt itself."""
    import signal
    from pathlib import Path
    images = torch.zeros(10, *task.info.sample_shape)
    for step in run.loop(30, dict(images=images)):
        if step == stop_at and not (run.checkpoint_path.parent / "resumed").exists():
            (run.checkpoint_path.parent / "resumed").touch()
            signal.raise_signal(signal.SIGINT)
        images += task.train.random_subset(1, run.generator).inputs / 30 + 0.01 * torch.rand(1)
        run.log(mean=images.mean())
    return DistilledSet(images[None], torch.arange(10)[None])

@ddbench.method
def spoils(task, run, *, board: str = ""):
    """Somebody else writes the leaderboard meanwhile."""
    from pathlib import Path
    Path(board).parent.mkdir(exist_ok=True)
    Path(board).write_text("method,accuracy\\nmine,99.9\\n")
    subset = chosen(task, run)
    return DistilledSet(subset.inputs[None], subset.labels[None])

@ddbench.hookimpl
def ddbench_methods():
    return [spoils, nan_images, greedy, raises, nothing, picky, slow]
'''


@pytest.fixture
def methods(tmp_path: Path) -> Catalog:
    (tmp_path / "methods.py").write_text(METHODS)
    catalog = Catalog([tmp_path / "methods.py"])
    assert catalog.broken == []
    return catalog


class Hearing(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def start(tmp_path: Path, catalog: Catalog | None = None, **fields: object):
    reporter = Hearing()
    spec = {"method": "unrolled_gd", "network": "linear", "eval_networks": 3, **fields}
    result = ddbench.run(
        spec, catalog=catalog, runs=tmp_path / "runs", leaderboards=tmp_path / "boards", reporter=reporter
    )
    return result, reporter.lines


UNROLLED = {"method": {"name": "unrolled_gd", "options": {"outer_steps": 25, "networks": 2, "real_batch": 64}}}


@pytest.mark.slow
def test_a_run_leaves_its_evidence(tmp_path: Path):
    result, lines = start(tmp_path, **UNROLLED)
    assert result.status == "ok"
    assert result.score.n == 3
    assert result.score.mean == pytest.approx(sum(result.score.values) / 3)
    assert result.companions["random_subset"].n == 3
    folder = RunFolder(Path(result.run_dir))
    assert folder.read_spec().fingerprint == result.fingerprint == result.settings.fingerprint
    assert folder.read_result() == result
    assert len(folder.log.read_text().splitlines()) == 25
    assert result.asked.model_fields_set == {"network", "eval_networks", "method"}
    [record] = read(tmp_path / "boards")
    assert record.asked == result.asked
    assert record.score == result.score
    assert record.loop.steps == 25
    assert record.companions["random_subset"].mean == result.companions["random_subset"].mean
    kept = artifact_path(tmp_path / "boards", record.artifact.sha256)
    assert kept.read_bytes() == folder.artifact.read_bytes()
    assert any(
        "digits: 1295 training, 142 validation, 360 test images; the full data, verified" in line for line in lines
    )
    distilled = DistilledSet.load(folder.artifact)
    assert json.loads(distilled.metadata["classes"]) == list("0123456789")
    assert distilled.lrs.shape == (3, 1)
    assert (distilled.lrs > 0).all()


@pytest.mark.slow
def test_the_same_spec_gives_the_same_bytes_and_no_second_row(tmp_path: Path):
    """On two threads, and whatever was drawn before."""
    torch.set_num_threads(2)
    first, _ = start(tmp_path, **UNROLLED)
    torch.rand(7)
    second, lines = start(tmp_path, **UNROLLED)
    assert second.artifact.sha256 == first.artifact.sha256
    assert second.score == first.score
    assert second.run_dir == first.run_dir + "-2"
    assert any("No second record" in line and "Reproduced exactly" in line for line in lines)
    assert len(read(tmp_path / "boards")) == 1
    other, _ = start(tmp_path, **UNROLLED, seed=1)
    assert other.artifact.sha256 != first.artifact.sha256
    assert len(read(tmp_path / "boards")) == 2


def test_scoring_an_artefact_again_gives_its_score(tmp_path: Path):
    result, _ = start(tmp_path, **UNROLLED)
    prepared, scores = evaluate(DistilledSet.load(result.artifact.path), result.settings.asked())
    assert scores.after["accuracy"] == result.score
    assert scores.companions == result.companions
    assert prepared.record == result.dataset


def test_companions_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = start(tmp_path, **UNROLLED)

    def not_again(*arguments):
        raise AssertionError("computed twice")

    monkeypatch.setattr("ddbench.pipeline.baselines._score", not_again)
    second, _ = start(tmp_path, **UNROLLED, seed=1)
    assert second.companions == first.companions


def test_a_companion_has_none_of_itself(tmp_path: Path):
    result, _ = start(tmp_path, method="random_subset")
    assert list(result.companions) == ["full_data"]
    assert result.protocol.selected.startswith("rate ")


@pytest.mark.parametrize(
    ("method", "error", "told"),
    [
        ("nan_images", PluginError, "the method returned inputs with NaN or infinite values"),
        ("greedy", PluginError, "20 images where the budget is 1 for each of 10 classes"),
        ("raises", PluginError, r"method 'raises' \(.*methods.py@.*\) raised ZeroDivisionError: on purpose"),
        ("nothing", PluginError, "returned NoneType, not a DistilledSet"),
    ],
)
def test_methods_that_fail_leave_a_result_and_no_row(tmp_path: Path, methods: Catalog, method, error, told):
    with pytest.raises(error, match=told):
        start(tmp_path, methods, method=method)
    [folder] = (tmp_path / "runs").iterdir()
    result = RunFolder(folder).read_result()
    assert result.status == "failed"
    assert result.reason
    assert not (tmp_path / "boards").exists()


def test_a_method_may_decline(tmp_path: Path, methods: Catalog):
    result, _ = start(tmp_path, methods, method="picky")
    assert (result.status, result.reason) == ("skipped", "needs at least three channels")
    assert not (tmp_path / "boards").exists()


def test_interrupted_and_resumed_ends_in_the_same_row(tmp_path: Path, methods: Catalog):
    spec = {"method": {"name": "slow", "options": {"stop_at": 12}}}
    with pytest.raises(Interrupted, match="after outer step 13 of 30") as error:
        start(tmp_path, methods, **spec)
    [folder] = (tmp_path / "runs").iterdir()
    assert f"ddbench resume {folder}" in error.value.hint
    assert RunFolder(folder).read_result().status == "interrupted"
    resumed = runner.resume(folder, catalog=methods, leaderboards=tmp_path / "boards")

    fresh = tmp_path / "fresh"
    (fresh / "runs" / folder.name).mkdir(parents=True)
    (fresh / "runs" / folder.name / "resumed").touch()
    RunFolder(fresh / "runs" / folder.name).write_spec(resumed.settings)
    whole = runner.resume(fresh / "runs" / folder.name, catalog=methods, leaderboards=fresh / "boards")
    assert resumed.artifact.sha256 == whole.artifact.sha256
    assert resumed.score == whole.score
    [record] = read(tmp_path / "boards")
    assert record.score == whole.score
    # A run that has ended is not run again.
    assert runner.resume(folder, catalog=methods, leaderboards=tmp_path / "boards") == resumed


def test_a_result_that_cannot_be_read_is_never_overwritten(tmp_path: Path, methods: Catalog):
    with pytest.raises(Interrupted):
        start(tmp_path, methods, method={"name": "slow", "options": {"stop_at": 12}})
    [folder] = (tmp_path / "runs").iterdir()
    RunFolder(folder).result.write_text('{"version": 9, "status": "ok"}')
    with pytest.raises(UsageError, match="of version 9, newer than this ddbench"):
        runner.resume(folder, catalog=methods, leaderboards=tmp_path / "boards")
    # Nor does it prevent another run of the same spec.
    with pytest.raises(Interrupted):
        start(tmp_path, methods, method={"name": "slow", "options": {"stop_at": 12}})
    assert RunFolder(folder).result.read_text() == '{"version": 9, "status": "ok"}'


def test_a_leaderboard_spoilt_during_the_run_does_not_lose_it(tmp_path: Path, methods: Catalog):
    board = tmp_path / "boards" / "classification.csv"
    with pytest.raises(DdbenchError, match="its header is not ddbench's"):
        start(tmp_path, methods, method={"name": "spoils", "options": {"board": str(board)}})
    assert board.read_text() == "method,accuracy\nmine,99.9\n"
    [folder] = (tmp_path / "runs").iterdir()
    assert RunFolder(folder).artifact.exists()
    with pytest.raises(DdbenchError, match="its header is not ddbench's"):
        start(tmp_path, methods)


def test_smoke_runs_leave_no_row(tmp_path: Path):
    result, lines = start(tmp_path, smoke=True)
    assert result.status == "ok"
    assert result.loop.steps == 3
    assert "A smoke run leaves no record." in lines
    assert not (tmp_path / "boards").exists()


def test_a_time_limit_is_told_in_the_row(tmp_path: Path):
    slow = {"method": {"name": "unrolled_gd", "options": {"outer_steps": 100_000, "networks": 1, "real_batch": 16}}}
    result, _ = start(tmp_path, **slow, time_limit="0.3s")
    assert result.loop.stopped_by == "time limit"
    assert 0 < result.loop.steps < 10_000


def test_a_run_folder_of_something_else(tmp_path: Path):
    with pytest.raises(DdbenchError, match="is not a run folder"):
        runner.resume(tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(DdbenchError, match="damaged"):
        runner.resume(tmp_path)


def test_unfinished_runs_are_pointed_out(tmp_path: Path, methods: Catalog):
    spec = {"method": {"name": "slow", "options": {"stop_at": 3}}}
    with pytest.raises(Interrupted):
        start(tmp_path, methods, **spec)
    [folder] = (tmp_path / "runs").iterdir()
    reporter = Hearing()
    with pytest.raises(Interrupted):
        ddbench.run(
            {"network": "linear", "eval_networks": 3, **spec},
            catalog=methods, runs=tmp_path / "runs", leaderboards=tmp_path / "boards", reporter=reporter,
        )  # fmt: skip
    assert f"An unfinished run of this spec is in {folder}: ddbench resume {folder}" in reporter.lines
    assert len(list((tmp_path / "runs").iterdir())) == 2

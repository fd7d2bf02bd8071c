import json
import signal
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

import ddbench
from ddbench.contract.observer import Silent

pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = {
    "method": {"name": "unrolled_gd", "options": {"outer_steps": 6}},
    "network": "linear",
    "eval_networks": 2,
}


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def tracked(tracker: str, where: Path, **fields: object) -> tuple[ddbench.RunResult, list[str]]:
    said = Said()
    catalog = ddbench.Catalog([Path(f"ddbench_trackers.{tracker}")])
    assert catalog.broken == []
    spec = {**SPEC, **fields}
    result = ddbench.run(spec, catalog=catalog, runs=where / "runs", leaderboards=where / "leaderboards", reporter=said)
    assert not [line for line in said.lines if "is disabled" in line]
    return result, said.lines


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


def test_tensorboard_has_curves_scores_settings_and_images(tmp_path: Path):
    result, _ = tracked("tensorboard", tmp_path)
    read = events(Path(result.run_dir))
    logged = [json.loads(line) for line in (Path(result.run_dir) / "log.jsonl").read_text().splitlines()]
    curve = [(e.step, e.value) for e in read.Scalars("distil/loss")]
    assert curve == [(line["step"] + 1, pytest.approx(line["loss"])) for line in logged]
    [score] = read.Scalars("score/accuracy")
    assert score.value == pytest.approx(result.score.mean)
    assert read.Scalars("companion/random_subset")[0].value == pytest.approx(result.companions["random_subset"].mean)
    [grid] = read.Images("distilled")
    assert (grid.height, grid.width) == (2 * 8, 8 * 8)
    assert b"| method.outer_steps | 6 |" in read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_of_a_resumed_run_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ddbench.contract.run import Run
    from ddbench.pipeline import runner

    def stop(self: Run, **values: object) -> None:
        logged(self, **values)
        steps.append(len(steps))
        if len(steps) == 3:
            # Ctrl-C waits for the end of the step and keeps a checkpoint there.
            signal.raise_signal(signal.SIGINT)

    steps: list[int] = []
    logged = Run.log
    monkeypatch.setattr(Run, "log", stop)
    catalog = ddbench.Catalog([Path("ddbench_trackers.tensorboard")])
    places = {"leaderboards": tmp_path / "leaderboards", "catalog": catalog}
    with pytest.raises(ddbench.DdbenchError, match="interrupted"):
        ddbench.run(SPEC, runs=tmp_path / "runs", **places)
    [folder] = (tmp_path / "runs").iterdir()
    result = runner.resume(folder, **places)
    assert result.status == "ok"
    assert [e.step for e in events(folder).Scalars("distil/loss")] == list(range(1, 7))
    # Resumed where nothing is left to distil, it keeps what there is.
    (folder / "result.json").unlink()
    assert runner.resume(folder, **places).status == "ok"
    assert [e.step for e in events(folder).Scalars("distil/loss")] == list(range(1, 7))


@pytest.mark.slow
def test_mlflow_has_settings_curves_scores_and_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'tracked.db'}")
    result, _ = tracked("mlflow", tmp_path)
    number = (Path(result.run_dir) / "mlflow_run_id").read_text()
    with sqlite3.connect(tmp_path / "tracked.db") as database:
        stored = dict(database.execute("select key, value from params where run_uuid = ?", (number,)))
        curve = database.execute("select step from metrics where key = 'distil/loss' order by step").fetchall()
        scores = dict(database.execute("select key, value from metrics where key like 'score/%'"))
        [(status,)] = database.execute("select status from runs").fetchall()
    assert stored["method"] == "unrolled_gd"
    assert stored["method.outer_steps"] == "6"
    assert [step for (step,) in curve] == list(range(1, 7))
    assert scores["score/accuracy"] == pytest.approx(result.score.mean)
    assert status == "FINISHED"
    kept = mlflow.artifacts.download_artifacts(run_id=number, artifact_path="distilled.safetensors")
    assert Path(kept).read_bytes() == Path(result.artifact.path).read_bytes()


@pytest.mark.slow
def test_wandb_offline_keeps_the_run_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result, _ = tracked("wandb", tmp_path)
    number = (Path(result.run_dir) / "wandb_run_id").read_text()
    [kept] = Path(result.run_dir).glob(f"wandb/offline-run-*/run-{number}.wandb")
    raw = kept.read_bytes()
    assert all(text in raw for text in (b"distil/loss", b"score/accuracy", b"method.outer_steps"))
    pictures = sorted(kept.parent.glob("files/media/images/*.png"))
    wanted = (ddbench.DistilledSet.load(result.artifact.path).pixels() * 255).byte().flatten(1).tolist()
    assert sorted(list(Image.open(path).convert("L").getdata()) for path in pictures) == sorted(wanted)


@pytest.mark.slow
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    said = Said()
    result = ddbench.run(
        SPEC,
        catalog=ddbench.Catalog([Path("ddbench_trackers.mlflow")]),
        runs=tmp_path / "runs",
        leaderboards=tmp_path / "leaderboards",
        reporter=said,
    )
    assert result.status == "ok"
    [line] = [line for line in said.lines if "is disabled" in line]
    assert "'ddbench_trackers.mlflow'" in line

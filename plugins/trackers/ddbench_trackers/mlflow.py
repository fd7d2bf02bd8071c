"""MLflow: a run with its settings, curves, scores and files, where `MLFLOW_TRACKING_URI` says, or in `./mlflow.db`.

The MLflow run's number is kept in the run's folder, so that a run that is resumed goes on in the same one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ddbench
from ddbench import MissingPrerequisite, RunResult, RunSpec
from ddbench_trackers.summary import figures, settings

try:
    import mlflow
except ImportError as error:
    raise MissingPrerequisite("MLflow is not installed.", "pip install 'ddbench[mlflow]'") from error

NUMBER = "mlflow_run_id"
LONGEST = 500
"""Characters of a setting that every MLflow server takes."""
_writing: list[Any] = []
"""What is still on its way to the server."""


@ddbench.hookimpl
def ddbench_run_started(spec: RunSpec, run_dir: str) -> None:
    _writing.clear()
    number = Path(run_dir) / NUMBER
    mlflow.set_experiment(spec.experiment or "ddbench")
    if number.exists():
        mlflow.start_run(run_id=number.read_text())
        return
    number.write_text(mlflow.start_run(run_name=Path(run_dir).name).info.run_id)
    mlflow.log_params({name: value[:LONGEST] for name, value in settings(spec).items()})


@ddbench.hookimpl
def ddbench_run_progress(step: int, values: Mapping[str, float]) -> None:
    # A database takes longer over a step's figures than the step may take: they are written behind its back.
    named = {f"distil/{name}": value for name, value in values.items()}
    _writing.append(mlflow.log_metrics(named, step=step, synchronous=False))


@ddbench.hookimpl
def ddbench_run_finished(result: RunResult) -> None:
    try:
        for written in _writing:
            # What failed behind the run's back is raised here.
            written.wait()
        mlflow.log_metrics(figures(result), step=result.steps_done)
        if result.artifact is not None:
            mlflow.log_artifact(result.artifact.path)
    finally:
        mlflow.end_run({"ok": "FINISHED", "skipped": "FINISHED", "interrupted": "KILLED"}.get(result.status, "FAILED"))

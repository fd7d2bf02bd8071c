"""MLflow: a run with its settings, curves, scores and files, at `MLFLOW_TRACKING_URI`, or in `./mlflow.db`.

The number of the MLflow run is kept in the folder of the run, so that a resumed run continues the same record.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ddbench
from ddbench import MissingPrerequisite, Plan, RunResult
from ddbench_trackers.summary import figures, settings

try:
    import mlflow
except ImportError as error:
    raise MissingPrerequisite("MLflow is not installed.", "pip install 'ddbench[mlflow]'") from error

NUMBER = "mlflow_run_id"
LONGEST = 500
"""Maximum number of characters of a setting that every MLflow server accepts."""
STATUS = {"ok": "FINISHED", "skipped": "FINISHED", "interrupted": "KILLED"}


class MLflow(ddbench.Observer):
    """One run of MLflow."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._writes: list[Any] = []
        number = folder / NUMBER
        mlflow.set_experiment(plan.settings.experiment or "ddbench")
        if number.exists():
            self._number = number.read_text()
            mlflow.start_run(run_id=self._number)
            return
        self._number = mlflow.start_run(run_name=folder.name).info.run_id
        number.write_text(self._number)
        mlflow.log_params({name: value[:LONGEST] for name, value in settings(plan.settings).items()})

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Log a point of each curve, in the background: a database can take longer than a step."""
        points = {f"distil/{name}": value for name, value in values.items()}
        self._writes.append(mlflow.log_metrics(points, step=step, synchronous=False, run_id=self._number))

    def finished(self, result: RunResult) -> None:
        """Log figures and the distilled set, and end the MLflow run. Raises what failed in the background."""
        try:
            for write in self._writes:
                write.wait()
            mlflow.log_metrics(figures(result), step=result.loop.steps, run_id=self._number)
            if result.artifact is not None:
                mlflow.log_artifact(result.artifact.path, run_id=self._number)
        finally:
            mlflow.end_run(STATUS.get(result.status, "FAILED"))


@ddbench.hookimpl
def ddbench_observe(plan: Plan, folder: Path) -> MLflow:
    return MLflow(plan, folder)

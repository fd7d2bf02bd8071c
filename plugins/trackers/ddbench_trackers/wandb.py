"""Weights & Biases: a run with its settings, curves, scores and images; `WANDB_MODE=offline` keeps them local.

The number of the run there is kept in the folder of the run, so that a resumed run continues the same record.
"""

from collections.abc import Mapping
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

import ddbench
from ddbench import MissingPrerequisite, Plan, RunResult
from ddbench_trackers.summary import distilled, figures, settings

try:
    import wandb
except ImportError as error:
    raise MissingPrerequisite("Weights & Biases is not installed.", "pip install 'ddbench[wandb]'") from error

NUMBER = "wandb_run_id"


class WeightsAndBiases(ddbench.Observer):
    """One run of Weights & Biases."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        number = folder / NUMBER
        earlier = number.read_text() if number.exists() else None
        name, config = folder.resolve().name, settings(plan.settings)
        self._run = wandb.init(project="ddbench", id=earlier, name=name, config=config, dir=str(folder), resume="allow")
        number.write_text(self._run.id)
        # The steps of W&B must rise, but a run that rolls back from NaN repeats steps.
        self._run.define_metric("distil/*", step_metric="outer_step")

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Log a point of each curve."""
        self._run.log({"outer_step": step, **{f"distil/{name}": value for name, value in values.items()}})

    def finished(self, result: RunResult) -> None:
        """Log figures and images, and end the run of W&B."""
        self._run.summary.update(figures(result))
        examples = distilled(result)
        if examples is not None:
            # Pictures, because versions of W&B scale arrays of numbers differently.
            self._run.log({"distilled": [wandb.Image(to_pil_image(image)) for image in examples.pixels()]})
        self._run.finish(exit_code=0 if result.status in ("ok", "skipped") else 1)


@ddbench.hookimpl
def ddbench_observe(plan: Plan, folder: Path) -> WeightsAndBiases:
    return WeightsAndBiases(plan, folder)

"""Weights & Biases: a run with its settings, curves, scores and images; `WANDB_MODE=offline` keeps them here alone.

Its number there is kept in the run's folder, so that a run that is resumed goes on in the same one.
"""

from collections.abc import Mapping
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

import ddbench
from ddbench import MissingPrerequisite, RunResult, RunSpec
from ddbench_trackers.summary import distilled, figures, settings

try:
    import wandb
except ImportError as error:
    raise MissingPrerequisite("Weights & Biases is not installed.", "pip install 'ddbench[wandb]'") from error

NUMBER = "wandb_run_id"


@ddbench.hookimpl
def ddbench_run_started(spec: RunSpec, run_dir: str) -> None:
    number, name = Path(run_dir) / NUMBER, Path(run_dir).resolve().name
    earlier = number.read_text() if number.exists() else None
    run = wandb.init(project="ddbench", id=earlier, name=name, config=settings(spec), dir=run_dir, resume="allow")
    number.write_text(run.id)
    # Steps of its own would have to rise, and fall back where a run rolls back from NaN.
    run.define_metric("distil/*", step_metric="outer_step")


@ddbench.hookimpl
def ddbench_run_progress(step: int, values: Mapping[str, float]) -> None:
    wandb.log({"outer_step": step, **{f"distil/{name}": value for name, value in values.items()}})


@ddbench.hookimpl
def ddbench_run_finished(result: RunResult) -> None:
    if wandb.run is None:
        return
    wandb.run.summary.update(figures(result))
    made = distilled(result)
    if made is not None:
        # As pictures: arrays of numbers are scaled in ways that differ between versions.
        pictures = [wandb.Image(to_pil_image(image)) for image in made.pixels()]
        wandb.log({"distilled": pictures})
    wandb.finish(exit_code=0 if result.status in ("ok", "skipped") else 1)

"""TensorBoard: `tensorboard --logdir runs` shows the curves, scores and images of every run in the folder.

The events of a run lie in its own folder. Steps that a run takes again, after it was killed or rolled back, stand there
twice.
"""

from collections.abc import Mapping
from pathlib import Path

import ddbench
from ddbench import MissingPrerequisite, RunResult
from ddbench_trackers.summary import distilled, figures, settings

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise MissingPrerequisite("TensorBoard is not installed.", "pip install 'ddbench[tensorboard]'") from error


class _Now:
    """The run that is going on."""

    writer: SummaryWriter | None = None


@ddbench.hookimpl
def ddbench_run_started(run_dir: str) -> None:
    _Now.writer = SummaryWriter(Path(run_dir) / "tensorboard")


@ddbench.hookimpl
def ddbench_run_progress(step: int, values: Mapping[str, float]) -> None:
    assert _Now.writer is not None
    for name, value in values.items():
        _Now.writer.add_scalar(f"distil/{name}", value, step)


@ddbench.hookimpl
def ddbench_run_finished(result: RunResult) -> None:
    assert _Now.writer is not None
    writer, step = _Now.writer, result.steps_done
    lines = [f"| {name} | {value} |" for name, value in settings(result.spec).items()]
    writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), step)
    for name, value in figures(result).items():
        writer.add_scalar(name, value, step)
    made = distilled(result)
    if made is not None:
        writer.add_images("distilled", made.pixels(), step)
    writer.close()
    _Now.writer = None

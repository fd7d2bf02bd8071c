"""TensorBoard: `tensorboard --logdir runs` shows the curves, scores and images of every run in the folder.

The events of a run lie in its own folder. A run that is resumed goes on where it was: what the tracker had written of
later steps is dropped.
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

    folder = Path()
    writer: SummaryWriter | None = None


def _writer(step: int) -> SummaryWriter:
    """The run's writer, opened at the first step that it is told of."""
    if _Now.writer is None:
        _Now.writer = SummaryWriter(_Now.folder / "tensorboard", purge_step=step)
    return _Now.writer


@ddbench.hookimpl
def ddbench_run_started(run_dir: str) -> None:
    _Now.folder, _Now.writer = Path(run_dir), None


@ddbench.hookimpl
def ddbench_run_progress(step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        _writer(step).add_scalar(f"distil/{name}", value, step)


@ddbench.hookimpl
def ddbench_run_finished(result: RunResult) -> None:
    writer, step = _writer(result.steps_done), result.steps_done
    lines = [f"| {name} | {value} |" for name, value in settings(result.spec).items()]
    writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), step)
    for name, value in figures(result).items():
        writer.add_scalar(name, value, step)
    made = distilled(result)
    if made is not None:
        writer.add_images("distilled", made.pixels(), step)
    writer.close()
    _Now.writer = None

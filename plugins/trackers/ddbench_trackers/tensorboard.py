"""TensorBoard: `tensorboard --logdir runs` shows the curves, scores and images of every run in the folder.

The events of a run are in the folder of the run. A step that a run takes again, after it was killed or rolled back, is
there twice.
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


class TensorBoard(ddbench.Observer):
    """A writer of one run."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(folder / "tensorboard")

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Write a point of each curve."""
        for name, value in values.items():
            self.writer.add_scalar(f"distil/{name}", value, step)

    def finished(self, result: RunResult) -> None:
        """Write settings, figures and images, and close."""
        step = result.loop.steps
        lines = [f"| {name} | {value} |" for name, value in settings(result.settings).items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), step)
        for name, value in figures(result).items():
            self.writer.add_scalar(name, value, step)
        examples = distilled(result)
        if examples is not None:
            self.writer.add_images("distilled", examples.pixels(), step)
        self.writer.close()


@ddbench.hookimpl
def ddbench_observe(folder: Path) -> TensorBoard:
    return TensorBoard(folder)

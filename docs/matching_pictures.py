"""The picture of the matching family: the same ten classes by each method that has a committed record."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddbench import DistilledSet
from ddbench.records.result import RunResult
from ddbench.records.store import read

METHODS = ("dc", "dsa", "idc", "dm", "mtt", "tesla", "datm")
DATASETS = ("mnist", "cifar10")


def draw(leaderboards: Path, folder: Path) -> None:
    """Write `matching-DATASET.png` for each dataset that has records of one image per class."""
    records = read(leaderboards) if leaderboards.is_dir() else []
    for dataset in DATASETS:
        chosen = [_chosen(records, method, dataset) for method in METHODS]
        _draw([record for record in chosen if record], leaderboards, folder / f"matching-{dataset}.png")


def _chosen(records: list[RunResult], method: str, dataset: str) -> RunResult | None:
    """Return the record of a method at one image per class with the widest network; of several, the latest."""
    candidates = [
        record
        for record in records
        if record.settings.method.name == method
        and record.settings.dataset.name.partition("@")[0] == dataset
        and record.settings.images_per_class == 1
        and record.score
        and record.artifact
    ]
    return max(candidates, key=lambda record: (_width(record), record.created), default=None)


def _width(record: RunResult) -> int:
    return int(record.settings.network.options.get("width", 128))


def _draw(records: list[RunResult], leaderboards: Path, path: Path) -> None:
    """Draw a row for each record: its images, one per class, with method, network, protocol and score at the left."""
    figure = Figure(figsize=(11, 0.4 + 0.9 * max(1, len(records))), layout="constrained")
    axes = figure.subplots(max(1, len(records)), 10, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, record in zip(axes, records, strict=False):
        settings = record.settings
        text = f"{settings.method.name}, width {_width(record)}\n{settings.protocol}\n{100 * record.score.mean:.1f} %"
        line[0].text(-0.15, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        artifact = leaderboards / "artifacts" / f"{record.artifact.sha256}.safetensors"
        for axis, image in zip(line, _stored_images(DistilledSet.load(artifact)), strict=False):
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    figure.savefig(path, dpi=100)


def _stored_images(distilled: DistilledSet) -> Tensor:
    """Return the images as they are stored, `[classes, height, width, channels]` in [0, 1]; tiles are not decoded."""
    if distilled.decoder:
        images = distilled.payload["images"]
        labels = torch.zeros(1, len(images), dtype=torch.int64)
        distilled = DistilledSet(images[None], labels, metadata=distilled.metadata)
    return distilled.pixels().permute(0, 2, 3, 1)

"""Folders of trajectory matching: MTT and the methods built on its code, such as DATM.

`images_best.pt` holds `[n, channels, height, width]`, `labels_best.pt` holds `[n]` int64 (MTT) or the logits
`[n, classes]` of a teacher (DATM), as written by `distill.py` of
https://github.com/GeorgeCazenavette/mtt-distillation and of https://github.com/NUS-HPC-AI-Lab/DATM. Images are
normalised by the dataset's mean and std, or ZCA-whitened where the authors used `--zca`.
DATM adds `lr_best.pt`, the learned rate as a scalar.
"""

from pathlib import Path

import torch
from torch import Tensor

from ddbench.errors import UsageError
from ddbench.formats.released_set import ReleasedSet
from ddbench.formats.tensor_files import load


def matches(path: Path) -> bool:
    """Return True for a folder with `images_best.pt`."""
    return (path / "images_best.pt").exists()


def read(path: Path) -> ReleasedSet:
    """Read images and labels, and report the learned rate, which the protocol replaces by its own."""
    images, labels = load(path / "images_best.pt"), load(path / "labels_best.pt")
    rate_file = path / "lr_best.pt"
    notices = (_notice_of_rate(rate_file),) if rate_file.exists() else ()
    return ReleasedSet.checked(path, images, labels, notices)


def _notice_of_rate(path: Path) -> str:
    content = load(path)
    rate = torch.as_tensor(content) if isinstance(content, Tensor | float) else torch.empty(0)
    if rate.numel() != 1 or not rate.is_floating_point():
        raise UsageError(f"{path} does not hold one learned rate.", "Remove it, or fetch it again; it is not used.")
    return f"The learned rate {rate.item():g} of {path} is not used: the protocol has its own."

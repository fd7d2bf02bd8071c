"""Dataset distillation with teachers: RDED, SRe2L, images from activation statistics, labels for real images."""

from pathlib import Path

import ddbench
from ddbench_decoupled.activations import activation_statistics
from ddbench_decoupled.batch_statistics import sre2l
from ddbench_decoupled.crops import rded
from ddbench_decoupled.labelled import ensemble_labels, teacher_labels


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [activation_statistics, ensemble_labels, rded, sre2l, teacher_labels]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

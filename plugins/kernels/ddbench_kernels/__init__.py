"""Dataset distillation by kernel ridge regression: KIP and label solve (2021), FRePo (2022)."""

from pathlib import Path

import ddbench
from ddbench_kernels.feature_regression import frepo
from ddbench_kernels.inducing_points import kip
from ddbench_kernels.solved_labels import label_solve


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [frepo, kip, label_solve]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

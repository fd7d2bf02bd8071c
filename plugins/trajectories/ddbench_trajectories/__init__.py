"""Dataset distillation by matching training trajectories: MTT (2022), TESLA (2023) and DATM (2024)."""

from pathlib import Path

import ddbench
from ddbench_trajectories.datm import datm
from ddbench_trajectories.mtt import mtt
from ddbench_trajectories.tesla import tesla


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [datm, mtt, tesla]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

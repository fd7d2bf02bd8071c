"""Dataset distillation by matching what networks do on real and on synthetic images: DC, DSA, DM and IDC."""

from pathlib import Path

import ddbench
from ddbench_matching.distributions import dm
from ddbench_matching.gradients import dc, dsa
from ddbench_matching.idc import idc


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [dc, dm, dsa, idc]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

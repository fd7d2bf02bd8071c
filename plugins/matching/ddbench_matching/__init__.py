"""Dataset distillation by matching gradients."""

from pathlib import Path

import ddbench
from ddbench_matching.idc import idc


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [idc]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

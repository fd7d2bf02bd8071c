"""Dataset distillation through unrolled training: the gradient of a loss after training, by all that it depends on."""

from pathlib import Path

import ddbench
from ddbench_unrolled_gd.linba import linba
from ddbench_unrolled_gd.rat_bptt import rat_bptt
from ddbench_unrolled_gd.reversible import reversible_hypergradients
from ddbench_unrolled_gd.soft_label_dd import soft_label_dd
from ddbench_unrolled_gd.unrolled_gd import unrolled_gd


@ddbench.hookimpl
def ddbench_methods() -> list[object]:
    return [linba, rat_bptt, reversible_hypergradients, soft_label_dd, unrolled_gd]


@ddbench.hookimpl
def ddbench_experiments() -> list[Path]:
    return sorted((Path(__file__).parent / "experiments").glob("*.toml"))

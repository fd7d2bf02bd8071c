"""Networks for authors of methods: their weights, modes and workers, and how they are trained and measured."""

from ddbench.engine.cpu.operators import FastOperators
from ddbench.engine.fit import POOL_RATE, POOL_STEPS
from ddbench.engine.inner_steps import inner_mode
from ddbench.engine.meta_gradient import evaluation_mode, unstack
from ddbench.engine.workers import for_each_network
from ddbench.machine.files import load_tensors

__all__ = [
    "POOL_RATE",
    "POOL_STEPS",
    "FastOperators",
    "evaluation_mode",
    "for_each_network",
    "inner_mode",
    "load_tensors",
    "unstack",
]

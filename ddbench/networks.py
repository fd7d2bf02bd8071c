"""Networks for authors of methods: their weights, modes and workers, and how they are trained and measured."""

from ddbench.engine.cpu.operators import FastOperators
from ddbench.engine.inner_steps import inner_mode
from ddbench.engine.meta_gradient import evaluation_mode, unstack
from ddbench.engine.workers import for_each_network

__all__ = ["FastOperators", "evaluation_mode", "for_each_network", "inner_mode", "unstack"]

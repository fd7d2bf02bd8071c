"""Differentiable training for authors of methods: the exact gradient of a loss after training."""

from ddbench.engine.footprint import fastest_fitting
from ddbench.engine.inner_steps import Engine, choose_engine
from ddbench.engine.memory import MEMORIES, Checkpoint, Footprint, Memory, Recompute, Store
from ddbench.engine.meta_gradient import MetaGradient, meta_gradient, train

__all__ = [
    "MEMORIES",
    "Checkpoint",
    "Engine",
    "Footprint",
    "Memory",
    "MetaGradient",
    "Recompute",
    "Store",
    "choose_engine",
    "fastest_fitting",
    "meta_gradient",
    "train",
]

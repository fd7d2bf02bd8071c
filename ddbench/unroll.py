"""Differentiable training for authors of methods: the exact gradient of a loss after training."""

from ddbench.engine.batches import Transform
from ddbench.engine.footprint import fastest_fitting
from ddbench.engine.inner_optimisers import SGD, Adam, InnerOptimiser
from ddbench.engine.inner_steps import Engine, choose_engine
from ddbench.engine.memory import MEMORIES, Checkpoint, Footprint, Memory, Recompute, Store
from ddbench.engine.meta_gradient import MetaGradient, meta_gradient, train
from ddbench.engine.outer_losses import OuterLoss, distance_to, loss_on
from ddbench.engine.reverse import Reverse

__all__ = [
    "MEMORIES",
    "SGD",
    "Adam",
    "Checkpoint",
    "Engine",
    "Footprint",
    "InnerOptimiser",
    "Memory",
    "MetaGradient",
    "OuterLoss",
    "Recompute",
    "Reverse",
    "Store",
    "Transform",
    "choose_engine",
    "distance_to",
    "fastest_fitting",
    "loss_on",
    "meta_gradient",
    "train",
]

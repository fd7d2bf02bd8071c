"""Differentiable training for authors of methods: the exact gradient of a loss after training."""

from ddbench.engine.meta_gradient import Memory, MetaGradient, meta_gradient, train, unstack

__all__ = ["Memory", "MetaGradient", "meta_gradient", "train", "unstack"]

"""Augmentation for authors of methods: draw once, apply to real and to synthetic images."""

from ddbench.engine.augment import DSA, DSA_DIGITS, Augmentation, apply, draw, refuse

__all__ = ["DSA", "DSA_DIGITS", "Augmentation", "apply", "draw", "refuse"]

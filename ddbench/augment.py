"""Augmentation for authors of methods: draw once, apply to real and to synthetic images."""

from ddbench.engine.augment import DSA, DSA_DIGITS, Augmentation, apply, draw, refuse
from ddbench.engine.views import Views, crop, draw_windows

__all__ = ["DSA", "DSA_DIGITS", "Augmentation", "Views", "apply", "crop", "draw", "draw_windows", "refuse"]

"""Kinds of data, one module each: conversion and normalisation; for authors, how texts and sounds become a dataset.

May import: contract, machine and errors.
Imported by: testing, pipeline, formats and builtin; plugins in their datasets.
"""

from ddbench.modalities.array import array as array_modality
from ddbench.modalities.image import image as image_modality
from ddbench.modalities.sound import clips_like, sound_splits, spectrograms
from ddbench.modalities.sound import sound as sound_modality
from ddbench.modalities.text import nearest_words, text_splits, tokens
from ddbench.modalities.text import text as text_modality

__all__ = ["MODALITIES", "clips_like", "nearest_words", "sound_splits", "spectrograms", "text_splits", "tokens"]

MODALITIES = (image_modality, text_modality, sound_modality, array_modality)
"""The modalities that ship with ddbench."""

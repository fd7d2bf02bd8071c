"""The kinds of data that ship with ddbench: image, text, sound and array."""

import ddbench
from ddbench.modalities import MODALITIES


@ddbench.hookimpl
def ddbench_modalities() -> list[object]:
    return list(MODALITIES)

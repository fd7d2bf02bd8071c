"""Tensor files of the field's repositories, read without running code."""

from pathlib import Path
from typing import Any

from torch.serialization import safe_globals

from ddbench.machine.files import load_tensors


class _Placeholder:
    """A stand-in for a numpy value in a file of tensors: its content is dropped, and no code of numpy is run."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Drop the content."""


# Result files keep accuracies as numpy scalars beside the images, pickled under the names of numpy 1 or of numpy 2.
_NUMPY = ["numpy.dtype", "numpy.ndarray"]
_NUMPY += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]


def load(path: Path) -> Any:
    """Load a file that `torch.save` wrote of tensors, plain values and numpy scalars, which become placeholders.

    Raises `UsageError` for a file that could run code or cannot be read.
    """
    with safe_globals([(_Placeholder, name) for name in _NUMPY]):
        return load_tensors(path)

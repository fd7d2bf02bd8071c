"""Files of named arrays, read without running code: numpy archives and HDF5 files."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ddbench.errors import MissingPrerequisite, UsageError


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in a `.npz` archive. Raises `UsageError` for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{path} is damaged or not a numpy archive: {error}.", "Fetch it again.") from error


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return arrays of a `.npz` archive by name. Raises `UsageError` where one is missing or holds objects."""
    wanted = list(names)
    missing = sorted(set(wanted) - set(array_names(path)))
    if missing:
        raise UsageError(f"{path} has no array {missing[0]}.", "Fetch it again.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in wanted}
    except Exception as error:
        # A damaged file can make the reader raise any type of exception.
        raise UsageError(f"{path} was not read: {error}.", "Fetch it again.") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UsageError(f"the array {name} in {path} holds {array.dtype}, not numbers.", "Fetch it again.")
    return arrays


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays at the top of an HDF5 file. Raises `MissingPrerequisite` without the library h5py."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPrerequisite(
            f"{path} is an HDF5 file, which the library h5py reads.", "Install it: pip install 'ddbench[hdf5]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            return {name: np.asarray(item) for name, item in file.items() if isinstance(item, h5py.Dataset)}
    except Exception as error:
        # A damaged file can make the reader raise any type of exception.
        raise UsageError(f"{path} is damaged or not an HDF5 file: {error}.", "Fetch it again.") from error

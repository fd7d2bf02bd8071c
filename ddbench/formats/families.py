"""Find the family that a released file belongs to, and read it."""

from pathlib import Path
from typing import Protocol

from ddbench.errors import UsageError
from ddbench.formats import condensation, folders, kernels, trajectories
from ddbench.formats.released_set import ReleasedSet


class Family(Protocol):
    """A module that reads files with one set each."""

    def matches(self, path: Path, /) -> bool:
        """Return True where `path` belongs to this family."""
        ...

    def read(self, path: Path, /) -> ReleasedSet:
        """Read the set. Raises `UsageError` where its content cannot be scored."""
        ...


# A folder of trajectory files is a folder too: the first family that matches reads the path.
ONE_SET_EACH: tuple[Family, ...] = (trajectories, folders, kernels)


def read(path: Path, repetition: int = 0) -> ReleasedSet:
    """Read the set in `path`, a file or a folder of one of the families in this package.

    Only condensation files hold more than one set: `repetition` says which, counted from 0.
    Raises `UsageError` where the path belongs to no family or its content cannot be scored.
    """
    for family in ONE_SET_EACH:
        if family.matches(path):
            if repetition:
                raise UsageError(f"{path} holds one set.", "Leave out --repetition.")
            return family.read(path)
    return condensation.read(path, repetition)

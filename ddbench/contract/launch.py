"""The contract of launchers: many runs as job files, and the command that carries some of them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.contract.observer import Reporter


@dataclass(frozen=True)
class Work:
    """Runs that a launcher has carried out, each described by a file.

    Every process may be given all jobs, or some: one that another process has claimed is left to it, and one that has
    ended is not carried out again. A process that is sent SIGTERM keeps a checkpoint. A job whose process was killed
    goes on where it stopped as soon as a process is given it again.

    Attributes:
        jobs: the files, one for each run that is missing.
        folder: the folder of the files, for what the launcher itself writes.
        command: returns the command line that carries out the given jobs in turn, in a process of its own.
        reporter: the place to say what happens.
        ended: returns the jobs that have ended so far.
    """

    jobs: tuple[Path, ...]
    folder: Path
    command: Callable[[Sequence[Path]], list[str]]
    reporter: "Reporter"
    ended: Callable[[], set[Path]]

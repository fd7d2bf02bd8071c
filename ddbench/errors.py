"""What can go wrong in a way a user can act on, each with the exit code the command line gives it."""

from collections.abc import Iterator
from contextlib import contextmanager


class DdbenchError(Exception):
    """A failure explained in one sentence (`message`) and answered in another (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DdbenchError):
    """What was asked for does not exist or does not fit: a name, an option, a file."""

    exit_code = 2


class MissingPrerequisite(DdbenchError):
    """Data, an optional package or a device that the run needs is not there."""

    exit_code = 3


class PluginError(DdbenchError):
    """A plugin failed to load, broke the contract or raised."""

    exit_code = 4


class Interrupted(DdbenchError):
    """The user stopped the run; a checkpoint was kept."""

    exit_code = 130


class Unsupported(DdbenchError):
    """Raised by a method that cannot serve a task: the run is `skipped`, which is not a failure."""

    exit_code = 0


@contextmanager
def blamed_on(who: str) -> Iterator[None]:
    """Turn whatever a plugin raises into a `PluginError` that names it; errors of ddbench's own pass as they are."""
    try:
        yield
    except (DdbenchError, MemoryError):
        raise
    except Exception as error:
        raise PluginError(
            f"{who} raised {type(error).__name__}: {error}.", "See the traceback: `ddbench -v` before the command."
        ) from error

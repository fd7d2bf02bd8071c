"""Failures that a user can act on, each with its exit code."""

from collections.abc import Iterator
from contextlib import contextmanager


class DdbenchError(Exception):
    """A failure that a user can act on.

    Attributes:
        message: what failed, in one sentence.
        hint: what to do about it, in one sentence.
        exit_code: the exit code of the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DdbenchError):
    """A name, an option or a file that does not exist or does not fit."""

    exit_code = 2


class MissingPrerequisite(DdbenchError):
    """Data, an optional package or a device that the run needs and that is missing."""

    exit_code = 3


class PluginError(DdbenchError):
    """A plugin that failed to load, violated the contract or raised."""

    exit_code = 4


class Interrupted(DdbenchError):
    """A run that the user stopped; a checkpoint is kept."""

    exit_code = 130


class Unsupported(DdbenchError):
    """A task that a method does not support: the method raises it, and the run is `skipped`, which is not a failure."""

    exit_code = 0


class UnknownFields(UserWarning):
    """A record holds fields that this version of ddbench does not know; they were ignored."""


@contextmanager
def blamed_on(who: str) -> Iterator[None]:
    """Turn an exception of a plugin into a `PluginError` that names the plugin; errors of ddbench pass unchanged."""
    try:
        yield
    except (DdbenchError, MemoryError):
        raise
    except Exception as error:
        raise PluginError(
            f"{who} raised {type(error).__name__}: {error}.", "See the traceback: `ddbench -v` before the command."
        ) from error

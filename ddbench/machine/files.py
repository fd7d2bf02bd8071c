"""Files that are either whole or not there: atomic writes, hashes, locks."""

import hashlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from ddbench.errors import DdbenchError, UsageError


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data`, or leave it as it was: a reader never sees half a file.

    The bytes go to a temporary file beside `path`, reach the disk (fsync) and are then renamed over it.
    Folders are created. Raises `DdbenchError` when the disk is full or the folder cannot be written.
    """
    raw = data.encode() if isinstance(data, str) else data
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(raw)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files only their owner can read; the result gets what the umask allows.
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while writing `path` into a `DdbenchError` that says what to do."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DdbenchError(
            f"cannot write {path}: {reason}.",
            "Free some space, or choose another place; what was there before is intact.",
        ) from error


def load_tensors(path: Path) -> Any:
    """What torch.save wrote of tensors alone (and numbers, text, lists and dicts of them); runs no code from the file.

    Raises `UsageError` for any other file.
    """
    import torch

    if not path.is_file():
        raise UsageError(f"there is no file {path}.", "Give the path of one that is there.")
    try:
        with warnings.catch_warnings():
            # Of pickle protocols, for files that are refused anyway.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} was not loaded: it is not a file of tensors alone, and could run code.",
            "Take one that is, as torch.save(model.state_dict(), ...) writes, or safetensors.",
        ) from error
    except Exception as error:
        # What the reader stumbles over in a file of another kind is as various as such files.
        what = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"{path} is damaged or no file of tensors: {what}.", "Fetch it again.") from error


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process. Raises `DdbenchError` at once when another has it."""
    lock = filelock.FileLock(folder / ".run.lock", timeout=0)
    with explained_os_errors(folder):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise DdbenchError(f"the run in {folder} is going on in another process.", "Wait for it to end.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(path: Path, timeout: float = 60) -> Iterator[None]:
    """Hold the lock that guards `path` against other processes (a hidden `.lock` file beside it)."""
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise DdbenchError(
                f"another process has held {path} for {timeout:.0f} seconds.",
                "Wait for it to end, or stop it, and try again.",
            ) from error
    try:
        yield
    finally:
        lock.release()

"""Atomic writes, safe reading of tensor files, hashes and locks."""

import contextlib
import hashlib
import json
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
    """Replace the file `path` by `data`, or leave it unchanged: a reader never sees half a file.

    The bytes are written to a temporary file beside `path`, flushed to the disk (fsync), and renamed to `path`.
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
            # Files of mkstemp are readable by their owner only; give the file what the umask allows.
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` from writing `path` to a `DdbenchError` with advice."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DdbenchError(
            f"cannot write {path}: {reason}.",
            "Free some space, or choose another folder; the previous content is intact.",
        ) from error


def load_tensors(path: Path) -> Any:
    """Load a file that `torch.save` wrote, without running code from it.

    It may hold tensors, numbers, text, and lists and dicts of these. Raises `UsageError` for any other file.
    """
    import torch

    if not path.is_file():
        raise UsageError(f"there is no file {path}.", "Give the path of an existing file.")
    try:
        with warnings.catch_warnings():
            # torch warns about pickle protocols of files that it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} was not loaded: it does not hold tensors only, and could run code.",
            "Where you trust it, load it in Python, and save its tensors alone, with torch.save or as safetensors.",
        ) from error
    except Exception as error:
        # A file of another kind can make the reader raise any type of exception.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(f"{path} is damaged or not a file of tensors: {reason}.", "Fetch it again.") from error


def tensor_file_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, read without torch. Raises `ValueError` for a file of another kind.

    The format is eight bytes of header length, little-endian, then the header as JSON.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # The first bytes of another file, such as a pointer of Git LFS, are no length.
        if length > path.stat().st_size:
            raise ValueError(f"{path} is cut off or not a file of tensors")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a file of tensors")
    return header


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Reserve a run folder for this process. Raises `DdbenchError` at once where another process has it."""
    lock = filelock.FileLock(folder / ".run.lock", timeout=0)
    with explained_os_errors(folder):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise DdbenchError(f"another process is working on the run in {folder}.", "Wait for it to end.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(path: Path, timeout: float | int = 0) -> Iterator[bool]:
    """Hold the lock file `path` and yield True; yield False where another process holds it for `timeout` seconds."""
    lock = filelock.FileLock(path, timeout=timeout)
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(filelock.Timeout):
            lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def locked(path: Path, timeout: float | int = 60) -> Iterator[None]:
    """Hold the lock of `path`, a hidden `.lock` file beside it, against other threads and processes.

    Raises `DdbenchError` after `timeout` seconds.
    """
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

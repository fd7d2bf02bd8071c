"""The results that methods keep for later runs: files of tensors in the cache folder, with the seconds they took."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddbench.errors import DdbenchError, PluginError
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir


class ResultCache:
    """The results that a run reads from the cache folder, and those that it adds.

    Attributes:
        made: results that the run computed itself, by hash of the key: time of the run at the beginning.
        saved: results that other runs computed, by hash of the key: seconds that they took.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float],
        say: Callable[[str], None],
        apart: Callable[[str], AbstractContextManager[Callable[[], bool]]],
    ) -> None:
        """Take the device of the results, the seconds of the run so far, and what prints a line.

        `apart(hash)` separates a computation from the rest of the run; within it, its value says at the end whether the
        result is complete.
        """
        self.made: dict[str, float] = {}
        self.saved: dict[str, float] = {}
        self._device, self._clock, self._say, self._apart = device, clock, say, apart

    def result(self, name: str, key: object, make: Callable[[], object]) -> dict[str, Tensor]:
        """Return the tensors under `name` and `key`; see `Run.cached`."""
        path = _path(name, key)
        tensors = self._read(name, path)
        if tensors is not None:
            return tensors
        with _computing(path, lambda: self._say(f"Cache    another process computes {name}; waiting for it.")):
            # The process that had the lock may have written it.
            tensors = self._read(name, path) if path.exists() else None
            return self._compute(name, path, make) if tensors is None else tensors

    def _read(self, name: str, path: Path) -> dict[str, Tensor] | None:
        """Return the tensors in the file; None where there is none, or a damaged one."""
        try:
            with safetensors.safe_open(path, "pt") as file:
                seconds = float((file.metadata() or {})["seconds"])
                tensors = {key: file.get_tensor(key).to(self._device) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, KeyError, ValueError):
            self._say(f"Cache    {name} is computed again: {path} is damaged.")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        # What this run computed itself is in its own seconds.
        if path.stem not in self.made and path.stem not in self.saved:
            self._say(f"Cache    {name} comes from an earlier run, which took {seconds:.1f} s for it.")
            self.saved[path.stem] = seconds
        return tensors

    def _compute(self, name: str, path: Path, make: Callable[[], object]) -> dict[str, Tensor]:
        """Return the tensors of `make`, written to the file where they are complete."""
        # Time that an interrupted part of this computation took counts too.
        began = self.made.setdefault(path.stem, self._clock())
        with self._apart(path.stem) as is_complete:
            tensors = _checked(name, make(), self._device)
        if is_complete():
            try:
                _write(path, tensors, self._clock() - began)
            except DdbenchError as error:
                # A cache that cannot be written costs time, not the run.
                self._say(f"Cache    {name} is not kept for later runs: {error.message}")
        return tensors


def _path(name: str, key: object) -> Path:
    """Return the file of the result called `name` under `key`: text, bytes, or values that JSON holds.

    Raises `PluginError` for another name than letters, digits, `_`, `-` and `.`, and for another key.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise PluginError(f"{name!r} cannot name a cached result.", "Use letters, digits, '_', '-' and '.'.")
    try:
        text = key if isinstance(key, bytes) else json.dumps(key, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"the key of the cached result {name!r} cannot be hashed: {error}.",
            "Give text, bytes, or numbers, text, lists and dicts of them; hash tensors with ddbench.cache.sha256.",
        ) from error
    return cache_dir() / "methods" / name / f"{sha256(text)}.safetensors"


def _write(path: Path, result: Mapping[str, Tensor], seconds: float) -> None:
    """Replace the file `path`. Raises `DdbenchError` where the disk does not take it."""
    tensors, memory = {}, set()
    for name, tensor in result.items():
        plain = tensor.cpu()
        # The format refuses two names for the same memory.
        tensors[name] = plain.clone() if plain.untyped_storage().data_ptr() in memory else plain
        memory.add(plain.untyped_storage().data_ptr())
    atomic_write(path, safetensors.torch.save(tensors, {"seconds": f"{seconds:.3f}"}))


@contextmanager
def _computing(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time compute the result in `path`; the others call `waiting` and wait.

    Where the cache folder cannot be written there is no lock: each process computes its own.
    """
    lock = filelock.FileLock(path.with_name(f".{path.stem}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _checked(name: str, result: object, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a result as a file would give them back: detached, contiguous, on `device`.

    Raises `PluginError` for anything but tensors by name.
    """
    if not isinstance(result, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in result.items()
    ):
        raise PluginError(
            f"the cached result {name!r} is {type(result).__name__}, not tensors by name.",
            "Return a dict of text to torch.Tensor.",
        )
    return {key: tensor.detach().to(device).contiguous() for key, tensor in result.items()}

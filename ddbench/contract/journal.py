"""Journal: the values of networks already scored, so that scoring continues where it was interrupted."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddbench.contract.sets import DistilledSet
from ddbench.errors import DdbenchError
from ddbench.machine.files import explained_os_errors, sha256


class Journal:
    """Values by key, in a file of JSON lines: one line is appended as soon as a value is known.

    Without a path nothing is kept. Numbers are read back bit for bit. A line that a killed process left incomplete,
    and lines of another `identity`, are ignored; such values are computed again. Safe to use from several threads of
    one process. Raises `DdbenchError` for a file that cannot be read or repaired.

    A key is a few names and numbers, such as `what="score", network=3`. `within(...)` returns a view of the same
    journal whose keys all hold these entries.
    """

    def __init__(self, path: Path | None = None, identity: str = "") -> None:
        self._file = _File(path, sha256(identity.encode())[:12]) if path is not None else None
        self._prefix: dict[str, str | int] = {}

    @property
    def seconds(self) -> float:
        """Seconds spent since the journal was begun, without interruptions; without a path, 0."""
        return self._file.seconds if self._file else 0.0

    def within(self, **key: str | int) -> "Journal":
        """Return a view of this journal whose keys all hold `key`."""
        view = Journal()
        view._file, view._prefix = self._file, {**self._prefix, **key}
        return view

    def get(self, **key: str | int) -> Any:
        """Return the value of a key; None where there is none."""
        return self._file.values.get(_text({**self._prefix, **key})) if self._file else None

    def put(self, value: object, **key: str | int) -> None:
        """Keep a value that JSON takes. Raises `DdbenchError` where the disk does not take it."""
        if self._file:
            self._file.append({**self._prefix, **key}, value)


class _File:
    """The lines of one journal, in memory and on disk."""

    def __init__(self, path: Path, run: str) -> None:
        self.values: dict[str, Any] = {}
        self._path, self._run = path, run
        self._lock = threading.Lock()
        self._earlier_seconds = 0.0
        whole = 0
        lines = _lines(path)
        for raw in lines:
            if not raw.endswith(b"\n"):
                break
            whole += len(raw)
            self._read(raw)
        if lines:
            # What follows must not be appended to half a line.
            with explained_os_errors(path), open(path, "r+b") as stream:
                stream.truncate(whole)
        self._opened = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._opened

    def append(self, key: dict[str, str | int], value: object) -> None:
        line = {"run": self._run, "key": key, "value": value, "seconds": round(self.seconds, 3)}
        with self._lock, explained_os_errors(self._path), open(self._path, "a") as stream:
            stream.write(json.dumps(line) + "\n")
            self.values[_text(key)] = value

    def _read(self, raw: bytes) -> None:
        try:
            line = json.loads(raw)
            run, key, value, seconds = line["run"], line["key"], line["value"], float(line["seconds"])
        except (ValueError, KeyError, TypeError):
            return
        if run == self._run:
            self.values[_text(key)] = value
            self._earlier_seconds = max(self._earlier_seconds, seconds)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DdbenchError(
            f"cannot read {path}, which holds the values scored so far: {reason}.",
            "Make it a file that you may read and write, or remove it to score anew.",
        ) from error


def _text(key: dict[str, str | int]) -> str:
    return json.dumps(key, sort_keys=True)


def digest(sets: Sequence[DistilledSet]) -> str:
    """Return the beginning of a SHA-256 over the tensors of `sets`, metadata left out."""
    parts = []
    for distilled in sets:
        parts += [] if distilled.label_kind is None else [distilled.label_kind.encode()]
        for name, tensor in distilled.tensors.items():
            array = tensor.detach().cpu().contiguous()
            kind = str(tensor.dtype).removeprefix("torch.")
            raw = array.flatten().view(torch.uint8).numpy().tobytes()
            parts += [f"{name} {kind} {tuple(array.shape)}".encode(), raw]
    return sha256(b"\n".join(parts))[:16]

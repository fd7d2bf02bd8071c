"""Checkpoints: the state of an unfinished run on disk, with a format version and one migration per version."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ddbench.errors import DdbenchError
from ddbench.machine.files import atomic_write

FORMAT = 4
"""Version of the checkpoints that this code writes; every earlier one has an entry in `MIGRATIONS`."""
ANEW = "Remove it to start the run anew."


@dataclass
class LoopState:
    """Progress of one loop of a method, and everything needed to continue from there.

    `log_bytes` is the length of log.jsonl at that moment. `generators` holds the states of the random generators.
    `scope` names the cached result that the loop is a part of, and is empty for the others. `began` is the time of the
    run at the start of the loop, in seconds.
    """

    step: int = 0
    finished: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0
    scope: str = ""
    began: float = 0.0


@dataclass
class Checkpoint:
    """Everything that an interrupted run resumes from.

    identity: text that differs between runs whose checkpoints must not be mixed.
    seconds: time spent so far, without interruptions.
    rollbacks, stopped_by: see `Run`.
    loops: one entry per loop that has begun; all but the last have finished.
    rollback_point, rollback_loop: where loop number `rollback_loop` returns to when it diverges.
    artifact: SHA-256 of the file with the method's result, empty while the method is still at work.
    empty_loops: number of loops that took no step because the time or pass limit was over.
    made: cached results that the run computed itself, by hash of the key: time of the run at the beginning.
    saved: cached results that other runs computed, by hash of the key: seconds that they took.
    passes: examples that went forward through networks so far.
    """

    identity: str
    seconds: float = 0.0
    rollbacks: int = 0
    stopped_by: str = ""
    loops: list[LoopState] = field(default_factory=list)
    rollback_point: LoopState | None = None
    rollback_loop: int = -1
    artifact: str = ""
    empty_loops: int = 0
    made: dict[str, float] = field(default_factory=dict)
    saved: dict[str, float] = field(default_factory=dict)
    passes: int = 0


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path` atomically. Raises `DdbenchError` where the disk does not take it."""
    content = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    content["loops"] = [vars(loop) for loop in checkpoint.loops]
    content["rollback_point"] = checkpoint.rollback_point and vars(checkpoint.rollback_point)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    atomic_write(path, buffer.getvalue())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this or an earlier format; runs no code from the file.

    Raises `DdbenchError` for a damaged file and for one that a later version wrote.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        version = content.pop("format", 1)
    except Exception as error:
        raise _unreadable(path, error) from error
    if version not in (FORMAT, *MIGRATIONS):
        raise DdbenchError(
            f"the checkpoint {path} has format {version}, but this version of ddbench reads only up to {FORMAT}.",
            f"Resume with the version that wrote it. {ANEW}",
        )
    try:
        while version < FORMAT:
            content, version = MIGRATIONS[version](content), version + 1
        loops = [LoopState(**loop) for loop in content.pop("loops")]
        point = content.pop("rollback_point")
        return Checkpoint(loops=loops, rollback_point=point and LoopState(**point), **content)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DdbenchError:
    return DdbenchError(f"the checkpoint {path} cannot be read: {type(error).__name__}.", ANEW)


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Rename the roll-back point, and move the log's length out of the generators; format 1 had no version."""

    def loop(saved: dict[str, Any]) -> dict[str, Any]:
        generators = dict(saved["generators"])
        log_bytes = generators.pop("log_bytes")
        return {**saved, "generators": generators, "log_bytes": log_bytes}

    point, rollback_loop = content.pop("good"), content.pop("good_of")
    return {
        **content,
        "loops": [loop(saved) for saved in content["loops"]],
        "rollback_point": point and loop(point),
        "rollback_loop": rollback_loop,
    }


def _as_it_is(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content: the fields of the next format that it lacks have defaults."""
    return content


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1, 2: _as_it_is, 3: _as_it_is}

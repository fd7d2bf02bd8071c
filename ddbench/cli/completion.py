"""Shell completion of names, from the index, so that a key press imports neither torch nor a plugin."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ddbench.cli.indexed import current_index

if TYPE_CHECKING:
    from ddbench.discovery.index import Entry


def names(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """Return a callback that completes names of a kind, each with its summary; after commas, the last name."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        return [
            (before + comma + entry.name, entry.summary)
            for entry in _entries()
            if entry.kind == kind and entry.name.startswith(last)
        ]

    return complete


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete `outer_steps=` of the named method, and `init.scheme=` of the other parts, named or default."""
    from ddbench.contract.spec import PARTS, RunSpec

    known, every = {(entry.kind, entry.name): entry for entry in _entries()}, []
    for part in PARTS:
        default = getattr(RunSpec.model_fields[part].default, "name", None)
        entry = known.get((part.removeprefix("eval_"), str(ctx.params.get(part) or default)))
        prefix = "" if part == "method" else f"{part}."
        every += [f"{prefix}{option}=" for option in (entry.options if entry else {})]
    return [setting for setting in every if setting.startswith(incomplete)]


def runs(incomplete: str) -> Iterator[str]:
    """Complete folders of runs below `runs/`, with or without `runs/` in front."""
    for spec in sorted(Path("runs").glob("*/spec.json")):
        yield from (text for text in (str(spec.parent), spec.parent.name) if text.startswith(incomplete or "runs"))


def unfinished_runs(incomplete: str) -> list[str]:
    """Complete folders of runs below `runs/` that have no result, or failed."""
    return [run for run in runs(incomplete) if not _succeeded(Path("runs") / Path(run).name)]


def _succeeded(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "result.json").read_text())["status"] in ("ok", "skipped"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def anything(incomplete: str) -> list[str]:
    """Complete what `ddbench show` explains: names of every kind, and runs."""
    known = sorted({entry.name for entry in _entries()})
    return [*runs(incomplete), *(name for name in known if name.startswith(incomplete))]


def checkable(incomplete: str) -> list[str]:
    """Complete what `ddbench check` checks: components and experiments."""
    return sorted({e.name for e in _entries() if e.kind != "protocol" and e.name.startswith(incomplete)})


def _entries() -> "list[Entry]":
    from ddbench.errors import DdbenchError

    # Only names may reach the shell: neither the output of a plugin nor a message about a file.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return current_index().entries
        except DdbenchError:
            return []

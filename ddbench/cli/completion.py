"""Shell completion: the names of what there is, kept in the cache so that a key press imports no torch and no plugin.

They are gathered anew when the plugins change, and by `ddbench list`.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog

Names = dict[str, dict[str, dict[str, Any]]]
"""By kind and name: `summary` and `options`."""


def names(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """A callback that completes names of a kind, each with its summary; of several between commas, the last."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        known = _names().get(kind, {})
        return [(before + comma + name, entry["summary"]) for name, entry in known.items() if name.startswith(last)]

    return complete


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`outer_steps=` of the method that is named, and `init.scheme=` of whatever else is, or is taken by default."""
    from ddbench.contract.spec import PARTS, RunSpec

    known, every = _names(), []
    for part in PARTS:
        usual = getattr(RunSpec.model_fields[part].default, "name", None)
        entry = known.get(part.removeprefix("eval_"), {}).get(str(ctx.params.get(part) or usual), {})
        prefix = "" if part == "method" else f"{part}."
        every += [f"{prefix}{option}=" for option in entry.get("options", [])]
    return [setting for setting in every if setting.startswith(incomplete)]


def runs(incomplete: str) -> Iterator[str]:
    """Folders of runs below `runs/`."""
    for spec in sorted(Path("runs").glob("*/spec.json")):
        # By the name alone where that is how it was begun.
        yield from (text for text in (str(spec.parent), spec.parent.name) if text.startswith(incomplete or "runs"))


def unfinished_runs(incomplete: str) -> list[str]:
    """Folders of runs below `runs/` that have not ended well."""
    return [run for run in runs(incomplete) if not _ended_well(Path("runs") / Path(run).name)]


def _ended_well(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "result.json").read_text())["status"] in ("ok", "skipped"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def anything(incomplete: str) -> list[str]:
    """Whatever `ddbench show` can explain: names of every kind, and runs."""
    known = sorted({name for of_kind in _names().values() for name in of_kind})
    return [*runs(incomplete), *(name for name in known if name.startswith(incomplete))]


def plugin_names(incomplete: str) -> list[str]:
    """Names of components of every kind."""
    from ddbench.contract.component import KINDS

    return sorted({name for kind in KINDS for name in _names().get(kind, {}) if name.startswith(incomplete)})


def remember(catalog: "Catalog") -> Names:
    """Keep the names for completion."""
    from ddbench.contract.component import KINDS
    from ddbench.errors import DdbenchError
    from ddbench.machine.files import atomic_write
    from ddbench.protocols import PROTOCOLS

    found: Names = {
        kind: {
            c.name: {"summary": c.summary, "options": list(c.options.model_fields)} for c in catalog.components(kind)
        }
        for kind in KINDS
    }
    found["experiment"] = {e.name: {"summary": e.summary} for e in catalog.experiments()}
    found["protocol"] = {p.name: {"summary": p.summary} for p in PROTOCOLS.values()}
    # A cache that cannot be written costs time at the next key press, no more.
    with contextlib.suppress(DdbenchError):
        atomic_write(_cache(), json.dumps({"plugins": _plugins(), "names": found}))
    return found


def _names() -> Names:
    from ddbench.errors import DdbenchError

    try:
        kept = json.loads(_cache().read_text())
        if kept["plugins"] == _plugins():
            found: Names = kept["names"]
            return found
    except (OSError, ValueError, KeyError, TypeError, DdbenchError):
        pass
    from ddbench.discovery.catalog import Catalog

    # Nothing but names may reach the shell: neither what a plugin prints nor what is wrong with a file.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return remember(Catalog())
        except DdbenchError:
            return {}


def _cache() -> Path:
    from ddbench.machine.folders import cache_dir

    return cache_dir() / "completion.json"


def _plugins() -> list[str]:
    """What tells one set of plugins from another: installed ones, those that are named, and those left out."""
    import os
    from importlib.metadata import entry_points

    from ddbench.discovery.plugin_sources import GROUP, named_by_hand

    entries = [f"{e.name} {e.value} {e.dist.version if e.dist else ''}" for e in entry_points(group=GROUP)]
    return [*sorted(entries), *map(str, named_by_hand([])), os.environ.get("DDBENCH_DISABLE", "")]

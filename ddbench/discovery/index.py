"""The index: what the plugins offer, kept in the cache, so that `list`, `show` and completion load no plugin.

An index is valid for one interpreter and one set of plugins. It is stale as soon as a file of a plugin or of ddbench
has another size or time, or anything was installed or removed; then the plugins are loaded, and it is written anew.
"""

import contextlib
import json
import os
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.component import KINDS, SERVICES, Component
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.plugin_sources import code_of, disabled_names, named_plugins
from ddbench.errors import DdbenchError
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir

_CODE = (".py", ".toml")
Stamps = dict[str, tuple[int, int]]
"""Path to (time of the last change in nanoseconds, size); of a folder, to (0, checksum of the names in it)."""


class Entry(pydantic.BaseModel):
    """One thing that `ddbench list` names.

    Attributes:
        kind: `method`, ..., `network`, `protocol`, `experiment` or `suite`.
        name: the name on the command line.
        summary: one line.
        source: the package and version, or the file, that it came from.
        help: the docstring.
        facts: the declared facts as JSON values.
        options: JSON schema of each option.
        settings: for an experiment the fields of its spec, with sweep and published figure; for a suite its content.
    """

    kind: str
    name: str
    summary: str
    source: str
    help: str = ""
    facts: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}


class IndexedPlugin(pydantic.BaseModel):
    """A plugin that was loaded; see `ddbench.discovery.catalog.Plugin`."""

    name: str
    distribution: str
    offers: list[str]
    hooks: list[str]
    seconds: float


class IndexedFailure(pydantic.BaseModel):
    """A plugin that failed to load; see `ddbench.discovery.catalog.BrokenPlugin`."""

    name: str
    distribution: str
    error: str
    text: str


class Index(pydantic.BaseModel):
    """The content of a catalog, as data.

    Attributes:
        entries: components, protocols, experiments and suites.
        plugins: the plugins that were loaded.
        broken: the plugins that failed to load.
        disabled: names of plugins that `DDBENCH_DISABLE` disables.
        warnings: a sentence for each problem.
        stamps: the files that it was computed from.
    """

    entries: list[Entry]
    plugins: list[IndexedPlugin]
    broken: list[IndexedFailure]
    disabled: list[str]
    warnings: list[str]
    stamps: Stamps = {}

    def of_kind(self, kind: str) -> list[Entry]:
        """Return the entries of a kind."""
        return [entry for entry in self.entries if entry.kind == kind]


def described(component: Component) -> Entry:
    """Return a component as an entry."""
    return Entry(
        kind=component.kind,
        name=component.name,
        summary=component.summary,
        source=component.distribution,
        help=component.help,
        facts=component.shown_facts,
        options=component.option_schema,
    )


def stored(paths: Iterable[str | Path] = ()) -> Index | None:
    """Return the index of the installed plugins and those at `paths`, or None if there is no valid one.

    Raises `UsageError` for a `ddbench.toml` that cannot be read.
    """
    file = _file(paths)
    try:
        index = Index.model_validate_json(file.read_text())
    except (OSError, ValueError):
        return None
    return index if index.stamps and _stamps(map(Path, index.stamps)) == index.stamps else None


def build(protocols: Sequence[Entry], paths: Iterable[str | Path] = ()) -> Index:
    """Load the installed plugins and those at `paths`, and return their index, kept for the next call."""
    started = time.time_ns()
    catalog = Catalog(paths)
    experiments = [
        Entry(
            kind="experiment",
            name=experiment.name,
            summary=experiment.summary,
            source=experiment.distribution,
            settings={
                **experiment.spec,
                **({"sweep": experiment.sweep.model_dump(mode="json")} if experiment.sweep else {}),
                **({"published": experiment.published.model_dump(exclude_none=True)} if experiment.published else {}),
            },
        )
        for experiment in catalog.experiments()
    ]
    components = [described(component) for kind in (*KINDS, *SERVICES) for component in catalog.components(kind)]
    suites = [
        Entry(
            kind="suite",
            name=suite.name,
            summary=suite.summary,
            source=suite.distribution,
            settings=suite.model_dump(mode="json", exclude={"name", "summary", "distribution", "path"}),
        )
        for suite in catalog.suites()
    ]
    files = [*(experiment.path for experiment in catalog.experiments()), *(suite.path for suite in catalog.suites())]
    tables = {path for file in files for path in (file, file.parent)}
    index = Index(
        entries=[*components, *protocols, *experiments, *suites],
        plugins=[
            IndexedPlugin(
                name=p.name,
                distribution=p.distribution,
                offers=p.offers,
                hooks=p.hook_names,
                seconds=round(p.seconds, 3),
            )
            for p in catalog.plugins
        ],
        broken=[
            IndexedFailure(name=b.name, distribution=b.distribution, error=b.error, text=str(b)) for b in catalog.broken
        ],
        disabled=catalog.disabled,
        warnings=catalog.warnings(),
        stamps=_stamps({*_watched(paths), *_imported(), *tables}),
    )
    edited = any(changed > started for changed, _ in index.stamps.values())
    if not edited:
        # A cache that cannot be written makes the next call slow, but not wrong.
        with contextlib.suppress(DdbenchError):
            atomic_write(_file(paths), index.model_dump_json())
    return index


def _file(paths: Iterable[str | Path]) -> Path:
    """Return the file of the index for this interpreter, these plugins, and those that are disabled."""
    key = [sys.prefix, sys.version, sys.path[1:], sorted(map(str, named_plugins(paths))), sorted(disabled_names())]
    return cache_dir() / "index" / f"{sha256(json.dumps(key).encode())[:16]}.json"


def _watched(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield files and folders of ddbench and of the plugins, and the folders that packages are installed in."""
    yield from map(Path, sys.path[1:])
    for root in {Path(__file__).parents[1], *code_of(named_plugins(paths))}:
        yield root
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name != "__pycache__"]
            yield Path(folder)
            yield from (Path(folder) / name for name in files if name.endswith(_CODE))


def _imported() -> Iterator[Path]:
    """Yield the files of loaded modules that are not installed: what a plugin file imports from beside it."""
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and not file.startswith(installed):
            yield Path(file)


def _stamps(paths: Iterable[Path]) -> Stamps:
    stamps: Stamps = {}
    for path in paths:
        try:
            if path.is_dir():
                stamps[str(path)] = (0, _names(path))
            else:
                state = path.stat()
                stamps[str(path)] = (state.st_mtime_ns, state.st_size)
        except OSError:
            stamps[str(path)] = (0, 0)
    return stamps


def _names(folder: Path) -> int:
    """Return a checksum of the code and the folders in a folder, and of the times of installed packages.

    Hidden folders hold no package: the caches of tools come and go without a change of the plugins.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".dist-info", ".egg-info")):
                names.append(f"{entry.name} {entry.stat().st_mtime_ns}")
            elif entry.name.endswith(_CODE) or (entry.is_dir() and not entry.name.startswith((".", "__pycache__"))):
                names.append(entry.name)
    return zlib.crc32("\n".join(sorted(names)).encode())

"""What commands share: options, how a spec comes of them, and what is said of plugins."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.errors import PluginError

if TYPE_CHECKING:
    from ddbench.contract.spec import RunSpec
    from ddbench.discovery.catalog import Catalog

DEFAULT_LEADERBOARDS = Path("leaderboards")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; all else goes to stderr.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A plugin file, folder or module to load (repeatable).", metavar="PATH"),
]
Leaderboards = Annotated[Path, typer.Option("--leaderboards", help="Folder of the leaderboards.", metavar="DIR")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Option of the method, or `init.scheme`, `network.width`, ... (repeatable).",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
    ),
]


def named(kind: str, told: str, *flags: str, metavar: str | None = None) -> Any:
    """An option that takes the name of a component of a kind (or `protocol`, `experiment`), completed in the shell."""
    return typer.Option(*flags, help=told, metavar=metavar, autocompletion=completion.names(kind))


def merged(
    fields: dict[str, Any], flags: dict[str, Any], assignments: dict[str, Any], method_options: set[str]
) -> "RunSpec":
    """A spec: a flag replaces a field; naming another plugin drops the options of the one before."""
    from ddbench.contract.spec import RunSpec, place_assignments

    merged = dict(fields)
    for key, value in flags.items():
        if value is None:
            continue
        before = merged.get(key)
        if not (isinstance(before, dict) and before.get("name") == value):
            merged[key] = value
    return RunSpec.parse(place_assignments(merged, assignments, method_options))


def warn_of_plugins(catalog: "Catalog", wanted: Sequence[Path] | None = None) -> None:
    """Name the plugins that were set aside, and the slow ones.

    Raises `PluginError` for one of those `wanted`: work without what was asked for is done in vain.
    """
    from ddbench.discovery.plugin_sources import whole_path

    named = set(map(whole_path, wanted or ()))
    for broken in catalog.broken:
        if broken.path in named:
            raise PluginError(f"{broken}", "Mend the plugin, or leave it out.")
    for warning in catalog.warnings():
        sys.stderr.write(f"Warning: {warning}\n")

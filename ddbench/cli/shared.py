"""Options that several commands share, the spec that they make, and warnings about plugins."""

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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; other output goes to stderr.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A plugin file, folder or module to load (repeatable).", metavar="PATH"),
]
Leaderboards = Annotated[Path, typer.Option("--leaderboards", help="Folder of the leaderboards.", metavar="DIR")]
Launcher = Annotated[
    str | None,
    typer.Option(
        "--launcher",
        help="Carry out the runs in other processes (ddbench list launchers). [one after the other, in this one]",
        metavar="NAME[:KEY=VALUE,...]",
        autocompletion=completion.names("launcher"),
    ),
]
Emit = Annotated[
    Path | None,
    typer.Option(help="Write a file for each run that is missing, for `ddbench work`, and stop.", metavar="DIR"),
]
Attack = Annotated[
    str | None,
    typer.Option("--attack", help="Score under attacks on test images too: fgsm, pgd. [none]", metavar="NAME,NAME"),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Option of the method, or `init.scheme`, `network.width`, ... (repeatable).",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
    ),
]


def named(kind: str, text: str, *flags: str, metavar: str | None = None) -> Any:
    """Return an option that takes a name of a kind (or `protocol`, `experiment`), completed in the shell."""
    return typer.Option(*flags, help=text, metavar=metavar, autocompletion=completion.names(kind))


def merged(
    fields: dict[str, Any], flags: dict[str, Any], assignments: dict[str, Any], method_options: set[str]
) -> "RunSpec":
    """Return a spec: a flag replaces a field; another plugin's name drops the options of the one before."""
    from ddbench.contract.spec import RunSpec, place_assignments

    merged = dict(fields)
    for key, value in flags.items():
        if value is None:
            continue
        before = merged.get(key)
        if not (isinstance(before, dict) and before.get("name") == value):
            merged[key] = value
    return RunSpec.parse(place_assignments(merged, assignments, method_options))


def with_usual_network(
    fields: dict[str, Any], flags: dict[str, Any], assignments: dict[str, Any], catalog: "Catalog"
) -> dict[str, Any]:
    """Return the fields; with the dataset's usual network where `assignments` set options of a network not named.

    So the usual network keeps the options that are not assigned.
    """
    from ddbench.pipeline.plan import usual_network

    unnamed = not any(flags.get(part) or fields.get(part) for part in ("network", "target"))
    if not unnamed or not any(key.startswith("network.") for key in assignments):
        return fields
    about_data = {key: value for key, value in assignments.items() if key.startswith("dataset.")}
    dataset, _ = catalog.resolve("dataset", merged(fields, flags, about_data, set()).dataset)
    return {**fields, "network": usual_network(dataset).model_dump()}


def warn_of_plugins(catalog: "Catalog", wanted: Sequence[Path] | None = None) -> None:
    """Print a warning for each plugin that is broken or slow.

    Raises `PluginError` for a broken one of those `wanted`: a run without the plugin that was asked for is useless.
    """
    from ddbench.discovery.plugin_sources import whole_path

    named = set(map(whole_path, wanted or ()))
    for broken in catalog.broken:
        if broken.path in named:
            raise PluginError(f"{broken}", broken.fix)
    for warning in catalog.warnings():
        sys.stderr.write(f"Warning: {warning}\n")

"""Commands for plugin authors: new-plugin, check."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, warn_of_plugins
from ddbench.contract.component import KINDS, did_you_mean
from ddbench.errors import UsageError
from ddbench.scaffold import FAMILIES

CHECKED = (*KINDS, "experiment", "tracker")
NEW = (*KINDS, "tracker")


def check(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A component, an experiment or a tracker.", autocompletion=completion.checkable)
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="The kind, if several have the name.", autocompletion=lambda: CHECKED),
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Check that a plugin does what the harness and other plugins rely on; exit code 4 if it does not.

    A tracker is named as `ddbench plugins` names it. Nothing is left in the cache.

    Examples: `ddbench check my_method --plugin my_method.py`,
    `ddbench check ddbench_trackers.tensorboard --plugin ddbench_trackers.tensorboard`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.render.installation import status_line
        from ddbench.testing import conform, find, kinds_of

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        if kind is not None and kind not in CHECKED:
            raise UsageError(
                f"there is no kind {kind!r}.{did_you_mean(kind, CHECKED)}", f"The kinds are {', '.join(CHECKED)}."
            )
        kinds = [k for k in kinds_of(name, catalog) if kind in (None, k)]
        if len(kinds) > 1:
            raise UsageError(f"{name!r} is {' and '.join(kinds)}.", f"Choose one: --kind {kinds[0]}")
        thing = find(kinds[0] if kinds else kind or "method", name, catalog)
        outcomes = []
        for outcome in conform(thing, catalog):
            outcomes.append(outcome)
            if not as_json:
                status_line(outcome.status, outcome.check, outcome.text, outcome.advice)
        failed = sum(outcome.status == "failed" for outcome in outcomes)
        if as_json:
            print_json({"status": "failed" if failed else "ok", "checks": [dataclasses.asdict(o) for o in outcomes]})
        else:
            passed = sum(outcome.status == "passed" for outcome in outcomes)
            typer.echo(f"{name} ({thing.distribution}): {passed} checks passed, {failed} failed.")
    if failed:
        raise typer.Exit(4)


def new_plugin(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the plugin: small letters and underscores.")],
    kind: Annotated[
        str,
        typer.Option(
            help="method, init, objective, target, dataset, network, decoder or tracker.", autocompletion=lambda: NEW
        ),
    ] = "method",
    family: Annotated[
        str | None,
        typer.Option(
            help="Write a published method: gradient-matching (DC), distribution-matching (DM) or "
            "trajectory-matching (MTT).",
            autocompletion=lambda: FAMILIES,
        ),
    ] = None,
    into: Annotated[
        Path, typer.Option(help="Folder of the new package, or an existing plugin package to extend.", metavar="DIR")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Write a plugin that installs, passes its tests and runs at once; then replace its idea by yours.

    It becomes a new package, or a further module of the package named by `--into`.

    Examples: `ddbench new-plugin my_method`, `ddbench new-plugin my_dm --family distribution-matching`,
    `ddbench new-plugin other_method --into ddbench-my-method`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.scaffold import new_plugin

        written = new_plugin(name, kind, into, family)
        if as_json:
            files = [str(path) for path in written.files]
            print_json({"status": "ok", "folder": str(written.folder), "files": files, "next": list(written.commands)})
            return
        for path in written.files:
            typer.echo(f"  {path}")
        typer.echo("\nNext:")
        for command in written.commands:
            typer.echo(f"  {command}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("new-plugin")(new_plugin)
    app.command()(check)

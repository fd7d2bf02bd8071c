"""Commands for plugin authors: new-plugin, check."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, warn_of_plugins
from ddbench.contract.component import KINDS
from ddbench.errors import UsageError


def check(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="A method, init, objective, target, dataset or network.", autocompletion=completion.checkable
        ),
    ],
    kind: Annotated[str | None, typer.Option(help="Its kind, where the name is of several.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Check that a plugin does what the harness and other plugins rely on; exit code 4 where it does not.

    Example: `ddbench check my_method --plugin my_method.py`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.render.installation import status_line
        from ddbench.testing import conform

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog)
        if kind is not None and kind not in KINDS:
            raise UsageError(f"there is no kind {kind!r}.", f"The kinds are {', '.join(KINDS)}.")
        kinds = [k for k in KINDS if kind in (None, k) and any(c.name == name for c in catalog.components(k))]
        if len(kinds) > 1:
            raise UsageError(f"{name!r} is {' and '.join(kinds)}.", f"Say which: --kind {kinds[0]}")
        component = catalog.get(kinds[0] if kinds else kind or "method", name)
        outcomes = []
        for outcome in conform(component, catalog):
            outcomes.append(outcome)
            if not as_json:
                status_line(outcome.status, outcome.check, outcome.text, outcome.advice)
        failed = sum(outcome.status == "failed" for outcome in outcomes)
        if as_json:
            print_json({"status": "failed" if failed else "ok", "checks": [dataclasses.asdict(o) for o in outcomes]})
        else:
            passed = sum(outcome.status == "passed" for outcome in outcomes)
            typer.echo(f"{component.who}: {passed} checks passed, {failed} failed.")
    if failed:
        raise typer.Exit(4)


def new_plugin(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What the plugin will be called: small letters and underscores.")],
    kind: Annotated[
        str, typer.Option(help="method, init, objective, target, dataset or network.", autocompletion=lambda: KINDS)
    ] = "method",
    into: Annotated[Path, typer.Option(help="Folder that the new one is made in.", metavar="DIR")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a package with one plugin that installs, passes its tests and runs at once; then replace its idea by yours.

    Example: `ddbench new-plugin my_method`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.scaffold import new_plugin

        made = new_plugin(name, kind, into)
        if as_json:
            files = [str(path) for path in made.files]
            print_json({"status": "ok", "folder": str(made.folder), "files": files, "next": list(made.commands)})
            return
        for path in made.files:
            typer.echo(f"  {path}")
        typer.echo("\nNext:")
        for command in made.commands:
            typer.echo(f"  {command}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("new-plugin")(new_plugin)
    app.command()(check)

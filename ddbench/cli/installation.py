"""Commands about this installation: plugins, doctor."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli.indexed import current_index
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import DEFAULT_LEADERBOARDS, Json, Leaderboards, Plugins


def plugins(ctx: typer.Context, plugin: Plugins = None, as_json: Json = False) -> None:
    """List the plugins with what they offer, and the broken or disabled ones with the reason.

    Example: `ddbench plugins`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        index = current_index(plugin or [], recheck=True)
        if as_json:
            broken = [failure.model_dump(exclude={"text"}) for failure in index.broken]
            loaded = [entry.model_dump() for entry in index.plugins]
            print_json({"status": "ok", "plugins": loaded, "broken": broken, "disabled": index.disabled})
            return
        from ddbench.render.installation import plugin_table

        plugin_table(index)


def doctor(
    ctx: typer.Context,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.", metavar="DIR")] = Path("runs"),
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Check this installation: libraries, device, folders, plugins, data; exit code 1 if something needs a fix.

    Example: `ddbench doctor`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.doctor import examine
        from ddbench.render.installation import status_line

        findings = []
        for finding in examine(Catalog(plugin or []), runs, leaderboards):
            findings.append(finding)
            if not as_json:
                status_line(finding.status, finding.about, finding.text, finding.fix)
        failed = any(finding.status == "fault" for finding in findings)
        if as_json:
            print_json({"status": "failed" if failed else "ok", "findings": [dataclasses.asdict(f) for f in findings]})
    if failed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(plugins)
    app.command()(doctor)

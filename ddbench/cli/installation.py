"""Commands about this installation: plugins, doctor."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli.output import failures_told, print_json
from ddbench.cli.shared import DEFAULT_LEADERBOARDS, Json, Leaderboards, Plugins


def plugins(ctx: typer.Context, plugin: Plugins = None, as_json: Json = False) -> None:
    """Name the plugins that were found, what they offer, and what is wrong with those set aside."""
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.render.installation import plugin_table

        catalog = Catalog(plugin or [])
        found = [
            {
                "name": p.name,
                "distribution": p.distribution,
                "offers": p.offers,
                "hooks": p.hook_names,
                "seconds": round(p.seconds, 3),
            }
            for p in catalog.plugins
        ]
        broken = [{"name": b.name, "distribution": b.distribution, "error": b.error} for b in catalog.broken]
        if as_json:
            print_json({"status": "ok", "plugins": found, "broken": broken, "disabled": catalog.disabled})
            return
        plugin_table(catalog)


def doctor(
    ctx: typer.Context,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.", metavar="DIR")] = Path("runs"),
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Say what this installation has and lacks, and what to do about it; exit code 1 where something needs mending.

    Example: `ddbench doctor`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.doctor import examine
        from ddbench.render.installation import status_line

        findings = []
        for finding in examine(Catalog(plugin or []), runs, leaderboards):
            findings.append(finding)
            if not as_json:
                status_line(finding.status, finding.about, finding.text, finding.fix)
        ill = any(finding.status == "fault" for finding in findings)
        if as_json:
            print_json({"status": "failed" if ill else "ok", "findings": [dataclasses.asdict(f) for f in findings]})
    if ill:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(plugins)
    app.command()(doctor)

"""Commands that say what there is: list, show."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.cli.output import failures_told, print_json
from ddbench.cli.shared import Json, Plugins, warn_of_plugins
from ddbench.contract.component import KINDS, did_you_mean
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.contract.component import Component
    from ddbench.discovery.catalog import Catalog

PLURALS = {f"{kind}s": kind for kind in KINDS}
UNCONFIGURED = ("protocols", "experiments", "pools")
LISTED = (*PLURALS, *UNCONFIGURED)


def list_(
    ctx: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(LISTED)}.", autocompletion=lambda: LISTED)
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """List what there is: methods, datasets, networks, init distributions, objectives, protocols, experiments, pools.

    Examples: `ddbench list`, `ddbench list datasets`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.render.cards import listing

        wanted = [kind if kind in LISTED else f"{kind}s"] if kind else list(LISTED)
        if wanted[0] not in LISTED:
            raise UsageError(
                f"there are no {kind}.{did_you_mean(kind or '', LISTED)}", f"Name one of {', '.join(LISTED)}."
            )
        catalog = Catalog(plugin or [])
        if not plugin:
            completion.remember(catalog)
        entries = {name: _entries(catalog, name) for name in wanted}
        if as_json:
            print_json({"status": "ok", **entries})
            return
        listing(entries, [str(broken) for broken in catalog.broken])


def show(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A name from `ddbench list`, or a run folder.", autocompletion=completion.anything)
    ],
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Explain one thing: a plugin's help and options, or what a run found.

    Examples: `ddbench show unrolled_gd`, `ddbench show runs/unrolled_gd-digits-ipc1-3f9a1c`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        folder = Path(name) if Path(name).is_dir() else Path("runs") / name
        if folder.is_dir():
            _show_run(folder, as_json)
            return
        from ddbench.discovery.catalog import Catalog
        from ddbench.render.cards import card

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog)
        found = [c for kind in KINDS for c in catalog.components(kind) if c.name == name]
        listed = () if found else (e for plural in UNCONFIGURED for e in _entries(catalog, plural))
        entry = next((e for e in listed if e["name"] == name), None)
        if entry:
            if as_json:
                print_json({"status": "ok", "found": [entry]})
            else:
                typer.echo(f"{entry['name']}  ({entry['source']})\n\n{entry['summary']}")
                typer.echo(_what_it_runs(catalog, name))
            return
        found = found or _anything(catalog, name)
        if as_json:
            print_json({"status": "ok", "found": [_described(component) for component in found]})
            return
        for component in found:
            card(component)


def _entries(catalog: "Catalog", plural: str) -> list[dict[str, str]]:
    if plural == "protocols":
        from ddbench.protocols import PROTOCOLS

        return [{"name": p.name, "summary": p.summary, "source": "ddbench"} for p in PROTOCOLS.values()]
    if plural == "experiments":
        return [{"name": e.name, "summary": e.summary, "source": e.distribution} for e in catalog.experiments()]
    if plural == "pools":
        from ddbench.pipeline.pools import list_pools
        from ddbench.render.tables import pool_summary

        return [{"name": p.folder.name, "summary": pool_summary(p), "source": "cache"} for p in list_pools()]
    components = catalog.components(PLURALS[plural])
    return [{"name": c.name, "summary": c.summary, "source": c.distribution} for c in components]


def _what_it_runs(catalog: "Catalog", name: str) -> str:
    """The spec of a named experiment, and the figure it answers to; nothing for other names."""
    found = next((e for e in catalog.experiments() if e.name == name), None)
    if found is None:
        return ""
    fields = {**found.spec, **({"sweep": found.sweep.model_dump()} if found.sweep else {})}
    if found.published is not None:
        fields["published"] = found.published.model_dump(exclude_none=True)
    return "\n" + json.dumps(fields, indent=2)


def _anything(catalog: "Catalog", name: str) -> "list[Component]":
    """The components of an open-ended name, or a `UsageError` with the nearest of all names."""
    from ddbench.contract.spec import RunSpec
    from ddbench.pipeline.data import info_from_facts

    info = info_from_facts(catalog.get("dataset", RunSpec.model_fields["dataset"].default.name))
    found = [catalog.find("dataset", name), catalog.find("network", name, info), catalog.find("target", name)]
    if any(found):
        return [component for component in found if component is not None]
    known = [c.name for kind in KINDS for c in catalog.components(kind)]
    raise UsageError(f"there is nothing called {name!r}.{did_you_mean(name, known)}", "See: ddbench list")


def _described(component: "Component") -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "source": component.distribution,
        "help": component.help,
        "facts": component.shown_facts,
        "options": component.options.model_json_schema().get("properties", {}),
    }


def _show_run(path: Path, as_json: bool) -> None:
    from ddbench.records.result import RunFolder
    from ddbench.render.tables import result_lines

    folder = RunFolder(path)
    spec = folder.read_spec()
    result = folder.read_result()
    if result is None:
        raise UsageError(
            f"{path} holds a run of {spec.method.name} that has not ended.", f"Go on with: ddbench resume {path}"
        )
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for line in result_lines(result, folder, None):
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("list")(list_)
    app.command()(show)

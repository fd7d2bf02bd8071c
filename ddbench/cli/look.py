"""Commands that look: list, show, leaderboard, compare, verify, reproduction."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.cli.output import failures_told, print_json
from ddbench.cli.shared import DEFAULT_LEADERBOARDS, Json, Leaderboards, Plugins, named, warn_of_plugins
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.options import KINDS, did_you_mean

if TYPE_CHECKING:
    from ddbench.catalog import Catalog
    from ddbench.options import Component

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
        from ddbench.catalog import Catalog
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
        from ddbench.catalog import Catalog
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


def leaderboard(
    ctx: typer.Context,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    dataset: Annotated[str | None, named("dataset", "Only this dataset.", "--dataset", "-d")] = None,
    method: Annotated[str | None, named("method", "Only this method.", "--method", "-m")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the rows as a static page into this folder.", metavar="DIR")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look for rows that ddbench could not have written; exit code 1 if any.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rank what was run. Only runs of the same data, network, init, budget and protocol share a ranking.

    Example: `ddbench leaderboard --dataset svhn`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        if check:
            _check(leaderboards, as_json)
            return
        from ddbench.leaderboard import published, read_sound
        from ddbench.ranking import groups
        from ddbench.render.tables import published_table, ranking

        rows = [
            row
            for row in read_sound(leaderboards)
            if (dataset is None or row.dataset.split("@")[0] == dataset.split("@")[0]) and method in (None, row.method)
        ]
        apart = [p for p in published(leaderboards) if dataset in (None, p.dataset) and method in (None, p.method)]
        if as_json:
            from ddbench.fairness import of_row

            print_json(
                {
                    "status": "ok",
                    "rows": [{**row.model_dump(), "fairness": of_row(row, rows)} for row in rows],
                    "published": [figure.model_dump() for figure in apart],
                }
            )
            return
        if html is not None:
            from ddbench.catalog import Catalog
            from ddbench.render.site import write_site

            typer.echo(f"Wrote {write_site(html, rows, apart, leaderboards, Catalog())}")
            return
        if not rows:
            one_of = dataset or method
            typer.echo(
                "No rows of that dataset or method."
                if one_of
                else "No rows yet. Make one: ddbench run --method unrolled_gd"
            )
        ranking(groups(rows))
        if dataset is not None:
            published_table(apart)


def _check(leaderboards: Path, as_json: bool) -> None:
    from ddbench.faults import faults
    from ddbench.leaderboard import read

    found, count = faults(leaderboards), len(read(leaderboards))
    if as_json:
        print_json({"status": "failed" if found else "ok", "rows": count, "faults": found})
    else:
        for line in found or [f"{count} rows, none at fault."]:
            typer.echo(line)
    if found:
        raise typer.Exit(1)


def verify(
    ctx: typer.Context,
    row: Annotated[
        str | None,
        typer.Argument(help="A run, or the beginning of its name or fingerprint.", autocompletion=completion.runs),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row whose artefact, data and pretrained networks are here.")
    ] = False,
    networks: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on the first few of its networks only. [all]")
    ] = None,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Evaluate the distilled set of a row again and say whether its figure holds; exit code 1 when it does not.

    Examples: `ddbench verify unrolled_gd-mnist-ipc1-9cd09d`, `ddbench verify --all --networks 3`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench import verify as verifying
        from ddbench.catalog import Catalog
        from ddbench.leaderboard import read
        from ddbench.render.live import live
        from ddbench.results import artifact_path

        if every == (row is not None):
            raise UsageError("name one row, or --all.", "See the runs in: ddbench leaderboard")
        rows = [verifying.find(leaderboards, row)] if row is not None else read(leaderboards)
        catalog, verdicts, missing, not_verified = Catalog(plugin or []), {}, list[str](), list[str]()
        with live() as reporter:
            for one in rows:
                if every and not artifact_path(leaderboards, one.artifact_sha256).exists():
                    continue
                try:
                    verdict = verifying.verify(one, leaderboards, catalog, reporter, networks=networks, fetch=not every)
                except DdbenchError as error:
                    if not every:
                        raise
                    (missing if isinstance(error, MissingPrerequisite) else not_verified).append(one.run_id)
                    reporter.say(f"{one.run_id} could not be verified: {error.message} {error.hint}")
                    continue
                verdicts[one.run_id] = {"holds": verdict.holds, "how": verdict.how, "mean": verdict.found.mean}
                if not as_json:
                    typer.echo(f"{one.run_id}: {one.metric} {verdict.how}")
        holds = all(verdict["holds"] for verdict in verdicts.values()) and not not_verified
        if as_json:
            status = "ok" if holds else "failed"
            print_json({"status": status, "rows": verdicts, "missing": missing, "not_verified": not_verified})
        elif every:
            typer.echo(f"{len(verdicts)} rows verified, {len(missing)} passed over for what is not here.")
        if every and not verdicts and not not_verified:
            raise MissingPrerequisite("no row could be verified with what is here.", "See why above.")
    if not holds:
        raise typer.Exit(1)


def compare(
    ctx: typer.Context,
    first: Annotated[
        str,
        typer.Argument(
            help="A run, or the beginning of its name or fingerprint.", metavar="A", autocompletion=completion.runs
        ),
    ],
    second: Annotated[str, typer.Argument(help="Another.", metavar="B", autocompletion=completion.runs)],
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    as_json: Json = False,
) -> None:
    """Compare two rows in pairs: the same networks, and every distillation seed that both were run with.

    Example: `ddbench compare unrolled_gd-mnist-ipc10-958f79 herding-mnist-ipc10-1f0c22`
    """
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench.leaderboard import read_sound
        from ddbench.ranking import COMPARED, seeds_of
        from ddbench.render.tables import difference_line
        from ddbench.stats import paired
        from ddbench.verify import find

        rows = read_sound(leaderboards)
        one, two = (find(leaderboards, name, of_any_seed=True) for name in (first, second))
        cells = [(name, getattr(one, name), getattr(two, name)) for name in COMPARED]
        apart = [f"{name} {ours!r} and {theirs!r}" for name, ours, theirs in cells if ours != theirs]
        if apart:
            raise UsageError(
                f"{one.run_id} and {two.run_id} do not share a ranking: their rows say {', '.join(apart)}.",
                "Run both alike to compare them.",
            )
        ours, theirs = seeds_of(rows, one), seeds_of(rows, two)
        shared = sorted(ours.keys() & theirs.keys())
        pairs = [(ours[seed], theirs[seed]) for seed in shared] or [(one, two)]
        if any(a.n != b.n for a, b in pairs):
            raise UsageError(
                f"{one.run_id} was scored on {one.n} networks, {two.run_id} on {two.n}.",
                "Score both on as many: --eval-networks",
            )
        difference = paired([json.loads(a.values) for a, _ in pairs], [json.loads(b.values) for _, b in pairs])
        if as_json:
            print_json({"status": "ok", **difference.model_dump(), "shown": difference.shown, "seeds": shared})
            return
        typer.echo(difference_line(one, two, difference))


def reproduction(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.", metavar="FILE")] = Path(
        "docs/reproduction.md"
    ),
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
) -> None:
    """Write the page that sets the rows of named experiments beside the published figures.

    Example: `ddbench reproduction --output docs/reproduction.md`
    """
    with failures_told(verbose=ctx.obj):
        from ddbench.catalog import Catalog
        from ddbench.files import atomic_write
        from ddbench.leaderboard import read
        from ddbench.render.reproduction import page

        atomic_write(output, page(Catalog(plugin or []), read(leaderboards)))
        typer.echo(f"Wrote {output}")


def _entries(catalog: "Catalog", plural: str) -> list[dict[str, str]]:
    if plural == "protocols":
        from ddbench.protocols import PROTOCOLS

        return [{"name": p.name, "summary": p.summary, "source": "ddbench"} for p in PROTOCOLS.values()]
    if plural == "experiments":
        return [{"name": e.name, "summary": e.summary, "source": e.distribution} for e in catalog.experiments()]
    if plural == "pools":
        from ddbench.pools import list_pools
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
    from ddbench.loading import info_from_facts
    from ddbench.spec import RunSpec

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
    from ddbench.render.tables import result_lines
    from ddbench.results import RunFolder

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
    app.command()(leaderboard)
    app.command()(compare)
    app.command()(reproduction)
    app.command()(verify)

"""Commands about leaderboards: leaderboard, compare, verify, reproduction."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import DEFAULT_LEADERBOARDS, Json, Leaderboards, Plugins, named
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError


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
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        if check:
            _check(leaderboards, as_json)
            return
        from ddbench.records.leaderboard import published, read_sound
        from ddbench.records.ranking import groups
        from ddbench.render.tables import published_table, ranking

        rows = [
            row
            for row in read_sound(leaderboards)
            if (dataset is None or row.dataset.split("@")[0] == dataset.split("@")[0]) and method in (None, row.method)
        ]
        apart = [p for p in published(leaderboards) if dataset in (None, p.dataset) and method in (None, p.method)]
        if as_json:
            from ddbench.records.dd_ranking import of_row

            print_json(
                {
                    "status": "ok",
                    "rows": [{**row.model_dump(), "fairness": of_row(row, rows)} for row in rows],
                    "published": [figure.model_dump() for figure in apart],
                }
            )
            return
        if html is not None:
            from ddbench.discovery.catalog import Catalog
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
    from ddbench.records.audit import faults
    from ddbench.records.leaderboard import read

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
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline import verify as verifying
        from ddbench.records.leaderboard import read
        from ddbench.records.result import artifact_path
        from ddbench.render.live import live

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
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.pipeline.verify import find
        from ddbench.records.leaderboard import read_sound
        from ddbench.records.ranking import COMPARED, seeds_of
        from ddbench.records.stats import paired
        from ddbench.render.tables import difference_line

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
    with explained_failures(verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.machine.files import atomic_write
        from ddbench.records.leaderboard import read
        from ddbench.render.reproduction import page

        atomic_write(output, page(Catalog(plugin or []), read(leaderboards)))
        typer.echo(f"Wrote {output}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(leaderboard)
    app.command()(compare)
    app.command()(reproduction)
    app.command()(verify)

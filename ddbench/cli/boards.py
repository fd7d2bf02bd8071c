"""Commands about leaderboards: leaderboard, compare, verify, reproduction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import DEFAULT_LEADERBOARDS, Json, Leaderboards, Plugins, named
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError

if TYPE_CHECKING:
    from ddbench.records.leaderboard import PublishedRow
    from ddbench.records.result import RunResult


def leaderboard(
    ctx: typer.Context,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    dataset: Annotated[str | None, named("dataset", "Only this dataset.", "--dataset", "-d")] = None,
    method: Annotated[str | None, named("method", "Only this method.", "--method", "-m")] = None,
    protocol: Annotated[str | None, named("protocol", "Only this protocol.", "--protocol")] = None,
    network: Annotated[
        str | None, named("network", "Only scores on networks of this architecture.", "--network", "-n")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write the records as a static page into this folder; as one file where the name ends in .html.",
            metavar="DIR",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look for records that ddbench could not have written; exit code 1 if any.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Write the CSVs anew from the records; this settles a merge conflict in a CSV."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every method in every ranking, then rank what was run.

    Only runs of the same data, network, init, budget and protocol share a ranking. Without a filter, the largest
    ranking is shown in full.

    Examples: `ddbench leaderboard --dataset svhn`, `ddbench leaderboard --html page`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        if rebuild:
            _rebuild(leaderboards, as_json)
        if check:
            _check(leaderboards, as_json)
        if rebuild or check:
            return
        from ddbench.records.leaderboard import published
        from ddbench.records.matrix import network_of
        from ddbench.records.store import read
        from ddbench.render.rankings import published_table

        records = [
            record
            for record in read(leaderboards)
            if (dataset is None or (record.dataset and record.dataset.name.split("@")[0] == dataset.split("@")[0]))
            and method in (None, record.settings.method.name)
            and protocol in (None, record.settings.protocol)
            and network in (None, network_of(record), network_of(record).partition("(")[0])
        ]
        figures = [f for f in published(leaderboards) if dataset in (None, f.dataset) and method in (None, f.method)]
        filtered = bool(dataset or method or protocol or network)
        if as_json:
            print_json(_document(records, figures))
            return
        if html is not None:
            from ddbench.discovery.catalog import Catalog
            from ddbench.render.site import write_site

            typer.echo(f"Wrote {write_site(html, records, figures, leaderboards, Catalog())}")
            return
        if not records:
            typer.echo(
                "There are no records of that dataset, method, protocol or network."
                if filtered
                else "There are no records yet. Make one: ddbench run --method unrolled_gd"
            )
        else:
            _print_rankings(records, in_full=filtered)
        if dataset is not None:
            published_table(figures)


def _print_rankings(records: "list[RunResult]", *, in_full: bool) -> None:
    """Print the matrix of the usual protocol and network, then all rankings, or the largest where not `in_full`."""
    from ddbench.records.matrix import Matrix, network_of, usual
    from ddbench.records.ranking import groups
    from ddbench.render.rankings import matrix, ranking

    rankings = groups(records)
    protocol, network = usual(rankings)
    standing = [
        lines
        for lines in rankings
        if (lines[0].first.settings.protocol, network_of(lines[0].first)) == (protocol, network)
    ]
    matrix(Matrix.build(standing))
    if in_full or len(rankings) == 1:
        ranking(rankings)
        return
    largest = max(standing, key=len)
    ranking([largest])
    others = sorted(
        {f"--protocol {lines[0].first.settings.protocol}" for lines in rankings} - {f"--protocol {protocol}"}
    )
    networks = {network_of(lines[0].first) for lines in rankings} - {network, ""}
    others += [f"--network '{name}'" if "(" in name else f"--network {name}" for name in sorted(networks)]
    count = len(rankings) - 1
    typer.echo(f"{count} more ranking{'s' * (count != 1)}: add --dataset NAME or --method NAME.")
    if others:
        typer.echo(f"Other matrices: {', '.join(others)}.")


def _document(records: "list[RunResult]", figures: "list[PublishedRow]") -> dict[str, Any]:
    """Return the rows of the CSVs with their fairness scores, and the published figures, as JSON values."""
    from ddbench.records.columns import COLUMNS
    from ddbench.records.dd_ranking import fairness_of

    rows = [
        {**{column.name: column.cell(record) for column in COLUMNS}, "fairness": fairness_of(record, records)}
        for record in records
    ]
    return {"status": "ok", "rows": rows, "published": [figure.model_dump() for figure in figures]}


def _rebuild(leaderboards: Path, as_json: bool) -> None:
    from ddbench.records.store import rebuild

    paths = [str(path) for path in rebuild(leaderboards)]
    if as_json:
        print_json({"status": "ok", "written": paths})
        return
    for path in paths:
        typer.echo(f"Wrote {path}")


def _check(leaderboards: Path, as_json: bool) -> None:
    from ddbench.records.audit import audit

    checked = audit(leaderboards)
    problems, count, notices = checked.problems, checked.records, checked.notices
    if as_json:
        status = "failed" if problems else "ok"
        print_json({"status": status, "records": count, "problems": problems, "notices": notices})
    else:
        summary = f"{count} record{'s' * (count != 1)}, none invalid."
        for line in [*(problems or [summary]), *(f"Not checked in full: {notice}." for notice in notices)]:
            typer.echo(line)
    if problems:
        raise typer.Exit(1)


def verify(
    ctx: typer.Context,
    row: Annotated[
        str | None,
        typer.Argument(help="A run, or the beginning of its name or fingerprint.", autocompletion=completion.runs),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every record whose distilled set, data and pretrained networks are here.")
    ] = False,
    networks: Annotated[
        int | None, typer.Option(min=1, help="Score on the first few of its networks only. [all]")
    ] = None,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Score the distilled set of a record again and report whether its number holds; exit code 1 if it does not.

    Examples: `ddbench verify unrolled_gd-mnist-ipc1-9cd09d`, `ddbench verify --all --networks 3`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.records.leaderboard import find
        from ddbench.records.store import artifact_path, read

        if every == (row is not None):
            raise UsageError("name one record, or --all.", "See the runs in: ddbench leaderboard")
        records = [find(leaderboards, row)] if row is not None else read(leaderboards)
        present = [
            record
            for record in records
            if row is not None or (record.artifact and artifact_path(leaderboards, record.artifact.sha256).exists())
        ]
        verdicts, missing, failed = _verify(present, leaderboards, networks, plugin, every, as_json)
        holds = all(verdict["holds"] for verdict in verdicts.values()) and not failed
        if as_json:
            status = "ok" if holds else "failed"
            print_json({"status": status, "rows": verdicts, "missing": missing, "not_verified": failed})
        elif every:
            absent = len(records) - len(present)
            typer.echo(
                f"{len(verdicts)} of {len(records)} records verified, {len(failed)} could not be; skipped: "
                f"{absent} without a distilled set here, {len(missing)} without data or networks."
            )
        if every and not verdicts and not failed:
            raise MissingPrerequisite("no record could be verified with what is here.", "See why above.")
    if not holds:
        raise typer.Exit(1)


def _verify(
    records: "list[RunResult]",
    leaderboards: Path,
    networks: int | None,
    plugins: list[Path] | None,
    every: bool,
    as_json: bool,
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Verify records, and return the verdicts, the runs that lack something here, and those that failed."""
    from ddbench.discovery.catalog import Catalog
    from ddbench.pipeline.verify import verify
    from ddbench.render.live import live

    catalog, verdicts, missing, failed = Catalog(plugins or []), {}, list[str](), list[str]()
    with live() as reporter:
        for record in records:
            score = record.scores[record.primary]
            reporter.say(
                f"{record.run_id}: scoring its distilled set again under {record.settings.protocol} on "
                f"{min(networks or score.n, score.n)} of {score.n} networks; recorded {record.primary} {score.mean:.4f}"
            )
            try:
                verdict = verify(record, leaderboards, catalog, reporter, networks=networks, fetch=not every)
            except DdbenchError as error:
                if not every:
                    raise
                (missing if isinstance(error, MissingPrerequisite) else failed).append(record.run_id)
                reporter.say(f"{record.run_id} could not be verified: {error.message} {error.hint}")
                continue
            verdicts[record.run_id] = {"holds": verdict.holds, "how": verdict.how, "mean": verdict.score.mean}
            if not as_json:
                typer.echo(f"{record.run_id}: {record.primary} {verdict.how}")
    return verdicts, missing, failed


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
    """Compare two records in pairs: the same networks, and every distillation seed that both were run with.

    Example: `ddbench compare unrolled_gd-mnist-ipc10-958f79 herding-mnist-ipc10-1f0c22`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.records.leaderboard import find
        from ddbench.records.ranking import Line, compared, seeds_of
        from ddbench.records.stats import paired
        from ddbench.records.store import read
        from ddbench.render.rankings import difference_line, notes
        from ddbench.render.tables import shortfalls

        records = read(leaderboards)
        one, other = (find(leaderboards, name, any_seed=True) for name in (first, second))
        cells = [(column.name, column.cell(one), column.cell(other)) for column in compared(one)]
        differing = [f"{name} {a!r} and {b!r}" for name, a, b in cells if a != b]
        if differing:
            raise UsageError(
                f"{one.run_id} and {other.run_id} do not share a ranking: their records say {', '.join(differing)}.",
                "Run both alike to compare them.",
            )
        by_seed = seeds_of(records, one), seeds_of(records, other)
        shared = sorted(by_seed[0].keys() & by_seed[1].keys())
        pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in shared] or [(one, other)]
        scores = [tuple(record.scores[record.primary] for record in pair) for pair in pairs]
        if any(a.n != b.n for a, b in scores):
            raise UsageError(
                f"{one.run_id} was scored on {scores[0][0].n} networks, {other.run_id} on {scores[0][1].n}.",
                "Score both on as many: --eval-networks",
            )
        difference = paired([a.values for a, _ in scores], [b.values for _, b in scores])
        if as_json:
            missed = {record.run_id: shortfalls(record.metrics, record.means) for record in (one, other)}
            document = {**difference.model_dump(), "shown": difference.shown, "seeds": shared, "missed": missed}
            print_json({"status": "ok", **document})
            return
        typer.echo(difference_line(one, other, difference))
        for note in notes([Line.join([one]), Line.join([other])]):
            typer.echo(note)


def reproduction(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.", metavar="FILE")] = Path(
        "docs/reproduction.md"
    ),
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
) -> None:
    """Write the page that compares the records of named experiments with the published figures.

    Example: `ddbench reproduction --output docs/reproduction.md`
    """
    with explained_failures(verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.machine.files import atomic_write
        from ddbench.records.store import read
        from ddbench.render.reproduction import page

        atomic_write(output, page(Catalog(plugin or []), read(leaderboards)))
        typer.echo(f"Wrote {output}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(leaderboard)
    app.command()(compare)
    app.command()(reproduction)
    app.command()(verify)

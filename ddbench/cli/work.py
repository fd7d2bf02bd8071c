"""Commands for several processes: work, and what the commands about many runs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog
    from ddbench.pipeline.jobs import Carrier, Job


def work(
    ctx: typer.Context,
    jobs: Annotated[list[Path], typer.Argument(help="Files that --emit wrote.", metavar="FILE...")],
    as_json: Json = False,
) -> None:
    """Carry out runs that `--emit` wrote, one after the other; exit code 1 if one failed.

    A run that another process is working on is left to it, and one that was stopped goes on where it was.

    Example: `ddbench work jobs/0001-dm-digits-ipc1-3f9a1c.json`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.pipeline.launch import work as carry_out_files
        from ddbench.render.live import live

        with live() as reporter:
            outcomes = carry_out_files(jobs, reporter)
        if as_json:
            print_json({"status": "ok", "runs": [o.model_dump(mode="json", exclude={"result"}) for o in outcomes]})
        for outcome in outcomes:
            typer.echo(f"{outcome.label}: {outcome.in_words}")
        if any(outcome.state == "failed" for outcome in outcomes):
            raise typer.Exit(1)


def carrier(launcher: str | None, catalog: "Catalog") -> "Carrier":
    """Return the way of carrying out runs that `--launcher` names. Raises `UsageError` for one that there is not."""
    from ddbench.pipeline.jobs import carry_out
    from ddbench.pipeline.launch import by_launcher, parse_launcher

    return carry_out if launcher is None else by_launcher(*parse_launcher(launcher, catalog))


def emit_jobs(
    jobs: "Sequence[Job]", folder: Path, catalog: "Catalog", runs: Path, leaderboards: Path, as_json: bool
) -> None:
    """Write a file for each run that is missing, and print the command that carries one out."""
    from ddbench.pipeline.jobs import look_up, records_by_run
    from ddbench.pipeline.launch import write_jobs

    recorded = records_by_run(leaderboards)
    missing = [job for job in jobs if look_up(job, runs, recorded).state not in ("present", "skipped")]
    paths = write_jobs(missing, folder, catalog, runs=runs, leaderboards=leaderboards)
    if as_json:
        print_json({"status": "planned", "jobs": list(map(str, paths))})
        return
    typer.echo(f"Wrote {len(paths)} jobs to {folder}; {len(jobs) - len(paths)} runs are there or are skipped.")
    if paths:
        typer.echo(f"Carry one out with: ddbench work {paths[0]}")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(work)

"""Commands about suites: suite list, show, run, status."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.cli.indexed import current_index
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import (
    DEFAULT_LEADERBOARDS,
    Emit,
    Json,
    Launcher,
    Leaderboards,
    Plugins,
    named,
    warn_of_plugins,
)
from ddbench.cli.work import carrier, emit_jobs
from ddbench.contract.component import parse_assignments
from ddbench.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from ddbench.pipeline.suite import SuiteResult

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Compare methods on every task of a suite.",
)

Name = Annotated[
    str,
    typer.Argument(
        help="A suite (ddbench suite list), or a TOML file.", metavar="SUITE", autocompletion=completion.names("suite")
    ),
]
Methods = Annotated[
    str | None, named("method", "Methods, separated by commas. [those of the suite]", "--method", "-m", metavar="A,B")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", help="Option of a method on every task (repeatable).", metavar="METHOD.KEY=VALUE"),
]
Runs = Annotated[Path, typer.Option(help="Folder of the run folders.", metavar="DIR")]
DEFAULT_RUNS = Path("runs")


@app.command("list")
def list_(ctx: typer.Context, plugin: Plugins = None, as_json: Json = False) -> None:
    """List the suites that there are.

    Example: `ddbench suite list`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        index = current_index(plugin or [])
        suites = index.of_kind("suite")
        if as_json:
            print_json(
                {"status": "ok", "suites": [s.model_dump(include={"name", "summary", "source"}) for s in suites]}
            )
            return
        from ddbench.render.cards import listing

        listing({"suites": suites}, [failure.text for failure in index.broken])


@app.command()
def show(ctx: typer.Context, name: Name, plugin: Plugins = None, as_json: Json = False) -> None:
    """Show the methods and the tasks of a suite.

    Example: `ddbench suite show smoke`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog

        suite = Catalog(plugin or []).suite(name)
        if as_json:
            print_json({"status": "ok", **suite.model_dump(mode="json")})
            return
        from ddbench.render.suites import suite_card

        suite_card(suite)


@app.command()
def run(
    ctx: typer.Context,
    name: Name,
    method: Methods = None,
    assignments: Options = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    split: Annotated[
        str | None, typer.Option("--on", help="Score on test, or on validation, which leaves no rows. [test]")
    ] = None,
    launcher: Launcher = None,
    emit: Emit = None,
    runs: Runs = DEFAULT_RUNS,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run methods on every task of a suite, and print the matrix of all that is there; exit code 1 if a run failed.

    What is there is not run again: the same command goes on where it was stopped.

    Examples: `ddbench suite run smoke`, `ddbench suite run small --plugin my_method.py --method my_method`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.suite import plan_suite, run_suite
        from ddbench.render.live import live

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        options, fields = _by_method(assignments or []), _fields(device=device, split=split)
        if emit is not None:
            jobs = plan_suite(catalog.suite(name), _names(method), catalog, options, fields)
            emit_jobs(list(jobs.values()), emit, catalog, runs, leaderboards, as_json)
            return
        carry = carrier(launcher, catalog)
        with _resumable(name), live() as reporter:
            result = run_suite(
                name,
                _names(method),
                options=options,
                fields=fields,
                carry=carry,
                catalog=catalog,
                runs=runs,
                leaderboards=leaderboards,
                reporter=reporter,
            )
        _conclude(result, as_json)
        if result.failed:
            raise typer.Exit(1)


@app.command()
def tune(
    ctx: typer.Context,
    name: Name,
    method: Annotated[str, named("method", "The method to tune.", "--method", "-m", metavar="METHOD")],
    spaces: Annotated[
        list[str],
        typer.Option(
            "--try", help="Option to tune, with its range or its values (repeatable).", metavar="KEY=LOW..HIGH"
        ),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Options that are tried in all.")] = 20,
    assignments: Options = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    runs: Runs = DEFAULT_RUNS,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Choose options of a method on validation data, then run the suite once with the best ones.

    Trials are scored on the validation slice and leave no rows. The rows of the chosen options, scored on the test
    split, say how many trials there were. The same command goes on where it was stopped.

    Example: `ddbench suite tune smoke --method dm --try outer_lr=0.1..10 --trials 10`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.suite import run_suite
        from ddbench.pipeline.tune import parse_space, tune
        from ddbench.render.live import live
        from ddbench.render.suites import print_tuning

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        fixed = _by_method(assignments or [])
        stray = next((other for other in fixed if other != method), None)
        if stray is not None:
            raise UsageError(f"--set {stray}.…: {method} is tuned alone.", f"Write --set {method}.KEY=VALUE")
        parsed = parse_space(spaces)
        fields = _fields(device=device)
        with _resumable(name), live() as reporter:
            tuning = tune(
                name, method, parsed, trials, options=fixed.get(method), fields=fields, catalog=catalog,
                reporter=reporter, runs=runs, leaderboards=leaderboards,
            )  # fmt: skip
            if not as_json:
                print_tuning(tuning)
            chosen = {method: {**fixed.get(method, {}), **tuning.best}}
            fields["trials"] = len(tuning.trials)
            result = run_suite(
                name,
                [method],
                options=chosen,
                fields=fields,
                catalog=catalog,
                reporter=reporter,
                runs=runs,
                leaderboards=leaderboards,
            )
        _conclude(result, as_json, tuning=tuning.model_dump(mode="json"))
        if result.failed:
            raise typer.Exit(1)


@app.command()
def status(
    ctx: typer.Context,
    name: Name,
    method: Methods = None,
    assignments: Options = None,
    split: Annotated[str | None, typer.Option("--on", help="Split that scores: test or validation. [test]")] = None,
    runs: Runs = DEFAULT_RUNS,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Print what is there of a suite, and what is missing.

    Example: `ddbench suite status small`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline.suite import suite_status

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        result = suite_status(
            name,
            _names(method),
            options=_by_method(assignments or []),
            fields=_fields(split=split),
            catalog=catalog,
            runs=runs,
            leaderboards=leaderboards,
        )
        _conclude(result, as_json)


def _names(method: str | None) -> list[str]:
    return [name.strip() for name in (method or "").split(",") if name.strip()]


def _by_method(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Return options by method, of `["dc.outer_lr=0.1"]`. Raises `UsageError` for text of another form."""
    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_assignments(assignments).items():
        method, dot, option = key.partition(".")
        if not dot:
            raise UsageError(
                f"--set {key}: a suite has several methods.", f"Name the one it is for: --set METHOD.{key}=VALUE"
            )
        options.setdefault(method, {})[option] = value
    return options


def _fields(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


@contextmanager
def _resumable(name: str) -> Iterator[None]:
    """Say how a suite that was interrupted goes on."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        what = f"suite {name} was interrupted; what has ended is kept, and a run at work keeps its checkpoint."
        raise Interrupted(what, "Give the same command to go on.") from None


def _conclude(result: "SuiteResult", as_json: bool, **more: object) -> None:
    """Print the matrix, and what has failed or is missing."""
    if as_json:
        runs = [
            {
                **outcome.model_dump(mode="json", exclude={"result"}),
                "run_id": outcome.result.run_id if outcome.result else None,
                "mean": outcome.result.score.mean if outcome.result and outcome.result.score else None,
            }
            for outcome in result.outcomes
        ]
        status = "failed" if result.failed else "ok"
        print_json(
            {
                "status": status,
                "suite": result.suite,
                "runs": runs,
                "matrix": result.matrix.model_dump(mode="json"),
                **more,
            }
        )
        return
    from ddbench.render.suites import print_matrix

    states = [outcome.state for outcome in result.outcomes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    typer.echo(f"Suite {result.suite}: {len(states)} runs: {counts}.")
    print_matrix(result.matrix)
    for outcome in result.failed:
        typer.echo(f"Failed: {outcome.label}: {outcome.reason}", err=True)


def register(main: typer.Typer) -> None:
    """Add these commands to `main`."""
    main.add_typer(app, name="suite")

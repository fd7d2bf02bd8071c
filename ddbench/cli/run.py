"""Commands that distil: run, resume."""

import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli import completion
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import (
    DEFAULT_LEADERBOARDS,
    Attack,
    Emit,
    Json,
    Launcher,
    Leaderboards,
    Plugins,
    Sets,
    merged,
    named,
    warn_of_plugins,
    with_usual_network,
)
from ddbench.cli.work import carrier, emit_jobs
from ddbench.contract.component import parse_assignments
from ddbench.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from ddbench.contract.spec import RunSpec, Sweep
    from ddbench.discovery.catalog import Catalog
    from ddbench.records.result import RunResult


def run(
    ctx: typer.Context,
    method: Annotated[str | None, named("method", "Distillation method.", "--method", "-m")] = None,
    dataset: Annotated[
        str | None, named("dataset", "Dataset, or folder:, csv:, hf: or npz:PATH. [digits]", "--dataset", "-d")
    ] = None,
    network: Annotated[
        str | None, named("network", "Network, torchvision/NAME or timm/NAME. [the dataset's usual one]")
    ] = None,
    eval_network: Annotated[
        str | None, named("network", "Network that scores the result. [the same]", "--eval-network")
    ] = None,
    eval_dataset: Annotated[
        str | None, named("dataset", "Dataset whose test split scores the result. [the same]", "--eval-dataset")
    ] = None,
    init: Annotated[str | None, named("init", "Init distribution. [random]")] = None,
    eval_init: Annotated[
        str | None, named("init", "Init distribution of the networks that score. [the same]", "--eval-init")
    ] = None,
    objective: Annotated[str | None, named("objective", "Objective. [classification]")] = None,
    target: Annotated[
        str | None, named("target", "Pretrained-adaptation target, torchvision/NAME or timm/NAME.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the pretrained weights of the target.", metavar="FILE")
    ] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class over all steps. [the dataset's usual]")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps with images of their own. [largest divisor of IPC up to 10]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times the steps are cycled through. [3]")] = None,
    byte_budget: Annotated[int | None, typer.Option(help="Bytes that the set may store. [no limit]")] = None,
    whitening: Annotated[
        str | None, typer.Option(help="Whiten all images: zca, as MTT does, or zca-kip. [mean and deviation alone]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of products and convolutions on CUDA: float32 or tf32. [float32]")
    ] = None,
    protocol: Annotated[str | None, named("protocol", "How the result is scored. [replay/v1]")] = None,
    eval_networks: Annotated[int | None, typer.Option(help="Networks that score the result. [20]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the distillation. [0]")] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Stop distilling after this time and score what there is.", metavar="15m")
    ] = None,
    step_limit: Annotated[
        int | None, typer.Option(help="Stop a loop of the method after this many outer steps. [no limit]")
    ] = None,
    pass_limit: Annotated[
        int | None, typer.Option(help="Stop after this many examples went forward through networks. [no limit]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--on", help="Score on the split test, or on validation, which leaves no row. [test]"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    best_coreset: Annotated[
        bool, typer.Option("--best-coreset", help="Show the score beside that of the best coreset too.")
    ] = False,
    attack: Attack = None,
    assignments: Sets = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with fields of the run spec.", metavar="FILE")] = None,
    experiment: Annotated[
        str | None, named("experiment", "A named experiment (ddbench list experiments).", metavar="NAME")
    ] = None,
    plugin: Plugins = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps on little data, to see that it works.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help="Run at each of several values and draw the result; a second one gives a line each.",
            metavar="KEY[,KEY]=VALUE,VALUE,...",
            autocompletion=completion.settings,
        ),
    ] = None,
    plot: Annotated[
        str, typer.Option(help="What a sweep draws: a metric, or a figure the method logs. [the primary metric]")
    ] = "",
    launcher: Launcher = None,
    emit: Emit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.", metavar="DIR")] = Path("runs"),
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    as_json: Json = False,
) -> None:
    """Distil a dataset, score the result on fresh networks, and append a row to a leaderboard.

    Examples:

    - `ddbench run --method unrolled_gd`

    - `ddbench run --method unrolled_gd --dataset svhn --time-limit 15m`

    - `ddbench run --method unrolled_gd --dataset mnist --init fixed --ipc 1 --set outer_steps=2000`

    - `ddbench run --plugin my_method.py --method my_method --smoke`

    - `ddbench run --method unrolled_gd --sweep steps,images_per_class=1,2,5,10 --sweep epochs=1,3`
    """
    flags = {
        "method": method,
        "dataset": dataset,
        "network": network,
        "eval_network": eval_network,
        "eval_dataset": eval_dataset,
        "init": init,
        "eval_init": eval_init,
        "objective": objective,
        "target": target,
        "images_per_class": ipc,
        "steps": steps,
        "epochs": epochs,
        "byte_budget": byte_budget,
        "whitening": whitening,
        "precision": precision,
        "protocol": protocol,
        "eval_networks": eval_networks,
        "seed": seed,
        "time_limit": time_limit,
        "step_limit": step_limit,
        "pass_limit": pass_limit,
        "split": split,
        "device": device,
        "smoke": smoke or None,
        "best_coreset": best_coreset or None,
        "attack": attack,
    }
    with explained_failures(as_json=as_json, verbose=ctx.obj) as attempt:
        from ddbench.discovery.catalog import Catalog

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        settings = [*([f"target.weights={weights}"] if weights else []), *(assignments or [])]
        fixed = {*(key for key, value in flags.items() if value is not None), *parse_assignments(settings)}
        swept = _sweep(catalog, sweep or [], plot, experiment, fixed)
        if swept is not None:

            def spec_at(values: dict[str, Any]) -> "RunSpec":
                return _spec(catalog, flags, settings, config, experiment, values)

            if sweep and split is None and _compares_options(swept, spec_at, catalog):
                flags["split"] = "validation"
                typer.echo("Options are compared on the validation slice; --on test reads the test split.", err=True)
            with _resumable(leaderboards):
                _run_sweep(
                    swept,
                    spec_at,
                    catalog,
                    runs,
                    leaderboards,
                    as_json,
                    dry_run,
                    launcher,
                    emit,
                )
            return
        if launcher or emit:
            flag = "--launcher" if launcher else "--emit"
            raise UsageError(f"{flag} is for several runs.", "Name what is swept: --sweep epochs=1,3,5")
        spec = _spec(catalog, flags, settings, config, experiment)
        if dry_run:
            _dry_run(spec, catalog, runs, leaderboards, as_json)
            return
        from ddbench.pipeline import runner
        from ddbench.render.live import live
        from ddbench.render.tables import published_lines

        with _resumable(leaderboards), live() as reporter:
            started = runner.start(spec, catalog=catalog, runs=runs, leaderboards=leaderboards, reporter=reporter)
            attempt.run_dir = started.folder.path
            result = started.carry_out()
        _conclude(result, catalog, leaderboards, as_json)
        if experiment is not None and not as_json and result.settings.experiment:
            for line in published_lines(catalog.experiment(experiment), result):
                typer.echo(line)


def resume(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="The run folder.", metavar="RUN", autocompletion=completion.unfinished_runs)
    ],
    plugin: Plugins = None,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    as_json: Json = False,
) -> None:
    """Continue a run that was interrupted, killed or out of disk.

    Example: `ddbench resume runs/unrolled_gd-svhn-ipc10-3f9a1c`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj) as attempt:
        from ddbench.discovery.catalog import Catalog
        from ddbench.pipeline import runner
        from ddbench.records.result import RunFolder
        from ddbench.render.live import live

        folder = path if path.is_dir() else Path("runs") / path
        attempt.run_dir = folder
        catalog = Catalog([*(plugin or []), *RunFolder(folder).read_origin().plugins])
        warn_of_plugins(catalog, plugin)
        with _resumable(leaderboards), live() as reporter:
            result = runner.resume(folder, catalog=catalog, leaderboards=leaderboards, reporter=reporter)
        _conclude(result, catalog, leaderboards, as_json)


def _spec(
    catalog: "Catalog",
    flags: dict[str, Any],
    assignments: list[str],
    config: Path | None,
    experiment: str | None,
    swept: dict[str, Any] | None = None,
) -> "RunSpec":
    """Return the spec of a run: an experiment, a config file, flags, then `--set`; later ones replace earlier ones."""
    from ddbench.contract.spec import parse_choice

    fields: dict[str, Any] = {}
    if experiment is not None:
        fields.update(catalog.experiment(experiment).spec)
    if config is not None:
        fields.update(_toml(config))
    method = flags["method"] or fields.get("method")
    if method is None:
        known_methods = ", ".join(c.name for c in catalog.components("method"))
        raise UsageError("no method was named.", f"Name one with --method: {known_methods}.")
    name = parse_choice("method", method).name
    options = set(catalog.get("method", name).options.model_fields)
    assigned = parse_assignments(assignments)
    _check_keys(name, options, flags, assigned, swept or {})
    settings = {**assigned, **(swept or {})}
    spec = merged(with_usual_network(fields, flags, settings, catalog), flags, settings, options)
    return spec.model_copy(update={"experiment": experiment or ""})


def _check_keys(
    method: str, options: set[str], flags: dict[str, Any], assigned: dict[str, Any], swept: dict[str, Any]
) -> None:
    """Raise `UsageError` for a key that has two meanings."""
    from ddbench.contract.spec import FLAGS

    for key, value in assigned.items():
        if key in flags and key not in options:
            flag = f"--{FLAGS.get(key, key.replace('_', '-'))}" + ("" if isinstance(value, bool) else f" {value}")
            raise UsageError(f"{method} has no option {key!r}; the run has.", f"Write {flag}.")
    for key in swept.keys() & options & flags.keys():
        raise UsageError(
            f"{key!r} is an option of {method} and a field of the run.",
            f"Sweep method.{key} for the first; for the second, run at each --{FLAGS[key]} by itself.",
        )


def _sweep(catalog: "Catalog", texts: list[str], plot: str, experiment: str | None, fixed: set[str]) -> "Sweep | None":
    """Return the sweep of the flags, or that of the experiment unless `fixed` names one of its swept fields."""
    from ddbench.contract.spec import Sweep
    from ddbench.pipeline.sweep import parse_axes

    if texts:
        return Sweep(axes=parse_axes(texts), plot=plot)
    swept = catalog.experiment(experiment).sweep if experiment is not None else None
    if swept is not None and any(key in fixed for axis in swept.axes for key in axis.keys):
        swept = None
    if swept is None and plot:
        raise UsageError("--plot is for a sweep.", "Name what is swept: --sweep epochs=1,3,5")
    return swept.model_copy(update={"plot": plot}) if swept is not None and plot else swept


def _compares_options(sweep: "Sweep", spec_at: "Callable[[dict[str, Any]], RunSpec]", catalog: "Catalog") -> bool:
    """Return True if a sweep compares options of the method."""
    from ddbench.pipeline.sweep import usual_split

    _, first = next(sweep.assignments())
    options = catalog.get("method", spec_at(first).method.name).options.model_fields
    return usual_split(sweep.axes, options) == "validation"


def _run_sweep(
    sweep: "Sweep",
    spec_at: "Callable[[dict[str, Any]], RunSpec]",
    catalog: "Catalog",
    runs: Path,
    leaderboards: Path,
    as_json: bool,
    dry_run: bool,
    launcher: str | None,
    emit: Path | None,
) -> None:
    """Run every point, print the table and draw the picture; both are written to the folder of the sweep."""
    from ddbench.pipeline.sweep import plan_sweep, run_sweep, sweep_jobs
    from ddbench.render.live import live
    from ddbench.render.pictures import draw_sweep
    from ddbench.render.tables import sweep_table

    if dry_run:
        from ddbench.pipeline.plan import reason_to_skip

        planned = [(plan.settings, reason_to_skip(plan)) for _, plan in plan_sweep(sweep, spec_at, catalog)]
        lines = [{"run": s.run_id, "fingerprint": s.fingerprint, "skipped": reason} for s, reason in planned]
        if as_json:
            print_json({"status": "planned", "runs": lines})
        else:
            typer.echo("Would run:")
            for settings, reason in planned:
                typer.echo(f"  {settings.run_id}" + (f"  skipped: {reason}" if reason else ""))
        return
    if emit is not None:
        emit_jobs(sweep_jobs(sweep, spec_at, catalog), emit, catalog, runs, leaderboards, as_json)
        return
    carry = carrier(launcher, catalog)
    with live() as reporter:
        done = run_sweep(sweep, spec_at, catalog, runs=runs, leaderboards=leaderboards, reporter=reporter, carry=carry)
    draw_sweep(done.sweep, done.points, done.figure, done.picture)
    if as_json:
        results = [{"values": p.values, "logged": p.logged, **p.result.document()} for p in done.points]
        status, failed = "failed" if done.failed else "ok", [outcome.model_dump(mode="json") for outcome in done.failed]
        place = {"plot": done.figure, "folder": str(done.folder)}
        print_json({"status": status, **place, "points": results, "failed": failed})
    else:
        sweep_table(done.sweep, done.points, done.figure)
        typer.echo(f"  picture  {done.picture}\n  table    {done.table}")
    if done.failed:
        raise typer.Exit(1)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.", "Give the path of a TOML file.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a readable TOML file: {error}.") from error


@contextmanager
def _resumable(leaderboards: Path) -> Iterator[None]:
    """Complete the advice to resume with the folder that the run's row belongs to."""
    try:
        yield
    except Interrupted as error:
        if leaderboards != DEFAULT_LEADERBOARDS:
            error.hint += f" --leaderboards {leaderboards}"
        raise


def _dry_run(spec: "RunSpec", catalog: "Catalog", runs: Path, leaderboards: Path, as_json: bool) -> None:
    from ddbench.pipeline.dry_run import dry_run
    from ddbench.render.tables import plan_lines, planned_data

    planned = dry_run(spec, catalog=catalog, runs=runs, leaderboards=leaderboards)
    if not as_json:
        for line in plan_lines(planned):
            typer.echo(line)
        return
    document = planned.model_dump(mode="json", exclude={"dataset", "peak_memory"})
    print_json(
        {
            "status": "planned",
            **document,
            "data": planned_data(planned),
            "peak_memory_mb": planned.peak_memory and round(planned.peak_memory / 1e6),
        }
    )


def _conclude(result: "RunResult", catalog: "Catalog", leaderboards: Path, as_json: bool) -> None:
    """Draw the pictures and print the result."""
    from ddbench.records.result import RunFolder
    from ddbench.render.tables import result_lines

    folder = RunFolder(Path(result.run_dir))
    if result.status == "ok":
        from ddbench.render.pictures import draw_run

        try:
            draw_run(folder, catalog)
        except Exception as error:
            # The run and its row are there; a picture is not worth losing them.
            sys.stderr.write(f"Warning: the pictures could not be drawn: {error}\n")
    if as_json:
        print_json(result.document())
        return
    for line in result_lines(result, folder, leaderboards):
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(run)
    app.command()(resume)

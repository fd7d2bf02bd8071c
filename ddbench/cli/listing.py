"""Commands that print what there is: list, show."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddbench.cli import completion
from ddbench.cli.indexed import current_index
from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, named
from ddbench.contract.component import KINDS, SERVICES, did_you_mean, plural
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from ddbench.discovery.index import Entry

LISTS = {plural(kind): kind for kind in (*KINDS, *SERVICES, "protocol", "experiment", "suite", "pool")}


def list_(
    ctx: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(LISTS)}.", autocompletion=lambda: list(LISTS))
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """List methods, datasets, networks, inits, objectives, targets, launchers, protocols, experiments, suites and more.

    Examples: `ddbench list`, `ddbench list datasets`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        titles = [kind if kind in LISTS else plural(kind)] if kind else list(LISTS)
        if titles[0] not in LISTS:
            raise UsageError(
                f"there are no {kind}.{did_you_mean(kind or '', LISTS)}", f"Name one of {', '.join(LISTS)}."
            )
        index = current_index(plugin or [])
        lists = {title: _pools() if title == "pools" else index.of_kind(LISTS[title]) for title in titles}
        if as_json:
            short = {"name", "summary", "source"}

            def shown(entry: "Entry") -> dict[str, object]:
                return entry.model_dump(include=short | {"facts"} if entry.kind == "pool" else short)

            print_json({"status": "ok", **{title: [shown(entry) for entry in lists[title]] for title in titles}})
            return
        from ddbench.render.cards import listing

        listing(lists, [failure.text for failure in index.broken])


def show(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="A name from `ddbench list`, or a run folder.", autocompletion=completion.anything)
    ],
    dataset: Annotated[
        str | None, named("dataset", "Show the options that the method's recipe sets on a dataset.", "--dataset", "-d")
    ] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class of the recipe. [the dataset's usual]")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show a component with its options, a protocol, an experiment, a suite or a pool, or the results of a run.

    Examples: `ddbench show unrolled_gd`, `ddbench show runs/unrolled_gd-digits-ipc1-3f9a1c`, `ddbench show my_method
    --dataset cifar10 --ipc 10`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        if dataset is not None or ipc is not None:
            _show_recipe(name, {"dataset": dataset, "images_per_class": ipc}, plugin or [], as_json)
            return
        folder = Path(name) if Path(name).is_dir() else Path("runs") / name
        if folder.is_dir():
            _show_run(folder, as_json)
            return
        index = current_index(plugin or [])
        for warning in index.warnings:
            typer.echo(f"Warning: {warning}", err=True)
        every = [*index.entries, *_pools()]
        entries = [entry for entry in every if entry.name == name] or _open_ended(name, plugin or [], every)
        if as_json:
            print_json({"status": "ok", "found": [entry.model_dump() for entry in entries]})
            return
        from ddbench.render.cards import brief_card, card

        for entry in entries:
            (card if entry.kind in (*KINDS, *SERVICES) else brief_card)(entry)


def _show_recipe(name: str, asked: dict[str, object], plugins: Sequence[Path], as_json: bool) -> None:
    """Print a method with the options that its recipe sets for a dataset and images per class."""
    from ddbench.contract.spec import RunSpec
    from ddbench.discovery.catalog import Catalog
    from ddbench.discovery.index import described
    from ddbench.pipeline.plan import plan_run

    catalog = Catalog(plugins)
    method = catalog.get("method", name)
    spec = {key: value for key, value in asked.items() if value is not None}
    plan = plan_run(RunSpec.parse({"method": name, **spec}), catalog)
    if as_json:
        recipe = {"recipe": dict(plan.recipe), "source": method.recipe_source}
        print_json({"status": "ok", "found": [{**described(method).model_dump(), **recipe}]})
        return
    from ddbench.render.cards import card

    card(described(method), plan.recipe)
    where = f"{plan.settings.dataset.name} with {plan.settings.images_per_class} images per class"
    typer.echo(f"\nRecipe for {where}: {plan.recipe_text or 'none; the defaults apply'}")


def _pools() -> "list[Entry]":
    from ddbench.discovery.index import Entry
    from ddbench.render.pools import pools

    return [
        Entry(kind="pool", name=pool.name, summary=f"{pool.kind}: {pool.summary}", source="cache", facts=pool.facts)
        for pool in pools()
    ]


def _open_ended(name: str, plugins: Sequence[Path], every: "Sequence[Entry]") -> "list[Entry]":
    """Return the components of an open-ended name. Raises `UsageError`, with the nearest name, if there is none."""
    from ddbench.contract.spec import RunSpec
    from ddbench.discovery.catalog import Catalog
    from ddbench.discovery.index import described
    from ddbench.pipeline.data import info_from_facts

    catalog = Catalog(plugins)
    info = info_from_facts(catalog.get("dataset", RunSpec.model_fields["dataset"].default.name))
    components = [catalog.find("dataset", name), catalog.find("network", name, info), catalog.find("target", name)]
    entries = [described(component) for component in components if component is not None]
    if not entries:
        near = did_you_mean(name, [entry.name for entry in every])
        raise UsageError(f"there is nothing called {name!r}.{near}", "See: ddbench list")
    return entries


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
        print_json(result.document())
        return
    for line in result_lines(result, folder, None):
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("list")(list_)
    app.command()(show)

"""The command that trains pools of networks beforehand."""

from typing import Annotated

import typer

from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, merged, named, warn_of_plugins, with_usual_network
from ddbench.errors import UsageError


def pretrain(
    ctx: typer.Context,
    dataset: Annotated[str, named("dataset", "Dataset, or folder:PATH.", "--dataset", "-d")],
    network: Annotated[str | None, named("network", "Network. [the dataset's usual one]")] = None,
    count: Annotated[int, typer.Option(min=0, help="Networks to train on.")] = 200,
    held_out: Annotated[int, typer.Option("--held-out", min=0, help="Other networks, to score on.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam, batches of 128.")] = 700,
    lr: Annotated[float, typer.Option(min=1e-9, max=1e3, help="Adam's rate; falls along a cosine to zero.")] = 0.003,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option("--sample-shape", help="Convert images to this shape.", metavar="CHANNELS HEIGHT WIDTH"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Option of the network or dataset (repeatable).", metavar="network.KEY=VALUE"),
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train a pool of networks for `--init random_pretrained` and the targets; existing networks are kept.

    Ctrl-C keeps the networks that are done; the same command continues from there.

    Example: `ddbench pretrain --dataset mnist --network lenet --count 200 --held-out 20`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.contract.component import parse_assignments
        from ddbench.discovery.catalog import Catalog
        from ddbench.engine.fit import Recipe
        from ddbench.pipeline.pretrain import pretrain as train_pool
        from ddbench.render.live import live
        from ddbench.render.pools import pool_summary

        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        flags = {"method": "none", "dataset": dataset, "network": network, "sample_shape": shape, "device": device}
        settings = parse_assignments(assignments or [])
        for key in settings:
            if key.partition(".")[0] not in ("network", "dataset"):
                raise UsageError(f"--set {key} has no part in a pool.", "Set network.KEY or dataset.KEY.")
        spec = merged(with_usual_network({}, flags, settings, catalog), flags, settings, set())
        fields = spec.model_dump(exclude_unset=True, exclude={"method"})
        with live() as reporter:
            pool = train_pool(
                fields,
                count=count,
                held_out=held_out,
                recipe=Recipe(steps, lr),
                catalog=catalog,
                reporter=reporter,
            )
        if as_json:
            accuracies = {side: pool.accuracies(side) for side in ("train", "evaluation")}
            print_json({"status": "ok", "pool": str(pool.folder), "accuracies": accuracies})
            return
        typer.echo(f"{pool.folder.name}: {pool_summary(pool.folder)}")


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(pretrain)

"""The commands that train networks beforehand, and remove them."""

from typing import Annotated, Any

import typer

from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, merged, named, warn_of_plugins, with_usual_network
from ddbench.contract.component import did_you_mean
from ddbench.errors import UsageError

_POOL, _EXPERTS = ("held_out", "steps"), ("epochs", "momentum", "decay", "batch", "augment")
"""Flags that pools alone have, and those that experts alone have."""


def pretrain(
    ctx: typer.Context,
    dataset: Annotated[str, named("dataset", "Dataset, or folder:, csv:, hf: or npz:PATH.", "--dataset", "-d")],
    network: Annotated[str | None, named("network", "Network. [the dataset's usual one]")] = None,
    experts: Annotated[bool, typer.Option("--experts", help="Train expert trajectories instead of a pool.")] = False,
    count: Annotated[
        int | None, typer.Option(min=0, help="Networks to train on [200], or experts [10].", show_default=False)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1e3,
            help="Rate: of Adam, falling along a cosine to zero [0.003]; of the experts' SGD [0.01].",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=0, help="Pool: other networks, to score on [20].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Pool: steps of Adam, batches of 128 [700].")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Experts: passes over the data [50].")] = None,
    momentum: Annotated[float | None, typer.Option(min=0, max=1, help="Experts: momentum [0].")] = None,
    decay: Annotated[float | None, typer.Option(min=0, help="Experts: weight decay [0].")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Experts: examples of a step [256].")] = None,
    augment: Annotated[
        str | None, typer.Option(help="Experts: augmentation, such as color_crop_cutout_flip_scale_rotate [none].")
    ] = None,
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
    """Train networks that runs draw on; existing ones are kept.

    A pool serves `--init random_pretrained`, the targets, and methods that ask for teachers. With `--experts`, the
    weights of every epoch are kept, for methods that match trajectories. Ctrl-C keeps the networks that are done;
    the same command continues from there.

    Examples: `ddbench pretrain --dataset mnist --network lenet --count 200 --held-out 20`,
    `ddbench pretrain --dataset mnist --experts --count 10 --epochs 20`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.contract.component import parse_assignments
        from ddbench.contract.experts import ExpertRecipe
        from ddbench.discovery.catalog import Catalog
        from ddbench.engine.fit import POOL_RATE, POOL_STEPS, Recipe
        from ddbench.pipeline.pretrain import pretrain as train_pool
        from ddbench.pipeline.pretrain import pretrain_experts
        from ddbench.render.live import live
        from ddbench.render.pools import summary_of

        asked = {name: value for name, value in ctx.params.items() if value is not None}
        _check_flags(asked, experts)
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
            if experts:
                recipe = ExpertRecipe.parse(**{key: asked[key] for key in (*_EXPERTS, "lr") if key in asked})
                folder = pretrain_experts(
                    fields, count=10 if count is None else count, recipe=recipe, catalog=catalog, reporter=reporter
                ).folder
                facts: dict[str, Any] = {"experts": str(folder)}
            else:
                pool = train_pool(
                    fields,
                    count=200 if count is None else count,
                    held_out=20 if held_out is None else held_out,
                    recipe=Recipe(steps or POOL_STEPS, lr or POOL_RATE),
                    catalog=catalog,
                    reporter=reporter,
                )
                folder = pool.folder
                accuracies = {side: pool.accuracies(side) for side in ("train", "evaluation")}
                facts = {"pool": str(folder), "accuracies": accuracies}
        if as_json:
            print_json({"status": "ok", **facts})
            return
        typer.echo(f"{folder.name}: {summary_of(folder)}")


def _check_flags(asked: dict[str, Any], experts: bool) -> None:
    """Raise `UsageError` for a flag that would be ignored."""
    for flag in _POOL if experts else _EXPERTS:
        if flag in asked:
            raise UsageError(
                f"--{flag.replace('_', '-')} has no part in {'experts' if experts else 'a pool'}.",
                "Leave it out." if experts else "Leave it out, or train experts with --experts.",
            )


def prune(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Names from `ddbench list pools`.")] = None,
    older_than: Annotated[
        int | None, typer.Option(min=0, help="Every pool that was not used for so many days.", metavar="DAYS")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove pools and experts from the cache; a run that needs them trains them again.

    Examples: `ddbench prune mnist_lenet-0123456789ab`, `ddbench prune --older-than 30`
    """
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.render.pools import pools, remove

        if not names and older_than is None:
            raise UsageError(
                "nothing to remove was named.", "Name pools of `ddbench list pools`, or give --older-than 30."
            )
        known = {pool.name: pool for pool in pools()}
        for name in names or ():
            if name not in known:
                raise UsageError(f"there is no pool {name!r}.{did_you_mean(name, known)}", "See: ddbench list pools")
        chosen = [known[name] for name in dict.fromkeys(names or known)]
        if older_than is not None:
            chosen = [pool for pool in chosen if pool.unused_days >= older_than]
        for pool in chosen:
            remove(pool)
        if as_json:
            freed = sum(pool.bytes for pool in chosen)
            print_json({"status": "ok", "removed": [pool.name for pool in chosen], "bytes": freed})
            return
        for pool in chosen:
            typer.echo(f"removed {pool.name}: {pool.bytes / 1e6:.1f} MB")
        if not chosen:
            typer.echo("nothing is that old")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(pretrain)
    app.command()(prune)

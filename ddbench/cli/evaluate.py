"""The command that scores a distilled set: our own, or what somebody else released."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli.output import failures_told, print_json
from ddbench.cli.shared import Json, Plugins, Sets, merged, named, warn_of_plugins
from ddbench.errors import UsageError
from ddbench.options import parse_assignments

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddbench.bench import Bench
    from ddbench.catalog import Catalog
    from ddbench.data import DistilledSet, ExampleSet
    from ddbench.runner import Scores


def evaluate(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="A distilled.safetensors file or its run folder, a folder of images per class, a released .pt or .npz."
        ),
    ],
    dataset: Annotated[str | None, named("dataset", "Dataset. [the one it was made for]", "--dataset", "-d")] = None,
    network: Annotated[str | None, named("network", "Network. [the one it was made for]")] = None,
    init: Annotated[str | None, named("init", "Init distribution to score on. [the one it was made for]")] = None,
    protocol: Annotated[str | None, named("protocol", "Protocol. [the one it was made for, or train/v1]")] = None,
    eval_networks: Annotated[int | None, typer.Option(help="Networks that score the set. [as when made]")] = None,
    cross_network: Annotated[
        str | None, named("network", "Score on these architectures too.", metavar="NAME,NAME,...")
    ] = None,
    also_on: Annotated[str | None, named("dataset", "Score on these datasets too.", metavar="NAME,NAME,...")] = None,
    repetition: Annotated[int, typer.Option(min=0, help="Which set of a .pt file that holds several.")] = 0,
    file_mean: Annotated[
        str | None,
        typer.Option(help="What a foreign file's images were normalised by. [the dataset's own]", metavar="R,G,B"),
    ] = None,
    file_std: Annotated[str | None, typer.Option(help="The same, of the deviation.", metavar="R,G,B")] = None,
    file_zca: Annotated[
        bool, typer.Option("--file-zca", help="A foreign file's images are ZCA-whitened, as MTT's of CIFAR are.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    assignments: Sets = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Score a distilled set again, under its own setting or another; writes nothing.

    Released files: a `.pt` whose `data` lists [images, labels] (DC, DSA, DM), a folder with `images_best.pt` and
    `labels_best.pt` (MTT, DATM), an `.npz` with `images` and `labels` (KIP). No code of theirs is run.

    Examples:

    - `ddbench evaluate runs/unrolled_gd-mnist-ipc10-3f9a1c`

    - `ddbench evaluate distilled.safetensors --cross-network convnet,mlp`

    - `ddbench evaluate res_DC_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --protocol train/v1`
    """
    flags = {
        "dataset": dataset,
        "network": network,
        "eval_init": init,
        "protocol": protocol,
        "eval_networks": eval_networks,
        "device": device,
    }
    with failures_told(as_json=as_json, verbose=ctx.obj):
        from ddbench import runner
        from ddbench.catalog import Catalog
        from ddbench.files import sha256
        from ddbench.render.live import live
        from ddbench.render.tables import score_lines

        normalised_by = (_triple("--file-mean", file_mean), _triple("--file-std", file_std))
        if file_zca and any(normalised_by):
            raise UsageError("--file-zca goes without --file-mean and --file-std.", "Whitened images have neither.")
        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        path, distilled, made_for = _opened(file, dataset, repetition, normalised_by, file_zca, catalog)
        # Networks that score are what an option of the init is about here.
        settings = {re.sub(r"^init\.", "eval_init.", k): v for k, v in parse_assignments(assignments or []).items()}
        spec = merged(made_for, flags, settings, set())
        own = spec.network.name if spec.network else ""
        places: list[dict[str, str]] = [{}]
        places += [{"network": name} for name in _names(cross_network) if name != own]
        places += [{"dataset": name} for name in _names(also_on) if name != spec.dataset.name]
        found = []
        with live() as reporter:
            for place in places:
                one = merged(spec.model_dump(exclude_unset=True), place, {}, set())
                try:
                    found.append(runner.evaluate(distilled, one, catalog=catalog, reporter=reporter))
                except UsageError as error:
                    # What was scored already is not lost to a network or dataset that does not fit.
                    if not found:
                        raise
                    reporter.say(f"Passed over {', '.join(place.values())}: {error.message}")
        bench = found[0][0]
        if as_json:
            digest = sha256(path.read_bytes()) if path.is_file() else None
            others = [_document(*one) for one in found[1:]]
            print_json({**_document(*found[0]), "artifact": {"path": str(path), "sha256": digest}, "others": others})
            return
        primary, higher = bench.setting.objective.primary, bench.setting.objective.higher_is_better
        for its_bench, scores in found:
            if len(found) > 1:
                named = its_bench.spec.network.name if its_bench.spec.network else ""
                typer.echo(f"{named} on {its_bench.record.name}, {its_bench.spec.protocol}")
            lines = score_lines(primary, scores.after[primary], scores.before[primary], scores.companions, higher)
            typer.echo("\n".join(lines))


def _opened(
    file: Path,
    dataset: str | None,
    repetition: int,
    normalised_by: tuple[tuple[float, ...] | None, ...],
    whitened: bool,
    catalog: "Catalog",
) -> "tuple[Path, DistilledSet | Callable[[ExampleSet], DistilledSet], dict[str, Any]]":
    """The set's path, the set (or what makes it of the training examples), and the fields of its spec."""
    from ddbench.data import DistilledSet

    path = file / "distilled.safetensors" if (file / "distilled.safetensors").exists() else file
    if path.suffix == ".safetensors":
        own = DistilledSet.load(path)
        made_for = _made_for(own.metadata.get("spec"), path)
        target = made_for.get("target")
        if target and made_for.get("eval_init") == target:
            # Scoring draws from the target, whatever its options are now.
            del made_for["eval_init"]
        return path, own, made_for
    if not path.exists():
        raise UsageError(f"there is no file {path}.", "Give the path of a distilled set.")
    if dataset is None:
        raise UsageError(f"{path} does not say what it was made for.", "Name its dataset: --dataset cifar10")
    from ddbench.foreign import read

    foreign = read(path, repetition)
    mean, std = normalised_by
    count, classes = len(foreign.images), len(catalog.get("dataset", dataset).facts["classes"])
    if count % classes:
        raise UsageError(
            f"{path} holds {count} images for the {classes} classes of {dataset}.", "Name the dataset it was made for."
        )

    def for_dataset(train: "ExampleSet") -> DistilledSet:
        return foreign.as_set(train.info, mean, std, train.info.pixels(train.inputs) if whitened else None)

    fields = {"method": "foreign", "dataset": dataset, "protocol": "train/v1", "steps": 1}
    return path, for_dataset, {**fields, "images_per_class": count // classes}


def _document(bench: "Bench", scores: "Scores") -> dict[str, Any]:
    primary = bench.setting.objective.primary
    return {
        "status": "ok",
        "spec": bench.spec.model_dump(mode="json"),
        "dataset": bench.record.model_dump(mode="json"),
        "primary": primary,
        "score": scores.after[primary].model_dump(),
        "scores": {name: score.model_dump() for name, score in scores.after.items()},
        "before": {name: score.model_dump() for name, score in scores.before.items()},
        "companions": {name: score.model_dump() for name, score in scores.companions.items()},
        "selected": scores.selected,
    }


def _made_for(canonical: str | None, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(canonical or "")
        if isinstance(fields, dict):
            return fields
    except json.JSONDecodeError:
        pass
    raise UsageError(f"{path} does not say what it was made for.", "Files that ddbench wrote carry their spec.")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _triple(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a list of numbers.", "Such as 0.491,0.482,0.447") from error


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(evaluate)

"""The command that scores a distilled set: our own, or what somebody else released."""

import json
import re
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import Json, Plugins, Sets, merged, named, warn_of_plugins
from ddbench.contract.component import parse_assignments
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ddbench.contract.sets import DistilledSet, ExampleSet
    from ddbench.contract.spec import RunSpec
    from ddbench.discovery.catalog import Catalog
    from ddbench.pipeline.prepare import Bench
    from ddbench.pipeline.runner import Scores


class FileLabels(StrEnum):
    """What soft labels of a foreign file are."""

    PROBABILITIES = "probabilities"
    LOGITS = "logits"


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
    repetition: Annotated[
        int | None, typer.Option(min=0, help="Which set of a .pt file that holds several. [0]")
    ] = None,
    file_mean: Annotated[
        str | None,
        typer.Option(help="What a foreign file's images were normalised by. [the dataset's own]", metavar="R,G,B"),
    ] = None,
    file_std: Annotated[str | None, typer.Option(help="The same, of the deviation.", metavar="R,G,B")] = None,
    file_zca: Annotated[
        bool, typer.Option("--file-zca", help="A foreign file's images are ZCA-whitened, as MTT's of CIFAR are.")
    ] = False,
    file_labels: Annotated[
        FileLabels | None, typer.Option(help="What a foreign file's soft labels are. [probabilities]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    assignments: Sets = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Score a distilled set again, under its own setting or another; writes nothing.

    Released files: a `.pt` whose `data` lists [images, labels] (DC, DSA, DM), a folder with `images_best.pt` and
    `labels_best.pt` (MTT, DATM), an `.npz` with `images` and `labels` (KIP). No code of theirs is run. Soft labels must
    be probabilities; where they are logits of a teacher (DATM), say `--file-labels logits`.

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
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.errors import DdbenchError, Interrupted
        from ddbench.machine.files import sha256
        from ddbench.pipeline import runner
        from ddbench.render.live import live

        about_file = {
            "--repetition": repetition,
            "--file-mean": _triple("--file-mean", file_mean),
            "--file-std": _triple("--file-std", file_std),
            "--file-zca": file_zca or None,
            "--file-labels": file_labels,
        }
        if file_zca and (about_file["--file-mean"] or about_file["--file-std"]):
            raise UsageError("--file-zca goes without --file-mean and --file-std.", "Whitened images have neither.")
        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        path, distilled, made_for, notes = _opened(file, dataset, about_file, catalog)
        # Networks that score are what an option of the init is about here.
        settings = {re.sub(r"^init\.", "eval_init.", k): v for k, v in parse_assignments(assignments or []).items()}
        spec = merged(made_for, flags, settings, set())
        places = _places(path, distilled, spec, _names(cross_network), _names(also_on), catalog)
        found, passed_over = [], []
        with live() as reporter:
            for note in notes:
                reporter.say(note)
            for place, one in places:
                try:
                    found.append(runner.evaluate(distilled, one, catalog=catalog, reporter=reporter))
                except Interrupted:
                    raise
                except DdbenchError as error:
                    # What was scored already is not lost to a network or dataset that does not fit.
                    if not found:
                        raise
                    passed_over.append({**place, "reason": error.message})
                    reporter.say(f"Passed over {', '.join(place.values())}: {error.message}")
        if as_json:
            digest = sha256(path.read_bytes()) if path.is_file() else None
            print_json(
                {
                    **_document(*found[0]),
                    "artifact": {"path": str(path), "sha256": digest},
                    "others": [_document(*one) for one in found[1:]],
                    "passed_over": passed_over,
                }
            )
            return
        for bench, scores in found:
            if len(found) > 1:
                named = bench.spec.network.name if bench.spec.network else ""
                typer.echo(f"{named} on {bench.record.name}, {bench.spec.protocol}")
            typer.echo("\n".join(_lines(bench, scores)))


def _places(
    path: Path,
    distilled: "DistilledSet | Callable[[ExampleSet], DistilledSet]",
    spec: "RunSpec",
    networks: list[str],
    datasets: list[str],
    catalog: "Catalog",
) -> "list[tuple[dict[str, str], RunSpec]]":
    """What to score the set on, as it differs from `spec`, and the whole spec of each; every one once.

    Raises `UsageError`, before anything is scored, for a name that does not exist, and for a dataset of other classes
    than the set says it was made for.
    """
    from ddbench.contract.sets import DistilledSet
    from ddbench.pipeline.prepare import complete

    its_classes = distilled.metadata.get("classes") if isinstance(distilled, DistilledSet) else None
    places: list[dict[str, str]] = [{}, *({"network": name} for name in networks), *({"dataset": d} for d in datasets)]
    found, met = [], set()
    for place in places:
        one = merged(spec.model_dump(exclude_unset=True), place, {}, set())
        completed, parts = complete(one, catalog, with_method=False)
        if its_classes is not None:
            _check_classes(path, its_classes, completed.dataset.name, parts.dataset.facts["classes"])
        # The usual network of a dataset may have options, so names alone do not tell.
        if completed.canonical() not in met:
            met.add(completed.canonical())
            found.append((place, one))
    return found


def _check_classes(path: Path, told: str, dataset: str, classes: "Sequence[object]") -> None:
    """Raise `UsageError` where a set's labels stand for other classes than the dataset's."""
    try:
        own = [str(name) for name in json.loads(told)]
    except (json.JSONDecodeError, TypeError) as error:
        raise UsageError(f"{path} does not say what its classes are.", "Take a file as ddbench wrote it.") from error
    for label, (name, other) in enumerate(zip_longest(own, map(str, classes))):
        if name != other:
            its, theirs = ("no class" if n is None else repr(n) for n in (name, other))
            raise UsageError(
                f"label {label} is {its} in {path} and {theirs} in {dataset}.",
                "Score it on a dataset with the same classes in the same order.",
            )


def _opened(
    file: Path, dataset: str | None, about_file: dict[str, Any], catalog: "Catalog"
) -> "tuple[Path, DistilledSet | Callable[[ExampleSet], DistilledSet], dict[str, Any], tuple[str, ...]]":
    """The set's path, the set (or what makes it of the training examples), the fields of its spec, and what to tell.

    `about_file` are the options that say how to read a foreign file, None where they were not given.
    """
    from ddbench.contract.sets import DistilledSet

    path = file / "distilled.safetensors" if (file / "distilled.safetensors").exists() else file
    if path.suffix == ".safetensors":
        for option, value in about_file.items():
            if value is not None:
                raise UsageError(
                    f"{option} is about files that others made; {path} is ddbench's own.", f"Leave out {option}."
                )
        own = DistilledSet.load(path)
        made_for = _made_for(own.metadata.get("spec"), path)
        target = made_for.get("target")
        if target and made_for.get("eval_init") == target:
            # Scoring draws from the target, whatever its options are now.
            del made_for["eval_init"]
        return path, own, made_for, ()
    if not path.exists():
        raise UsageError(f"there is no file {path}.", "Give the path of a distilled set.")
    if dataset is None:
        raise UsageError(f"{path} does not say what it was made for.", "Name its dataset: --dataset cifar10")
    from ddbench.formats.families import read

    released = read(path, about_file["--repetition"] or 0)
    mean, std, whitened = (about_file[f"--file-{what}"] for what in ("mean", "std", "zca"))
    logits = about_file["--file-labels"] == FileLabels.LOGITS
    count, classes = len(released.images), len(catalog.get("dataset", dataset).facts["classes"])
    if count % classes:
        raise UsageError(
            f"{path} holds {count} images for the {classes} classes of {dataset}.", "Name the dataset it was made for."
        )

    def for_dataset(train: "ExampleSet") -> DistilledSet:
        return released.to_distilled(
            train.info, mean, std, train.info.pixels(train.inputs) if whitened else None, logits
        )

    fields = {"method": "foreign", "dataset": dataset, "protocol": "train/v1", "steps": 1}
    return path, for_dataset, {**fields, "images_per_class": count // classes}, released.notices


def _lines(bench: "Bench", scores: "Scores") -> "Iterator[str]":
    """A score in its context, and what kind of labels it was reached with."""
    from ddbench.render.tables import fairness_lines, score_lines

    objective, primary = bench.setting.objective, bench.setting.objective.primary
    yield from score_lines(
        primary, scores.after[primary], scores.before[primary], scores.companions, objective.higher_is_better
    )
    beside = "; companions have hard labels" if scores.label_regime == "stored soft" and scores.companions else ""
    width = max(map(len, (primary, "before training", *scores.companions)))
    yield f"{'labels':<{width}}  {scores.label_regime}{beside}"
    yield from fairness_lines(_fairness(bench, scores))


def _fairness(bench: "Bench", scores: "Scores") -> dict[str, float]:
    from ddbench.records.dd_ranking import fairness

    primary = bench.setting.objective.primary
    means = {name: score.mean for name, score in scores.companions.items()}
    return fairness(primary, scores.after[primary].mean, means, hard=scores.label_regime == "hard")


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
        "label_regime": scores.label_regime,
        "fairness": _fairness(bench, scores),
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

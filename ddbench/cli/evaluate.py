"""The command that scores a distilled set of ddbench, or one that others released."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddbench.cli.output import explained_failures, print_json
from ddbench.cli.shared import (
    DEFAULT_LEADERBOARDS,
    Attack,
    Json,
    Leaderboards,
    Plugins,
    Sets,
    merged,
    named,
    warn_of_plugins,
)
from ddbench.contract.component import parse_assignments
from ddbench.contract.spec import HARD, Choice
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddbench.pipeline.evaluate import Scores
    from ddbench.pipeline.prepare import Prepared


class FileLabels(StrEnum):
    """The kind of the labels in a foreign file."""

    CLASS = "class"
    DISTRIBUTION = "distribution"
    LOGITS = "logits"
    REGRESSION = "regression"


class FileWhitening(StrEnum):
    """The whitening of a foreign file's images."""

    NONE = "none"
    ZCA = "zca"
    ZCA_KIP = "zca-kip"
    UNDO = "undo"


class Resize(StrEnum):
    """The side that is resized where the sizes of a set and of a dataset differ."""

    IMAGES = "images"
    DATASET = "dataset"


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
    eval_networks: Annotated[int | None, typer.Option(help="Networks that score the set. [as in the run]")] = None,
    cross_network: Annotated[
        str | None, named("network", "Score on these architectures too.", metavar="NAME,NAME,...")
    ] = None,
    also_on: Annotated[
        str | None, named("dataset", "Score on the test splits of these datasets too.", metavar="NAME,NAME,...")
    ] = None,
    also_under: Annotated[
        str | None, named("protocol", "Score under these protocols too.", metavar="NAME,NAME,...")
    ] = None,
    attack: Attack = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--from", help="Whose release the file is, such as dc, mtt, idc, kip or wang2018. [by its content]"
        ),
    ] = None,
    repetition: Annotated[
        int | None, typer.Option(min=0, help="Which set of a .pt file that holds several. [0]")
    ] = None,
    file_mean: Annotated[
        str | None,
        typer.Option(help="Mean that normalised the images of a foreign file. [as its family does]", metavar="R,G,B"),
    ] = None,
    file_std: Annotated[str | None, typer.Option(help="Standard deviation, likewise.", metavar="R,G,B")] = None,
    file_whitening: Annotated[
        FileWhitening | None,
        typer.Option(
            help="A foreign file's images are whitened: zca as MTT's, zca-kip as KIP's; the data are whitened too. "
            "undo: back to pixels. [as its family does]"
        ),
    ] = None,
    file_labels: Annotated[
        FileLabels | None, typer.Option(help="Kind of the labels in a foreign file. [as its family does]")
    ] = None,
    file_tiles: Annotated[
        int | None, typer.Option(min=1, help="Tiles along each side of a foreign file's images. [as its family does]")
    ] = None,
    file_rate: Annotated[
        float | None, typer.Option(min=1e-12, help="Learning rate of a foreign file's images. [the one it holds]")
    ] = None,
    resize: Annotated[
        Resize | None, typer.Option(help="What to resize where the sizes of images and dataset differ.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [auto]")] = None,
    leaderboards: Leaderboards = DEFAULT_LEADERBOARDS,
    assignments: Sets = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Score a distilled set again, under its own setting or another.

    `--cross-network`, `--also-on` and `--also-under` on a run folder add a row for each network, dataset and protocol,
    `--attack` adds metrics to the run's own row; everything else writes nothing.

    Released files of the field are known by their content, or by `--from`: dc, dsa, dm, cafe, idm, datadam, mtt, tesla,
    datm, idc, dream, ncfm, kip, frepo, rat_bptt, sre2l, rded, d4m, minimax, wang2018, folder, plain. What is known of a
    family, and what is assumed, is said in numbers; the other options say otherwise. No code in a file is run.

    Examples:

    - `ddbench evaluate runs/unrolled_gd-mnist-ipc10-3f9a1c`

    - `ddbench evaluate distilled.safetensors --cross-network convnet,mlp`

    - `ddbench evaluate res_DC_CIFAR10_ConvNet_10ipc.pt --dataset cifar10 --protocol train/v1`

    - `ddbench evaluate logged_files/CIFAR10 --from mtt --dataset cifar10 --file-whitening zca --file-rate 0.02`
    """
    flags = {
        "dataset": dataset,
        "eval_init": init,
        "protocol": protocol,
        "eval_networks": eval_networks,
        "attack": attack,
        "device": device,
    }
    with explained_failures(as_json=as_json, verbose=ctx.obj):
        from ddbench.discovery.catalog import Catalog
        from ddbench.formats.reading import Overrides
        from ddbench.machine.files import sha256
        from ddbench.pipeline.evaluate import evaluate_places
        from ddbench.pipeline.opened import open_set, scoring_places
        from ddbench.render.live import live

        overrides = Overrides(
            repetition=repetition,
            mean=_triple("--file-mean", file_mean),
            std=_triple("--file-std", file_std),
            whitening=None if file_whitening is None else file_whitening.value,
            labels=None if file_labels is None else file_labels.value,
            tiles=file_tiles,
            rate=file_rate,
            resize=None if resize is None else resize.value,
        )
        catalog = Catalog(plugin or [])
        warn_of_plugins(catalog, plugin)
        assigned = parse_assignments(assignments or [])
        with live() as reporter:
            chosen = _choice_of_dataset(dataset, assigned)
            opened = open_set(file, chosen, overrides, family, catalog, reporter.say)
            flags[opened.network_field] = network
            # Options of the init and of the network are about the networks that score.
            scoring = {"init": "eval_init", "network": opened.network_field}
            settings = {
                re.sub(r"^(init|network)(?=\.)", lambda match: scoring[match[0]], key): value
                for key, value in assigned.items()
            }
            fields = dict(opened.fields)
            if any(key.startswith("eval_network.") for key in settings):
                fields.setdefault("eval_network", fields["network"])
            spec = merged(fields, flags, settings, set())
            others = [{opened.network_field: name} for name in _names(cross_network)]
            others += [{opened.dataset_field: name} for name in _names(also_on)]
            others += [{"protocol": name} for name in _names(also_under)]
            places = scoring_places(opened, spec, others, catalog)
            adds = cross_network or also_on or also_under or attack
            to = leaderboards if adds and opened.network_field == "eval_network" else None
            scored, skipped = evaluate_places(opened, places, catalog, reporter, to)
        if as_json:
            path = opened.path
            digest = sha256(path.read_bytes()) if path.is_file() else None
            print_json(
                {
                    **_document(*scored[0]),
                    "artifact": {"path": str(path), "sha256": digest},
                    "others": [_document(*one) for one in scored[1:]],
                    "skipped": skipped,
                }
            )
            return
        for prepared, scores in scored:
            if len(scored) > 1:
                tested = (prepared.tested_on or prepared.record).name
                typer.echo(f"{prepared.settings.eval_network.name} on {tested}, {prepared.settings.protocol}")
            typer.echo("\n".join(_lines(prepared, scores)))


def _choice_of_dataset(name: str | None, assigned: dict[str, Any]) -> Choice | None:
    """Return the dataset that a flag names, with the options that are assigned to it."""
    options = {key.removeprefix("dataset."): value for key, value in assigned.items() if key.startswith("dataset.")}
    return None if name is None else Choice(name=name, options=options)


def _lines(prepared: "Prepared", scores: "Scores") -> "Iterator[str]":
    """Yield a score with its companions, and the kind of labels it was reached with."""
    from ddbench.render.tables import beside_lines, fairness_lines, score_lines

    objective, regime = prepared.setting.objective, scores.label_regime
    before = scores.before[objective.primary]
    yield from score_lines(objective.metrics, scores.after, before, scores.companions, regime)
    width = max(map(len, (objective.primary, "before training", *scores.companions)))
    yield f"{'labels':<{width}}  {regime}"
    yield from fairness_lines(_fairness(prepared, scores))
    yield from beside_lines(prepared.setting.metrics, scores.after, scores.companions, prepared.attacks)


def _fairness(prepared: "Prepared", scores: "Scores") -> dict[str, float]:
    from ddbench.records.dd_ranking import fairness

    metric = prepared.setting.objective.metric
    means = {name: score.mean for name, score in scores.companions.items()}
    return fairness(metric, scores.after[metric.name].mean, means, hard=scores.label_regime == HARD)


def _document(prepared: "Prepared", scores: "Scores") -> dict[str, Any]:
    primary = prepared.setting.objective.primary
    return {
        "status": "ok",
        "settings": prepared.settings.model_dump(mode="json"),
        "dataset": prepared.record.model_dump(mode="json"),
        "eval_dataset": prepared.tested_on and prepared.tested_on.model_dump(mode="json"),
        "primary": primary,
        "score": scores.after[primary].model_dump(),
        "scores": {name: score.model_dump() for name, score in scores.after.items()},
        "before": {name: score.model_dump() for name, score in scores.before.items()},
        "companions": {name: score.model_dump() for name, score in scores.companions.items()},
        "attacks": [attack.model_dump() for attack in prepared.attacks],
        "selected": scores.selected,
        "label_regime": scores.label_regime,
        "fairness": _fairness(prepared, scores),
    }


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

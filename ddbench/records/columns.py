"""The columns of a leaderboard: one table, from which the CSVs, comparison groups, page, audit and reference derive."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ddbench.contract.spec import FLAGS, HARD, LABEL_REGIMES, Choice, Settings
from ddbench.records.result import RunResult
from ddbench.records.stats import Score

if TYPE_CHECKING:
    from ddbench.contract.sets import DistilledSet

Cell = str | int | float | bool | None
Get = Callable[[Any], Any]
"""Of a `RunResult`. Parts that it may lack are there in every record of a leaderboard."""


@dataclass(frozen=True)
class Column:
    """A column of a leaderboard.

    Attributes:
        name: name in the CSV's header.
        kind: type of the cells; lists and dicts stand in a CSV as JSON with sorted keys.
        get: the value that a record gives, of type `kind`; None is an empty cell.
        description: one line.
        compares: `ranking` where records of one ranking have the value in common; `line` where records of one line do,
            which differ in their seed alone; empty for the rest.
        shown: true where the page carries the value as it is.
        evidence: the value that the distilled set on disk gives, from its settings and itself; None where it does
            not say it.
        phrase: words for the value in the title of a ranking and the summary of a run, such as `{} labels`; empty
            where they say it otherwise, or not at all.
        usual: the value that goes without saying there.
    """

    name: str
    kind: type
    get: Get
    description: str
    compares: Literal["", "ranking", "line"] = ""
    shown: bool = True
    evidence: "Callable[[Settings, DistilledSet], Any] | None" = None
    phrase: str = ""
    usual: Cell = ""

    @property
    def flag(self) -> str:
        """The option of `ddbench run` that sets it, such as `--ipc`; empty where there is none."""
        return f"--{FLAGS[self.name]}" if self.name in FLAGS else ""

    @property
    def is_json(self) -> bool:
        """True where cells hold JSON."""
        return self.kind in (dict, list)

    def cell(self, record: RunResult) -> Cell:
        """Return the cell of a record, as a CSV holds it."""
        value = self.get(record)
        cell: Cell = json.dumps(value, sort_keys=True) if self.is_json else value
        return cell

    @property
    def field(self) -> str:
        """The field of the settings that it shows, where it shows one."""
        return self.name.removesuffix("_options")


def _setting(
    name: str, kind: type, description: str, compares: Literal["", "ranking", "line"] = "ranking", phrase: str = ""
) -> Column:
    """Return the column of a plain field of the settings."""

    def get(record: RunResult) -> Any:
        return getattr(record.settings, name)

    return Column(
        name, kind, get, description, compares, evidence=lambda settings, _: getattr(settings, name), phrase=phrase
    )


def _part(
    name: str,
    description: str,
    named: Literal["ranking", "line"] = "ranking",
    options: Literal["ranking", "line"] = "line",
    *,
    proven: bool = True,
) -> Iterator[Column]:
    """Yield two columns of a component: its name, which compares as `named`, and its options, as `options`.

    `proven` is False where the distilled set does not say them.
    """

    def choice(settings: Settings) -> Choice:
        return getattr(settings, name) or Choice.model_construct(name="", options={})

    evidence = (lambda settings, _: choice(settings).name) if proven else None
    yield Column(name, str, lambda r: choice(r.settings).name, description, named, evidence=evidence)
    yield _options(name, options, proven=proven)


def _options(name: str, compares: Literal["ranking", "line"], *, proven: bool = True) -> Column:
    def options(settings: Settings) -> dict[str, Any]:
        choice = getattr(settings, name)
        return dict(choice.options) if choice else {}

    return Column(
        f"{name}_options", dict, lambda r: options(r.settings), f"options of the {name.replace('_', ' ')}", compares,
        shown=False, evidence=(lambda settings, _: options(settings)) if proven else None,
    )  # fmt: skip


def _data(name: str, field: str, description: str, compares: Literal["", "ranking"] = "") -> Column:
    """Return the column of a count in the dataset's record."""
    return Column(name, int, lambda r: r.dataset and getattr(r.dataset, field), description, compares, shown=False)


def _score(name: str, kind: type, description: str, compares: Literal["", "line"] = "") -> Column:
    """Return the column of a field of the score in the metric that ranks."""
    return Column(name, kind, lambda r: getattr(_ranking_score(r), name), description, compares, shown=kind is not list)


def _ranking_score(record: RunResult) -> Score:
    return record.scores[record.primary]


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes))


def _regime(settings: Settings, distilled: "DistilledSet") -> str:
    from ddbench.protocols import label_regime, protocol_of

    return label_regime(protocol_of(settings), distilled)


def _companions(record: RunResult) -> dict[str, dict[str, Any]]:
    # What a record does not hold takes no room in its row.
    return {
        name: {
            "mean": c.mean,
            "std": c.std,
            "n": c.n,
            **c.model_dump(include={"label_regime", "metrics"}, exclude_defaults=True),
        }
        for name, c in record.companions.items()
    }


def _other_metrics(record: RunResult) -> dict[str, float]:
    return {name: mean for name, mean in record.means.items() if name != record.primary}


def phrases(record: RunResult, *, usual: bool = False) -> list[str]:
    """Return what is unusual about a record, such as `stored soft labels`, in words; the `usual` too, where wanted."""
    cells = [(column, column.cell(record)) for column in COLUMNS if column.phrase]
    return [column.phrase.format(cell) for column, cell in cells if cell and (usual or cell != column.usual)]


COLUMNS: tuple[Column, ...] = (
    Column("schema_version", int, lambda r: r.version, "version of the record", shown=False),
    Column(
        "fingerprint", str, lambda r: r.fingerprint, "SHA-256 of everything in the settings that can change the number"
    ),
    Column("created", str, lambda r: r.created, "time when the record was written (UTC)"),
    Column(
        "experiment", str, lambda r: r.settings.experiment, "named experiment that the run carries out; empty for none"
    ),
    *_part("method", "distillation method", "line"),
    Column(
        "method_source",
        str,
        lambda r: r.method_source,
        "package and version that the method came from; for a file, a digest of its code",
        "line",
    ),
    Column(
        "dataset",
        str,
        lambda r: r.dataset.name,
        "dataset; with @ and a hash where the copy is not the full original",
        "ranking",
        evidence=lambda _, d: d.metadata.get("dataset"),
    ),
    Column(
        "dataset_hash",
        str,
        lambda r: r.dataset.content_hash,
        "SHA-256 over all images and labels of both splits",
        "ranking",
        shown=False,
        evidence=lambda _, d: d.metadata.get("dataset_hash"),
    ),
    _options("dataset", "line"),
    Column(
        "eval_dataset",
        str,
        lambda r: r.eval_dataset.name if r.eval_dataset else "",
        "dataset whose test split scored; empty where it is that of the dataset",
        "ranking",
        phrase="tested on {}",
    ),
    _data("train_images", "train", "training images that the method saw", "ranking"),
    _data("validation_images", "validation", "images held out of the training split, for selection"),
    _data("test_images", "test", "images that scored"),
    *_part("network", "architecture of the networks to distil for", "line"),
    *_part("eval_network", "architecture of the networks that scored", options="ranking", proven=False),
    Column(
        "sample_shape",
        str,
        lambda r: _shape(r.dataset.sample_shape),
        "channels x height x width of an image",
        "line",
        evidence=lambda _, d: _shape(d.sample_shape),
    ),
    *_part("init", "init distribution of the networks to distil for", "line"),
    *_part("eval_init", "init distribution of the networks that scored", options="ranking"),
    Column(
        "pretrained",
        dict,
        lambda r: r.pretrained,
        "pools of pretrained networks and weights files that were drawn on",
        shown=False,
    ),
    *_part("objective", "objective", options="ranking"),
    *_part("target", "pretrained-adaptation target; empty for none"),
    _setting("images_per_class", int, "images per class in all (IPC)"),
    _setting("steps", int, "gradient steps with images of their own"),
    _setting("epochs", int, "times the steps are cycled through"),
    _setting("byte_budget", int, "bytes that the set may store; empty for no such limit", phrase="at most {} bytes"),
    _setting("precision", str, "precision of matrix products and convolutions", "line"),
    Column(
        "label_regime",
        str,
        lambda r: r.artifact.label_regime,
        f"{', '.join(LABEL_REGIMES[:-1])} or {LABEL_REGIMES[-1]}; never ranked together",
        "ranking",
        evidence=_regime,
        phrase="{} labels",
        usual=HARD,
    ),
    Column(
        "decoder",
        str,
        lambda r: r.artifact.decoder,
        "decoder of a parametrised set; empty for stored images, which are never ranked with it",
        "ranking",
        evidence=lambda _, d: d.decoder,
        phrase="decoder {}",
    ),
    _setting("protocol", str, "protocol that scored the set, with its version"),
    Column(
        "protocol_hash",
        str,
        lambda r: r.protocol.hash,
        "beginning of a SHA-256 over every number that the protocol is made of",
        "ranking",
        shown=False,
    ),
    Column("selected_on", str, lambda r: r.protocol.selected, "what was selected, and on which data"),
    Column("metric", str, lambda r: r.primary, "metric that ranks", "ranking"),
    Column("higher_is_better", bool, lambda r: r.metric.higher_is_better, "direction of the metric"),
    _score("n", int, "networks (or sets) that scored", "line"),
    _score("mean", float, "mean of the metric over them, as a fraction where it is a share"),
    _score("std", float, "standard deviation over them; empty for one"),
    _score("low", float, "lower end of the 95 % interval of the mean"),
    _score("high", float, "upper end of the 95 % interval of the mean"),
    _score("values", list, "metric of every network"),
    Column("before", float, lambda r: r.before[r.primary].mean, "mean of the metric before any step on the set"),
    Column("metrics", dict, _other_metrics, "means of the other metrics", shown=False),
    Column(
        "companions",
        dict,
        _companions,
        "mean, std and n of each companion under the same protocol, its labels and other metrics",
        shown=False,
    ),
    Column(
        "images",
        int,
        lambda r: r.artifact.images,
        "images that the set stores; of a payload, those that its values would fill",
        evidence=lambda _, d: d.stored,
    ),
    Column(
        "decoded_images",
        int,
        lambda r: r.artifact.decoded_images,
        "images that a payload decodes to; empty for stored images",
        evidence=lambda _, d: d.count if d.decoder else None,
    ),
    Column(
        "bytes",
        int,
        lambda r: r.artifact.bytes,
        "bytes of every tensor that the set stores",
        evidence=lambda _, d: d.nbytes,
    ),
    Column(
        "label_bytes",
        int,
        lambda r: r.artifact.label_bytes,
        "bytes of labels among them, with the views that they were given for",
    ),
    Column("outer_steps", int, lambda r: r.loop.steps, "outer steps taken"),
    Column(
        "passes",
        int,
        lambda r: r.loop.passes,
        "examples sent forward through networks while distilling, without what later runs share",
    ),
    Column("stopped_by", str, lambda r: r.loop.stopped_by, "what ended the distillation early; empty for nothing"),
    Column(
        "empty_loops", int, lambda r: r.loop.empty, "loops that took no step because the time or pass limit was over"
    ),
    Column(
        "rollbacks",
        int,
        lambda r: r.loop.rollbacks,
        "times the loop went back to an earlier state after NaN or infinity",
    ),
    Column("seconds_distill", float, lambda r: r.seconds.distill, "wall-clock seconds of distillation"),
    Column(
        "seconds_saved", float, lambda r: r.seconds.saved, "seconds that cached results took in the runs that made them"
    ),
    Column(
        "seconds_evaluate",
        float,
        lambda r: r.seconds.evaluate,
        "wall-clock seconds of scoring, the companions included",
    ),
    Column("peak_memory_mb", float, lambda r: r.peak_memory_mb, "peak memory of the whole process, in MB"),
    Column("environment", dict, lambda r: r.environment, "versions, commit, device and threads", shown=False),
    _setting("seed", int, "seed of the distillation", compares=""),
    Column(
        "trials",
        int,
        lambda r: r.settings.trials,
        "options tried on the validation slice before these were chosen; 0 for none",
    ),
    Column(
        "artifact_sha256",
        str,
        lambda r: r.artifact.sha256,
        "SHA-256 of the distilled set's file in artifacts/",
        shown=False,
    ),
    Column("run_id", str, lambda r: r.run_id, "name of the run folder"),
)
"""The columns in the order of the CSV. A column that is added changes no record."""

"""The reproduction page: every named experiment, with measured and published figures, generated from the records."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ddbench.contract.metric import Metric
from ddbench.contract.spec import RunSpec
from ddbench.records.result import RunResult
from ddbench.render.live import duration
from ddbench.render.tables import number

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog
    from ddbench.discovery.experiments import Experiment, Published

HEADINGS = ("experiment", "ours", "n", "published", "difference", "within", "companions", "before", "cost", "changed")
INTRODUCTION = """# Reproduction

This page lists every named experiment of one run, beside its published figure.
`ddbench reproduction` generates it from the leaderboard rows; nothing in it is typed by hand.

- *Ours*: mean and standard deviation over `n` networks that the distillation never saw.
  For a fixed init, the one network that the set was made for.
- *Published*: the source's own figure, not measured here.
- *Within*: yes if our mean lies inside the published mean +- standard deviation.
  Empty if no published figure is confirmed.
- *Companions*: baselines under the same protocol.
- *Before*: the same networks without any distilled step.
- *Cost*: time to distil.
- *Changed*: settings of the run that differ from the experiment, with the experiment's value in brackets.
- `*` marks data that is not the full original.
"""


def page(catalog: "Catalog", records: Sequence[RunResult]) -> str:
    """Return the page as Markdown, without records of no named experiment."""
    lines = [INTRODUCTION, _line(HEADINGS), _line(["---"] * len(HEADINGS))]
    experiments = list(catalog.experiments())
    for experiment in experiments:
        if experiment.sweep is not None:
            continue
        runs = [record for record in records if record.settings.experiment == experiment.name]
        runs.sort(key=_best_first)
        lines += [_line(_cells(experiment, record, catalog)) for record in runs]
        if not runs:
            lines.append(_line([f"`{experiment.name}`", "not run", "", _published(experiment.published)]))
    known = {"", *(experiment.name for experiment in experiments)}
    missing = sum(record.settings.experiment not in known for record in records)
    lines += [f"\nNot shown: {missing} records of experiments that no plugin here offers."] if missing else []
    return "\n".join(lines) + "\n"


def _best_first(record: RunResult) -> float:
    mean = record.scores[record.primary].mean
    return -mean if record.metric.higher_is_better else mean


def _cells(experiment: "Experiment", record: RunResult, catalog: "Catalog") -> Iterator[str]:
    published, metric, score = experiment.published, record.metric, record.scores[record.primary]
    spread = "" if score.std is None else f" +- {number(metric, score.std)}"
    partial = record.dataset is not None and record.dataset.partial
    yield f"`{experiment.name}`" + (" *" if partial else "")
    yield number(metric, score.mean).removesuffix(" %" if spread else "") + spread
    yield str(score.n)
    yield _published(published)
    if published is not None and published.metric == metric.name:
        gap = score.mean - published.mean
        yield number(metric, gap, signed=True)
        yield "-" if published.std is None else "yes" if abs(gap) <= published.std else "above" if gap > 0 else "below"
    else:
        yield from ("", "")
    yield ", ".join(f"{name} {number(metric, companion.mean)}" for name, companion in record.companions.items())
    yield number(metric, record.before[metric.name].mean)
    yield duration(record.seconds.distill) if record.seconds else ""
    yield ", ".join(_changes(experiment, record, catalog))


def _published(figure: "Published | None") -> str:
    if figure is None:
        return ""
    metric = Metric(figure.metric, figure.unit)
    mean = number(metric, figure.mean)
    return mean if figure.std is None else f"{mean.removesuffix(' %')} +- {number(metric, figure.std)}"


def _changes(experiment: "Experiment", record: RunResult, catalog: "Catalog") -> Iterator[str]:
    """Yield options that the run set otherwise than the experiment, as `outer_steps 6000 (23600)`."""
    wanted, settings = RunSpec.parse(experiment.spec), record.settings
    pairs = [("method", wanted.method, settings.method)]
    if wanted.target is None:
        pairs.append(("init", wanted.init, settings.init))
    elif settings.target is not None:
        pairs.append(("target", wanted.target, settings.target))
    for kind, asked, used in pairs:
        _, complete = catalog.resolve(kind, asked)
        for key, value in used.options.items():
            if complete.options.get(key) != value:
                yield f"{key} {_short(value)} ({_short(complete.options.get(key))})"
    if record.loop.stopped_by:
        yield f"stopped by the {record.loop.stopped_by} after {record.loop.steps} outer steps"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: Any) -> str:
    filled = [*cells]
    filled += [""] * (len(HEADINGS) - len(filled))
    return "| " + " | ".join(filled) + " |"

"""The reproduction page: every named experiment, what was measured and what was published, generated from the rows."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ddbench.contract.spec import RunSpec
from ddbench.records.leaderboard import Row
from ddbench.render.live import duration
from ddbench.render.tables import number

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Catalog, Experiment

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


def page(catalog: "Catalog", rows: Sequence[Row]) -> str:
    """The page as Markdown; rows of no named experiment are left out."""
    lines = [INTRODUCTION, _line(HEADINGS), _line(["---"] * len(HEADINGS))]
    for experiment in catalog.experiments():
        if experiment.sweep is not None:
            continue
        found = [row for row in rows if row.experiment == experiment.name]
        found.sort(key=lambda row: -row.mean if row.higher_is_better else row.mean)
        for row in found:
            lines.append(_line(_cells(experiment, row, catalog)))
        if not found:
            lines.append(_line([f"`{experiment.name}`", "not run", "", _published(experiment)]))
    missing = [r for r in rows if r.experiment and r.experiment not in {e.name for e in catalog.experiments()}]
    lines += [f"\nNot shown: {len(missing)} rows of experiments that no plugin here offers."] if missing else []
    return "\n".join(lines) + "\n"


def _cells(experiment: "Experiment", row: Row, catalog: "Catalog") -> Iterator[str]:
    published = experiment.published
    spread = "" if row.std is None else f" +- {number(row.metric, row.std)}"
    yield f"`{experiment.name}`" + (" *" if "@" in row.dataset else "")
    yield number(row.metric, row.mean).removesuffix(" %" if spread else "") + spread
    yield str(row.n)
    yield _published(experiment)
    if published is not None and published.metric == row.metric:
        gap = row.mean - published.mean
        yield number(row.metric, gap, signed=True)
        yield "-" if published.std is None else "yes" if abs(gap) <= published.std else "above" if gap > 0 else "below"
    else:
        yield from ("", "")
    yield ", ".join(f"{name} {number(row.metric, found['mean'])}" for name, found in row.companion_scores().items())
    yield number(row.metric, row.before)
    yield duration(row.seconds_distill)
    yield ", ".join(_changes(experiment, row, catalog))


def _published(experiment: "Experiment") -> str:
    published = experiment.published
    if published is None:
        return ""
    mean = number(published.metric, published.mean)
    return mean if published.std is None else f"{mean.removesuffix(' %')} +- {number(published.metric, published.std)}"


def _changes(experiment: "Experiment", row: Row, catalog: "Catalog") -> Iterator[str]:
    """Options that the run set and the experiment sets otherwise, as `outer_steps 6000 (23600)`."""
    wanted = RunSpec.parse(experiment.spec)
    kind, choice, text = (
        ("init", wanted.init, row.init_options)
        if wanted.target is None
        else ("target", wanted.target, row.target_options)
    )
    for part, named, set_to in (("method", wanted.method, row.method_options), (kind, choice, text)):
        _, complete = catalog.resolve(part, named)
        for key, value in json.loads(set_to).items():
            if complete.options.get(key) != value:
                yield f"{key} {_short(value)} ({_short(complete.options.get(key))})"
    if row.stopped_by:
        yield f"stopped by the {row.stopped_by} after {row.outer_steps} outer steps"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: Any) -> str:
    filled = [*cells]
    filled += [""] * (len(HEADINGS) - len(filled))
    return "| " + " | ".join(filled) + " |"

"""Verification of records: the distilled set is scored again, to see whether the recorded number holds."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddbench.contract.observer import Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, MissingPrerequisite
from ddbench.pipeline.evaluate import Scores, evaluate
from ddbench.pipeline.prepare import Prepared
from ddbench.records.audit import newer, problems_of, settings_of
from ddbench.records.result import RunResult, notice_unknown
from ddbench.records.stats import Score
from ddbench.records.store import artifact_path

MOVED = 0.02
"""Largest mean movement of the values of the same networks that another machine's arithmetic explains."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of scoring a record's distilled set again.

    Attributes:
        holds: true where the recorded number holds.
        how: the outcome in words.
        score: the score that was reached.
    """

    holds: bool
    how: str
    score: Score


def verify(
    record: RunResult,
    leaderboards: Path,
    catalog: Catalog,
    reporter: Reporter,
    *,
    networks: int | None = None,
    fetch: bool = True,
) -> Verdict:
    """Score a record's distilled set again under the record's protocol, on all networks or on the first `networks`.

    Networks are the same, so values compare one by one. The number holds when all are the same, or when they move by
    no more than `MOVED` on average (of the value itself, where that is above 1) and the mean stays within the record's
    interval. With `fetch`, missing data and pools are downloaded and trained.

    Raises `DdbenchError` for an invalid record and for one of a newer version, and `MissingPrerequisite` where
    distilled set or data are not here.
    """
    if reason := newer(record):
        raise DdbenchError(f"{record.run_id} was not verified: {reason}.", "Use a later version of ddbench.")
    for problem in problems_of(record, leaderboards):
        raise _invalid(record, problem)
    # A valid record has all of these.
    assert record.artifact and record.dataset and record.protocol
    recorded = record.scores[record.primary]
    path = artifact_path(leaderboards, record.artifact.sha256)
    if not path.exists():
        raise MissingPrerequisite(
            f"the distilled set of {record.run_id} is not in {path.parent}.",
            "Sets over 1 MB are not committed; otherwise this copy is incomplete.",
        )
    distilled = DistilledSet.load(path)
    settings, unknown = settings_of(distilled)
    notice_unknown(path, unknown)
    # A leaderboard keeps the means of other metrics alone, with which networks do not compare one by one.
    settings = settings.scored_as(record.settings).model_copy(update={"attack": ()})
    count = min(networks or recorded.n, recorded.n)
    if count < recorded.n:
        settings = settings.model_copy(update={"eval_networks": count})
    prepared, scores = evaluate(
        distilled, settings.asked(), catalog=catalog, reporter=reporter, companions=False, fetch=fetch
    )
    for here, then in ((prepared.record, record.dataset), (prepared.tested_on, record.eval_dataset)):
        if here is not None and then is not None and here.content_hash != then.content_hash:
            raise MissingPrerequisite(
                f"the data here are not those of {record.run_id}: "
                f"{here.content_hash[:12]}, not {then.content_hash[:12]}.",
                "Get the same copy of the dataset.",
            )
    for problem in _contradictions(record, prepared, scores, all_networks=count == recorded.n):
        raise _invalid(record, problem)
    return _verdict(scores.after[record.primary], recorded, count)


def _verdict(score: Score, recorded: Score, count: int) -> Verdict:
    """Compare a score on the first `count` networks with the recorded one."""
    values = recorded.values[:count]
    if score.values == values:
        part = f" on {count} of {recorded.n} networks" if count < recorded.n else ""
        return Verdict(True, "reproduced exactly" + part, score)
    moved = math.fsum(abs(now - before) for now, before in zip(score.values, values, strict=True)) / count
    mean = math.fsum(values) / count
    near = moved <= MOVED * max(1.0, abs(mean))
    within = True
    if count == recorded.n and recorded.low is not None and recorded.high is not None:
        within = recorded.low - 1e-9 <= score.mean <= recorded.high + 1e-9
    how = f"{score.mean:.4f} where {mean:.4f} was recorded, values moved by {moved:.4f} on average"
    if near and within:
        return Verdict(True, f"holds: {how}", score)
    return Verdict(False, f"does not hold: {how}" + ("" if within else ", out of the recorded interval"), score)


def _invalid(record: RunResult, problem: str) -> DdbenchError:
    return DdbenchError(f"the record of {record.run_id} is invalid: {problem}.", "ddbench did not write it so.")


def _contradictions(record: RunResult, prepared: Prepared, scores: Scores, *, all_networks: bool) -> Iterator[str]:
    """Yield what a record says of data, metric and networks that scoring again contradicts."""
    metric = prepared.setting.objective.metric
    pairs: dict[str, tuple[object, object]] = {
        "metric": (record.metric.name, metric.name),
        "unit": (record.metric.unit, metric.unit),
        "higher_is_better": (record.metric.higher_is_better, metric.higher_is_better),
        **{
            f"dataset.{field}": (getattr(record.dataset, field), getattr(prepared.record, field))
            for field in type(prepared.record).model_fields
        },
    }
    if all_networks:
        pairs["n"] = (record.scores[record.primary].n, scores.after[metric.name].n)
        pairs["selected"] = (record.protocol and record.protocol.selected, scores.selected)
    for name, (recorded, again) in pairs.items():
        if recorded != again:
            yield f"it says {name} {recorded!r}, scoring again {again!r}"
    before, now = record.before[record.primary].mean, scores.before[metric.name].mean
    if all_networks and abs(before - now) > MOVED * max(1.0, abs(now)):
        yield f"it says {before:.4f} before training, scoring again {now:.4f}"

"""Rows held against their artefacts: each is scored again, to see whether its number holds."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddbench.contract.observer import Reporter
from ddbench.contract.sets import DistilledSet
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.pipeline.evaluate import Scores, evaluate
from ddbench.pipeline.prepare import Prepared
from ddbench.records import leaderboard
from ddbench.records.audit import faults_of, spec_of
from ddbench.records.leaderboard import Row
from ddbench.records.ranking import but_seed
from ddbench.records.result import artifact_path
from ddbench.records.stats import Score

MOVED = 0.02
"""How far the values of the same networks may move, on average, for another machine's arithmetic to be to blame."""


@dataclass(frozen=True)
class Verdict:
    """What evaluating a row's artefact again found. `how` says it in words."""

    holds: bool
    how: str
    found: Score


def find(folder: Path, name: str, *, of_any_seed: bool = False) -> Row:
    """The row of a run (its folder or name), or the one whose name or fingerprint begins with `name`.

    Raises `UsageError` for none or several; `of_any_seed` takes the first of rows that differ in their seed alone.
    """
    name = Path(name).name
    rows = leaderboard.read(folder)
    rows = [row for row in rows if row.run_id == name] or [
        row for row in rows if name and (row.run_id.startswith(name) or row.fingerprint.startswith(name))
    ]
    if of_any_seed and len({but_seed(row) for row in rows}) == 1:
        return rows[0]
    if len(rows) != 1:
        raise UsageError(
            f"{len(rows) or 'no'} rows in {folder} are called {name!r}.",
            "Give a run from `ddbench leaderboard`, or the beginning of its name or fingerprint.",
        )
    return rows[0]


def verify(
    row: Row, folder: Path, catalog: Catalog, reporter: Reporter, *, networks: int | None = None, fetch: bool = True
) -> Verdict:
    """Evaluate a row's artefact again under the row's protocol, on as many networks, or on the first few of them.

    Networks are the same, so values compare one by one. The figure holds when all are the same, or when they move by no
    more than `MOVED` on average (of the value itself, where that is above 1) and the mean stays within the row's
    interval. Raises `DdbenchError` for a row that is at fault, and `MissingPrerequisite`
    where artefact or data are not there.
    """
    for fault in faults_of(row, folder):
        raise DdbenchError(f"the row of {row.run_id} is at fault: {fault}.", "It was not written so by ddbench.")
    path = artifact_path(folder, row.artifact_sha256)
    if not path.exists():
        raise MissingPrerequisite(
            f"the artefact of {row.run_id} is not in {path.parent}.",
            "It was never committed where it is over 1 MB; else the copy here is not whole.",
        )
    distilled = DistilledSet.load(path)
    spec = spec_of(distilled)
    count = min(networks or row.n, row.n)
    if count < row.n:
        spec = spec.model_copy(update={"eval_networks": count})
    prepared, scores = evaluate(
        distilled, spec.asked(), catalog=catalog, reporter=reporter, companions=False, fetch=fetch
    )
    if prepared.record.content_hash != row.dataset_hash:
        raise MissingPrerequisite(
            f"the data here are not those of {row.run_id}: "
            f"{prepared.record.content_hash[:12]}, not {row.dataset_hash[:12]}.",
            "Get the same copy of the dataset.",
        )
    for fault in _told_otherwise(row, prepared, scores, all_networks=count == row.n):
        raise DdbenchError(f"the row of {row.run_id} is at fault: {fault}.", "It was not written so by ddbench.")
    found, values = scores.after[row.metric], json.loads(row.values)[:count]
    if found.values == values:
        return Verdict(
            True, "reproduced exactly" + (f" on {count} of {row.n} networks" if count < row.n else ""), found
        )
    moved = math.fsum(abs(ours - theirs) for ours, theirs in zip(found.values, values, strict=True)) / count
    written = math.fsum(values) / count
    near = moved <= MOVED * max(1.0, abs(written))
    within = True
    if count == row.n and row.low is not None and row.high is not None:
        within = row.low - 1e-9 <= found.mean <= row.high + 1e-9
    how = f"{found.mean:.4f} where {written:.4f} was written, values moved by {moved:.4f} on average"
    if near and within:
        return Verdict(True, f"holds: {how}", found)
    return Verdict(False, f"does not hold: {how}" + ("" if within else ", out of the row's interval"), found)


def _told_otherwise(row: Row, prepared: Prepared, scores: Scores, *, all_networks: bool) -> Iterator[str]:
    """What a row says of data, metric and networks that evaluating it again contradicts."""
    record, objective = prepared.record, prepared.setting.objective
    told: dict[str, object] = {
        "metric": objective.primary,
        "higher_is_better": objective.higher_is_better,
        "dataset": record.name,
        "train_images": record.train,
        "validation_images": record.validation,
        "test_images": record.test,
    }
    if all_networks:
        told |= {"n": scores.after[objective.primary].n, "selected_on": scores.selected}
    for name, value in told.items():
        if getattr(row, name) != value:
            yield f"it says {name} {getattr(row, name)!r}, scoring again {value!r}"
    before = scores.before[objective.primary].mean
    if all_networks and abs(row.before - before) > MOVED * max(1.0, abs(before)):
        yield f"it says {row.before:.4f} before training, scoring again {before:.4f}"

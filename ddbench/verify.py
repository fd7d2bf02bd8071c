"""Rows held against themselves and against their artefacts: what could not have been written, what does not hold."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddbench import leaderboard
from ddbench.catalog import Catalog
from ddbench.data import DistilledSet
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.files import sha256
from ddbench.leaderboard import Row
from ddbench.ranking import but_seed
from ddbench.reporter import Reporter
from ddbench.results import artifact_path
from ddbench.runner import evaluate
from ddbench.spec import RunSpec
from ddbench.stats import Score, summarise

ROUNDING = 1e-3
"""Relative difference of a figure up to which other machines' arithmetic is to blame."""


@dataclass(frozen=True)
class Verdict:
    """What evaluating a row's artefact again found. `how` says it in words."""

    holds: bool
    how: str
    found: Score


def faults(folder: Path) -> list[str]:
    """What is wrong with the rows of all leaderboards in `folder` and with their artefacts, a line each.

    Raises `DdbenchError` for a file that is no leaderboard at all.
    """
    rows = leaderboard.read(folder)
    found = [f"{row.run_id}: {fault}" for row in rows for fault in _faults_of(row, folder)]
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        if leaderboard.identity(row) in seen:
            found.append(f"{row.run_id}: stands there twice")
        seen.add(leaderboard.identity(row))
    return found


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

    The figure holds when all values are the same, when the two 95 % intervals of the mean overlap, or when the means
    differ by no more than a thousandth. Raises `DdbenchError` for a row that is at fault, and `MissingPrerequisite`
    where artefact or data are not there.
    """
    for fault in _faults_of(row, folder):
        raise DdbenchError(f"the row of {row.run_id} is at fault: {fault}.", "It was not written so by ddbench.")
    path = artifact_path(folder, row.artifact_sha256)
    if not path.exists():
        raise MissingPrerequisite(
            f"the artefact of {row.run_id} is not in {path.parent}.", "Artefacts over 1 MB stay away."
        )
    distilled = DistilledSet.load(path)
    spec = spec_of(distilled)
    count = min(networks or row.n, row.n)
    if count < row.n:
        spec = spec.model_copy(update={"eval_networks": count})
    bench, scores = evaluate(distilled, spec, catalog=catalog, reporter=reporter, companions=False, fetch=fetch)
    if bench.record.content_hash != row.dataset_hash:
        raise MissingPrerequisite(
            f"the data here are not those of {row.run_id}: "
            f"{bench.record.content_hash[:12]}, not {row.dataset_hash[:12]}.",
            "Get the same copy of the dataset.",
        )
    found, values = scores.after[row.metric], json.loads(row.values)[:count]
    if found.values == values:
        return Verdict(
            True, "reproduced exactly" + (f" on {count} of {row.n} networks" if count < row.n else ""), found
        )
    written = summarise(values)
    gap = abs(found.mean - written.mean)
    reach = sum(score.mean - score.low for score in (found, written) if score.low is not None)
    if gap <= max(reach, ROUNDING * abs(written.mean)):
        why = "intervals overlap" if gap <= reach else "as far as another machine rounds otherwise"
        return Verdict(True, f"holds: {found.mean:.4f} where {written.mean:.4f} was written, {why}", found)
    return Verdict(False, f"does not hold: {found.mean:.4f} where {written.mean:.4f} was written", found)


def spec_of(distilled: DistilledSet) -> RunSpec:
    """The spec that a set was made by, as its file tells. Raises `KeyError` or `ValueError` where it tells none."""
    return RunSpec.parse(json.loads(distilled.metadata["spec"]))


def _faults_of(row: Row, folder: Path) -> Iterator[str]:
    yield from _figures_at_fault(row)
    path = artifact_path(folder, row.artifact_sha256)
    if not path.exists():
        return
    if sha256(path.read_bytes()) != row.artifact_sha256:
        yield "its artefact is another file than the one that was scored"
        return
    try:
        distilled = DistilledSet.load(path)
        spec = spec_of(distilled)
    except (UsageError, KeyError, ValueError) as error:
        yield f"its artefact cannot be read ({error})"
        return
    if spec.fingerprint != row.fingerprint or distilled.metadata.get("fingerprint") != row.fingerprint:
        yield "its fingerprint is not that of its artefact"
    told = {
        "method": spec.method.name,
        "network": spec.network.name if spec.network else "",
        "init": spec.init.name,
        "eval_init": (spec.eval_init or spec.init).name,
        "objective": spec.objective.name,
        "target": spec.target.name if spec.target else "",
        "images_per_class": spec.images_per_class,
        "steps": spec.steps,
        "epochs": spec.epochs,
        "protocol": spec.protocol,
        "seed": spec.seed,
        "method_options": json.dumps(spec.method.options, sort_keys=True),
        "dataset_hash": distilled.metadata.get("dataset_hash"),
        "images": distilled.count,
        "bytes": distilled.nbytes,
    }
    for name, value in told.items():
        if getattr(row, name) != value:
            yield f"it says {name} {getattr(row, name)!r}, its artefact {value!r}"


def _figures_at_fault(row: Row) -> Iterator[str]:
    try:
        values = [float(value) for value in json.loads(row.values)]
    except (TypeError, ValueError):
        yield "its values are not a list of numbers"
        return
    if not values or len(values) != row.n:
        yield f"it holds {len(values)} values where n is {row.n}"
        return
    if not all(map(math.isfinite, [*values, row.before, row.seconds_distill, row.seconds_evaluate])):
        yield "not all of its figures are finite"
        return
    wanted = summarise(values)
    for name in ("mean", "std", "low", "high"):
        there, right = getattr(row, name), getattr(wanted, name)
        if (there is None) != (right is None) or (right is not None and not math.isclose(there, right, abs_tol=1e-9)):
            yield f"its {name} {there} is not that of its values, {right}"

"""The audit of leaderboards: records, figures and distilled sets that the program could not have written so."""

import datetime
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import LABEL_REGIMES, Settings
from ddbench.errors import UsageError
from ddbench.machine.files import sha256
from ddbench.protocols import PREFIX, protocol_hash, protocol_of
from ddbench.records import leaderboard, store
from ddbench.records.columns import COLUMNS
from ddbench.records.migrations import VERSION
from ddbench.records.result import ProtocolRecord, RunResult, notice_unknown, validated
from ddbench.records.stats import Score, summarise

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Attributes:
        records: number of records.
        problems: what is invalid, a line each; empty where nothing is.
        notices: what could not be checked in full, a line each, because another version wrote it.
    """

    records: int
    problems: list[str]
    notices: list[str]


def audit(leaderboards: Path) -> Audit:
    """Check all leaderboards and their distilled sets. Raises `DdbenchError` for a file that is not a record at all."""
    records = store.read(leaderboards)
    leaderboard.published(leaderboards)
    lines = [f"{record.run_id}: {problem}" for record in records for problem in problems_of(record, leaderboards)]
    seen: set[tuple[str, ...]] = set()
    for record in records:
        if store.identity(record) in seen:
            lines.append(f"{record.run_id}: there are two records of this spec, data and version of the method")
        seen.add(store.identity(record))
    lines += [
        f"{path.name}: it is not what its records give; write it anew with `ddbench leaderboard --rebuild`"
        for path in store.outdated(leaderboards)
    ]
    notices = [f"{record.run_id}: {newer(record)}" for record in records if newer(record)]
    notices += [
        f"{path.name}: another version wrote it, with other columns; `ddbench leaderboard --rebuild` writes those of "
        "this version"
        for path in store.of_other_columns(leaderboards)
    ]
    return Audit(len(records), lines, notices)


def newer(record: RunResult) -> str:
    """Return why a record cannot be checked, because a newer version wrote it; empty where it can."""
    if record.version <= VERSION:
        return ""
    return f"it is of version {record.version}, newer than this ddbench, which cannot check it"


def problems_of(record: RunResult, leaderboards: Path) -> Iterator[str]:
    """Yield what is invalid in one record and its distilled set; nothing for a record of a newer version."""
    if newer(record):
        return
    malformed = list(_malformed(record))
    yield from malformed
    if malformed:
        return
    assert record.artifact
    yield from _figures(record)
    path = store.artifact_path(leaderboards, record.artifact.sha256)
    if path.exists():
        yield from _against(record, path)


def _against(record: RunResult, path: Path) -> Iterator[str]:
    """Yield where a record and its distilled set disagree."""
    if record.artifact is None or sha256(path.read_bytes()) != record.artifact.sha256:
        yield "its distilled set is another file than the one that was scored"
        return
    try:
        distilled = DistilledSet.load(path)
        settings, unknown = settings_of(distilled)
    except (UsageError, KeyError, ValueError) as error:
        yield f"its distilled set cannot be read ({error})"
        return
    notice_unknown(path, unknown)
    # A set that was scored on another network, or under another protocol, leads back to the run that made it.
    if record.settings.distillation.fingerprint != settings.distillation.fingerprint:
        yield "its settings are not those of its distilled set"
    # A fingerprint covers all settings, also those that this version does not know.
    if not unknown:
        yield from _fingerprints(record, settings, distilled.metadata.get("fingerprint"))
    for column in COLUMNS:
        if column.evidence is None:
            continue
        try:
            recorded, wanted = column.get(record), column.evidence(settings.scored_as(record.settings), distilled)
        except (KeyError, ValueError, TypeError, ArithmeticError):
            yield f"its distilled set does not say its {column.name}"
            continue
        if recorded != wanted:
            yield f"it says {column.name} {recorded!r}, its distilled set {wanted!r}"


def _fingerprints(record: RunResult, settings: Settings, recorded: str | None) -> Iterator[str]:
    """Yield where fingerprints of a record and its distilled set, which holds `settings`, are not those computed."""
    if settings.fingerprint != recorded:
        yield "its settings are not those of its distilled set"
    if record.fingerprint != record.settings.fingerprint:
        yield "its fingerprint is not that of its settings"
    if not record.run_id.startswith(settings.run_id):
        yield f"it says run_id {record.run_id!r}, its distilled set {settings.run_id!r}"


def _malformed(record: RunResult) -> Iterator[str]:
    """Yield what a finished run cannot have left in its record, whatever was measured."""
    dataset, protocol, artifact = record.dataset, record.protocol, record.artifact
    # A record that lacks one of these is refused where it is read.
    assert dataset and protocol and artifact
    hashes = {"artifact": artifact.sha256, "fingerprint": record.fingerprint, "dataset": dataset.content_hash}
    for name, value in hashes.items():
        if not _SHA256.fullmatch(value):
            yield f"its {name} is not named by a SHA-256"
    if (record.eval_dataset is None) != (record.settings.eval_dataset is None):
        yield "its settings and its data do not agree on the dataset that scored"
    if artifact.label_regime not in LABEL_REGIMES:
        yield f"its label regime {artifact.label_regime!r} is not one of {', '.join(LABEL_REGIMES)}"
    if protocol.name != record.settings.protocol:
        yield f"it was scored under {protocol.name}, its settings say {record.settings.protocol}"
    yield from _wrong_protocol(record, protocol)
    try:
        datetime.datetime.fromisoformat(record.created)
    except ValueError:
        yield f"it says created {record.created!r}, which is not a time"
    name, _, copy = dataset.name.partition("@")
    if not name or not dataset.content_hash.startswith(copy):
        yield f"its dataset {dataset.name!r} is not that of its hash"
    if not all(math.isfinite(figure) for figure in _all_figures(record)):
        yield "not all of its figures are finite"


def _wrong_protocol(record: RunResult, protocol: ProtocolRecord) -> Iterator[str]:
    """Yield what a record says of its protocol that is not so here; no file that it names is read."""
    settings = record.settings.model_copy(update={"protocol": protocol.name})
    if protocol.name.startswith(PREFIX) and (settings.protocol_content or {}).get("name") != protocol.name:
        yield f"its settings do not hold the content of {protocol.name}"
        return
    try:
        here = protocol_of(settings)
    except UsageError as error:
        yield error.message.partition(".")[0]
        return
    if protocol.hash != protocol_hash(here):
        yield f"its protocol hash is not that of {protocol.name} as it is here"
    elif not set(protocol.ignores or ()) <= here.ignores:
        yield f"it says that {protocol.name} ignores {', '.join(protocol.ignores or ())}"


def _all_figures(record: RunResult) -> Iterator[float]:
    for scores in (record.scores, record.before, record.companions):
        for score in scores.values():
            yield from _score_figures(score)
    for companion in record.companions.values():
        yield from companion.metrics.values()
    if record.seconds is not None:
        yield from (record.seconds.distill, record.seconds.evaluate)
    yield math.nan if record.peak_memory_mb is None else record.peak_memory_mb


def _score_figures(score: Score) -> Iterator[float]:
    yield from (value for value in (score.mean, score.std, score.low, score.high) if value is not None)
    yield from score.values


def _figures(record: RunResult) -> Iterator[str]:
    """Yield figures that do not follow from the raw values, and counts that cannot be."""
    score, seconds, dataset, artifact = record.scores[record.primary], record.seconds, record.dataset, record.artifact
    assert seconds and dataset and artifact and record.peak_memory_mb is not None
    if len(score.values) != score.n:
        yield f"it holds {len(score.values)} values where n is {score.n}"
        return
    costs = (seconds.distill, seconds.evaluate, record.peak_memory_mb)
    if min(costs) < 0 or min(dataset.train, dataset.test, artifact.images, artifact.bytes) < 1:
        yield "a duration is negative or a count is below one"
    wanted = summarise(score.values)
    for name in ("mean", "std", "low", "high"):
        recorded, computed = getattr(score, name), getattr(wanted, name)
        if (recorded is None) != (computed is None) or (
            computed is not None and not math.isclose(recorded, computed, abs_tol=1e-9)
        ):
            yield f"its {name} {recorded} is not that of its values, {computed}"


def settings_of(distilled: DistilledSet) -> tuple[Settings, set[str]]:
    """Return the settings in a set's file, and the names of those that this version does not know.

    Raises `KeyError` or `ValueError` where the file holds no valid settings.
    """
    return validated(Settings, json.loads(distilled.metadata["spec"]))

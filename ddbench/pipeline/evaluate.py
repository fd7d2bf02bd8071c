"""Score a distilled set under a protocol, beside its companions."""

import datetime
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench.contract.examples import ExampleSet
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted, PluginError, UsageError
from ddbench.machine import processes
from ddbench.machine.environment import describe, peak_memory_mb, precision
from ddbench.pipeline.baselines import score_companions
from ddbench.pipeline.opened import OpenedSet
from ddbench.pipeline.plan import plan_evaluation
from ddbench.pipeline.prepare import Prepared, made_with, prepare
from ddbench.protocols import Setting, label_regime, protocol_hash
from ddbench.records import store
from ddbench.records.attacks import with_attacks_of
from ddbench.records.result import NO_ADAPTATION, Companion, ProtocolRecord, RunFolder, RunResult
from ddbench.records.stats import Score, summarise


@dataclass(frozen=True)
class Scores:
    """The scores of a set under a protocol.

    Attributes:
        after: the score in each metric, after training on the set.
        before: the score in each metric, without any step on the set.
        companions: the score of each baseline in the primary metric, at the same budget under the same protocol, with
            its label regime and its other metrics.
        selected: the choice that the protocol made, and on which data.
        label_regime: the kind of labels that networks were trained on.
    """

    after: dict[str, Score]
    before: dict[str, Score]
    companions: dict[str, Companion]
    selected: str
    label_regime: str


def evaluate(
    distilled: DistilledSet | Callable[[ExampleSet], DistilledSet],
    spec: RunSpec,
    *,
    catalog: Catalog | None = None,
    reporter: Reporter | None = None,
    companions: bool = True,
    fetch: bool = True,
) -> tuple[Prepared, Scores]:
    """Score a set under the protocol of `spec`, and return it with what it was scored on; nothing is written.

    `distilled` may be a function that makes the set of all training examples. `companions` are scored too where
    wanted. Without `fetch`, data or pools that are missing are a `MissingPrerequisite`, not downloaded or trained.
    Raises `DdbenchError` when the set does not fit the spec.
    """
    catalog, reporter = catalog or Catalog(), reporter or Silent()
    prepared = prepare(plan_evaluation(spec, catalog), catalog, reporter=reporter, download=fetch)
    if not isinstance(distilled, DistilledSet):
        distilled = distilled(prepared.everything)
    try:
        distilled.validate(prepared.task(torch.Generator()), "the set has")
    except PluginError as error:
        raise UsageError(f"this set does not fit {prepared.record.name}: {error.message}", error.hint) from error
    with precision(prepared.settings.precision):
        return prepared, score(prepared, prepared.setting, distilled, catalog, reporter, companions=companions)


def evaluate_places(
    opened: OpenedSet,
    places: Sequence[tuple[dict[str, str], RunSpec]],
    catalog: Catalog,
    reporter: Reporter,
    leaderboards: Path | None = None,
) -> tuple[list[tuple[Prepared, Scores]], list[dict[str, str]]]:
    """Score a set at every place of `scoring_places`, and return the scores, and the places skipped with the reason.

    A score of a run's set on another network, on the test split of another dataset or under another protocol is added
    to `leaderboards`, where they are given, as the row of a run with that `eval_network`, `eval_dataset` or `protocol`.
    Metrics under attack are added to the row and the folder of the run. Raises `DdbenchError` where the set cannot be
    scored at the first place.
    """
    scored: list[tuple[Prepared, Scores]] = []
    skipped: list[dict[str, str]] = []
    for place, spec in places:
        started = time.monotonic()
        try:
            prepared, scores = evaluate(opened.distilled, spec, catalog=catalog, reporter=reporter)
        except Interrupted:
            raise
        except DdbenchError as error:
            # What was scored already is not lost to a network or dataset that does not fit.
            if not scored:
                raise
            skipped.append({**place, "reason": error.message})
            reporter.say(f"Skipped {', '.join(place.values())}: {error.message}")
            continue
        scored.append((prepared, scores))
        elsewhere = place.keys() & {opened.network_field, opened.dataset_field, "protocol"}
        if leaderboards is not None and (elsewhere or prepared.attacks):
            try:
                seconds = time.monotonic() - started
                _add_row(opened, prepared, scores, seconds, leaderboards, reporter, elsewhere=bool(elsewhere))
            except DdbenchError as error:
                where = ", ".join(place.values()) or "the attacks"
                reporter.say(f"No row for {where}: {error.message} {error.hint}")
    return scored, skipped


def _add_row(
    opened: OpenedSet,
    prepared: Prepared,
    scores: Scores,
    seconds: float,
    leaderboards: Path,
    reporter: Reporter,
    *,
    elsewhere: bool,
) -> None:
    """Add the row of a run's set that is scored `elsewhere`: on another network, dataset or protocol.

    Where it is scored as in the run, metrics under attack are added to the run's own row. Raises `DdbenchError` with
    the reason where there can be no row.
    """
    folder = RunFolder(opened.path.parent)
    record = folder.read_result() if opened.path == folder.artifact else None
    if record is None or record.status != "ok" or record.seconds is None or record.dataset is None:
        raise UsageError(f"{opened.path} is not in the folder of a finished run.", "Evaluate the run folder.")
    distilled = opened.distilled
    assert isinstance(distilled, DistilledSet), "a file of ddbench holds a set"
    settings = prepared.settings
    if settings.fingerprint == record.fingerprint:
        _add_attacks(folder, record, prepared, scores, leaderboards, reporter)
        return
    if not elsewhere:
        raise UsageError(
            "the scoring is not that of the run.", "Leave the other options out; --cross-network and the like add rows."
        )
    if settings.distillation.fingerprint != record.settings.distillation.fingerprint:
        raise UsageError(
            "more than the network, the test data and the protocol differs from the run.",
            "Leave the other options out.",
        )
    if prepared.record.content_hash != record.dataset.content_hash:
        raise UsageError("the data are not those of the run.", "Get the same copy of the dataset.")
    names, made = (
        {"on": s.eval_network.name, "to": s.eval_dataset.name if s.eval_dataset else "", "under": s.protocol}
        for s in (settings, record.settings)
    )
    where = "".join(
        f"-{word}-{re.sub(r'[^A-Za-z0-9]+', '_', name)}" for word, name in names.items() if name != made[word]
    )
    row = record.model_copy(
        update={
            "run_id": f"{record.run_id}{where}-{settings.fingerprint[:4]}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "asked": None,
            "settings": settings.model_copy(update={"experiment": ""}),
            "fingerprint": settings.fingerprint,
            "dataset": prepared.record,
            "eval_dataset": prepared.tested_on,
            "metrics": prepared.setting.metrics,
            "attacks": prepared.attacks,
            "protocol": protocol_record(prepared, scores),
            "artifact": record.artifact and record.artifact.model_copy(update={"label_regime": scores.label_regime}),
            "scores": scores.after,
            "before": scores.before,
            "companions": scores.companions,
            "pretrained": {**prepared.provenance(), **made_with(distilled)},
            "seconds": record.seconds.model_copy(update={"evaluate": round(seconds, 3)}),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "environment": describe(prepared.device),
        }
    )
    store.ensure(leaderboards, folder, row, reporter)


def _add_attacks(
    folder: RunFolder, record: RunResult, prepared: Prepared, scores: Scores, leaderboards: Path, reporter: Reporter
) -> None:
    """Add metrics under attack to the record of a run, in its folder and in `leaderboards`.

    Raises `DdbenchError` where the networks score otherwise than in the record.
    """
    if not prepared.attacks:
        return
    scored = record.model_copy(
        update={
            "metrics": prepared.setting.metrics,
            "attacks": prepared.attacks,
            "scores": scores.after,
            "companions": scores.companions,
        }
    )
    joined = with_attacks_of(record, scored)
    if joined is record:
        if record.scores[record.primary].values == scored.scores[record.primary].values:
            reporter.say("The record has these metrics already.")
            return
        raise DdbenchError(
            "networks score otherwise here than in the record.", "Evaluate on the machine of the run, or run again."
        )
    folder.write_result(joined)
    store.ensure(leaderboards, folder, joined, reporter)


def score(
    prepared: Prepared,
    setting: Setting,
    distilled: DistilledSet,
    catalog: Catalog,
    reporter: Reporter,
    *,
    companions: bool = True,
) -> Scores:
    """Score a set in `setting`, which is that of `prepared` with the journal to keep scores in."""
    protocol = prepared.plan.protocol
    reporter.stage(f"Scoring under {protocol.name}")
    with processes.sharing():
        evaluation = protocol.evaluate(
            [prepared.decoded(distilled)], setting.scoring("the set"), prepared.eval_networks, reporter
        )
    before = {name: summarise(values) for name, values in evaluation.before.items()}
    regime = label_regime(protocol, distilled)
    baselines = score_companions(prepared, setting, catalog, reporter, regime) if companions else {}
    if prepared.plan.adaptation is not None:
        baselines = {NO_ADAPTATION: _unadapted(before, setting.objective.primary), **baselines}
    return Scores(
        after={name: summarise(values) for name, values in evaluation.scores.items()},
        before=before,
        companions=baselines,
        selected=evaluation.selected,
        label_regime=regime,
    )


def _unadapted(before: Mapping[str, Score], primary: str) -> Companion:
    """Return the companion that networks are before any step."""
    others = {name: score.mean for name, score in before.items() if name != primary}
    return Companion(**before[primary].model_dump(), metrics=others)


def protocol_record(prepared: Prepared, scores: Scores) -> ProtocolRecord:
    """Return the record of the protocol that scored a set."""
    protocol = prepared.plan.protocol
    return ProtocolRecord(
        name=protocol.name,
        hash=protocol_hash(protocol),
        selected=scores.selected,
        ignores=tuple(sorted(protocol.ignores)),
    )

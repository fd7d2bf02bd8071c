"""Score a distilled set under a protocol, beside its companions."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.sets import DistilledSet, ExampleSet
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import PluginError, UsageError
from ddbench.machine.environment import describe, peak_memory_mb
from ddbench.pipeline.baselines import score_companions
from ddbench.pipeline.plan import plan_evaluation
from ddbench.pipeline.prepare import Prepared, prepare
from ddbench.protocols import Setting, label_regime
from ddbench.records.result import NO_ADAPTATION, RunResult
from ddbench.records.stats import Score, summarise


@dataclass(frozen=True)
class Scores:
    """The scores of a set under a protocol.

    after, before: of each metric, with the networks trained on the set and without any step on it.
    companions: of the primary metric, for each baseline at the same budget under the same protocol.
    selected: the choice that the protocol made, and on which data.
    label_regime: the kind of labels that networks were trained on.
    """

    after: dict[str, Score]
    before: dict[str, Score]
    companions: dict[str, Score]
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
    distilled = distilled.to(prepared.device)
    return prepared, score(prepared, prepared.setting, distilled, catalog, reporter, companions=companions)


def record_elsewhere(made: RunResult, prepared: Prepared, scores: Scores, seconds: float) -> RunResult | None:
    """Return the record of a run's set scored on another network, as the run would have left it with `eval_network`.

    `made` is the record of the run, `seconds` what scoring took. None where more than the network differs from the run:
    such a score is of another question than the run's.
    """
    settings = prepared.settings
    if settings.distillation.fingerprint != made.settings.distillation.fingerprint or made.protocol is None:
        return None
    if settings.fingerprint == made.fingerprint or made.seconds is None:
        return None
    return made.model_copy(
        update={
            "run_id": f"{made.run_id}-on-{settings.eval_network.name.replace('/', '_')}",
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "asked": None,
            "settings": settings.model_copy(update={"experiment": ""}),
            "fingerprint": settings.fingerprint,
            "protocol": made.protocol.model_copy(update={"selected": scores.selected}),
            "scores": scores.after,
            "before": scores.before,
            "companions": scores.companions,
            "pretrained": prepared.provenance(),
            "seconds": made.seconds.model_copy(update={"evaluate": round(seconds, 3)}),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "environment": describe(prepared.device),
        }
    )


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
    evaluation = protocol.evaluate([distilled], setting.scoring("the set"), prepared.eval_networks, reporter)
    before = {name: summarise(values) for name, values in evaluation.before.items()}
    baselines = score_companions(prepared, setting, catalog, reporter) if companions else {}
    if prepared.plan.adaptation is not None:
        baselines = {NO_ADAPTATION: before[setting.objective.primary], **baselines}
    return Scores(
        after={name: summarise(values) for name, values in evaluation.scores.items()},
        before=before,
        companions=baselines,
        selected=evaluation.selected,
        label_regime=label_regime(protocol, distilled),
    )

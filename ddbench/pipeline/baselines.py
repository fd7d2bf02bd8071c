"""Companions: the baselines that every score is compared with, at the same budget under the same protocol."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ddbench.contract.component import Component
from ddbench.contract.experts import TrainedNetworks
from ddbench.contract.observer import Reporter
from ddbench.contract.plan import Plan
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import HARD, STORED_SOFT
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.engine.networks import forward
from ddbench.errors import DdbenchError, Interrupted, PluginError, Unsupported, blamed_on
from ddbench.machine.environment import describe
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed, seed_everything
from ddbench.pipeline.plan import plan_method, reason_to_skip
from ddbench.pipeline.prepare import SMOKE_STEPS, Prepared
from ddbench.protocols import Setting, label_regime
from ddbench.protocols.base import better, finite
from ddbench.protocols.train import TRAIN_DSA_V1
from ddbench.records.result import BEST_CORESET, FULL_DATA, LABELLER, TEACHER, Companion
from ddbench.records.stats import summarise

CHOOSING_NETWORKS = 5
FORM = "companion/2"
"""Form of the files in the cache; those of an earlier form lack the label regime and are computed again."""
RATE = TRAIN_DSA_V1.rate
"""Rate that students of companions train at where sets bring their own."""
PATIENCE = 60
"""Seconds that networks are trained on the full data for unasked."""


def score_companions(
    prepared: Prepared, setting: Setting, catalog: Catalog, reporter: Reporter, regime: str = HARD
) -> dict[str, Companion]:
    """Return the score of every method declared `companion=True` but the run's own, and of `full_data`.

    A companion makes one set for each network, so its spread covers the choice of images as well as the network.
    It is computed once and kept in the cache folder. One that fails is reported and left out.

    `regime` is the label regime of the set that is scored. Beside stored soft labels, each companion is scored a second
    time, with labels that the run's method gives its images, or else networks trained on the full data; the run's own
    method is, too. Where the method names its teachers, their own score is a companion: a ceiling of their labels.
    """
    # The accuracy of nearest neighbours is no matter of networks.
    trains = bool(prepared.plan.protocol.networks_needed(prepared.eval_networks))
    bounded = setting.objective.metric.bounded_by_full_data and trains and not prepared.settings.smoke
    scores: dict[str, Companion] = {}
    for method in catalog.components("method"):
        if not method.facts.get("companion"):
            continue
        if method.name != prepared.settings.method.name and not prepared.plan.protocol.stored:
            scores |= _score_cached(prepared, setting, method, "", reporter)
        if regime == STORED_SOFT and bounded:
            scores |= _score_cached(prepared, setting, method, TEACHER, reporter)
    if bounded:
        try:
            scores[FULL_DATA] = _score_full_data(setting)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"No companion {FULL_DATA}: {error.message} {error.hint}")
        scores |= _score_teachers(prepared, setting, reporter)
    if prepared.settings.best_coreset:
        scores |= _score_best_coreset(prepared, setting, catalog, reporter)
    return scores


def _score_cached(
    prepared: Prepared, setting: Setting, method: Component, labels: str, reporter: Reporter
) -> dict[str, Companion]:
    """Return the score of a companion by its name, from the cache folder if it is there; nothing where it fails.

    `labels` is `TEACHER` for labels by networks trained on the full data; empty for those of the method.
    """
    name = method.name + labels
    path = cache_dir() / "companions" / f"{_key(prepared, method, labels)}.json"
    with contextlib.suppress(OSError, ValueError):
        return {name: Companion.model_validate_json(path.read_text())}
    scores = {}
    with _reported_failure(prepared, method, "companion", reporter, labels):
        scores[name] = _score(prepared, setting, method, labels, reporter)
        # A cache that cannot be written costs time, not the run.
        with contextlib.suppress(DdbenchError):
            atomic_write(path, scores[name].model_dump_json())
    return scores


def _score_best_coreset(
    prepared: Prepared, setting: Setting, catalog: Catalog, reporter: Reporter
) -> dict[str, Companion]:
    """Return the score of the method declared `coreset=True` that does best on the validation slice, under its name.

    Each makes one set with its default options. A few networks choose; the test split is read for the best alone.
    """
    objective, protocol, networks = setting.objective, prepared.plan.protocol, prepared.eval_networks
    on_validation = replace(setting, test=setting.validation, under_attack=None)
    best: tuple[str, DistilledSet, float] | None = None
    for method in catalog.components("method"):
        if not method.facts.get("coreset") or method.name == prepared.settings.method.name:
            continue
        reporter.stage(f"Trying the coreset {method.name}")
        with _reported_failure(prepared, method, "coreset", reporter):
            coreset = _distil(prepared, method, derive_seed("companion", 0))
            choosing = on_validation.scoring(f"coreset {method.name} on validation")
            evaluation = protocol.evaluate([coreset], choosing, min(networks, CHOOSING_NETWORKS), reporter)
            values = evaluation.scores[objective.primary]
            value = math.fsum(values) / len(values)
            if better(objective, value, math.nan if best is None else best[2]):
                best = method.name, coreset, value
    if best is None:
        return {}
    reporter.stage(f"Scoring the best coreset, {best[0]}")
    evaluation = protocol.evaluate([best[1]], setting.scoring(f"coreset {best[0]}"), networks, reporter)
    regime = label_regime(protocol, best[1])
    return {f"{BEST_CORESET} ({best[0]})": _companion(evaluation.scores, objective.primary, regime)}


@contextlib.contextmanager
def _reported_failure(
    prepared: Prepared, method: Component, role: str, reporter: Reporter, labels: str = ""
) -> Iterator[None]:
    """Report a failure within a `with` block instead of raising it; an interruption passes.

    Raises `PluginError` where the method has written into the training data.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, DdbenchError):
            reason = f"{error.message} {error.hint}".strip()
        reporter.say(f"No {role} {method.name}{labels}: {reason}")
    # An interruption is not replaced by this check.
    prepared.check_untouched(method)


def _score_full_data(setting: Setting) -> Companion:
    """Return the test accuracy of networks trained on all that methods are given, by the recipe of pools.

    It is the upper bound that a distilled set is compared with. Raises `MissingPrerequisite` where training them would
    take long.
    """
    trained = setting.full_data(PATIENCE)
    metrics = [setting.measure(setting.module, state) for state in trained]
    scores = {metric.name: [values[metric.name] for values in metrics] for metric in setting.metrics}
    return _companion(finite(scores, setting), setting.objective.primary, HARD)


def _score_teachers(prepared: Prepared, setting: Setting, reporter: Reporter) -> dict[str, Companion]:
    """Return the test score of the networks that the run's method takes labels from, where it says which."""
    labeller = _labeller(prepared)
    if labeller is None or "needs" not in labeller.facts:
        return {}
    with blamed_on(labeller.who):
        needed = labeller.facts["needs"](prepared.task(torch.Generator()), **prepared.settings.method.options)
    groups = [needed] if isinstance(needed, TrainedNetworks) else needed
    if not isinstance(groups, Sequence) or not all(isinstance(group, TrainedNetworks) for group in groups):
        return {}
    metrics = [setting.measure(group.module, state) for group in groups for state in group]
    scores = {metric.name: [values[metric.name] for values in metrics] for metric in setting.metrics}
    return {LABELLER: _companion(finite(scores, setting), setting.objective.primary, HARD)}


def _labeller(prepared: Prepared) -> Component | None:
    """Return the run's method where it gives labels to sets; a set that is scored without its method has none."""
    plan = prepared.plan
    return plan.method if isinstance(plan, Plan) and "labels" in plan.method.facts else None


def _score(prepared: Prepared, setting: Setting, method: Component, labels: str, reporter: Reporter) -> Companion:
    """Return the score of a companion; `labels` as for `_score_cached`."""
    networks, protocol = prepared.eval_networks, prepared.plan.protocol
    labeller = _labeller(prepared)
    # Teachers that are trained first have a stage of their own.
    teachers = setting.full_data(PATIENCE) if labels == TEACHER and labeller is None else []
    reporter.stage(f"Scoring the companion {method.name}{labels}")
    sets = [_distil(prepared, method, derive_seed("companion", i)) for i in range(networks)]
    if teachers:
        sets = [_labelled(distilled, setting, teachers) for distilled in sets]
    elif labels == TEACHER and labeller is not None:
        sets = [_labelled_by(labeller, prepared, distilled, number) for number, distilled in enumerate(sets)]
    own = setting.scoring(f"companion {method.name}{labels}")
    evaluation = protocol.evaluate(sets, own, networks, reporter)
    return _companion(evaluation.scores, setting.objective.primary, label_regime(protocol, sets[0]))


def _labelled(distilled: DistilledSet, setting: Setting, teachers: Sequence[State]) -> DistilledSet:
    """Return the set with the mean softmax of the teachers on its images as stored labels."""
    inputs, _ = distilled.flat()
    answers = [forward(setting.module, teacher, inputs).softmax(-1) for teacher in teachers]
    labels = torch.stack(answers).mean(0)
    return replace(distilled, labels=labels.view(*distilled.labels.shape[:2], -1), label_kind="distribution")


def _labelled_by(method: Component, prepared: Prepared, distilled: DistilledSet, number: int) -> DistilledSet:
    """Return the set of a companion with the labels that the run's method gives it."""
    generator = torch.Generator().manual_seed(derive_seed("companion labels", number))
    with blamed_on(method.who):
        labelled = method.facts["labels"](
            prepared.task(generator), distilled, generator, **prepared.settings.method.options
        )
    if not isinstance(labelled, DistilledSet):
        raise PluginError(f"`labels` of {method.who} returned {type(labelled).__name__}, not a DistilledSet.")
    labelled.validate(prepared.task(generator))
    return labelled.to(prepared.device)


def _companion(values: Mapping[str, Sequence[float]], primary: str, regime: str) -> Companion:
    """Return the score in the metric that ranks, and the means of the others."""
    others = {name: summarise(each).mean for name, each in values.items() if name != primary}
    return Companion(**summarise(values[primary]).model_dump(), label_regime=regime, metrics=others)


def _distil(prepared: Prepared, method: Component, seed: int) -> DistilledSet:
    """Return the set that a method makes of the task with the options of its recipe, else its defaults.

    Raises `Unsupported` for a method that does not support the task.
    """
    plan = plan_method(prepared.plan, method, {})
    reason = reason_to_skip(plan)
    if reason:
        raise Unsupported(reason)
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        most_steps = SMOKE_STEPS if prepared.settings.smoke else None
        run = Run(Path(folder), seed=seed, device=prepared.device, most_steps=most_steps)
        task = prepared.task(run.generator)
        distilled: DistilledSet = method.call(plan.settings.method.options, task, run)
        distilled.validate(task)
    if prepared.plan.protocol.rate_of_set and distilled.lrs is None:
        distilled = replace(distilled, lrs=torch.tensor(RATE))
    return prepared.decoded(distilled)


def _key(prepared: Prepared, method: Component, labels: str) -> str:
    """Return a hash of all that a companion's score depends on: the spec but for the method, the data, the machine.

    Fields that the protocol ignores count: a companion that is made for other steps is another set.
    """
    plan, networks = prepared.plan, prepared.eval_networks
    changes = {"seed": 0, "time_limit": None, "step_limit": None, "pass_limit": None, "eval_networks": networks}
    settings = plan_method(plan, method, {}).settings.model_copy(update=changes)
    parts = (component for component in plan.components if component.kind != "method")
    sources = [method.distribution, *(f"{part.kind} {part.name} {part.distribution}" for part in parts)]
    origin = json.dumps(prepared.provenance(), sort_keys=True)
    machine = json.dumps(describe(prepared.device))
    labeller = _labeller(prepared) if labels else None
    if labeller is not None:
        sources += [labeller.distribution, prepared.settings.method.model_dump_json()]
    # The fingerprint leaves attacks out, and a score without them lacks their metrics.
    attacks = [attack.model_dump_json() for attack in prepared.attacks]
    tested = [prepared.tested_on.content_hash] if prepared.tested_on else []
    data = [settings.canonical(), prepared.record.content_hash, *tested]
    key = [FORM + labels, *data, *sources, origin, machine, *attacks]
    return sha256("\n".join(key).encode())

"""Companions: the baselines that every score is compared with, at the same budget under the same protocol."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ddbench.contract.component import Component
from ddbench.contract.observer import Reporter
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice
from ddbench.contract.state import State
from ddbench.discovery.catalog import Catalog
from ddbench.engine.networks import measure
from ddbench.errors import DdbenchError, Interrupted
from ddbench.machine.environment import describe
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed, seed_everything
from ddbench.pipeline.prepare import Prepared
from ddbench.protocols import Setting
from ddbench.protocols.base import better
from ddbench.records.result import BEST_CORESET, FULL_DATA
from ddbench.records.stats import Score, summarise

CHOOSING_NETWORKS = 5
PATIENCE = 60
"""Seconds that networks are trained on the full data for unasked."""


def score_companions(prepared: Prepared, setting: Setting, catalog: Catalog, reporter: Reporter) -> dict[str, Score]:
    """Return the primary score of every method declared `companion=True` but the run's own, and of `full_data`.

    A companion makes one set for each network, so its spread covers the choice of images as well as the network.
    It is computed once and kept in the cache folder. One that fails is reported and left out.
    """
    scores = {}
    for method in catalog.components("method"):
        if not method.facts.get("companion") or method.name == prepared.settings.method.name:
            continue
        path = cache_dir() / "companions" / f"{_key(prepared, method)}.json"
        with contextlib.suppress(OSError, ValueError):
            scores[method.name] = Score.model_validate_json(path.read_text())
            continue
        reporter.stage(f"Scoring the companion {method.name}")
        with _reported_failure(prepared, method, "companion", reporter):
            scores[method.name] = _score(prepared, setting, method, reporter)
        if method.name not in scores:
            continue
        # A cache that cannot be written costs time, not the run.
        with contextlib.suppress(DdbenchError):
            atomic_write(path, scores[method.name].model_dump_json())
    # The accuracy of nearest neighbours is no matter of networks.
    trains = bool(prepared.plan.protocol.networks_needed(prepared.eval_networks))
    if setting.objective.metric.bounded_by_full_data and trains and not prepared.settings.smoke:
        try:
            scores[FULL_DATA] = _score_full_data(setting)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"No companion {FULL_DATA}: {error.message} {error.hint}")
    if prepared.settings.best_coreset:
        scores |= _score_best_coreset(prepared, setting, catalog, reporter)
    return scores


def _score_best_coreset(prepared: Prepared, setting: Setting, catalog: Catalog, reporter: Reporter) -> dict[str, Score]:
    """Return the score of the method declared `coreset=True` that does best on the validation slice, under its name.

    Each makes one set with its default options. A few networks choose; the test split is read for the best alone.
    """
    objective, protocol, networks = setting.objective, prepared.plan.protocol, prepared.eval_networks
    on_validation = replace(setting, test=setting.validation)
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
    return {f"{BEST_CORESET} ({best[0]})": summarise(evaluation.scores[objective.primary])}


@contextlib.contextmanager
def _reported_failure(prepared: Prepared, method: Component, role: str, reporter: Reporter) -> Iterator[None]:
    """Report a failure within a `with` block instead of raising it; an interruption passes.

    Raises `PluginError` where the method has written into the training data.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        reason = error.message if isinstance(error, DdbenchError) else f"{type(error).__name__}: {error}"
        reporter.say(f"No {role} {method.name}: {reason}")
    # An interruption is not replaced by this check.
    prepared.check_untouched(method)


def _score_full_data(setting: Setting) -> Score:
    """Return the test accuracy of networks trained on all that methods are given, by the recipe of pools.

    It is the upper bound that a distilled set is compared with. Raises `MissingPrerequisite` where training them would
    take long.
    """
    trained = setting.full_data(PATIENCE)
    metrics = [measure(setting.module, State(weights), setting.test, setting.objective) for weights in trained]
    return summarise([values[setting.objective.primary] for values in metrics])


def _score(prepared: Prepared, setting: Setting, method: Component, reporter: Reporter) -> Score:
    networks = prepared.eval_networks
    sets = [_distil(prepared, method, derive_seed("companion", i)) for i in range(networks)]
    own = setting.scoring(f"companion {method.name}")
    evaluation = prepared.plan.protocol.evaluate(sets, own, networks, reporter)
    return summarise(evaluation.scores[setting.objective.primary])


def _distil(prepared: Prepared, method: Component, seed: int) -> DistilledSet:
    """Return the set that a method makes of the task with its default options."""
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), seed=seed, device=prepared.device, most_steps=prepared.most_steps)
        task = prepared.task(run.generator)
        distilled: DistilledSet = method.call(method.validated({}), task, run)
        distilled.validate(task)
    return prepared.decoded(distilled)


def _key(prepared: Prepared, method: Component) -> str:
    """Return a hash of all that a companion's score depends on: the spec but for the method, the data, the machine."""
    plan, networks = prepared.plan, prepared.eval_networks
    choice = Choice(name=method.name, options=method.validated({}))
    changes = {"method": choice, "seed": 0, "time_limit": None, "eval_networks": networks}
    settings = plan.settings.model_copy(update=changes)
    parts = (component for component in plan.components if component.kind != "method")
    sources = [method.distribution, *(f"{part.kind} {part.name} {part.distribution}" for part in parts)]
    origin = json.dumps(prepared.provenance(), sort_keys=True)
    machine = json.dumps(describe(prepared.device))
    key = [settings.canonical(), prepared.record.content_hash, *sources, origin, machine]
    return sha256("\n".join(key).encode())

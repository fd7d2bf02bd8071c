"""Companions: the baselines every score is shown beside, made at the same budget under the same protocol."""

import contextlib
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

from ddbench.contract.component import Component
from ddbench.contract.observer import Reporter
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.spec import Choice
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted
from ddbench.machine.environment import describe
from ddbench.machine.files import atomic_write, sha256
from ddbench.machine.folders import cache_dir
from ddbench.machine.seeds import derive_seed, seed_everything
from ddbench.pipeline.data import build
from ddbench.pipeline.prepare import Bench
from ddbench.protocols import get_protocol
from ddbench.protocols.base import better, measure
from ddbench.records.result import BEST_CORESET, FULL_DATA
from ddbench.records.stats import Score, summarise

CHOOSING_NETWORKS = 5
PATIENCE = 60
"""Seconds that networks are trained on the full data for unasked."""


def score_companions(bench: Bench, catalog: Catalog, networks: int, reporter: Reporter) -> dict[str, Score]:
    """The primary score of every method declared `companion=True`, other than the run's own, and of `full_data`.

    A companion makes one set for each network, so its spread covers the choice of images as well as the network.
    Computed once and kept in the cache folder; one that fails is told and left out.
    """
    scores = {}
    for method in catalog.components("method"):
        if not method.facts.get("companion") or method.name == bench.spec.method.name:
            continue
        path = cache_dir() / "companions" / f"{_key(bench, method, networks)}.json"
        with contextlib.suppress(OSError, ValueError):
            scores[method.name] = Score.model_validate_json(path.read_text())
            continue
        reporter.stage(f"Scoring the companion {method.name}")
        try:
            scores[method.name] = _score(bench, method, networks, reporter)
        except Interrupted:
            raise
        except Exception as error:
            why = error.message if isinstance(error, DdbenchError) else f"{type(error).__name__}: {error}"
            reporter.say(f"No companion {method.name}: {why}")
            continue
        # A cache that cannot be written costs time, not the run.
        with contextlib.suppress(DdbenchError):
            atomic_write(path, scores[method.name].model_dump_json())
    # What nearest neighbours reach says nothing beside what a network does.
    trains = bool(get_protocol(bench.spec.protocol).networks_needed(networks))
    if bench.setting.objective.primary == "accuracy" and trains and not bench.spec.smoke:
        try:
            scores[FULL_DATA] = _full_data(bench)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"No companion {FULL_DATA}: {error.message} {error.hint}")
    if bench.spec.best_coreset:
        scores |= _best_coreset(bench, catalog, networks, reporter)
    return scores


def _best_coreset(bench: Bench, catalog: Catalog, networks: int, reporter: Reporter) -> dict[str, Score]:
    """The score of whichever method declared `coreset=True` does best on the validation slice, under its name.

    Each makes one set with its default options; a few networks choose, and the test split is read for the best alone.
    """
    objective, protocol = bench.setting.objective, get_protocol(bench.spec.protocol)
    on_validation = replace(bench.setting, test=bench.setting.validation)
    best: tuple[str, DistilledSet, float] | None = None
    for method in catalog.components("method"):
        if not method.facts.get("coreset") or method.name == bench.spec.method.name:
            continue
        reporter.stage(f"Trying the coreset {method.name}")
        try:
            made = _made(bench, method, derive_seed("companion", 0))
            choosing = on_validation.scoring(f"coreset {method.name} on validation")
            evaluation = protocol.evaluate([made], choosing, min(networks, CHOOSING_NETWORKS), reporter)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"No coreset {method.name}: {error.message}")
            continue
        values = evaluation.scores[objective.primary]
        value = math.fsum(values) / len(values)
        if better(objective, value, math.nan if best is None else best[2]):
            best = method.name, made, value
    if best is None:
        return {}
    reporter.stage(f"Scoring the best coreset, {best[0]}")
    evaluation = protocol.evaluate([best[1]], bench.setting.scoring(f"coreset {best[0]}"), networks, reporter)
    return {f"{BEST_CORESET} ({best[0]})": summarise(evaluation.scores[objective.primary])}


def _full_data(bench: Bench) -> Score:
    """Test accuracy of networks trained on all that methods are given, by the recipe of pools, and kept as a pool.

    The upper bound that a distilled set is held against. Raises `MissingPrerequisite` where they would take long.
    """
    spec, info, setting = bench.spec, bench.train.info, bench.setting
    trained = setting.full_data(PATIENCE)
    module = build(bench.parts.network, spec.network, info).to(bench.device)
    each = [measure(module, weights, {}, setting.test, setting.objective) for weights in trained]
    return summarise([found[setting.objective.primary] for found in each])


def _score(bench: Bench, method: Component, networks: int, reporter: Reporter) -> Score:
    sets = [_made(bench, method, derive_seed("companion", i)) for i in range(networks)]
    setting = bench.setting.scoring(f"companion {method.name}")
    evaluation = get_protocol(bench.spec.protocol).evaluate(sets, setting, networks, reporter)
    return summarise(evaluation.scores[bench.setting.objective.primary])


def _made(bench: Bench, method: Component, seed: int) -> DistilledSet:
    """What a method makes of the task with its default options."""
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), seed=seed, device=bench.device, most_steps=bench.most_steps)
        task = bench.task(run.generator)
        made: DistilledSet = method.call(method.validated({}), task, run)
        made.validate(task)
    return made.to(bench.device)


def _key(bench: Bench, method: Component, networks: int) -> str:
    """What a companion's score depends on: the spec without the run's own method, the data, the machine."""
    choice = Choice(name=method.name, options=method.validated({}))
    spec = bench.spec.model_copy(update={"method": choice, "seed": 0, "time_limit": None, "eval_networks": networks})
    sources = [method.distribution, *replace(bench.parts, method=None).distributions.values()]
    machine = json.dumps(describe(bench.device))
    return sha256("\n".join([spec.canonical(), bench.record.content_hash, *sources, bench.sources, machine]).encode())

"""Companions: the baselines every score is shown beside, made at the same budget under the same protocol."""

import contextlib
import json
import tempfile
from pathlib import Path

from ddbench.bench import Bench
from ddbench.catalog import Catalog
from ddbench.data import DistilledSet
from ddbench.environment import cache_dir, derive_seed, describe, seed_everything
from ddbench.errors import DdbenchError, Interrupted
from ddbench.files import atomic_write, sha256
from ddbench.loading import build
from ddbench.loop import Run
from ddbench.options import Component
from ddbench.pools import Pools
from ddbench.protocols import get_protocol
from ddbench.protocols.base import measure
from ddbench.reporter import Reporter
from ddbench.spec import Choice
from ddbench.stats import Score, summarise
from ddbench.training import Recipe
from ddbench.unroll import unstack

FULL_DATA, NO_ADAPTATION = "full_data", "no_adaptation"
"""Companions of the harness's own; all others are baselines, methods declared `companion=True`."""
FULL_NETWORKS = 5
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
            scores[FULL_DATA] = _full_data(bench, catalog, reporter)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"No companion {FULL_DATA}: {error.message} {error.hint}")
    return scores


def _full_data(bench: Bench, catalog: Catalog, reporter: Reporter) -> Score:
    """Test accuracy of networks trained on all training examples, by the recipe of pools; they are kept as a pool.

    The upper bound that a distilled set is held against. Raises `MissingPrerequisite` where they would take long.
    """
    spec, info = bench.spec, bench.train.info
    # Pools of its own: what the run itself draws on stays apart.
    pools = Pools(spec, catalog, bench.device, reporter)
    pool = pools.open(0, FULL_NETWORKS, Recipe(), patience=PATIENCE)
    assert spec.network is not None
    module = build(bench.parts.network, spec.network, info).to(bench.device)
    stacked = pool.weights("evaluation", range(FULL_NETWORKS))
    setting = bench.setting
    each = [measure(module, weights, {}, setting.test, setting.objective) for weights in unstack(module, stacked)]
    return summarise([found[setting.objective.primary] for found in each])


def _score(bench: Bench, method: Component, networks: int, reporter: Reporter) -> Score:
    sets = []
    for i in range(networks):
        seed = derive_seed("companion", i)
        seed_everything(seed)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), seed=seed, device=bench.device, most_steps=bench.most_steps)
            task = bench.task(run.generator)
            made: DistilledSet = method.call(method.validated({}), task, run)
            made.validate(task)
            sets.append(made.to(bench.device))
    evaluation = get_protocol(bench.spec.protocol).evaluate(sets, bench.setting, networks, reporter)
    return summarise(evaluation.scores[bench.setting.objective.primary])


def _key(bench: Bench, method: Component, networks: int) -> str:
    """What a companion's score depends on: the spec without the run's own method, the data, the machine."""
    choice = Choice(name=method.name, options=method.validated({}))
    spec = bench.spec.model_copy(update={"method": choice, "seed": 0, "time_limit": None, "eval_networks": networks})
    parts = bench.parts
    sources = [
        c.distribution for c in (method, parts.dataset, parts.network, parts.objective, parts.init, parts.eval_init)
    ]
    machine = json.dumps(describe(bench.device))
    return sha256("\n".join([spec.canonical(), bench.record.content_hash, *sources, bench.sources, machine]).encode())

"""run(spec) -> RunResult: the pipeline, from names to a row."""

import contextlib
import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddbench.contract.journal import Journal
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.run import Run, sigterm_as_ctrl_c
from ddbench.contract.sets import DistilledSet, ExampleSet
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted, PluginError, Unsupported, UsageError
from ddbench.machine.environment import describe, free_memory, peak_memory_mb
from ddbench.machine.files import atomic_write, explained_os_errors, in_use
from ddbench.machine.seeds import derive_seed, seed_everything
from ddbench.modalities.image import conversion
from ddbench.pipeline.baselines import score_companions
from ddbench.pipeline.prepare import Bench, complete, prepare
from ddbench.protocols import get_protocol, label_regime, protocol_hash
from ddbench.records import leaderboard
from ddbench.records.leaderboard import Row
from ddbench.records.result import (
    NO_ADAPTATION,
    Artifact,
    Origin,
    RunFolder,
    RunResult,
    Seconds,
    Status,
    artifact_path,
    curve_path,
    thinned,
)
from ddbench.records.stats import Score, summarise

ARTIFACT_LIMIT = 1_000_000
"""Largest artefact, in bytes, that is kept beside its leaderboard row."""


@dataclass(frozen=True)
class Scores:
    """What scoring a set under a protocol gives: per metric after and before training, and the companions' primary."""

    after: dict[str, Score]
    before: dict[str, Score]
    companions: dict[str, Score]
    selected: str
    label_regime: str


def run(
    spec: RunSpec | Mapping[str, Any],
    *,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> RunResult:
    """Distil, score, and append a row: what `ddbench run` does.

    `spec` may be a mapping of its fields. Raises `DdbenchError` when the run fails; the run folder then holds what
    was reached, and `resume` goes on from there.
    """
    catalog = catalog or Catalog()
    reporter = reporter or Silent()
    spec = spec if isinstance(spec, RunSpec) else RunSpec.parse(dict(spec))
    spec, parts = complete(spec, catalog)
    leaderboard.check(leaderboard.path_for(leaderboards, spec))
    bench = prepare(spec, parts, reporter=reporter)
    folder = _new_folder(runs, spec, reporter)
    folder.write_origin(Origin(plugins=[str(path) for path in catalog.named], sources=parts.distributions))
    return _run_in(folder, bench, catalog, leaderboards, reporter)


def resume(
    path: Path,
    *,
    catalog: Catalog | None = None,
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> RunResult:
    """Go on with the run in folder `path`; one that has ended well is returned as it is.

    Without a `catalog`, plugins that the run was started with are loaded again. Raises `UsageError` where the
    file of a part, or the version of its package, is another since.
    """
    folder = RunFolder(path)
    reporter = reporter or Silent()
    ended = folder.read_result()
    if ended is not None and ended.status in ("ok", "skipped"):
        reporter.say("This run has ended already.")
        return ended
    begun = folder.read_origin()
    catalog = catalog or Catalog(map(Path, begun.plugins))
    spec, parts = complete(folder.read_spec(), catalog)
    for part, source in parts.distributions.items():
        if begun.sources.get(part, source) != source:
            raise UsageError(
                f"{part} has changed since this run began: it was of {begun.sources[part]}, now it is of {source}.",
                "Put the code back to go on, or start the run anew with `ddbench run`.",
            )
    bench = prepare(spec, parts, reporter=reporter)
    return _run_in(folder, bench, catalog, leaderboards, reporter)


def evaluate(
    distilled: DistilledSet | Callable[[ExampleSet], DistilledSet],
    spec: RunSpec,
    *,
    catalog: Catalog | None = None,
    reporter: Reporter | None = None,
    companions: bool = True,
    fetch: bool = True,
) -> tuple[Bench, Scores]:
    """Score a set (or what it is for the training examples as loaded) under the spec's protocol; writes nothing.

    `companions` are scored too where wanted. Without `fetch`, data or a pool of networks that are not there yet are a
    `MissingPrerequisite`, not downloaded or trained.

    Raises `DdbenchError` when the set does not fit the spec.
    """
    catalog, reporter = catalog or Catalog(), reporter or Silent()
    bench = prepare(*complete(spec, catalog, with_method=False), reporter=reporter, download=fetch)
    if not isinstance(distilled, DistilledSet):
        distilled = distilled(bench.everything)
    try:
        distilled.validate(bench.task(torch.Generator()), "the set has")
    except PluginError as error:
        raise UsageError(f"this set does not fit {bench.record.name}: {error.message}", error.hint) from error
    return bench, _score(bench, distilled.to(bench.device), catalog, reporter, companions=companions)


def _run_in(folder: RunFolder, bench: Bench, catalog: Catalog, leaderboards: Path, reporter: Reporter) -> RunResult:
    """The run itself, in its folder; however it ends, result.json says so."""
    spec = bench.spec
    result = RunResult(
        status="failed",
        run_id=folder.path.resolve().name,
        run_dir=str(folder.path),
        spec=spec,
        dataset=bench.record,
        primary=bench.setting.objective.primary,
        higher_is_better=bench.setting.objective.higher_is_better,
        environment=describe(bench.device),
        method_source=bench.parts.method.distribution if bench.parts.method else "",
    )

    def ended(status: Status, reason: str) -> RunResult:
        over = result.model_copy(update={"status": status, "reason": reason})
        # The disk may be what failed.
        with contextlib.suppress(DdbenchError):
            folder.write_result(over)
        _notify(catalog, reporter, "ddbench_run_finished", result=over)
        return over

    with in_use(folder.path), sigterm_as_ctrl_c():
        _notify(catalog, reporter, "ddbench_run_started", spec=spec, run_dir=str(folder.path))
        try:
            result = _distil_and_score(folder, bench, catalog, leaderboards, reporter, result)
            folder.write_result(result)
        except Unsupported as error:
            return ended("skipped", error.message)
        except (Interrupted, KeyboardInterrupt) as error:
            reason = error.message if isinstance(error, Interrupted) else "interrupted."
            stopped = Interrupted(reason, f"Go on with: ddbench resume {folder.path}")
            stopped.result = ended("interrupted", reason)
            raise stopped from None
        except DdbenchError as error:
            error.result = ended("failed", error.message)
            raise
        except Exception as error:
            ended("failed", f"{type(error).__name__}: {error}")
            raise
        _notify(catalog, reporter, "ddbench_run_finished", result=result)
        return result


def _distil_and_score(
    folder: RunFolder, bench: Bench, catalog: Catalog, leaderboards: Path, reporter: Reporter, result: RunResult
) -> RunResult:
    spec = bench.spec
    bench.draw_once()
    _announce(bench, folder, reporter)
    identity = spec.fingerprint + bench.record.content_hash + (bench.sources if bench.pools.used else "")
    run = Run(
        folder.path,
        seed=spec.seed,
        device=bench.device,
        time_limit=spec.time_limit,
        most_steps=bench.most_steps,
        reporter=reporter,
        on_progress=lambda step, total, values: _notify(
            catalog, reporter, "ddbench_run_progress", step=step, total=total, values=values
        ),
        identity=identity,
    )
    reporter.stage(f"Distilling with {spec.method.name}")
    # Where scoring takes no networks, only the method's own call says which pools it draws on.
    needs_networks = bool(get_protocol(spec.protocol).networks_needed(bench.eval_networks))
    distilled = run.kept(folder.artifact) if needs_networks else None
    if distilled is None:
        distilled = _described(_distil(bench, run), bench)
        run.keep(distilled, folder.artifact)
    distill_seconds = run.seconds

    journal = Journal(folder.journal, identity)
    bench = replace(bench, setting=replace(bench.setting, journal=journal))
    scores = _score(bench, distilled.to(bench.device), catalog, reporter)
    evaluate_seconds = journal.seconds
    primary = bench.setting.objective.primary
    result = result.model_copy(
        update={
            "status": "ok",
            "score": scores.after[primary],
            "scores": scores.after,
            "before": scores.before,
            "companions": scores.companions,
            "selected": scores.selected,
            "protocol_hash": protocol_hash(spec.protocol),
            "pretrained": bench.pools.used,
            "steps_done": run.steps_done,
            "stopped_by": run.stopped_by,
            "rollbacks": run.rollbacks,
            "artifact": Artifact(
                path=str(folder.artifact),
                sha256=run.artifact,
                bytes=distilled.nbytes,
                images=distilled.count,
                label_regime=scores.label_regime,
            ),
            "seconds": Seconds(distill=round(distill_seconds, 3), evaluate=round(evaluate_seconds, 3)),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
    )
    if spec.smoke:
        reporter.say("A smoke run leaves no row.")
        return result
    row = _append(result, bench, folder, leaderboards, reporter)
    return result.model_copy(update={"row": row.model_dump() if row else None})


def _distil(bench: Bench, run: Run) -> DistilledSet:
    """Call the method with global random numbers seeded, and check what it returns."""
    spec, method = bench.spec, bench.parts.method
    seed_everything(derive_seed(spec.seed, "global"))
    task = bench.task(run.generator)
    assert method is not None
    distilled = method.call(spec.method.options, task, run)
    run.finish()
    if not isinstance(distilled, DistilledSet):
        raise PluginError(f"{method.who} returned {type(distilled).__name__}, not a DistilledSet.")
    distilled.validate(task)
    return distilled.to(bench.device)


def _score(
    bench: Bench, distilled: DistilledSet, catalog: Catalog, reporter: Reporter, *, companions: bool = True
) -> Scores:
    spec = bench.spec
    reporter.stage(f"Scoring under {spec.protocol}")
    setting = bench.setting.scoring("the set")
    evaluation = get_protocol(spec.protocol).evaluate([distilled], setting, bench.eval_networks, reporter)
    before = {name: summarise(values) for name, values in evaluation.before.items()}
    beside = score_companions(bench, catalog, bench.eval_networks, reporter) if companions else {}
    if spec.target is not None:
        beside = {NO_ADAPTATION: before[bench.setting.objective.primary], **beside}
    return Scores(
        after={name: summarise(values) for name, values in evaluation.scores.items()},
        before=before,
        companions=beside,
        selected=evaluation.selected,
        label_regime=label_regime(spec.protocol, distilled),
    )


def _described(distilled: DistilledSet, bench: Bench) -> DistilledSet:
    """The set with what a stranger needs to use it."""
    spec, info = bench.spec, bench.train.info
    assert spec.network is not None
    return distilled.described(
        format="ddbench/1",
        classes=list(info.classes),
        mean=list(info.mean),
        std=list(info.std),
        dataset=info.label,
        dataset_hash=info.content_hash,
        spec=spec.canonical(),
        fingerprint=spec.fingerprint,
        method=spec.method.name,
        network=spec.network.name,
        init=spec.init.name,
        eval_init=(spec.eval_init or spec.init).name,
        objective=spec.objective.name,
        protocol=spec.protocol,
        label_regime=label_regime(spec.protocol, distilled),
        seed=spec.seed,
    )


def _append(result: RunResult, bench: Bench, folder: RunFolder, leaderboards: Path, reporter: Reporter) -> Row | None:
    """Keep the artefact beside the leaderboard and append the row; None when the same spec has one already."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    assert bench.parts.method is not None
    row = leaderboard.row_of(result, method_source=bench.parts.method.distribution, created=created)
    path = leaderboard.path_for(leaderboards, bench.spec)
    existing = leaderboard.find(path, row)
    if existing is not None:
        comparison = leaderboard.comparison(row, existing)
        reporter.say(f"No second row: {path} has this spec already. {comparison}")
        return None
    raw = folder.artifact.read_bytes()
    if len(raw) <= ARTIFACT_LIMIT:
        atomic_write(artifact_path(leaderboards, row.artifact_sha256), raw)
    else:
        reporter.say(f"The artefact is over {ARTIFACT_LIMIT / 1e6:.0f} MB and stays in the run folder alone.")
    points = thinned(folder.log)
    if points:
        atomic_write(curve_path(leaderboards, row.artifact_sha256), json.dumps(points) + "\n")
    leaderboard.append(path, row)
    reporter.say(f"Row appended to {path}.")
    return row


def _announce(bench: Bench, folder: RunFolder, reporter: Reporter) -> None:
    """What will run, on which data, and where it is kept."""
    spec, record, budget = bench.spec, bench.record, bench.setting.budget
    copy = "not known to be the full original: ranked apart" if record.partial else "the full data, verified"
    parameters = sum(p.numel() for p in bench.setting.module.parameters())
    total = budget.images_per_class * len(bench.train.info.classes)
    assert spec.network is not None
    reporter.say(
        f"Data     {record.name}: {record.train} training, {record.validation} validation, {record.test} test images; "
        f"{copy} (sha256 {record.content_hash[:12]})"
    )
    what = conversion(tuple(bench.parts.dataset.facts["sample_shape"]), record.sample_shape)  # type: ignore[arg-type]
    if what:
        reporter.say(f"Images   converted: {what}")
    came_from = f"{'target' if spec.target else 'init'} {spec.init.name}"
    if spec.eval_init != spec.init:
        came_from += f", scored from {(spec.eval_init or spec.init).name}"
    reporter.say(f"Network  {spec.network.name}, {parameters:,} weights from {came_from}, on {bench.device}")
    reporter.say(
        f"Budget   {total} images ({budget.images_per_class} per class), {budget.steps} steps x {budget.epochs} epochs"
    )
    if get_protocol(spec.protocol).teacher:
        reporter.say("Labels   while students train, of networks trained on the full data; ranked apart")
    predicted = bench.peak_memory()
    if predicted is not None:
        peak, how = predicted
        free = free_memory(bench.device)
        reporter.say(f"Memory   about {peak / 1e6:.0f} MB at the peak ({how}); {free / 1e6:.0f} MB are free")
        if peak > free:
            reporter.say("That may not fit: fewer networks, a smaller real batch or fewer steps take less.")
    reporter.say(f"Folder   {folder.path}")


def _new_folder(runs: Path, spec: RunSpec, reporter: Reporter) -> RunFolder:
    """A fresh folder for the run; earlier runs of the same spec keep theirs."""
    for number in range(1, 10_000):
        path = runs / (spec.run_id if number == 1 else f"{spec.run_id}-{number}")
        with explained_os_errors(path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir():
                    raise
                unfinished = RunFolder(path)
                ended = unfinished.read_result()
                if unfinished.checkpoint.exists() and (ended is None or ended.status == "interrupted"):
                    reporter.say(f"An unfinished run of this spec is in {path}: ddbench resume {path}")
                continue
        folder = RunFolder(path)
        folder.write_spec(spec)
        return folder
    raise DdbenchError(f"{runs} holds 10 000 runs of this spec.", "Name another folder with --runs.")


def _notify(catalog: Catalog, reporter: Reporter, hook: str, **arguments: object) -> None:
    for complaint in catalog.notify(hook, **arguments):
        reporter.say(complaint)

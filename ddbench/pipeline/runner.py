"""Carry out a run: distil, score, record."""

import contextlib
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddbench.contract.journal import Journal
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.plan import Plan
from ddbench.contract.run import Run
from ddbench.contract.sets import DistilledSet
from ddbench.contract.signals import sigterm_as_ctrl_c
from ddbench.contract.spec import RunSpec, Settings
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.observers import Observers, observers
from ddbench.errors import DdbenchError, Interrupted, PluginError, Unsupported, UsageError
from ddbench.machine import processes
from ddbench.machine.environment import describe, free_memory, peak_memory_mb, precision
from ddbench.machine.files import in_use
from ddbench.machine.seeds import derive_seed, seed_everything
from ddbench.modalities.image import conversion
from ddbench.pipeline.evaluate import Scores, protocol_record, score
from ddbench.pipeline.plan import plan_run, reason_to_skip, spec_of
from ddbench.pipeline.prepare import Prepared, made_with, prepare
from ddbench.pipeline.run_folders import check_processes, new_folder, places
from ddbench.protocols import label_regime
from ddbench.records import store
from ddbench.records.result import (
    Artifact,
    LoopRecord,
    Origin,
    RunFolder,
    RunResult,
    Seconds,
    Status,
)

OVERTIME = 1.5
"""Multiple of the time limit from which on a run says that its method did not keep it."""


def run(
    spec: RunSpec | Settings | Mapping[str, Any],
    *,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> RunResult:
    """Distil, score, and add a row to the leaderboard: what `ddbench run` does.

    `spec` may be a mapping of its fields. Raises `DdbenchError` when the run fails. The run folder then holds what was
    reached, and `resume` continues from there.
    """
    return start(spec, catalog=catalog, runs=runs, leaderboards=leaderboards, reporter=reporter).carry_out()


def resume(
    path: Path,
    *,
    catalog: Catalog | None = None,
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> RunResult:
    """Continue the run in folder `path`; one that has ended well gets the row that it lacks, and is returned as it is.

    Without a `catalog`, plugins that the run was started with are loaded again. Raises `UsageError` where the file of a
    component, or the version of its package, has changed since.
    """
    folder, reporter = RunFolder(path), reporter or Silent()
    result = folder.read_result()
    if result is not None and result.status in ("ok", "skipped"):
        reporter.say("This run has ended already.")
        store.ensure(leaderboards, folder, result, reporter)
        return result
    return restart(folder, catalog=catalog, leaderboards=leaderboards, reporter=reporter).carry_out()


def start(
    spec: RunSpec | Settings | Mapping[str, Any],
    *,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> "StartedRun":
    """Plan and prepare a run and make its folder. Raises `DdbenchError`; then there is no folder."""
    catalog, reporter = catalog or Catalog(), reporter or Silent()
    plan = plan_run(spec if isinstance(spec, Settings) else as_spec(spec, catalog), catalog)
    check_processes(plan.settings)
    store.check(store.path_for(leaderboards, plan.settings))
    prepared = prepare_supported(plan, catalog, reporter)

    def make_folder() -> RunFolder:
        folder = new_folder(runs, plan.settings, reporter)
        asked = None if isinstance(spec, Settings) else as_spec(spec, catalog)
        plugins = [str(path) for path in catalog.named]
        folder.write_origin(Origin(plugins=plugins, sources=plan.distributions, asked=asked))
        return folder

    return StartedRun(plan, prepared, *places(make_folder, leaderboards), catalog, reporter)


def restart(folder: RunFolder, *, catalog: Catalog | None, leaderboards: Path, reporter: Reporter) -> "StartedRun":
    """Prepare an unfinished run again in its folder. Raises as `resume`."""
    origin = folder.read_origin()
    catalog = catalog or Catalog(map(Path, origin.plugins))
    plan = plan_run(folder.read_spec(), catalog)
    check_processes(plan.settings)
    store.check(store.path_for(leaderboards, plan.settings))
    for component, source in plan.distributions.items():
        before = origin.sources.get(component, source)
        if before != source:
            raise UsageError(
                f"{component} has changed since this run began: it was of {before}, now it is of {source}.",
                "Restore the code to continue, or start the run anew with `ddbench run`.",
            )
    prepared = prepare_supported(plan, catalog, reporter)
    return StartedRun(plan, prepared, *places(lambda: folder, leaderboards), catalog, reporter)


def prepare_supported(plan: Plan, catalog: Catalog, reporter: Reporter) -> Prepared | str:
    """Return the prepared run; the reason to skip it, with nothing loaded, where the method does not support it."""
    with processes.sharing():
        return reason_to_skip(plan) or processes.first_alone(lambda: prepare(plan, catalog, reporter=reporter))


def as_spec(spec: RunSpec | Settings | Mapping[str, Any], catalog: Catalog) -> RunSpec:
    """Return the spec that is asked for. Raises `UsageError` for fields that make none."""
    if isinstance(spec, Settings):
        return spec_of(spec, catalog)
    return spec if isinstance(spec, RunSpec) else RunSpec.parse(dict(spec))


@dataclass(frozen=True)
class StartedRun:
    """A run that is ready to be carried out in its folder; `prepared` is the reason where it is to be skipped."""

    plan: Plan
    prepared: Prepared | str
    folder: RunFolder
    leaderboards: Path
    catalog: Catalog
    reporter: Reporter

    def carry_out(self) -> RunResult:
        """Distil, score and record; `result.json` says how it ended. Raises `DdbenchError` when the run fails."""
        with in_use(self.folder.path), sigterm_as_ctrl_c(), precision(self.plan.settings.precision):
            watching = observers(self.catalog, self.plan, self.folder.path, self.reporter)
            if isinstance(self.prepared, str):
                return self._ended(watching, "skipped", self.prepared)
            try:
                result = self._distil_and_score(watching, self.prepared)
            except Unsupported as error:
                return self._ended(watching, "skipped", error.message)
            except (Interrupted, KeyboardInterrupt) as error:
                reason = error.message if isinstance(error, Interrupted) else "interrupted."
                self._ended(watching, "interrupted", reason)
                raise Interrupted(reason, f"Go on with: ddbench resume {self.folder.path}") from None
            except DdbenchError as error:
                self._ended(watching, "failed", error.message)
                raise
            except Exception as error:
                self._ended(watching, "failed", f"{type(error).__name__}: {error}")
                raise
            self.folder.write_result(result)
            watching.finished(result)
            self._add_row(result)
            return result

    def _add_row(self, result: RunResult) -> None:
        """Add the record to the leaderboard. Raises `DdbenchError` where that fails; the run is kept in its folder."""
        try:
            store.ensure(self.leaderboards, self.folder, result, self.reporter)
        except DdbenchError as error:
            remedy = f"The run is complete; ddbench resume {self.folder.path} adds its row."
            raise DdbenchError(error.message, f"{error.hint} {remedy}") from error

    def _ended(self, watching: Observers, status: Status, reason: str) -> RunResult:
        """Record a run that gave no score."""
        result = RunResult(status=status, reason=reason, **self._facts())
        # The disk may be what failed.
        with contextlib.suppress(DdbenchError):
            self.folder.write_result(result)
        watching.finished(result)
        return result

    def _facts(self) -> dict[str, Any]:
        """Return the fields of the result that are known before the run."""
        return {
            "run_id": self.folder.path.resolve().name,
            "run_dir": str(self.folder.path),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "asked": self.folder.read_origin().asked,
            "settings": self.plan.settings,
            "fingerprint": self.plan.settings.fingerprint,
            "method_source": self.plan.method.distribution,
            **({} if isinstance(self.prepared, str) else _prepared_facts(self.prepared)),
        }

    def _distil_and_score(self, watching: Observers, prepared: Prepared) -> RunResult:
        settings = self.plan.settings
        with processes.sharing():
            processes.first_alone(prepared.draw_once)
            processes.first_alone(lambda: prepared.train_needs(self.plan.method, settings.method.options))
        _announce(self.plan, prepared, self.folder, self.reporter)
        origin = prepared.provenance()
        identity = settings.fingerprint + prepared.record.content_hash
        identity += prepared.tested_on.content_hash if prepared.tested_on else ""
        identity += json.dumps(origin, sort_keys=True) if origin else ""
        method_run = Run(
            self.folder.path,
            seed=settings.seed,
            device=prepared.device,
            time_limit=settings.time_limit,
            most_steps=prepared.most_steps,
            most_passes=settings.pass_limit,
            reporter=self.reporter,
            on_progress=watching.progress,
            identity=identity,
        )
        distilled = self._distil(method_run, prepared)
        distill_seconds, passes = method_run.seconds, method_run.passes
        journal = Journal(self.folder.journal, identity)
        setting = replace(prepared.setting, journal=journal)
        companions = processes.rank() == 0
        scores = score(prepared, setting, distilled, self.catalog, self.reporter, companions=companions)
        saved = round(method_run.seconds_saved, 3)
        seconds = Seconds(distill=round(distill_seconds, 3), evaluate=round(journal.seconds, 3), saved=saved)
        return self._result(method_run, passes, prepared, distilled, scores, seconds)

    def _distil(self, method_run: Run, prepared: Prepared) -> DistilledSet:
        """Return the set that the method makes, saved in the folder; the saved one where a run resumes after it."""
        self.reporter.stage(f"Distilling with {self.plan.settings.method.name}")
        # Where scoring takes no networks, only the method's own call says which pools it draws on.
        needs_networks = bool(self.plan.protocol.networks_needed(prepared.eval_networks))
        kept = method_run.kept(self.folder.artifact) if needs_networks else None
        if kept is not None:
            return kept
        distilled = _described(_call_method(self.plan, prepared, method_run), self.plan, prepared)
        limit = self.plan.settings.time_limit
        if limit is not None and method_run.seconds > OVERTIME * limit:
            self.reporter.say(
                f"The method took {method_run.seconds:.0f} s under a time limit of {limit:g} s: "
                "work outside of its loops ends only where it asks for run.time_left."
            )
        method_run.keep(distilled, self.folder.artifact)
        return distilled

    def _result(
        self,
        method_run: Run,
        passes: int,
        prepared: Prepared,
        distilled: DistilledSet,
        scores: Scores,
        seconds: Seconds,
    ) -> RunResult:
        return RunResult(
            status="ok",
            **self._facts(),
            scores=scores.after,
            before=scores.before,
            companions=scores.companions,
            protocol=protocol_record(prepared, scores),
            pretrained={**prepared.provenance(), **made_with(distilled)},
            loop=LoopRecord(
                steps=method_run.steps_done,
                stopped_by=method_run.stopped_by,
                rollbacks=method_run.rollbacks,
                empty=method_run.empty_loops,
                # Each process counts its own part.
                passes=passes if processes.count() == 1 else None,
            ),
            artifact=Artifact(
                path=str(self.folder.artifact),
                sha256=method_run.artifact,
                bytes=distilled.nbytes,
                label_bytes=distilled.label_nbytes,
                images=distilled.stored,
                label_regime=scores.label_regime,
                decoder=distilled.decoder,
                decoded_images=distilled.count if distilled.decoder else None,
            ),
            seconds=seconds,
            peak_memory_mb=round(peak_memory_mb(), 1),
        )


def _prepared_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the fields of the result that a prepared run adds."""
    return {
        "dataset": prepared.record,
        "eval_dataset": prepared.tested_on,
        "metrics": prepared.setting.metrics,
        "attacks": prepared.attacks,
        "environment": describe(prepared.device),
    }


def _call_method(plan: Plan, prepared: Prepared, method_run: Run) -> DistilledSet:
    """Call the method with global random numbers seeded, and check the set and the data that it leaves."""
    seed_everything(derive_seed(plan.settings.seed, "global"))
    task = prepared.task(method_run.generator, lambda: method_run.time_left)
    with processes.sharing():
        distilled = plan.method.call(plan.settings.method.options, task, method_run)
    method_run.finish()
    prepared.check_untouched(plan.method)
    if not isinstance(distilled, DistilledSet):
        raise PluginError(f"{plan.method.who} returned {type(distilled).__name__}, not a DistilledSet.")
    distilled.validate(task)
    return distilled.to(prepared.device)


def _described(distilled: DistilledSet, plan: Plan, prepared: Prepared) -> DistilledSet:
    """Return the set with the metadata that a stranger needs to use it."""
    settings, info = plan.settings, prepared.train.info
    asked = prepared.asked_by_method()
    if asked:
        distilled = distilled.described(made_with=asked)
    if settings.whitening is not None:
        distilled = distilled.described(whitening=settings.whitening)
    if info.modality != "image":
        distilled = distilled.described(modality=info.modality, **info.metadata)
    if distilled.decoder:
        # Inputs show their shape; a payload does not.
        distilled = distilled.described(sample_shape=list(info.sample_shape))
    return distilled.described(
        format="ddbench/1",
        classes=list(info.classes),
        mean=list(info.mean),
        std=list(info.std),
        dataset=info.label,
        dataset_hash=info.content_hash,
        spec=settings.canonical(),
        fingerprint=settings.fingerprint,
        method=settings.method.name,
        network=settings.network.name,
        init=settings.init.name,
        eval_init=settings.eval_init.name,
        objective=settings.objective.name,
        protocol=settings.protocol,
        label_regime=label_regime(plan.protocol, distilled),
        seed=settings.seed,
    )


def _announce(plan: Plan, prepared: Prepared, folder: RunFolder, reporter: Reporter) -> None:
    """Say what will run, on which data, and where it is kept."""
    settings, record, budget = plan.settings, prepared.record, prepared.setting.budget
    copy = "not known to be the full original: ranked apart" if record.partial else "the full data, verified"
    parameters = sum(p.numel() for p in prepared.module.parameters())
    total = budget.images_per_class * len(prepared.train.info.classes)
    noun = "images" if prepared.train.info.modality == "image" else "examples"
    reporter.say(
        f"Data     {record.name}: {record.train} training, {record.validation} validation, {record.test} test {noun}; "
        f"{copy} (sha256 {record.content_hash[:12]})"
    )
    converted = conversion(tuple(plan.dataset.facts["sample_shape"]), record.sample_shape)  # type: ignore[arg-type]
    if converted and prepared.train.info.modality == "image":
        reporter.say(f"Images   converted: {converted}")
    if prepared.tested_on is not None and plan.eval_dataset is not None:
        converted = conversion(tuple(plan.eval_dataset.facts["sample_shape"]), record.sample_shape)  # type: ignore[arg-type]
        also = f", converted: {converted}" if converted and prepared.train.info.modality == "image" else ""
        reporter.say(f"Tested   on {prepared.tested_on.name} (sha256 {prepared.tested_on.content_hash[:12]}){also}")
    origin = f"{'target' if settings.target else 'init'} {settings.init.name}"
    if settings.eval_init != settings.init:
        origin += f", scored from {settings.eval_init.name}"
    if settings.eval_network != settings.network:
        origin += f", scored on {settings.eval_network.name}"
    reporter.say(f"Network  {settings.network.name}, {parameters:,} weights from {origin}, on {prepared.device}")
    reporter.say(
        f"Budget   {total} {noun} ({budget.images_per_class} per class), {budget.steps} steps x {budget.epochs} epochs"
        + ("" if budget.bytes is None else f", {budget.bytes} bytes")
    )
    if plan.recipe:
        reporter.say(f"Recipe   {plan.recipe_text}")
    if plan.protocol.teacher:
        reporter.say("Labels   while students train, of networks trained on the full data; ranked apart")
    predicted = prepared.peak_memory(plan.method, settings.method.options)
    if predicted is not None:
        peak, how = predicted
        free = free_memory(prepared.device)
        reporter.say(f"Memory   about {peak / 1e6:.0f} MB at the peak ({how}); {free / 1e6:.0f} MB are free")
        if peak > free:
            reporter.say("That may not fit: fewer networks, a smaller real batch or fewer steps take less.")
    reporter.say(f"Folder   {folder.path}")

"""Carry out many runs in several processes, on this machine or others: job files, workers, launchers."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.component import Component
from ddbench.contract.launch import Work
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.signals import sigterm_as_ctrl_c
from ddbench.contract.spec import Settings
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Interrupted, UsageError
from ddbench.machine.environment import git_commit
from ddbench.machine.files import atomic_write, sha256
from ddbench.pipeline.jobs import Carrier, Job, Outcome, carry_out, look_up, records_by_run
from ddbench.pipeline.plan import plan_run, reason_to_skip
from ddbench.pipeline.prepare import prepare

ROUNDS = 3
"""Times that a job is given to the launcher while its processes end without an outcome."""
POLL = 1.0
"""Seconds between two looks at what has ended."""


class JobFile(pydantic.BaseModel):
    """A run for a process of its own.

    Attributes:
        label: the run in words.
        task: the name of what it is run on.
        settings: the complete spec.
        sources: the code behind each component: package and version, or a digest.
        plugins: plugins named by hand.
        code: version and commit of ddbench.
        runs: folder of the run folders.
        leaderboards: folder of the leaderboards.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    label: str
    task: str
    settings: Settings
    sources: dict[str, str]
    plugins: list[str]
    code: str
    runs: Path
    leaderboards: Path


def code_version() -> str:
    """Return version and commit of ddbench: `0.1.0 at 3f9a1c2b4d5e`."""
    return f"{metadata.version('ddbench')} at {git_commit() or 'no commit'}"


def write_jobs(jobs: Sequence[Job], folder: Path, catalog: Catalog, *, runs: Path, leaderboards: Path) -> list[Path]:
    """Write a job file for each job, and return their paths. Raises `DdbenchError` where that fails."""
    paths = []
    for number, job in enumerate(jobs, 1):
        file = JobFile(
            label=job.label,
            task=job.task,
            settings=job.plan.settings,
            sources=job.plan.distributions,
            plugins=[str(path) for path in catalog.named],
            code=code_version(),
            runs=runs.resolve(),
            leaderboards=leaderboards.resolve(),
        )
        paths.append(folder / f"{number:04d}-{job.plan.settings.run_id}.json")
        atomic_write(paths[-1], file.model_dump_json(indent=2) + "\n")
    return paths


def read_job(path: Path) -> JobFile:
    """Return the content of a job file. Raises `UsageError` for another kind of file."""
    try:
        return JobFile.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.", "Give a file that --emit wrote.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a job that ddbench wrote.", "Write it anew with --emit.") from error


def outcome_path(job: Path) -> Path:
    """Return the place of the outcome of a job file."""
    return job.with_name(f".{job.name}.outcome")


def work(paths: Sequence[Path], reporter: Reporter) -> list[Outcome]:
    """Carry out job files in turn, and write the outcome of each beside it; what ended or is claimed is left alone.

    A job of another version of the code or of a plugin has the outcome `failed`, which names the version.
    Raises `UsageError` for a file that is no job, `Interrupted` on Ctrl-C.
    """
    files = [(path, read_job(path)) for path in paths]
    catalogs: dict[tuple[str, ...], Catalog] = {}
    outcomes = []
    for path, file in files:
        if read_outcome(path) is not None:
            continue
        key = tuple(file.plugins)
        try:
            if key not in catalogs:
                catalogs[key] = Catalog(map(Path, key))
            catalog = catalogs[key]
            job = Job(file.label, file.task, plan_run(file.settings, catalog))
            _check_versions(file, job)
            done = carry_out(
                [job], catalog, runs=file.runs, leaderboards=file.leaderboards, reporter=reporter, wait=False
            )
        except Interrupted:
            raise
        except DdbenchError as error:
            reason = f"{error.message} {error.hint}".strip()
            done = [Outcome(label=file.label, state="failed", reason=reason, exit_code=error.exit_code)]
        for outcome in done:
            atomic_write(outcome_path(path), outcome.model_dump_json() + "\n")
        outcomes += done
    return outcomes


def _check_versions(file: JobFile, job: Job) -> None:
    """Raise `UsageError` where the code here is not that which the job was written with."""
    here = {"ddbench": code_version(), **job.plan.distributions}
    for name, wanted in {"ddbench": file.code, **file.sources}.items():
        if here.get(name) != wanted:
            raise UsageError(
                f"this worker has {name} of {here.get(name, 'nothing')}, and the job was written with {wanted}.",
                "Install the same version on every machine.",
            )


def read_outcome(job: Path) -> Outcome | None:
    """Return the outcome of a job file; None where it has not ended."""
    try:
        return Outcome.model_validate_json(outcome_path(job).read_text())
    except (OSError, ValueError):
        return None


def by_launcher(launcher: Component, options: Mapping[str, Any]) -> Carrier:
    """Return the function that carries out jobs through a launcher, with the signature of `jobs.carry_out`."""

    def carry(
        jobs: Sequence[Job],
        catalog: Catalog,
        *,
        runs: Path,
        leaderboards: Path,
        reporter: Reporter,
        folders_only: bool = False,
        each: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        recorded = {} if folders_only else records_by_run(leaderboards)
        outcomes = {number: look_up(job, runs, recorded) for number, job in enumerate(jobs)}
        missing = [n for n, outcome in outcomes.items() if outcome.state in ("missing", "interrupted", "failed")]
        if missing:
            wanted = [jobs[number] for number in missing]
            ended = _launch(launcher, options, wanted, catalog, runs, leaderboards, reporter)
            outcomes |= dict(zip(missing, ended, strict=True))
        for outcome in outcomes.values():
            each(outcome)
        # Rows that are missing beside finished runs are added here, by one process.
        present = [job for number, job in enumerate(jobs) if outcomes[number].state == "present"]
        carry_out(present, catalog, runs=runs, leaderboards=leaderboards, reporter=Silent(), folders_only=folders_only)
        return [outcomes[number] for number in range(len(jobs))]

    return carry


def _launch(
    launcher: Component,
    options: Mapping[str, Any],
    jobs: Sequence[Job],
    catalog: Catalog,
    runs: Path,
    leaderboards: Path,
    reporter: Reporter,
) -> list[Outcome]:
    _make_before(jobs, catalog, reporter)
    digest = sha256("".join(job.plan.settings.fingerprint for job in jobs).encode())[:8]
    folder = runs / ".jobs" / digest
    paths = write_jobs(jobs, folder, catalog, runs=runs, leaderboards=leaderboards)
    for path in paths:
        outcome_path(path).unlink(missing_ok=True)

    def ended() -> set[Path]:
        return {path for path in paths if outcome_path(path).exists()}

    for _ in range(ROUNDS):
        left = tuple(path for path in paths if path not in ended())
        if not left:
            break
        share = Work(left, folder.resolve(), _command, reporter, ended)
        with _watched(paths, reporter), sigterm_as_ctrl_c():
            try:
                launcher.call(dict(options), share)
            except KeyboardInterrupt:
                raise Interrupted("interrupted.", "Give the same command to go on.") from None
    outcomes = [read_outcome(path) for path in paths]
    lost = "its process ended without a result, and did so again when it was started anew."
    return [
        outcome or Outcome(label=job.label, state="failed", reason=lost, exit_code=1)
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]


def _command(jobs: Sequence[Path]) -> list[str]:
    return [sys.executable, "-m", "ddbench", "work", *(str(job.resolve()) for job in jobs)]


@contextmanager
def _watched(paths: Sequence[Path], reporter: Reporter) -> Iterator[None]:
    """Report each job that ends while a launcher is at work."""
    stop, reported = threading.Event(), {path for path in paths if outcome_path(path).exists()}
    before, began = len(reported), time.monotonic()
    reporter.stage("Runs")

    def look() -> None:
        for path in paths:
            outcome = None if path in reported else read_outcome(path)
            if outcome is not None:
                reported.add(path)
                reporter.say(f"{len(reported)} of {len(paths)}: {outcome.label}: {outcome.in_words}")
        new, left = len(reported) - before, len(paths) - len(reported)
        if left:
            pace = (time.monotonic() - began) / new if new else None
            reporter.progress(len(reported), len(paths), {}, None if pace is None else pace * left)

    def watch() -> None:
        while not stop.wait(POLL):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def _make_before(jobs: Sequence[Job], catalog: Catalog, reporter: Reporter) -> None:
    """Make pools, experts and teachers that runs share, so that no two processes train the same ones.

    What cannot be made is left to the run, which says why.
    """
    seen = set()
    for job in jobs:
        settings = job.plan.settings.model_copy(update={"seed": 0})
        if settings.fingerprint in seen or reason_to_skip(job.plan):
            continue
        seen.add(settings.fingerprint)
        try:
            prepared = prepare(job.plan, catalog, reporter=reporter)
            prepared.draw_once()
            prepared.train_needs(job.plan.method, settings.method.options)
        except Interrupted:
            raise
        except DdbenchError as error:
            reporter.say(f"{job.label}: {error.message}")


def parse_launcher(text: str, catalog: Catalog) -> tuple[Component, dict[str, Any]]:
    """Return the launcher of `local:workers=2` and its options. Raises `UsageError` for what there is not."""
    name, _, rest = text.partition(":")
    launcher = catalog.get("launcher", name)
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--launcher {text}: {part!r} is not of the form KEY=VALUE.", "Such as local:workers=2")
        try:
            options[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return launcher, launcher.validated(options)

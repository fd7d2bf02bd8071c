"""Run methods on the tasks of a suite, and make the matrix of what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.component import did_you_mean
from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.spec import RunSpec, parse_choice
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.suites import Suite, SuiteTask
from ddbench.errors import UsageError
from ddbench.machine.environment import describe, machine_class, resolve_device
from ddbench.pipeline.jobs import Carrier, Job, Outcome, carry_out, look_up, records_by_run
from ddbench.pipeline.plan import plan_run
from ddbench.records.result import RunResult
from ddbench.records.suite_matrix import Matrix, Runs, matrix


@dataclass(frozen=True)
class Place:
    """The place of a job in a suite."""

    method: str
    task: str
    seed: int


class SuiteResult(pydantic.BaseModel):
    """The runs of a suite and the matrix that they give.

    Attributes:
        suite: name of the suite.
        outcomes: the end, or the state, of each run.
        matrix: methods by tasks.
    """

    suite: str
    outcomes: tuple[Outcome, ...]
    matrix: Matrix

    @property
    def failed(self) -> list[Outcome]:
        """The runs that failed."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]


def run_suite(
    suite: Suite | str,
    methods: Sequence[str] = (),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    fields: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
    carry: Carrier = carry_out,
) -> SuiteResult:
    """Run `methods`, by default those of the suite, on all its tasks: what `ddbench suite run` does.

    What is there is not run again, and what fails does not keep the rest from running. The matrix also shows the
    methods of the suite that have records already. `options` are options of methods, by method; `fields` are fields of
    every spec; `carry` is the way of carrying out the runs. Raises `UsageError` for a method or an option that does
    not exist, before anything is run.
    """
    catalog = catalog or Catalog()
    suite = catalog.suite(suite) if isinstance(suite, str) else suite
    jobs = plan_suite(suite, methods, catalog, options or {}, fields or {})
    outcomes = carry(list(jobs.values()), catalog, runs=runs, leaderboards=leaderboards, reporter=reporter or Silent())
    shown = dict(zip(jobs, outcomes, strict=True))
    others = [name for name in suite.methods if name not in {place.method for place in jobs}]
    if others:
        shown |= _states(plan_suite(suite, others, catalog, {}, fields or {}), runs, leaderboards)
    return SuiteResult(suite=suite.name, outcomes=tuple(outcomes), matrix=_matrix(suite, shown))


def suite_status(
    suite: Suite | str,
    methods: Sequence[str] = (),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    fields: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> SuiteResult:
    """Return what is there of a suite, with the matrix that it gives; nothing is run."""
    catalog = catalog or Catalog()
    suite = catalog.suite(suite) if isinstance(suite, str) else suite
    wanted = [*suite.methods, *(name for name in methods if name not in suite.methods)]
    states = _states(plan_suite(suite, wanted, catalog, options or {}, fields or {}), runs, leaderboards)
    return SuiteResult(suite=suite.name, outcomes=tuple(states.values()), matrix=_matrix(suite, states))


def plan_suite(
    suite: Suite,
    methods: Sequence[str],
    catalog: Catalog,
    options: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Any],
) -> dict[Place, Job]:
    """Return the jobs of `methods`, by default those of the suite, task by task.

    Raises `UsageError` for a name or an option that does not exist.
    """
    names = list(dict.fromkeys(methods or suite.methods))
    stray = next((name for name in options if name not in names), None)
    if stray is not None:
        raise UsageError(
            f"options were set for {stray!r}, which is not run.{did_you_mean(stray, names)}",
            f"Run: {', '.join(names)}.",
        )
    jobs = {}
    for task in suite.tasks:
        for name in names:
            spec = _spec(suite, task, name, options.get(name, {}), catalog)
            for seed in task.seeds:
                plan = plan_run(RunSpec.parse({**spec, **fields, "seed": seed}), catalog)
                jobs[Place(name, task.name, seed)] = Job(f"{name} on {task.name}, seed {seed}", task.name, plan)
    return jobs


def _spec(suite: Suite, task: SuiteTask, method: str, options: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Return the fields of the spec of a method on a task, without the seed."""
    published = catalog.experiment(task.experiment).spec if task.experiment else {}
    own, usual = parse_choice("method", published["method"]) if published else None, suite.options.get(method, {})
    if own is not None and own.name == method:
        usual = {**own.options, **usual}
        published = {**published, "experiment": task.experiment}
    return {**published, **task.spec, "method": {"name": method, "options": {**usual, **options}}}


def _states(jobs: Mapping[Place, Job], runs: Path, leaderboards: Path) -> dict[Place, Outcome]:
    recorded = records_by_run(leaderboards)
    return {place: look_up(job, runs, recorded) for place, job in jobs.items()}


def _matrix(suite: Suite, outcomes: Mapping[Place, Outcome]) -> Matrix:
    """Return the matrix; time limits are meant for the machine that the suite names, else for this one."""
    machine = suite.machine or machine_class(describe(resolve_device("auto")))
    known = dict.fromkeys(place.method for place in outcomes)
    methods = [
        *(name for name in suite.methods if name in known),
        *(name for name in known if name not in suite.methods),
    ]
    rows: dict[str, dict[str, Runs]] = {}
    for method in methods:
        row = {
            task.name: _runs([o for place, o in outcomes.items() if (place.method, place.task) == (method, task.name)])
            for task in suite.tasks
        }
        # A method of the suite that nothing is known of would only fill the page.
        if any(cell.records or cell.state != "missing" for cell in row.values()):
            rows[method] = row
    return matrix(rows, suite.reference, machine)


def _runs(outcomes: Sequence[Outcome]) -> Runs:
    records: list[RunResult] = [o.result for o in outcomes if o.result is not None and o.result.status == "ok"]
    others = [o for o in outcomes if o.result is None or o.result.status != "ok"]
    if not others:
        return Runs(records)
    first = next((o for o in others if o.state in ("failed", "skipped")), others[0])
    state = "missing" if first.state not in ("failed", "skipped") else first.state
    return Runs(records, state, first.reason)

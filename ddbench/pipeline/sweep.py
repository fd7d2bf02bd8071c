"""Run at several values of a field, and put the results in one table."""

import csv
import io
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.observer import Reporter, Silent
from ddbench.contract.plan import Plan
from ddbench.contract.spec import Axis, RunSpec, Split, Sweep, place_assignments
from ddbench.discovery.catalog import Catalog
from ddbench.errors import DdbenchError, Unsupported, UsageError
from ddbench.machine import processes
from ddbench.machine.files import atomic_write, sha256
from ddbench.pipeline.jobs import Carrier, Job, Outcome, carry_out
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.runner import as_spec
from ddbench.records.result import LOG_PLACE, RunFolder, RunResult


class Point(pydantic.BaseModel):
    """One run of a sweep.

    Attributes:
        values: the swept values, one for each axis.
        result: the result of the run.
        logged: the last value of each figure that the method logged.
    """

    values: tuple[Any, ...]
    result: RunResult
    logged: dict[str, float] = {}

    def figure(self, name: str) -> tuple[float, float | None, float | None]:
        """Return mean and interval of a metric, or a logged figure's last value. Raises `UsageError` for neither."""
        scores = self.result.scores
        if name in scores:
            return scores[name].mean, scores[name].low, scores[name].high
        if name in self.logged:
            return self.logged[name], None, None
        known = ", ".join(dict.fromkeys([*scores, *self.logged]))
        raise UsageError(f"the runs have no figure {name!r} to plot.", f"They have {known}.")


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep, and the folder that holds its table.

    Attributes:
        sweep: the axes.
        points: the runs that gave a score, in the order of the axes.
        figure: the metric, or the logged figure, that the sweep is about.
        folder: the folder of the table and the picture.
        failed: the runs that failed.
    """

    sweep: Sweep
    points: tuple[Point, ...]
    figure: str
    folder: Path
    failed: tuple[Outcome, ...] = ()

    @property
    def table(self) -> Path:
        """The CSV of the sweep: a line for each run."""
        return self.folder / "sweep.csv"

    @property
    def picture(self) -> Path:
        """The place of the picture of the sweep."""
        return self.folder / "sweep.png"


def sweep(
    spec: RunSpec | Mapping[str, Any],
    axes: Mapping[str, Iterable[Any]],
    *,
    plot: str = "",
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> SweepResult:
    """Run `spec` at every combination of values: what `ddbench run --sweep` does, without the picture.

    `axes` has one or two keys, such as `{"epochs": [1, 3]}`, `{"init.scheme": [...]}`, or `{"steps,images_per_class":
    [1, 2, 5]}` for fields that take the same values together. Options of the method are compared on the validation
    slice unless `spec` names another `split`. Raises `UsageError` for keys that do not exist.
    """
    catalog = catalog or Catalog()
    fields = as_spec(spec, catalog).model_dump(exclude_unset=True)
    options = set(catalog.get("method", as_spec(spec, catalog).method.name).options.model_fields)

    def spec_at(assignments: dict[str, Any]) -> RunSpec:
        return RunSpec.parse(place_assignments(fields, assignments, options))

    swept = Sweep(axes=[Axis(keys=split_keys(keys), values=list(values)) for keys, values in axes.items()], plot=plot)
    fields = {"split": usual_split(swept.axes, options), **fields}
    return run_sweep(swept, spec_at, catalog, runs=runs, leaderboards=leaderboards, reporter=reporter)


def run_sweep(
    sweep: Sweep,
    spec_at: Callable[[dict[str, Any]], RunSpec],
    catalog: Catalog,
    *,
    runs: Path,
    leaderboards: Path,
    reporter: Reporter | None = None,
    carry: Carrier = carry_out,
) -> SweepResult:
    """Run every point in turn, as `jobs.carry_out` does: what is in `runs` already is taken from there.

    `spec_at(assignments)` makes the spec of a point. A point that the method does not support is skipped, and one that
    fails is left out. Raises `Unsupported` where it supports none, `DdbenchError` where all fail.
    """
    if processes.count() > 1:
        raise UsageError(
            "several processes share one run, not a sweep.", "Start the sweep in one process, or each point by itself."
        )
    plans = plan_sweep(sweep, spec_at, catalog)
    jobs = _jobs(sweep, plans)

    def check_figure(outcome: Outcome) -> None:
        # Better to know after the first point than after all of them.
        if outcome.result is not None and outcome.result.status == "ok":
            _point((), outcome.result).figure(sweep.plot or outcome.result.primary)

    outcomes = carry(
        jobs, catalog, runs=runs, leaderboards=leaderboards, reporter=reporter or Silent(), folders_only=True,
        each=check_figure,
    )  # fmt: skip
    pairs = [(values, outcome) for (values, _), outcome in zip(plans, outcomes, strict=True)]
    points = [_point(values, o.result) for values, o in pairs if o.result is not None and o.result.status == "ok"]
    failed = tuple(outcome for outcome in outcomes if outcome.state == "failed")
    if not points and failed:
        raise DdbenchError(f"every point of the sweep failed; the first: {failed[0].reason}", "See the reasons above.")
    if not points:
        raise Unsupported("the method supports no point of the sweep.", "See the reasons above.")
    digest = sha256("".join(plan.settings.fingerprint for _, plan in plans).encode())[:6]
    folder = runs / f"sweep-{plans[0][1].settings.method.name}-{digest}"
    done = SweepResult(sweep, tuple(points), sweep.plot or points[0].result.primary, folder, failed)
    atomic_write(done.table, csv_text(done))
    return done


def sweep_jobs(sweep: Sweep, spec_at: Callable[[dict[str, Any]], RunSpec], catalog: Catalog) -> list[Job]:
    """Return a job for every point. Raises `UsageError` for one that cannot be."""
    return _jobs(sweep, plan_sweep(sweep, spec_at, catalog))


def _jobs(sweep: Sweep, plans: Iterable[tuple[tuple[Any, ...], Plan]]) -> list[Job]:
    return [Job(_in_words(sweep, values), plan.settings.fingerprint, plan) for values, plan in plans]


def usual_split(axes: Iterable[Axis], options: Container[str]) -> Split:
    """Return the split that a sweep scores on where none is named: validation where options of the method are compared.

    Fields such as `images_per_class` make other tasks, which nobody chooses among by their scores.
    """
    keys = [key.removeprefix("method.") for axis in axes for key in axis.keys]
    return "validation" if any(key in options for key in keys) else "test"


def plan_sweep(
    sweep: Sweep, spec_at: Callable[[dict[str, Any]], RunSpec], catalog: Catalog
) -> list[tuple[tuple[Any, ...], Plan]]:
    """Return the values and the plan of every point. Raises `UsageError` for one that cannot be."""
    return [(values, plan_run(spec_at(assignments), catalog)) for values, assignments in sweep.assignments()]


def split_keys(text: str) -> list[str]:
    """Return the keys of an axis from text with commas. Raises `UsageError` for what is no key."""
    keys = [key.strip() for key in text.split(",")]
    for key in keys:
        if not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise UsageError(f"{key!r} is not the name of a field or an option.", "Such as epochs or init.scheme.")
    return keys


def parse_axes(texts: Iterable[str]) -> list[Axis]:
    """Return axes from `["steps,images_per_class=1,2,5", "epochs=1,3"]`. Raises `UsageError` for other text."""
    axes = []
    for text in texts:
        names, equals, values = text.partition("=")
        try:
            keys = split_keys(names)
        except UsageError:
            keys = []
        if not equals or not values.strip() or not keys:
            raise UsageError(f"--sweep {text!r} is not of the form KEY=VALUE,VALUE,...", "Such as --sweep epochs=1,3,5")
        axes.append(Axis(keys=keys, values=[_value(part) for part in values.split(",")]))
    if len(axes) > 2:
        raise UsageError("a sweep has one axis or two.", "Keys that go together share one: --sweep steps,epochs=1,2,5")
    return axes


def csv_text(done: SweepResult) -> str:
    """Return a line for each run: swept values, every metric's mean, the last logged figures, the run's folder."""
    text = io.StringIO()
    metrics = sorted({name for point in done.points for name in point.result.scores})
    logged = sorted({name for point in done.points for name in point.logged})
    writer = csv.writer(text, lineterminator="\n")
    keys = [",".join(axis.keys) for axis in done.sweep.axes]
    writer.writerow([*keys, *metrics, *(f"logged {name}" for name in logged), "run_dir"])
    for point in done.points:
        scores = point.result.scores
        means = [scores[name].mean if name in scores else "" for name in metrics]
        writer.writerow([*point.values, *means, *(point.logged.get(name, "") for name in logged), point.result.run_dir])
    return text.getvalue()


def _in_words(sweep: Sweep, values: tuple[Any, ...]) -> str:
    return ", ".join(f"{axis.name} {value}" for axis, value in zip(sweep.axes, values, strict=True))


def _point(values: tuple[Any, ...], result: RunResult) -> Point:
    return Point(values=values, result=result, logged=_last_logged(Path(result.run_dir)))


def _last_logged(folder: Path) -> dict[str, float]:
    log = RunFolder(folder).log
    lines = log.read_text().splitlines() if log.exists() else []
    last: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return {name: value for name, value in last.items() if name not in LOG_PLACE}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()

"""Sweeps: the same run at several values of a field, as a table, a CSV and a picture."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pydantic

from ddbench.contract.observer import Reporter
from ddbench.contract.spec import Axis, Settings, Sweep
from ddbench.errors import UsageError
from ddbench.records.result import RunFolder, RunResult


class Point(pydantic.BaseModel):
    """One run of a sweep."""

    values: tuple[Any, ...]
    result: RunResult
    logged: dict[str, float] = {}

    def figure(self, name: str) -> tuple[float, float | None, float | None]:
        """Mean and interval of a metric, or the last value of a logged figure. Raises `UsageError` for neither."""
        scores = self.result.scores
        if name in scores:
            return scores[name].mean, scores[name].low, scores[name].high
        if name in self.logged:
            return self.logged[name], None, None
        known = ", ".join(dict.fromkeys([*scores, *self.logged]))
        raise UsageError(f"the runs have no figure {name!r} to plot.", f"They have {known}.")


def parse_axes(texts: Iterable[str]) -> list[Axis]:
    """`["steps,images_per_class=1,2,5", "epochs=1,3"]` as axes. Raises `UsageError` for other text."""
    axes = []
    for text in texts:
        keys, equals, values = text.partition("=")
        names = [key.strip() for key in keys.split(",")]
        if not equals or not values.strip() or not all(re.fullmatch(r"[A-Za-z_][\w.]*", name) for name in names):
            raise UsageError(f"--sweep {text!r} is not of the form KEY=VALUE,VALUE,...", "Such as --sweep epochs=1,3,5")
        axes.append(Axis(keys=names, values=[_value(part) for part in values.split(",")]))
    if len(axes) > 2:
        raise UsageError("a sweep has one axis or two.", "Keys that go together share one: --sweep steps,epochs=1,2,5")
    return axes


def run_sweep(
    sweep: Sweep,
    spec_of: Callable[[dict[str, Any]], Settings],
    run: Callable[[Settings], RunResult],
    source_of: Callable[[Settings], str],
    runs: Path,
    reporter: Reporter,
) -> list[Point]:
    """Run every point in turn; one that has ended well in `runs` before is taken as it is.

    `spec_of(assignments)` makes the completed spec of a point, `source_of` names its method's package and version.
    A method that does not support a point is passed over.
    """
    planned = [(values, spec_of(settings)) for values, settings in sweep.assignments()]
    points = []
    for number, (values, spec) in enumerate(planned, start=1):
        what = ", ".join(f"{axis.name} {value}" for axis, value in zip(sweep.axes, values, strict=True))
        reporter.say(f"Point {number} of {len(planned)}: {what}")
        result = _ended(runs, spec, source_of(spec))
        if result is not None:
            reporter.say(f"Taken from {result.run_dir}, which has ended already.")
        else:
            result = run(spec)
        if result.status != "ok":
            reporter.say(f"Passed over: {result.reason}")
            continue
        points.append(Point(values=values, result=result, logged=_last_logged(Path(result.run_dir))))
        # Better to know after the first point than after all of them.
        points[-1].figure(sweep.plot or result.primary)
    return points


def csv_text(sweep: Sweep, points: Sequence[Point]) -> str:
    """One line for each run: the swept values, every metric's mean, what was logged last, the run's folder."""
    import csv
    import io

    text = io.StringIO()
    metrics = sorted({name for point in points for name in point.result.scores})
    logged = sorted({name for point in points for name in point.logged})
    writer = csv.writer(text, lineterminator="\n")
    keys = [",".join(axis.keys) for axis in sweep.axes]
    writer.writerow([*keys, *metrics, *(f"logged {name}" for name in logged), "run_dir"])
    for point in points:
        scores = point.result.scores
        means = [scores[name].mean if name in scores else "" for name in metrics]
        writer.writerow([*point.values, *means, *(point.logged.get(name, "") for name in logged), point.result.run_dir])
    return text.getvalue()


def _ended(runs: Path, spec: Settings, source: str) -> RunResult | None:
    """The result of a run of the same spec and version of the method that has ended well."""
    for path in sorted(runs.glob(f"{spec.run_id}*")):
        result = RunFolder(path).read_result()
        same = result is not None and (result.fingerprint, result.method_source) == (spec.fingerprint, source)
        if result is not None and result.status == "ok" and same:
            return result
    return None


def _last_logged(folder: Path) -> dict[str, float]:
    log = RunFolder(folder).log
    lines = log.read_text().splitlines() if log.exists() else []
    last: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return {name: value for name, value in last.items() if name not in ("loop", "step", "seconds")}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()

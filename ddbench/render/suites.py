"""Suites and their matrices as text."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddbench.contract.metric import Metric
from ddbench.records.stats import Interval
from ddbench.records.suite_matrix import Cell, Matrix
from ddbench.render.tables import bounds, number, points

if TYPE_CHECKING:
    from ddbench.discovery.suites import Suite
    from ddbench.pipeline.tune import Tuning

CELL = 24
"""Characters that a column of the matrix takes."""
SHOWN = 0.05
"""Corrected p-value below which a pair of methods counts as different."""


def suite_card(suite: "Suite") -> None:
    """Print a suite: its methods, its tasks and what each run may cost."""
    console = _console()
    console.print(Text(f"{suite.name}  (suite, {suite.distribution})", style="bold"))
    console.print(Text(f"\n{suite.summary}\n"))
    console.print(Text(f"methods    {', '.join(suite.methods)}"), soft_wrap=True)
    console.print(Text(f"gain over  {suite.reference}"))
    if suite.machine:
        console.print(Text(f"machine    {suite.machine}: time limits are meant for it"))
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "seeds", "spec"):
        table.add_column(heading, overflow="fold")
    for task in suite.tasks:
        fields = ", ".join(f"{key}={value}" for key, value in task.spec.items())
        table.add_row(*map(Text, (task.name, ", ".join(map(str, task.seeds)), fields)))
    console.print()
    console.print(table)


def print_matrix(matrix: Matrix) -> None:
    """Print the matrix, as many tasks beside one another as fit, then the aggregates and the pairs."""
    console = _console()
    width = max((len(method) for method in matrix.cells), default=0) + 2
    beside = max(1, (console.width - width) // CELL)
    methods = [*matrix.aggregates, *(method for method in matrix.cells if method not in matrix.aggregates)]
    for first in range(0, len(matrix.tasks), beside):
        tasks = matrix.tasks[first : first + beside]
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for task in tasks:
            table.add_column(task, overflow="fold")
        for method in methods:
            row = matrix.cells[method]
            cells = (_cell(row[task], matrix.units.get(task, "")) if task in row else "" for task in tasks)
            table.add_row(method, *cells)
        console.print()
        console.print(table)
    console.print(Text(f"(score +- half of its 95 % interval, gain over {matrix.reference}, rank)"))
    if matrix.aggregates:
        console.print()
        console.print(_aggregates(matrix))
        console.print(Text("(95 % intervals over tasks, by the bootstrap)"))
    for line in _notes(matrix):
        console.print(Text(line), soft_wrap=True)


def print_tuning(tuning: "Tuning") -> None:
    """Print the trials, the best first; their gains are on the validation slice."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    for heading in ("trial", "gain", "state", "options"):
        table.add_column(heading, justify="right" if heading in ("trial", "gain") else "left", overflow="fold")
    ordered = sorted(enumerate(tuning.trials, 1), key=lambda item: (item[1].state != "complete", -(item[1].gain or 0)))
    for place, trial in ordered:
        options = ", ".join(f"{key}={value}" for key, value in trial.options.items())
        table.add_row(str(place), "-" if trial.gain is None else f"{trial.gain:+.4g}", trial.state, options)
    console.print(Text(f"Trials of {tuning.method} on the validation slice, kept in {tuning.folder}", style="bold"))
    console.print(table)
    chosen = ", ".join(f"{key}={value}" for key, value in tuning.best.items())
    console.print(Text(f"Chosen: {chosen}. The test split is read for these alone.\n"))


def _cell(cell: Cell, unit: str) -> Text:
    if cell.score is None:
        return Text(cell.state, style="dim")
    metric = Metric("", unit)  # type: ignore[arg-type]
    interval = bounds(metric, cell.score)
    half = "" if interval is None else f" +- {number(metric, (interval[1] - interval[0]) / 2).removesuffix(' %')}"
    gain = "" if cell.gain is None else f"  {points(metric, cell.gain)}"
    rank = "  elsewhere" if cell.rank is None else f"  #{cell.rank}"
    better = 0 if cell.gain is None or cell.rank is None else cell.gain
    style = "green" if better > 0 else "red" if better < 0 else ""
    return Text(number(metric, cell.score.mean).removesuffix(" %") + half + gain + rank, style=style)


def _aggregates(matrix: Matrix) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "mean rank", "", "mean gain", "", "tasks"):
        table.add_column(heading, justify="left" if not heading else "right")
    units = set(matrix.units.values())
    metric = Metric("", "share" if units == {"share"} else "")
    for method, each in matrix.aggregates.items():
        gain = ("-", "") if each.gain is None else (points(metric, each.gain.mean), _ends(metric, each.gain))
        place = (f"{each.rank.mean:.2f}", _ends(Metric(""), each.rank, "{:.2f}"))
        table.add_row(method, *place, *gain, f"{each.tasks} of {len(matrix.tasks)}")
    return table


def _ends(metric: Metric, interval: Interval, form: str = "") -> str:
    if interval.low is None or interval.high is None:
        return ""
    low, high = (form.format(v) if form else points(metric, v) for v in (interval.low, interval.high))
    return f"{low} to {high}"


def _notes(matrix: Matrix) -> Iterator[str]:
    """Yield what is shown of pairs of methods, and why cells have no score or no rank."""
    if matrix.comparisons:
        shown = [c for c in matrix.comparisons if c.corrected is not None and c.corrected < SHOWN]
        pairs = len(matrix.comparisons)
        yield ""
        yield f"Pairs of methods that differ over tasks: {len(shown)} of {pairs} (signed ranks, Holm's correction)."
        for c in shown:
            better, worse = (c.first, c.second) if c.wins > c.losses else (c.second, c.first)
            count = f"{max(c.wins, c.losses)} of {c.tasks} tasks"
            yield f"  {better} over {worse}: better on {count}, corrected p = {c.corrected:.3g}"
    reasons: dict[str, list[str]] = {}
    for method, row in matrix.cells.items():
        for task, cell in row.items():
            if cell.reason:
                reasons.setdefault(f"{method}: {cell.reason}", []).append(task)
    if reasons:
        yield ""
    for reason, tasks in reasons.items():
        yield f"{reason} ({', '.join(tasks)})"


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(highlight=False, width=160)
    return console

"""Rankings and comparisons of records as text."""

import math
import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddbench.contract.metric import Metric, missed_thresholds
from ddbench.contract.spec import Settings
from ddbench.machine.environment import machine_class
from ddbench.records.columns import phrases
from ddbench.records.leaderboard import PublishedRow
from ddbench.records.matrix import Cell, Matrix, baselines, network_of
from ddbench.records.ranking import Line, ignored_fields, ranks
from ddbench.records.result import NO_ADAPTATION, TIME_LIMIT, RunResult
from ddbench.records.stats import Difference, Score
from ddbench.render.tables import bounds, distilling, kilobytes, number, points, shortfalls

MARK = "†"
"""Mark of a figure whose row or companion misses a threshold; notes below the table say which."""


GAIN_STYLES = ((0.1, "bold blue"), (0.0, "blue"), (-0.1, "yellow"), (-math.inf, "bold red"))
"""Colours of cells of the matrix by the least gain over random real images, as a fraction of a share."""
CELL_WIDTH = 10
"""Least width of a column of the matrix: `100.0±0.1+`."""
CORNER = "images per class"


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(highlight=False, width=160)
    return console


def matrix(shown: Matrix) -> None:
    """Print methods by dataset and images per class, in as many tables as the width needs.

    A cell holds the score, half of its 95 % interval, and `+` or `-` where the interval lies wholly above or below
    the mean of random real images. Blue is better than these, yellow and red are worse.
    """
    console = _console()
    records = [lines[0].first for lines in shown.rankings]
    parts = [title_parts(record)[2:] for record in records]
    common = [part for part in parts[0] if all(part in other for other in parts)]
    console.print(Text(f"Every method in every ranking: {', '.join(common)}", style="bold"))
    console.print(Text("score +- half of its 95 % interval; + or - : above or below random real images"))
    headings = [_heading(index, records, parts, common) for index in range(len(records))]
    method_width = max(len(CORNER), *(len(name) for name in shown.methods))
    start = 0
    while start < len(records):
        # A dataset's name stands above its first column only, which is as wide as the name.
        end, columns, room = start, list[tuple[list[str], int]](), console.width - method_width
        while end < len(records):
            repeated = end > start and headings[end - 1][0] == headings[end][0]
            lines = ["", *headings[end][1:]] if repeated else headings[end]
            width = max(CELL_WIDTH, len(lines[0]))
            room -= width + 1
            if room < 0 and columns:
                break
            columns.append((lines, width))
            end += 1
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(f"\n{CORNER}", no_wrap=True, min_width=method_width)
        for lines, width in columns:
            table.add_column("\n".join(lines), justify="right", overflow="fold", width=width)
        for method in shown.methods:
            cells = [shown.cells[index].get(method) for index in range(start, end)]
            if any(cells):
                table.add_row(method, *map(_cell, cells))
        console.print(table)
        console.print()
        start = end


def _heading(
    index: int, records: Sequence[RunResult], parts: Sequence[Sequence[str]], common: Sequence[str]
) -> list[str]:
    """Return dataset, images per class, and what distinguishes a column from others of the same dataset and count."""

    def place(record: RunResult) -> tuple[str, int]:
        return record.dataset.name if record.dataset else "", record.settings.images_per_class

    record = records[index]
    alike = [own for other, own in zip(records, parts, strict=True) if place(other) == place(record)]
    network = network_of(record)
    apart = [
        part
        for part in parts[index]
        if part not in common and (any(part not in own for own in alike) or (network and part.startswith(network)))
    ]
    name = record.dataset.name.split("@")[0] if record.dataset else ""
    return [name, str(record.settings.images_per_class), *apart]


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    metric, score = cell.line.first.metric, cell.line.score
    text, interval = number(metric, score.mean).removesuffix(" %"), bounds(metric, score)
    if interval is not None:
        text += f"±{number(metric, (interval[1] - interval[0]) / 2).removesuffix(' %')}"
    text += MARK * bool(cell.line.missed)
    if cell.gain is None:
        return Text(text + " ")
    sign = 1 if metric.higher_is_better else -1
    baseline = score.mean - sign * cell.gain
    above = below = False
    if interval is not None:
        low, high = sorted((sign * (interval[0] - baseline), sign * (interval[1] - baseline)))
        above, below = low > 0, high < 0
    style = next(style for least, style in GAIN_STYLES if cell.gain >= least) if cell.gain else ""
    return Text(text + ("+" if above else "-" if below else " "), style=style)


def ranking(groups: Sequence[Sequence[Line]]) -> None:
    """Print each group of comparable lines, best first, and what they cost where there is room for it."""
    console = _console()
    for lines in groups:
        console.print(Text(title(lines[0].first), style="bold"))
        console.print(_ranking_table(lines, wide=console.width >= 120))
        for note in notes(lines):
            console.print(Text(note))
        console.print()


def title(record: RunResult) -> str:
    """Return the title of a ranking: what its records have in common."""
    return ", ".join(title_parts(record))


def title_parts(record: RunResult) -> list[str]:
    """Return the parts of a ranking's title: dataset, images per class, and what else its records have in common."""
    settings, data, ignored = record.settings, record.dataset.name if record.dataset else "", ignored_fields(record)
    parts = [data, f"{settings.images_per_class} images per class"]
    if "steps" not in ignored:
        parts.append(f"{settings.steps} x {settings.epochs} steps")
    if "eval_network" not in ignored:
        parts.append(f"{network_of(record)} from {settings.eval_init.name}")
    parts.append(settings.protocol)
    if settings.objective.name != Settings.model_fields["objective"].default.name:
        parts.append(str(settings.objective))
    parts += phrases(record)
    return parts + ([f"target {settings.target.name}"] if settings.target else [])


def _ranking_table(lines: Sequence[Line], *, wide: bool) -> Table:
    metric = lines[0].first.metric
    beside = beside_metrics(lines)
    companions = sorted({name for line in lines for name in line.first.companions})
    cost = ("kB", "time") if wide else ()
    table = Table(box=None, pad_edge=False)
    if not wide:
        companions = baselines(companions)
    gains = [f"over{' ' if wide else chr(10)}{name}" for name in companions]
    headings = ("", "method", metric.name, "95 % interval", "n", *(m.name for m in beside), *gains, *cost, "run")
    for heading in headings:
        left = heading in ("method", "run")
        table.add_column(
            heading,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=wide or heading != "method",
            max_width=None if wide or heading != "method" else 24,
        )
    for rank, line, name in zip(ranks(lines), lines, line_names(lines), strict=True):
        record, mean, seeds = line.first, line.score.mean, len(line.records)
        table.add_row(
            str(rank),
            name,
            number(metric, mean) + MARK * bool(line.missed),
            _interval(metric, line.score),
            f"{seeds} x {line.score.n}" if seeds > 1 else str(line.score.n),
            *(number(m, line.means[m.name]) if m.name in line.means else "" for m in beside),
            *(_gain(record, mean, companion) for companion in companions),
            *(_cost(record) if wide else ()),
            # A run goes by the beginning of its fingerprint, too.
            (record.run_id if wide else record.fingerprint[:8])
            + (f" and {seeds - 1} other{'s' * (seeds > 2)}" if seeds > 1 else ""),
        )
    return table


def beside_metrics(lines: Sequence[Line]) -> list[Metric]:
    """Return the metrics that stand beside the one that ranks, in any line; not all are scored under attack."""
    metrics = {m.name: m for line in lines for m in line.first.metrics if m.beside and m.name in line.means}
    return list(metrics.values())


def notes(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a sentence for companions with other labels than the sets, for lines that the clock ended, and for each
    threshold that is missed.
    """
    regimes: dict[str, list[str]] = {}
    for line in lines:
        record = line.first
        regime = record.artifact.label_regime if record.artifact else ""
        for name, companion in record.companions.items():
            labels = companion.regime_beside(name, regime)
            names = regimes.setdefault(labels, [])
            if labels not in ("", regime) and name not in names:
                names.append(name)
    yield from (f"Companions with {labels} labels: {', '.join(names)}." for labels, names in regimes.items() if names)
    ended: dict[str, list[str]] = {}
    for line, name in zip(lines, line_names(lines), strict=True):
        for machine in {machine_class(r.environment) for r in line.records if r.loop.stopped_by == TIME_LIMIT}:
            ended.setdefault(machine, []).append(name)
    yield from (f"Ended by the clock, on {machine}: {', '.join(names)}." for machine, names in sorted(ended.items()))
    for line in lines:
        run, metrics = line.first.run_id, line.first.metrics
        for text in shortfalls(metrics, line.means):
            yield f"{MARK} {run} is ranked behind rows that reach it: {text}."
        for name, companion in line.first.companions.items():
            if name != NO_ADAPTATION:
                for text in shortfalls(metrics, companion.metrics):
                    yield f"{MARK} {name} beside {run}: {text}."


def _gain(record: RunResult, mean: float, companion: str) -> str:
    if companion not in record.companions:
        return ""
    sign, other = 1 if record.metric.higher_is_better else -1, record.companions[companion]
    missed = companion != NO_ADAPTATION and bool(missed_thresholds(record.metrics, other.metrics))
    return points(record.metric, sign * (mean - other.mean)) + MARK * missed


def _cost(record: RunResult) -> tuple[str, str]:
    assert record.artifact and record.seconds
    return kilobytes(record.artifact), distilling(record)


def line_names(lines: Sequence[Line]) -> list[str]:
    """Return the method of each line, with what distinguishes it from other lines of the same method."""
    facts = [
        {
            **_ignored(line.first),
            **line.first.settings.method.options,
            "network": str(line.first.settings.network),
            "init": str(line.first.settings.init),
            "from": line.first.method_source.rpartition("@")[2],
            "pools": line.first.pretrained,
        }
        for line in lines
    ]
    methods = [line.first.settings.method.name for line in lines]
    names = []
    for method, own in zip(methods, facts, strict=True):
        others = [other for name, other in zip(methods, facts, strict=True) if name == method]
        differing = [key for key in own if any(other.get(key) != own[key] for other in others)]
        shown = [f"{key}={own[key]}" for key in differing if key != "pools"] or ["other pools"] * bool(differing)
        names.append(method + (f" ({', '.join(shown[:3])}{', ...' * (len(shown) > 3)})" if shown else ""))
    return names


def _ignored(record: RunResult) -> dict[str, object]:
    """Return the settings that distinguish lines of one ranking because the protocol ignores them."""
    settings, ignored = record.settings, ignored_fields(record)
    facts: dict[str, object] = {name: getattr(settings, name) for name in ("steps", "epochs") if name in ignored}
    for name in ("eval_network", "eval_init"):
        # Scored as it was distilled: the network and the init say it already.
        if name in ignored and getattr(settings, name) != getattr(settings, name.removeprefix("eval_")):
            facts[name] = str(getattr(settings, name))
    return facts


def difference_line(first: RunResult, second: RunResult, difference: Difference) -> str:
    """Return `A is 3.1 points better than B (95 % interval 1.0 to 5.2, n=20 networks)`, or that none is shown."""
    metric = first.metric
    scale, unit = (100, " points") if metric.unit == "share" else (1, "")
    pairs = f"n={difference.n} {difference.of}" + (" of one seed each" if difference.of == "networks" else "")
    if difference.low is None or difference.high is None:
        gap = f"{scale * difference.mean:+.4g}{unit}"
        return f"{metric.name}: {first.settings.method.name} {gap}; one pair supports no interval ({pairs})."
    interval = f"95 % interval {scale * difference.low:+.3g} to {scale * difference.high:+.3g}{unit}, {pairs}"
    if not difference.shown:
        return f"{metric.name}: no difference shown ({interval})."
    better = (difference.mean > 0) == metric.higher_is_better
    gap = f"{abs(scale * difference.mean):.3g}{unit} {'better' if better else 'worse'}"
    return f"{metric.name}: {first.run_id} is {gap} than {second.run_id} ({interval})."


def published_table(figures: Sequence[PublishedRow]) -> None:
    """Print published figures, which others measured under other protocols."""
    if not figures:
        return
    console = Console(highlight=False)
    console.print(Text("Published elsewhere, under other protocols; not measured here and not ranked", style="bold"))
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "images per class", "network", "setting", "metric", "", "source"):
        table.add_column(heading, overflow="fold")
    for f in figures:
        metric = Metric(f.metric, f.unit)
        figure = number(metric, f.mean) + ("" if f.std is None else f" +- {number(metric, f.std)}")
        cells = (f.method, str(f.images_per_class), f.network, f.setting, f.metric.replace("_", " "), figure, f.source)
        table.add_row(*map(Text, cells))
    console.print(table)


def _interval(metric: Metric, score: Score) -> str:
    interval = bounds(metric, score)
    if interval is None:
        return "-"
    return f"{number(metric, interval[0]).removesuffix(' %')} to {number(metric, interval[1])}"

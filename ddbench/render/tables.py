"""Results, plans and rankings as text."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddbench.contract.metric import Metric
from ddbench.contract.spec import HARD, Choice, Settings, Sweep
from ddbench.records.leaderboard import PublishedRow
from ddbench.records.ranking import Line, ranks
from ddbench.records.result import RunFolder, RunResult
from ddbench.records.stats import Difference, Score
from ddbench.render.live import duration

if TYPE_CHECKING:
    from ddbench.discovery.experiments import Experiment
    from ddbench.pipeline.dry_run import DryRun
    from ddbench.pipeline.sweep import Point


def number(metric: Metric, value: float, *, signed: bool = False) -> str:
    """Return `88.1 %` for a share, `0.412` for a plain number."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %" if metric.unit == "share" else f"{value:{sign}.4g}"


def points(metric: Metric, gap: float) -> str:
    """Return a signed difference: `+2.5` points of a share, `-0.012` of a plain number."""
    return f"{100 * gap:+.1f}" if metric.unit == "share" else f"{gap:+.3g}"


def bounds(metric: Metric, score: Score) -> tuple[float, float] | None:
    """Return the interval as far as the metric can reach: Student's t of two networks does not end at 100 %."""
    if score.low is None or score.high is None:
        return None
    return (max(0.0, score.low), min(1.0, score.high)) if metric.unit == "share" else (score.low, score.high)


def score_text(metric: Metric, score: Score) -> str:
    """Return `88.1 % (std 1.2, 95 % interval 87.5 to 88.6, n=20)`."""
    if score.n == 1:
        return f"{number(metric, score.mean)} (1 network, so no interval)"
    interval = bounds(metric, score)
    if score.std is None or interval is None:
        return f"{number(metric, score.mean)} (n={score.n})"
    scale, digits = (100, 1) if metric.unit == "share" else (1, 4)
    low, high, std = (f"{scale * v:.{digits}f}" for v in (*interval, score.std))
    return f"{number(metric, score.mean)} (std {std}, 95 % interval {low} to {high}, n={score.n})"


def score_lines(metric: Metric, score: Score, before: Score, companions: Mapping[str, Score]) -> Iterator[str]:
    """Yield the score, that of each companion, and that of networks before training."""
    width = max([len(metric.name), len("before training"), *(len(name) for name in companions)])
    yield f"{metric.name:<{width}}  {score_text(metric, score)}"
    for name, companion in companions.items():
        yield f"{name:<{width}}  {score_text(metric, companion)}; this run {_gap(metric, score, companion)}"
    yield f"{'before training':<{width}}  {number(metric, before.mean)}"


def fairness_lines(scores: Mapping[str, float]) -> Iterator[str]:
    """Yield IOR, HLR and LRS where all three apply."""
    if "LRS" in scores:
        yield "in fractions: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def _gap(metric: Metric, score: Score, companion: Score) -> str:
    gap = score.mean - companion.mean
    size = f"{100 * abs(gap):.1f} points" if metric.unit == "share" else f"{abs(gap):.4g}"
    if size in ("0.0 points", "0"):
        return "is as good"
    return f"is {size} {'better' if (gap > 0) == metric.higher_is_better else 'worse'}"


def result_lines(result: RunResult, folder: RunFolder, leaderboards: Path | None) -> Iterator[str]:
    """Yield the outcome of a run: the score in its context, the files, what to do next."""
    settings = result.settings
    yield ""
    if result.status != "ok" or result.score is None:
        reason = result.reason if result.reason.startswith(result.status) else f"{result.status}. {result.reason}"
        yield f"{settings.method.name} on {settings.dataset.name}: {reason}"
        if result.status == "interrupted":
            yield f"Go on with: ddbench resume {folder.path}"
        return
    yield from _score_in_context(result, result.score)
    yield ""
    for label, path in (
        ("images", folder.picture),
        ("curve", folder.curve),
        ("distilled set", folder.artifact),
        ("all figures", folder.result),
    ):
        if path.exists():
            yield f"  {label:<13}  {path}"
    if leaderboards is not None:
        where = "" if str(leaderboards) == "leaderboards" else f" --leaderboards {leaderboards}"
        yield ""
        yield "Next:"
        if not settings.smoke:
            yield f"  ddbench leaderboard --dataset {settings.dataset.name}{where}"
        yield f"  ddbench evaluate {folder.path}" + ("" if settings.target else " --network mlp")
        load = f"ddbench.DistilledSet.load('{folder.artifact}')"
        if result.artifact is not None and result.artifact.decoder:
            load = f"ddbench.decode({load})"
        yield f'  python -c "import ddbench; print({load}.flat()[0].shape)"'


def _score_in_context(result: RunResult, score: Score) -> Iterator[str]:
    """Yield the score beside its companions, other metrics, and what the run cost."""
    from ddbench.records.dd_ranking import fairness_of

    assert result.dataset and result.seconds and result.artifact and result.protocol
    data, artifact, loop = result.dataset.name, result.artifact, result.loop
    yield f"{result.settings.method.name} on {data}, {artifact.images} images, {setting(result.settings)}"
    for line in score_lines(result.metric, score, result.before[result.primary], result.companions):
        yield f"  {line}"
    for line in fairness_lines(fairness_of(result)):
        yield f"  {line}"
    for metric in result.metrics:
        if metric.beside and metric.name in result.scores:
            yield f"  {metric.name}  {score_text(metric, result.scores[metric.name])}"
    if result.protocol.selected != "nothing":
        yield f"  selected: {result.protocol.selected}"
    took = f"{duration(result.seconds.distill)} distilling, {duration(result.seconds.evaluate)} scoring"
    stopped = f", stopped by the {loop.stopped_by} after {loop.steps} outer steps" if loop.stopped_by else ""
    rolled_back = f", rolled back {loop.rollbacks} times" if loop.rollbacks else ""
    memory = f"peak memory {result.peak_memory_mb:.0f} MB"
    yield f"  {took}{stopped}{rolled_back}; {artifact.bytes / 1000:.1f} kB; {memory}"


def published_lines(experiment: "Experiment", result: RunResult) -> Iterator[str]:
    """Yield the published figure of an experiment beside the score of this run."""
    published = experiment.published
    if published is None or published.metric not in result.scores:
        return
    metric = result.metric_of(published.metric)
    spread = "" if published.std is None else f" +- {number(metric, published.std)}"
    score = number(metric, result.scores[metric.name].mean)
    yield ""
    yield f"Published: {metric.name} {number(metric, published.mean)}{spread}, {published.source}; here {score}"


def inits(settings: Settings) -> str:
    """Return the init distribution, and that of scoring where it is another."""
    init, scored = named(settings.init), named(settings.eval_init)
    return init if settings.eval_init == settings.init else f"{init}, scored from {scored}"


def setting(settings: Settings) -> str:
    """Return `mlp from random, 1 x 3 steps, replay/v1`."""
    network, steps = named(settings.network), f"{settings.steps} x {settings.epochs} steps"
    return f"{network} from {inits(settings)}, {steps}, {settings.protocol}"


def named(choice: Choice) -> str:
    """Return `convnet(width=32)`."""
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items() if value is not None)
    return f"{choice.name}({options})" if options else choice.name


def planned_data(planned: "DryRun") -> str:
    """Return the size of the data that a run would use, in words."""
    dataset = planned.dataset
    if dataset is None:
        return "not here yet"
    counts = f"{dataset.train} training, {dataset.validation} validation, {dataset.test} test images"
    return f"{dataset.name}: {counts}"


def plan_lines(planned: "DryRun") -> Iterator[str]:
    """Yield what a run would do, a line each."""
    spec = planned.settings
    memory = "not predicted"
    if planned.peak_memory is not None:
        memory = f"about {planned.peak_memory / 1e6:.0f} MB at the peak ({planned.memory_mode})"
    elif planned.missing:
        memory = "not known yet"
    yield "Would run:"
    for key, value in {
        "method": named(spec.method),
        "data": planned_data(planned),
        "network": named(spec.network),
        "init": inits(spec),
        "objective": named(spec.objective),
        "budget": f"{spec.images_per_class} images per class, {spec.steps} steps x {spec.epochs} epochs",
        "scoring": f"{spec.protocol} on {spec.eval_networks} networks",
        "seed": str(spec.seed),
        "memory": memory,
        "time limit": duration(spec.time_limit) if spec.time_limit else "none",
        "folder": str(planned.run_dir),
        "leaderboard": str(planned.leaderboard or "none (a smoke run leaves no record)"),
        "fingerprint": planned.fingerprint,
    }.items():
        yield f"  {key:<12} {value}"
    for sentence in planned.missing:
        yield f"  {'first':<12} {sentence}"


def ranking(groups: Sequence[Sequence[Line]]) -> None:
    """Print each group of comparable lines, best first, and what they cost where there is room for it."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=160)
    for lines in groups:
        console.print(Text(title(lines[0].first), style="bold"))
        console.print(_ranking_table(lines, wide=console.width >= 120))
        console.print()


def title(record: RunResult) -> str:
    """Return the title of a ranking: what its records have in common."""
    settings, data = record.settings, record.dataset.name if record.dataset else ""
    text = f"{data}, {settings.images_per_class} images per class, {settings.steps} x {settings.epochs} steps, "
    text += f"{named(settings.eval_network)} from {settings.eval_init.name}, {settings.protocol}"
    if settings.objective.name != Settings.model_fields["objective"].default.name:
        text += f", {named(settings.objective)}"
    regime = record.artifact.label_regime if record.artifact else ""
    text += "" if regime == HARD else f", {regime} labels"
    return text + (f", target {settings.target.name}" if settings.target else "")


def _ranking_table(lines: Sequence[Line], *, wide: bool) -> Table:
    first, metric = lines[0].first, lines[0].first.metric
    beside = [other for other in first.metrics if other.beside and other.name in first.scores]
    companions = sorted({name for line in lines for name in line.first.companions})
    cost = ("kB", "time") if wide else ()
    table = Table(box=None, pad_edge=False)
    gains = [f"over {name}" for name in companions]
    headings = ("", "method", metric.name, "95 % interval", "n", *(m.name for m in beside), *gains, *cost, "run")
    for heading in headings:
        left = heading in ("method", "run")
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=left)
    for rank, line, name in zip(ranks(lines), lines, _names(lines), strict=True):
        record, mean, seeds = line.first, line.score.mean, len(line.records)
        table.add_row(
            str(rank),
            name,
            number(metric, mean),
            _interval(metric, line.score),
            f"{seeds} x {line.score.n}" if seeds > 1 else str(line.score.n),
            *(number(m, sum(each.scores[m.name].mean for each in line.records) / seeds) for m in beside),
            *(_gain(record, mean, companion) for companion in companions),
            *(_cost(record) if wide else ()),
            record.run_id + (f" and {seeds - 1} other{'s' * (seeds > 2)}" if seeds > 1 else ""),
        )
    return table


def _gain(record: RunResult, mean: float, companion: str) -> str:
    if companion not in record.companions:
        return ""
    sign = 1 if record.metric.higher_is_better else -1
    return points(record.metric, sign * (mean - record.companions[companion].mean))


def _cost(record: RunResult) -> tuple[str, str]:
    assert record.artifact and record.seconds
    return f"{record.artifact.bytes / 1000:.1f}", duration(record.seconds.distill)


def _names(lines: Sequence[Line]) -> list[str]:
    """Return the method of each line, with what distinguishes it from other lines of the same method."""
    facts = [
        {
            **line.first.settings.method.options,
            "network": named(line.first.settings.network),
            "init": named(line.first.settings.init),
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


def sweep_table(sweep: Sweep, points: "Sequence[Point]", figure: str) -> None:
    """Print a sweep: a row for each run, with the figure that is drawn, the metric that ranks, and its companions."""
    table = Table(box=None, pad_edge=False)
    ranking_metric = points[0].result.metric
    companions = sorted({name for point in points for name in point.result.companions})
    figures = [points[0].result.metric_of(name) for name in dict.fromkeys([figure, ranking_metric.name])]
    for heading in (*(axis.name for axis in sweep.axes), *(f.name for f in figures), *companions, "time"):
        table.add_column(heading, justify="right")
    for point in points:
        cells = [str(value) for value in point.values]
        for metric in figures:
            mean, low, high = point.figure(metric.name)
            half = None if low is None or high is None else number(metric, (high - low) / 2).removesuffix(" %")
            cells.append(number(metric, mean) + ("" if half is None else f" +- {half}"))
        scores = point.result.companions
        cells += [number(ranking_metric, scores[name].mean) if name in scores else "" for name in companions]
        table.add_row(*cells, duration(point.result.seconds.distill) if point.result.seconds else "")
    console = Console(highlight=False)
    console.print(table)
    console.print("(+- half of the 95 % interval of the mean)")


def _interval(metric: Metric, score: Score) -> str:
    interval = bounds(metric, score)
    if interval is None:
        return "-"
    return f"{number(metric, interval[0]).removesuffix(' %')} to {number(metric, interval[1])}"

"""Results, plans, lists and rankings as text."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddbench.contract.spec import Choice, Settings, Sweep
from ddbench.records.leaderboard import PublishedRow, Row
from ddbench.records.ranking import Line, ranks
from ddbench.records.result import RunFolder, RunResult
from ddbench.records.stats import Difference, Score
from ddbench.render.live import duration

if TYPE_CHECKING:
    from ddbench.discovery.catalog import Experiment
    from ddbench.pipeline.dry_run import DryRun
    from ddbench.pipeline.sweep import Point

PERCENT = ("accuracy", "success")


def in_percent(metric: str) -> bool:
    """Whether people read this metric as a percentage; files always hold fractions."""
    return any(word in metric for word in PERCENT)


def number(metric: str, value: float, *, signed: bool = False) -> str:
    """`88.1 %` for shares, `0.412` for the rest."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %" if in_percent(metric) else f"{value:{sign}.4g}"


def points(metric: str, gap: float) -> str:
    """A signed difference: `+2.5` points for shares, `-0.012` for the rest."""
    return f"{100 * gap:+.1f}" if in_percent(metric) else f"{gap:+.3g}"


def bounds(metric: str, score: Score) -> tuple[float, float] | None:
    """The interval as far as the metric can reach: Student's t of two networks knows no 100 %."""
    if score.low is None or score.high is None:
        return None
    return (max(0.0, score.low), min(1.0, score.high)) if in_percent(metric) else (score.low, score.high)


def score_text(metric: str, score: Score) -> str:
    """`88.1 % (std 1.2, 95 % interval 87.5 to 88.6, 20 networks)`."""
    interval = bounds(metric, score)
    if score.std is None or interval is None:
        return f"{number(metric, score.mean)} (1 network, so no interval)"
    scale = 100 if in_percent(metric) else 1
    low, high, std = (f"{scale * v:.{1 if scale == 100 else 4}f}" for v in (*interval, score.std))
    return f"{number(metric, score.mean)} (std {std}, 95 % interval {low} to {high}, n={score.n})"


def score_lines(
    metric: str, score: Score, before: Score, companions: Mapping[str, Score], higher_is_better: bool
) -> Iterator[str]:
    """The score beside its companions and what networks do before training."""
    width = max([len(metric), len("before training"), *(len(name) for name in companions)])
    yield f"{metric:<{width}}  {score_text(metric, score)}"
    for name, companion in companions.items():
        gap = _gap(metric, score, companion, higher_is_better)
        yield f"{name:<{width}}  {score_text(metric, companion)}; this run {gap}"
    yield f"{'before training':<{width}}  {number(metric, before.mean)}"


def fairness_lines(scores: Mapping[str, float]) -> Iterator[str]:
    """IOR, HLR and LRS, where all three apply."""
    if "LRS" in scores:
        yield "in fractions: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def _gap(metric: str, score: Score, companion: Score, higher_is_better: bool) -> str:
    gap = score.mean - companion.mean
    size = f"{100 * abs(gap):.1f} points" if in_percent(metric) else f"{abs(gap):.4g}"
    if size in ("0.0 points", "0"):
        return "is as good"
    return f"is {size} {'better' if (gap > 0) == higher_is_better else 'worse'}"


def result_lines(result: RunResult, folder: RunFolder, leaderboards: Path | None) -> Iterator[str]:
    """A run's outcome as a person wants it: the score in its context, the files, what to do next."""
    spec = result.spec
    yield ""
    if result.status != "ok" or result.score is None:
        told = result.reason if result.reason.startswith(result.status) else f"{result.status}. {result.reason}"
        yield f"{spec.method.name} on {spec.dataset.name}: {told}"
        if result.status == "interrupted":
            yield f"Go on with: ddbench resume {folder.path}"
        return
    assert result.dataset and result.seconds and result.artifact
    yield f"{spec.method.name} on {result.dataset.name}, {result.artifact.images} images, {setting(spec)}"
    lines = score_lines(
        result.primary, result.score, result.before[result.primary], result.companions, result.higher_is_better
    )
    for line in lines:
        yield f"  {line}"
    from ddbench.records.dd_ranking import fairness

    means = {name: score.mean for name, score in result.companions.items()}
    fair = fairness(result.primary, result.score.mean, means, hard=result.artifact.label_regime == "hard")
    for line in fairness_lines(fair):
        yield f"  {line}"
    for name in ("accuracy", "accuracy_others"):
        if name in result.scores and name != result.primary:
            yield f"  {name}  {score_text(name, result.scores[name])}"
    if result.selected != "nothing":
        yield f"  selected: {result.selected}"
    took = f"{duration(result.seconds.distill)} distilling, {duration(result.seconds.evaluate)} scoring"
    stopped = f", stopped by the {result.stopped_by} after {result.steps_done} outer steps" if result.stopped_by else ""
    again = f", rolled back {result.rollbacks} times" if result.rollbacks else ""
    yield f"  {took}{stopped}{again}; {result.artifact.bytes / 1000:.1f} kB; peak memory {result.peak_memory_mb:.0f} MB"
    yield ""
    for what, path in (
        ("images", folder.picture),
        ("curve", folder.curve),
        ("distilled set", folder.artifact),
        ("all figures", folder.result),
    ):
        if path.exists():
            yield f"  {what:<13}  {path}"
    if leaderboards is not None:
        where = "" if str(leaderboards) == "leaderboards" else f" --leaderboards {leaderboards}"
        yield ""
        yield "Next:"
        if not spec.smoke:
            yield f"  ddbench leaderboard --dataset {spec.dataset.name}{where}"
        yield f"  ddbench evaluate {folder.path}" + ("" if spec.target else " --network mlp")
        yield f"  python -c \"import ddbench; print(ddbench.DistilledSet.load('{folder.artifact}').flat()[0].shape)\""


def published_lines(experiment: "Experiment", result: RunResult) -> Iterator[str]:
    """The published figure an experiment answers to, marked as such."""
    published = experiment.published
    if published is None or published.metric not in result.scores:
        return
    spread = "" if published.std is None else f" +- {number(published.metric, published.std)}"
    ours = number(published.metric, result.scores[published.metric].mean)
    yield ""
    theirs = number(published.metric, published.mean) + spread
    yield f"Published: {published.metric} {theirs}, {published.source}; here {ours}"


def _inits(spec: Settings) -> str:
    """The init distribution, and that of scoring where it is another."""
    init = named(spec.init)
    return init if spec.eval_init == spec.init else f"{init}, scored from {named(spec.eval_init)}"


def setting(spec: Settings) -> str:
    """`mlp from random, 1 step x 3 epochs, replay/v1`."""
    network = named(spec.network)
    return f"{network} from {_inits(spec)}, {spec.steps} x {spec.epochs} steps, {spec.protocol}"


def named(choice: Choice) -> str:
    """`convnet(width=32)`."""
    options = ", ".join(f"{key}={value}" for key, value in choice.options.items() if value is not None)
    return f"{choice.name}({options})" if options else choice.name


def plan_lines(planned: "DryRun") -> Iterator[str]:
    """Yield what a run would do, a line each."""
    spec, dataset = planned.settings, planned.dataset
    data = "not here yet"
    if dataset is not None:
        counts = f"{dataset.train} training, {dataset.validation} validation, {dataset.test} test images"
        data = f"{dataset.name}: {counts}"
    memory = "not predicted"
    if planned.peak_memory is not None:
        memory = f"about {planned.peak_memory / 1e6:.0f} MB at the peak ({planned.memory_mode})"
    elif planned.missing:
        memory = "not known yet"
    yield "Would run:"
    for key, value in {
        "method": named(spec.method),
        "data": data,
        "network": named(spec.network),
        "init": _inits(spec),
        "objective": named(spec.objective),
        "budget": f"{spec.images_per_class} images per class, {spec.steps} steps x {spec.epochs} epochs",
        "scoring": f"{spec.protocol} on {spec.eval_networks} networks",
        "seed": str(spec.seed),
        "memory": memory,
        "time limit": duration(spec.time_limit) if spec.time_limit else "none",
        "folder": str(planned.run_dir),
        "leaderboard": str(planned.leaderboard or "none (a smoke run leaves no row)"),
        "fingerprint": planned.fingerprint,
    }.items():
        yield f"  {key:<12} {value}"
    for sentence in planned.missing:
        yield f"  {'first':<12} {sentence}"


def ranking(groups: Sequence[Sequence[Line]]) -> None:
    """Print each group of comparable rows, best first; what it cost, where there is room for it."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=160)
    for lines in groups:
        first = lines[0].first
        title = (
            f"{first.dataset}, {first.images_per_class} images per class, {first.steps} x {first.epochs} steps, "
            f"{with_options(first.network, first.network_options)} from {first.eval_init}, {first.protocol}"
        )
        if first.objective != "classification":
            title += f", {with_options(first.objective, first.objective_options)}"
        regime = "" if first.label_regime == "hard" else f", {first.label_regime} labels"
        console.print(Text(title + regime + (f", target {first.target}" if first.target else ""), style="bold"))
        table = Table(box=None, pad_edge=False)
        names = sorted({name for line in lines for name in line.first.companion_scores()})
        wide = console.width >= 120
        # What a method must not give up for its score: under poisoning, the accuracy.
        beside = [m for m in ("accuracy", "accuracy_others") if m != first.metric and m in json.loads(first.metrics)]
        gains = [f"over {name}" for name in names]
        cost = ("kB", "time") if wide else ()
        for heading in ("", "method", first.metric, "95 % interval", "n", *beside, *gains, *cost, "run"):
            left = heading in ("method", "run")
            table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=left)
        for rank, line, name in zip(ranks(lines), lines, _names(lines), strict=True):
            row, mean, seeds = line.first, line.score.mean, len(line.rows)
            found = row.companion_scores()
            sign = 1 if row.higher_is_better else -1
            gained = [
                points(row.metric, sign * (mean - found[name]["mean"])) if name in found else "" for name in names
            ]
            each = [json.loads(one.metrics) for one in line.rows]
            table.add_row(
                str(rank),
                name,
                number(row.metric, mean),
                _interval(row.metric, line.score),
                f"{seeds} x {row.n}" if seeds > 1 else str(row.n),
                *(number(name, sum(metrics[name] for metrics in each) / seeds) for name in beside),
                *gained,
                *((f"{row.bytes / 1000:.1f}", duration(row.seconds_distill)) if wide else ()),
                row.run_id + (f" and {seeds - 1} other{'s' * (seeds > 2)}" if seeds > 1 else ""),
            )
        console.print(table)
        console.print()


def _names(lines: Sequence[Line]) -> list[str]:
    """The method of each line, with what tells it from other lines of the same method."""
    told = [
        {
            **json.loads(line.first.method_options),
            "init": with_options(line.first.init, line.first.init_options),
            "from": line.first.method_source.rpartition("@")[2],
            "pools": line.first.pretrained,
        }
        for line in lines
    ]
    found = []
    for line, own in zip(lines, told, strict=True):
        others = [t for other, t in zip(lines, told, strict=True) if other.first.method == line.first.method]
        apart = [f"{key}={own.get(key)}" for key in own if any(other.get(key) != own[key] for other in others)]
        shown = [text for text in apart if not text.startswith("pools=")] or ["other pools"] * bool(apart)
        found.append(line.first.method + (f" ({', '.join(shown[:3])}{', ...' * (len(shown) > 3)})" if shown else ""))
    return found


def difference_line(first: Row, second: Row, difference: Difference) -> str:
    """`A is 3.1 points better than B (95 % interval 1.0 to 5.2, n=20 networks)`, or that none is shown."""
    metric, scale = first.metric, 100 if in_percent(first.metric) else 1
    unit = " points" if scale == 100 else ""
    pairs = f"n={difference.n} {difference.of}" + (" of one seed each" if difference.of == "networks" else "")
    if difference.low is None or difference.high is None:
        return (
            f"{metric}: {first.method} {scale * difference.mean:+.4g}{unit}; one pair supports no interval ({pairs})."
        )
    interval = f"95 % interval {scale * difference.low:+.3g} to {scale * difference.high:+.3g}{unit}, {pairs}"
    if not difference.shown:
        return f"{metric}: no difference shown ({interval})."
    better = (difference.mean > 0) == first.higher_is_better
    gap = f"{abs(scale * difference.mean):.3g}{unit} {'better' if better else 'worse'}"
    return f"{metric}: {first.run_id} is {gap} than {second.run_id} ({interval})."


def published_table(figures: Sequence[PublishedRow]) -> None:
    """Print published figures, which are others' and were made under other protocols."""
    if not figures:
        return
    console = Console(highlight=False)
    console.print(Text("Published elsewhere, under other protocols; not measured here and not ranked", style="bold"))
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "images per class", "network", "setting", "", "source"):
        table.add_column(heading, overflow="fold")
    for f in figures:
        spread = "" if f.std is None else f" +- {number(f.metric, f.std)}"
        metric = "" if f.metric == "accuracy" else f"{f.metric} "
        mean = f"{metric}{number(f.metric, f.mean)}{spread}"
        table.add_row(*map(Text, (f.method, str(f.images_per_class), f.network, f.setting, mean, f.source)))
    console.print(table)


def sweep_table(sweep: Sweep, points: "Sequence[Point]", figure: str) -> None:
    """Print a sweep: a row for each run, the figure that is drawn before the primary metric and its companions."""
    table = Table(box=None, pad_edge=False)
    primary = points[0].result.primary
    companions = sorted({name for point in points for name in point.result.companions})
    names = list(dict.fromkeys([figure, primary]))
    for heading in (*(axis.name for axis in sweep.axes), *names, *companions, "time"):
        table.add_column(heading, justify="right")
    for point in points:
        cells = [str(value) for value in point.values]
        for name in names:
            mean, low, high = point.figure(name)
            spread = "" if low is None or high is None else f" +- {number(name, (high - low) / 2).removesuffix(' %')}"
            cells.append(number(name, mean) + spread)
        found = point.result.companions
        cells += [number(primary, found[name].mean) if name in found else "" for name in companions]
        table.add_row(*cells, duration(point.result.seconds.distill) if point.result.seconds else "")
    console = Console(highlight=False)
    console.print(table)
    console.print("(+- half of the 95 % interval of the mean)")


def with_options(name: str, options: str) -> str:
    """A part with its options, from their JSON."""
    return named(Choice(name=name, options=json.loads(options)))


def _interval(metric: str, score: Score) -> str:
    interval = bounds(metric, score)
    if interval is None:
        return "-"
    return f"{number(metric, interval[0]).removesuffix(' %')} to {number(metric, interval[1])}"

"""Results, plans and sweeps as text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ddbench.contract.attack import attacks_named
from ddbench.contract.metric import Metric, missed_thresholds
from ddbench.contract.spec import Settings, Sweep
from ddbench.records.attacks import AttackRecord
from ddbench.records.columns import phrases
from ddbench.records.result import NO_ADAPTATION, Artifact, Companion, RunFolder, RunResult
from ddbench.records.stats import Score
from ddbench.render.live import duration

if TYPE_CHECKING:
    from ddbench.discovery.experiments import Experiment
    from ddbench.pipeline.dry_run import DryRun
    from ddbench.pipeline.sweep import Point

SHOWN_LINES = 12
"""Distilled examples that are printed in words."""


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


def score_lines(
    metrics: Sequence[Metric],
    scores: Mapping[str, Score],
    before: Score,
    companions: Mapping[str, Companion],
    regime: str,
) -> Iterator[str]:
    """Yield the score in the first metric, that of each companion, and that of networks before training.

    `regime` is the label regime of the set; a companion of another one, or that misses a threshold, is marked.
    """
    metric, score = metrics[0], scores[metrics[0].name]
    width = max([len(metric.name), len("before training"), *(len(name) for name in companions)])
    missed = "".join(f"; {text}" for text in shortfalls(metrics, {name: each.mean for name, each in scores.items()}))
    yield f"{metric.name:<{width}}  {score_text(metric, score)}{missed}"
    for name, companion in companions.items():
        remarks = "".join(f"; {text}" for text in companion_remarks(metrics, name, companion, regime))
        yield f"{name:<{width}}  {score_text(metric, companion)}; this run {_gap(metric, score, companion)}{remarks}"
    yield f"{'before training':<{width}}  {number(metric, before.mean)}"


def shortfalls(metrics: Sequence[Metric], means: Mapping[str, float]) -> list[str]:
    """Return `accuracy_others 12.6 % misses 50.0 %` for each threshold that the means miss."""
    return [
        f"{metric.name} {number(metric, means[metric.name])} misses {number(metric, metric.threshold)}"
        if metric.name in means
        else f"{metric.name} was not recorded"
        for metric in missed_thresholds(metrics, means)
        if metric.threshold is not None
    ]


def companion_remarks(metrics: Sequence[Metric], name: str, companion: Companion, regime: str) -> list[str]:
    """Return the labels of a companion where they are not of the set's `regime`, and the thresholds it misses."""
    labels = companion.regime_beside(name, regime)
    remarks = [f"{labels} labels"] if labels not in ("", regime) else []
    # Networks that nothing was done to are the point of reference, not a rival.
    return remarks if name == NO_ADAPTATION else remarks + shortfalls(metrics, companion.metrics)


def beside_lines(
    metrics: Sequence[Metric],
    scores: Mapping[str, Score],
    companions: Mapping[str, Companion],
    attacks: Sequence[AttackRecord],
) -> Iterator[str]:
    """Yield each metric beside the one that ranks, with the means of companions in it, and the budgets of attacks."""
    for metric in metrics:
        if metric.beside and metric.name in scores:
            means = {name: companion.metrics.get(metric.name) for name, companion in companions.items()}
            others = "".join(f"; {name} {number(metric, mean)}" for name, mean in means.items() if mean is not None)
            yield f"{metric.name}  {score_text(metric, scores[metric.name])}{others}"
    for attack in attacks:
        yield f"{attack}"


def fairness_lines(scores: Mapping[str, float]) -> Iterator[str]:
    """Yield IOR, HLR and LRS where all three apply."""
    if "LRS" in scores:
        yield "in fractions: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def _gap(metric: Metric, score: Score, companion: Score) -> str:
    gap = score.mean - companion.mean
    size = f"{100 * abs(gap):.1f} points" if metric.unit == "share" else f"{abs(gap):.4g}"
    better = "better" if (gap > 0) == metric.higher_is_better else "worse"
    text = "is as good" if size in ("0.0 points", "0") else f"is {size} {better}"
    ends = (score.low, score.high, companion.low, companion.high)
    low, high, other_low, other_high = (math.nan if end is None else end for end in ends)
    return f"{text}, but the intervals overlap" if low <= other_high and other_low <= high else text


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
    yield from _score_in_context(result)
    yield from _first_lines(folder)
    yield ""
    for label, path in (
        ("images", folder.picture),
        ("in words", folder.lines),
        ("sounds", folder.path / "sounds"),
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
        if not settings.smoke and settings.split == "test":
            yield f"  ddbench leaderboard --dataset {settings.dataset.name}{where}"
        yield f"  ddbench evaluate {folder.path}" + ("" if settings.target else " --network mlp")
        load = f"ddbench.DistilledSet.load('{folder.artifact}')"
        if result.artifact is not None and result.artifact.decoder:
            load = f"ddbench.decode({load})"
        yield f'  python -c "import ddbench; print({load}.flat()[0].shape)"'


def _first_lines(folder: RunFolder) -> Iterator[str]:
    """Yield the distilled examples in words, where the modality has words for them: the first ones."""
    if folder.lines.exists():
        lines = folder.lines.read_text().splitlines()
        yield ""
        yield from (f"  {line}" for line in lines[:SHOWN_LINES])
        if len(lines) > SHOWN_LINES:
            yield f"  ... {len(lines) - SHOWN_LINES} more in {folder.lines}"


def _score_in_context(result: RunResult) -> Iterator[str]:
    """Yield the score beside its companions, other metrics, and what the run cost."""
    from ddbench.records.dd_ranking import fairness_of

    assert result.dataset and result.seconds and result.artifact and result.protocol
    data, artifact, loop = result.dataset.name, result.artifact, result.loop
    facts = [f"{artifact.images} images", setting(result.settings), *phrases(result, usual=True)]
    yield f"{result.settings.method.name} on {data}, {', '.join(facts)}"
    before = result.before[result.primary]
    for line in score_lines(result.metrics, result.scores, before, result.companions, artifact.label_regime):
        yield f"  {line}"
    for line in fairness_lines(fairness_of(result)):
        yield f"  {line}"
    for line in beside_lines(result.metrics, result.scores, result.companions, result.attacks):
        yield f"  {line}"
    if result.protocol.selected != "nothing":
        yield f"  selected: {result.protocol.selected}"
    passes = f" ({loop.passes:,} passes)" if loop.passes else ""
    took = f"{distilling(result)} distilling{passes}, {duration(result.seconds.evaluate)} scoring"
    stopped = f", stopped by the {loop.stopped_by} after {loop.steps} outer steps" if loop.stopped_by else ""
    if loop.empty:
        stopped += f" ({loop.empty} {'loops' if loop.empty > 1 else 'loop'} took none)"
    rolled_back = f", rolled back {loop.rollbacks} times" if loop.rollbacks else ""
    memory = f"peak memory {result.peak_memory_mb:.0f} MB"
    yield f"  {took}{stopped}{rolled_back}; {kilobytes(artifact)} kB; {memory}"


def kilobytes(artifact: Artifact) -> str:
    """Return the size of a set in kB; beside labels that are more than class numbers, the part that they take."""
    size, labels = f"{artifact.bytes / 1000:.1f}", artifact.label_bytes
    return size if labels is None or labels <= 8 * artifact.images else f"{size} (labels {labels / 1000:.1f})"


def distilling(record: RunResult) -> str:
    """Return the time of the distillation, `2.1 s (+ 1 min 20 s cached)` where other runs did a part of the work."""
    assert record.seconds
    cached = f" (+ {duration(record.seconds.saved)} cached)" if record.seconds.saved else ""
    return duration(record.seconds.distill) + cached


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
    init, scored = str(settings.init), str(settings.eval_init)
    return init if settings.eval_init == settings.init else f"{init}, scored from {scored}"


def setting(settings: Settings) -> str:
    """Return `mlp from random, 1 x 3 steps, replay/v1`."""
    network, steps = str(settings.network), f"{settings.steps} x {settings.epochs} steps"
    split = "" if settings.split == "test" else f" on the {settings.split} slice"
    return f"{network} from {inits(settings)}, {steps}, {settings.protocol}{split}"


def planned_data(planned: "DryRun") -> str:
    """Return the size of the data that a run would use, in words."""
    dataset = planned.dataset
    if dataset is None:
        return "not looked at" if planned.skipped else "not here yet"
    counts = f"{dataset.train} training, {dataset.validation} validation, {dataset.test} test images"
    return f"{dataset.name}: {counts}"


def plan_lines(planned: "DryRun") -> Iterator[str]:
    """Yield what a run would do, a line each."""
    spec = planned.settings
    memory = "not predicted"
    if planned.peak_memory is not None:
        memory = f"about {planned.peak_memory / 1e6:.0f} MB at the peak ({planned.memory_mode})"
    elif planned.missing or planned.skipped:
        memory = "not known yet" if planned.missing else "not looked at"
    yield f"Would skip this run: {planned.skipped}" if planned.skipped else "Would run:"
    for key, value in {
        "method": str(spec.method),
        **({"recipe": planned.recipe} if planned.recipe else {}),
        "data": planned_data(planned),
        "network": str(spec.network),
        "init": inits(spec),
        "objective": str(spec.objective),
        "budget": f"{spec.images_per_class} images per class, {spec.steps} steps x {spec.epochs} epochs",
        "scoring": f"{spec.protocol} on {spec.eval_networks} networks",
        **({"attacks": "; ".join(map(str, attacks_named(spec.attack)))} if spec.attack else {}),
        "seed": str(spec.seed),
        "memory": memory,
        "time limit": duration(spec.time_limit) if spec.time_limit else "none",
        **({"pass limit": f"{spec.pass_limit:,}"} if spec.pass_limit else {}),
        "folder": str(planned.run_dir),
        "leaderboard": str(planned.leaderboard or "none (a smoke run leaves no record)"),
        "fingerprint": planned.fingerprint,
    }.items():
        yield f"  {key:<12} {value}"
    for sentence in planned.missing:
        yield f"  {'first':<12} {sentence}"


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

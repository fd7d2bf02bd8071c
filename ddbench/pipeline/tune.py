"""Choose options of a method on the validation slice of a suite's tasks, by Optuna; the test split is not read."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from ddbench.contract.observer import Reporter, Silent
from ddbench.discovery.catalog import Catalog
from ddbench.discovery.suites import Suite
from ddbench.errors import DdbenchError, MissingPrerequisite, UsageError
from ddbench.machine.files import atomic_write, in_use, sha256
from ddbench.pipeline.jobs import Job, Outcome, carry_out
from ddbench.pipeline.suite import plan_suite

if TYPE_CHECKING:
    import optuna

STARTUP = 4
"""Trials that are drawn at random before the sampler learns from them, and that are never pruned."""
RATIO = 10
"""Ratio of the ends of a range from which on it is drawn evenly in its logarithm."""


@dataclass(frozen=True)
class Space:
    """The values that an option is drawn from: a range, or a list of choices.

    Attributes:
        option: the option.
        choices: the values to choose from; empty for a range.
        low: lower end of the range.
        high: upper end of the range, included.
    """

    option: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0

    def draw(self, trial: "optuna.Trial") -> Any:
        """Return the value of a trial; ranges whose ends differ by a factor of 10 are drawn in the logarithm."""
        if self.choices:
            # Optuna keeps choices as plain values.
            return json.loads(trial.suggest_categorical(self.option, [json.dumps(value) for value in self.choices]))
        log = self.low > 0 and self.high >= RATIO * self.low
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.option, self.low, self.high, log=log)
        return trial.suggest_float(self.option, self.low, self.high, log=log)


class Trial(pydantic.BaseModel):
    """A trial of a tuning.

    Attributes:
        options: the options that were tried.
        state: `complete`, `pruned` after a part of the tasks, or `failed`.
        gain: mean gain over the reference on the validation slices of the tasks that were run; None where none was.
    """

    options: dict[str, Any]
    state: str
    gain: float | None


class Tuning(pydantic.BaseModel):
    """The trials of a tuning, in their order, and the options of the best.

    Attributes:
        method: the method.
        trials: the trials.
        best: the options of the complete trial with the largest mean gain.
        folder: the folder of the study.
    """

    method: str
    trials: tuple[Trial, ...]
    best: dict[str, Any]
    folder: Path


def parse_space(texts: Sequence[str]) -> list[Space]:
    """Return the spaces of `["outer_lr=0.001..0.1", "schedule=step,cosine"]`. Raises `UsageError` for other text."""
    spaces = []
    for text in texts:
        option, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not option.isidentifier() or not values:
            raise UsageError(
                f"--try {text!r} is not of the form KEY=LOW..HIGH or KEY=VALUE,VALUE.",
                "Such as --try outer_lr=0.001..0.1",
            )
        low, dots, high = values.partition("..")
        if not dots:
            spaces.append(Space(option, tuple(_value(value) for value in values.split(","))))
            continue
        ends = _value(low), _value(high)
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends) or ends[0] >= ends[1]:
            raise UsageError(f"--try {text!r}: {values} is not a range.", "Write the smaller number first: 0.001..0.1")
        spaces.append(Space(option, low=ends[0], high=ends[1]))
    if not spaces:
        raise UsageError("nothing was named to tune.", "Name options of the method: --try outer_lr=0.001..0.1")
    return spaces


def tune(
    suite: Suite | str,
    method: str,
    spaces: Sequence[Space],
    trials: int,
    *,
    options: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
    reporter: Reporter | None = None,
) -> Tuning:
    """Try options of a method until `trials` were tried in all, and return them: what `ddbench suite tune` does first.

    A trial runs the method on each task with the first of its seeds, scored on the validation slice. Its value is the
    mean gain over the suite's reference. A trial that is shown to be worse than the best so far on the same tasks is
    pruned (Wilcoxon's signed-rank test). The study is kept beside the runs, and the same call goes on with it.

    Raises `MissingPrerequisite` without Optuna, `UsageError` for an option that does not exist, and `DdbenchError`
    where no trial is complete.
    """
    study_module = _optuna()
    catalog, reporter = catalog or Catalog(), reporter or Silent()
    suite = catalog.suite(suite) if isinstance(suite, str) else suite
    suite = suite.model_copy(
        update={"tasks": tuple(task.model_copy(update={"seeds": task.seeds[:1]}) for task in suite.tasks)}
    )
    on_validation = {**(fields or {}), "split": "validation"}

    def jobs(chosen: Mapping[str, Any]) -> list[Job]:
        settings = {method: {**(options or {}), **chosen}}
        return list(plan_suite(suite, [method], catalog, settings, on_validation).values())

    # The ends of every range are valid options, or nothing is tried.
    first = jobs({})
    for space in spaces:
        for value in space.choices or (space.low, space.high):
            jobs({space.option: value})
    key = json.dumps([[job.plan.settings.fingerprint for job in first], [str(space) for space in spaces]])
    folder = runs / f"tune-{suite.name}-{method}-{sha256(key.encode())[:6]}"
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        study = _open(study_module, folder)
        while (number := len(_counted(study))) < trials:
            trial = study.ask()
            chosen = {space.option: space.draw(trial) for space in spaces}
            reporter.say(f"Trial {number + 1} of {trials}: {', '.join(f'{k}={v}' for k, v in chosen.items())}")
            _try(study, trial, jobs(chosen), suite.reference, catalog, runs, leaderboards, reporter)
        done = tuple(_described(trial, spaces) for trial in _counted(study))
    complete = [trial for trial in done if trial.state == "complete" and trial.gain is not None]
    if not complete:
        raise DdbenchError(f"no trial of {method} is complete.", "See the reasons above; the ranges may be too wide.")
    best = max(complete, key=lambda trial: trial.gain if trial.gain is not None else -math.inf)
    tuning = Tuning(method=method, trials=done, best=best.options, folder=folder)
    atomic_write(folder / "trials.json", tuning.model_dump_json(indent=2) + "\n")
    return tuning


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPrerequisite("tuning needs the package optuna.", "pip install 'ddbench[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(module: Any, folder: Path) -> "optuna.Study":
    """Return the study in `folder`; a trial that was interrupted is the next to be tried, so that its runs go on."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        # The pruner is called experimental for what may become of its arguments.
        warnings.simplefilter("ignore", module.exceptions.ExperimentalWarning)
        pruner = module.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2)
    study: optuna.Study = module.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "study.jsonl"))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    study.sampler = module.samplers.TPESampler(seed=len(study.trials), n_startup_trials=STARTUP)
    for trial in study.get_trials(states=[module.trial.TrialState.RUNNING]):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=module.trial.TrialState.FAIL)
    return study


def _counted(study: "optuna.Study") -> list[Any]:
    """Return the trials that count: those that ended, but for those that were interrupted and are tried again."""
    return [t for t in study.trials if t.state.is_finished() and (t.state.name != "FAIL" or "failed" in t.user_attrs)]


def _try(
    study: "optuna.Study",
    trial: "optuna.Trial",
    jobs: Sequence[Job],
    reference: str,
    catalog: Catalog,
    runs: Path,
    leaderboards: Path,
    reporter: Reporter,
) -> None:
    """Run the jobs of a trial, task by task, until it is pruned or complete."""
    import optuna

    gains: list[float] = []
    for number, job in enumerate(jobs):
        [outcome] = carry_out([job], catalog, runs=runs, leaderboards=leaderboards, reporter=reporter)
        gain = _gain(outcome, reference)
        if gain is None:
            if outcome.state == "skipped":
                continue
            trial.set_user_attr("failed", outcome.reason)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        gains.append(gain)
        trial.set_user_attr("gain", math.fsum(gains) / len(gains))
        trial.report(gain, number)
        if number + 1 < len(jobs) and trial.should_prune():
            reporter.say(f"Pruned after {number + 1} of {len(jobs)} tasks.")
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
    if gains:
        study.tell(trial, math.fsum(gains) / len(gains))
    else:
        trial.set_user_attr("failed", "the method supports none of the tasks.")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _gain(outcome: Outcome, reference: str) -> float | None:
    """Return the gain of a run over its companion `reference`; None where there is none."""
    result = outcome.result
    if result is None or result.score is None or reference not in result.companions:
        return None
    sign = 1 if result.metric.higher_is_better else -1
    return sign * (result.score.mean - result.companions[reference].mean)


def _described(trial: Any, spaces: Sequence[Space]) -> Trial:
    choices = {space.option for space in spaces if space.choices}
    options = {name: json.loads(value) if name in choices else value for name, value in trial.params.items()}
    state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    return Trial(options=options, state=state, gain=trial.user_attrs.get("gain"))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()

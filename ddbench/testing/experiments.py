"""Checks of named experiments. The file itself was read, and its fields checked, when its plugin was loaded."""

import math
from collections.abc import Iterator, Sequence

import torch

from ddbench.contract.component import did_you_mean
from ddbench.contract.spec import RunSpec, Settings, place_assignments
from ddbench.discovery.catalog import Experiment
from ddbench.pipeline.plan import plan_run
from ddbench.testing import tiny as small
from ddbench.testing.checks import Check, Failed, Skipped, Subject


def _experiment(subject: Subject) -> Experiment:
    assert isinstance(subject.thing, Experiment)
    return subject.thing


def _specs(subject: Subject) -> Iterator[Settings]:
    """Yield the completed spec of the experiment, or of each point of its sweep."""
    experiment = _experiment(subject)
    spec = RunSpec.parse(experiment.spec)
    yield plan_run(spec, subject.catalog).settings
    options = set(subject.catalog.get("method", spec.method.name).options.model_fields)
    for _, assignments in experiment.sweep.assignments() if experiment.sweep else ():
        point = RunSpec.parse(place_assignments(experiment.spec, assignments, options))
        yield plan_run(point, subject.catalog).settings


def says_what_it_is(subject: Subject) -> None:
    """Require a summary, which `ddbench list` shows."""
    if len(_experiment(subject).summary) < 15:
        raise Failed(f"its summary is {_experiment(subject).summary!r}.", 'Write `summary = "..."`, one line.')


def is_a_complete_spec(subject: Subject) -> None:
    """Require a spec whose components and options are known, at every point of its sweep."""
    for spec in _specs(subject):
        if spec.seed != 0 or spec.smoke or spec.device != "auto":
            raise Failed("it sets seed, smoke or device, which belong to a run.", "Leave them out of the file.")


def published_figure_is_sound(subject: Subject) -> None:
    """Require a published figure of a metric that the objective measures, finite, with its source."""
    published = _experiment(subject).published
    if published is None:
        raise Skipped("it has no published figure")
    spec = next(_specs(subject))
    train, _ = small.examples(1, 3)
    component = subject.catalog.get("objective", spec.objective.name)
    objective = component.call(component.validated({}), train.info)
    metrics = objective.measure(torch.eye(3)[train.labels], train.labels)
    if published.metric not in metrics:
        raise Failed(
            f"{spec.objective.name} does not measure {published.metric!r}.{did_you_mean(published.metric, metrics)}",
            f"Write metric as one of {', '.join(metrics)}.",
        )
    if not math.isfinite(published.mean) or (published.std is not None and not 0 <= published.std < math.inf):
        raise Failed(f"its mean is {published.mean} and its std {published.std}.", "Write finite numbers.")
    if len(published.source.strip()) < 5:
        raise Failed(f"its source is {published.source!r}.", 'Write `source = "Author et al. YEAR, Table N"`.')


EXPERIMENT: Sequence[Check] = (says_what_it_is, is_a_complete_spec, published_figure_is_sound)

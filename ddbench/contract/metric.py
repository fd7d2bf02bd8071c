"""The description of a metric: its name, unit and direction, and how tables show it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", ""]
"""`share`: a fraction that people read as a percentage; empty: a plain number."""


@dataclass(frozen=True)
class Metric:
    """A metric that an objective measures. Files hold its raw value; a share is shown as a percentage.

    Attributes:
        name: name of the metric, as `Objective.measure` gives it.
        unit: `share` for a fraction in [0, 1] that people read as a percentage; empty for a plain number.
        higher_is_better: the direction.
        beside: show it beside the metric that ranks, because it must not be given up for that one.
        bounded_by_full_data: networks trained on the full training data bound it, as they do for the accuracy of a
            classifier. Their score is then a companion, and gains and losses to it are reported (DD-Ranking).
        threshold: the value that its mean must reach, from below where higher is better and from above otherwise; None
            for any value. A row that misses it is ranked behind all rows that do not.
    """

    # Pydantic refuses unknown fields, so that a record of a later version is noticed.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    name: str
    unit: Unit = ""
    higher_is_better: bool = True
    beside: bool = False
    bounded_by_full_data: bool = False
    threshold: float | None = None

    def reaches_threshold(self, mean: float) -> bool:
        """Return True if `mean` reaches the threshold, or there is none."""
        if self.threshold is None:
            return True
        return mean >= self.threshold if self.higher_is_better else mean <= self.threshold


def missed_thresholds(metrics: Iterable[Metric], means: Mapping[str, float]) -> list[Metric]:
    """Return the metrics whose threshold the means miss; a metric that was not measured misses it."""
    return [
        m for m in metrics if m.threshold is not None and not (m.name in means and m.reaches_threshold(means[m.name]))
    ]

"""The description of a metric: its name, unit and direction, and how tables show it."""

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
    """

    # Pydantic refuses unknown fields, so that a record of a later version is noticed.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    name: str
    unit: Unit = ""
    higher_is_better: bool = True
    beside: bool = False
    bounded_by_full_data: bool = False

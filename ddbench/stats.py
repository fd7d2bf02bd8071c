"""Summaries of repeated measurements: mean, spread and the interval they support."""

import math
from collections.abc import Sequence

import pydantic


class Score(pydantic.BaseModel):
    """One figure over `n` networks.

    `std` is the sample standard deviation (n - 1) over networks, `low` and `high` bound the 95 % confidence interval
    of the mean (Student's t). All three are None for a single network, which supports none.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int
    values: list[float]


def summarise(values: Sequence[float], confidence: float = 0.95) -> Score:
    """The `Score` of raw values, one per network. Raises `ValueError` for none."""
    n = len(values)
    if n == 0:
        raise ValueError("no values to summarise")
    mean = math.fsum(values) / n
    if n == 1:
        return Score(mean=mean, std=None, low=None, high=None, n=1, values=list(values))
    from scipy import stats

    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Score(mean=mean, std=std, low=mean - half, high=mean + half, n=n, values=list(values))

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


class Difference(pydantic.BaseModel):
    """How much more the first of two has than the second, over pairs: `of` says pairs of what.

    `low` and `high` bound the 95 % interval of the mean difference, None for a single pair. `shown` says whether it
    excludes zero.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    n: int
    of: str

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """The difference between two, each given as values per network for every distillation seed, in the same order.

    Networks vary within a seed, seeds among each other: with two seeds or more, the mean over networks of each seed is
    one observation, since networks of one distilled set share its luck. With one seed, networks are the observations.
    Raises `ValueError` where the two do not pair up.
    """
    if len(first) != len(second) or any(len(a) != len(b) for a, b in zip(first, second, strict=True)) or not first:
        raise ValueError("values do not pair up")
    each = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in zip(first, second, strict=True)]
    many = len(each) > 1
    score = summarise([math.fsum(gaps) / len(gaps) for gaps in each] if many else each[0])
    return Difference(mean=score.mean, low=score.low, high=score.high, n=score.n, of="seeds" if many else "networks")

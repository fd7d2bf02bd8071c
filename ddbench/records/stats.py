"""Summaries of repeated measurements: mean, spread and the interval they support."""

import math
from collections.abc import Sequence

import pydantic


class Score(pydantic.BaseModel):
    """One figure over `n` networks.

    Attributes:
        mean: mean over the networks.
        std: sample standard deviation (n - 1) over the networks.
        low: lower end of the 95 % confidence interval of the mean (Student's t).
        high: upper end of the interval.
        n: number of networks.
        values: the figure of each network; empty where a leaderboard's record keeps the summary alone.

    `std`, `low` and `high` are None for a single network, which supports none, and where they were not kept.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    values: list[float] = []


def summarise(values: Sequence[float], confidence: float = 0.95) -> Score:
    """Return the `Score` of raw values, one per network. Raises `ValueError` for none."""
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


def crossed(values: Sequence[Sequence[float]], confidence: float = 0.95) -> Score:
    """Return the `Score` over distillation seeds and networks, given `values[seed][network]`.

    Networks are the same for every seed, so the two factors cross: v_sj = mu + a_s + b_j + e_sj, with variances of
    seeds, of networks and of what is left. With the mean squares of a two-way analysis of variance, the mean over k
    seeds and n networks has variance (MS_a + MS_b - MS_e) / (k n), with Satterthwaite's degrees of freedom. The
    interval is never narrower than over seeds or over networks alone. `std` is of all values, `n` counts networks.
    Raises `ValueError` for seeds that were scored on different numbers of networks.
    """
    if len({len(row) for row in values}) != 1:
        raise ValueError("seeds were scored on different numbers of networks")
    k, n, flat = len(values), len(values[0]), [value for row in values for value in row]
    if k == 1 or n == 1:
        return summarise(flat, confidence)
    import numpy as np
    from scipy import stats

    v = np.array(values)
    mean, seed_means, network_means = v.mean(), v.mean(1, keepdims=True), v.mean(0, keepdims=True)
    freedoms = np.array([k - 1, n - 1, (k - 1) * (n - 1)])
    sums = [n * ((seed_means - mean) ** 2).sum(), k * ((network_means - mean) ** 2).sum()]
    seeds, networks, rest = np.array([*sums, ((v - seed_means - network_means + mean) ** 2).sum()]) / freedoms
    total = max(seeds + networks - rest, seeds, networks)
    spread = (np.array([seeds, networks, rest]) ** 2 / freedoms).sum()
    half = stats.t.ppf((1 + confidence) / 2, total**2 / spread) * math.sqrt(total / (k * n)) if spread else 0.0
    return Score(
        mean=float(mean), std=float(v.std(ddof=1)), low=float(mean - half), high=float(mean + half), n=n, values=flat
    )


class Difference(pydantic.BaseModel):
    """The difference of the first of two to the second, over pairs.

    Attributes:
        mean: mean difference.
        low: lower end of the 95 % interval of the mean difference; None for a single pair.
        high: upper end of the interval.
        n: number of pairs.
        of: the things that are paired, such as networks.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    n: int
    of: str

    @property
    def shown(self) -> bool:
        """True where the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """Return the difference of two methods, each given as `values[seed][network]` in the same order.

    With one seed, networks are the observations. With two or more, seeds and networks cross as in `crossed`: networks
    of one set share its luck, and methods without luck are still seen on those networks alone.
    Raises `ValueError` where the two do not pair up.
    """
    if len(first) != len(second) or any(len(a) != len(b) for a, b in zip(first, second, strict=True)) or not first:
        raise ValueError("values do not pair up")
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]
    score, seeds = crossed(differences), len(differences)
    n, of = (seeds, f"seeds on {len(differences[0])} networks") if seeds > 1 else (score.n, "networks")
    return Difference(mean=score.mean, low=score.low, high=score.high, n=n, of=of)


class Interval(pydantic.BaseModel):
    """A mean with its 95 % interval; None where a single value supports none."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None


def bootstrap(values: Sequence[float], resamples: int = 10_000) -> Interval:
    """Return the mean of `values` with its 95 % percentile interval over resamples (Efron and Tibshirani 1993, ch. 13).

    The resamples are the same at every call. Raises `ValueError` for no values.
    """
    import numpy as np

    if not values:
        raise ValueError("no values to resample")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean=mean, low=None, high=None)
    drawn = np.random.default_rng(0).choice(np.array(values), (resamples, len(values)))
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    return Interval(mean=mean, low=float(low), high=float(high))


def signed_rank(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; None for less than two differences, 1 for zeros."""
    if len(differences) < 2:
        return None
    if not any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    # Zeros are shared between both sides, as Demsar (2006) advises; ties leave no exact distribution.
    sizes = [abs(difference) for difference in differences]
    exact = 0.0 not in sizes and len(set(sizes)) == len(sizes)
    return float(wilcoxon(differences, zero_method="zsplit", method="exact" if exact else "approx").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979): the family-wise error stays below each of them."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[place]))
        corrected[place] = largest
    return corrected

import numpy as np
import pytest
from scipy import stats

from ddbench.stats import summarise


def test_agrees_with_scipy():
    values = [0.81, 0.79, 0.84, 0.9, 0.77]
    score = summarise(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert score.mean == pytest.approx(np.mean(values))
    assert score.std == pytest.approx(np.std(values, ddof=1))
    assert (score.low, score.high) == pytest.approx((low, high))
    assert (score.n, score.values) == (5, values)


def test_intervals_hold_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        score = summarise(generator.normal(0.7, 0.1, size=6).tolist())
        covered += score.low <= 0.7 <= score.high
    assert 0.92 < covered / 500 < 0.98


def test_one_network_supports_no_interval():
    score = summarise([0.5])
    assert (score.mean, score.std, score.low, score.high) == (0.5, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        summarise([])

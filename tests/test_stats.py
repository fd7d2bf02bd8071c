import math

import numpy as np
import pytest
from scipy import stats

from ddbench.records.stats import crossed, summarise


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


def test_differences_in_pairs():
    """Networks within a seed against scipy's paired test; with several seeds, both cross."""
    from scipy import stats as theirs

    from ddbench.records.stats import paired

    first, second = [0.8, 0.7, 0.9, 0.85], [0.7, 0.72, 0.8, 0.7]
    found = paired([first], [second])
    wanted = theirs.ttest_rel(first, second)
    low, high = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.of, found.shown) == (4, "networks", bool(wanted.pvalue < 0.05))
    seeds = paired([first, [0.6] * 4], [second, [0.59] * 4])
    assert seeds.mean == pytest.approx((sum(first) - sum(second)) / 8 + 0.005)
    assert (seeds.n, seeds.of) == (2, "seeds on 4 networks")
    # Methods that make the same set whatever the seed: no more is known than on the networks of one.
    same = paired([first] * 3, [second] * 3)
    assert (same.low, same.high) == pytest.approx((found.low, found.high), abs=0.02)
    assert not paired([[0.5, 0.7, 0.4]] * 3, [[0.6, 0.5, 0.42]] * 3).shown
    assert paired([[0.5]], [[0.4]]).low is None
    assert not paired([[0.5]], [[0.4]]).shown
    with pytest.raises(ValueError, match="pair up"):
        paired([[0.5, 0.4]], [[0.4]])


def test_over_seeds_and_networks_the_interval_covers_the_mean_as_often_as_it_says():
    """Simulated: variances of seeds, networks and the rest that are all there, 3 seeds on 20 networks."""
    draw, hits, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        seeds, networks = draw.normal(0, 0.02, (3, 1)), draw.normal(0, 0.03, (1, 20))
        score = crossed((0.8 + seeds + networks + draw.normal(0, 0.02, (3, 20))).tolist())
        assert score.low is not None and score.high is not None
        hits += score.low <= 0.8 <= score.high
    assert 0.92 <= hits / trials <= 0.99


def test_over_seeds_and_networks_by_hand():
    # Seeds differ by .2, networks by .1, and nothing is left: MS_a = 2 * 2 * .01, MS_b = 2 * 2 * .0025, MS_e = 0.
    score = crossed([[0.4, 0.5], [0.6, 0.7]])
    assert score.mean == pytest.approx(0.55)
    half = stats.t.ppf(0.975, 0.05**2 / (0.04**2 + 0.01**2)) * math.sqrt(0.05 / 4)
    assert score.high == pytest.approx(0.55 + half)
    assert crossed([[0.4, 0.6]]) == summarise([0.4, 0.6])
    assert crossed([[0.4], [0.6]]) == summarise([0.4, 0.6])
    same = crossed([[0.5, 0.5], [0.5, 0.5]])
    assert (same.low, same.high) == (0.5, 0.5)
    with pytest.raises(ValueError, match="different numbers"):
        crossed([[0.4, 0.6], [0.5]])

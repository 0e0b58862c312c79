"""Intervals and tests against scipy, brute force and what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rationalyst_jax.evaluate.statistics import mcnemar, mean_interval

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def outcomes_of(right: int, n: int) -> np.ndarray:
    return np.arange(n) < right


@pytest.mark.parametrize(("right", "n"), ((390, 600), (30, 50), (3, 600)))
def test_accuracy_interval_equals_scipys_percentile_bootstrap(right: int, n: int):
    ours = mean_interval(outcomes_of(right, n))
    scipys = stats.bootstrap((outcomes_of(right, n).astype(float),), np.mean, method="percentile", rng=1)
    assert ours.mean == right / n
    assert ours.low == pytest.approx(scipys.confidence_interval.low, abs=1.5 / n)
    assert ours.high == pytest.approx(scipys.confidence_interval.high, abs=1.5 / n)


def test_difference_interval_equals_resampling_the_pairs():
    rng = np.random.default_rng(3)
    a, b = rng.random(300) < 0.6, rng.random(300) < 0.5
    difference = a.astype(int) - b.astype(int)
    means = difference[rng.integers(300, size=(20_000, 300))].mean(axis=1)
    ours = mean_interval(difference)
    assert ours.mean == pytest.approx(a.mean() - b.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.005)


def test_interval_holds_the_true_accuracy_19_times_in_20():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.random(200) < 0.7, seed=trial) for trial in range(400)]
    assert 0.92 < np.mean([interval.low <= 0.7 <= interval.high for interval in intervals]) < 0.98


def test_interval_is_the_same_for_the_same_seed_whatever_the_order():
    a = outcomes_of(40, 100)
    assert mean_interval(a, seed=5) == mean_interval(a[::-1], seed=5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_interval_lies_within_the_values(values: list[float]):
    interval = mean_interval(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_an_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@given(outcomes)
def test_mcnemar_equals_counting_every_way_the_coins_could_fall(pairs: list[tuple[bool, bool]]):
    only_a = sum(a and not b for a, b in pairs)
    only_b = sum(b and not a for a, b in pairs)
    discordant = only_a + only_b
    as_likely_or_less = sum(
        math.comb(discordant, heads)
        for heads in range(discordant + 1)
        if math.comb(discordant, heads) <= math.comb(discordant, only_a)
    )
    assert mcnemar(*zip(*pairs, strict=True)) == pytest.approx(as_likely_or_less / 2**discordant)


@given(outcomes)
def test_mcnemar_takes_no_side(pairs: list[tuple[bool, bool]]):
    a, b = zip(*pairs, strict=True)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError, match="found 2 and 1"):
        mcnemar([True, False], [True])

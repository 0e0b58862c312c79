"""Clustered intervals against scipy, brute force, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from rationalyst_jax.evaluate.clustered import clustered_mean, clustered_share


def test_clusters_of_one_value_give_students_interval():
    values = np.random.default_rng(0).normal(1, 2, 30)
    found = clustered_mean(values, range(30))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)


def test_repeating_every_value_in_its_cluster_changes_nothing():
    values = np.random.default_rng(1).normal(size=20)
    once = clustered_mean(values, range(20))
    thrice = clustered_mean(np.repeat(values, 3), np.repeat(range(20), 3).tolist())
    assert vars(thrice) == pytest.approx(vars(once), rel=1e-12)


def test_the_clustered_error_is_that_of_the_sandwich_formula():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    clusters = ["a", "b", "a", "c", "b"]
    mean = sum(values) / 5
    sums = [sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) for name in "abc"]
    error = math.sqrt(3 / 2 * sum(s * s for s in sums)) / 5
    found = clustered_mean(values, clusters)
    assert found.high - found.mean == pytest.approx(4.302652729911275 * error)  # t of 2 degrees of freedom


@pytest.mark.parametrize("C", [20, 200])
def test_means_are_covered_95_times_in_100(C):
    rng = np.random.default_rng(C)
    covered = 0
    for _ in range(1000):
        sizes = rng.integers(1, 6, C)
        clusters = np.repeat(np.arange(C), sizes)
        values = rng.normal(size=C)[clusters] + rng.normal(size=len(clusters))
        found = clustered_mean(values, clusters.tolist())
        covered += found.low <= 0 <= found.high
    assert 930 <= covered <= 970


def test_shares_of_clusters_of_one_value_have_wilsons_interval():
    flags = [True] * 7 + [False] * 93
    found = clustered_share(flags, range(100))
    # The robust error divides by N - 1: that many values less are they worth.
    worth = binomtest(7, 100).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((worth.low, worth.high), abs=1e-3)


@pytest.mark.parametrize("flag", [False, True])
def test_all_or_none_still_have_an_interval(flag):
    found = clustered_share([flag] * 60, [i // 3 for i in range(60)])
    wilson = binomtest(20 * flag, 20).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


@pytest.mark.parametrize(("C", "share"), [(50, 0.3), (200, 0.05), (50, 0.02)])
def test_shares_in_clusters_are_covered(C, share):
    rng = np.random.default_rng(round(C / share))
    covered = 0
    for _ in range(1000):
        clusters = np.repeat(np.arange(C), 3)
        own = rng.random(C) < share  # half of the values are their cluster's
        flags = np.where(rng.random(3 * C) < 0.5, own[clusters], rng.random(3 * C) < share)
        found = clustered_share(flags, clusters.tolist())
        covered += found.low <= share <= found.high
    assert covered >= 930


def test_one_cluster_says_nothing_of_others():
    found = clustered_mean([1.0, 2.0], ["a", "a"])
    assert (found.mean, found.low, found.high) == (1.5, -math.inf, math.inf)


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="no values"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="2 values have 1 clusters"):
        clustered_share([True, False], ["a"])

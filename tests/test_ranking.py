"""AUROC, average precision, intervals and the permutation test, against brute force and scikit-learn."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from rationalyst_jax.evaluate.ranking import (
    PERMUTATIONS,
    auroc,
    auroc_difference,
    auroc_interval,
    average_precision,
    permutation_test,
    precision_interval,
)
from rationalyst_jax.evaluate.statistics import Interval


def there(found: Any) -> Any:
    """What must have been found."""
    assert found is not None
    return found


def drawn(seed, n=40, distinct=7):
    """Scores with many ties, errors, and clusters."""
    rng = np.random.default_rng(seed)
    error = rng.random(n) < 0.3
    error[:2] = True, False
    score = rng.integers(0, distinct, n) / 2 - error
    return score, error, rng.integers(0, n // 3, n)


def value(statistic, score, error):
    return statistic(score, error, np.ones((1, len(score))))[0]


def by_pairs(score, error):
    """The definition of AUROC: right items against errors, one by one."""
    wins = [(r > e) + (r == e) / 2 for r in score[~error] for e in score[error]]
    return np.mean(wins)


def by_thresholds(score, error):
    """The definition of average precision: from threshold to threshold, precision times the recall gained."""
    total = before = 0.0
    for threshold in sorted(set(score)):
        called = score <= threshold
        recall = (called & error).sum() / error.sum()
        total += (recall - before) * error[called].mean()
        before = recall
    return total


@pytest.mark.parametrize("seed", range(8))
def test_measures_equal_their_definitions_with_ties(seed):
    score, error, _ = drawn(seed)
    assert value(auroc, score, error) == pytest.approx(by_pairs(score, error), abs=1e-12)
    assert value(average_precision, score, error) == pytest.approx(by_thresholds(score, error), abs=1e-12)


@pytest.mark.parametrize("distinct", [2, 7, 10**6])
def test_measures_equal_those_of_scikit_learn(distinct):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is only an oracle here")
    score, error, _ = drawn(3, n=300, distinct=distinct)
    assert value(auroc, score, error) == pytest.approx(metrics.roc_auc_score(error, -score), abs=1e-12)
    ours = value(average_precision, score, error)
    assert ours == pytest.approx(metrics.average_precision_score(error, -score), abs=1e-12)


@pytest.mark.parametrize("statistic", [auroc, average_precision])
def test_a_weight_counts_an_item_so_often(statistic):
    score, error, _ = drawn(1)
    weights = np.random.default_rng(0).integers(0, 4, (5, len(score)))
    weighted = statistic(score, error, weights)
    for row, found in zip(weights, weighted, strict=True):
        assert found == pytest.approx(value(statistic, score.repeat(row), error.repeat(row)), abs=1e-12)


def test_without_errors_or_without_anything_right_there_is_no_value():
    score, error, cluster = drawn(2)
    for labels in (np.zeros_like(error), np.ones_like(error)):
        assert auroc_interval(score, labels, cluster) is None
        assert precision_interval(score, labels, cluster) is None
        assert np.isnan(value(auroc, score, labels))


def test_copies_within_a_cluster_do_not_narrow_the_interval():
    score, error, _ = drawn(4)
    alone = np.arange(len(score))
    for interval in (auroc_interval, precision_interval):
        once = there(interval(score, error, alone))
        copied = there(interval(score.repeat(5), error.repeat(5), alone.repeat(5)))
        assert vars(copied) == pytest.approx(vars(once), abs=1e-12)
        apart = there(interval(score.repeat(5), error.repeat(5), np.arange(5 * len(score))))
        assert apart.high - apart.low < 0.7 * (once.high - once.low)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_an_interval_is_the_measure(seed):
    score, error, cluster = drawn(seed)
    other = np.random.default_rng(seed).normal(size=len(score))
    auroc_of = by_pairs(score, error)
    assert there(auroc_interval(score, error, cluster)).mean == pytest.approx(auroc_of)
    assert there(precision_interval(score, error, cluster)).mean == pytest.approx(by_thresholds(score, error))
    difference = there(auroc_difference(score, other, error, cluster))
    assert difference.mean == pytest.approx(auroc_of - by_pairs(other, error))


def test_the_lowest_score_may_be_minus_infinity():
    score, error, cluster = drawn(3)
    lowest = np.where(score == score.min(), -np.inf, score)
    for statistic in (auroc, average_precision):
        assert value(statistic, lowest, error) == value(statistic, score, error)
    for interval in (auroc_interval, precision_interval):
        assert interval(lowest, error, cluster) == interval(score, error, cluster)


def test_the_variance_of_single_items_is_that_of_delong():
    score, error, _ = drawn(6)
    right = score[~error]
    wrong = score[error]
    won = (right[None] > wrong[:, None]) + (right[None] == wrong[:, None]) / 2
    variance = won.mean(1).var(ddof=1) / len(wrong) + won.mean(0).var(ddof=1) / len(right)
    found = there(auroc_interval(score, error, np.arange(len(score))))
    logits = np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))
    root = logits / 2 * found.mean * (1 - found.mean)
    # DeLong's factors are m / (m - 1) and n / (n - 1), ours is K / (K - 1); Student's t is above 1.96.
    assert 1.96 < root / variance**0.5 < 2.4


# What is simulated: true AUROC, and problems, half of which have an error.
COVERED = ((0.5, 20), (0.72, 40), (0.9, 20), (0.9, 50), (0.98, 20), (0.98, 50), (0.98, 100), (0.992, 300))
COMPARED = ((0.72, 0.72, 40), (0.9, 0.72, 20), (0.98, 0.9, 50), (0.992, 0.855, 300))


def problems(count, every):
    """Steps of problems, of which one in `every` has an error: whether each is one, and its problem."""
    steps = [[False, False] + [True] * (p % every == 0) for p in range(count)]
    return np.concatenate(steps), np.arange(count).repeat([len(of) for of in steps])


def coverage(true, count, shared, every=2):
    """Share of 1,000 simulated intervals that hold the true AUROC: errors are lower by what it asks for, and
    `shared` is the share of the variance that all steps of a problem have in common."""
    error, cluster = problems(count, every)
    apart = ~error * 2**0.5 * norm.ppf(true)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1_000):
        own = rng.normal(size=len(error)) * (1 - shared) ** 0.5
        found = there(
            auroc_interval(own + rng.normal(size=count)[cluster] * shared**0.5 + apart, error, cluster)
        )
        covered += found.low <= true <= found.high
    return covered / 1_000


def expect_covered(share, few):
    """93 to 97 %, and above it the error of 1,000 simulations; more with few errors, or where often no step
    stands in the wrong order and the exact interval decides."""
    assert share >= 0.93
    assert few or share <= 0.98


@pytest.mark.parametrize(("true", "count"), [(0.5, 20), (0.9, 20), (0.98, 50)])
def test_intervals_cover_the_true_auroc(true, count):
    expect_covered(coverage(true, count, 0.0), few=False)


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("shared", [0.0, 0.3])
@pytest.mark.parametrize(("true", "count"), COVERED)
def test_intervals_cover_the_true_auroc_in_1000_simulations(true, count, shared, every):
    errors = count / every
    expect_covered(coverage(true, count, shared, every), few=errors < 5 or errors * (1 - true) <= 1)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b", "count"), COMPARED)
def test_intervals_cover_the_true_difference_in_1000_simulations(a, b, count):
    error, cluster = problems(count, 2)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1_000):
        shared = rng.normal(size=len(error))
        score_a, score_b = (
            (shared + rng.normal(size=len(error))) / 2**0.5 + ~error * 2**0.5 * norm.ppf(true)
            for true in (a, b)
        )
        found = there(auroc_difference(score_a, score_b, error, cluster))
        covered += found.low <= a - b <= found.high
    expect_covered(covered / 1_000, few=False)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interval_is_wide_where_all_pairs_are_alike(share):
    error = np.array([True, False] * 10)
    score = np.where(error, 1 - share, share) + (share != 0.5) * np.arange(20) / 100
    found = there(auroc_interval(score, error, np.arange(20)))
    assert found.mean == share
    # Ten independent pairs: the exact interval with mid-P tails of 10 out of 10 ends at 0.05 ** (1 / 10).
    alike = 0.05 ** (1 / 10)
    assert (found.low, found.high) == pytest.approx((alike * share, alike * share + 1 - alike))
    for one_problem in (np.zeros(20), np.where(error, 0, np.arange(20))):
        found = there(auroc_interval(score, error, one_problem))
        assert (found.low, found.high) == (0, 1)


def test_precision_is_wide_where_all_errors_come_first():
    error = np.array([True, False] * 10)
    assert precision_interval(~error * 1.0, error, np.arange(20)) == Interval(1.0, 0.5, 1.0)
    assert precision_interval(~error * 1.0, error, np.zeros(20)) == Interval(1.0, 0.0, 1.0)


def test_a_difference_is_no_point_where_the_items_say_nothing():
    error = np.array([True, False] * 10)
    perfect = ~error + np.arange(20) / 100
    noise = np.random.default_rng(0).normal(size=20)
    singles = np.arange(20)
    # One problem; errors in one problem only.
    for cluster in (np.zeros(20), np.where(error, 0, singles)):
        found = there(auroc_difference(perfect, noise, error, cluster))
        assert (found.low, found.high) == (-1, 1)
    # Both perfect, or the very same score: ten pairs of ten are alike, as above.
    alike = 0.05 ** (1 / 10)
    for a, b in ((perfect, perfect * 3), (noise, noise)):
        found = there(auroc_difference(a, b, error, singles))
        assert (found.low, found.mean, found.high) == pytest.approx((alike - 1, 0, 1 - alike))
    # Two problems that are all alike are one independent pair.
    found = there(auroc_difference(perfect[:4], -perfect[:4], error[:4], np.arange(4) // 2))
    assert found.mean == 1 and found.low < -0.5 and found.high == 1


def test_a_difference_without_errors_has_no_value():
    score, error, cluster = drawn(2)
    assert auroc_difference(score, -score, np.zeros_like(error), cluster) is None


def test_the_permutation_test_agrees_with_all_swaps():
    score, error, _ = drawn(5, n=24)
    other = score + np.random.default_rng(1).normal(0, 1, 24)
    cluster = np.arange(24) // 4
    observed = abs(by_pairs(score, error) - by_pairs(other, error))
    as_large = 0
    for swaps in product([False, True], repeat=6):
        swapped = np.array(swaps)[cluster]
        a = np.where(swapped, other, score)
        b = np.where(swapped, score, other)
        as_large += abs(by_pairs(a, error) - by_pairs(b, error)) >= observed - 1e-12
    exact = as_large / 64
    p = permutation_test(score, other, error, cluster)
    assert 0.05 < exact < 0.95
    assert abs(p - exact) < 4 * (exact * (1 - exact) / PERMUTATIONS) ** 0.5


def test_equal_scores_do_not_differ_and_a_clear_difference_is_found():
    rng = np.random.default_rng(0)
    error = np.tile([True, False, False], 100)
    cluster = np.arange(100).repeat(3)
    noise = rng.normal(size=300)
    telling = ~error * 1.5 + rng.normal(size=300)
    assert permutation_test(noise, noise, error, cluster) == 1
    assert permutation_test(telling, noise, error, cluster) == 1 / (PERMUTATIONS + 1)
    difference = there(auroc_difference(telling, noise, error, cluster))
    assert difference.low > 0.1
    assert difference.mean == pytest.approx(by_pairs(telling, error) - by_pairs(noise, error))


def test_unrelated_scores_are_found_different_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    error = np.tile([True, False, False], 15)
    cluster = np.arange(15).repeat(3)
    p = []
    for seed in range(60):
        a, b = rng.normal(size=(2, 45))
        p.append(permutation_test(a, b, error, cluster, seed))
    assert sum(value < 0.2 for value in p) in range(4, 22)  # 12 of 60 are expected

"""AUROC, average precision, intervals and the permutation test, against brute force and scikit-learn."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from rationalyst_jax.evaluate.ranking import (
    PERMUTATIONS,
    auroc,
    auroc_difference,
    auroc_interval,
    average_precision,
    permutation_test,
    point,
    precision_interval,
)


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
    return point(lambda weights: statistic(score, error, weights), len(score))


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


def test_intervals_cover_the_true_auroc():
    # Right steps are normal around 1, errors around 0, and a problem shifts all of its steps alike. Steps of
    # two problems differ by 1 with variance 2 * (1 + 0.5), so AUROC is the normal distribution at 1 / 3**0.5.
    true = 0.7181
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        cluster = np.arange(40).repeat(4)
        error = np.tile([True, False, False, False], 40)
        score = ~error + rng.normal(size=160) + rng.normal(size=40)[cluster] * 0.5**0.5
        found = there(auroc_interval(score, error, cluster, seed))
        covered += found.low <= true <= found.high
    assert 0.90 <= covered / 200 <= 0.985


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interval_is_wide_where_all_pairs_are_ordered_alike(share):
    error = np.array([True, False] * 10)
    score = np.where(error, 1 - share, share) + np.arange(20) / 100
    found = there(auroc_interval(score, error, np.arange(20)))
    assert found.value == share
    # Ten independent pairs: the rule of three says about 3/10 at 95 % one-sided, 3.7/10 two-sided.
    bound = 1 - 0.025 ** (1 / 10)
    assert (found.low, found.high) == pytest.approx((0, bound) if share == 0 else (1 - bound, 1))
    for one_problem in (np.zeros(20), np.where(error, 0, np.arange(20))):
        found = there(auroc_interval(score, error, one_problem))
        assert (found.low, found.high) == (0, 1)
    if share == 1:
        assert vars(there(precision_interval(score, error, np.arange(20)))) == {
            "value": 1,
            "low": 0.5,
            "high": 1,
        }


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
    difference = auroc_difference(telling, noise, error, cluster)
    assert difference.low > 0.1
    assert difference.value == pytest.approx(by_pairs(telling, error) - by_pairs(noise, error))


def test_unrelated_scores_are_found_different_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    error = np.tile([True, False, False], 15)
    cluster = np.arange(15).repeat(3)
    p = []
    for seed in range(60):
        a, b = rng.normal(size=(2, 45))
        p.append(permutation_test(a, b, error, cluster, seed))
    assert sum(value < 0.2 for value in p) in range(4, 22)  # 12 of 60 are expected

"""Intervals, tests, families and power against scipy, brute force and what they promise."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rationalyst_jax.evaluate.clusters import effective_size
from rationalyst_jax.evaluate.power import mcnemar_power, smallest_difference
from rationalyst_jax.evaluate.statistics import (
    Interval,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    proportion_interval,
)

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def outcomes_of(right: int, n: int) -> np.ndarray:
    return np.arange(n) < right


def pairs_of(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


# ---- Proportions ----


@pytest.mark.parametrize(("right", "n"), ((1, 1), (1, 20), (19, 20), (7, 20), (390, 600), (3, 600)))
def test_ends_of_an_accuracy_are_where_the_exact_tail_with_half_of_what_was_seen_is_a_40th(
    right: int, n: int
):
    ours = proportion_interval(outcomes_of(right, n))
    assert ours.mean == right / n
    if right < n:
        assert ours.low < right / n < ours.high
        seen = stats.binom.pmf(right, n, ours.high)
        assert stats.binom.cdf(right, n, ours.high) - seen / 2 == pytest.approx(0.025)
    else:
        assert ours.high == 1
    seen = stats.binom.pmf(right, n, ours.low)
    assert stats.binom.sf(right, n, ours.low) + seen / 2 == pytest.approx(0.025)


@settings(max_examples=30)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_accuracy_interval_lies_within_scipys_exact_one(counts: tuple[int, int]):
    right, n = counts
    ours = proportion_interval(outcomes_of(right, n))
    exact = stats.binomtest(right, n).proportion_ci(method="exact")
    assert exact.low - 1e-9 <= ours.low <= right / n <= ours.high <= exact.high + 1e-9


@pytest.mark.parametrize("n", (1, 20, 500))
def test_none_or_all_right_is_no_certainty(n: int):
    none, every = proportion_interval([False] * n), proportion_interval([True] * n)
    bound = 1 - 0.05 ** (1 / n)
    assert (none.mean, none.low, none.high) == (0, 0, pytest.approx(bound))
    assert (every.mean, every.low, every.high) == (1, pytest.approx(1 - bound), 1)


@pytest.mark.parametrize(("n", "least", "mean"), ((20, 0.92, (0.95, 0.97)), (100, 0.92, (0.945, 0.96))))
def test_accuracy_interval_covers_every_true_accuracy(n: int, least: float, mean: tuple[float, float]):
    """Its coverage is summed exactly over all outcomes."""
    intervals = [proportion_interval(outcomes_of(right, n)) for right in range(n + 1)]
    low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("low", "high"))
    true = np.linspace(0.001, 0.999, 999)[:, None]
    coverage = (stats.binom.pmf(np.arange(n + 1), n, true) * ((low <= true) & (true <= high))).sum(axis=1)
    assert coverage.min() > least
    assert mean[0] < coverage.mean() < mean[1]
    assert min(coverage[19], coverage[979]) > 0.93  # at 0.02 and 0.98


# ---- Clusters ----


def test_clusters_of_equal_values_are_worth_one_value_each():
    right = outcomes_of(6, 20)
    clusters = np.repeat(np.arange(20), 5).tolist()
    clustered = proportion_interval(np.repeat(right, 5), clusters)
    alone = proportion_interval(right)
    assert effective_size(np.repeat(right, 5), clusters) == pytest.approx(20)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("right", (False, True))
def test_where_all_are_equal_a_cluster_is_worth_one_value(right: bool):
    clusters = np.repeat(np.arange(20), 5).tolist()
    ours = proportion_interval([right] * 100, clusters)
    assert ours == proportion_interval([right] * 20)


def test_clusters_of_one_are_no_clusters():
    right = outcomes_of(3, 50)
    assert proportion_interval(right, list(range(50))) == proportion_interval(right)
    assert effective_size(right, list(range(50))) == 50


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60),
)
def test_an_effective_size_lies_between_that_of_equal_clusters_and_the_number_of_values(rows):
    clusters, right = zip(*rows, strict=True)
    sizes = np.unique(clusters, return_counts=True)[1]
    least = len(rows) ** 2 / (sizes**2).sum()
    assert least - 1e-9 <= effective_size(right, clusters) <= len(rows)


def test_design_effect_is_the_variance_of_resampling_whole_clusters_over_that_of_single_values():
    rng = np.random.default_rng(0)
    size, number = 5, 400
    share_K = rng.beta(2, 2, size=number)
    right = np.repeat(share_K, size) > rng.random(size * number)
    sums_K = right.reshape(number, size).sum(axis=1)
    resampled = sums_K[rng.integers(number, size=(20_000, number))].mean(axis=1) / size
    independent = right.mean() * (1 - right.mean()) / right.size
    clusters = np.repeat(np.arange(number), size).tolist()
    expected = right.size * independent / resampled.var()
    assert effective_size(right, clusters) == pytest.approx(expected, rel=0.03)


def clustered_outcomes(
    rng: np.random.Generator, sizes_K: np.ndarray, true: float, correlation: float
) -> np.ndarray:
    """Right or wrong [N] with a beta-distributed accuracy of each cluster: correlation within it."""
    if correlation == 0:
        return rng.random(sizes_K.sum()) < true
    scale = (1 - correlation) / correlation
    share_K = rng.beta(true * scale, (1 - true) * scale, size=sizes_K.size)
    return rng.random(sizes_K.sum()) < np.repeat(share_K, sizes_K)


def coverage(simulate: Callable[[], Interval], true: float, trials: int) -> float:
    intervals = [simulate() for _ in range(trials)]
    return float(np.mean([i.low <= true <= i.high for i in intervals]))


SIZES = {
    "one": np.full(1, 1),
    "two": np.full(1, 2),
    "five": np.full(1, 5),
    "ten": np.full(1, 10),
    "mixed": np.array([1, 1, 2, 3, 8]),
}


def check_clustered_coverage(
    number: int, size: str, correlation: float, true: float, trials: int, slack: float
):
    rng = np.random.default_rng(7)
    sizes_K = np.resize(SIZES[size], number)
    clusters = np.repeat(np.arange(number), sizes_K).tolist()
    covered = coverage(
        lambda: proportion_interval(clustered_outcomes(rng, sizes_K, true, correlation), clusters),
        true,
        trials,
    )
    print(f"{number} clusters of {size}, correlation {correlation}, accuracy {true}: {covered:.3f}")
    # In between, 20 clusters of ten with few right ones are the worst (docs/statistics.md).
    assert covered >= (0.93 if true in (0.02, 0.98) else 0.92) - slack


@pytest.mark.parametrize("true", (0.02, 0.5, 0.98))
@pytest.mark.parametrize(("size", "correlation"), (("five", 0.0), ("five", 0.3), ("mixed", 0.6)))
def test_clustered_interval_covers_the_truth(size: str, correlation: float, true: float):
    check_clustered_coverage(20, size, correlation, true, trials=200, slack=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("true", (0.02, 0.05, 0.1, 0.3, 0.5, 0.98))
@pytest.mark.parametrize(
    ("size", "correlation"),  # clusters of one have no correlation
    [(size, c) for size in SIZES for c in (0.0, 0.1, 0.3, 0.6) if size != "one" or c == 0],
)
@pytest.mark.parametrize("number", (20, 50, 200))
def test_clustered_interval_covers_the_truth_in_1000_simulations(number, size, correlation, true):
    check_clustered_coverage(number, size, correlation, true, trials=1000, slack=0.0)


def test_samples_of_a_question_taken_for_questions_would_cover_too_little():
    rng = np.random.default_rng(7)
    sizes_K = np.full(20, 5)
    naive = coverage(lambda: proportion_interval(clustered_outcomes(rng, sizes_K, 0.5, 0.6)), 0.5, 200)
    assert naive < 0.85


# ---- Paired differences ----


def test_paired_interval_holds_what_a_score_test_does_not_reject():
    """At each end the statistic, with the nuisance share found by maximizing the likelihood, is 1.96."""
    only_a, only_b, n = 9, 3, 40
    ours = difference_interval(*pairs_of(20, only_a, only_b, 8))
    assert ours.mean == pytest.approx(0.15)
    for end in (ours.low, ours.high):
        share = np.linspace(max(0.0, -end), (1 - end) / 2, 2_000_001)[1:-1]
        likelihood = only_a * np.log(share + end) + only_b * np.log(share)
        likelihood += (n - only_a - only_b) * np.log(1 - 2 * share - end)
        share = share[likelihood.argmax()]
        deviation = math.sqrt(n * (2 * share + end - end**2))
        assert abs(only_a - only_b - n * end) / deviation == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize("n", (1, 20, 300))
def test_no_difference_in_any_question_is_no_certainty(n: int):
    bound = 1.959964**2 / (n + 1.959964**2)
    ours = difference_interval([True] * n, [True] * n)
    assert (ours.mean, ours.low, ours.high) == (0, pytest.approx(-bound), pytest.approx(bound))


def test_the_largest_difference_ends_at_1():
    every = difference_interval([True] * 20, [False] * 20)
    assert (every.mean, every.high) == (1, 1)
    assert 0.6 < every.low < 0.9


@given(outcomes)
def test_paired_interval_holds_its_mean_and_mirrors_when_the_systems_are_swapped(pairs):
    a, b = zip(*pairs, strict=True)
    ours, swapped = difference_interval(a, b), difference_interval(b, a)
    assert -1 <= ours.low <= ours.mean <= ours.high <= 1
    assert (ours.low, ours.high) == pytest.approx((-swapped.high, -swapped.low), abs=1e-7)


@pytest.mark.parametrize(("n", "only_a", "only_b"), ((20, 0.02, 0.02), (20, 0.3, 0.1), (40, 0.15, 0.05)))
def test_paired_interval_covers_every_true_difference(n: int, only_a: float, only_b: float):
    """Its coverage is summed exactly over all pairs of discordant counts."""
    covered = 0.0
    for x in range(n + 1):
        for y in range(n + 1 - x):
            chance = stats.multinomial.pmf([x, y, n - x - y], n, [only_a, only_b, 1 - only_a - only_b])
            if chance > 1e-5:  # leaving out the rest can only lower the sum
                interval = difference_interval(*pairs_of(0, x, y, n - x - y))
                covered += chance * (interval.low <= only_a - only_b <= interval.high)
    assert 0.93 <= covered


def test_samples_of_equal_clusters_differ_as_one_pair_each():
    a, b = pairs_of(5, 6, 2, 7)
    clusters = np.repeat(np.arange(20), 4).tolist()
    clustered = difference_interval(np.repeat(a, 4), np.repeat(b, 4), clusters)
    alone = difference_interval(a, b)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("correlation", (0.0, 0.6))
@pytest.mark.parametrize("true", (0.0, 0.1))
def test_clustered_paired_interval_covers_the_truth(true: float, correlation: float):
    check_paired_coverage(20, true, correlation, trials=200, slack=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", (0.0, 0.1, 0.3, 0.6))
@pytest.mark.parametrize("true", (0.0, 0.02, 0.1, 0.3))
@pytest.mark.parametrize("number", (20, 50, 200))
def test_clustered_paired_interval_covers_the_truth_in_1000_simulations(number, true, correlation):
    check_paired_coverage(number, true, correlation, trials=1000, slack=0.0)


def check_paired_coverage(number: int, true: float, correlation: float, trials: int, slack: float):
    """Clusters of five questions; each has its own share of discordant ones, and its own winner."""
    rng = np.random.default_rng(8)
    sizes_K = np.full(number, 5)
    clusters = np.repeat(np.arange(number), sizes_K).tolist()
    discordant = max(0.1, 2 * true)
    a_wins = (1 + true / discordant) / 2

    def simulate() -> Interval:
        differ = clustered_outcomes(rng, sizes_K, discordant, correlation)
        winner = clustered_outcomes(rng, sizes_K, a_wins, correlation)
        return difference_interval(differ & winner, differ & ~winner, clusters)

    covered = coverage(simulate, true, trials)
    print(f"{number} clusters of five, correlation {correlation}, difference {true}: {covered:.3f}")
    assert covered >= 0.93 - slack


# ---- Means ----


def test_mean_interval_equals_resampling_whole_clusters():
    rng = np.random.default_rng(3)
    sizes_K = np.resize([1, 2, 5], 300)
    values = rng.normal(np.repeat(rng.normal(size=300), sizes_K), 1.0)
    clusters = np.repeat(np.arange(300), sizes_K)
    sums_K = np.bincount(clusters, weights=values)
    drawn = rng.integers(300, size=(20_000, 300))
    means = sums_K[drawn].sum(axis=1) / sizes_K[drawn].sum(axis=1)
    ours = mean_interval(values, clusters=clusters.tolist())
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.01)


def test_mean_interval_of_few_values_is_as_wide_as_students():
    values = np.random.default_rng(0).normal(size=12)
    ours = mean_interval(values)
    students = stats.ttest_1samp(values, 0).confidence_interval()
    assert ours.high - ours.low == pytest.approx(students.high - students.low, rel=0.1)


def test_mean_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = coverage(lambda: mean_interval(rng.normal(size=15)), 0.0, 150)
    assert 0.92 <= covered <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("correlation", (0.0, 0.5))
@pytest.mark.parametrize("number", (20, 50))
def test_mean_interval_covers_the_truth_in_1000_simulations(number: int, correlation: float):
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(number), 3).tolist()

    def simulate() -> Interval:
        shared = np.repeat(rng.normal(size=number), 3) * math.sqrt(correlation)
        return mean_interval(
            shared + rng.normal(size=number * 3) * math.sqrt(1 - correlation), clusters=clusters
        )

    covered = coverage(simulate, 0.0, 1000)
    print(f"mean of {number} clusters of three, correlation {correlation}: {covered:.3f}")
    assert 0.93 <= covered <= 0.97


def test_interval_is_the_same_for_the_same_seed_whatever_the_order():
    values = np.random.default_rng(0).normal(size=100)
    assert mean_interval(values, seed=5).low == mean_interval(values[::-1], seed=5).low


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_mean_interval_lies_within_the_values(values: list[float]):
    interval = mean_interval(values)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_one_cluster_says_nothing_about_the_spread():
    assert mean_interval([1.0, 3.0], clusters=["a", "a"]) == Interval(2.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    "interval", (mean_interval, proportion_interval, lambda nothing: difference_interval(nothing, nothing))
)
def test_an_interval_of_nothing_is_an_error(interval: Callable):
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_each_value_needs_its_cluster():
    with pytest.raises(ValueError, match="found 2 and 1"):
        proportion_interval([True, False], ["a"])


# ---- Tests ----


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


@pytest.mark.parametrize(("only_a", "only_b"), ((0, 0), (5, 0), (40, 17), (700, 520), (3000, 1000)))
def test_mcnemar_equals_scipys_binomial_test(only_a: int, only_b: int):
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(*pairs_of(10, only_a, only_b, 10)) == pytest.approx(expected, rel=1e-8)


@given(outcomes)
def test_mcnemar_takes_no_side(pairs: list[tuple[bool, bool]]):
    a, b = zip(*pairs, strict=True)
    assert mcnemar(a, b) == mcnemar(b, a)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), min_size=1, max_size=40))
def test_clustered_mcnemar_equals_flipping_every_cluster_each_way(rows):
    a, b, clusters = zip(*rows, strict=True)
    sums = [sum(int(x) - int(y) for x, y, at in rows if at == cluster) for cluster in dict.fromkeys(clusters)]
    totals = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    assert mcnemar(a, b, clusters) == pytest.approx(np.mean([total >= abs(sum(sums)) for total in totals]))


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError, match="found 2 and 1"):
        mcnemar([True, False], [True])


# ---- Families ----


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_equals_testing_every_intersection(p_values: list[float]):
    """Closed testing: a hypothesis falls when Bonferroni's test rejects each set that it is in."""
    everything = range(len(p_values))
    subsets = [s for size in everything for s in itertools.combinations(everything, size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in everything
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_of_a_textbook_family():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


# ---- Power ----


@pytest.mark.parametrize(("n", "discordant", "difference"), ((12, 0.6, 0.4), (20, 0.3, 0.2), (15, 0.5, 0.0)))
def test_power_equals_summing_every_outcome(n: int, discordant: float, difference: float):
    only_a, only_b = (discordant + difference) / 2, (discordant - difference) / 2
    expected = sum(
        stats.multinomial.pmf([x, y, n - x - y], n, [only_a, only_b, 1 - discordant])
        for x in range(n + 1)
        for y in range(n + 1 - x)
        if x + y and stats.binomtest(x, x + y).pvalue <= 0.05
    )
    assert mcnemar_power(n, discordant, difference) == pytest.approx(expected, abs=1e-9)


def test_power_equals_how_often_simulated_systems_differ():
    rng = np.random.default_rng(0)
    n, discordant, difference = 200, 0.3, 0.12
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    counts, often = np.unique(rng.multinomial(n, shares, size=4000), axis=0, return_counts=True)
    rejected = [mcnemar(*pairs_of(0, *outcome)) <= 0.05 for outcome in counts]
    expected = np.average(rejected, weights=often)
    assert mcnemar_power(n, discordant, difference) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("n", "discordant"), ((20, 0.3), (100, 0.05), (500, 0.4), (12_000, 0.25)))
def test_smallest_difference_has_the_power_and_less_has_not(n: int, discordant: float):
    found = smallest_difference(n, discordant)
    assert found is not None
    more, less = found + 0.001, found - 0.001
    assert mcnemar_power(n, max(discordant, more), more) >= 0.8
    assert mcnemar_power(n, max(discordant, less), less) < 0.8


def test_five_questions_show_no_difference_and_six_only_a_large_one():
    assert smallest_difference(5, 0.3) is None
    assert smallest_difference(6, 0.0) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)


def test_power_needs_as_many_discordant_questions_as_the_difference():
    with pytest.raises(ValueError, match=r"0\.3 needs more discordant questions than 0\.2"):
        mcnemar_power(100, 0.2, 0.3)

"""How sure a result is: intervals, the exact test for two systems on the same questions, families of tests.

All intervals are at 95 %. `clusters` name, value by value, what belongs together (the samples of one
question, the questions on one passage): values of one cluster say less than as many of different ones.
None: each value is its own cluster.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, ndtr, ndtri, stdtrit
from scipy.stats import binom

from rationalyst_jax.evaluate.clusters import cluster_sums, effective_size

RESAMPLES = 10_000
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
BESIDE = 1e-9  # a search for an end starts beside the mean: at the mean itself both sides may be 0

Values = Sequence[float] | np.ndarray
Outcomes = Sequence[bool] | np.ndarray
Clusters = Sequence[Hashable] | None


@dataclass(frozen=True)
class Interval:
    """A mean (a difference of means, a share of pairs, a mean precision …) and its 95 % interval."""

    mean: float
    low: float
    high: float


def proportion_interval(right: Outcomes, clusters: Clusters = None) -> Interval:
    """The share of true outcomes [N] with its exact mid-P interval; ValueError where N is 0.

    The interval of Clopper and Pearson 1934, whose tails count half of the outcome that was seen (Lancaster
    1961): 0 of 20 gives [0, 0.139]. Over all true shares its coverage is 96 % in the mean at N = 20 and 95 %
    from 100 on. It is 99 % at 0.02 and 0.98 with N = 20, and 91.8 % where it is lowest (Wilson's: 84 %).

    With clusters both counts are scaled to the effective size (Korn and Graubard 1998). Of 1,000 simulations
    of 20 clusters and more, of one to ten values with a correlation of 0 to 0.6, it covers at least 93 % at
    0.02 and 0.98 and at least 92 % anywhere; docs/statistics.md has the table.
    """
    right_N = np.asarray(right, dtype=bool)
    size = effective_size(right_N, clusters)
    share = float(right_N.mean())
    seen = share * size

    def upper_tail(true: float) -> float:
        """Probability of more than `seen`, and half that of `seen`; counts need not be whole numbers."""
        at_least = betainc(seen, size - seen + 1, true) if share > 0 else 1.0
        more = betainc(seen + 1, size - seen, true) if share < 1 else 0.0
        return (at_least + more) / 2

    low = _root(lambda true: TAIL - upper_tail(true), 0.0, 1.0) if share > 0 else 0.0
    high = _root(lambda true: 1 - TAIL - upper_tail(true), 0.0, 1.0) if share < 1 else 1.0
    return Interval(share, low, high)


def difference_interval(a: Outcomes, b: Outcomes, clusters: Clusters = None) -> Interval:
    """How much more often a than b [N] is right on the same questions, with Tango's score interval.

    Tango 1998 (Statistics in Medicine 17): the differences that a score test of the paired outcomes does not
    reject. Without any difference in 20 questions it is [-0.161, 0.161], not a point. With clusters the
    counts are scaled to the effective size of the differences. Raises ValueError where N is 0 or not equal.
    """
    differences_N = _differences(a, b)
    size = effective_size(differences_N, clusters)
    only_a = float((differences_N > 0).mean()) * size
    only_b = float((differences_N < 0).mean()) * size
    mean = float(differences_N.mean())
    z = ndtri(1 - TAIL)

    def excess(true: float) -> float:
        """What was seen less what a true difference predicts, in questions."""
        return only_a - only_b - size * true

    def deviation(true: float) -> float:
        """Standard deviation of the excess, at the most likely share of questions that only b gets right."""
        linear = (2 * size - only_a + only_b) * true - only_a - only_b
        root = np.sqrt(linear**2 + 8 * size * only_b * true * (1 - true))
        share = (root - linear) / (4 * size)
        return np.sqrt(max(size * (2 * share + true * (1 - true)), 0.0))

    low = _root(lambda true: excess(true) - z * deviation(true), -1.0, max(mean - BESIDE, -1.0))
    high = _root(lambda true: excess(true) + z * deviation(true), min(mean + BESIDE, 1.0), 1.0)
    return Interval(mean, low, high)


def mean_interval(values: Values, seed: int = 0, clusters: Clusters = None) -> Interval:
    """The mean of `values` [N], of any unit, with its bootstrap interval; ValueError where N is 0.

    Whole clusters are resampled (`resampled_interval`). One cluster says nothing about the spread, so the
    interval has no ends (infinities). Values that are all equal give a point, so outcomes have intervals of
    their own, `proportion_interval` and `difference_interval`.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.size == 0:
        raise ValueError("a mean of no values has no interval")
    sums_K, sizes_K = cluster_sums(values_N, clusters)
    order_K = np.lexsort((sizes_K, sums_K))  # the values' own order decides nothing

    def mean(drawn_RK: np.ndarray) -> np.ndarray:
        drawn_RK = order_K[drawn_RK]
        return sums_K[drawn_RK].sum(axis=1) / sizes_K[drawn_RK].sum(axis=1)

    return resampled_interval(float(values_N.mean()), mean, sums_K.size, seed)


def resampled_interval(
    mean: float, statistic: Callable[[np.ndarray], np.ndarray], K: int, seed: int = 0, numbers: int = 0
) -> Interval:
    """The bootstrap interval of any statistic, whose value is `mean`: K clusters are resampled (Efron 1979).

    statistic: from the numbers, 0 to K - 1, of the clusters drawn in R resamples [R, K] to its values [R];
    NaN where there is none: such a resample is left out. numbers: how many it computes with for each
    resample, where that is more than K; it bounds R.

    The percentiles are those at which the interval of a normal mean is as wide as Student's: the plain ones
    are too narrow for few clusters (Hesterberg 2015, The American Statistician 69). One cluster says nothing
    about the spread: the interval has no ends (infinities).
    """
    if K == 1:
        return Interval(mean, -np.inf, np.inf)
    rng = np.random.default_rng(seed)
    values_R = np.concatenate(
        [statistic(rng.integers(K, size=(R, K))) for R in chunk_sizes(RESAMPLES, max(K, numbers))]
    )
    tail = ndtr(np.sqrt(K / (K - 1)) * stdtrit(K - 1, TAIL))
    low, high = np.quantile(values_R[~np.isnan(values_R)], (tail, 1 - tail))
    return Interval(mean, float(low), float(high))


def times_drawn(drawn_RK: np.ndarray) -> np.ndarray:
    """How often each of K clusters is among the K drawn, in each of R resamples: [R, K]."""
    R, K = drawn_RK.shape
    return np.bincount((drawn_RK + K * np.arange(R)[:, None]).ravel(), minlength=R * K).reshape(R, K)


def chunk_sizes(resamples: int, numbers: int) -> Iterator[int]:
    """The resamples in parts that take little memory, where each takes so many numbers."""
    size = max(1, 2**22 // numbers)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def mcnemar(a: Outcomes, b: Outcomes, clusters: Clusters = None) -> float:
    """The exact two-sided p-value that a and b [N], right or wrong on the same questions, are equally good.

    McNemar 1947 in its binomial form: among the questions that only one of them got right, each is as likely
    to be a's as b's. With clusters, each cluster's difference is as likely to be a's as b's: all signs are
    flipped, exactly. 1 where they never differ. Raises ValueError where a and b are not equally long.
    """
    sums_K, _ = cluster_sums(_differences(a, b), clusters)
    sums_K = np.rint(sums_K).astype(np.int64)
    probability = np.ones(1)  # of each total, from the lowest to the highest
    for size, count in zip(*np.unique(np.abs(sums_K[sums_K != 0]), return_counts=True), strict=True):
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, spread)
    total = np.arange(probability.size) - probability.size // 2
    return min(1.0, float(probability[np.abs(total) >= abs(sums_K.sum())].sum()))


def holm(p_values: Values) -> list[float]:
    """The p-values [M] adjusted for being a family (Holm 1979, step-down), in their order.

    Below alpha means: significant, with a probability of at most alpha that any true null hypothesis of the
    family is. It holds whatever the dependence between the tests.
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    order_M = np.argsort(p_M, kind="stable")
    adjusted_M = np.empty_like(p_M)
    steps_M = np.arange(p_M.size, 0, -1) * p_M[order_M]
    adjusted_M[order_M] = np.minimum(np.maximum.accumulate(steps_M), 1.0)
    return adjusted_M.tolist()


def _differences(a: Outcomes, b: Outcomes) -> np.ndarray:
    a_N = np.asarray(a, dtype=bool)
    b_N = np.asarray(b, dtype=bool)
    if a_N.shape != b_N.shape:
        raise ValueError(f"paired outcomes must be equally many, found {a_N.size} and {b_N.size}")
    return a_N.astype(np.float64) - b_N


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 between two bounds; a bound where it does not."""
    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    return brentq(falling, low, high)  # pyright: ignore[reportReturnType]

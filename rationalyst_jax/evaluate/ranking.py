"""How well a score tells errors from what is right, without a threshold; resampled by clusters.

An error should have a low score. N items, in P clusters (steps of one problem are one cluster: they are not
independent); R resamples, which draw P clusters with replacement: an item then counts as often as its
cluster was drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
PERMUTATIONS = 10_000
LEVEL = 0.95
_NUMBERS = 4_000_000  # float64, that a chunk of resamples may take at once

Statistic = Callable[[np.ndarray], np.ndarray]  # from weights [R, N] to values [R], NaN where there is none


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at 95 %."""

    value: float
    low: float
    high: float


def auroc(score_N: np.ndarray, error_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """The probability [R] that a right item has a higher score than an error; equal scores count half.

    NaN where weights leave no error, or nothing right. (The Mann-Whitney statistic over the number of pairs.)
    """
    errors_RG, rights_RG = _by_score(score_N, error_N, weight_RN)
    above_RG = rights_RG.sum(1, keepdims=True) - rights_RG.cumsum(1) + rights_RG / 2
    with np.errstate(invalid="ignore"):
        return (errors_RG * above_RG).sum(1) / (errors_RG.sum(1) * rights_RG.sum(1))


def average_precision(score_N: np.ndarray, error_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """The mean precision [R] at each error found, where items are called errors from the lowest score up.

    Equal scores are called at once. By chance it is the share of errors. NaN where weights leave no error.
    """
    errors_RG, rights_RG = _by_score(score_N, error_N, weight_RN)
    found_RG = errors_RG.cumsum(1)
    called_RG = found_RG + rights_RG.cumsum(1)
    precision_RG = found_RG / np.maximum(called_RG, 1)  # nothing called: then no error is found there either
    with np.errstate(invalid="ignore"):
        return (errors_RG * precision_RG).sum(1) / errors_RG.sum(1)


def _by_score(
    score_N: np.ndarray, error_N: np.ndarray, weight_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of errors and of right items at each distinct score, from the lowest up: both [R, G]."""
    order_N = np.argsort(score_N, kind="stable")
    first_G = np.flatnonzero(np.diff(score_N[order_N], prepend=-np.inf))
    weight_RN = weight_RN[:, order_N].astype(np.float64)
    errors_RG = np.add.reduceat(weight_RN * error_N[order_N], first_G, axis=1)
    rights_RG = np.add.reduceat(weight_RN * ~error_N[order_N], first_G, axis=1)
    return errors_RG, rights_RG


def point(statistic: Statistic, n: int) -> float:
    """The statistic of all n items, each counted once."""
    return float(statistic(np.ones((1, n)))[0])


def resampled(statistic: Statistic, cluster_N: np.ndarray, seed: int) -> np.ndarray:
    """The statistic in RESAMPLES cluster bootstraps; those in which it has no value are left out."""
    clusters, place_N = np.unique(cluster_N, return_inverse=True)
    P = len(clusters)
    rng = np.random.default_rng(seed)
    values = [
        statistic(rng.multinomial(P, np.full(P, 1 / P), size=size)[:, place_N])
        for size in _chunks(RESAMPLES, len(cluster_N) + P)
    ]
    values_R = np.concatenate(values)
    return values_R[~np.isnan(values_R)]


def percentiles(values_R: np.ndarray) -> tuple[float, float]:
    """The ends of the interval at 95 %."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values_R, (tail, 1 - tail))
    return float(low), float(high)


def auroc_interval(
    score_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> Estimate | None:
    """AUROC with its percentile interval of the cluster bootstrap; None without an error, or anything right.

    Where all pairs are ordered alike (0 or 1) resampling shows no spread. Then the interval is the exact
    binomial one of as many pairs, an error and a right item, as can be made of different clusters: these are
    independent trials, all with one outcome. Errors of one cluster alone say nothing about others: 0 to 1.
    """
    if error_N.all() or not error_N.any():
        return None
    value = point(lambda weight_RN: auroc(score_N, error_N, weight_RN), len(score_N))
    with_error = set(cluster_N[error_N])
    with_right = set(cluster_N[~error_N])
    if min(len(with_error), len(with_right)) == 1:
        return Estimate(value, 0.0, 1.0)
    if value in (0.0, 1.0):
        pairs = min(len(with_error), len(with_right), len(with_error | with_right) // 2)
        return Estimate(value, *one_outcome(value, pairs))
    values_R = resampled(lambda weight_RN: auroc(score_N, error_N, weight_RN), cluster_N, seed)
    return Estimate(value, *percentiles(values_R))


def one_outcome(share: float, trials: int) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934) of a share that is 0 or 1."""
    end = ((1 - LEVEL) / 2) ** (1 / trials)
    return (0.0, 1 - end) if share == 0 else (end, 1.0)


def precision_interval(
    score_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> Estimate | None:
    """Average precision with its percentile interval; None, and 0 to 1, as for `auroc_interval`.

    Where it is 1 resampling shows no spread: then the low end is that of chance, the share of errors.
    """
    if error_N.all() or not error_N.any():
        return None
    value = point(lambda weight_RN: average_precision(score_N, error_N, weight_RN), len(score_N))
    if min(len(set(cluster_N[error_N])), len(set(cluster_N[~error_N]))) == 1:
        return Estimate(value, 0.0, 1.0)
    if value == 1:
        return Estimate(value, float(error_N.mean()), 1.0)
    values_R = resampled(lambda weight_RN: average_precision(score_N, error_N, weight_RN), cluster_N, seed)
    return Estimate(value, *percentiles(values_R))


def auroc_difference(
    a_N: np.ndarray, b_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> Estimate:
    """AUROC of the scores a minus that of b on the same items, with its paired percentile interval."""

    def difference(weight_RN: np.ndarray) -> np.ndarray:
        return auroc(a_N, error_N, weight_RN) - auroc(b_N, error_N, weight_RN)

    return Estimate(point(difference, len(a_N)), *percentiles(resampled(difference, cluster_N, seed)))


def permutation_test(
    a_N: np.ndarray, b_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> float:
    """The two-sided p-value that scores a and b (on one scale) have the same AUROC.

    If it makes no difference which of the two a cluster has, they may be swapped: of PERMUTATIONS random
    choices of clusters to swap, how many have as large a difference? The one at hand counts as one of them,
    so p is never below 1 / (PERMUTATIONS + 1).
    """
    clusters, place_N = np.unique(cluster_N, return_inverse=True)
    both = np.concatenate([a_N, b_N])
    errors = np.concatenate([error_N, error_N])

    def difference(swapped_RN: np.ndarray) -> np.ndarray:
        first = np.concatenate([1 - swapped_RN, swapped_RN], axis=1)
        return auroc(both, errors, first) - auroc(both, errors, 1 - first)

    observed = abs(difference(np.zeros((1, len(a_N))))[0])
    rng = np.random.default_rng(seed)
    as_large = 0
    for size in _chunks(PERMUTATIONS, 2 * len(a_N)):
        swapped_RN = rng.integers(0, 2, (size, len(clusters)))[:, place_N]
        as_large += int((np.abs(difference(swapped_RN)) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + PERMUTATIONS)


def _chunks(resamples: int, numbers: int) -> Iterator[int]:
    """The resamples in parts that take little memory, where each takes so many numbers."""
    size = max(1, min(resamples, _NUMBERS // numbers))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)

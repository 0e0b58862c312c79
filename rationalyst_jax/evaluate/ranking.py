"""How well a score tells errors from what is right, without a threshold; items come in clusters.

An error should have a low score. N items, in K clusters (steps of one problem are one cluster: they are not
independent); R weightings of the items, as resamples have them.
"""

import numpy as np
from scipy.special import expit, logit, stdtrit

from rationalyst_jax.evaluate.statistics import (
    TAIL,
    Interval,
    chunk_sizes,
    proportion_interval,
    resampled_interval,
    times_drawn,
)

PERMUTATIONS = 10_000
_NOTHING = 1e-12  # what a share that would be 0 may be off by rounding


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
    sorted_N = score_N[order_N]
    first_G = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
    weight_RN = weight_RN[:, order_N].astype(np.float64)
    errors_RG = np.add.reduceat(weight_RN * error_N[order_N], first_G, axis=1)
    rights_RG = np.add.reduceat(weight_RN * ~error_N[order_N], first_G, axis=1)
    return errors_RG, rights_RG


def auroc_interval(score_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray) -> Interval | None:
    """AUROC with its interval; None without an error, or anything right.

    The variance is that of DeLong et al. 1988 (Biometrics 44), its components summed by clusters as in
    Obuchowski 1997 (Biometrics 53). The interval is Student's on the logit scale, which ends at 0 and 1.
    docs/statistics.md has its coverage.

    Where all pairs are ordered alike, or all scores are equal, there is no variance. The interval then says
    how many other pairs may not be alike (`_without_variance`).
    """
    if error_N.all() or not error_N.any():
        return None
    mean, part_K = _auroc_parts(score_N, error_N, cluster_N)
    if found := _without_variance(mean, part_K, 0.0, error_N, cluster_N):
        return found
    half = _half_width(part_K, error_N, cluster_N) / (mean * (1 - mean))
    return Interval(mean, float(expit(logit(mean) - half)), float(expit(logit(mean) + half)))


def auroc_difference(
    a_N: np.ndarray, b_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray
) -> Interval | None:
    """AUROC of the scores a minus that of b on the same items, with its paired interval.

    As `auroc_interval`, from the differences of the components, and without the logit scale.
    """
    if error_N.all() or not error_N.any():
        return None
    a, part_a_K = _auroc_parts(a_N, error_N, cluster_N)
    b, part_b_K = _auroc_parts(b_N, error_N, cluster_N)
    mean = a - b
    part_K = part_a_K - part_b_K
    if found := _without_variance(mean, part_K, -1.0, error_N, cluster_N):
        return found
    half = _half_width(part_K, error_N, cluster_N)
    return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def _auroc_parts(score_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray) -> tuple[float, np.ndarray]:
    """AUROC, and the sum of each cluster's components [K], by which it moves AUROC; together they are 0."""
    won_N = np.empty(len(score_N))  # the share of the other kind that each item is ordered rightly with
    won_N[error_N] = 1 - _share_below(score_N[error_N], score_N[~error_N])
    won_N[~error_N] = _share_below(score_N[~error_N], score_N[error_N])
    mean = float(won_N[error_N].mean())
    weight_N = np.where(error_N, 1 / error_N.sum(), 1 / (~error_N).sum())
    _, place_N = np.unique(cluster_N, return_inverse=True)
    return mean, np.bincount(place_N, weights=(won_N - mean) * weight_N)


def _share_below(score_N: np.ndarray, others_M: np.ndarray) -> np.ndarray:
    """The share [N] of the others that are below each score; equal ones count half."""
    sorted_M = np.sort(others_M)
    below_N = np.searchsorted(sorted_M, score_N, "left") + np.searchsorted(sorted_M, score_N, "right")
    return below_N / (2 * len(others_M))


def _without_variance(
    mean: float, part_K: np.ndarray, lowest: float, error_N: np.ndarray, cluster_N: np.ndarray
) -> Interval | None:
    """The interval, within `lowest` and 1, where the components tell none; None where they do.

    If only one cluster has errors, or anything right, it says nothing about others: `lowest` to 1. If no
    cluster moves the mean, all pairs of an error and a right item are taken for alike. Those that share no
    cluster are independent; `proportion_interval` of as many says how many others may have another value.
    """
    with_error, with_right = _clusters_with(error_N, cluster_N)
    if min(len(with_error), len(with_right)) == 1:
        return Interval(mean, lowest, 1.0)
    if np.abs(part_K).max() > _NOTHING:
        return None
    pairs = min(len(with_error), len(with_right), len(with_error | with_right) // 2)
    alike = proportion_interval([True] * pairs).low
    return Interval(mean, alike * mean + (1 - alike) * lowest, alike * mean + (1 - alike))


def _half_width(part_K: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray) -> float:
    """Half of the width of Student's interval.

    Near AUROC 1 few clusters make up the variance. So its degrees of freedom are Satterthwaite's, from the
    fourth powers, and fewer than the clusters with errors, and than those with anything right.
    """
    K = part_K.size
    total = (part_K**2).sum()
    spread = (part_K**4).sum() - total**2 / K
    freedom = min(map(len, _clusters_with(error_N, cluster_N))) - 1
    if spread > 0:
        freedom = max(1.0, min(freedom, 2 * total**2 / spread))
    return float(stdtrit(freedom, 1 - TAIL) * np.sqrt(total * K / (K - 1)))


def _clusters_with(error_N: np.ndarray, cluster_N: np.ndarray) -> tuple[set, set]:
    """The clusters that have an error, and those that have something right."""
    return set(cluster_N[error_N].tolist()), set(cluster_N[~error_N].tolist())


def precision_interval(
    score_N: np.ndarray, error_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> Interval | None:
    """Average precision with its interval, for which clusters are resampled; None as for `auroc_interval`.

    Where errors, or right items, are of one cluster it is 0 to 1. Where it is 1 resampling shows no spread:
    then the low end is that of chance, the share of errors.
    """
    if error_N.all() or not error_N.any():
        return None
    [mean] = average_precision(score_N, error_N, np.ones((1, len(score_N)))).tolist()
    if min(map(len, _clusters_with(error_N, cluster_N))) == 1:
        return Interval(mean, 0.0, 1.0)
    if mean == 1:
        return Interval(mean, float(error_N.mean()), 1.0)
    clusters, place_N = np.unique(cluster_N, return_inverse=True)
    return resampled_interval(
        mean,
        lambda drawn_RK: average_precision(score_N, error_N, times_drawn(drawn_RK)[:, place_N]),
        len(clusters),
        seed,
        numbers=len(score_N),
    )


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
    for size in chunk_sizes(PERMUTATIONS, 2 * len(a_N)):
        swapped_RN = rng.integers(0, 2, (size, len(clusters)))[:, place_N]
        as_large += int((np.abs(difference(swapped_RN)) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + PERMUTATIONS)

"""Intervals at 95 % for means and shares of values that come in clusters, as rationales come in documents."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm, t

from rationalyst_jax.evaluate.statistics import Interval

_TAIL = 0.975  # of 95 %, below the upper end


def clustered_mean(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> Interval:
    """The mean of `values` [N], with Student's interval about it from the cluster-robust standard error.

    Only clusters are taken to be independent (Liang and Zeger 1986): with C clusters the deviations of a
    cluster are summed before they are squared, and t has C - 1 degrees of freedom. With clusters of one value
    it is the ordinary interval of Student. One cluster says nothing about others: from it the interval is
    infinite. Raises ValueError where N is 0, or `clusters` are not as many.
    """
    values_N = np.asarray(values, dtype=np.float64)
    mean, error, C = _mean(values_N, clusters)
    half = float(t.ppf(_TAIL, C - 1)) * error if C > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def clustered_share(flags: Sequence[bool] | np.ndarray, clusters: Sequence[Hashable]) -> Interval:
    """The share of `flags` [N] that are true, with Wilson's interval for as many values as they are worth.

    They are worth share * (1 - share) / error^2 independent ones, with the cluster-robust error of
    `clustered_mean`, but at most N (Korn and Graubard 1998, who put this number in Clopper and Pearson's
    interval). Where all or none are true, which says nothing about the error, they are worth as many as there
    are clusters. Raises as `clustered_mean`.
    """
    flags_N = np.asarray(flags, dtype=np.float64)
    share, error, C = _mean(flags_N, clusters)
    worth = float(C)
    if error > 0:
        worth = min(share * (1 - share) / error**2, float(flags_N.size))
    return Interval(share, *_wilson(share, worth))


def _mean(values_N: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float, int]:
    """Mean, its cluster-robust standard error (0 for one cluster), and the number of clusters C."""
    if values_N.size == 0:
        raise ValueError("a mean of no values has no interval")
    if len(clusters) != values_N.size:
        raise ValueError(f"{values_N.size} values have {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    cluster_N = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    C = len(numbers)
    mean = float(values_N.mean())
    deviation_C = np.bincount(cluster_N, weights=values_N - mean, minlength=C)
    variance = float((deviation_C**2).sum()) * C / max(1, C - 1)
    return mean, math.sqrt(variance) / values_N.size, C


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval (1927) for a share of n values; n need not be whole."""
    z = float(norm.ppf(_TAIL))
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)
